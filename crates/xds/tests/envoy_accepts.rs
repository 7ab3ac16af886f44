//! A running Envoy takes everything over ADS, refuses nothing and warns of nothing.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::ads::Ads;
use meshfed_proxy_config::{Discovery, HttpRoutes, Network};
use meshfed_testkit::{LoopbackNet, TempDir, eventually, forge::Forge, temp_dir, tools};
use meshfed_xds::{TypeUrl, encode};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

struct Envoy {
    process: Child,
    admin: SocketAddr,
    dir: TempDir,
}

impl Envoy {
    fn start(bootstrap: &Value, admin: SocketAddr) -> Option<Self> {
        let program = tools::envoy_or_skip()?;
        let dir = temp_dir();
        let path = dir.path().join("bootstrap.json");
        std::fs::write(&path, bootstrap.to_string()).unwrap();
        let process = Command::new(program)
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-path"])
            .arg(dir.path().join("log"))
            .arg("-c")
            .arg(path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self {
            process,
            admin,
            dir,
        })
    }

    fn get(&self, path: &str) -> Result<String, std::io::Error> {
        let mut stream = TcpStream::connect(self.admin)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn warnings(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let bad = |l: &&str| {
            ["[warning]", "[error]", "[critical]"]
                .iter()
                .any(|w| l.contains(w))
        };
        log.lines().filter(bad).map(String::from).collect()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A bootstrap without TLS: only the resources are in question here.
fn bootstrap(admin: SocketAddr, ads: SocketAddr) -> Value {
    let cluster = |name: &str| {
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "5s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}},
                },
            },
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{
                "endpoint": {"address": address(ads)},
            }]}]},
        })
    };
    let from_ads = json!({"ads": {}, "resource_api_version": "V3"});
    json!({
        "node": {"id": "test", "cluster": "test"},
        "admin": {"address": address(admin)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            },
            "lds_config": from_ads, "cds_config": from_ads,
        },
        "static_resources": {"clusters": [cluster("xds-grpc"), cluster("sds-grpc")]},
        "overload_manager": {"resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": 1000,
            },
        }]},
    })
}

fn address(a: SocketAddr) -> Value {
    json!({"socket_address": {"address": a.ip().to_string(), "port_value": a.port()}})
}

#[tokio::test(flavor = "current_thread")]
async fn every_kind_of_resource_is_taken_without_a_warning() {
    let net = LoopbackNet::lock();
    let root = Forge::new("red-mesh.local");
    let mut ads = Ads::default();

    for (i, mut listener) in common::samples(common::listener()).into_iter().enumerate() {
        listener.name = format!("listener-{i}");
        listener.address = SocketAddr::new(net.address(1), 20_000 + u16::try_from(i).unwrap());
        for chain in &mut listener.chains {
            if let Some(tls) = &mut chain.tls {
                tls.trust = "trust".to_string();
            }
            if let Network::Http(http) = &mut chain.network
                && let HttpRoutes::Rds(name) = &mut http.routes
            {
                *name = format!("routes-{i}");
            }
        }
        ads.add(&listener.name, encode::listener(&listener));
    }
    for (i, mut routes) in common::samples(common::routes()).into_iter().enumerate() {
        routes.name = format!("routes-{i}");
        ads.add(&routes.name, encode::routes(&routes));
    }
    for (i, mut cluster) in common::samples(common::cluster()).into_iter().enumerate() {
        cluster.name = format!("cluster-{i}");
        if let Some(tls) = &mut cluster.tls {
            tls.trust = "trust".to_string();
        }
        if let Discovery::Eds(service) = &mut cluster.discovery {
            *service = format!("endpoints-{i}");
        }
        ads.add(&cluster.name, encode::cluster(&cluster));
    }
    for (i, mut endpoints) in common::samples(common::endpoints()).into_iter().enumerate() {
        endpoints.name = format!("endpoints-{i}");
        ads.add(&endpoints.name, encode::endpoints(&endpoints));
    }
    let bundle = meshfed_proxy_config::TrustBundle {
        domains: [("red-mesh.local".parse().unwrap(), root.root_pem().into())].into(),
    };
    ads.add("trust", encode::trust("trust", &bundle));
    let own = root.issue("spiffe://red-mesh.local/ns/a/sa/b");
    ads.add(
        "default",
        encode::identity("default", &own.chain_pem, &own.key_pem),
    );

    let (ads, ads_address) = ads.serve().await;
    let admin = SocketAddr::new(net.address(2), 15_000);
    let Some(envoy) = Envoy::start(&bootstrap(admin, ads_address), admin) else {
        return;
    };
    let acked = |ads: &Arc<Ads>| ads.acked.lock().unwrap().clone();
    eventually(PATIENCE, async || {
        let acked = acked(&ads);
        let missing: Vec<_> = TypeUrl::ADS_ORDER
            .iter()
            .filter(|t| !acked.contains(t.as_str()))
            .collect();
        let ready = envoy.get("/ready").unwrap_or_default();
        if missing.is_empty() && ready.contains("LIVE") {
            Ok(())
        } else {
            Err((missing, ready, envoy.warnings()))
        }
    })
    .await;
    assert_eq!(*ads.refused.lock().unwrap(), Vec::<String>::new());
    assert_eq!(envoy.warnings(), Vec::<String>::new());
    let active = envoy.get("/listeners").unwrap();
    assert_eq!(active.matches("listener-").count(), common::SAMPLES);
}
