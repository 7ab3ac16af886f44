//! Control planes that answer with something else than exports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use meshfed_federation::discovery::client::{FaultKind, RemoteState};
use meshfed_federation::names::PeerName;
use meshfed_pki::{ServerTls, server_config};
use meshfed_runtime::Drain;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::*;
use crate::discovery::{DiscoveryClient, PeerCache};

const HEAD: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
/// Asks for the whole list.
const RESYNC: &[u8] = b"{\"checksum\":0}\r\n";

/// What a peer does once it has given a good list.
#[derive(Clone, Copy)]
enum Deed {
    /// This is its next list.
    Lists(fn() -> Vec<u8>),
    /// Its next list begins so and never ends.
    ListsForEver(&'static [u8]),
    /// The head of its next answer never ends.
    HeadForEver,
    /// These are its next events, again and again.
    Events(fn() -> Vec<u8>),
    /// Nothing bad; it adds a service when it is told to.
    Good,
}

struct Peer {
    deed: Deed,
    /// Its good list was taken.
    turned: AtomicBool,
    more: Notify,
}

impl Peer {
    /// Listens as the egress gateway that leads to it.
    async fn start(bench: &Bench, deed: Deed) -> (Arc<Self>, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = server_config(ServerTls {
            identity: bench.certificate(&id("egress")),
            trust: bench.identity.trust(id("egress").trust_domain()).unwrap(),
            client_ids: Vec::new(),
            alpn: vec!["http/1.1".into()],
        });
        let acceptor = TlsAcceptor::from(tls.unwrap());
        let peer = Arc::new(Self {
            deed,
            turned: AtomicBool::new(false),
            more: Notify::new(),
        });
        let serving = peer.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (peer, acceptor) = (serving.clone(), acceptor.clone());
                tokio::spawn(async move {
                    // The client hangs up on what it does not like.
                    let _hung_up = peer.answer(acceptor.accept(stream).await?).await;
                    Ok::<_, std::io::Error>(())
                });
            }
        });
        (peer, address)
    }

    async fn answer(&self, mut stream: TlsStream<TcpStream>) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let watch = head.starts_with(b"GET /v1/watch ");
        if !watch && !self.turned.load(Ordering::SeqCst) {
            stream.write_all(HEAD.as_bytes()).await?;
            stream.write_all(&list(&["x"]).encode()).await?;
            return stream.shutdown().await;
        }
        if watch {
            stream.write_all(HEAD.as_bytes()).await?;
            stream.flush().await?;
            return self.watch(stream).await;
        }
        match self.deed {
            Deed::Lists(make) => {
                stream.write_all(HEAD.as_bytes()).await?;
                stream.write_all(&make()).await?;
            }
            Deed::ListsForEver(first) => {
                stream.write_all(HEAD.as_bytes()).await?;
                stream.write_all(first).await?;
                loop {
                    stream.write_all(&[b' '; 16384]).await?;
                }
            }
            Deed::HeadForEver => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
                loop {
                    stream
                        .write_all(&[b"x-flood: ", &[b'x'; 4096][..], b"\r\n"].concat())
                        .await?;
                }
            }
            Deed::Events(_) | Deed::Good => {
                stream.write_all(HEAD.as_bytes()).await?;
                stream.write_all(&list(&["x"]).encode()).await?;
            }
        }
        stream.shutdown().await
    }

    async fn watch(&self, mut stream: TlsStream<TcpStream>) -> std::io::Result<()> {
        self.more.notified().await;
        match self.deed {
            Deed::Events(make) => loop {
                stream.write_all(&make()).await?;
            },
            Deed::Good => stream.write_all(&add("y", &["x", "y"])).await?,
            _ => stream.write_all(RESYNC).await?,
        }
        stream.flush().await?;
        std::future::pending().await
    }
}

fn with(change: fn(&mut Vec<Service>)) -> Vec<u8> {
    let mut services = vec![service("x"), service("z")];
    change(&mut services);
    ServiceList::new(services).encode()
}

fn deeds() -> Vec<(&'static str, Deed, FaultKind)> {
    use FaultKind::{NoList, Refused, TooManyBytes, TooManyEvents, TooManyServices, Unreadable};
    vec![
        ("no-json", Deed::Lists(|| b"<html>".to_vec()), Unreadable),
        (
            "gzip",
            Deed::Lists(|| b"\x1f\x8b\x08\0\0\0\0\0".to_vec()),
            Unreadable,
        ),
        (
            "types",
            Deed::Lists(|| b"{\"services\":[{\"name\":7}]}".to_vec()),
            Unreadable,
        ),
        (
            "huge-number",
            Deed::Lists(|| b"{\"checksum\":1e99999}".to_vec()),
            Unreadable,
        ),
        ("deep", Deed::Lists(|| b"{\"x\":".repeat(5000)), Unreadable),
        (
            "cut-off",
            Deed::Lists(|| b"{\"services\":[{\"name\"".to_vec()),
            Unreadable,
        ),
        (
            "many",
            Deed::Lists(|| with(|all| all.extend((0..60).map(|i| service(&format!("s{i}")))))),
            TooManyServices,
        ),
        ("long", Deed::ListsForEver(b"{\"services\":["), TooManyBytes),
        (
            "our-name",
            Deed::Lists(|| {
                with(|all| all[1].hostname = "kubernetes.default.svc.cluster.local".into())
            }),
            Refused,
        ),
        (
            "bad-label",
            Deed::Lists(|| with(|all| all[1].name = "-z".into())),
            Refused,
        ),
        (
            "twice",
            Deed::Lists(|| with(|all| all[1] = service("x"))),
            Refused,
        ),
        (
            "suffixes",
            Deed::Lists(|| with(|all| all[1].hostname = "z.a.svc.there-exports.local".into())),
            Refused,
        ),
        ("head", Deed::HeadForEver, NoList),
        (
            "endless-events",
            Deed::Events(|| add("x", &["x"]).repeat(50)),
            TooManyEvents,
        ),
        (
            "one-endless-event",
            Deed::Events(|| vec![b'{'; 1 << 16]),
            Unreadable,
        ),
        (
            "garbage-events",
            Deed::Events(|| b"]]]".to_vec()),
            Unreadable,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_control_plane_keeps_its_last_good_exports_is_named_and_disturbs_nobody() {
    let mut bench = Bench::new();
    let mut peers = BTreeMap::new();
    let good = [("good", Deed::Good, FaultKind::NoList)];
    for (name, deed, fault) in deeds().into_iter().chain(good) {
        let (peer, address) = Peer::start(&bench, deed).await;
        let mut target = bench.target(address);
        target.settings.max_services = 50;
        target.settings.max_list_bytes = 1 << 20;
        let name: PeerName = name.parse().unwrap();
        bench.plan.discovery.insert(name.clone(), Arc::new(target));
        peers.insert(name, (peer, fault));
    }
    bench.publish();
    let dir = tempfile::tempdir().unwrap();
    let cache = PeerCache::open(dir.path().join("peers")).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let (_drain, watch) = Drain::new();
    let client = DiscoveryClient::new(bench.identity.clone(), bench.seen.clone(), cache);
    tasks.spawn(client.follow(BTreeMap::new(), bench.outcomes.clone(), watch));
    let state = |name: &PeerName| -> Arc<RemoteState> {
        let seen = bench.seen.observed();
        let state = seen.peers.get(name.as_str());
        state.map(|state| state.remote.clone()).unwrap_or_default()
    };
    for name in peers.keys() {
        eventually(name.as_str(), || match state(name).services.len() {
            1 => Ok(()),
            other => Err(format!("{other} services: {:?}", state(name))),
        })
        .await;
    }
    for (peer, _) in peers.values() {
        peer.turned.store(true, Ordering::SeqCst);
        if !matches!(peer.deed, Deed::Good) {
            peer.more.notify_one();
        }
    }
    // The good one has something to say while all of them are at it.
    let good: PeerName = "good".parse().unwrap();
    let start = Instant::now();
    peers[&good].0.more.notify_one();
    eventually("the good peer is heard", || {
        match state(&good).services.len() {
            2 => Ok(()),
            other => Err(format!("{other} services")),
        }
    })
    .await;
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    for (name, (_, fault)) in peers.iter().filter(|(name, _)| **name != good) {
        eventually(name.as_str(), || {
            let state = state(name);
            match state.fault() {
                Some(error) if error.kind() == *fault => Ok(()),
                other => Err(format!("{other:?} instead of {fault:?}")),
            }
        })
        .await;
        let names: Vec<String> = (state(name).services.iter())
            .map(|s| s.key.to_string())
            .collect();
        assert_eq!(names, ["a/x"], "{name} keeps its last good exports");
    }
    assert!(state(&good).fault().is_none() && state(&good).watch.connected);
}
