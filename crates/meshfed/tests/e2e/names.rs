//! Each mesh calls the other what it likes, and a service is reached on all of its ports.

use k8s_openapi::api::core::v1::Service;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use meshfed_api::{ExportedServiceSet, ImportedServiceSet, ServiceMeshPeer};
use meshfed_testkit::eventually;
use serde_json::json;

use crate::federation::{Federation, Mesh};
use crate::program::PATIENCE;
use crate::removal::{Object, api, create, delete};

/// Takes an object away and makes it again under another name.
async fn rename<K: Object>(mesh: &Mesh, from: &str, to: &str) {
    let mut object: K = delete(mesh, from).await;
    object.meta_mut().name = Some(to.to_owned());
    create(mesh, &object).await;
    let made: K = api(mesh).get(to).await.unwrap();
    assert_eq!(made.name_any(), to);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn meshes_that_give_each_other_names_of_their_own_reach_every_port_of_a_service() {
    let federation = Federation::start(&[], &[]).await;
    let (red, green) = (&federation.red, &federation.green);
    let services: Api<Service> = Api::namespaced(red.client.clone(), "red-mesh-bookinfo");
    let ports = json!({"spec": {"ports": [
        {"name": "http", "port": 9080, "targetPort": 9080},
        {"name": "tcp-store", "port": 5432, "targetPort": 15432},
    ]}});
    let params = PatchParams::default();
    services
        .patch("ratings", &params, &Patch::Merge(ports))
        .await
        .unwrap();

    // Red calls green "partner", green calls red "acme".
    rename::<ServiceMeshPeer>(red, "green-mesh", "partner").await;
    rename::<ExportedServiceSet>(red, "green-mesh", "partner").await;
    rename::<ServiceMeshPeer>(green, "red-mesh", "acme").await;
    rename::<ImportedServiceSet>(green, "red-mesh", "acme").await;
    red.connected("partner").await;
    green.connected("acme").await;

    let host = "ratings.bookinfo.svc.acme-imports.local";
    let http = format!("{host}:9080");
    eventually(PATIENCE, async || federation.call_to(&http).await).await;
    let before = federation.connections_at(15432).await;
    let mut tunnel = federation.tunnel_to(&format!("{host}:5432")).await;
    tunnel.call().await.unwrap();
    assert_eq!(federation.connections_at(15432).await, before + 1);
    let by_http = federation.call_to(&format!("{host}:5432")).await;
    assert_eq!(
        by_http,
        Ok(()),
        "the sidecar is an HTTP proxy for every port"
    );
    for other in ["red-mesh-imports", "partner-imports", "partner-exports"] {
        let authority = format!("red-ratings.bookinfo.svc.{other}.local:9080");
        assert!(federation.call_to(&authority).await.is_err(), "{authority}");
    }

    let exported = "red-ratings.bookinfo.svc.partner-exports.local";
    let sets: Api<ExportedServiceSet> = api(red);
    let status = sets.get_status("partner").await.unwrap().status.unwrap();
    assert_eq!(status.exported_services[0].exported_name, exported);
    let sets: Api<ImportedServiceSet> = api(green);
    let status = sets.get_status("acme").await.unwrap().status.unwrap();
    let imported = &status.imported_services[0];
    assert_eq!(imported.exported_name, exported);
    assert_eq!(imported.local_service.hostname, host);
}
