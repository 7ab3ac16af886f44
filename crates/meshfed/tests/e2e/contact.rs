//! How soon a mesh notices that its peer is away, and that it is back.

use std::time::{Duration, Instant};

use kube::Api;
use kube::api::{Patch, PatchParams};
use meshfed_api::{ImportedServiceSet, ServiceMeshPeer};
use meshfed_testkit::{LoopbackNet, eventually};
use serde_json::json;

use crate::federation::Federation;
use crate::forwarder::Forwarder;
use crate::notice::says_connected;
use crate::program::PATIENCE;
use crate::readiness::says;
use crate::removal::api;

/// What TCP tells is noticed within this on a busy machine too. Without word, the next list would be asked
/// for after 60 s, and a dead path be probed after 20 s.
const TOLD: Duration = Duration::from_secs(18);
/// The same for a peer that comes back: what is left of the pause between two attempts is part of it.
const BACK: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_goes_and_comes_back_is_noticed_at_once() {
    let ingress = "ingress-green-mesh";
    let mut federation = Federation::start(&[ingress], &[]).await;
    let admin = federation.red.address(240, 15014);
    let mut gateway = federation.red.gateway(ingress, admin).await;
    federation.works().await;
    let report = |what: &str, took: Duration, within: Duration| {
        println!("{what}: {took:.0?}");
        assert!(took < within, "{what}: {took:?}");
    };

    let began = Instant::now();
    federation.red.kill();
    let took = says_connected(&federation.green, false, began).await;
    report("the peer's control plane was killed", took, TOLD);
    let theirs = [
        "ingress gateway at",
        "gets nothing from its own control plane",
    ];
    says(&federation.green, "red-mesh", "NotConnected", &theirs).await;
    // What it exported goes on without it.
    federation.call().await.unwrap();
    federation.red.start_again().await;
    let began = Instant::now();
    let took = says_connected(&federation.green, true, began).await;
    report("the peer's control plane is back", took, BACK);

    let began = Instant::now();
    gateway.kill();
    let took = says_connected(&federation.green, false, began).await;
    report("the peer's gateway was killed", took, TOLD);
    let _gateway = federation.red.gateway(ingress, admin).await;
    eventually(PATIENCE, async || federation.call().await).await;
    let began = Instant::now();
    let took = says_connected(&federation.green, true, began).await;
    report("the peer's gateway is back", took, BACK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_falls_silent_is_noticed_by_the_next_list_and_its_exports_stay() {
    let federation = Federation::start(&[], &[]).await;
    let (red, green) = (&federation.red, &federation.green);
    let between = LoopbackNet::lock();
    let way = Forwarder::start(between.address(10), red.address(10, 0).ip()).await;
    let peers: Api<ServiceMeshPeer> = api(green);
    let patch = json!({
        "metadata": {"annotations": {"meshfed.io/resync-period": "5s"}},
        "spec": {"remote": {"addresses": [between.address(10)]}},
    });
    let params = PatchParams::default();
    peers
        .patch("red-mesh", &params, &Patch::Merge(patch))
        .await
        .unwrap();
    federation.works().await;
    eventually(PATIENCE, async || match way.accepted() {
        0 => Err("nobody came this way"),
        _ => Ok(()),
    })
    .await;
    says_connected(green, true, Instant::now()).await;

    way.be_silent(true);
    let took = says_connected(green, false, Instant::now()).await;
    println!("nothing came from the peer: {took:.0?}");
    // By the default there would not even be another list yet.
    assert!(took < Duration::from_secs(50), "{took:?}");
    // 15 s after a list was asked for, the watch is given up too, and the reason is told.
    eventually(PATIENCE, async || {
        let status = peers.get_status("red-mesh").await.unwrap().status.unwrap();
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
        let ready = ready.map(|c| (c.reason.as_deref(), c.message.as_deref()));
        match ready {
            Some((Some("NotConnected"), Some(message))) if message.contains("is silent") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let sets: Api<ImportedServiceSet> = api(green);
    let set = sets.get_status("red-mesh").await.unwrap();
    assert_eq!(set.status.unwrap().imported_services.len(), 2);

    way.be_silent(false);
    let took = says_connected(green, true, Instant::now()).await;
    println!("the peer is heard again: {took:.0?}");
    federation.works().await;
}
