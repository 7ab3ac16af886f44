//! A running Envoy takes everything over ADS, refuses nothing and warns of nothing.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::ads::Ads;
use meshfed_proxy_config::{Discovery, HttpRoutes, Network};
use meshfed_testkit::{Envoy, LoopbackNet, eventually, forge::Forge};
use meshfed_xds::{TypeUrl, encode};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

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
                tls.trust = "trust".into();
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
        cluster.name = format!("cluster-{i}").into();
        if let Some(tls) = &mut cluster.tls {
            tls.trust = "trust".into();
        }
        if let Discovery::Eds(service) = &mut cluster.discovery {
            *service = format!("endpoints-{i}").into();
        }
        ads.add(&*cluster.name, encode::cluster(&cluster));
    }
    for (i, mut endpoints) in common::samples(common::endpoints()).into_iter().enumerate() {
        endpoints.name = format!("endpoints-{i}").into();
        ads.add(&*endpoints.name, encode::endpoints(&endpoints));
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
    let Some(envoy) = Envoy::start(&bootstrap(admin, ads_address).to_string(), admin) else {
        return;
    };
    let acked = |ads: &Arc<Ads>| ads.acked.lock().unwrap().clone();
    eventually(PATIENCE, async || {
        let acked = acked(&ads);
        let missing: Vec<_> = TypeUrl::ADS_ORDER
            .iter()
            // Our proxies alone ask for virtual hosts.
            .filter(|t| **t != TypeUrl::VirtualHosts && !acked.contains(t.as_str()))
            .collect();
        if missing.is_empty() {
            envoy.ready()
        } else {
            Err(format!("no answer to {missing:?}: {:?}", envoy.ready()))
        }
    })
    .await;
    assert_eq!(*ads.refused.lock().unwrap(), Vec::<String>::new());
    assert_eq!(envoy.warnings(), Vec::<String>::new());
    let active = envoy.get("/listeners").unwrap();
    assert_eq!(active.matches("listener-").count(), common::SAMPLES);
}
