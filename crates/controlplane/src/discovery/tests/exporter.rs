//! Our end of discovery towards the peers `evil` and `good`, each behind an ingress gateway of its own.

use std::net::SocketAddr;

use meshfed_federation::discovery::export::{Export, Shown};
use meshfed_federation::discovery::extension::Health;
use meshfed_federation::discovery::server::{Exports, ServerSettings};
use meshfed_federation::names::{ExportedHost, PeerName, ServiceKey};
use meshfed_pki::{ClientTls, ServerIds, client_config};
use meshfed_runtime::{AccessLog, AccessLogMetrics, Drain};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::discovery::DiscoveryServer;
use crate::discovery::server::Bounds;

/// Bytes of an account; longer ones are refused.
const MAX_TEXT: usize = 2000;

pub type Stream = TlsStream<TcpStream>;

/// An export that takes some more than `bytes` on the wire.
fn exports(generation: usize, bytes: usize) -> Exports {
    let key = ServiceKey::parse("a", "x").unwrap();
    let text = |bytes| "0".repeat(bytes);
    let mut accounts = vec![text(MAX_TEXT); bytes / MAX_TEXT];
    accounts.push(format!("{}{generation}", text(bytes % MAX_TEXT)));
    let shown = Shown {
        host: ExportedHost::ours(&key, &"here".parse().unwrap()),
        key: key.clone(),
        ports: Arc::default(),
        accounts: accounts.into(),
    };
    let export = Export::new(shown, Health::default());
    [(key, Arc::new(export))].into_iter().collect()
}

/// The ingress gateway that serves this peer.
pub fn ingress_of(peer: &str) -> SpiffeId {
    id(&format!("ingress-{peer}"))
}

pub struct Scene {
    pub bench: Bench,
    pub address: SocketAddr,
    log: AccessLog,
    _drain: Drain,
    _tasks: tokio::task::JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Scene {
    pub async fn new() -> Self {
        Self::bounded(Bounds::default(), ServerSettings::default()).await
    }

    pub async fn bounded(bounds: Bounds, settings: ServerSettings) -> Self {
        let mut bench = Bench::new();
        for name in ["evil", "good"] {
            let peer: PeerName = name.parse().unwrap();
            let clients = &mut bench.plan.discovery_clients;
            clients.insert(peer.clone(), ingress_of(name));
            bench.plan.exports.insert(peer, exports(0, 0));
        }
        let dir = tempfile::tempdir().unwrap();
        let log = AccessLog::open(dir.path(), "istiod", &AccessLogMetrics::default()).unwrap();
        let mut server = DiscoveryServer::new(bench.seen.clone(), log.clone());
        server.bounds = bounds;
        server.settings = settings;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (drain, watch) = Drain::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(server.clone().follow(bench.outcomes.clone()));
        tasks.spawn(server.serve(listener, bench.identity.clone(), watch));
        bench.publish();
        let scene = Self {
            bench,
            address,
            log,
            _drain: drain,
            _tasks: tasks,
            _dir: dir,
        };
        let mut answer = String::new();
        while !answer.starts_with("HTTP/1.1 200") {
            tokio::time::sleep(Duration::from_millis(10)).await;
            answer = scene.answer("good", "/v1/services/good", "").await;
        }
        scene
    }

    /// A connection of the ingress gateway that serves this peer.
    pub async fn connect(&self, peer: &str) -> std::io::Result<Stream> {
        let identity = self.bench.certificate(&ingress_of(peer));
        self.connect_as(identity).await
    }

    pub async fn connect_as(&self, identity: Arc<IdentityCell>) -> std::io::Result<Stream> {
        self.caller(identity).connect().await
    }

    pub fn caller(&self, identity: Arc<IdentityCell>) -> Caller {
        let tls = client_config(ClientTls {
            identity,
            trust: (self.bench.identity.trust(id("x").trust_domain())).unwrap(),
            server: ServerIds::OneOf(vec![id("istiod")]),
            alpn: vec!["http/1.1".into()],
        });
        Caller {
            address: self.address,
            tls: TlsConnector::from(tls.unwrap()),
        }
    }

    pub async fn ask(&self, peer: &str, path: &str, headers: &str) -> std::io::Result<Stream> {
        let mut stream = self.connect(peer).await?;
        send(&mut stream, path, headers).await?;
        Ok(stream)
    }

    /// Everything that comes back, or nothing.
    pub async fn answer(&self, peer: &str, path: &str, headers: &str) -> String {
        let headers = format!("connection: close\r\n{headers}");
        match self.ask(peer, path, &headers).await {
            Ok(stream) => rest(stream).await,
            Err(_) => String::new(),
        }
    }

    /// Of each address that watches, or has lately, whether it does.
    pub fn connected(&self, peer: &str) -> Vec<bool> {
        let seen = self.bench.seen.observed();
        let watchers = seen.peers.get(peer).map(|state| state.watchers.clone());
        watchers
            .into_iter()
            .flatten()
            .map(|w| w.connected)
            .collect()
    }

    pub fn export(&mut self, generation: usize, bytes: usize) {
        for exports_to in self.bench.plan.exports.values_mut() {
            *exports_to = exports(generation, bytes);
        }
        self.bench.publish();
    }

    /// Waits until the access log has such a line.
    pub async fn logged(&self, what: &str) {
        eventually(what, || {
            self.log.flush();
            let text = std::fs::read_to_string(self.log.path()).unwrap();
            let found = text.lines().any(|line| line.contains(what));
            if found { Ok(()) } else { Err(text) }
        })
        .await;
    }
}

/// Somebody who can connect.
#[derive(Clone)]
pub struct Caller {
    address: SocketAddr,
    tls: TlsConnector,
}

impl Caller {
    pub async fn connect(&self) -> std::io::Result<Stream> {
        let stream = TcpStream::connect(self.address).await?;
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        self.tls.connect(name, stream).await
    }
}

pub async fn send(stream: &mut Stream, path: &str, headers: &str) -> std::io::Result<()> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await
}

/// What comes until the other end is done, however that ends.
pub async fn rest(mut stream: Stream) -> String {
    let mut all = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await;
    assert!(end.is_ok(), "no end in time");
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads until this text has come. Returns the last of what came.
pub async fn read_until(stream: &mut Stream, text: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = vec![0; 65536];
    let reading = async {
        while !String::from_utf8_lossy(&seen).contains(text) {
            let n = stream.read(&mut buffer).await.unwrap();
            assert_ne!(n, 0, "the watch ended");
            let keep = seen.len().saturating_sub(200_000);
            seen.drain(..keep);
            seen.extend_from_slice(&buffer[..n]);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap();
    String::from_utf8_lossy(&seen).into_owned()
}
