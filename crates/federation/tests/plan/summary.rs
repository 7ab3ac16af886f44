//! The mesh on one screen.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::SignedDuration;
use meshfed_federation::discovery::client::RemoteState;
use meshfed_federation::observations::{Observations, Seen};
use meshfed_federation::plan::plan;
use meshfed_federation::summary::summary;
use meshfed_federation::world::Refusals;

use crate::lab::{Lab, now, red_and_green, root_of};

fn seen(lab: &Lab) -> Seen {
    let document = Observations::of(&lab.world, Some(root_of("red")));
    Observations::decode(&document.encode().unwrap()).unwrap()
}

/// The screen, without the length of certificates' lives, which are those of test data.
fn shown(lab: &Lab) -> String {
    summary(&lab.world, &lab.plan(), &seen(lab)).to_string()
}

#[test]
fn a_mesh_that_works() {
    let (red, _) = red_and_green();
    insta::assert_snapshot!(shown(&red));
}

#[test]
fn a_control_plane_that_started_anew_knows_when_a_peer_was_last_heard() {
    let (mut red, _) = red_and_green();
    red.edit_remote("green-mesh", |remote| {
        let heard = now() - SignedDuration::from_mins(3);
        *remote = RemoteState::kept(remote.services.clone(), Some(heard), None);
    });
    let screen = shown(&red);
    assert!(screen.contains("not connected  heard 3m ago"), "{screen}");
    let all = summary(&red.world, &red.plan(), &seen(&red));
    let watch = &serde_json::to_value(&all.peers[0].watch).unwrap();
    assert!(watch["lastFullSync"].is_null());
    let heard = now() - SignedDuration::from_mins(3);
    assert_eq!(watch["lastContact"], heard.to_string());
}

#[test]
fn a_mesh_that_is_not_there_yet() {
    insta::assert_snapshot!(shown(&Lab::empty("red")));
}

#[test]
fn problems_come_first_and_the_worst_of_them_before_the_others() {
    let (mut red, _) = red_and_green();
    red.edit_peer("green-mesh", |peer| peer.spec.security.client_id = None);
    red.world.observed.insert_gateway(
        "egress-green-mesh",
        meshfed_federation::world::GatewayState {
            ready: false,
            refused: Some("no such thing\u{1b}[31m".to_owned()),
        },
    );
    let screen = shown(&red);
    assert!(
        !screen.contains('\u{1b}'),
        "what others say must not reach the terminal as it is"
    );
    insta::assert_snapshot!(screen);
}

#[test]
fn a_sidecar_that_refuses_its_configuration_is_a_problem_also_to_a_tool() {
    let (mut red, _) = red_and_green();
    let words = ("shop/cart-1".to_owned(), "too \u{1b}[31mlarge".to_owned());
    red.world.observed.refusals = Arc::new(Refusals {
        sidecars: 12,
        words: BTreeMap::from([words]),
    });
    let told = seen(&red);
    let world = told.world(red.world.resources.clone(), now());
    let all = summary(&world, &plan(&world), &told);
    let problem = all
        .problems
        .iter()
        .find(|p| p.reason == "ConfigurationRefused");
    let problem = problem.unwrap();
    assert_eq!(problem.about, "smcp/red-mesh");
    assert!(
        problem
            .message
            .ends_with(": shop/cart-1 says \"too \\u{1b}[31mlarge\"; and 11 more"),
        "{}",
        problem.message
    );
}

#[test]
fn a_certificate_that_ends_is_a_problem_before_it_has_ended() {
    let (mut red, _) = red_and_green();
    let plan = red.plan();
    let first = summary(&red.world, &plan, &seen(&red))
        .certificates
        .remove(0);
    let at = |before: SignedDuration| first.not_after - before;
    for (days, reason) in [(20, "CertificateEnds"), (-1, "CertificateEnded")] {
        red.world.now = at(SignedDuration::from_hours(days * 24));
        let all = summary(&red.world, &red.plan(), &seen(&red));
        let own = all.problems.iter().find(|p| p.about == "own root").unwrap();
        assert_eq!(own.reason, reason);
    }
    assert!(now() < first.not_after);
}

#[test]
fn what_is_not_known_is_said() {
    let (red, _) = red_and_green();
    let system = red.system();
    let seen = Seen::from_statuses(&red.world.resources, &system, now());
    let world = seen.world(red.world.resources.clone(), now());
    let all = summary(&world, &red.plan(), &seen);
    assert!(all.to_string().contains("NOT KNOWN"));
    let json = serde_json::to_value(&all).unwrap();
    assert!(
        json["unknown"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    );
}
