//! What one mesh hands to another, and that two halves make a federation.

use k8s_openapi::api::core::v1::ConfigMap;
use meshfed_federation::bundle::{Bundle, BundleError, BundleRequest, bundle};
use meshfed_federation::world::ObjectKey;
use serde_json::json;

use crate::lab::{Lab, red_and_green};

fn request(peer: &str) -> BundleRequest {
    BundleRequest::new(peer.parse().unwrap())
}

fn of(lab: &Lab, request: &BundleRequest) -> Result<Bundle, BundleError> {
    bundle(&lab.world, &lab.plan(), request)
}

/// As it is printed, with the root by name.
fn shown(bundle: &Bundle) -> String {
    let root = bundle.root.data.as_ref().unwrap()["root-cert.pem"].clone();
    let text = format!(
        "{}\n{}---\n{}",
        bundle.notes.join("\n"),
        serde_saphyr::to_string(&ConfigMap {
            data: None,
            ..bundle.root.clone()
        })
        .unwrap(),
        serde_saphyr::to_string(&bundle.peer).unwrap()
    );
    assert!(root.contains("BEGIN CERTIFICATE") && !root.contains("PRIVATE"));
    text
}

#[test]
fn the_bundle_of_the_red_mesh_for_the_green_one() {
    let (red, _) = red_and_green();
    insta::assert_snapshot!(shown(&of(&red, &request("green-mesh")).unwrap()));
}

#[test]
fn it_says_the_same_as_the_examples() {
    let (red, green) = red_and_green();
    let made = of(&red, &request("green-mesh")).unwrap();
    let key = ObjectKey::new("green-mesh-system", "red-mesh");
    assert_eq!(made.peer.spec, green.world.resources.peers[&key].spec);
    let root = ObjectKey::new("green-mesh-system", "red-mesh-ca-root-cert");
    assert_eq!(
        made.root.data,
        green.world.resources.config_maps[&root].data
    );
}

#[test]
fn before_the_other_is_a_peer_here_the_usual_names_are_taken_and_it_is_said() {
    let (mut red, _) = red_and_green();
    let with_peer = of(&red, &request("green-mesh")).unwrap();
    red.delete(
        |r| &mut r.peers,
        &ObjectKey::new("red-mesh-system", "green-mesh"),
    );
    let without = of(&red, &request("green-mesh")).unwrap();
    assert_eq!(without.peer, with_peer.peer);
    assert!(
        without
            .notes
            .last()
            .unwrap()
            .contains("no ServiceMeshPeer green-mesh yet")
    );
}

#[test]
fn everything_that_the_other_side_calls_otherwise_can_be_said() {
    let (red, _) = red_and_green();
    let asked = BundleRequest {
        own_name: Some("crimson".parse().unwrap()),
        their_namespace: Some("istio-system".parse().unwrap()),
        their_ingress: Some("in".to_owned()),
        their_egress: Some("out".to_owned()),
        addresses: vec!["mesh.example.com".to_owned()],
        egress: Some("egress-blue-mesh".to_owned()),
        ..request("green-mesh")
    };
    insta::assert_snapshot!(shown(&of(&red, &asked).unwrap()));
}

#[test]
fn node_ports_are_named_with_the_nodes() {
    let (mut red, _) = red_and_green();
    red.edit_service("red-mesh-system", "ingress-green-mesh", |service| {
        let spec = service.spec.as_mut().unwrap();
        spec.type_ = Some("NodePort".to_owned());
        for (port, number) in spec.ports.as_mut().unwrap().iter_mut().zip([30510, 32359]) {
            port.node_port = Some(number);
        }
    });
    let made = of(&red, &request("green-mesh")).unwrap();
    let remote = made.peer.spec.remote;
    assert_eq!(remote.addresses, ["127.64.1.2"]);
    assert_eq!(
        (remote.service_port, remote.discovery_port),
        (Some(30510), Some(32359))
    );
}

#[test]
fn one_pair_of_gateways_for_all_peers_is_found() {
    let mut red = Lab::empty("red");
    red.apply_json(json!({
        "kind": "ServiceMeshControlPlane",
        "metadata": {"name": "red-mesh", "namespace": "red-mesh-system"},
        "spec": {
            "gateways": {"additionalIngress": {"in": {}}, "additionalEgress": {"out": {}}},
            "security": {"trust": {"domain": "red-mesh.local"}},
        },
    }));
    assert_eq!(
        of(&red, &request("green-mesh")).unwrap_err(),
        BundleError::NoAddress("in".to_owned())
    );
    red.gateways_up();
    let made = of(&red, &request("green-mesh")).unwrap();
    assert_eq!(
        made.peer.spec.security.client_id.as_deref(),
        Some("red-mesh.local/ns/red-mesh-system/sa/out-service-account")
    );
}

#[test]
fn what_is_missing_is_named_with_what_to_do() {
    let red = Lab::empty("red");
    let error = of(&red, &request("green-mesh")).unwrap_err();
    insta::assert_snapshot!(error.to_string(), @"there is no ServiceMeshControlPlane in red-mesh-system; create one first");
    let (mut red, _) = red_and_green();
    let error = of(&red, &request("yellow-mesh")).unwrap_err();
    insta::assert_snapshot!(error.to_string(), @r#"the ServiceMeshControlPlane has no ingress gateway "ingress-yellow-mesh" for yellow-mesh; add it, or name one of its own with --ingress: ingress-blue-mesh, ingress-green-mesh"#);
    red.world.observed.own_roots = "".into();
    let error = of(&red, &request("green-mesh")).unwrap_err();
    insta::assert_snapshot!(error.to_string(), @"this mesh's own root certificate is not known; the ConfigMap istio-ca-root-cert is missing");
}
