//! Clusters of host names, with a name server on a loopback socket.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use meshfed_proxy_config::*;
use meshfed_testkit::dns::{NameServer, RecordType, Says};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Listens on the same port of several addresses; each connection is told which one it came to.
struct Everywhere {
    port: u16,
    tasks: tokio::task::JoinSet<()>,
}

impl Everywhere {
    async fn start(addresses: &[&str]) -> Self {
        let listeners = eventually("a port that is free on all addresses", || async {
            let first = TcpListener::bind((addresses[0], 0)).await.unwrap();
            let port = first.local_addr().unwrap().port();
            let mut all = vec![first];
            for address in &addresses[1..] {
                all.push(TcpListener::bind((*address, port)).await.ok()?);
            }
            Some(all)
        })
        .await;
        let port = listeners[0].local_addr().unwrap().port();
        let mut tasks = tokio::task::JoinSet::new();
        for listener in listeners {
            tasks.spawn(async move {
                loop {
                    let (mut socket, _) = listener.accept().await.unwrap();
                    let own = socket.local_addr().unwrap().ip().to_string();
                    tokio::spawn(async move {
                        let _ =
                            tokio::io::AsyncWriteExt::write_all(&mut socket, own.as_bytes()).await;
                    });
                }
            });
        }
        Self { port, tasks }
    }
}

fn by_name(hosts: &[(&str, u16)]) -> Cluster {
    let mut cluster = cluster("to", &[]);
    let hosts = hosts.iter().map(|(h, p)| ((*h).to_owned(), *p));
    cluster.discovery = Discovery::Dns(hosts.collect());
    cluster
}

fn gateway(server: &NameServer, to: Cluster) -> Gateway {
    let red = Mesh::new("red-mesh.local");
    let identity = red.identity("egress");
    let mut gateway = Gateway::with_name_servers(identity, &[server.address]);
    gateway.change(|c| {
        add_cluster(c, to);
        let mut all = chain("all", vec![], tcp(TcpTarget::Cluster("to".into()), None));
        all.tls = None;
        add_listener(c, listener("in", vec![all]));
    });
    gateway
}

/// Which address answers; empty if none does.
async fn reached(gateway: &Gateway) -> String {
    let mut stream = TcpStream::connect(gateway.address("in")).await.unwrap();
    let answer = ask(&mut stream, b"").await.unwrap_or_default();
    String::from_utf8(answer).unwrap()
}

/// Waits until this address answers.
async fn comes_to(gateway: &Gateway, address: &str) {
    eventually(address, || async {
        (reached(gateway).await == address).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_change_in_dns_counts_when_the_ttl_ends_and_not_before() {
    let server = NameServer::start().await;
    let there = Everywhere::start(&["127.0.0.1", "127.0.0.2"]).await;
    server.say("red.test.", Says::Addresses(vec![ip("127.0.0.1")], 10));
    let gateway = gateway(&server, by_name(&[("red.test", there.port)]));
    comes_to(&gateway, "127.0.0.1").await;
    let began = Instant::now();
    server.say("red.test.", Says::Addresses(vec![ip("127.0.0.2")], 300));
    comes_to(&gateway, "127.0.0.2").await;
    // It was asked for the first time a little before.
    let took = began.elapsed();
    assert!(took > Duration::from_millis(800), "{took:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    // A question without an answer in time is asked again.
    let asked = server.times_asked("red.test.", RecordType::A);
    assert!((2..=4).contains(&asked), "{asked}");
    drop(there.tasks);
}

#[tokio::test]
async fn names_and_addresses_of_both_families_are_balanced_together() {
    let server = NameServer::start().await;
    let there = Everywhere::start(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]).await;
    // Nothing listens on the IPv6 one: another one is tried in its place.
    let both = vec![ip("127.0.0.1"), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    server.say("a.test.", Says::Addresses(both, 60));
    server.say("b.test.", Says::Addresses(vec![ip("127.0.0.2")], 60));
    server.say("c.test.", Says::Nothing);
    let names = ["a.test", "127.0.0.3", "b.test", "c.test"].map(|name| (name, there.port));
    let gateway = gateway(&server, by_name(&names));
    for address in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
        comes_to(&gateway, address).await;
    }
    let mut seen: HashMap<String, u32> = HashMap::new();
    for _ in 0..60 {
        *seen.entry(reached(&gateway).await).or_default() += 1;
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(seen.values().all(|n| *n >= 5), "{seen:?}");
    let asked = server.times_asked("a.test.", RecordType::AAAA);
    assert!((1..=3).contains(&asked), "{asked}");
}

#[tokio::test]
async fn a_failing_name_server_and_a_name_that_vanished_take_no_address_away() {
    let server = NameServer::start().await;
    let there = Everywhere::start(&["127.0.0.1", "127.0.0.2"]).await;
    server.say("red.test.", Says::Addresses(vec![ip("127.0.0.1")], 1));
    let gateway = gateway(&server, by_name(&[("red.test", there.port)]));
    comes_to(&gateway, "127.0.0.1").await;
    for bad in [Says::NoSuchName, Says::Failure, Says::Addresses(vec![], 1)] {
        let before = server.times_asked("red.test.", RecordType::A);
        server.say("red.test.", bad);
        // The one before this has been answered and digested.
        eventually("one more question", || async {
            let asked = server.times_asked("red.test.", RecordType::A);
            (asked > before).then_some(())
        })
        .await;
        assert_eq!(reached(&gateway).await, "127.0.0.1");
    }
    server.say("red.test.", Says::Addresses(vec![ip("127.0.0.2")], 60));
    comes_to(&gateway, "127.0.0.2").await;
}

#[tokio::test]
async fn a_name_is_asked_for_once_however_many_clusters_have_it_and_no_more_when_none_has() {
    let server = NameServer::start().await;
    let there = Everywhere::start(&["127.0.0.1"]).await;
    server.say("red.test.", Says::Addresses(vec![ip("127.0.0.1")], 1));
    let mut gateway = gateway(&server, by_name(&[("red.test", there.port)]));
    gateway.change(|c| {
        for n in 0..500 {
            let mut more = by_name(&[("red.test", there.port)]);
            more.name = format!("more-{n}").into();
            add_cluster(c, more);
        }
    });
    comes_to(&gateway, "127.0.0.1").await;
    // Once a second, however long that took.
    assert!(server.times_asked("red.test.", RecordType::A) < 100);
    server.say("blue.test.", Says::Addresses(vec![ip("127.0.0.1")], 1));
    gateway.change(|c| {
        c.clusters.clear();
        add_cluster(c, by_name(&[("blue.test", there.port)]));
    });
    let times = |name: &str| server.times_asked(name, RecordType::A);
    let asked = times("red.test.");
    // Some rounds of a name that somebody has.
    eventually("a name that is asked for again and again", || async {
        (times("blue.test.") >= 5).then_some(())
    })
    .await;
    // One question may have been on its way.
    assert!(times("red.test.") <= asked + 2);
}

#[tokio::test]
async fn a_change_of_the_addresses_keeps_the_connections_that_are_open() {
    let server = NameServer::start().await;
    let (one, two) = (Backend::echo("one").await, Backend::echo("two").await);
    server.say("red.test.", Says::Addresses(vec![ip("127.0.0.1")], 1));
    let mut gateway = gateway(&server, by_name(&[("red.test", one.address.port())]));
    let mut open = eventually("the first address", || async {
        let mut stream = TcpStream::connect(gateway.address("in")).await.ok()?;
        let mut greeting = [0; 5];
        let read = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut greeting).await;
        read.ok().map(|_| stream)
    })
    .await;
    gateway.change(|c| add_cluster(c, by_name(&[("127.0.0.1", two.address.port())])));
    assert!(reached(&gateway).await.starts_with("two"));
    assert_eq!(ask(&mut open, b"still here").await.unwrap(), b"still here");
}

#[tokio::test]
async fn a_dead_address_is_left_out_after_some_failures_and_taken_again_when_it_is_back() {
    let server = NameServer::start().await;
    let there = Everywhere::start(&["127.0.0.1"]).await;
    let both = vec![ip("127.0.0.1"), ip("127.0.0.2")];
    server.say("red.test.", Says::Addresses(both, 60));
    let mut to = by_name(&[("red.test", there.port)]);
    to.outlier = Some(OutlierDetection {
        consecutive_failures: 2,
        interval: Duration::from_millis(100),
        base_ejection: Duration::from_millis(300),
        max_ejection_percent: 100,
    });
    let gateway = gateway(&server, to);
    comes_to(&gateway, "127.0.0.1").await;
    // No call fails, with the dead address among those that are tried or left out.
    for _ in 0..40 {
        assert_eq!(reached(&gateway).await, "127.0.0.1");
    }
    let second = TcpListener::bind(("127.0.0.2", there.port)).await.unwrap();
    let back = tokio::spawn(async move { drop(second.accept().await) });
    eventually("the other address", || async {
        reached(&gateway).await;
        back.is_finished().then_some(())
    })
    .await;
}
