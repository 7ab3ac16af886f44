//! What an administrator reads in Ready: what is wrong, and what to do.

use std::sync::Arc;

use meshfed_federation::discovery::client::{
    Action, AnsweredBy, Client, ClientSettings, Failure, RemoteState,
};
use meshfed_federation::moment::Moment;
use meshfed_federation::world::{ObjectKey, PeerState};
use serde_json::json;

use crate::lab::{Lab, now, red_and_green};

fn edit(lab: &mut Lab, peer: &str, edit: impl FnOnce(&mut PeerState)) {
    let peers = &mut lab.world.observed.peers;
    edit(Arc::make_mut(peers.get_mut(peer).unwrap()));
}

/// Status, reason and message of the peer's Ready.
fn ready(lab: &Lab) -> (String, String, String) {
    let plan = lab.plan();
    let condition = plan.statuses.peers.values().next().unwrap().conditions[0].clone();
    assert_eq!(condition.type_, "Ready");
    (
        condition.status,
        condition.reason.unwrap(),
        condition.message.unwrap(),
    )
}

#[test]
fn a_peer_that_is_connected_both_ways_is_ready() {
    let (red, _) = red_and_green();
    assert_eq!(
        ready(&red),
        (
            "True".into(),
            "Connected".into(),
            "both meshes watch each other's exports".into()
        )
    );
}

#[test]
fn a_peer_that_does_not_watch_us_is_connected_one_way_and_the_way_in_is_named() {
    for gone in [true, false] {
        let (mut red, _) = red_and_green();
        edit(&mut red, "green-mesh", |state| {
            if gone {
                state.watchers.clear();
            } else {
                state.watchers[0].connected = false;
            }
        });
        let (status, reason, message) = ready(&red);
        assert_eq!(
            (status.as_str(), reason.as_str()),
            ("False", "ConnectedOneWay")
        );
        for part in [
            "lead to our gateway ingress-green-mesh",
            "identity green-mesh.local/ns/green-mesh-system/sa/egress-red-mesh-service-account",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }
}

#[test]
fn a_watch_that_does_not_open_says_how_the_last_attempt_ended_and_what_to_compare() {
    let ours = "red-mesh.local/ns/red-mesh-system/sa/egress-green-mesh-service-account";
    let cases: [(Option<&str>, &[&str]); 7] = [
        (None, &["is not open yet; the peer watches ours"]),
        (
            Some("400 Bad Request"),
            &[
                "400 Bad Request",
                "a ServiceMeshPeer for it is missing there",
            ],
        ),
        (Some("403 Forbidden"), &["403 Forbidden", "clientID", ours]),
        (Some("404 Not Found"), &["404 Not Found", ours]),
        (
            Some("503 Service Unavailable"),
            &[
                "503 Service Unavailable",
                "egress-green-mesh",
                "127.64.2.10 port 8188",
                "trustDomain and roots",
            ],
        ),
        (
            Some("TLS with the egress gateway: wrong_trust_domain"),
            &[
                "our own gateway egress-green-mesh does not prove to be \
                 red-mesh.local/ns/red-mesh-system/sa/egress-green-mesh-service-account",
                "its log says why",
            ],
        ),
        (
            Some("egress gateway: Connection refused"),
            &["is not open: egress gateway: Connection refused"],
        ),
    ];
    for (last, parts) in cases {
        let (mut red, _) = red_and_green();
        edit(&mut red, "green-mesh", |state| {
            let remote: &mut RemoteState = Arc::make_mut(&mut state.remote);
            remote.watch.connected = false;
            remote.watch.last_disconnect_status = last.map(str::to_owned);
            state.watchers[0].last_full_sync = Some(now());
        });
        let (status, reason, message) = ready(&red);
        assert_eq!(
            (status.as_str(), reason.as_str()),
            ("False", "NotConnected")
        );
        for part in parts {
            assert!(message.contains(part), "{last:?}: {message}");
        }
    }
}

#[test]
fn what_our_gateway_says_of_the_way_to_the_peer_is_told_with_the_fields_to_compare() {
    let cases = [
        (
            "upstream connect",
            "reaches nobody at 127.64.2.10 port 8188; compare spec.remote",
        ),
        (
            "upstream timeout",
            "reaches nobody at 127.64.2.10 port 8188; compare spec.remote",
        ),
        (
            "unknown ca",
            "does not trust who answers at 127.64.2.10 port 8188; compare spec.security",
        ),
        ("wrong trust domain", "does not trust who answers at"),
        (
            "peer alert",
            "does not trust our gateway egress-green-mesh; its ServiceMeshPeer",
        ),
        ("upstream reset", "one of the two does not trust the other"),
    ];
    for (says, part) in cases {
        let by = AnsweredBy::Egress;
        let (mut red, _) = red_and_green();
        edit(&mut red, "green-mesh", |state| {
            let remote: &mut RemoteState = Arc::make_mut(&mut state.remote);
            remote.watch.connected = false;
            remote.watch.last_disconnect_cause = Some(says.to_owned());
            remote.watch.last_disconnect_by = by;
        });
        let (_, reason, message) = ready(&red);
        assert_eq!(reason, "NotConnected");
        let told = format!("503 Service Unavailable ({says}): ");
        assert!(
            message.contains(&told) && message.contains(part),
            "{message}"
        );
    }
}

#[test]
fn what_the_peers_gateway_says_of_its_control_plane_is_no_fault_of_the_way_there() {
    let theirs = "the peer's ingress gateway at 127.64.2.10 port 8188 answers, and gets nothing from its \
                  own control plane";
    let either = "or the peer's ingress gateway answers there, and its control plane is away";
    let cases = [
        (
            AnsweredBy::Peer,
            Some("upstream connect"),
            theirs,
            "Compare",
        ),
        (
            AnsweredBy::Peer,
            Some("upstream timeout"),
            theirs,
            "spec.remote",
        ),
        (
            AnsweredBy::Peer,
            Some("unknown ca"),
            theirs,
            "spec.security",
        ),
        (AnsweredBy::Peer, None, theirs, "spec.remote"),
        // Our egress gateway is a stock Envoy.
        (
            AnsweredBy::Unknown,
            Some("upstream connect"),
            either,
            "reaches nobody",
        ),
        (AnsweredBy::Unknown, None, either, "reaches nobody"),
    ];
    for (by, says, part, never) in cases {
        let (mut red, _) = red_and_green();
        edit(&mut red, "green-mesh", |state| {
            let remote: &mut RemoteState = Arc::make_mut(&mut state.remote);
            remote.watch.connected = false;
            remote.watch.last_disconnect_cause = says.map(str::to_owned);
            remote.watch.last_disconnect_by = by;
        });
        let (_, reason, message) = ready(&red);
        assert_eq!(reason, "NotConnected");
        assert!(
            message.contains(part) && !message.contains(never),
            "{message}"
        );
    }
}

#[test]
fn what_a_gateway_said_is_kept_until_the_next_attempt_ends() {
    let mut client = Client::new(ClientSettings::default(), 1, RemoteState::default());
    let mut elapsed = std::time::Duration::ZERO;
    let mut attempt = |failure: Failure| {
        let now = Moment::after(crate::lab::now(), elapsed);
        let id = client
            .tick(now)
            .into_iter()
            .find_map(|action| match action {
                Action::OpenWatch(id) => Some(id),
                _ => None,
            });
        client.watch_closed(id.unwrap(), Some(&failure), now);
        elapsed += std::time::Duration::from_secs(120);
        let watch = &client.state().watch;
        let (status, cause) = (&watch.last_disconnect_status, &watch.last_disconnect_cause);
        let by = matches!(failure, Failure::Gateway { .. }).then_some(AnsweredBy::Peer);
        assert_eq!(watch.last_disconnect_by, by.unwrap_or_default());
        (status.clone().unwrap(), cause.clone())
    };
    let gateway = |says: &str| Failure::Gateway {
        code: 503,
        reason: "Service Unavailable".to_owned(),
        says: says.to_owned(),
        by: AnsweredBy::Peer,
    };
    let status = "503 Service Unavailable".to_owned();
    let said = Some("unknown ca".to_owned());
    assert_eq!(attempt(gateway("unknown ca")), (status.clone(), said));
    assert_eq!(attempt(gateway("")), (status, None));
    attempt(gateway("unknown ca"));
    let refused = Failure::Status(403, "Forbidden".to_owned());
    assert_eq!(attempt(refused), ("403 Forbidden".to_owned(), None));
}

#[test]
fn an_import_set_says_whether_the_peers_exports_are_known() {
    let (_, mut green) = red_and_green();
    let ready = |lab: &Lab| {
        let plan = lab.plan();
        let ready = plan.statuses.imports.values().next().unwrap().conditions[0].clone();
        (ready.reason.unwrap(), ready.message.unwrap())
    };
    let applied = "1 of 2 exported services are imported";
    assert_eq!(ready(&green), ("RulesApplied".into(), applied.into()));
    edit(&mut green, "red-mesh", |state| {
        Arc::make_mut(&mut state.remote).watch.connected = false;
    });
    let last = format!("{applied}; the peer is not connected, this is what it exported last");
    assert_eq!(ready(&green), ("RulesApplied".into(), last));
    green.world.observed.peers.clear();
    assert_eq!(ready(&green).0, "PeerNotHeard");
}

#[test]
fn a_set_without_its_peer_names_the_peer_that_is_missing() {
    let (mut red, mut green) = red_and_green();
    red.delete(
        |r| &mut r.peers,
        &ObjectKey::new("red-mesh-system", "green-mesh"),
    );
    green.delete(
        |r| &mut r.peers,
        &ObjectKey::new("green-mesh-system", "red-mesh"),
    );
    for (status, peer) in [
        (
            serde_json::to_value(red.plan().statuses.exports.values().next()).unwrap(),
            "green-mesh in red-mesh-system",
        ),
        (
            serde_json::to_value(green.plan().statuses.imports.values().next()).unwrap(),
            "red-mesh in green-mesh-system",
        ),
    ] {
        let ready = &status["conditions"][0];
        assert_eq!(ready["reason"], json!("NoPeer"));
        let message = ready["message"].as_str().unwrap();
        assert!(
            message.starts_with(&format!("there is no ServiceMeshPeer {peer}")),
            "{message}"
        );
    }
}

#[test]
fn an_import_by_label_that_was_stored_before_is_named_with_its_field_and_the_way_out() {
    let (_, mut green) = red_and_green();
    green.apply_json(json!({
        "kind": "ImportedServiceSet",
        "metadata": {"name": "red-mesh", "namespace": "green-mesh-system"},
        "spec": {"importRules": [{"type": "LabelSelector", "labelSelector": {"selector": {}}}]},
    }));
    let plan = green.plan();
    let ready = &plan.statuses.imports.values().next().unwrap().conditions[0];
    assert_eq!(ready.reason.as_deref(), Some("InvalidRule"));
    assert_eq!(
        ready.message.as_deref(),
        Some(
            "spec.importRules[0].type: \"LabelSelector\" is no type of these rules; use \
             NameSelector: labels of a peer are not known here; \
             this rule and those after it are not used"
        )
    );
}
