//! An Envoy with its agent and its control plane, an application behind it, and clients.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meshfed_agent::{Agent, AgentOptions, EnvoyOptions, IdentityMetrics, TokenSource};
use meshfed_pki::{IdentityCell, ServerTls, TrustStore, peer_id, server_config_optional_client};
use meshfed_proxy_config::*;
use meshfed_runtime::Drain;
use meshfed_testkit::forge::{self, Forge, Forged};
use meshfed_testkit::{Envoy, LoopbackNet, TempDir, eventually, temp_dir};
use meshfed_xds::bootstrap::{DEFAULT_MAX_CONNECTIONS, NodeOptions};
use meshfed_xds::encode;
use rustls::pki_types::ServerName as TlsName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::ads::Ads;
use crate::common::{Authority, ControlPlane, ISTIOD, PATIENCE, TOKEN, id};

pub const GATEWAY: &str = "spiffe://red-mesh.local/ns/red-mesh-system/sa/gateway-service-account";
pub const GREEN: &str = "spiffe://green-mesh.local/ns/green-mesh-system/sa/egress-service-account";
pub const GREETING: &[u8] = b"hello from behind\n";
pub const TRUST: &str = "federation";

/// An Envoy joined to a control plane that serves a fixed configuration.
pub struct Mesh {
    pub envoy: Envoy,
    ads: Arc<Ads>,
    pub authority: Arc<Authority>,
    pub gateway: Arc<IdentityCell>,
    _control_plane: ControlPlane,
    _drain: Drain,
    _dir: TempDir,
}

impl Mesh {
    /// `None`: there is no Envoy.
    pub async fn start(
        net: &LoopbackNet,
        authority: &Arc<Authority>,
        mut ads: Ads,
    ) -> Option<Self> {
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
        let mut agent = Agent::bind(AgentOptions {
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

    pub fn assert_no_complaints(&self) {
        assert_eq!(*self.ads.refused.lock().unwrap(), Vec::<String>::new());
        assert_eq!(self.envoy.warnings(), Vec::<String>::new());
    }

    /// Waits for one line of the access log that is no earlier one and has `parts` in it.
    pub async fn logged(&self, seen: &mut usize, parts: &[&str]) {
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
pub struct App {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    received: Arc<AtomicUsize>,
}

impl App {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// With TLS, as a server with this identity for clients of our own mesh.
    pub async fn start_as(as_id: &str, forge: &Forge, clients: &Authority) -> Self {
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

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Bytes of all connections.
    pub fn received(&self) -> usize {
        self.received.load(Ordering::SeqCst)
    }
}

pub async fn serve(
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
pub async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<Vec<u8>> {
    let mut stream = stream;
    stream.write_all(b"ping\n").await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

pub async fn call(to: SocketAddr, sni: &str, certificate: Option<&Forged>) -> io::Result<Vec<u8>> {
    let attempt = async {
        let stream = TcpStream::connect(to).await?;
        let connector = TlsConnector::from(forge::client(certificate, &[]));
        let name = TlsName::try_from(sni.to_string()).unwrap();
        talk(connector.connect(name, stream).await?).await
    };
    timeout(PATIENCE, attempt).await.expect("an end in time")
}

pub async fn plain(to: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let attempt = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(bytes).await?;
        talk(stream).await
    };
    timeout(PATIENCE, attempt).await.expect("an end in time")
}

pub fn federation(authority: &Authority, green: &Forge) -> TrustBundle {
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

pub fn listener(name: &str, address: SocketAddr, chains: Vec<FilterChain>) -> Listener {
    Listener {
        name: name.to_string(),
        address,
        chains,
        handshake_timeout: Duration::from_secs(5),
    }
}

pub fn tls(client_ids: &[&str]) -> Option<DownstreamTls> {
    Some(DownstreamTls {
        trust: TRUST.to_string(),
        client_ids: client_ids.iter().map(|i| id(i)).collect(),
        alpn: Vec::new(),
    })
}

pub fn tcp(target: TcpTarget, allow: Option<Vec<AllowPolicy>>) -> Network {
    Network::Tcp(Tcp {
        target,
        allow,
        idle_timeout: Duration::from_secs(3600),
    })
}

pub fn cluster(name: &str, discovery: Discovery, tls: Option<UpstreamTls>) -> Cluster {
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

pub fn endpoints(name: &str, all: &[(SocketAddr, bool)]) -> Endpoints {
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

/// A chain for whoever connects.
pub fn chain(name: &str, tls: Option<DownstreamTls>, network: Network) -> FilterChain {
    FilterChain {
        name: name.to_string(),
        server_names: Vec::new(),
        tls,
        drain: DEFAULT_DRAIN,
        network,
    }
}

/// Adds a listener with these chains.
pub fn listen(ads: &mut Ads, name: &str, at: SocketAddr, chains: Vec<FilterChain>) {
    ads.add(name, encode::listener(&listener(name, at, chains)));
}
