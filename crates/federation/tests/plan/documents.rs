//! The examples of the documents, each by name.

use meshfed_federation::plan::Plan;
use meshfed_federation::world::ObjectKey;
use serde_json::{Value, json};

use crate::lab::{Lab, example, red_and_green};

fn status_of<S: serde::Serialize>(statuses: &std::collections::BTreeMap<ObjectKey, S>) -> Value {
    assert_eq!(statuses.len(), 1);
    serde_json::to_value(statuses.values().next().unwrap()).unwrap()
}

/// Names of what `peer` gets.
fn exported(plan: &Plan, peer: &str) -> Vec<String> {
    let exports = plan.exports.get(peer);
    exports
        .into_iter()
        .flat_map(|all| all.values().map(|s| s.shown().host.to_string()))
        .collect()
}

#[test]
fn red_mesh_exports_to_green_mesh_as_shown() {
    let (red, _) = red_and_green();
    let status = status_of(&red.plan().statuses.exports);
    assert_eq!(
        status["exportedServices"],
        json!([
            {
                "exportedName": "red-ratings.bookinfo.svc.green-mesh-exports.local",
                "localService": {
                    "hostname": "ratings.red-mesh-bookinfo.svc.cluster.local",
                    "name": "ratings",
                    "namespace": "red-mesh-bookinfo",
                },
            },
            {
                "exportedName": "reviews.red-mesh-bookinfo.svc.green-mesh-exports.local",
                "localService": {
                    "hostname": "reviews.red-mesh-bookinfo.svc.cluster.local",
                    "name": "reviews",
                    "namespace": "red-mesh-bookinfo",
                },
            },
        ])
    );
}

#[test]
fn green_mesh_imports_from_red_mesh_as_shown() {
    let (_, green) = red_and_green();
    let status = status_of(&green.plan().statuses.imports);
    assert_eq!(
        status["importedServices"],
        json!([
            {
                "exportedName": "red-ratings.bookinfo.svc.green-mesh-exports.local",
                "localService": {
                    "hostname": "ratings.bookinfo.svc.red-mesh-imports.local",
                    "name": "ratings",
                    "namespace": "bookinfo",
                },
            },
            {
                "exportedName": "reviews.red-mesh-bookinfo.svc.green-mesh-exports.local",
                "localService": {"hostname": "", "name": "", "namespace": ""},
            },
        ])
    );
}

#[test]
fn a_connected_peer_is_reported_as_shown() {
    let (red, _) = red_and_green();
    let status = status_of(&red.plan().statuses.peers);
    assert_eq!(
        status["discoveryStatus"],
        json!({"active": [{
            "pod": "istiod-red-mesh-b65457658-9wq5j",
            "remotes": [{
                "connected": true,
                "lastConnected": "2027-10-05T13:02:25Z",
                "lastFullSync": "2027-10-05T13:02:25Z",
                "source": "10.128.2.149",
            }],
            "watch": {
                "connected": true,
                "lastConnected": "2027-10-05T13:02:55Z",
                "lastDisconnectStatus": "503 Service Unavailable",
                "lastFullSync": "2027-10-05T13:05:43Z",
            },
        }]})
    );
}

#[test]
fn a_peer_that_is_not_connected_is_inactive() {
    let green = Lab::of_examples("green");
    let status = status_of(&green.plan().statuses.peers);
    assert_eq!(
        status["discoveryStatus"],
        json!({"inactive": [{
            "pod": "istiod-green-mesh-b65457658-9wq5j",
            "watch": {"connected": false},
        }]})
    );
}

#[test]
fn control_plane_columns_are_as_shown() {
    let mut red = Lab::empty("red");
    red.namespace("red-mesh-system");
    red.apply(&example("documents/control-plane/smcp.yaml"));
    let before = status_of(&red.plan().statuses.control_planes);
    assert_eq!(before["annotations"]["readyComponentCount"], "2/6");
    assert_eq!(before["conditions"][0]["reason"], "ComponentsNotReady");
    red.gateways_up();
    let plan = red.plan();
    let status = status_of(&plan.statuses.control_planes);
    assert_eq!(status["annotations"]["readyComponentCount"], "6/6");
    assert_eq!(status["conditions"][0]["type"], "Ready");
    assert_eq!(status["conditions"][0]["reason"], "ComponentsReady");
    assert_eq!(status["appliedSpec"]["profiles"], json!(["default"]));
    assert_eq!(status["chartVersion"], "2.6.0");
    assert_eq!(status["conditions"][1]["reason"], "FieldsWithoutEffect");
    let message = status["conditions"][1]["message"].as_str().unwrap();
    assert!(message.ends_with(": spec.runtime"), "{message}");
    let message = status["conditions"][2]["message"].as_str().unwrap();
    assert!(
        message.contains("green-network (egress egress-green-mesh)"),
        "{message}"
    );
    assert_eq!(plan.trust_domain.as_str(), "red-mesh.local");
    assert_eq!(
        plan.control_plane_id.without_scheme(),
        "red-mesh.local/ns/red-mesh-system/sa/istiod-red-mesh"
    );
}

#[test]
fn control_plane_with_node_ports_listens_on_them() {
    let mut green = Lab::empty("green");
    green.namespace("green-mesh-system");
    green.apply(&example("documents/control-plane-node-port/smcp.yaml"));
    green.gateways_up();
    let plan = green.plan();
    let config = crate::lab::gateway(&plan, "ingress-green-mesh");
    let listeners: Vec<&str> = config.listeners.keys().map(AsRef::as_ref).collect();
    assert_eq!(
        listeners,
        [
            "127.64.2.100_15443",
            "127.64.2.100_8188",
            "127.64.2.2_30510",
            "127.64.2.2_32359"
        ]
    );
}

/// The red mesh of the examples with other exports.
fn red_with(set: &str) -> Lab {
    let mut red = Lab::of_examples("red");
    red.apply(&example(set));
    red
}

#[test]
fn export_name_and_label() {
    let mut red = red_with("documents/export-name-and-label/exportedserviceset.yaml");
    red.service("red-mesh-bookinfo", "red-ratings", json!({}));
    red.service(
        "red-mesh-bookinfo",
        "labelled",
        json!({"export-service": "true"}),
    );
    red.service(
        "red-mesh-bookinfo",
        "refused",
        json!({"export-service": "false"}),
    );
    assert_eq!(
        exported(&red.plan(), "green-mesh"),
        [
            "labelled.bookinfo.svc.green-mesh-exports.local",
            "ratings.bookinfo.svc.green-mesh-exports.local"
        ]
    );
}

#[test]
fn export_name_from_all_namespaces() {
    let mut red = Lab::of_examples("red");
    red.apply(&example("red-mesh/40-peer-blue-mesh.yaml"));
    red.apply(&example(
        "documents/export-name-from-all-namespaces/exportedserviceset.yaml",
    ));
    red.namespace("elsewhere");
    red.service("elsewhere", "ratings", json!({}));
    let none_of_no_member = ["ratings.red-mesh-bookinfo.svc.blue-mesh-exports.local"];
    assert_eq!(exported(&red.plan(), "blue-mesh"), none_of_no_member);
    red.apply_json(json!({
        "kind": "ServiceMeshMember",
        "metadata": {"name": "default", "namespace": "elsewhere"},
        "spec": {"controlPlaneRef": {"name": "red-mesh", "namespace": "red-mesh-system"}},
    }));
    assert_eq!(
        exported(&red.plan(), "blue-mesh"),
        [
            "ratings.elsewhere.svc.blue-mesh-exports.local",
            "ratings.red-mesh-bookinfo.svc.blue-mesh-exports.local"
        ]
    );
}

#[test]
fn export_whole_namespace() {
    let mut red = red_with("documents/export-whole-namespace/exportedserviceset.yaml");
    red.namespace("west-data-center");
    red.service("west-data-center", "x", json!({}));
    assert!(exported(&red.plan(), "green-mesh").is_empty());
    red.apply_json(json!({
        "kind": "ServiceMeshMemberRoll",
        "metadata": {"name": "default", "namespace": "red-mesh-system"},
        "spec": {"members": ["*"]},
    }));
    assert_eq!(
        exported(&red.plan(), "green-mesh"),
        ["x.west-data-center.svc.green-mesh-exports.local"]
    );
}

#[test]
fn export_with_alias() {
    let red = red_with("documents/export-with-alias/export-to-green-mesh.yaml");
    assert_eq!(
        exported(&red.plan(), "green-mesh"),
        [
            "red-ratings.bookinfo.svc.green-mesh-exports.local",
            "reviews.red-mesh-bookinfo.svc.green-mesh-exports.local"
        ]
    );
}

/// The local names of what green imports by this set, while red exports these services.
fn imported_by(set: &str, exports: &[(&str, &str)]) -> Vec<String> {
    let mut red = Lab::of_examples("red");
    red.apply_json(json!({
        "kind": "ServiceMeshMemberRoll",
        "metadata": {"name": "default", "namespace": "red-mesh-system"},
        "spec": {"members": ["*"]},
    }));
    red.apply_json(json!({
        "kind": "ExportedServiceSet",
        "metadata": {"name": "green-mesh", "namespace": "red-mesh-system"},
        "spec": {"exportRules": [{"type": "NameSelector", "nameSelector": {}}]},
    }));
    for (namespace, name) in exports {
        red.namespace(namespace);
        red.service(namespace, name, json!({}));
    }
    let mut green = Lab::of_examples("green");
    let key = ObjectKey::new("green-mesh-system", "red-mesh");
    green.delete(|r| &mut r.imports, &key);
    green.apply(&example(set).replace("blue-mesh-system", "green-mesh-system"));
    green.hears("red-mesh", &red.exports_to("green-mesh"));
    let plan = green.plan();
    let services = &plan.statuses.imports[&key].imported_services;
    let names = services.iter().map(|s| s.local_service.hostname.clone());
    names.filter(|name| !name.is_empty()).collect()
}

#[test]
fn import_by_name_and_from_red_mesh_and_for_failover() {
    let offers = [
        ("bookinfo", "ratings"),
        ("bookinfo", "reviews"),
        ("other", "ratings"),
    ];
    assert_eq!(
        imported_by("documents/import-by-name/importedserviceset.yaml", &offers),
        ["ratings.bookinfo.svc.red-mesh-imports.local"]
    );
    assert_eq!(
        imported_by("documents/failover/import-from-red-mesh.yaml", &offers),
        ["ratings.bookinfo.svc.cluster.local"]
    );
}

#[test]
fn import_with_alias() {
    let offers = [("bookinfo", "ratings"), ("bookinfo", "red-ratings")];
    for set in [
        "documents/import-from-red-mesh/import-from-red-mesh.yaml",
        "documents/import-with-alias/importedserviceset.yaml",
    ] {
        let names = imported_by(set, &offers);
        assert_eq!(
            names,
            ["ratings.bookinfo.svc.red-mesh-imports.local"],
            "{set}"
        );
    }
}

#[test]
fn import_whole_namespace() {
    let offers = [("west-data-center", "x"), ("east-data-center", "y")];
    assert_eq!(
        imported_by(
            "documents/import-whole-namespace/importedserviceset.yaml",
            &offers
        ),
        ["x.west-data-center.svc.red-mesh-imports.local"]
    );
}
