//! Control planes that answer with something else than exports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use meshfed_federation::discovery::client::ClientSettings;
use meshfed_federation::names::PeerName;
use meshfed_testkit::hostile::{Deed, Peer, deeds, good_list};

use super::importer::{Importer, start};
use super::*;

/// Services that a list may have.
const LIMIT: usize = 50;

/// Times of the lists that are short enough to wait for their end, and long enough that the good peer keeps
/// them on a busy machine.
fn impatient() -> ClientSettings {
    ClientSettings {
        list_timeout: Duration::from_secs(30),
        list_idle: Duration::from_secs(20),
        ..ClientSettings::default()
    }
}

/// What a good peer does: it adds `y` to `x`, and removes it.
fn good() -> Deed {
    Deed::Good(vec![add("y", &["x", "y"]), remove("y", &["x"])])
}

/// With a peer `p` alone, whose good list was taken.
async fn alone(deed: Deed) -> (Importer, Arc<Peer>, PeerName) {
    let mut bench = Bench::new();
    let (peer, address) = start(&bench, list(&["x"]).encode(), deed).await;
    let name: PeerName = "p".parse().unwrap();
    let target = Arc::new(bench.target(address));
    bench.plan.discovery.insert(name.clone(), target);
    let importer = Importer::start(bench, ClientSettings::default());
    importer.knows(&name, &["x"]).await;
    (importer, peer, name)
}

/// Has this peer tell us something, again and again until the end. Returns how long it took each time
/// until it was known.
async fn goes_on(
    importer: &Importer,
    name: &PeerName,
    peer: &Peer,
    end: &AtomicBool,
) -> Vec<Duration> {
    let mut took = Vec::new();
    for names in [["x", "y"].as_slice(), &["x"]].iter().cycle() {
        let start = Instant::now();
        peer.turn();
        importer.knows(name, names).await;
        took.push(start.elapsed());
        if end.load(Ordering::SeqCst) {
            break;
        }
    }
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_control_plane_keeps_its_last_good_exports_is_named_and_disturbs_nobody() {
    let mut bench = Bench::new();
    let mut peers = BTreeMap::new();
    let drips = [("drips", Deed::Drips, "NoList")];
    let good = [("good", good(), "")];
    for (name, deed, reason) in deeds(LIMIT).into_iter().chain(drips).chain(good) {
        let good_list = match deed {
            Deed::Good(_) => list(&["x"]).encode(),
            _ => good_list(),
        };
        let (peer, address) = start(&bench, good_list, deed).await;
        let mut target = bench.target(address);
        target.settings.max_services = LIMIT;
        target.settings.max_list_bytes = 1 << 20;
        let name: PeerName = name.parse().unwrap();
        bench.plan.discovery.insert(name.clone(), Arc::new(target));
        peers.insert(name, (peer, reason));
    }
    let importer = Importer::start(bench, impatient());
    for name in peers.keys() {
        importer.knows(name, &["x"]).await;
    }
    let good: PeerName = "good".parse().unwrap();
    let (good_peer, _) = peers.remove(&good).unwrap();
    for (peer, _) in peers.values() {
        peer.turn();
    }
    let end = AtomicBool::new(false);
    let all_named = async {
        for (name, (_, reason)) in &peers {
            eventually(name.as_str(), || match importer.state(name).fault() {
                Some(error) if error.kind().reason() == *reason => Ok(()),
                other => Err(format!("{other:?} instead of {reason}")),
            })
            .await;
            assert_eq!(
                importer.names(name),
                ["x"],
                "{name} keeps its last good exports"
            );
        }
        end.store(true, Ordering::SeqCst);
    };
    // The good one has something to say as long as the others are at it.
    let ((), took) = tokio::join!(all_named, goes_on(&importer, &good, &good_peer, &end));
    let longest = took.iter().max().unwrap();
    assert!(took.len() > 20, "only {} in time", took.len());
    assert!(
        *longest < impatient().list_idle,
        "{longest:?} of {}",
        took.len()
    );
    let state = importer.state(&good);
    assert!(state.fault().is_none() && state.watch.connected);
    assert_eq!(state.watch.last_disconnect, None, "its watch was never cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_list_does_not_hold_up_events() {
    let slow = Deed::SlowList {
        event: add("y", &["x", "y"]),
        list: list(&["x", "y", "z"]).encode(),
    };
    let (importer, peer, name) = alone(slow).await;
    peer.turn();
    eventually("it is asked for its list", || {
        peer.is_asked().then_some(()).ok_or_else(String::new)
    })
    .await;
    peer.turn();
    importer.knows(&name, &["x", "y"]).await;
    peer.give_list();
    importer.knows(&name, &["x", "y", "z"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_whose_checksum_is_not_its_own_is_taken() {
    let mut wrong = list(&["w", "x"]);
    wrong.checksum ^= 1;
    let (importer, peer, name) = alone(Deed::Lists(wrong.encode())).await;
    assert!(importer.state(&name).list_checksum_agrees);
    peer.turn();
    importer.knows(&name, &["w", "x"]).await;
    let state = importer.state(&name);
    assert!(!state.list_checksum_agrees);
    assert_eq!(state.fault(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_said_last_is_on_disk_at_the_end() {
    let (importer, peer, name) = alone(good()).await;
    for names in [["x", "y"].as_slice(), &["x"], &["x", "y"]] {
        peer.turn();
        importer.knows(&name, names).await;
    }
    let kept = importer.end().await;
    let names: Vec<String> = kept[&name]
        .services
        .iter()
        .map(|s| s.key.name.to_string())
        .collect();
    assert_eq!(names, ["x", "y"]);
}
