//! Meshes, forged clients and backends for the tests of the data plane, with real sockets.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use meshfed_pki::{
    CertificateAuthority, ClientTls, Identity, IdentityCell, KeyPair, ServerIds as PkiServerIds,
    ServerTls, SpiffeId, TrustStore, client_config, new_csr, provider, server_config,
};
use meshfed_proxy::{ConnectionLimits, Engine, EngineOptions, Metrics};
use meshfed_proxy_config::*;
use meshfed_runtime::{AccessLog, AccessLogMetrics};
use prometheus_client::registry::Registry;
use rustls_pki_types::ServerName as TlsName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

/// How long connections of what was taken away may go on: long enough that a busy machine gets to use them
/// meanwhile.
pub const DRAIN: Duration = Duration::from_secs(6);
/// The same where nothing but the end is waited for.
pub const SHORT_DRAIN: Duration = Duration::from_millis(300);
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing more may come before that is believed.
const SHORTLY: Duration = Duration::from_millis(50);

/// Waits until `test` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut test: impl FnMut() -> F,
) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = test().await {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A certificate authority with its trust domain.
pub struct Mesh {
    pub domain: TrustDomain,
    pub ca: CertificateAuthority,
}

use meshfed_pki::TrustDomain;

impl Mesh {
    pub fn new(domain: &str) -> Self {
        Self {
            domain: domain.parse().unwrap(),
            ca: CertificateAuthority::self_signed(domain, SystemTime::now()).unwrap(),
        }
    }

    pub fn id(&self, account: &str) -> SpiffeId {
        self.domain.service_account("ns", account).unwrap()
    }

    pub fn identity(&self, account: &str) -> Identity {
        self.sign(&self.id(account))
    }

    /// Signs whatever id is asked for, also of a foreign domain.
    pub fn sign(&self, id: &SpiffeId) -> Identity {
        self.sign_at(id, Duration::from_secs(3600), SystemTime::now())
    }

    pub fn sign_at(&self, id: &SpiffeId, ttl: Duration, now: SystemTime) -> Identity {
        let key = KeyPair::generate().unwrap();
        let csr = new_csr(&key, id).unwrap();
        let issued = self.ca.sign_workload(&csr, id, ttl, now).unwrap();
        Identity::from_pem(&issued.to_pem(), &key.to_pkcs8_pem()).unwrap()
    }

    pub fn store(&self) -> Arc<TrustStore> {
        Arc::new(TrustStore::single(self.domain.clone(), self.ca.root_pem()).unwrap())
    }
}

pub fn bundle(meshes: &[&Mesh]) -> Arc<TrustBundle> {
    let domains = meshes
        .iter()
        .map(|m| (m.domain.clone(), m.ca.root_pem().into()))
        .collect();
    Arc::new(TrustBundle { domains })
}

/// A proxy's engine with its log and counters.
pub struct Gateway {
    pub engine: Engine,
    pub config: ProxyConfig,
    pub log: AccessLog,
    pub registry: Registry,
    pub identity: Arc<IdentityCell>,
    _dir: tempfile::TempDir,
}

impl Gateway {
    pub fn new(identity: Identity) -> Self {
        Self::with_limits(identity, ConnectionLimits::default())
    }

    pub fn with_limits(identity: Identity, limits: ConnectionLimits) -> Self {
        Self::with(identity, limits, Vec::new())
    }

    /// Asks these name servers.
    pub fn with_name_servers(identity: Identity, servers: &[SocketAddr]) -> Self {
        Self::with(identity, ConnectionLimits::default(), servers.to_vec())
    }

    fn with(identity: Identity, limits: ConnectionLimits, name_servers: Vec<SocketAddr>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = AccessLog::open(dir.path(), "gateway", &AccessLogMetrics::default()).unwrap();
        let mut registry = Registry::default();
        let identity = Arc::new(IdentityCell::new(Some(identity)));
        let engine = Engine::new(EngineOptions {
            proxy: "gateway".into(),
            identity: identity.clone(),
            access_log: log.clone(),
            metrics: Metrics::new(&mut registry),
            limits,
            name_servers,
        });
        Self {
            engine,
            config: ProxyConfig::default(),
            log,
            registry,
            identity,
            _dir: dir,
        }
    }

    /// Applies an edited copy of the configuration; nothing may be rejected.
    pub fn change(&mut self, edit: impl FnOnce(&mut ProxyConfig)) {
        let mut new = self.config.clone();
        edit(&mut new);
        let rejected = self.engine.apply_config(&self.config, &new);
        assert!(rejected.is_empty(), "{rejected:?}");
        self.config = new;
    }

    pub fn address(&self, listener: &str) -> SocketAddr {
        self.engine.bound()[listener]
    }

    pub fn lines(&self) -> Vec<String> {
        self.log.flush();
        let text = std::fs::read_to_string(self.log.path()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// The lines once there are `n`, and shortly after still no more.
    pub async fn exactly(&self, n: usize) -> Vec<String> {
        eventually(&format!("{n} log lines"), || async {
            (self.lines().len() >= n).then_some(())
        })
        .await;
        tokio::time::sleep(SHORTLY).await;
        let lines = self.lines();
        assert_eq!(lines.len(), n, "{lines:#?}");
        lines
    }

    /// How the connections in exactly `n` lines ended, in alphabetical order.
    pub async fn ends(&self, n: usize) -> Vec<String> {
        let lines = self.exactly(n).await;
        let ends = lines.iter().map(|l| l.rsplit_once(" end=").unwrap().1);
        let mut ends: Vec<_> = ends.map(str::to_owned).collect();
        ends.sort();
        ends
    }

    pub fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// The value of the counter with this name whose labels contain all of `labels`.
    pub fn counter(&self, name: &str, labels: &[&str]) -> u64 {
        self.metrics()
            .lines()
            .filter(|l| l.starts_with(&format!("meshfed_proxy_{name}{{")))
            .filter(|l| labels.iter().all(|x| l.contains(x)))
            .map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }
}

pub fn add_trust(config: &mut ProxyConfig, name: &str, bundle: Arc<TrustBundle>) {
    config.trust.insert(name.into(), bundle);
}

pub fn add_listener(config: &mut ProxyConfig, listener: Listener) {
    config
        .listeners
        .insert(listener.name.as_str().into(), Arc::new(listener));
}

pub fn add_cluster(config: &mut ProxyConfig, cluster: Cluster) {
    config
        .clusters
        .insert(cluster.name.clone(), Arc::new(cluster));
}

pub fn listener(name: &str, chains: Vec<FilterChain>) -> Listener {
    Listener {
        name: name.into(),
        address: "127.0.0.1:0".parse().unwrap(),
        chains,
        handshake_timeout: PATIENCE,
    }
}

pub fn chain(name: &str, server_names: Vec<ServerName>, network: Network) -> FilterChain {
    FilterChain {
        name: name.into(),
        server_names,
        tls: Some(tls("peer", &[])),
        drain: DRAIN,
        network,
    }
}

pub fn tls(trust: &str, ids: &[SpiffeId]) -> DownstreamTls {
    DownstreamTls {
        trust: trust.into(),
        client_ids: ids.to_vec(),
        alpn: vec![],
    }
}

pub fn tcp(target: TcpTarget, allow: Option<Vec<AllowPolicy>>) -> Network {
    Network::Tcp(Tcp {
        target,
        allow,
        idle_timeout: Duration::from_secs(60),
    })
}

pub fn allow(name: &str, principals: &[SpiffeId]) -> AllowPolicy {
    AllowPolicy {
        name: name.into(),
        principals: principals.to_vec(),
        server_name_suffix: None,
    }
}

pub fn cluster(name: &str, addresses: &[SocketAddr]) -> Cluster {
    Cluster {
        name: name.into(),
        discovery: Discovery::Static(addresses.to_vec()),
        connect_timeout: PATIENCE,
        tls: None,
        protocol: UpstreamProtocol::Http1,
        outlier: None,
        drain: DRAIN,
    }
}

pub fn upstream_tls(trust: &str, server: ServerIds, sni: Option<&str>) -> UpstreamTls {
    UpstreamTls {
        trust: trust.into(),
        server,
        sni: sni.map(Into::into),
        alpn: vec![],
    }
}

/// A TLS client of a gateway that expects any server of `server`'s domain.
pub async fn tls_connect(
    to: SocketAddr,
    sni: Option<&str>,
    identity: Option<Identity>,
    server: &Mesh,
) -> std::io::Result<TlsStream<TcpStream>> {
    tls_connect_alpn(to, sni, identity, server, &[]).await
}

pub async fn tls_connect_alpn(
    to: SocketAddr,
    sni: Option<&str>,
    identity: Option<Identity>,
    server: &Mesh,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let config = client_config(ClientTls {
        identity: Arc::new(IdentityCell::new(identity)),
        trust: server.store(),
        server: PkiServerIds::AnyOf(server.domain.clone()),
        alpn: alpn.iter().map(|a| (*a).to_owned()).collect(),
    })
    .unwrap();
    let name = match sni {
        Some(sni) => TlsName::try_from(sni.to_owned()).unwrap(),
        None => TlsName::from(to.ip()),
    };
    let socket = TcpStream::connect(to).await?;
    TlsConnector::from(config).connect(name, socket).await
}

/// A TLS 1.2 client that believes any server.
pub async fn tls12_connect(
    to: SocketAddr,
    sni: &str,
    identity: Identity,
) -> std::io::Result<TlsStream<TcpStream>> {
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
            identity.certified_key(),
        )));
    let socket = TcpStream::connect(to).await?;
    TlsConnector::from(Arc::new(config))
        .connect(TlsName::try_from(sni.to_owned()).unwrap(), socket)
        .await
}

#[derive(Debug)]
struct Gullible;

impl rustls::client::danger::ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &TlsName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.verify_tls12_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What a client gets for `request`: everything until the other side closes.
pub async fn ask<S>(stream: &mut S, request: &[u8]) -> std::io::Result<Vec<u8>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    stream.write_all(request).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// A connection in use.
pub struct Open<S>(pub S);

impl<S: AsyncRead + AsyncWrite + Unpin> Open<S> {
    /// After the greeting of a backend.
    pub async fn greeted(mut stream: S) -> Self {
        let mut greeting = [0; 3];
        stream.read_exact(&mut greeting).await.unwrap();
        Self(stream)
    }

    pub async fn works(&mut self) -> bool {
        let mut back = [0; 4];
        let exchange = async {
            self.0.write_all(b"ping").await?;
            self.0.read_exact(&mut back).await
        };
        matches!(tokio::time::timeout(PATIENCE, exchange).await, Ok(Ok(_)))
    }

    /// Whether it comes to an end, however.
    pub async fn ends(mut self) -> bool {
        let mut rest = Vec::new();
        let end = self.0.read_to_end(&mut rest);
        tokio::time::timeout(PATIENCE, end).await.is_ok()
    }
}

/// A server that counts what reaches it.
pub struct Backend {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    bytes: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backend {
    /// Sends `name: ` and then back whatever it gets.
    pub async fn echo(name: &'static str) -> Self {
        Self::start(name, None).await
    }

    /// As [`echo`](Self::echo), over TLS with this identity, for clients of these meshes.
    pub async fn tls_echo(name: &'static str, identity: Identity, clients: &Mesh) -> Self {
        let config = server_config(ServerTls {
            identity: Arc::new(IdentityCell::new(Some(identity))),
            trust: clients.store(),
            client_ids: vec![],
            alpn: vec![],
        })
        .unwrap();
        Self::start(name, Some(TlsAcceptor::from(config))).await
    }

    async fn start(name: &'static str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let task = {
            let (connections, bytes) = (connections.clone(), bytes.clone());
            tokio::spawn(async move {
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    connections.fetch_add(1, Ordering::SeqCst);
                    let (tls, bytes) = (tls.clone(), bytes.clone());
                    tokio::spawn(async move {
                        match tls {
                            Some(tls) => {
                                if let Ok(s) = tls.accept(socket).await {
                                    echo(s, name, &bytes).await;
                                }
                            }
                            None => echo(socket, name, &bytes).await,
                        }
                    });
                }
            })
        };
        Self {
            address,
            connections,
            bytes,
            task,
        }
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }
}

async fn echo<S>(mut stream: S, name: &str, bytes: &AtomicUsize)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut buffer = vec![0; 16 * 1024];
    if stream
        .write_all(format!("{name}: ").as_bytes())
        .await
        .is_err()
    {
        return;
    }
    let _ = stream.flush().await;
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        bytes.fetch_add(n, Ordering::SeqCst);
        if stream.write_all(&buffer[..n]).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

/// An address on which nobody listens. It stays taken until the process ends, so that no other
/// test comes to listen there.
pub fn refusing_address() -> SocketAddr {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    address
}
