//! Exports, imports, peers and gateways go, and roots are replaced, while others are in use: two
//! gateways with traffic through both.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use meshfed_proxy_config::*;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::*;

fn exported(name: &str, peer: &str) -> String {
    format!("outbound_.9080_._.{name}.bookinfo.svc.{peer}-exports.local")
}

/// The chain for a peer, as an ingress gateway has it.
fn exports_to(peer: &Mesh, name: &str) -> FilterChain {
    let suffix = format!("svc.{name}-exports.local");
    let policy = allow(name, &[peer.id("egress")]);
    let network = tcp(TcpTarget::SniCluster, Some(vec![policy]));
    let mut chain = chain(name, vec![ServerName::Suffix(suffix)], network);
    chain.tls = Some(tls(name, &[peer.id("egress")]));
    chain
}

fn import(name: &str, peer: &str, to: SocketAddr, red: &Mesh) -> Cluster {
    let mut cluster = cluster(name, &[to]);
    let server = ServerIds::OneOf(vec![red.id("ingress")]);
    cluster.tls = Some(upstream_tls("red", server, Some(&exported(name, peer))));
    cluster
}

/// A listener for plain clients of one import.
fn entrance(name: &str) -> Listener {
    let mut chain = chain(name, vec![], tcp(TcpTarget::Cluster(name.into()), None));
    chain.tls = None;
    listener(name, vec![chain])
}

/// Two roots for one trust domain.
fn both(old: &Mesh, new: &Mesh) -> Arc<TrustBundle> {
    let pem = format!("{}{}", old.ca.root_pem(), new.ca.root_pem());
    Arc::new(TrustBundle {
        domains: [(old.domain.clone(), pem.into())].into(),
    })
}

impl Open<TcpStream> {
    async fn to(address: SocketAddr) -> Self {
        Self::greeted(TcpStream::connect(address).await.unwrap()).await
    }

    /// Works now, and ends when the drain period is over.
    async fn drains(mut self, began: Instant) {
        assert!(self.works().await);
        assert!(self.ends().await);
        assert!(began.elapsed() >= DRAIN, "{:?}", began.elapsed());
    }
}

/// Calls again and again, each time over a new connection, and counts.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Load {
    fn start(on: SocketAddr) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            done: Arc::default(),
            failed: Arc::default(),
            tasks: JoinSet::new(),
        };
        for _ in 0..3 {
            let (stop, done, failed) = (load.stop.clone(), load.done.clone(), load.failed.clone());
            load.tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let call = async {
                        let mut stream = TcpStream::connect(on).await?;
                        ask(&mut stream, b"x").await
                    };
                    match call.await {
                        Ok(answer) if answer == b"b: x" => done.fetch_add(1, Ordering::Relaxed),
                        _ => failed.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
        }
        load
    }

    /// Waits for some more calls, so that what changed is known to have met traffic.
    async fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        eventually("more calls", || async {
            (self.done.load(Ordering::Relaxed) >= before + 30).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_drains_and_roots_are_replaced_while_other_services_run_without_one_error() {
    let (red, green) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
    let blue = Mesh::new("blue-mesh.local");
    let backend = Backend::echo("b").await;
    let mut ingress = Gateway::new(red.identity("ingress"));
    ingress.change(|c| {
        for (name, mesh) in [("green", &green), ("blue", &blue)] {
            add_trust(c, name, bundle(&[mesh]));
            for service in ["ratings", "reviews", "details"] {
                add_cluster(c, cluster(&exported(service, name), &[backend.address]));
            }
        }
        let chains = vec![exports_to(&green, "green"), exports_to(&blue, "blue")];
        add_listener(c, listener("15443", chains.clone()));
        add_listener(c, listener("second", chains));
    });
    let (first, second) = (ingress.address("15443"), ingress.address("second"));
    let mut egress = Gateway::new(green.identity("egress"));
    egress.change(|c| {
        add_trust(c, "red", bundle(&[&red]));
        for name in ["ratings", "reviews", "details"] {
            add_cluster(c, import(name, "green", first, &red));
            add_listener(c, entrance(name));
        }
        let mut other = import("ratings", "green", second, &red);
        other.name = "by-the-second".into();
        add_cluster(c, other);
        add_listener(c, entrance("by-the-second"));
    });
    let mut of_blue = Gateway::new(blue.identity("egress"));
    of_blue.change(|c| {
        add_trust(c, "red", bundle(&[&red]));
        add_cluster(c, import("ratings", "blue", first, &red));
        add_listener(c, entrance("ratings"));
    });
    let load = Load::start(egress.address("ratings"));
    let mut kept = Open::to(egress.address("ratings")).await;
    load.goes_on().await;

    // An export goes.
    let going = Open::to(egress.address("reviews")).await;
    let began = Instant::now();
    ingress.change(|c| {
        c.clusters.remove(&*exported("reviews", "green"));
    });
    going.drains(began).await;

    // An import goes.
    let going = Open::to(egress.address("details")).await;
    let began = Instant::now();
    egress.change(|c| {
        c.clusters.remove("details");
    });
    going.drains(began).await;

    // A peer goes, with all that it had.
    let going = Open::to(of_blue.address("ratings")).await;
    let began = Instant::now();
    ingress.change(|c| {
        for name in ["15443", "second"] {
            let mut changed = Listener::clone(&c.listeners[name]);
            changed.chains.retain(|chain| chain.name != "blue");
            add_listener(c, changed);
        }
        for service in ["ratings", "reviews", "details"] {
            c.clusters.remove(&*exported(service, "blue"));
        }
    });
    going.drains(began).await;
    ingress.change(|c| _ = c.trust.remove("blue"));

    // A gateway goes.
    let going = Open::to(egress.address("by-the-second")).await;
    let began = Instant::now();
    ingress.change(|c| {
        c.listeners.remove("second");
    });
    going.drains(began).await;
    assert!(kept.works().await);

    // Both meshes replace their roots: first both count, then the new certificates come, then the
    // old roots go.
    let (red_next, green_next) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
    ingress.change(|c| add_trust(c, "green", both(&green, &green_next)));
    egress.change(|c| add_trust(c, "red", both(&red, &red_next)));
    load.goes_on().await;
    assert!(kept.works().await);
    ingress.identity.set(red_next.identity("ingress"));
    egress.identity.set(green_next.identity("egress"));
    load.goes_on().await;
    assert!(kept.works().await);
    let mut renewed = Open::to(egress.address("ratings")).await;
    ingress.change(|c| add_trust(c, "green", bundle(&[&green_next])));
    egress.change(|c| add_trust(c, "red", bundle(&[&red_next])));
    load.goes_on().await;
    assert!(renewed.works().await);
    assert!(!kept.works().await, "nobody vouches for its certificates");

    load.stop.store(true, Ordering::Relaxed);
    load.tasks.join_all().await;
    assert_eq!(load.failed.load(Ordering::Relaxed), 0);
    let ends = |gateway: &Gateway, end: &str| {
        let lines = gateway.lines();
        lines.iter().filter(|l| l.ends_with(end)).count()
    };
    // The export, the peer and the gateway; the import.
    assert_eq!(ends(&ingress, " end=drained"), 3);
    assert_eq!(ends(&egress, " end=drained"), 1);
    let cut = ends(&ingress, " end=trust_removed") + ends(&egress, " end=trust_removed");
    assert!(cut >= 1);
}

/// Cut at once, whatever its drain period says.
async fn is_cut(open: Open<TcpStream>) {
    assert!(open.ends().await, "the connection is cut");
}

#[tokio::test]
async fn what_goes_with_the_trust_that_it_came_by_is_cut_at_both_ends_however_long_it_may_drain() {
    let (red, green) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
    let other = Mesh::new("red-mesh.local");
    let backend = Backend::echo("b").await;
    let mut ingress = Gateway::new(red.identity("ingress"));
    let mut egress = Gateway::new(green.identity("egress"));
    let hour = MAX_DRAIN;
    let open_ingress = |c: &mut ProxyConfig| {
        add_trust(c, "green", bundle(&[&green]));
        add_cluster(
            c,
            cluster(&exported("ratings", "green"), &[backend.address]),
        );
        let chain = FilterChain {
            drain: hour,
            ..exports_to(&green, "green")
        };
        for name in ["15443", "second"] {
            add_listener(c, listener(name, vec![chain.clone()]));
        }
    };
    // Without the chain, without the listener.
    let take_chain = |c: &mut ProxyConfig| {
        let changed = listener("15443", vec![]);
        add_listener(c, changed);
        c.listeners.remove("second");
    };
    let import = |to| Cluster {
        drain: hour,
        ..import("ratings", "green", to, &red)
    };
    // In one change, and with the trust later than all that referred to it.
    for later in [false, true] {
        for at in ["15443", "second"] {
            ingress.change(open_ingress);
            egress.change(|c| {
                add_trust(c, "red", bundle(&[&red]));
                add_cluster(c, import(ingress.address(at)));
                add_listener(c, entrance("ratings"));
            });
            let mut open = Open::to(egress.address("ratings")).await;
            if later {
                ingress.change(take_chain);
                assert!(open.works().await);
                assert!(ingress.engine.uses_trust("green"));
                ingress.change(|c| _ = c.trust.remove("green"));
            } else {
                ingress.change(|c| {
                    take_chain(c);
                    c.trust.remove("green");
                });
            }
            is_cut(open).await;
            assert!(!ingress.engine.uses_trust("green"));
        }
        ingress.change(open_ingress);
        let to = ingress.address("15443");
        egress.change(|c| add_cluster(c, import(to)));
        let mut open = Open::to(egress.address("ratings")).await;
        if later {
            egress.change(|c| _ = c.clusters.remove("ratings"));
            // Another root comes first, and then the old one goes.
            egress.change(|c| add_trust(c, "red", both(&red, &other)));
            assert!(open.works().await);
            assert!(egress.engine.uses_trust("red"));
            egress.change(|c| add_trust(c, "red", bundle(&[&other])));
        } else {
            egress.change(|c| {
                c.clusters.remove("ratings");
                c.trust.remove("red");
            });
        }
        is_cut(open).await;
    }
    let ends = |gateway: &Gateway| {
        let lines = gateway.lines();
        let cut = lines.iter().filter(|l| l.ends_with(" end=trust_removed"));
        cut.count()
    };
    assert_eq!((ends(&ingress), ends(&egress)), (4, 2));
}
