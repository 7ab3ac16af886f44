//! What goes is withdrawn before its way is closed, step by step, and within a time.

use std::sync::Arc;

use jiff::SignedDuration;
use meshfed_federation::plan::{FINALIZER, Plan, Step};
use meshfed_federation::world::{Farewell, ObjectKey, PeerState};
use serde_json::json;

use crate::lab::{Lab, going, now, red_and_green};

const UID: &str = "0f1e2d3c-0000-4000-8000-000000000001";

/// red-mesh, whose administrator has just deleted its peer green-mesh.
fn red_without_green() -> Lab {
    let (mut red, _) = red_and_green();
    red.edit_peer("green-mesh", |peer| {
        peer.metadata.uid = Some(UID.into());
        peer.metadata.finalizers = Some(vec![FINALIZER.into()]);
        going(&mut peer.metadata);
    });
    red
}

fn green_mesh() -> ObjectKey {
    ObjectKey::new("red-mesh-system", "green-mesh")
}

fn seen(lab: &mut Lab, edit: impl FnOnce(&mut Farewell)) {
    let peers = &mut lab.world.observed.peers;
    let state: &mut PeerState = Arc::make_mut(peers.get_mut("green-mesh").unwrap());
    edit(&mut state.farewell);
}

fn wait(lab: &mut Lab, seconds: f64) {
    lab.world.now += SignedDuration::from_secs_f64(seconds);
}

fn step(plan: &Plan) -> Step {
    plan.withdrawal.peers[&green_mesh()].step
}

/// Reason of the peer's `Withdrawn` condition.
fn withdrawn(plan: &Plan) -> (String, String) {
    let status = &plan.statuses.peers[&green_mesh()];
    let mut conditions = status.conditions.iter();
    let condition = conditions.find(|c| c.type_ == "Withdrawn").unwrap();
    (
        condition.reason.clone().unwrap(),
        condition.message.clone().unwrap(),
    )
}

fn knows_green(plan: &Plan) -> bool {
    format!("{:?}", plan.proxies).contains("green-mesh-exports")
}

fn trusts_green(plan: &Plan) -> bool {
    let root = crate::lab::root_of("green");
    plan.proxies.values().any(|config| {
        let mut bundles = config.trust.values();
        bundles.any(|bundle| bundle.domains.values().any(|pem| **pem == *root))
    })
}

/// The Service of a gateway as it is stored: it carries what the plan gave it.
fn edit_gateway(
    lab: &mut Lab,
    name: &str,
    edit: impl FnOnce(&mut k8s_openapi::api::core::v1::Service),
) {
    let key = ObjectKey::new(lab.system(), name);
    let services = &mut lab.world.resources.services;
    edit(Arc::make_mut(services.get_mut(&key).unwrap()));
}

/// Takes all gateways out of the ServiceMeshControlPlane but those named.
fn leave_gateways(lab: &mut Lab, kept: &[&str]) {
    let key = ObjectKey::new("red-mesh-system", "red-mesh");
    let all = &mut lab.world.resources.control_planes;
    let smcp = Arc::make_mut(all.get_mut(&key).unwrap());
    let gateways = smcp.spec.gateways.as_mut().unwrap();
    gateways
        .additional_ingress
        .retain(|name, _| kept.contains(&name.as_str()));
    gateways
        .additional_egress
        .retain(|name, _| kept.contains(&name.as_str()));
}

#[test]
fn peers_ingress_gateways_and_the_ruling_control_plane_are_held() {
    let (mut red, _) = red_and_green();
    let later = json!({
        "kind": "ServiceMeshControlPlane",
        "metadata": {"name": "later", "namespace": "red-mesh-system"},
        "spec": {},
    });
    red.apply_json(later);
    let plan = red.plan();
    let held = &plan.withdrawal.finalizers;
    assert!(held.peers[&green_mesh()]);
    let at = |name: &str| ObjectKey::new("red-mesh-system", name);
    assert!(held.services[&at("ingress-green-mesh")]);
    assert!(!held.services[&at("egress-green-mesh")]);
    assert!(held.control_planes[&at("red-mesh")]);
    assert!(!held.control_planes[&at("later")]);
    let finalizers = |name: &str| plan.gateways[name].service.metadata.finalizers.clone();
    assert_eq!(
        finalizers("ingress-green-mesh"),
        Some(vec![FINALIZER.to_owned()])
    );
    assert_eq!(finalizers("egress-green-mesh"), None);
}

#[test]
fn a_deleted_peer_first_hears_that_its_exports_are_gone() {
    let red = red_without_green();
    let plan = red.plan();
    assert_eq!(step(&plan), Step::Exports);
    assert_eq!(withdrawn(&plan).0, "WithdrawingExports");
    assert!(plan.exports["green-mesh"].is_empty());
    assert!(!plan.withdrawn["green-mesh"].is_empty());
    // What is on its way still arrives, and nothing is asked of the peer any more.
    assert!(knows_green(&plan));
    assert!(!plan.discovery.contains_key("green-mesh"));
    assert!(plan.withdrawal.finalizers.peers[&green_mesh()]);
    assert_eq!(plan.wake_at.unwrap(), now() + SignedDuration::from_secs(2));
}

#[test]
fn a_peer_that_was_told_loses_its_names_and_its_root_everywhere_before_it_goes() {
    let mut red = red_without_green();
    seen(&mut red, |f| f.told = Some(now()));
    assert_eq!(step(&red.plan()), Step::Exports);
    wait(&mut red, 0.25);

    // What is open may go on, for as long as the root is there.
    let plan = red.plan();
    assert_eq!(step(&plan), Step::Connections);
    assert_eq!(withdrawn(&plan).0, "DrainingConnections");
    assert!(!knows_green(&plan));
    assert!(!plan.exports.contains_key("green-mesh"));
    assert!(!plan.discovery_clients.contains_key("green-mesh"));
    assert!(trusts_green(&plan));
    seen(&mut red, |f| f.let_go = Some("of another one".into()));
    wait(&mut red, 4.9);
    assert_eq!(step(&red.plan()), Step::Connections);
    wait(&mut red, 0.1);

    let plan = red.plan();
    assert_eq!(step(&plan), Step::Names);
    assert_eq!(withdrawn(&plan).0, "RemovingNames");
    assert!(!knows_green(&plan));
    assert!(!trusts_green(&plan));

    seen(&mut red, |f| f.let_go = Some("of another one".into()));
    assert_eq!(step(&red.plan()), Step::Names);
    seen(&mut red, |f| f.let_go = Some(UID.into()));
    let plan = red.plan();
    assert_eq!(step(&plan), Step::Trust);
    assert_eq!(withdrawn(&plan).0, "RemovingTrust");
    assert!(plan.withdrawal.finalizers.peers[&green_mesh()]);

    seen(&mut red, |f| f.forgotten = Some(UID.into()));
    let plan = red.plan();
    assert_eq!(step(&plan), Step::Done);
    assert_eq!(withdrawn(&plan).0, "Withdrawn");
    assert!(!plan.withdrawal.finalizers.peers[&green_mesh()]);
}

#[test]
fn a_peer_and_gateways_that_are_away_hold_nothing_up_for_long() {
    let mut red = red_without_green();
    red.world.observed.gateways = Default::default();
    let (_, said) = withdrawn(&red.plan());
    assert!(
        said.ends_with("told when they are again: ingress-green-mesh, egress-green-mesh"),
        "{said}"
    );
    let mut steps = Vec::new();
    while let Some(at) = red.plan().withdrawal.next_change {
        steps.push((step(&red.plan()), at.duration_since(now()).as_secs()));
        red.world.now = at;
    }
    assert_eq!(
        steps,
        [
            (Step::Exports, 2),
            (Step::Connections, 7),
            (Step::Names, 10),
            (Step::Trust, 13)
        ]
    );
    assert_eq!(step(&red.plan()), Step::Done);
}

#[test]
fn a_control_plane_that_starts_in_the_middle_gives_watchers_their_time_again() {
    let mut red = red_without_green();
    wait(&mut red, 3600.0);
    red.world.mesh.started = red.world.now;
    let plan = red.plan();
    assert_eq!(step(&plan), Step::Exports);
    assert!(plan.exports["green-mesh"].is_empty());
    wait(&mut red, 2.0);
    assert_eq!(step(&red.plan()), Step::Connections);
}

#[test]
fn the_drain_period_of_a_peer_that_goes_can_be_ended_and_a_peer_in_doubt_has_none() {
    let mut red = red_without_green();
    let drain = |red: &mut Lab, period: &str| {
        let setting = ("meshfed.io/drain-period".to_owned(), period.to_owned());
        red.edit_peer("green-mesh", |peer| {
            peer.metadata.annotations = Some([setting].into());
        });
    };
    drain(&mut red, "1h");
    wait(&mut red, 3601.0);
    let plan = red.plan();
    assert_eq!(step(&plan), Step::Connections);
    assert!(trusts_green(&plan));
    let end = now() + SignedDuration::from_secs(3602);
    assert_eq!(plan.withdrawal.next_change, Some(end));

    drain(&mut red, "0s");
    assert_eq!(step(&red.plan()), Step::Done);
    assert!(!trusts_green(&red.plan()));

    drain(&mut red, "1h");
    assert_eq!(step(&red.plan()), Step::Connections);
    red.edit_peer("green-mesh", |peer| peer.spec.security.client_id = None);
    assert_eq!(step(&red.plan()), Step::Done);
    assert!(!trusts_green(&red.plan()));
}

#[test]
fn a_closed_peer_has_no_root_at_any_gateway_and_a_moved_one_at_the_gateway_that_it_left() {
    let (mut red, _) = red_and_green();
    red.edit_peer("green-mesh", |peer| {
        peer.spec.gateways.ingress.name = "ingress-blue-mesh".into();
    });
    let plan = red.plan();
    let left = crate::lab::gateway(&plan, "ingress-green-mesh");
    assert!(left.trust.contains_key("peer/green-mesh"));
    red.edit_peer("green-mesh", |peer| peer.spec.security.client_id = None);
    assert!(!trusts_green(&red.plan()));
}

#[test]
fn a_peer_that_was_never_connected_has_nobody_to_tell() {
    let mut red = red_without_green();
    red.edit_peer("green-mesh", |peer| peer.spec.security.client_id = None);
    assert_eq!(step(&red.plan()), Step::Names);
    let mut red = red_without_green();
    red.edit_peer("green-mesh", |peer| {
        peer.spec.gateways.ingress.name = "nowhere".into();
    });
    assert_eq!(step(&red.plan()), Step::Connections);
    // Without a control plane nothing is held for ever either.
    let mut red = red_without_green();
    red.delete(
        |r| &mut r.control_planes,
        &ObjectKey::new("red-mesh-system", "red-mesh"),
    );
    assert_eq!(step(&red.plan()), Step::Names);
    wait(&mut red, 8.0);
    assert_eq!(step(&red.plan()), Step::Done);
}

#[test]
fn an_ingress_gateway_that_leaves_stays_until_its_peers_have_heard() {
    let (mut red, _) = red_and_green();
    let before = red.plan();
    leave_gateways(&mut red, &["egress-green-mesh", "ingress-blue-mesh"]);
    let plan = red.plan();
    let gateway = &plan.gateways["ingress-green-mesh"];
    assert!(gateway.going);
    assert_eq!(
        crate::lab::gateway(&plan, "ingress-green-mesh"),
        crate::lab::gateway(&before, "ingress-green-mesh")
    );
    assert!(plan.exports["green-mesh"].is_empty());
    assert!(!plan.withdrawn["green-mesh"].is_empty());
    assert!(plan.discovery.contains_key("green-mesh"));
    let status = &plan.statuses.peers[&green_mesh()];
    assert_eq!(status.conditions[0].reason.as_deref(), Some("GatewayGoing"));
    let key = ObjectKey::new("red-mesh-system", "ingress-green-mesh");
    assert!(plan.withdrawal.finalizers.services[&key]);

    // Told: it goes, and so does the way in.
    seen(&mut red, |f| f.told = Some(now()));
    wait(&mut red, 0.25);
    assert!(!red.plan().withdrawal.finalizers.services[&key]);
    edit_gateway(&mut red, "ingress-green-mesh", |s| {
        s.metadata.finalizers = None;
        going(&mut s.metadata);
    });
    let plan = red.plan();
    assert!(!plan.gateways.contains_key("ingress-green-mesh"));
    assert!(!plan.exports.contains_key("green-mesh"));
    let status = &plan.statuses.peers[&green_mesh()];
    assert_eq!(
        status.conditions[0].reason.as_deref(),
        Some("GatewayMissing")
    );
}

#[test]
fn a_gateway_whose_peer_does_not_answer_goes_after_two_seconds() {
    let (mut red, _) = red_and_green();
    leave_gateways(&mut red, &["egress-green-mesh"]);
    edit_gateway(&mut red, "ingress-green-mesh", |s| going(&mut s.metadata));
    let key = ObjectKey::new("red-mesh-system", "ingress-green-mesh");
    let plan = red.plan();
    assert!(plan.withdrawal.finalizers.services[&key]);
    assert_eq!(
        plan.withdrawal.next_change,
        Some(now() + SignedDuration::from_secs(2))
    );
    wait(&mut red, 2.0);
    assert!(!red.plan().withdrawal.finalizers.services[&key]);
}

#[test]
fn a_gateway_without_peers_and_an_egress_gateway_go_at_once() {
    let (mut red, _) = red_and_green();
    leave_gateways(&mut red, &["ingress-green-mesh", "egress-blue-mesh"]);
    let plan = red.plan();
    assert!(!plan.gateways.contains_key("egress-green-mesh"));
    let key = ObjectKey::new("red-mesh-system", "ingress-blue-mesh");
    assert!(!plan.withdrawal.finalizers.services[&key]);
    assert!(!plan.exports["green-mesh"].is_empty());
}

#[test]
fn a_peer_that_moves_to_another_gateway_keeps_its_exports() {
    let (mut red, _) = red_and_green();
    let names = |plan: &Plan| -> Vec<String> {
        let list = plan.exports["green-mesh"].values();
        list.map(|s| s.shown().host.to_string()).collect()
    };
    let before = names(&red.plan());
    leave_gateways(&mut red, &["ingress-blue-mesh", "egress-green-mesh"]);
    red.edit_peer("green-mesh", |peer| {
        peer.spec.gateways.ingress.name = "ingress-blue-mesh".into();
    });
    let plan = red.plan();
    assert_eq!(names(&plan), before);
    assert!(plan.withdrawn.is_empty());
    assert_eq!(
        plan.discovery_clients["green-mesh"].service_account(),
        "ingress-blue-mesh-service-account"
    );
    let key = ObjectKey::new("red-mesh-system", "ingress-green-mesh");
    assert!(!plan.withdrawal.finalizers.services[&key]);
}

#[test]
fn a_control_plane_that_is_deleted_rules_until_its_gateways_are_gone() {
    let (mut red, _) = red_and_green();
    let smcp = ObjectKey::new("red-mesh-system", "red-mesh");
    {
        let all = &mut red.world.resources.control_planes;
        let smcp = Arc::make_mut(all.get_mut(&smcp).unwrap());
        smcp.metadata.finalizers = Some(vec![FINALIZER.into()]);
        going(&mut smcp.metadata);
    }
    let plan = red.plan();
    assert_eq!(plan.control_plane.as_ref(), Some(&smcp));
    assert_eq!(plan.trust_domain.as_str(), "red-mesh.local");
    assert!(plan.gateways.values().all(|gateway| gateway.going));
    assert!(plan.gateways.contains_key("ingress-green-mesh"));
    assert!(!plan.gateways.contains_key("egress-green-mesh"));
    assert!(plan.exports["green-mesh"].is_empty());
    assert!(plan.withdrawal.finalizers.control_planes[&smcp]);
    let status = &plan.statuses.control_planes[&smcp];
    assert_eq!(status.conditions[0].reason.as_deref(), Some("Deleting"));

    let gateways: Vec<String> = plan.gateways.keys().cloned().collect();
    for name in gateways {
        let key = ObjectKey::new("red-mesh-system", name);
        red.delete(|r| &mut r.services, &key);
    }
    let plan = red.plan();
    assert!(!plan.withdrawal.finalizers.control_planes[&smcp]);
    assert!(plan.exports.is_empty());
}

#[test]
fn a_gateway_service_that_somebody_deletes_is_made_anew_and_takes_nothing_with_it() {
    let (mut red, _) = red_and_green();
    edit_gateway(&mut red, "ingress-green-mesh", |s| going(&mut s.metadata));
    let plan = red.plan();
    let key = ObjectKey::new("red-mesh-system", "ingress-green-mesh");
    assert!(!plan.withdrawal.finalizers.services[&key]);
    assert!(!plan.gateways["ingress-green-mesh"].going);
    assert!(!plan.exports["green-mesh"].is_empty());
}
