//! A stock Envoy with an agent beside it does what our configuration means, against honest and
//! against forged clients.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test fails"
)]

mod common;

#[path = "../../xds/tests/common/ads.rs"]
#[allow(clippy::unwrap_used, dead_code, reason = "shared with other tests")]
mod ads;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ads::Ads;
use common::{Authority, ControlPlane, ISTIOD, PATIENCE, TOKEN, id};
use meshfed_agent::{Agent, AgentOptions, EnvoyOptions, IdentityMetrics, TokenSource};
use meshfed_pki::{IdentityCell, ServerTls, TrustStore, peer_id, server_config_optional_client};
use meshfed_proxy_config::*;
use meshfed_runtime::Drain;
use meshfed_testkit::forge::{self, Forge, Forged, Validity};
use meshfed_testkit::{Envoy, LoopbackNet, TempDir, eventually, temp_dir};
use meshfed_xds::bootstrap::{DEFAULT_MAX_CONNECTIONS, NodeOptions};
use meshfed_xds::encode;
use rustls::pki_types::ServerName as TlsName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const GATEWAY: &str = "spiffe://red-mesh.local/ns/red-mesh-system/sa/gateway-service-account";
const GREEN: &str = "spiffe://green-mesh.local/ns/green-mesh-system/sa/egress-service-account";
const GREETING: &[u8] = b"hello from behind\n";
const TRUST: &str = "federation";

/// An Envoy joined to a control plane that serves a fixed configuration.
struct Mesh {
    envoy: Envoy,
    ads: Arc<Ads>,
    authority: Arc<Authority>,
    gateway: Arc<IdentityCell>,
    _control_plane: ControlPlane,
    _drain: Drain,
    _dir: TempDir,
}

impl Mesh {
    /// `None`: there is no Envoy.
    async fn start(net: &LoopbackNet, authority: &Arc<Authority>, mut ads: Ads) -> Option<Self> {
        let mut bundle = TrustBundle::default();
        let domain = id(GATEWAY).trust_domain().clone();
        bundle
            .domains
            .insert(domain, authority.ca.root_pem().into());
        ads.add("own", encode::trust("own", &bundle));
        let ads = Arc::new(ads);
        let tokens = [(TOKEN.to_string(), id(GATEWAY))].into();
        *authority.tokens.lock().unwrap() = tokens;
        let service = ads.service();
        let at = SocketAddr::new(net.address(1), 15012);
        let control_plane =
            ControlPlane::start_with(authority, at, ISTIOD, |r| r.add_service(service)).await;

        let dir = temp_dir();
        std::fs::write(dir.path().join("token"), TOKEN).unwrap();
        let agent = Agent::bind(AgentOptions {
            control_plane: control_plane.options(),
            id: id(GATEWAY),
            token: TokenSource::File(dir.path().join("token")),
            dir: dir.path().join("agent"),
            metrics: IdentityMetrics::default(),
        })
        .await
        .unwrap();
        let admin = SocketAddr::new(net.address(2), 15000);
        let options = EnvoyOptions {
            node: NodeOptions {
                id: "gateway".to_string(),
                cluster: "gateway".to_string(),
                ..Default::default()
            },
            admin,
            max_connections: DEFAULT_MAX_CONNECTIONS,
        };
        let file = dir.path().join("bootstrap.json");
        agent.write_bootstrap(&file, options).unwrap();
        let gateway = agent.identity();
        let (drain, watch) = Drain::new();
        tokio::spawn(agent.run(watch));
        let envoy = Envoy::start(&std::fs::read_to_string(&file).unwrap(), admin)?;
        eventually(PATIENCE, async || envoy.ready()).await;
        Some(Self {
            envoy,
            ads,
            authority: authority.clone(),
            gateway,
            _control_plane: control_plane,
            _drain: drain,
            _dir: dir,
        })
    }

    fn assert_no_complaints(&self) {
        assert_eq!(*self.ads.refused.lock().unwrap(), Vec::<String>::new());
        assert_eq!(self.envoy.warnings(), Vec::<String>::new());
    }

    /// Waits for one line of the access log that is no earlier one and has `parts` in it.
    async fn logged(&self, seen: &mut usize, parts: &[&str]) {
        let line = eventually(PATIENCE, async || {
            let lines = self.envoy.access_log();
            lines.get(*seen).cloned().ok_or("no new line")
        });
        let line = line.await;
        *seen += 1;
        for part in parts {
            assert!(line.contains(part), "{part:?} is not in {line}");
        }
    }
}

/// An application that speaks first, then gives back what it gets.
struct App {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    received: Arc<AtomicUsize>,
}

impl App {
    async fn start() -> Self {
        Self::start_with(None).await
    }

    /// With TLS, as a server with this identity for clients of our own mesh.
    async fn start_as(as_id: &str, forge: &Forge, clients: &Authority) -> Self {
        let forged = forge.issue(as_id);
        let identity = meshfed_pki::Identity::from_pem(&forged.chain_pem, &forged.key_pem).unwrap();
        let trust = TrustStore::single(id(GATEWAY).trust_domain().clone(), clients.ca.root_pem());
        let config = server_config_optional_client(ServerTls {
            identity: Arc::new(IdentityCell::new(Some(identity))),
            trust: Arc::new(trust.unwrap()),
            client_ids: Vec::new(),
            alpn: Vec::new(),
        });
        Self::start_with(Some(TlsAcceptor::from(config.unwrap()))).await
    }

    /// With TLS, each connection's greeting is followed by the client's identity.
    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let received = Arc::new(AtomicUsize::new(0));
        let (count, bytes) = (connections.clone(), received.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (tls, bytes) = (tls.clone(), bytes.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, "", &bytes).await,
                        Some(tls) => {
                            let stream = tls.accept(stream).await?;
                            let certificates = stream.get_ref().1.peer_certificates();
                            let caller = peer_id(certificates.unwrap_or_default());
                            let caller = caller.map_or(String::new(), |id| id.to_string());
                            serve(stream, &caller, &bytes).await
                        }
                    }
                });
            }
        });
        Self {
            address,
            connections,
            received,
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Bytes of all connections.
    fn received(&self) -> usize {
        self.received.load(Ordering::SeqCst)
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    caller: &str,
    received: &AtomicUsize,
) -> io::Result<()> {
    stream.write_all(GREETING).await?;
    stream.write_all(caller.as_bytes()).await?;
    let mut buffer = [0; 1024];
    loop {
        let n = stream.read(&mut buffer).await?;
        received.fetch_add(n, Ordering::SeqCst);
        if n == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..n]).await?;
    }
}

/// Sends one line and gives what came back until the other end is done: `Err` if the connection
/// broke, as it does when a certificate is refused.
async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<Vec<u8>> {
    let mut stream = stream;
    stream.write_all(b"ping\n").await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

async fn call(to: SocketAddr, sni: &str, certificate: Option<&Forged>) -> io::Result<Vec<u8>> {
    let attempt = async {
        let stream = TcpStream::connect(to).await?;
        let connector = TlsConnector::from(forge::client(certificate, &[]));
        let name = TlsName::try_from(sni.to_string()).unwrap();
        talk(connector.connect(name, stream).await?).await
    };
    timeout(PATIENCE, attempt).await.expect("an end in time")
}

async fn plain(to: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let attempt = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(bytes).await?;
        talk(stream).await
    };
    timeout(PATIENCE, attempt).await.expect("an end in time")
}

fn federation(authority: &Authority, green: &Forge) -> TrustBundle {
    TrustBundle {
        domains: [
            (
                id(GATEWAY).trust_domain().clone(),
                authority.ca.root_pem().into(),
            ),
            (id(GREEN).trust_domain().clone(), green.root_pem().into()),
        ]
        .into(),
    }
}

fn listener(name: &str, address: SocketAddr, chains: Vec<FilterChain>) -> Listener {
    Listener {
        name: name.to_string(),
        address,
        chains,
        handshake_timeout: Duration::from_secs(5),
    }
}

fn tls(client_ids: &[&str]) -> Option<DownstreamTls> {
    Some(DownstreamTls {
        trust: TRUST.to_string(),
        client_ids: client_ids.iter().map(|i| id(i)).collect(),
        alpn: Vec::new(),
    })
}

fn tcp(target: TcpTarget, allow: Option<Vec<AllowPolicy>>) -> Network {
    Network::Tcp(Tcp {
        target,
        allow,
        idle_timeout: Duration::from_secs(3600),
    })
}

fn cluster(name: &str, discovery: Discovery, tls: Option<UpstreamTls>) -> Cluster {
    Cluster {
        name: name.into(),
        discovery,
        connect_timeout: Duration::from_secs(5),
        tls,
        protocol: UpstreamProtocol::Http1,
        outlier: None,
        drain: DEFAULT_DRAIN,
    }
}

fn endpoints(name: &str, all: &[(SocketAddr, bool)]) -> Endpoints {
    let endpoints = all.iter().map(|&(address, mesh_tls)| Endpoint {
        mesh_tls,
        ..Endpoint::new(address)
    });
    Endpoints {
        name: name.into(),
        localities: vec![LocalityEndpoints {
            endpoints: endpoints.collect(),
            ..Default::default()
        }],
    }
}

#[tokio::test]
async fn an_ingress_lets_in_its_peer_and_nobody_else() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    let green = Forge::new("green-mesh");
    let app = App::start().await;
    let exported = sni(9080, "ratings.bookinfo.svc.green-exports.local");
    let at = SocketAddr::new(net.address(10), 15443);

    let mut ads = Ads::default();
    let suffix = "svc.green-exports.local";
    let policy = AllowPolicy {
        name: "green".to_string(),
        principals: vec![id(GREEN)],
        server_name_suffix: Some(format!(".{suffix}")),
    };
    let chain = FilterChain {
        name: "green".to_string(),
        server_names: vec![ServerName::Suffix(suffix.to_string())],
        tls: tls(&[GREEN]),
        drain: DEFAULT_DRAIN,
        network: tcp(TcpTarget::SniCluster, Some(vec![policy])),
    };
    let ingress = listener("ingress", at, vec![chain]);
    ads.add("ingress", encode::listener(&ingress));
    let local = cluster(&exported, Discovery::Eds("ratings".into()), None);
    ads.add(&*exported, encode::cluster(&local));
    let workload = endpoints("ratings", &[(app.address, true)]);
    ads.add("ratings", encode::endpoints(&workload));
    ads.add(TRUST, encode::trust(TRUST, &federation(&authority, &green)));
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };

    // The peer's egress is let in, and hears the application speak first.
    let mut seen = 0;
    let peer = green.issue(GREEN);
    let answer = call(at, &exported, Some(&peer)).await.unwrap();
    assert_eq!(answer, [GREETING, b"ping\n"].concat());
    assert_eq!(app.connections(), 1);
    mesh.logged(&mut seen, &["kind=connection", GREEN, &exported, "flags=-"])
        .await;

    // Every forged client is stopped at the handshake and logged once with the reason.
    let stranger = Forge::new("green-mesh");
    let red = "spiffe://red-mesh.local/ns/green-mesh-system/sa/egress-service-account";
    let other = "spiffe://green-mesh.local/ns/green-mesh-system/sa/another";
    let forged = [
        ("of the wrong CA", Some(stranger.issue(GREEN))),
        (
            "of our trust domain by the peer's CA",
            Some(green.issue(red)),
        ),
        (
            "of the right domain but not the peer's egress",
            Some(green.issue(other)),
        ),
        ("expired", Some(green.expired(GREEN))),
        (
            "not valid yet",
            Some(green.issue_with(&[GREEN], Validity::Future)),
        ),
        ("of nobody", Some(green.issue_with(&[], Validity::Now))),
        ("none", None),
    ];
    for (what, certificate) in forged {
        let refused = call(at, &exported, certificate.as_ref()).await;
        assert!(refused.is_err(), "certificate {what}: {refused:?}");
        mesh.logged(&mut seen, &["flags=", "downstream_tls=\"TLS_error"])
            .await;
    }
    // No name of ours, no TLS at all, garbage.
    let unknown = sni(9080, "ratings.bookinfo.svc.blue-exports.local");
    assert!(call(at, &unknown, Some(&peer)).await.is_err());
    mesh.logged(&mut seen, &["flags=NR", &unknown]).await;
    let not_exported = sni(9080, "details.bookinfo.svc.green-exports.local");
    let closed = call(at, &not_exported, Some(&peer)).await;
    assert_eq!(closed.unwrap_or_default(), b"");
    mesh.logged(&mut seen, &["flags=NC", &not_exported]).await;
    for bytes in [
        &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        &[0x16, 3, 1, 0, 4, 9, 9, 9, 9],
    ] {
        let closed = plain(at, bytes).await;
        assert_eq!(closed.unwrap_or_default(), b"");
        mesh.logged(&mut seen, &["flags="]).await;
    }
    assert_eq!(
        app.connections(),
        1,
        "only the peer reached the application"
    );
    assert_eq!(mesh.envoy.access_log().len(), seen, "each is logged once");

    // With the peer's identity behind another one of its domain, Envoy finishes the handshake and
    // the policy judges the first bytes.
    let heard = app.received();
    let both = green.issue_with(&[other, GREEN], Validity::Now);
    let closed = call(at, &exported, Some(&both)).await;
    assert_eq!(closed.unwrap_or_default(), b"");
    assert_eq!(app.received(), heard);
    mesh.assert_no_complaints();
}

#[tokio::test]
async fn a_client_that_only_the_policy_stops_gets_no_byte_through() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    let green = Forge::new("green-mesh");
    let app = App::start().await;
    let at = SocketAddr::new(net.address(10), 15443);
    let mut ads = Ads::default();
    let policy = AllowPolicy {
        name: "green".to_string(),
        principals: vec![id(GREEN)],
        server_name_suffix: None,
    };
    let chain = FilterChain {
        name: "any".to_string(),
        server_names: Vec::new(),
        tls: tls(&[]),
        drain: DEFAULT_DRAIN,
        network: tcp(TcpTarget::Cluster("app".to_string()), Some(vec![policy])),
    };
    ads.add(
        "ingress",
        encode::listener(&listener("ingress", at, vec![chain])),
    );
    let app_cluster = cluster("app", Discovery::Static(vec![app.address]), None);
    ads.add("app", encode::cluster(&app_cluster));
    ads.add(TRUST, encode::trust(TRUST, &federation(&authority, &green)));
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };

    let answer = call(at, "any.name", Some(&green.issue(GREEN))).await;
    assert_eq!(answer.unwrap(), [GREETING, b"ping\n"].concat());

    let other = green.issue("spiffe://green-mesh.local/ns/green-mesh-system/sa/another");
    let heard = app.received();
    let refused = call(at, "any.name", Some(&other)).await;
    assert_eq!(refused.unwrap_or_default(), b"");
    // Envoy judges the first bytes of a client, so it may have connected already; but nothing that
    // the client sent went on.
    assert_eq!(app.received(), heard);
    mesh.assert_no_complaints();
}

#[tokio::test]
async fn an_egress_shows_its_certificate_and_takes_only_the_servers_that_it_was_told() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    let green = Forge::new("green-mesh");
    let server = "spiffe://green-mesh.local/ns/green-mesh-system/sa/ingress-service-account";
    let impostor = "spiffe://green-mesh.local/ns/green-mesh-system/sa/impostor";
    let tls_app = async |as_id: &str, forge| App::start_as(as_id, forge, &authority).await;
    let honest = tls_app(server, &green).await;
    let wrong_id = tls_app(impostor, &green).await;
    let wrong_ca = tls_app(server, &Forge::new("green-mesh")).await;
    let no_tls = App::start().await;

    let one_of = |ids: &[&str]| ServerIds::OneOf(ids.iter().map(|i| id(i)).collect());
    let any_of_green = ServerIds::AnyOf(id(GREEN).trust_domain().clone());
    let any_of_red = ServerIds::AnyOf(id(GATEWAY).trust_domain().clone());
    let greeted = [GREETING, GATEWAY.as_bytes(), b"ping\n"].concat();
    let plainly = [GREETING, b"ping\n"].concat();
    let cases = [
        (
            "honest",
            &honest,
            one_of(&[impostor, server]),
            true,
            greeted.clone(),
        ),
        ("any", &honest, any_of_green.clone(), true, greeted),
        ("wrong-id", &wrong_id, one_of(&[server]), true, Vec::new()),
        ("wrong-ca", &wrong_ca, one_of(&[server]), true, Vec::new()),
        ("wrong-domain", &honest, any_of_red, true, Vec::new()),
        ("nobody", &honest, one_of(&[]), true, Vec::new()),
        ("no-sidecar", &no_tls, any_of_green.clone(), false, plainly),
        ("lost-sidecar", &no_tls, any_of_green, true, Vec::new()),
    ];

    let mut ads = Ads::default();
    ads.add(TRUST, encode::trust(TRUST, &federation(&authority, &green)));
    let port = |i: usize| SocketAddr::new(net.address(10), 15443 + u16::try_from(i).unwrap());
    for (i, (name, app, server, mesh_tls, _)) in cases.iter().enumerate() {
        let upstream = UpstreamTls {
            trust: TRUST.into(),
            server: server.clone(),
            sni: Some(sni(9080, "ratings.bookinfo.svc.red-exports.local")),
            alpn: Vec::new(),
        };
        let chain = FilterChain {
            name: "any".to_string(),
            server_names: Vec::new(),
            tls: None,
            drain: DEFAULT_DRAIN,
            network: tcp(TcpTarget::Cluster(name.to_string()), None),
        };
        ads.add(
            *name,
            encode::listener(&listener(name, port(i), vec![chain])),
        );
        let of = cluster(name, Discovery::Eds((*name).into()), Some(upstream));
        ads.add(*name, encode::cluster(&of));
        let to = endpoints(name, &[(app.address, *mesh_tls)]);
        ads.add(*name, encode::endpoints(&to));
    }
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };
    for (i, (name, _, _, _, expected)) in cases.iter().enumerate() {
        let answer = plain(port(i), b"").await.unwrap_or_default();
        assert_eq!(
            String::from_utf8_lossy(&answer),
            String::from_utf8_lossy(expected),
            "{name}"
        );
    }
    mesh.assert_no_complaints();
}

#[tokio::test]
async fn an_egress_spreads_a_name_that_two_peers_share_and_reaches_each_by_its_hidden_name() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    let forges = [Forge::new("green-mesh"), Forge::new("blue-mesh")];
    let peers = ["green", "blue"];
    let server = |peer: &str| format!("spiffe://{peer}-mesh.local/ns/a/sa/ingress");
    let local = sni(9080, "ratings.bookinfo.svc.cluster.local");
    let hidden = peers.map(|peer| sni(9080, &format!("ratings.bookinfo.svc.{peer}.remote")));
    let at = SocketAddr::new(net.address(10), 15443);

    let mut ads = Ads::default();
    let mut apps = Vec::new();
    for ((peer, forge), name) in peers.iter().zip(&forges).zip(&hidden) {
        let app = App::start_as(&server(peer), forge, &authority).await;
        let domain = id(&server(peer)).trust_domain().clone();
        let domains = [(domain, forge.root_pem().into())].into();
        ads.add(*peer, encode::trust(peer, &TrustBundle { domains }));
        let upstream = UpstreamTls {
            trust: (*peer).into(),
            server: ServerIds::OneOf(vec![id(&server(peer))]),
            sni: Some(sni(9080, &format!("{peer}.bookinfo.svc.red-exports.local"))),
            alpn: Vec::new(),
        };
        let to = cluster(name, Discovery::Static(vec![app.address]), Some(upstream));
        ads.add(&**name, encode::cluster(&to));
        apps.push(app);
    }
    let own = || {
        Some(DownstreamTls {
            trust: "own".to_string(),
            client_ids: Vec::new(),
            alpn: Vec::new(),
        })
    };
    let chain = |name: &str, server_names, target| FilterChain {
        name: name.to_string(),
        server_names,
        tls: own(),
        drain: DEFAULT_DRAIN,
        network: tcp(target, None),
    };
    let weighted = TcpTarget::Weighted(hidden.iter().map(|name| (name.clone(), 1)).collect());
    let chains = vec![
        chain("imports", Vec::new(), TcpTarget::SniCluster),
        chain(&local, vec![ServerName::Exact(local.to_string())], weighted),
    ];
    ads.add("egress", encode::listener(&listener("egress", at, chains)));
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };

    let workload = "spiffe://red-mesh.local/ns/bookinfo/sa/client";
    let ca = authority.ca.to_pem();
    let client = Forge::stolen(&ca.ca_cert, &ca.ca_key).issue(workload);
    let expected = [GREETING, GATEWAY.as_bytes(), b"ping\n"].concat();
    for (name, app) in hidden.iter().zip(&apps) {
        assert_eq!(call(at, name, Some(&client)).await.unwrap(), expected);
        assert_eq!(app.connections(), 1, "{name}");
    }
    // That one of two is never chosen in so many calls does not happen.
    for _ in 0..60 {
        assert_eq!(call(at, &local, Some(&client)).await.unwrap(), expected);
    }
    let counts: Vec<usize> = apps.iter().map(App::connections).collect();
    assert_eq!(counts.iter().sum::<usize>(), 62);
    assert!(counts.iter().all(|count| *count > 1), "{counts:?}");
    mesh.assert_no_complaints();
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_from_then_on_and_cuts_no_connection() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    *authority.ttl.lock().unwrap() = Duration::from_secs(4);
    let green = Forge::new("green-mesh");
    let app = App::start().await;
    let at = SocketAddr::new(net.address(10), 15443);
    let mut ads = Ads::default();
    let chain = FilterChain {
        name: "any".to_string(),
        server_names: Vec::new(),
        tls: tls(&[GREEN]),
        drain: DEFAULT_DRAIN,
        network: tcp(TcpTarget::Cluster("app".to_string()), None),
    };
    ads.add(
        "ingress",
        encode::listener(&listener("ingress", at, vec![chain])),
    );
    let app_cluster = cluster("app", Discovery::Static(vec![app.address]), None);
    ads.add("app", encode::cluster(&app_cluster));
    ads.add(TRUST, encode::trust(TRUST, &federation(&authority, &green)));
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };

    let connect = async || {
        let stream = TcpStream::connect(at).await.unwrap();
        let connector = TlsConnector::from(forge::client(Some(&green.issue(GREEN)), &[]));
        let name = TlsName::try_from("any.name").unwrap();
        let stream = connector.connect(name, stream).await.unwrap();
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        (stream, shown)
    };
    let (first, shown) = connect().await;
    eventually(PATIENCE, async || match connect().await.1 {
        now if now != shown => Ok(()),
        _ => Err("still the first certificate"),
    })
    .await;
    assert_eq!(talk(first).await.unwrap(), [GREETING, b"ping\n"].concat());
    assert!(mesh.gateway.get().is_some());
    assert!(mesh.authority.proofs.lock().unwrap().len() > 1);
    mesh.assert_no_complaints();
}

/// Answers each request with its own head, as the application saw it.
async fn mirror() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let length = head.len();
                let status = format!(
                    "HTTP/1.1 200 OK\r\nserver: mirror\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
                );
                stream.write_all(status.as_bytes()).await?;
                stream.write_all(&head).await
            });
        }
    });
    address
}

async fn request(stream: impl AsyncRead + AsyncWrite + Unpin, head: &str) -> String {
    let mut stream = stream;
    let text = format!("{head}\r\nconnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.expect("an end in time").unwrap();
    String::from_utf8(answer).unwrap()
}

async fn tls_request(to: SocketAddr, certificate: &Forged, head: &str) -> String {
    let stream = TcpStream::connect(to).await.unwrap();
    let connector = TlsConnector::from(forge::client(Some(certificate), &["http/1.1"]));
    let name = TlsName::try_from("any.name").unwrap();
    request(connector.connect(name, stream).await.unwrap(), head).await
}

fn forward(to: &str, path: Option<&str>, remove: &[&str]) -> RouteAction {
    RouteAction::Forward {
        cluster: to.to_string(),
        rewrite_authority: path.map(|_| "istiod.local".to_string()),
        rewrite_path: path.map(String::from),
        timeout: Duration::from_secs(5),
        remove_headers: remove.iter().map(|h| h.to_string()).collect(),
    }
}

fn http(routes: HttpRoutes) -> Http {
    Http {
        stat_prefix: "http".to_string(),
        routes,
        allow: None,
        forward_client_id: false,
        append_forwarded_for: false,
        accept_connect: false,
        stream_idle_timeout: Duration::ZERO,
    }
}

#[tokio::test]
async fn requests_are_routed_by_the_identity_that_was_proved_and_not_by_what_they_say() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    let green = Forge::new("green-mesh");
    let blue = "spiffe://green-mesh.local/ns/blue/sa/egress-service-account";
    let third = "spiffe://green-mesh.local/ns/third/sa/egress-service-account";
    let at = SocketAddr::new(net.address(10), 8188);
    let route = |name: &str, peer: &str| Route {
        name: name.to_string(),
        path: PathMatch::Exact("/v1/watch".to_string()),
        headers: vec![HeaderMatch::Suffix {
            name: "x-forwarded-client-cert".to_string(),
            value: format!(";URI={peer}"),
        }],
        action: forward(
            "mirror",
            Some(&format!("/v1/watch/{name}")),
            &["x-forwarded-client-cert"],
        ),
    };
    let mut discovery = http(HttpRoutes::Inline(RouteTable::new(
        "discovery",
        [VirtualHost {
            name: "discovery".into(),
            domains: vec!["*".to_string()],
            routes: vec![route("green", GREEN), route("blue", blue)],
        }],
    )));
    discovery.allow = Some(vec![AllowPolicy {
        name: "peers".to_string(),
        principals: vec![id(GREEN), id(blue)],
        server_name_suffix: None,
    }]);
    discovery.forward_client_id = true;
    discovery.append_forwarded_for = true;
    let mut ads = Ads::default();
    let chain = FilterChain {
        name: "discovery".to_string(),
        server_names: Vec::new(),
        tls: Some(DownstreamTls {
            trust: TRUST.to_string(),
            client_ids: Vec::new(),
            alpn: vec!["h2".to_string(), "http/1.1".to_string()],
        }),
        drain: DEFAULT_DRAIN,
        network: Network::Http(discovery),
    };
    ads.add(
        "discovery",
        encode::listener(&listener("discovery", at, vec![chain])),
    );
    let to = cluster("mirror", Discovery::Static(vec![mirror().await]), None);
    ads.add("mirror", encode::cluster(&to));
    ads.add(TRUST, encode::trust(TRUST, &federation(&authority, &green)));
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };

    let lie = format!(
        "GET /v1/watch HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 192.0.2.1\r\n\
         x-envoy-upstream-rq-timeout-ms: 1\r\n\
         x-forwarded-client-cert: By=x;URI={blue}"
    );
    for (name, id) in [("green", GREEN), ("blue", blue)] {
        let answer = tls_request(at, &green.issue(id), &lie).await;
        assert!(answer.contains("200 OK"), "{answer}");
        assert!(answer.contains("server: mirror"), "{answer}");
        assert!(
            answer.contains(&format!("GET /v1/watch/{name} HTTP/1.1")),
            "{answer}"
        );
        assert!(answer.contains("host: istiod.local"), "{answer}");
        assert!(answer.contains("x-forwarded-for: 192.0.2.1,"), "{answer}");
        for never in [
            "x-forwarded-client-cert",
            "x-envoy-upstream",
            "x-request-id",
        ] {
            assert!(!answer.contains(never), "{never}: {answer}");
        }
    }
    // A second identity in a certificate of the peer's own authority gives nothing.
    for ids in [[GREEN, blue], [blue, GREEN], [third, GREEN], [GREEN, third]] {
        let forged = green.issue_with(&ids, Validity::Now);
        let answer = tls_request(at, &forged, &lie).await;
        let refused = answer.starts_with("HTTP/1.1 403") || answer.starts_with("HTTP/1.1 404");
        assert!(refused, "{ids:?}: {answer}");
    }
    let answer = tls_request(at, &green.issue(third), &lie).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let elsewhere = "GET /v1/watch/blue HTTP/1.1\r\nhost: a";
    let answer = tls_request(at, &green.issue(GREEN), elsewhere).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    let dots = "GET /v1/x/../watch HTTP/1.1\r\nhost: a";
    let answer = tls_request(at, &green.issue(GREEN), dots).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    mesh.assert_no_complaints();
}

#[tokio::test]
async fn an_explicit_proxy_forwards_requests_and_tunnels() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    let app = App::start().await;
    let at = SocketAddr::new(net.address(10), 3128);
    let host = |name: &str, domain: &str, path: PathMatch, action| VirtualHost {
        name: name.into(),
        domains: vec![domain.to_string()],
        routes: vec![Route {
            name: name.to_string(),
            path,
            headers: Vec::new(),
            action,
        }],
    };
    let all = || PathMatch::Prefix("/".to_string());
    let tunnel = RouteAction::Forward {
        cluster: "app".to_string(),
        rewrite_authority: None,
        rewrite_path: None,
        timeout: Duration::ZERO,
        remove_headers: Vec::new(),
    };
    let nothing = RouteAction::Respond {
        status: 502,
        body: "no such service".to_string(),
    };
    let table = RouteTable::new(
        "outbound",
        [
            host(
                "ratings",
                "ratings:9080",
                all(),
                forward("mirror", None, &["cookie"]),
            ),
            host("app", "app:7000", PathMatch::Connect, tunnel),
            host(
                "gone",
                "gone:80",
                all(),
                forward("no such cluster", None, &[]),
            ),
            host("other", "*", all(), nothing),
        ],
    );
    let mut outbound = http(HttpRoutes::Rds("outbound".to_string()));
    outbound.accept_connect = true;
    let mut ads = Ads::default();
    ads.add("outbound", encode::routes(&table));
    let chain = FilterChain {
        name: "outbound".to_string(),
        server_names: Vec::new(),
        tls: None,
        drain: DEFAULT_DRAIN,
        network: Network::Http(outbound),
    };
    ads.add(
        "outbound",
        encode::listener(&listener("outbound", at, vec![chain])),
    );
    // One of the endpoints is not there.
    let all = vec![SocketAddr::new(net.address(11), 9080), mirror().await];
    let mirror = cluster("mirror", Discovery::Static(all), None);
    ads.add("mirror", encode::cluster(&mirror));
    let behind = cluster("app", Discovery::Static(vec![app.address]), None);
    ads.add("app", encode::cluster(&behind));
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };

    let connect = async || TcpStream::connect(at).await.unwrap();
    let absolute = "GET http://ratings:9080/a%2Fb/./c?d=/e HTTP/1.1\r\nhost: ratings:9080\r\n\
                    cookie: secret\r\nx-forwarded-for: 192.0.2.1\r\n\
                    x-forwarded-client-cert: By=x;URI=spiffe://x";
    let answer = request(connect().await, absolute).await;
    assert!(answer.contains("GET /a%2Fb/./c?d=/e HTTP/1.1"), "{answer}");
    assert!(answer.contains("host: ratings:9080"), "{answer}");
    assert!(
        answer.contains("x-forwarded-for: 192.0.2.1\r\n"),
        "{answer}"
    );
    for never in [
        "cookie",
        "x-forwarded-client-cert",
        "x-envoy",
        "x-request-id",
    ] {
        assert!(!answer.contains(never), "{never}: {answer}");
    }

    for _ in 0..10 {
        let answer = request(connect().await, absolute).await;
        assert!(answer.contains("200 OK"), "{answer}");
    }

    let other = request(connect().await, "GET / HTTP/1.1\r\nhost: other").await;
    assert!(
        other.starts_with("HTTP/1.1 502") && other.ends_with("no such service"),
        "{other}"
    );
    let gone = request(connect().await, "GET / HTTP/1.1\r\nhost: gone:80").await;
    assert!(gone.starts_with("HTTP/1.1 503"), "{gone}");

    let mut stream = connect().await;
    stream
        .write_all(b"CONNECT app:7000 HTTP/1.1\r\nhost: app:7000\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(
        head.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    // Envoy takes the end of one direction for the end of both where HTTP carries the bytes, so
    // nothing is closed before the answer is there.
    stream.write_all(b"ping\n").await.unwrap();
    let expected = [GREETING, b"ping\n"].concat();
    let mut answer = vec![0; expected.len()];
    let read = timeout(PATIENCE, stream.read_exact(&mut answer)).await;
    read.expect("an answer in time").unwrap();
    assert_eq!(answer, expected);
    mesh.assert_no_complaints();
}
