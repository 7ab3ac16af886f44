//! A peer that is reached by a name, and by several addresses of which some are dead.

use std::time::{Duration, Instant};

use kube::Api;
use kube::api::{Patch, PatchParams};
use meshfed_api::{ExportedServiceSet, ServiceMeshPeer};
use meshfed_testkit::dns::{NameServer, RecordType, Says};
use meshfed_testkit::{LoopbackNet, eventually};
use serde_json::{Value, json};

use crate::federation::{Federation, Mesh};
use crate::forwarder::Forwarder;
use crate::program::PATIENCE;
use crate::removal::{api, green_has};

const NAME: &str = "ingress.red.test";
const IN_DNS: &str = "ingress.red.test.";

async fn reach_by(green: &Mesh, addresses: Value) {
    let peers: Api<ServiceMeshPeer> = api(green);
    let patch = json!({"spec": {"remote": {"addresses": addresses}}});
    let params = PatchParams::default();
    peers
        .patch("red-mesh", &params, &Patch::Merge(patch))
        .await
        .unwrap();
}

/// Waits until new connections take this way; calls may share old ones.
async fn go_through(federation: &Federation, way: &Forwarder) {
    let before = way.accepted();
    eventually(PATIENCE, async || {
        federation.tunnel().await.call().await?;
        match way.accepted() - before {
            0 => Err("other ways are taken".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

/// None fails, although some of the addresses may be dead.
async fn all_succeed(federation: &Federation) {
    for _ in 0..30 {
        federation.call().await.unwrap();
        federation.tunnel().await.call().await.unwrap();
    }
}

/// A change of red-mesh arrives in green-mesh, sooner than by a list of the whole.
pub async fn changes_arrive(federation: &Federation) {
    let sets: Api<ExportedServiceSet> = api(&federation.red);
    let rules = json!(sets.get("green-mesh").await.unwrap().spec.export_rules);
    for (rules, count) in [(json!([rules[0]]), 1), (rules, 2)] {
        let patch = Patch::Merge(json!({"spec": {"exportRules": rules}}));
        let params = PatchParams::default();
        sets.patch("green-mesh", &params, &patch).await.unwrap();
        green_has(federation, count).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_followed_as_its_name_resolves_and_its_dead_addresses_are_skipped() {
    let names = NameServer::start().await;
    let server = vec!["--dns-server".to_owned(), names.address.to_string()];
    let federation = Federation::start_with(Vec::new(), server).await;
    let (red, green) = (&federation.red, &federation.green);
    federation.works().await;
    let between = LoopbackNet::lock();
    let (first_ip, second_ip) = (between.address(10), between.address(11));
    // Nobody listens at the one, nobody answers at the other.
    let refuses = between.address(12);
    let silent = Forwarder::start(between.address(13), red.address(10, 0).ip()).await;
    silent.be_silent(true);
    let first = Forwarder::start(first_ip, red.address(10, 0).ip()).await;
    let second = Forwarder::start(second_ip, red.address(10, 0).ip()).await;

    names.say(IN_DNS, Says::Addresses(vec![first_ip], 1));
    reach_by(green, json!([NAME])).await;
    go_through(&federation, &first).await;
    federation.works().await;
    assert_eq!(second.accepted(), 0);
    let mut tunnel = federation.tunnel().await;

    // The name has another address as its TTL ends; what is open stays.
    let asked = names.times_asked(IN_DNS, RecordType::A);
    let moved = Instant::now();
    names.say(IN_DNS, Says::Addresses(vec![second_ip], 1));
    go_through(&federation, &second).await;
    let took = moved.elapsed();
    println!("calls took the new address after {took:.0?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(names.times_asked(IN_DNS, RecordType::A) > asked);
    let before = first.accepted();
    all_succeed(&federation).await;
    assert_eq!(first.accepted(), before, "the old address is not used");
    tunnel.call().await.unwrap();

    // The old address dies, and with it the watch that went there.
    let died = Instant::now();
    drop(first);
    changes_arrive(&federation).await;
    let took = died.elapsed();
    println!("discovery took the new address after {took:.0?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    green.connected("red-mesh").await;
    assert!(tunnel.call().await.is_err());

    // Dead addresses beside it, and behind the name.
    let dead = json!([refuses, NAME, between.address(13)]);
    reach_by(green, dead).await;
    federation.works().await;
    all_succeed(&federation).await;
    changes_arrive(&federation).await;
    let both = Says::Addresses(vec![refuses, second_ip], 1);
    names.say(IN_DNS, both);
    let asked = names.times_asked(IN_DNS, RecordType::A);
    eventually(PATIENCE, async || {
        match names.times_asked(IN_DNS, RecordType::A) - asked {
            0 => Err("the name was not asked for again"),
            _ => Ok(()),
        }
    })
    .await;
    all_succeed(&federation).await;
    assert!(silent.accepted() > 0, "the silent one was tried");
}
