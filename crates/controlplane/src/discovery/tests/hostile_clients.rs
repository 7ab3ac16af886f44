//! Control planes that ask for our exports in ways that should hurt.

use std::net::SocketAddr;

use meshfed_federation::discovery::export::Export;
use meshfed_federation::discovery::extension::Health;
use meshfed_federation::discovery::server::Exports;
use meshfed_federation::names::ServiceKey;
use meshfed_pki::{ClientTls, ServerIds, client_config};
use meshfed_runtime::{AccessLog, AccessLogMetrics, Drain};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::discovery::DiscoveryServer;

type Stream = TlsStream<TcpStream>;

/// An export that takes some more than `bytes` on the wire.
fn exports(generation: usize, bytes: usize) -> Exports {
    let mut service = service("x");
    service.accounts = vec![format!("{}{generation}", "0".repeat(bytes))];
    let export = Export::new(service, Health::default());
    let key = ServiceKey::parse("a", "x").unwrap();
    [(key, Arc::new(export))].into_iter().collect()
}

struct Scene {
    bench: Bench,
    address: SocketAddr,
    _drain: Drain,
    _tasks: tokio::task::JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let mut bench = Bench::new();
        for peer in ["evil", "good"] {
            let ingress = id(&format!("ingress-{peer}"));
            let peer: meshfed_federation::names::PeerName = peer.parse().unwrap();
            bench.plan.discovery_clients.insert(peer.clone(), ingress);
            bench.plan.exports.insert(peer, exports(0, 0));
        }
        let dir = tempfile::tempdir().unwrap();
        let log = AccessLog::open(dir.path(), "istiod", &AccessLogMetrics::default()).unwrap();
        let server = DiscoveryServer::new(bench.seen.clone(), log);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (drain, watch) = Drain::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(server.clone().follow(bench.outcomes.clone()));
        let (identity, outcomes) = (bench.identity.clone(), bench.outcomes.clone());
        tasks.spawn(server.serve(listener, identity, outcomes, watch));
        bench.publish();
        let scene = Self {
            bench,
            address,
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
    async fn connect(&self, peer: &str) -> std::io::Result<Stream> {
        let tls = client_config(ClientTls {
            identity: self.bench.gateway(&format!("ingress-{peer}")),
            trust: (self.bench.identity.trust(id("x").trust_domain())).unwrap(),
            server: ServerIds::OneOf(vec![id("istiod")]),
            alpn: vec!["http/1.1".into()],
        });
        let stream = TcpStream::connect(self.address).await?;
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        TlsConnector::from(tls.unwrap()).connect(name, stream).await
    }

    async fn ask(&self, peer: &str, path: &str, headers: &str) -> std::io::Result<Stream> {
        let mut stream = self.connect(peer).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        Ok(stream)
    }

    /// Everything that comes back, or nothing.
    async fn answer(&self, peer: &str, path: &str, headers: &str) -> String {
        let headers = format!("connection: close\r\n{headers}");
        let mut all = Vec::new();
        if let Ok(mut stream) = self.ask(peer, path, &headers).await {
            let _reset = stream.read_to_end(&mut all).await;
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    fn connected(&self, peer: &str) -> Vec<bool> {
        let seen = self.bench.seen.observed();
        let watchers = seen.peers.get(peer).map(|state| state.watchers.clone());
        watchers
            .into_iter()
            .flatten()
            .map(|w| w.connected)
            .collect()
    }

    fn export(&mut self, generation: usize, bytes: usize) {
        for exports_to in self.bench.plan.exports.values_mut() {
            *exports_to = exports(generation, bytes);
        }
        self.bench.publish();
    }
}

/// Reads until this text has come.
async fn read_until(stream: &mut Stream, text: &str) {
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_stops_reading_is_cut_off_and_another_peer_hears_everything() {
    let mut scene = Scene::new().await;
    let _stuck = scene.ask("evil", "/v1/watch/evil", "").await.unwrap();
    let mut reading = scene.ask("good", "/v1/watch/good", "").await.unwrap();
    read_until(&mut reading, "\r\n\r\n").await;
    eventually("both watch", || {
        match (scene.connected("evil"), scene.connected("good")) {
            (evil, good) if evil == [true] && good == [true] => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // What the kernel and TLS take on the way is no more than some MiB.
    for generation in 1..200 {
        scene.export(generation, 200_000);
        read_until(&mut reading, &format!("{generation}\"]")).await;
    }
    eventually("the stuck watch is cut off", || {
        match scene.connected("evil")[..] {
            [false] => Ok(()),
            ref other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(scene.connected("good"), [true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watches_lists_and_headers_of_one_peer_do_not_touch_another() {
    let mut scene = Scene::new().await;
    let mut reading = scene.ask("good", "/v1/watch/good", "").await.unwrap();
    let mut open = Vec::new();
    for _ in 0..80 {
        open.push(scene.ask("evil", "/v1/watch/evil", "").await.unwrap());
        open.push(scene.ask("evil", "/v1/services/evil", "").await.unwrap());
    }
    let flood = "x-flood: 0123456789abcdef\r\n".repeat(20_000);
    let flooded = scene.answer("evil", "/v1/services/evil", &flood).await;
    assert!(!flooded.starts_with("HTTP/1.1 200"), "{flooded:.100}");
    let report = format!(
        "meshfed-discovery: 1\r\nmeshfed-report: {}\r\n",
        "[".repeat(9000)
    );
    let answer = scene.answer("evil", "/v1/services/evil", &report).await;
    assert!(
        answer.starts_with("HTTP/1.1 200"),
        "a report that is no report is left out"
    );
    // Nobody reads the list of another.
    let other = scene.answer("evil", "/v1/services/good", "").await;
    assert!(other.starts_with("HTTP/1.1 403"), "{other:.100}");
    scene.export(7, 10);
    read_until(&mut reading, "0000000007").await;
    // The oldest watches were ended to make room.
    let mut ended = Vec::new();
    let first = tokio::time::timeout(PATIENCE, open[0].read_to_end(&mut ended)).await;
    assert!(first.is_ok());
    assert!(
        String::from_utf8_lossy(&ended).ends_with("0\r\n\r\n"),
        "a clean end"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_announce_the_extension_gets_what_the_reference_sends() {
    let scene = Scene::new().await;
    let list = meshfed_federation::discovery::message::ServiceList::new(vec![Service {
        accounts: vec!["0".into()],
        ..service("x")
    }]);
    let body = String::from_utf8(list.encode()).unwrap();
    let plain = scene.answer("good", "/v1/services/good", "").await;
    let (head, got) = plain.split_once("\r\n\r\n").unwrap();
    assert_eq!(got, body);
    assert!(
        !head.contains("meshfed") && !head.contains("etag"),
        "{head}"
    );
    let mut watch = scene.ask("good", "/v1/watch/good", "").await.unwrap();
    let mut head = vec![0; 4096];
    let n = watch.read(&mut head).await.unwrap();
    let head = String::from_utf8_lossy(&head[..n]).to_lowercase();
    assert!(head.contains("content-type: application/json"), "{head}");
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    assert!(!head.contains("meshfed"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "no initial event: {head}");

    let announce = "meshfed-discovery: 1\r\nmeshfed-report: {\"imported\":1}\r\n";
    let extended = scene.answer("good", "/v1/services/good", announce).await;
    let (head, got) = extended.split_once("\r\n\r\n").unwrap();
    let health = r#""meshfedHealth":{"readyEndpoints":0,"capacity":0,"draining":false}"#;
    assert!(got.contains(health), "{got}");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: "));
    let known = format!("{announce}if-none-match: {}\r\n", tag.unwrap());
    let again = scene.answer("good", "/v1/services/good", &known).await;
    assert!(again.starts_with("HTTP/1.1 304"), "{again}");
    eventually("the report is shown", || {
        let seen = scene.bench.seen.observed();
        let report = seen.peers["good"].watchers[0].report.clone();
        report
            .filter(|r| r.imported == 1)
            .map(drop)
            .ok_or_else(|| "no report".to_owned())
    })
    .await;
}
