//! Ready of a peer says what stands in the way between two real meshes, and which field to mend.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use meshfed_api::{ROOT_CERT_KEY, ServiceMeshPeer};
use meshfed_testkit::eventually;
use serde_json::{Value, json};

use crate::federation::{Federation, Mesh};
use crate::removal::api;

/// Several attempts, with the backoff between them.
const PATIENCE: Duration = Duration::from_secs(60);

async fn edit(mesh: &Mesh, peer: &str, spec: Value) {
    let peers: Api<ServiceMeshPeer> = api(mesh);
    let patch = Patch::Merge(json!({"spec": spec}));
    let params = PatchParams::default();
    peers.patch(peer, &params, &patch).await.unwrap();
}

async fn root_of(mesh: &Mesh, peer: &str) -> String {
    let maps: Api<ConfigMap> = api(mesh);
    let map = maps.get(&format!("{peer}-ca-root-cert")).await.unwrap();
    map.data.unwrap()[ROOT_CERT_KEY].clone()
}

async fn keep_root(mesh: &Mesh, peer: &str, root: &str) {
    let maps: Api<ConfigMap> = api(mesh);
    let name = format!("{peer}-ca-root-cert");
    let patch = Patch::Merge(json!({"data": {ROOT_CERT_KEY: root}}));
    let params = PatchParams::default();
    maps.patch(&name, &params, &patch).await.unwrap();
}

/// Waits until Ready of the peer has this reason and these words.
pub async fn says(mesh: &Mesh, peer: &str, reason: &str, words: &[&str]) {
    let peers: Api<ServiceMeshPeer> = api(mesh);
    eventually(PATIENCE, async || {
        let status = peers.get_status(peer).await.unwrap().status.unwrap();
        let mut conditions = status.conditions.into_iter();
        let ready = conditions.find(|c| c.type_ == "Ready").unwrap();
        let message = ready.message.unwrap_or_default();
        let told = words.iter().all(|words| message.contains(words));
        if ready.reason.as_deref() == Some(reason) && told {
            Ok(())
        } else {
            Err(format!(
                "{peer} of {}: {:?}: {message}",
                mesh.name, ready.reason
            ))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_says_what_stands_between_two_meshes_and_what_to_compare() {
    let federation = Federation::start(&[], &[]).await;
    federation.works().await;
    let (red, green) = (&federation.red, &federation.green);
    says(red, "green-mesh", "Connected", &["both"]).await;

    // Red expects another identity: green is told, and red sees that nobody watches it.
    let account = "green-mesh.local/ns/green-mesh-system/sa";
    let ours = format!("{account}/egress-red-mesh-service-account");
    let other = format!("{account}/other-service-account");
    edit(red, "green-mesh", json!({"security": {"clientID": other}})).await;
    let refused = ["403 Forbidden", &ours];
    says(green, "red-mesh", "NotConnected", &refused).await;
    let wanted = [other.as_str(), "ingress-green-mesh"];
    says(red, "green-mesh", "ConnectedOneWay", &wanted).await;
    edit(red, "green-mesh", json!({"security": {"clientID": ours}})).await;
    says(green, "red-mesh", "Connected", &[]).await;

    // Nobody is at the address.
    let peers: Api<ServiceMeshPeer> = api(green);
    let real = peers.get("red-mesh").await.unwrap().spec.remote.addresses;
    let nobody = green.address(77, 0).ip().to_string();
    edit(
        green,
        "red-mesh",
        json!({"remote": {"addresses": [nobody]}}),
    )
    .await;
    let words = format!("egress-red-mesh reaches nobody at {nobody} port 8188");
    let unreachable = ["503 Service Unavailable", &words];
    says(green, "red-mesh", "NotConnected", &unreachable).await;
    edit(green, "red-mesh", json!({"remote": {"addresses": real}})).await;
    says(green, "red-mesh", "Connected", &[]).await;

    // Green keeps a wrong root of red.
    let right = root_of(green, "red-mesh").await;
    let wrong = root_of(red, "green-mesh").await;
    keep_root(green, "red-mesh", &wrong).await;
    let distrusted = ["does not trust who answers"];
    says(green, "red-mesh", "NotConnected", &distrusted).await;
    keep_root(green, "red-mesh", &right).await;
    says(green, "red-mesh", "Connected", &[]).await;
    federation.works().await;
}
