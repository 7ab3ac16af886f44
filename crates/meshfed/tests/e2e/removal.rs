//! Removing something takes what followed from it, on both sides, and what comes back works.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Event, Namespace, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt as _};
use meshfed_api::{
    ExportedServiceSet, ImportedServiceSet, ServiceMeshControlPlane, ServiceMeshPeer,
};
use meshfed_testkit::eventually;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::federation::{Federation, Mesh};
use crate::program::PATIENCE;

/// An empty list that nothing announced is held for 30 s, so what takes less was told by delete
/// events.
const TOLD: Duration = Duration::from_secs(20);

/// What can be taken away and made again.
pub trait Object:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
{
}

impl<K> Object for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

pub fn api<K>(mesh: &Mesh) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    Api::namespaced(mesh.client.clone(), &mesh.system())
}

/// Deletes an object and waits until it is gone; returns it as one to create again.
pub async fn delete<K: Object>(mesh: &Mesh, name: &str) -> K {
    let api: Api<K> = api(mesh);
    let mut object = api.get(name).await.unwrap();
    api.delete(name, &DeleteParams::default()).await.unwrap();
    eventually(PATIENCE, async || match api.get_opt(name).await {
        Ok(None) => Ok(()),
        other => Err(format!("{name} is not gone: {other:?}")),
    })
    .await;
    let meta = object.meta_mut();
    meta.resource_version = None;
    meta.uid = None;
    meta.finalizers = None;
    object
}

pub async fn create<K: Object>(mesh: &Mesh, object: &K) {
    let api: Api<K> = api(mesh);
    api.create(&PostParams::default(), object).await.unwrap();
}

/// Waits until green-mesh says that red-mesh offers this many services, and calls agree.
pub async fn green_has(federation: &Federation, offered: usize) {
    let sets: Api<ImportedServiceSet> = api(&federation.green);
    eventually(PATIENCE, async || {
        let status = sets.get_status("red-mesh").await.unwrap().status;
        let found = status.map_or(0, |s| s.imported_services.len());
        if found != offered {
            return Err(format!("{found} services are offered, not {offered}"));
        }
        match (federation.call().await, offered) {
            (Err(error), 1..) => Err(error),
            (Ok(()), 0) => Err("a call succeeds".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

/// Waits until calls fail: proxies hear of a change a moment after the API.
pub async fn fails(federation: &Federation) {
    eventually(PATIENCE, async || match federation.call().await {
        Ok(()) => Err("a call succeeds"),
        Err(_) => Ok(()),
    })
    .await;
}

async fn ready_reason(mesh: &Mesh, peer: &str) -> Option<String> {
    let peers: Api<ServiceMeshPeer> = api(mesh);
    let status = peers.get_status(peer).await.unwrap().status?;
    let ready = status.conditions.into_iter().find(|c| c.type_ == "Ready");
    ready?.reason
}

pub async fn becomes(mesh: &Mesh, peer: &str, reason: &str) {
    eventually(PATIENCE, async || {
        let found = ready_reason(mesh, peer).await;
        if found.as_deref() == Some(reason) {
            Ok(())
        } else {
            Err(format!("{peer} at {}: {found:?}", mesh.name))
        }
    })
    .await;
}

async fn enable_ingress(mesh: &Mesh, enabled: bool) {
    let api: Api<ServiceMeshControlPlane> = api(mesh);
    let patch = json!({"spec": {"gateways": {"additionalIngress": {
        "ingress-green-mesh": {"enabled": enabled},
    }}}});
    let params = PatchParams::default();
    api.patch("red-mesh", &params, &Patch::Merge(patch))
        .await
        .unwrap();
}

/// Waits for a time in which nobody writes anything to the API.
pub async fn rests(mesh: &Mesh) {
    const REST: Duration = Duration::from_secs(3);
    let namespaces: Api<Namespace> = Api::all(mesh.client.clone());
    // Our API server counts all writes in one number.
    let revision = async || {
        let list = namespaces.list(&ListParams::default()).await.unwrap();
        list.metadata.resource_version.unwrap()
    };
    eventually(PATIENCE, async || {
        let before = revision().await;
        tokio::time::sleep(REST).await;
        let after = revision().await;
        if before == after {
            Ok(())
        } else {
            Err(format!("{}: from {before} to {after}", mesh.name))
        }
    })
    .await;
}

/// Each change of what green-mesh sees of ratings: what, and the whole of by whom.
fn changes_of_ratings(red: &Mesh) -> Vec<String> {
    let is_ratings = |entry: &Value| {
        entry["service"] == "red-mesh-bookinfo/ratings" && entry["peer"] == "green-mesh"
    };
    let mut all = Vec::new();
    for line in red.audit_log() {
        let authors = line["by"].as_array().into_iter().flatten();
        let authors = authors.map(|author| {
            assert_eq!(author["user"], "kubernetes-admin");
            assert_eq!(author["groups"][0], "system:masters");
            let text = |field: &str| author[field].as_str().unwrap().to_owned();
            format!(" by {} {}", text("verb"), text("kind"))
        });
        let authors: String = authors.collect();
        for what in ["hidden", "exposed"] {
            let entries = line[what].as_array();
            if entries.into_iter().flatten().any(is_ratings) {
                all.push(format!("{what}{authors}"));
            }
        }
    }
    all
}

/// The audit log and the Events tell of the rule and of the peer that came and went.
async fn who_did_what(red: &Mesh) {
    assert_eq!(red.audit_log()[0]["event"], "Started");
    assert_eq!(
        changes_of_ratings(red)[1..],
        [
            "hidden by patch ExportedServiceSet",
            "exposed by patch ExportedServiceSet",
            "hidden by delete ExportedServiceSet",
            "exposed by create ExportedServiceSet",
            "hidden by patch ServiceMeshControlPlane",
            // Its gateway has to come first.
            "exposed",
            "hidden by delete ServiceMeshPeer",
            "exposed by create ServiceMeshPeer",
        ]
    );
    let events: Api<Event> = api(red);
    let events = events.list(&ListParams::default()).await.unwrap();
    for (kind, reason) in [
        ("ServiceMeshPeer", "Connected"),
        ("ServiceMeshPeer", "WithdrawingExports"),
        ("ExportedServiceSet", "ServicesHidden"),
        ("ExportedServiceSet", "ServicesExposed"),
        ("ServiceMeshControlPlane", "GatewayRemoved"),
    ] {
        let found = events.iter().any(|event| {
            event.involved_object.kind.as_deref() == Some(kind)
                && event.reason.as_deref() == Some(reason)
        });
        assert!(found, "{kind} {reason}");
    }
    assert!(events.items.len() < 100, "{}", events.items.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_removed_goes_on_both_sides_and_what_comes_back_works() {
    let mut federation = Federation::start(&[], &[]).await;
    federation.works().await;
    green_has(&federation, 2).await;

    tokio::join!(rests(&federation.red), rests(&federation.green));

    // A rule.
    let began = Instant::now();
    let sets: Api<ExportedServiceSet> = api(&federation.red);
    let rules = sets.get("green-mesh").await.unwrap().spec.export_rules;
    let none = json!([{"type": "NameSelector", "nameSelector": {"name": "of-nobody"}}]);
    for rules in [none, json!(rules)] {
        let patch = Patch::Merge(json!({"spec": {"exportRules": rules}}));
        let params = PatchParams::default();
        sets.patch("green-mesh", &params, &patch).await.unwrap();
        let offered = if rules.as_array().unwrap().len() == 2 {
            2
        } else {
            0
        };
        green_has(&federation, offered).await;
    }

    // A set, on either side.
    let set: ExportedServiceSet = delete(&federation.red, "green-mesh").await;
    green_has(&federation, 0).await;
    create(&federation.red, &set).await;
    green_has(&federation, 2).await;
    let set: ImportedServiceSet = delete(&federation.green, "red-mesh").await;
    fails(&federation).await;
    create(&federation.green, &set).await;
    green_has(&federation, 2).await;

    // A gateway.
    enable_ingress(&federation.red, false).await;
    green_has(&federation, 0).await;
    becomes(&federation.red, "green-mesh", "GatewayMissing").await;
    becomes(&federation.green, "red-mesh", "NotConnected").await;
    let services: Api<Service> = api(&federation.red);
    assert_eq!(services.get_opt("ingress-green-mesh").await.unwrap(), None);
    enable_ingress(&federation.red, true).await;
    federation.works().await;
    green_has(&federation, 2).await;

    // A peer, with its own end up.
    let peer: ServiceMeshPeer = delete(&federation.red, "green-mesh").await;
    green_has(&federation, 0).await;
    becomes(&federation.green, "red-mesh", "NotConnected").await;
    let kept = federation.red.dir.join("peers/green-mesh.json");
    assert!(!kept.exists());
    let took = began.elapsed();
    assert!(took < 5 * TOLD, "nothing waited to be believed: {took:?}");
    create(&federation.red, &peer).await;
    federation.works().await;
    green_has(&federation, 2).await;

    who_did_what(&federation.red).await;

    // The last change before a stop.
    let set: ExportedServiceSet = delete(&federation.red, "green-mesh").await;
    federation.red.stop();
    let last = changes_of_ratings(&federation.red).pop();
    assert_eq!(last.as_deref(), Some("hidden by delete ExportedServiceSet"));
    federation.red.start_again().await;
    create(&federation.red, &set).await;
    green_has(&federation, 2).await;

    // A peer that is away.
    federation.green.kill();
    let began = Instant::now();
    let peer: ServiceMeshPeer = delete(&federation.red, "green-mesh").await;
    assert!(began.elapsed() < TOLD);
    assert_eq!(peer.name_any(), "green-mesh");

    // Everything, with nothing left that holds the namespace.
    let began = Instant::now();
    create(&federation.red, &peer).await;
    let _: ServiceMeshControlPlane = delete(&federation.red, "red-mesh").await;
    becomes(&federation.red, "green-mesh", "NoControlPlane").await;
    let namespaces: Api<Namespace> = Api::all(federation.red.client.clone());
    let system = federation.red.system();
    let params = DeleteParams::default();
    namespaces.delete(&system, &params).await.unwrap();
    eventually(PATIENCE, async || match namespaces.get_opt(&system).await {
        Ok(None) => Ok(()),
        other => Err(format!("the namespace is not gone: {other:?}")),
    })
    .await;
    assert!(began.elapsed() < 2 * TOLD);
}
