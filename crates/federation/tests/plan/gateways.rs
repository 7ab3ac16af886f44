//! Gateways that are there, and what is asked of them.

use std::sync::Arc;

use meshfed_api::ServiceMeshControlPlane;
use meshfed_federation::plan::{FINALIZER, GatewayKind, Plan};
use meshfed_federation::world::{GATEWAY_LABEL, ObjectKey};
use serde_json::{Value, json};

use crate::lab::{Lab, going, red_and_green};

const INGRESS: &str = "ingress-green-mesh";
const EGRESS: &str = "egress-green-mesh";

fn at(name: &str) -> ObjectKey {
    ObjectKey::new("red-mesh-system", name)
}

fn edit_mesh(lab: &mut Lab, name: &str, edit: impl FnOnce(&mut ServiceMeshControlPlane)) {
    let all = &mut lab.world.resources.control_planes;
    edit(Arc::make_mut(all.get_mut(&at(name)).unwrap()));
}

fn ask(lab: &mut Lab, side: &str, name: &str, gateway: Value) {
    edit_mesh(lab, "red-mesh", |smcp| {
        let gateways = smcp.spec.gateways.as_mut().unwrap();
        let side = match side {
            "ingress" => &mut gateways.additional_ingress,
            _ => &mut gateways.additional_egress,
        };
        side.insert(name.to_owned(), serde_json::from_value(gateway).unwrap());
    });
}

fn said(plan: &Plan) -> String {
    let status = &plan.statuses.control_planes[&at("red-mesh")];
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
    ready.unwrap().message.clone().unwrap()
}

#[test]
fn a_gateway_that_is_asked_for_in_a_form_that_cannot_be_made_stays_as_it_was() {
    let half = json!({"service": {"ports": [{"port": 15443}]}});
    let no_address = json!({"service": {"type": "LoadBalancer", "loadBalancerIP": "1.2"}});
    let cases = [
        ("ingress", INGRESS, half.clone()),
        ("ingress", INGRESS, no_address),
        ("egress", EGRESS, half.clone()),
        // The name of the other side's.
        ("egress", INGRESS, json!({})),
        ("ingress", EGRESS, json!({})),
    ];
    for (side, name, gateway) in cases {
        let (mut red, _) = red_and_green();
        let before = red.plan();
        ask(&mut red, side, name, gateway);
        let plan = red.plan();
        let kept = &plan.gateways[name];
        assert!(kept.kept.is_some() && !kept.going, "{side} {name}");
        let kind = if name == INGRESS {
            GatewayKind::Ingress
        } else {
            GatewayKind::Egress
        };
        assert_eq!(kept.kind, kind);
        assert_eq!(plan.exports, before.exports);
        assert_eq!(plan.proxies, before.proxies);
        assert_eq!(plan.withdrawal, before.withdrawal);
        assert!(said(&plan).contains("stays as it was"), "{}", said(&plan));
    }

    // What was never there is not made.
    let (mut red, _) = red_and_green();
    ask(&mut red, "ingress", "new", half.clone());
    let plan = red.plan();
    assert!(!plan.gateways.contains_key("new"));
    assert!(said(&plan).contains("the gateway new cannot be made"));

    // Who deletes the Service means it: its peers hear of it first.
    ask(&mut red, "ingress", INGRESS, half);
    let services = &mut red.world.resources.services;
    let service = Arc::make_mut(services.get_mut(&at(INGRESS)).unwrap());
    going(&mut service.metadata);
    let plan = red.plan();
    assert!(plan.gateways[INGRESS].going);
    assert!(!plan.withdrawn["green-mesh"].is_empty());
    assert!(plan.withdrawal.finalizers.services[&at(INGRESS)]);
}

#[test]
fn the_service_of_a_gateway_is_known_by_its_owner_when_somebody_takes_its_label() {
    let (mut red, _) = red_and_green();
    let before = red.plan();
    let strip = |red: &mut Lab, owners: bool| {
        let services = &mut red.world.resources.services;
        let service = Arc::make_mut(services.get_mut(&at(INGRESS)).unwrap());
        service
            .metadata
            .labels
            .as_mut()
            .unwrap()
            .remove(GATEWAY_LABEL);
        if owners {
            service.metadata.owner_references = None;
        }
    };
    strip(&mut red, false);
    let plan = red.plan();
    assert_eq!(plan.proxies, before.proxies);
    assert!(plan.withdrawal.finalizers.services[&at(INGRESS)]);

    // With nothing of ours but the finalizer, it is let go.
    strip(&mut red, true);
    let plan = red.plan();
    assert_ne!(plan.proxies, before.proxies);
    assert!(!plan.withdrawal.finalizers.services[&at(INGRESS)]);
}

#[test]
fn a_control_plane_that_another_one_takes_over_from_leaves_it_its_gateways() {
    let (mut red, _) = red_and_green();
    let before = red.plan();
    let mut next = red.world.resources.control_planes[&at("red-mesh")]
        .as_ref()
        .clone();
    edit_mesh(&mut red, "red-mesh", |smcp| {
        smcp.metadata.uid = Some("old".to_owned());
        smcp.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    });
    next.metadata.name = Some("second".to_owned());
    next.metadata.uid = Some("new".to_owned());
    let planes = &mut red.world.resources.control_planes;
    planes.insert(at("second"), next.into());
    let owned_by = |red: &mut Lab, uid: &str| {
        let services = &mut red.world.resources.services;
        let keys: Vec<ObjectKey> = services.keys().cloned().collect();
        for key in keys {
            let metadata = &mut Arc::make_mut(services.get_mut(&key).unwrap()).metadata;
            for owner in metadata.owner_references.iter_mut().flatten() {
                owner.uid = uid.to_owned();
            }
        }
    };
    owned_by(&mut red, "old");
    assert_eq!(red.plan().control_plane, Some(at("red-mesh")));

    edit_mesh(&mut red, "red-mesh", |smcp| going(&mut smcp.metadata));
    let plan = red.plan();
    assert_eq!(plan.control_plane, Some(at("second")));
    assert!(plan.gateways.values().all(|gateway| !gateway.going));
    assert_eq!(plan.exports, before.exports);
    // What the old one owns would go with it.
    assert!(plan.withdrawal.finalizers.control_planes[&at("red-mesh")]);
    owned_by(&mut red, "new");
    assert!(!red.plan().withdrawal.finalizers.control_planes[&at("red-mesh")]);
}

#[test]
fn who_waits_for_a_gateway_is_told_what_for() {
    let (mut red, _) = red_and_green();
    let says = |red: &Lab| {
        let plan = red.plan();
        let peer = &plan.statuses.peers[&at("green-mesh")].conditions[0];
        (said(&plan), peer.message.clone().unwrap())
    };
    red.world.observed.gateways.remove(INGRESS);
    let (mesh, _) = says(&red);
    assert!(
        mesh.contains("ingress-green-mesh: its proxy is not connected"),
        "{mesh}"
    );
    red.world.observed.peers.remove("green-mesh");
    let (_, peer) = says(&red);
    assert!(
        peer.contains("ingress-green-mesh: its proxy is not connected"),
        "{peer}"
    );
    let services = &mut red.world.resources.services;
    let service = Arc::make_mut(services.get_mut(&at(INGRESS)).unwrap());
    service.spec.as_mut().unwrap().cluster_ip = None;
    service.status = None;
    assert!(says(&red).0.contains("no address yet"));
    red.apply_json(json!({"kind": "Service",
        "metadata": {"name": INGRESS, "namespace": "red-mesh-system"}, "spec": {}}));
    assert!(says(&red).0.contains("none of ours"));
}

#[test]
fn a_network_that_only_the_peer_can_know_is_no_fault() {
    let (mut red, _) = red_and_green();
    let view = json!({"requestedNetworkView": ["green-network"]});
    ask(&mut red, "egress", EGRESS, view);
    let plan = red.plan();
    let status = &plan.statuses.control_planes[&at("red-mesh")];
    let networks = status
        .conditions
        .iter()
        .find(|c| c.type_ == "NetworksKnown");
    let networks = networks.unwrap();
    assert_eq!(networks.status, "Unknown");
    assert!(networks.message.as_ref().unwrap().contains("green-network"));
}

#[test]
fn a_roll_that_names_the_control_planes_own_namespace_says_so() {
    let (mut red, _) = red_and_green();
    red.apply_json(json!({
        "kind": "ServiceMeshMemberRoll",
        "metadata": {"name": "default", "namespace": "red-mesh-system"},
        "spec": {"members": ["red-mesh-bookinfo", "red-mesh-system"]},
    }));
    let plan = red.plan();
    let ready = &plan.statuses.member_rolls[&at("default")].conditions[0];
    assert_eq!(ready.reason.as_deref(), Some("SystemNamespace"));
    assert!(plan.members.contains("red-mesh-bookinfo"));
    assert!(!plan.members.contains("red-mesh-system"));
}
