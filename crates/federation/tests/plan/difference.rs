//! What two states of a mesh share differently.

use std::collections::BTreeSet;

use meshfed_federation::difference::{Difference, Sharing};
use proptest::prelude::*;
use serde_json::json;

use crate::lab::{Lab, going, moved_to, red_and_green, root_of};
use crate::properties::{Pick, lab, pick, red, services};

fn sharing(lab: &Lab) -> Sharing {
    Sharing::of(&lab.world, &lab.plan())
}

/// The difference as a person reads it.
fn shown(difference: &Difference) -> Vec<String> {
    let mut all = Vec::new();
    all.extend(difference.exposed.iter().map(|e| format!("+ {e}")));
    all.extend(difference.hidden.iter().map(|e| format!("- {e}")));
    all.extend(difference.imported.iter().map(|e| format!("> {e}")));
    all.extend(difference.dropped.iter().map(|e| format!("< {e}")));
    all.extend(difference.peers.iter().map(|c| format!("~ {c}")));
    all
}

#[test]
fn a_new_name_hides_the_old_one() {
    let (mut red, _) = red_and_green();
    let before = sharing(&red);
    red.apply_json(json!({
        "kind": "ExportedServiceSet",
        "metadata": {"name": "green-mesh", "namespace": "red-mesh-system"},
        "spec": {"exportRules": [
            {"type": "NameSelector", "nameSelector": {"namespace": "red-mesh-bookinfo",
                "name": "ratings", "alias": {"name": "scores"}}},
            {"type": "NameSelector", "nameSelector": {"namespace": "red-mesh-bookinfo", "name": "reviews"}},
        ]},
    }));
    insta::assert_debug_snapshot!(shown(&sharing(&red).since(&before)));
}

#[test]
fn a_port_that_is_added_is_exposed_alone() {
    let (mut red, _) = red_and_green();
    let before = sharing(&red);
    red.edit_service("red-mesh-bookinfo", "ratings", |service| {
        let ports = service.spec.as_mut().unwrap().ports.as_mut().unwrap();
        let mut port = ports[0].clone();
        (port.name, port.port) = (Some("admin".to_owned()), 9090);
        ports.push(port);
    });
    let difference = sharing(&red).since(&before);
    assert_eq!(
        shown(&difference),
        ["+ red-mesh-bookinfo/ratings (port 9090) to green-mesh, as \
             red-ratings.bookinfo.svc.green-mesh-exports.local"]
    );
}

#[test]
fn a_peer_that_becomes_somebody_else_is_a_difference_though_no_name_changes() {
    let (mut red, _) = red_and_green();
    let before = sharing(&red);
    red.edit_peer("green-mesh", |peer| {
        let id = "green-mesh.local/ns/green-mesh-system/sa/another";
        peer.spec.security.client_id = Some(id.to_owned());
    });
    let difference = sharing(&red).since(&before);
    assert!(difference.exposed.is_empty() && difference.hidden.is_empty());
    assert_eq!(
        shown(&difference),
        ["~ green-mesh: spec.security.clientID from \
             green-mesh.local/ns/green-mesh-system/sa/egress-red-mesh-service-account to \
             green-mesh.local/ns/green-mesh-system/sa/another"]
    );
}

#[test]
fn who_we_are_to_a_peer_is_a_difference_when_our_trust_domain_or_gateway_changes() {
    let (mut red, _) = red_and_green();
    let (before, plan, world) = (sharing(&red), red.plan(), red.world.clone());
    red.apply_json(moved_to("red2.local", &red));
    let difference = sharing(&red).since(&before);
    assert_eq!(
        shown(&difference),
        [
            "~ green-mesh: our clientID from \
             red-mesh.local/ns/red-mesh-system/sa/egress-green-mesh-service-account to \
             red2.local/ns/red-mesh-system/sa/egress-green-mesh-service-account",
            "~ green-mesh: our trust domain from red-mesh.local to red2.local"
        ]
    );
    let now = red.plan();
    assert_eq!(
        before.then((&world, &plan), &red.world, &now),
        sharing(&red)
    );

    red.edit_peer("green-mesh", |peer| {
        peer.spec.gateways.egress.name = "another".to_owned();
    });
    let changes = shown(&sharing(&red).since(&before));
    let other = "to red2.local/ns/red-mesh-system/sa/another-service-account";
    assert!(changes.iter().any(|c| c.ends_with(other)), "{changes:?}");

    // A peer that comes has not known us otherwise.
    let (red, _) = red_and_green();
    let new = shown(&sharing(&red).since(&Sharing::default()));
    assert!(!new.iter().any(|c| c.contains("our ")), "{new:?}");
}

#[test]
fn another_root_is_a_difference_by_its_fingerprint() {
    let (mut red, _) = red_and_green();
    let before = sharing(&red);
    red.root_config_map("green-mesh-ca-root-cert", &root_of("blue"));
    let difference = sharing(&red).since(&before);
    let [change] = difference.peers.as_slice() else {
        panic!("{difference:?}");
    };
    assert_eq!(change.what, "roots");
    assert!(change.after.as_ref().unwrap().contains("SHA-256"));
    assert_ne!(change.before, change.after);
}

#[test]
fn a_peer_that_goes_takes_exports_and_imports_with_it() {
    let (mut red, mut green) = red_and_green();
    let (before_red, before_green) = (sharing(&red), sharing(&green));
    red.edit_peer("green-mesh", |peer| going(&mut peer.metadata));
    green.edit_peer("red-mesh", |peer| going(&mut peer.metadata));
    let hidden = sharing(&red).since(&before_red);
    assert_eq!(hidden.hidden.len(), 2, "{hidden:?}");
    let dropped = sharing(&green).since(&before_green);
    assert_eq!(dropped.dropped.len(), 1, "{dropped:?}");
    assert_eq!(dropped.dropped[0].ports, [9080]);
    assert!(dropped.exposed.is_empty() && dropped.imported.is_empty());
}

#[test]
fn a_difference_survives_the_way_through_json() {
    let (red, _) = red_and_green();
    let difference = sharing(&red).since(&Sharing::default());
    let text = serde_json::to_string(&difference).unwrap();
    assert!(text.contains("\"exportedName\""), "{text}");
    let again: Difference = serde_json::from_str(&text).unwrap();
    assert_eq!(again, difference);
}

/// Every name and port that a peer may ask for, from what it is told.
fn told(lab: &Lab) -> BTreeSet<(String, i64)> {
    let plan = lab.plan();
    let services = plan.exports["green-mesh"].values();
    services
        .map(|export| export.shown())
        .flat_map(|s| {
            s.ports
                .iter()
                .map(|p| (s.host.to_string(), p.number.into()))
        })
        .collect()
}

fn entries(difference: &Difference, exposed: bool) -> BTreeSet<(String, i64)> {
    let entries = if exposed {
        &difference.exposed
    } else {
        &difference.hidden
    };
    let ports = |e: &meshfed_federation::difference::Entry<_>| e.ports.clone();
    entries
        .iter()
        .flat_map(|e| {
            let name = e.what.exported_name.clone();
            ports(e).into_iter().map(move |p| (name.clone(), p.into()))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_difference_is_exactly_what_one_peer_is_told_beyond_the_other_time(
        services in (services(), services()),
        picks in (prop::collection::vec(pick(), 0..4), prop::collection::vec(pick(), 0..4)),
    ) {
        let before: (_, &[Pick]) = (&services.0, &picks.0);
        let after: (_, &[Pick]) = (&services.1, &picks.1);
        let (before, after) = (lab(red(before.0, before.1)), lab(red(after.0, after.1)));
        let (old, new) = (sharing(&before), sharing(&after));
        prop_assert!(old.since(&old).is_empty());
        prop_assert!(new.since(&new).is_empty());
        let difference = new.since(&old);
        let (told_before, told_after) = (told(&before), told(&after));
        // The same name for another service is hidden and exposed.
        let exposed = entries(&difference, true);
        let hidden = entries(&difference, false);
        prop_assert!(exposed.is_superset(&told_after.difference(&told_before).cloned().collect()));
        prop_assert!(hidden.is_superset(&told_before.difference(&told_after).cloned().collect()));
        let moved: BTreeSet<_> = exposed.intersection(&hidden).cloned().collect();
        prop_assert_eq!(exposed.len() - moved.len(), told_after.difference(&told_before).count());
        prop_assert_eq!(hidden.len() - moved.len(), told_before.difference(&told_after).count());
        let back = old.since(&new);
        prop_assert_eq!(&back.exposed, &difference.hidden);
        prop_assert_eq!(&back.hidden, &difference.exposed);
    }
}
