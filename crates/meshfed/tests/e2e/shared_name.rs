//! Two peers behind one egress gateway of ours that serve one name together.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use meshfed_api::{ImportedServiceSet, ServiceMeshPeer};
use meshfed_testkit::eventually;
use serde_json::{Value, json};

use crate::blue;
use crate::drain::merge;
use crate::federation::{App, Federation, Mesh};
use crate::health::LOCAL;
use crate::notice::ratings_is_ready;
use crate::program::PATIENCE;
use crate::removal::{api, create};

/// Below the 60 s after which a mesh would ask for the whole list, with the calls that find it out.
const TOLD: Duration = Duration::from_secs(40);

/// A rule by which a service that the peer exports as this is part of ratings in bookinfo.
fn rule(name: &str) -> Value {
    json!({
        "type": "NameSelector",
        "importAsLocal": true,
        "nameSelector": {
            "namespace": "bookinfo",
            "name": name,
            "alias": {"namespace": "bookinfo", "name": "ratings"},
        },
    })
}

/// Both peers by the egress gateway of the one, and their ratings under one name.
async fn share(green: &Mesh, blue: &Mesh) {
    let peers: Api<ServiceMeshPeer> = api(green);
    let egress = json!({"spec": {"gateways": {"egress": {"name": "egress-red-mesh"}}}});
    merge(&peers, "blue-mesh", egress).await;
    let client = "green-mesh.local/ns/green-mesh-system/sa/egress-red-mesh-service-account";
    let client = json!({"spec": {"security": {"clientID": client}}});
    merge(&api::<ServiceMeshPeer>(blue), "green-mesh", client).await;
    let sets: Api<ImportedServiceSet> = api(green);
    let rules = json!({"spec": {"importRules": [rule("red-ratings")]}});
    merge(&sets, "red-mesh", rules).await;
    let set = json!({
        "apiVersion": "federation.maistra.io/v1",
        "kind": "ImportedServiceSet",
        "metadata": {"name": "blue-mesh", "namespace": green.system()},
        "spec": {"importRules": [rule("ratings")]},
    });
    let set: ImportedServiceSet = serde_json::from_value(set).unwrap();
    create(green, &set).await;
}

/// Ratings of this mesh has endpoints no more, or again.
async fn is_ready(mesh: &Mesh, ready: bool) {
    if mesh.name == "red-mesh" {
        return ratings_is_ready(mesh, ready).await;
    }
    let services: Api<Service> = Api::namespaced(mesh.client.clone(), "bookinfo");
    let app = if ready { "ratings" } else { "nobody" };
    merge(
        &services,
        "ratings",
        json!({"spec": {"selector": {"app": app}}}),
    )
    .await;
}

/// Connections one after the other by the shared name; how many of them failed.
async fn connect(federation: &Federation) -> usize {
    let mut failed = 0;
    for _ in 0..20 {
        let came = federation.tunnel_to(LOCAL).await.call().await;
        failed += usize::from(came.is_err());
    }
    failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_by_a_name_that_two_peers_share_come_to_the_one_that_has_somebody_left() {
    let federation = Federation::start(&[], &[]).await;
    let app = App::start().await;
    let (blue, _sidecar) = blue::serves_green(&federation, &app).await;
    let (red, green, blue) = (&federation.red, &federation.green, &blue);
    share(green, blue).await;
    green.connected("red-mesh").await;
    green.connected("blue-mesh").await;
    eventually(PATIENCE, async || federation.call_to(LOCAL).await).await;
    // Connections come to these, and none to those.
    let come = async |these: &[&App], those: &[&App]| {
        let received = |apps: &[&App]| apps.iter().map(|a| a.received()).collect::<Vec<_>>();
        eventually(PATIENCE, async || {
            let before = [these, those].map(received);
            let failed = connect(&federation).await;
            let now = [these, those].map(received);
            let all_came = now[0]
                .iter()
                .zip(&before[0])
                .all(|(now, before)| now > before);
            if failed == 0 && all_came && now[1] == before[1] {
                Ok(())
            } else {
                Err(format!("{failed} failed, {before:?}, {now:?}"))
            }
        })
        .await;
    };
    come(&[&federation.app, &app], &[]).await;
    for (mesh, gone, other) in [(red, &federation.app, &app), (blue, &app, &federation.app)] {
        let began = Instant::now();
        is_ready(mesh, false).await;
        come(&[other], &[gone]).await;
        let took = began.elapsed();
        println!("{} has nobody left: {took:.0?}", mesh.name);
        assert!(took < TOLD, "{took:?}");
        // Calls do not stay on the connections that they had. The sidecar hears of it by a way of its own.
        eventually(PATIENCE, async || {
            let before = gone.received();
            for _ in 0..20 {
                federation.call_to(LOCAL).await.unwrap();
            }
            match gone.received() - before {
                0 => Ok(()),
                more => Err(format!("{more} bytes of 20 calls came to {}", mesh.name)),
            }
        })
        .await;
        is_ready(mesh, true).await;
        come(&[gone, other], &[]).await;
    }
}
