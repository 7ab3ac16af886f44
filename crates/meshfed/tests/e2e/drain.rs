//! What becomes of open connections when what carried them changes or goes.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use meshfed_api::{ExportedServiceSet, ROOT_CERT_KEY, ServiceMeshPeer};
use meshfed_testkit::eventually;
use meshfed_testkit::forge::Forge;
use serde_json::{Value, json};

use crate::federation::{Federation, Mesh, Tunnel};
use crate::program::PATIENCE;
use crate::removal::{api, create, delete, fails};

/// Unlike the default, to see that it counts, and longer than a call may wait.
const DRAIN: Duration = Duration::from_secs(15);

pub async fn merge<K>(api: &Api<K>, name: &str, patch: Value)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let params = PatchParams::default();
    api.patch(name, &params, &Patch::Merge(patch))
        .await
        .unwrap();
}

async fn trust(red: &Mesh, pem: &str) {
    let maps: Api<ConfigMap> = api(red);
    let patch = json!({"data": {ROOT_CERT_KEY: pem}});
    merge(&maps, "green-mesh-ca-root-cert", patch).await;
}

/// How many connections these components of a mesh have ended for this reason.
pub fn ended(mesh: &Mesh, components: &[&str], reason: &str) -> usize {
    let logs = components.iter().map(|c| mesh.log_of(c));
    let count = |log: String| log.lines().filter(|l| l.ends_with(reason)).count();
    logs.map(count).sum()
}

pub async fn ends(tunnel: &mut Tunnel) {
    eventually(PATIENCE, async || match tunnel.call().await {
        Ok(()) => Err("the tunnel still works"),
        Err(_) => Ok(()),
    })
    .await;
}

/// Old connections and new ones work, for long enough that a change has arrived everywhere.
async fn work(federation: &Federation, tunnel: &mut Tunnel) {
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        tunnel.call().await.unwrap();
        federation.call().await.unwrap();
    }
}

/// The rules of the export are others for a while.
async fn withdraw(federation: &Federation, tunnel: &mut Tunnel) {
    let (red, green) = (&federation.red, &federation.green);
    let sets: Api<ExportedServiceSet> = api(red);
    let rules = json!(sets.get("green-mesh").await.unwrap().spec.export_rules);
    let none = json!([{"type": "NameSelector", "nameSelector": {"name": "of-nobody"}}]);
    let export = |rules: Value| json!({"spec": {"exportRules": rules}});
    let began = Instant::now();
    merge(&sets, "green-mesh", export(none)).await;
    fails(federation).await;
    tunnel.call().await.unwrap();
    ends(tunnel).await;
    let took = began.elapsed();
    assert!(took >= DRAIN && took < 4 * DRAIN, "{took:?}");
    // The first of the hops whose time is over.
    eventually(PATIENCE, async || {
        let at_red = ended(red, &["ingress-green-mesh"], " end=drained");
        let at_green = ended(green, &["egress-red-mesh", "client"], " end=drained");
        if at_red + at_green > 0 {
            Ok(())
        } else {
            Err("no hop says that it drained")
        }
    })
    .await;
    merge(&sets, "green-mesh", export(rules)).await;
    federation.works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_export_ends_when_its_time_is_over_and_a_withdrawn_root_cuts_at_once() {
    let federation = Federation::start(&[], &[]).await;
    let (red, green) = (&federation.red, &federation.green);
    federation.works().await;
    set_drain(red, "green-mesh", "15s").await;
    set_drain(green, "red-mesh", "15s").await;
    let mut tunnel = federation.tunnel().await;
    work(&federation, &mut tunnel).await;
    withdraw(&federation, &mut tunnel).await;

    // A second root comes and goes again, as in a rotation.
    let mut tunnel = federation.tunnel().await;
    let maps: Api<ConfigMap> = api(red);
    let map = maps.get("green-mesh-ca-root-cert").await.unwrap();
    let own = map.data.unwrap()[ROOT_CERT_KEY].clone();
    let other = Forge::new("green-mesh.local").root_pem().to_owned();
    for roots in [
        format!("{own}{other}"),
        format!("{other}{own}"),
        own.clone(),
    ] {
        trust(red, &roots).await;
        work(&federation, &mut tunnel).await;
    }
    let cut = |reason| ended(red, &["ingress-green-mesh"], reason);
    assert_eq!(cut(" end=trust_removed"), 0);

    // Nobody vouches for green-mesh any more.
    trust(red, &other).await;
    ends(&mut tunnel).await;
    assert!(federation.call().await.is_err());
    eventually(PATIENCE, async || match cut(" end=trust_removed") {
        0 => Err("nothing was cut"),
        _ => Ok(()),
    })
    .await;
    trust(red, &own).await;
    federation.works().await;
}

pub async fn set_drain(mesh: &Mesh, peer: &str, period: &str) {
    let peers: Api<ServiceMeshPeer> = api(mesh);
    let patch = json!({"metadata": {"annotations": {"meshfed.io/drain-period": period}}});
    merge(&peers, peer, patch).await;
}

/// The tunnel ends, cut by this component of the mesh that closed its peer.
async fn is_cut(mesh: &Mesh, component: &str, tunnel: &mut Tunnel, before: usize) {
    ends(tunnel).await;
    eventually(PATIENCE, async || {
        match ended(mesh, &[component], " end=trust_removed") {
            now if now > before => Ok(()),
            _ => Err(mesh.log_of(component)),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_closed_peer_has_open_is_cut_and_what_a_removed_one_has_open_drains() {
    let federation = Federation::start(&[], &[]).await;
    let (red, green) = (&federation.red, &federation.green);
    federation.works().await;
    set_drain(red, "green-mesh", "1h").await;
    set_drain(green, "red-mesh", "1h").await;

    for (mesh, peer, component) in [
        (red, "green-mesh", "ingress-green-mesh"),
        (green, "red-mesh", "egress-red-mesh"),
    ] {
        let cut = || ended(mesh, &[component], " end=trust_removed");
        federation.works().await;
        let (mut tunnel, before) = (federation.tunnel().await, cut());
        work(&federation, &mut tunnel).await;
        let root: ConfigMap = delete(mesh, &format!("{peer}-ca-root-cert")).await;
        is_cut(mesh, component, &mut tunnel, before).await;
        fails(&federation).await;
        create(mesh, &root).await;
        federation.works().await;

        let peers: Api<ServiceMeshPeer> = api(mesh);
        let id = peers.get(peer).await.unwrap().spec.security.client_id;
        let client = |id: Value| json!({"spec": {"security": {"clientID": id}}});
        let (mut tunnel, before) = (federation.tunnel().await, cut());
        work(&federation, &mut tunnel).await;
        merge(&peers, peer, client(Value::Null)).await;
        is_cut(mesh, component, &mut tunnel, before).await;
        fails(&federation).await;
        merge(&peers, peer, client(json!(id))).await;
    }

    federation.works().await;
    let mut tunnel = federation.tunnel().await;
    let peers: Api<ServiceMeshPeer> = api(red);
    let params = DeleteParams::default();
    peers.delete("green-mesh", &params).await.unwrap();
    eventually(PATIENCE, async || {
        let status = peers.get_status("green-mesh").await.unwrap().status;
        let all = status.iter().flat_map(|status| &status.conditions);
        let reasons: Vec<_> = all.filter_map(|c| c.reason.clone()).collect();
        if reasons.iter().any(|r| r == "DrainingConnections") {
            Ok(())
        } else {
            Err(reasons)
        }
    })
    .await;
    fails(&federation).await;
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        tunnel.call().await.unwrap();
    }
    set_drain(red, "green-mesh", "0s").await;
    ends(&mut tunnel).await;
    eventually(PATIENCE, async || match peers.get_opt("green-mesh").await {
        Ok(None) => Ok(()),
        other => Err(format!("it is not gone: {other:?}")),
    })
    .await;
}
