//! What a tool is told, and that it plans as the control plane does.

use jiff::SignedDuration;
use meshfed_federation::discovery::client::RemoteState;
use meshfed_federation::observations::{Observations, Seen};
use meshfed_federation::plan::plan;

use crate::lab::{now, red_and_green};

#[test]
fn a_tool_that_has_the_document_plans_as_the_control_plane_does() {
    let (red, green) = red_and_green();
    for lab in [red, green] {
        let document = Observations::of(&lab.world, Some("issuer".to_owned()));
        let bytes = document.encode().unwrap();
        let seen = Observations::decode(&bytes).unwrap();
        assert_eq!(seen.issuer.as_deref(), Some("issuer"));
        assert_eq!((seen.at, seen.unknown.len()), (now(), 0));
        let world = seen.world(lab.world.resources.clone(), now());
        assert_eq!(plan(&world), lab.plan());
    }
}

#[test]
fn what_a_peer_sends_wrong_is_told_in_the_same_words() {
    use meshfed_federation::discovery::client::RemoteError;
    let (_, mut green) = red_and_green();
    green.edit_remote("red-mesh", |remote| {
        remote.error = Some(RemoteError::SuddenlyEmpty);
    });
    let bytes = Observations::of(&green.world, None).encode().unwrap();
    let seen = Observations::decode(&bytes).unwrap();
    let world = seen.world(green.world.resources.clone(), now());
    assert_eq!(plan(&world), green.plan());
}

#[test]
fn another_document_is_refused() {
    for text in ["", "[]", "{}", r#"{"at": "yesterday"}"#] {
        assert!(Observations::decode(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn without_the_document_the_statuses_tell_names_and_connections() {
    let (_, mut green) = red_and_green();
    green.keep_statuses();
    let system = green.system();
    let seen = Seen::from_statuses(&green.world.resources, &system, now());
    assert!(!seen.unknown.is_empty());
    let world = seen.world(green.world.resources.clone(), now());
    let (told, whole) = (plan(&world), green.plan());
    assert_eq!(told.trust_domain, whole.trust_domain);
    let peer = whole.statuses.peers.keys().next().unwrap();
    let connected = |plan: &meshfed_federation::plan::Plan| {
        let status = &plan.statuses.peers[peer].discovery_status;
        status
            .active
            .iter()
            .any(|pod| pod.watch.connected && pod.remotes[0].connected)
    };
    assert!(connected(&told) && connected(&whole));
    assert_eq!(told.statuses.imports, whole.statuses.imports);
}

#[test]
fn without_the_document_it_is_said_that_imports_have_ended_by_silence() {
    let (_, mut green) = red_and_green();
    green.edit_peer("red-mesh", |peer| {
        let annotations = peer.metadata.annotations.get_or_insert_default();
        annotations.insert("meshfed.io/imports-outlive-contact".into(), "1h".into());
    });
    for (minutes, expired) in [(61, false), (62, true)] {
        let heard = now() - SignedDuration::from_mins(minutes);
        green.edit_remote("red-mesh", |remote: &mut RemoteState| {
            remote.last_contact = Some(heard);
        });
        green.keep_statuses();
        let seen = Seen::from_statuses(&green.world.resources, &green.system(), now());
        let said = "what the peer red-mesh exports, whose imports have ended by its silence";
        assert_eq!(seen.unknown.iter().any(|what| what == said), expired);
        let told = plan(&seen.world(green.world.resources.clone(), now()));
        let whole = green.plan();
        let [imported, as_told] = [&whole, &told].map(|plan| {
            let mut sets = plan.statuses.imports.values();
            sets.next().unwrap().imported_services.clone()
        });
        assert_eq!(as_told, imported);
        // How many they were is in no status.
        let is_same = told.statuses.imports == whole.statuses.imports;
        assert_eq!(is_same, !expired);
    }
}
