//! Control planes that first answer as peers do, and then with something else than exports.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
/// Asks for the whole list.
const RESYNC: &[u8] = b"{\"checksum\":0}\r\n";

/// What a peer does once it has given a good list.
#[derive(Debug, Clone)]
pub enum Deed {
    /// This is its next list.
    Lists(Vec<u8>),
    /// Its next list begins so and never ends.
    ListsForEver(&'static [u8]),
    /// Its next list begins and does not go on.
    Stalls,
    /// Its next list comes byte after byte, one a second.
    Drips,
    /// The head of its next answer never ends.
    HeadForEver,
    /// These are its next events, again and again.
    Events(Vec<u8>),
    /// It asks to be asked for its list, then tells this event, and has this list when it is let have it.
    SlowList { event: Vec<u8>, list: Vec<u8> },
    /// Nothing bad; these are its next events, one each time, and from the first again.
    Good(Vec<Vec<u8>>),
}

/// A peer of the mesh under test.
pub struct Peer {
    deed: Deed,
    good_list: Vec<u8>,
    turned: AtomicBool,
    more: Notify,
    asked: AtomicBool,
    list: Notify,
}

impl Peer {
    pub fn new(good_list: Vec<u8>, deed: Deed) -> Arc<Self> {
        Arc::new(Self {
            deed,
            good_list,
            turned: AtomicBool::new(false),
            more: Notify::new(),
            asked: AtomicBool::new(false),
            list: Notify::new(),
        })
    }

    /// Its answers from now on are its deed.
    pub fn turn(&self) {
        if !matches!(self.deed, Deed::Good(_)) {
            self.turned.store(true, Ordering::SeqCst);
        }
        self.more.notify_one();
    }

    /// Whether somebody waits for its slow list.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Lets it have its slow list.
    pub fn give_list(&self) {
        self.list.notify_one();
    }

    /// Answers discovery requests.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Arc<ServerConfig>) {
        let acceptor = TlsAcceptor::from(tls);
        while let Ok((stream, _)) = listener.accept().await {
            let (peer, acceptor) = (self.clone(), acceptor.clone());
            tokio::spawn(async move {
                // The client hangs up on what it does not like.
                let _hung_up = peer.answer(acceptor.accept(stream).await?).await;
                Ok::<_, io::Error>(())
            });
        }
    }

    async fn answer(&self, mut stream: TlsStream<TcpStream>) -> io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        if head.starts_with(b"GET /v1/watch ") {
            stream.write_all(HEAD).await?;
            stream.flush().await?;
            return self.watch(stream).await;
        }
        let turned = self.turned.load(Ordering::SeqCst);
        match &self.deed {
            Deed::Lists(list) if turned => {
                stream.write_all(HEAD).await?;
                stream.write_all(list).await?;
            }
            Deed::ListsForEver(first) if turned => {
                stream.write_all(HEAD).await?;
                stream.write_all(first).await?;
                loop {
                    stream.write_all(&[b' '; 16384]).await?;
                }
            }
            Deed::Stalls if turned => {
                stream.write_all(HEAD).await?;
                stream.write_all(b"{").await?;
                stream.flush().await?;
                std::future::pending().await
            }
            Deed::Drips if turned => {
                stream.write_all(HEAD).await?;
                loop {
                    stream.write_all(b" ").await?;
                    stream.flush().await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            Deed::SlowList { list, .. } if turned => {
                stream.write_all(HEAD).await?;
                stream.flush().await?;
                self.asked.store(true, Ordering::SeqCst);
                self.list.notified().await;
                stream.write_all(list).await?;
            }
            Deed::HeadForEver if turned => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
                let field = [b"x-flood: ", &[b'x'; 4096][..], b"\r\n"].concat();
                loop {
                    stream.write_all(&field).await?;
                }
            }
            _ => {
                stream.write_all(HEAD).await?;
                stream.write_all(&self.good_list).await?;
            }
        }
        stream.shutdown().await
    }

    async fn watch(&self, mut stream: TlsStream<TcpStream>) -> io::Result<()> {
        for time in 0_usize.. {
            self.more.notified().await;
            match &self.deed {
                Deed::Events(events) => loop {
                    stream.write_all(events).await?;
                },
                Deed::Good(events) => stream.write_all(&events[time % events.len()]).await?,
                Deed::SlowList { event, .. } if time > 0 => stream.write_all(event).await?,
                _ => stream.write_all(RESYNC).await?,
            }
            stream.flush().await?;
        }
        Ok(())
    }
}

/// One entry of a list.
fn entry(name: &str, hostname: &str) -> String {
    format!(
        r#"{{"name":"{name}","namespace":"a","hostname":"{hostname}","servicePorts":[{{"name":"http","port":9080,"protocol":"HTTP"}}]}}"#
    )
}

fn service(name: &str) -> String {
    entry(name, &format!("{name}.a.svc.here-exports.local"))
}

fn list(services: &[String]) -> Vec<u8> {
    let services = services.join(",");
    format!(r#"{{"checksum":0,"services":[{services}]}}"#).into_bytes()
}

/// A list with the service `a/x`, port 9080. Its checksum is not its own, which is no reason to refuse it.
pub fn good_list() -> Vec<u8> {
    list(&[service("x")])
}

/// By name, what hostile peers do, and the reason of the condition that names it.
/// `services` is how many a list may have.
pub fn deeds(services: usize) -> Vec<(&'static str, Deed, &'static str)> {
    let beside_x = |other: String| Deed::Lists(list(&[service("x"), other]));
    let raw = |bytes: &[u8]| Deed::Lists(bytes.to_vec());
    let many: Vec<String> = (0..=services).map(|i| service(&format!("s{i}"))).collect();
    // Few services, and more ports than four for each that there may be.
    let wide = |i| {
        let ports = (1..=1024)
            .map(|port| format!(r#"{{"name":"p{port}","port":{port},"protocol":"HTTP"}}"#));
        let ports: Vec<String> = ports.collect();
        format!(
            r#"{{"name":"s{i}","namespace":"a","hostname":"s{i}.a.svc.here-exports.local","servicePorts":[{}]}}"#,
            ports.join(",")
        )
    };
    let wide: Vec<String> = (0..services / 256 + 2).map(wide).collect();
    let x = service("x");
    let update = format!("{{\"action\":\"update\",\"service\":{x},\"checksum\":0}}\r\n");
    vec![
        ("no-json", raw(b"<html>"), "UnreadableList"),
        ("gzip", raw(b"\x1f\x8b\x08\0\0\0\0\0"), "UnreadableList"),
        (
            "types",
            raw(b"{\"services\":[{\"name\":7}]}"),
            "UnreadableList",
        ),
        (
            "huge-number",
            raw(b"{\"checksum\":1e99999}"),
            "UnreadableList",
        ),
        ("deep", raw(&b"{\"x\":".repeat(5000)), "UnreadableList"),
        (
            "cut-off",
            raw(b"{\"services\":[{\"name\""),
            "UnreadableList",
        ),
        ("many", Deed::Lists(list(&many)), "ListTooLarge"),
        ("many-ports", Deed::Lists(list(&wide)), "ListTooLarge"),
        (
            "long",
            Deed::ListsForEver(b"{\"services\":["),
            "ListTooLarge",
        ),
        (
            "our-name",
            beside_x(entry("z", "kubernetes.default.svc.cluster.local")),
            "BadList",
        ),
        (
            "bad-label",
            beside_x(entry("-z", "-z.a.svc.here-exports.local")),
            "BadList",
        ),
        ("twice", beside_x(x), "BadList"),
        (
            "suffixes",
            beside_x(entry("z", "z.a.svc.there-exports.local")),
            "BadList",
        ),
        ("head", Deed::HeadForEver, "NoList"),
        ("stalls", Deed::Stalls, "NoList"),
        (
            "endless-events",
            Deed::Events(update.repeat(50).into_bytes()),
            "TooManyEvents",
        ),
        (
            "one-endless-event",
            Deed::Events(vec![b'{'; 1 << 16]),
            "UnreadableList",
        ),
        (
            "garbage-events",
            Deed::Events(b"]]]".to_vec()),
            "UnreadableList",
        ),
    ]
}
