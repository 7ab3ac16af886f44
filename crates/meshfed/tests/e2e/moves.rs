//! A peer is reached elsewhere, and by other gateways: what is open and still allowed goes on, and
//! what no longer is, is cut.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use meshfed_api::ServiceMeshPeer;
use meshfed_testkit::{LoopbackNet, eventually};
use serde_json::{Value, json};

use crate::drain::{ends, merge, set_drain};
use crate::federation::{Federation, Mesh, Tunnel};
use crate::forwarder::Forwarder;
use crate::program::PATIENCE;
use crate::removal::{api, fails};

/// What is cut is cut within this on a busy machine, where a call may wait for 10 s, and its time to drain
/// would be an hour.
const AT_ONCE: Duration = Duration::from_secs(60);

async fn change(mesh: &Mesh, peer: &str, spec: Value) {
    let peers: Api<ServiceMeshPeer> = api(mesh);
    merge(&peers, peer, json!({"spec": spec})).await;
}

async fn reach(mesh: &Mesh, peer: &str, address: IpAddr) {
    change(mesh, peer, json!({"remote": {"addresses": [address]}})).await;
}

/// Waits until new connections come to a gateway; calls may share old ones.
async fn come_to(federation: &Federation, mesh: &Mesh, gateway: &str) -> Tunnel {
    let lines = || mesh.log_of(gateway).lines().count();
    federation.answers().await;
    let before = lines();
    eventually(PATIENCE, async || {
        // Its line is written when it ends.
        federation.tunnel().await.call().await?;
        match lines() - before {
            0 => Err(format!("nothing came to {gateway}")),
            _ => Ok(()),
        }
    })
    .await;
    let mut tunnel = federation.tunnel().await;
    tunnel.call().await.unwrap();
    tunnel
}

/// Since when this mesh has its watch of the peer; `None` while it has none.
async fn watching_since(mesh: &Mesh, peer: &str) -> Option<Time> {
    let peers: Api<ServiceMeshPeer> = api(mesh);
    let status = peers.get_status(peer).await.unwrap().status?;
    let watch = status.discovery_status.active.into_iter().next()?.watch;
    watch.last_connected.filter(|_| watch.connected)
}

/// How many connections these components have cut. The watch of discovery is none of them: it has to go
/// where the list is now.
fn cut(components: &[(&Mesh, &str)]) -> usize {
    let logs = components.iter().map(|(mesh, name)| mesh.log_of(name));
    let is_cut = |line: &&str| {
        let reasons = [" end=no_longer_allowed", " end=trust_removed"];
        !line.contains("_8188 ") && reasons.iter().any(|reason| line.ends_with(reason))
    };
    logs.map(|log| log.lines().filter(is_cut).count()).sum()
}

/// All of these still work, and so do new calls, for a while. What is waited for before has shown that the
/// change has come to the proxies that it is about.
async fn work(federation: &Federation, tunnels: &mut [Tunnel]) {
    let until = Instant::now() + Duration::from_millis(700);
    while Instant::now() < until {
        for tunnel in tunnels.iter_mut() {
            tunnel.call().await.unwrap();
        }
        federation.call().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_addresses_and_gateways_cut_nothing_that_is_still_allowed_and_all_that_is_not() {
    let federation = Federation::start(&[], &[]).await;
    let (red, green) = (&federation.red, &federation.green);
    federation.works().await;
    set_drain(red, "green-mesh", "1h").await;
    set_drain(green, "red-mesh", "1h").await;
    let mut tunnels = vec![federation.tunnel().await];
    work(&federation, &mut tunnels).await;

    // Another address of the same gateway.
    let between = LoopbackNet::lock();
    let way = Forwarder::start(between.address(10), red.address(10, 0).ip()).await;
    reach(green, "red-mesh", between.address(10)).await;
    eventually(PATIENCE, async || {
        federation.tunnel().await.call().await?;
        match way.accepted() {
            0..3 => Err("other ways are taken".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    tunnels.push(federation.tunnel().await);
    work(&federation, &mut tunnels).await;

    // Another gateway of the peer, which has an identity of its own.
    let ingress = json!({"ingress": {"name": "ingress-blue-mesh"}});
    change(red, "green-mesh", json!({"gateways": ingress})).await;
    reach(green, "red-mesh", red.net.address(11)).await;
    tunnels.push(come_to(&federation, red, "ingress-blue-mesh").await);
    federation.works().await;
    work(&federation, &mut tunnels).await;

    // Another gateway of ours for the other direction, where nothing but the watch goes.
    let ingress = json!({"ingress": {"name": "ingress-blue-mesh"}});
    let (before, other) = (watching_since(red, "green-mesh").await, between.address(11));
    let back = Forwarder::start(other, green.address(11, 0).ip()).await;
    change(green, "red-mesh", json!({"gateways": ingress})).await;
    reach(red, "green-mesh", other).await;
    eventually(PATIENCE, async || {
        let since = watching_since(red, "green-mesh").await;
        if back.accepted() > 0 && since.is_some() && since != before {
            Ok(())
        } else {
            Err(format!("watching since {since:?}, before {before:?}"))
        }
    })
    .await;
    work(&federation, &mut tunnels).await;

    // And for this one, of which the peer takes nothing yet.
    let egress = json!({"egress": {"name": "egress-blue-mesh"}});
    change(green, "red-mesh", json!({"gateways": egress})).await;
    fails(&federation).await;
    for tunnel in &mut tunnels {
        tunnel.call().await.unwrap();
    }
    let gateways = [(red, "ingress-green-mesh"), (red, "ingress-blue-mesh")];
    let of_green = [(green, "egress-red-mesh"), (green, "client")];
    assert_eq!(cut(&[gateways, of_green].concat()), 0);

    // Now it does, and nothing of the one before.
    let began = Instant::now();
    let account = "green-mesh.local/ns/green-mesh-system/sa/egress-blue-mesh-service-account";
    let client = json!({"security": {"clientID": account}});
    change(red, "green-mesh", client).await;
    let mut tunnel = tunnels.pop().unwrap();
    ends(&mut tunnel).await;
    let took = began.elapsed();
    assert!(took < AT_ONCE, "{took:?}");
    eventually(PATIENCE, async || match cut(&gateways) {
        0 => Err("nothing was cut"),
        _ => Ok(()),
    })
    .await;
    federation.works().await;
    come_to(&federation, green, "egress-blue-mesh").await;
}
