//! Control planes that answer with something else than exports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use meshfed_federation::discovery::client::RemoteState;
use meshfed_federation::names::PeerName;
use meshfed_pki::{ServerTls, server_config};
use meshfed_runtime::Drain;
use meshfed_testkit::hostile::{Deed, Peer, deeds, good_list};
use tokio::net::TcpListener;

use super::*;
use crate::discovery::{DiscoveryClient, PeerCache};

/// Services that a list may have.
const LIMIT: usize = 50;

/// Listens as the egress gateway that leads to the peer.
async fn start(bench: &Bench, deed: Deed) -> (Arc<Peer>, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = server_config(ServerTls {
        identity: bench.certificate(&id("egress")),
        trust: bench.identity.trust(id("egress").trust_domain()).unwrap(),
        client_ids: Vec::new(),
        alpn: vec!["http/1.1".into()],
    });
    let list = match deed {
        Deed::Good(_) => list(&["x"]).encode(),
        _ => good_list(),
    };
    let peer = Peer::new(list, deed);
    tokio::spawn(peer.clone().serve(listener, tls.unwrap()));
    (peer, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_control_plane_keeps_its_last_good_exports_is_named_and_disturbs_nobody() {
    let mut bench = Bench::new();
    let mut peers = BTreeMap::new();
    let good = [("good", Deed::Good(add("y", &["x", "y"])), "")];
    for (name, deed, reason) in deeds(LIMIT).into_iter().chain(good) {
        let (peer, address) = start(&bench, deed).await;
        let mut target = bench.target(address);
        target.settings.max_services = LIMIT;
        target.settings.max_list_bytes = 1 << 20;
        let name: PeerName = name.parse().unwrap();
        bench.plan.discovery.insert(name.clone(), Arc::new(target));
        peers.insert(name, (peer, reason));
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
    for (name, (peer, _)) in &peers {
        if name.as_str() != "good" {
            peer.turn();
        }
    }
    // The good one has something to say while all of them are at it.
    let good: PeerName = "good".parse().unwrap();
    let start = Instant::now();
    peers[&good].0.turn();
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
    for (name, (_, reason)) in peers.iter().filter(|(name, _)| **name != good) {
        eventually(name.as_str(), || {
            let state = state(name);
            match state.fault() {
                Some(error) if error.kind().reason() == *reason => Ok(()),
                other => Err(format!("{other:?} instead of {reason}")),
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
