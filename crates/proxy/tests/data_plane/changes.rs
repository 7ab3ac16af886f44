//! The configuration changes while connections are open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use meshfed_pki::Identity;
use meshfed_proxy::{BindError, Change, ConnectionLimits, RejectionCause};
use meshfed_proxy_config::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::*;

const SNI: &str = "outbound_.9080_._.ratings.local";

struct Scene {
    red: Mesh,
    green: Mesh,
    gateway: Gateway,
    backend: Backend,
}

impl Scene {
    async fn new() -> Self {
        Self::with_limits(ConnectionLimits::default()).await
    }

    async fn with_limits(limits: ConnectionLimits) -> Self {
        let (red, green) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
        let backend = Backend::echo("b").await;
        let mut gateway = Gateway::with_limits(red.identity("ingress"), limits);
        gateway.change(|c| {
            add_trust(c, "peer", bundle(&[&green]));
            add_cluster(c, cluster(SNI, &[backend.address]));
            add_listener(c, listener("in", vec![exports(&green, &["egress"])]));
        });
        Self {
            red,
            green,
            gateway,
            backend,
        }
    }

    async fn open(&self) -> Open<TlsStream<TcpStream>> {
        Open::new(self, self.green.identity("egress")).await
    }
}

fn exports(peer: &Mesh, accounts: &[&str]) -> FilterChain {
    let ids: Vec<_> = accounts.iter().map(|a| peer.id(a)).collect();
    let network = tcp(TcpTarget::SniCluster, Some(vec![allow("p", &ids)]));
    chain(
        "exports",
        vec![ServerName::Suffix("ratings.local".into())],
        network,
    )
}

impl Open<TlsStream<TcpStream>> {
    async fn new(scene: &Scene, identity: Identity) -> Self {
        let to = scene.gateway.address("in");
        let stream = tls_connect(to, Some(SNI), Some(identity), &scene.red).await;
        Self::greeted(stream.unwrap()).await
    }
}

#[tokio::test]
async fn a_changed_listener_keeps_its_port_and_the_connections_that_are_still_allowed() {
    let mut scene = Scene::new().await;
    let before = scene.gateway.address("in");
    let mut kept = scene.open().await;
    let green = &scene.green;
    scene.gateway.change(|c| {
        let chains = vec![exports(green, &["egress", "second"])];
        add_listener(c, listener("in", chains));
    });
    assert_eq!(scene.gateway.address("in"), before);
    assert!(kept.works().await);
    let mut second = Open::new(&scene, scene.green.identity("second")).await;
    assert!(second.works().await);
    assert_eq!(scene.gateway.engine.connections(), 2);
}

#[tokio::test]
async fn a_policy_that_admits_a_client_no_more_cuts_its_connection_and_no_other() {
    let mut scene = Scene::new().await;
    let green = &scene.green;
    scene.gateway.change(|c| {
        let chains = vec![exports(green, &["egress", "second"])];
        add_listener(c, listener("in", chains));
    });
    let cut = scene.open().await;
    let mut kept = Open::new(&scene, scene.green.identity("second")).await;
    let green = &scene.green;
    scene.gateway.change(|c| {
        add_listener(c, listener("in", vec![exports(green, &["second"])]));
    });
    assert!(cut.ends().await);
    let line = &scene.gateway.exactly(1).await[0];
    assert!(line.contains("end=no_longer_allowed"), "{line}");
    assert!(kept.works().await);
}

#[tokio::test]
async fn a_name_that_is_served_no_more_drains_and_a_client_that_is_admitted_no_more_is_cut() {
    let for_names = |names: &[&str], principals: &[&str], drain: Duration, green: &Mesh| {
        let policies = names.iter().map(|name| AllowPolicy {
            name: (*name).into(),
            principals: principals.iter().map(|a| green.id(a)).collect(),
            server_name_suffix: Some(format!(".{name}")),
        });
        let network = tcp(TcpTarget::SniCluster, Some(policies.collect()));
        let mut imports = chain("imports", vec![], network);
        imports.drain = drain;
        listener("in", vec![imports])
    };
    type Policies = (&'static [&'static str], &'static [&'static str]);
    let cases: [(Policies, &str, Duration); 4] = [
        ((&["blue.local"], &[]), "drained", SHORT_DRAIN),
        ((&[], &[]), "drained", SHORT_DRAIN),
        ((&["blue.local"], &["egress"]), "drained", SHORT_DRAIN),
        // At once, and not after an hour.
        (
            (&["ratings.local"], &["another"]),
            "no_longer_allowed",
            MAX_DRAIN,
        ),
    ];
    for ((names, principals), end, drain) in cases {
        let mut scene = Scene::new().await;
        let green = &scene.green;
        scene.gateway.change(|c| {
            let both = ["ratings.local", "blue.local"];
            add_listener(c, for_names(&both, &[], drain, green));
        });
        let open = scene.open().await;
        let (began, green) = (Instant::now(), &scene.green);
        scene
            .gateway
            .change(|c| add_listener(c, for_names(names, principals, drain, green)));
        assert!(open.ends().await);
        assert_eq!(began.elapsed() >= drain, end == "drained", "{names:?}");
        let line = &scene.gateway.exactly(1).await[0];
        assert!(line.ends_with(&format!(" end={end}")), "{line}");
    }
}

#[tokio::test]
async fn a_removed_cluster_refuses_at_once_and_its_connections_end_after_a_while() {
    let mut scene = Scene::new().await;
    let mut open = scene.open().await;
    let began = Instant::now();
    scene.gateway.change(|c| {
        c.clusters.remove(SNI);
    });
    assert!(open.works().await);
    let identity = scene.green.identity("egress");
    let to = scene.gateway.address("in");
    let late = tls_connect(to, Some(SNI), Some(identity), &scene.red).await;
    let mut rest = Vec::new();
    let answer = async { late.unwrap().read_to_end(&mut rest).await };
    let _ = tokio::time::timeout(PATIENCE, answer).await.unwrap();
    assert_eq!(rest, b"");
    assert!(open.ends().await);
    assert!(began.elapsed() >= DRAIN);
    let ends = scene.gateway.ends(2).await;
    assert_eq!(ends, ["drained", "no_cluster"]);
}

#[tokio::test]
async fn a_drain_period_of_zero_ends_connections_at_once() {
    let mut scene = Scene::new().await;
    let address = scene.backend.address;
    let green = &scene.green;
    scene.gateway.change(|c| {
        // That of the cluster alone counts.
        let mut patient = exports(green, &["egress"]);
        patient.drain = MAX_DRAIN;
        add_listener(c, listener("in", vec![patient]));
        let mut hasty = cluster(SNI, &[address]);
        hasty.drain = Duration::ZERO;
        add_cluster(c, hasty);
    });
    let open = scene.open().await;
    scene.gateway.change(|c| {
        c.clusters.remove(SNI);
    });
    assert!(open.ends().await);
    let line = &scene.gateway.exactly(1).await[0];
    assert!(line.contains("end=drained"), "{line}");
}

#[tokio::test]
async fn a_removed_peer_drains_and_the_connections_of_another_one_go_on() {
    let mut scene = Scene::new().await;
    let blue = Mesh::new("blue-mesh.local");
    let (green, address) = (&scene.green, scene.backend.address);
    let blue_sni = "outbound_.9080_._.ratings.blue.local";
    scene.gateway.change(|c| {
        add_trust(c, "blue", bundle(&[&blue]));
        add_cluster(c, cluster(blue_sni, &[address]));
        let mut second = chain(
            "exports-to-blue",
            vec![ServerName::Suffix("blue.local".into())],
            tcp(TcpTarget::SniCluster, None),
        );
        second.tls = Some(tls("blue", &[blue.id("egress")]));
        add_listener(c, listener("in", vec![exports(green, &["egress"]), second]));
    });
    let mut going = scene.open().await;
    let to = scene.gateway.address("in");
    let identity = Some(blue.identity("egress"));
    let stream = tls_connect(to, Some(blue_sni), identity, &scene.red).await;
    let mut kept = Open(stream.unwrap());
    let mut greeting = [0; 3];
    kept.0.read_exact(&mut greeting).await.unwrap();
    let began = Instant::now();
    scene.gateway.change(|c| {
        let mut in_ = Listener::clone(&c.listeners["in"]);
        in_.chains.remove(0);
        add_listener(c, in_);
        c.clusters.remove(SNI);
    });
    assert!(going.works().await);
    let identity = Some(scene.green.identity("egress"));
    let refused = tls_connect(to, Some(SNI), identity, &scene.red).await;
    assert!(refused.is_err());
    assert!(going.ends().await);
    assert!(began.elapsed() >= DRAIN);
    let ends = scene.gateway.ends(2).await;
    assert_eq!(ends, ["drained", "no_chain_for_sni"]);
    assert!(kept.works().await);
}

#[tokio::test]
async fn a_withdrawn_root_cuts_its_clients_and_a_root_that_is_added_cuts_nobody() {
    let mut scene = Scene::new().await;
    let mut open = scene.open().await;
    // The same domain under a second root, as while a CA is replaced.
    let next = Mesh::new("green-mesh.local");
    let old_root = scene.green.ca.root_pem().to_owned();
    let both = format!("{old_root}{}", next.ca.root_pem());
    let of = |pem: &str| {
        let domains = [("green-mesh.local".parse().unwrap(), Arc::from(pem))];
        Arc::new(TrustBundle {
            domains: domains.into(),
        })
    };
    scene.gateway.change(|c| add_trust(c, "peer", of(&both)));
    assert!(open.works().await);
    let mut renewed = Open::new(&scene, next.identity("egress")).await;
    scene
        .gateway
        .change(|c| add_trust(c, "peer", of(next.ca.root_pem())));
    assert!(open.ends().await);
    let line = &scene.gateway.exactly(1).await[0];
    assert!(line.contains("end=trust_removed"), "{line}");
    assert!(renewed.works().await);
}

#[tokio::test]
async fn an_endpoints_withdrawn_root_cuts_the_connections_to_it() {
    let (red, green) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
    let remote = Backend::tls_echo("r", red.identity("ingress"), &green).await;
    let mut gateway = Gateway::new(green.identity("egress"));
    let other = Mesh::new("red-mesh.local");
    gateway.change(|c| {
        add_trust(c, "red", bundle(&[&red]));
        let mut import = cluster("import", &[remote.address]);
        let any = ServerIds::AnyOf(red.domain.clone());
        import.tls = Some(upstream_tls("red", any, Some(SNI)));
        add_cluster(c, import);
        let mut all = chain(
            "all",
            vec![],
            tcp(TcpTarget::Cluster("import".into()), None),
        );
        all.tls = None;
        add_listener(c, listener("in", vec![all]));
    });
    let mut open = TcpStream::connect(gateway.address("in")).await.unwrap();
    let mut greeting = [0; 3];
    open.read_exact(&mut greeting).await.unwrap();
    // Other accepted ids of the same servers are no reason to cut.
    gateway.change(|c| {
        let mut import = Cluster::clone(&c.clusters["import"]);
        let ids = ServerIds::OneOf(vec![red.id("ingress"), red.id("second")]);
        import.tls = Some(upstream_tls("red", ids, Some(SNI)));
        add_cluster(c, import);
    });
    open.write_all(b"x").await.unwrap();
    open.read_exact(&mut greeting[..1]).await.unwrap();
    gateway.change(|c| add_trust(c, "red", bundle(&[&other])));
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, open.read_to_end(&mut rest))
        .await
        .expect("cut");
    let line = &gateway.exactly(1).await[0];
    assert!(line.contains("end=trust_removed"), "{line}");
}

#[tokio::test]
async fn an_endpoint_whose_identity_is_accepted_no_more_drains_and_another_one_does_not() {
    let (red, green) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
    let first = Backend::tls_echo("1", red.identity("first"), &green).await;
    let second = Backend::tls_echo("2", red.identity("second"), &green).await;
    let mut gateway = Gateway::new(green.identity("egress"));
    // Long enough to use the connection after the change, also on a busy machine.
    let drain = Duration::from_secs(5);
    let import = |accounts: &[&str], addresses: &[SocketAddr]| {
        let mut import = cluster("import", addresses);
        let ids = accounts.iter().map(|a| red.id(a)).collect();
        import.tls = Some(upstream_tls("red", ServerIds::OneOf(ids), Some(SNI)));
        import.drain = drain;
        import
    };
    gateway.change(|c| {
        add_trust(c, "red", bundle(&[&red]));
        add_cluster(c, import(&["first", "second"], &[first.address]));
        let target = TcpTarget::Cluster("import".into());
        let mut all = chain("all", vec![], tcp(target, None));
        all.tls = None;
        add_listener(c, listener("in", vec![all]));
    });
    let mut greeting = [0; 3];
    let mut left = TcpStream::connect(gateway.address("in")).await.unwrap();
    left.read_exact(&mut greeting).await.unwrap();
    // The peer has its gateway somewhere else, under another account.
    gateway.change(|c| add_cluster(c, import(&["first", "second"], &[second.address])));
    let mut kept = TcpStream::connect(gateway.address("in")).await.unwrap();
    kept.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"2: ");
    let began = Instant::now();
    gateway.change(|c| add_cluster(c, import(&["second"], &[second.address])));
    left.write_all(b"x").await.unwrap();
    left.read_exact(&mut greeting[..1]).await.unwrap();
    let mut rest = Vec::new();
    let end = tokio::time::timeout(PATIENCE, left.read_to_end(&mut rest));
    let _ = end.await.expect("its time is over");
    assert!(began.elapsed() >= drain);
    let line = &gateway.exactly(1).await[0];
    assert!(line.contains("end=drained"), "{line}");
    kept.write_all(b"x").await.unwrap();
    kept.read_exact(&mut greeting[..1]).await.unwrap();
}

#[tokio::test]
async fn connections_that_are_made_while_roots_overlap_are_never_cut() {
    let mut scene = Scene::new().await;
    let next = Mesh::new("green-mesh.local");
    let pem = format!("{}{}", scene.green.ca.root_pem(), next.ca.root_pem());
    let to = scene.gateway.address("in");
    let (identity, red) = (scene.green.identity("egress"), scene.red.id("ingress"));
    let red = Mesh {
        domain: red.trust_domain().clone(),
        ca: meshfed_pki::CertificateAuthority::from_pem(&scene.red.ca.to_pem()).unwrap(),
    };
    let calls = tokio::spawn(async move {
        for _ in 0..60 {
            let mut stream = tls_connect(to, Some(SNI), Some(identity.clone()), &red)
                .await
                .unwrap();
            assert_eq!(ask(&mut stream, b"x").await.unwrap(), b"b: x");
        }
    });
    let mut n = 0;
    while !calls.is_finished() {
        n += 1;
        // A bundle that differs in its text alone is another one for the proxy.
        let text = format!("{pem}{}", "\n".repeat(n % 5));
        let domains = [("green-mesh.local".parse().unwrap(), Arc::from(text))];
        let roots = Arc::new(TrustBundle {
            domains: domains.into(),
        });
        scene.gateway.change(|c| add_trust(c, "peer", roots));
        tokio::task::yield_now().await;
    }
    calls.await.unwrap();
    assert!(n > 10, "{n}");
}

#[tokio::test]
async fn a_removed_listener_accepts_no_more_and_its_connections_end_after_a_while() {
    let mut scene = Scene::new().await;
    let mut open = scene.open().await;
    let to = scene.gateway.address("in");
    scene.gateway.change(|c| {
        c.listeners.remove("in");
    });
    eventually("a closed port", || async {
        TcpStream::connect(to).await.is_err().then_some(())
    })
    .await;
    assert!(open.works().await);
    assert!(open.ends().await);
    let line = &scene.gateway.exactly(1).await[0];
    assert!(line.contains("end=drained"), "{line}");
}

#[tokio::test]
async fn a_port_in_use_is_rejected_by_name_and_the_other_changes_apply() {
    let mut scene = Scene::new().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let mut blocked = listener("blocked", vec![exports(&scene.green, &["egress"])]);
    blocked.address = address;
    let free = listener("free", vec![exports(&scene.green, &["egress"])]);
    let rejected = scene.gateway.engine.apply([
        Change::Listener(Arc::new(blocked)),
        Change::Listener(Arc::new(free)),
    ]);
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].name, "blocked");
    assert!(matches!(
        *rejected[0].cause,
        RejectionCause::Bind(BindError::InUse(a)) if a == address
    ));
    assert!(scene.gateway.engine.bound().contains_key("free"));
    assert!(scene.open().await.works().await);
}

#[tokio::test]
async fn another_listener_takes_the_address_of_one_that_goes_in_the_same_change() {
    let mut scene = Scene::new().await;
    let address = scene.gateway.address("in");
    let chains = vec![exports(&scene.green, &["egress"])];
    for name in ["second", "third", "in"] {
        let mut next = listener(name, chains.clone());
        next.address = address;
        scene.gateway.change(|c| {
            c.listeners.clear();
            add_listener(c, next);
        });
        assert_eq!(scene.gateway.address(name), address);
    }
    assert!(scene.open().await.works().await);
}

#[tokio::test]
async fn what_makes_no_sense_is_rejected_and_what_was_there_stays() {
    let mut scene = Scene::new().await;
    let mut open = scene.open().await;
    let twice = listener(
        "in",
        vec![exports(&scene.green, &[]), {
            let mut other = exports(&scene.green, &[]);
            other.name = "other".into();
            other
        }],
    );
    let mut bad_sni = cluster(SNI, &[]);
    let any = ServerIds::AnyOf(scene.red.domain.clone());
    bad_sni.tls = Some(upstream_tls("peer", any, Some("no name")));
    let not_pem = TrustBundle {
        domains: [(scene.green.domain.clone(), "nonsense".into())].into(),
    };
    let rejected = scene.gateway.engine.apply([
        Change::Listener(Arc::new(twice)),
        Change::Cluster(Arc::new(bad_sni)),
        Change::Trust("peer".into(), Arc::new(not_pem)),
    ]);
    let names: Vec<_> = rejected.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["in", SNI, "peer"], "{rejected:?}");
    assert!(open.works().await);
    assert!(scene.open().await.works().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_and_certificates_change_under_load_without_a_broken_connection() {
    let mut scene = Scene::new().await;
    let stop = Arc::new(AtomicBool::new(false));
    let (done, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let to = scene.gateway.address("in");
    let mut clients = Vec::new();
    for _ in 0..4 {
        let (stop, done, failed) = (stop.clone(), done.clone(), failed.clone());
        let identity = scene.green.identity("egress");
        let red = Mesh {
            domain: scene.red.domain.clone(),
            ca: meshfed_pki::CertificateAuthority::from_pem(&scene.red.ca.to_pem()).unwrap(),
        };
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let answer = async {
                    let mut s = tls_connect(to, Some(SNI), Some(identity.clone()), &red).await?;
                    ask(&mut s, b"x").await
                };
                match answer.await {
                    Ok(a) if a == b"b: x" => done.fetch_add(1, Ordering::Relaxed),
                    _ => failed.fetch_add(1, Ordering::Relaxed),
                };
            }
        }));
    }
    let mut held = scene.open().await;
    for n in 0..60u32 {
        let green = &scene.green;
        let address = scene.backend.address;
        scene.gateway.change(|c| {
            let second = format!("account{n}");
            add_listener(
                c,
                listener("in", vec![exports(green, &["egress", &second])]),
            );
            let mut same = cluster(SNI, &[address]);
            same.connect_timeout = PATIENCE + Duration::from_millis(n.into());
            add_cluster(c, same);
            add_cluster(c, cluster(&format!("other{n}"), &[address]));
        });
        if n % 10 == 0 {
            let renewed = scene.red.identity("ingress");
            scene.gateway.identity.set(renewed);
        }
        assert!(held.works().await);
    }
    eventually("some load", || async {
        (done.load(Ordering::Relaxed) > 100).then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(
        failed.load(Ordering::Relaxed),
        0,
        "{:#?}",
        scene.gateway.lines()
    );
}

#[tokio::test]
async fn connections_over_the_limit_are_refused_and_room_is_made_when_one_ends() {
    let scene = Scene::with_limits(ConnectionLimits {
        total: 2,
        per_listener: 10,
    })
    .await;
    let (first, mut second) = (scene.open().await, scene.open().await);
    let identity = scene.green.identity("egress");
    let to = scene.gateway.address("in");
    let third = tls_connect(to, Some(SNI), Some(identity), &scene.red).await;
    assert!(third.is_err());
    let line = &scene.gateway.exactly(1).await[0];
    assert!(line.contains("end=connection_limit"), "{line}");
    assert!(second.works().await);
    drop(first);
    scene.gateway.exactly(2).await;
    eventually("room", || async {
        let identity = Some(scene.green.identity("egress"));
        tls_connect(to, Some(SNI), identity, &scene.red).await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_stop_waits_for_connections_until_its_deadline() {
    let scene = Scene::new().await;
    let mut open = scene.open().await;
    let engine = scene.gateway.engine;
    let stopping = tokio::spawn(engine.stop(PATIENCE));
    assert!(open.works().await);
    assert!(!stopping.is_finished());
    open.0.shutdown().await.unwrap();
    assert!(open.ends().await);
    stopping.await.unwrap();
}
