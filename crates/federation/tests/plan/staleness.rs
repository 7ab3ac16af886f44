//! What is still believed of a peer, and for how long; and what both ends tell of each other.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use meshfed_federation::difference::by_peers;
use meshfed_federation::discovery::client::RemoteState;
use meshfed_federation::discovery::extension::{Health, Report};
use meshfed_federation::names::ServiceKey;
use meshfed_federation::observations::{Observations, Seen};
use meshfed_federation::plan::Plan;
use meshfed_federation::summary::summary;
use meshfed_federation::world::ObjectKey;
use meshfed_proxy_config::outbound_cluster;
use serde_json::json;

use crate::lab::{Lab, now, red_and_green, sidecar};

const IMPORTED: &str = "ratings.bookinfo.svc.red-mesh-imports.local";

fn reason(plan: &Plan) -> &str {
    let status = plan.statuses.peers.values().next().unwrap();
    status.conditions[0].reason.as_deref().unwrap()
}

fn imported(plan: &Plan) -> usize {
    let status = plan.statuses.imports.values().next().unwrap();
    let services = status.imported_services.iter();
    services
        .filter(|s| !s.local_service.name.is_empty())
        .count()
}

fn last_heard(green: &mut Lab, at: Timestamp) {
    green.edit_remote("red-mesh", |remote: &mut RemoteState| {
        remote.last_contact = Some(at);
    });
}

fn outlive(green: &mut Lab, value: &str) {
    green.edit_peer("red-mesh", |peer| {
        let annotations = peer.metadata.annotations.get_or_insert_default();
        annotations.insert("meshfed.io/imports-outlive-contact".into(), value.into());
    });
}

fn watch_ended(green: &mut Lab, at: Timestamp) {
    green.edit_remote("red-mesh", |remote: &mut RemoteState| {
        remote.watch.connected = false;
        remote.watch.last_disconnect = Some(at);
    });
}

#[test]
fn imports_outlive_the_contact_for_ever_or_as_long_as_is_set() {
    let (_, mut green) = red_and_green();
    let lost = now() - SignedDuration::from_hours(13);
    last_heard(&mut green, lost - SignedDuration::from_secs(30));
    watch_ended(&mut green, lost);
    assert!(imported(&green.plan()) > 0, "for ever by default");
    outlive(&mut green, "14h");
    let plan = green.plan();
    assert!(imported(&plan) > 0);
    assert_eq!(plan.wake_at, Some(lost + SignedDuration::from_hours(14)));
    outlive(&mut green, "12h");
    let plan = green.plan();
    assert_eq!(imported(&plan), 0);
    assert_eq!(reason(&plan), "ImportsExpired");
    let set = plan.statuses.imports.values().next().unwrap();
    let ready = &set.conditions[0];
    assert_eq!(ready.reason.as_deref(), Some("ImportsExpired"));
    let said = ready.message.as_deref().unwrap();
    let begin = "the 2 services that the peer exported last do not count any more";
    assert!(said.starts_with(begin), "{said}");
    last_heard(&mut green, now());
    assert!(imported(&green.plan()) > 0);
}

#[test]
fn an_idle_peer_that_is_connected_keeps_its_imports_however_short_they_may_outlive_it() {
    let (_, mut green) = red_and_green();
    let ago = |seconds| now() - SignedDuration::from_secs(seconds);
    outlive(&mut green, "0s");
    last_heard(&mut green, ago(119));
    let plan = green.plan();
    assert!(imported(&plan) > 0, "the next question is on its way");
    assert_eq!(reason(&plan), "Connected");
    assert_eq!(plan.wake_at, Some(ago(-1)));
    last_heard(&mut green, ago(120));
    assert_eq!(
        imported(&green.plan()),
        0,
        "an open watch alone is no contact"
    );

    // Each attempt that ends at once is no contact either.
    outlive(&mut green, "10s");
    watch_ended(&mut green, ago(1));
    last_heard(&mut green, ago(129));
    assert!(imported(&green.plan()) > 0);
    last_heard(&mut green, ago(130));
    assert_eq!(imported(&green.plan()), 0);
    last_heard(&mut green, ago(60));
    assert!(imported(&green.plan()) > 0, "the watch ended a second ago");
    watch_ended(&mut green, ago(10));
    assert_eq!(imported(&green.plan()), 0);
}

#[test]
fn imports_that_end_by_silence_are_the_peers_doing_and_by_a_setting_are_not() {
    let (_, mut green) = red_and_green();
    let lost = now() - SignedDuration::from_hours(13);
    last_heard(&mut green, lost);
    watch_ended(&mut green, lost);
    outlive(&mut green, "14h");
    let before = green.world.clone();
    let peers = |after: &Lab| {
        by_peers(&before, &after.world)
            .collect::<Vec<_>>()
            .join(" ")
    };
    green.world.now += SignedDuration::from_mins(59);
    assert_eq!(peers(&green), "");
    green.world.now += SignedDuration::from_mins(1);
    assert_eq!(imported(&green.plan()), 0);
    assert_eq!(peers(&green), "red-mesh");
    // It would have ended before.
    outlive(&mut green, "12h");
    assert_eq!(peers(&green), "");
    outlive(&mut green, "14h");
    green.edit_remote("red-mesh", |remote: &mut RemoteState| {
        remote.services = Arc::default();
    });
    assert_eq!(peers(&green), "red-mesh", "it lists nothing more");
    assert_eq!(by_peers(&green.world, &green.world).count(), 0);
}

#[test]
fn a_control_plane_that_starts_anew_takes_no_import_away_that_lasted_until_its_end() {
    let (_, mut green) = red_and_green();
    let ago = |seconds| now() - SignedDuration::from_secs(seconds);
    let mut restarted = |heard, lost_at| {
        green.world.mesh.started = ago(10);
        green.edit_remote("red-mesh", |remote: &mut RemoteState| {
            *remote = RemoteState::kept(remote.services.clone(), Some(heard), lost_at);
        });
        let mut left = Vec::new();
        for life in ["0s", "30s"] {
            outlive(&mut green, life);
            let plan = green.plan();
            assert_eq!(imported(&plan) == 0, reason(&plan) == "ImportsExpired");
            let expires = plan.wake_at.filter(|at| *at < ago(-3600));
            left.push((imported(&plan) > 0, expires));
        }
        left
    };
    // Nobody knows yet whether the peer is there, however long we were away.
    for heard in [ago(30), ago(36_000)] {
        let known_in = [ago(-110), ago(-140)].map(|at| (true, Some(at)));
        assert_eq!(restarted(heard, None), known_in);
    }
    // The first attempt failed.
    let failed = [(false, None), (true, Some(ago(-25)))];
    assert_eq!(restarted(ago(36_000), Some(ago(5))), failed);
    // It was gone before.
    let gone = [(false, None); 2];
    assert_eq!(restarted(ago(60), Some(ago(40))), gone);
}

#[test]
fn a_control_plane_that_starts_anew_still_says_when_it_was_connected_last() {
    let (_, mut green) = red_and_green();
    green.keep_statuses();
    let watch = |green: &Lab| {
        let plan = green.plan();
        let status = plan.statuses.peers.values().next().unwrap();
        let discovery = &status.discovery_status;
        let mut entries = discovery.active.iter().chain(&discovery.inactive);
        entries.next().unwrap().watch.clone()
    };
    let before = watch(&green);
    assert!(before.last_connected.is_some() && before.last_full_sync.is_some());
    green.edit_remote("red-mesh", |remote: &mut RemoteState| {
        *remote = RemoteState::kept(remote.services.clone(), remote.last_contact, None);
    });
    green.keep_statuses();
    let after = watch(&green);
    assert!(!after.connected);
    assert_eq!(after.last_connected, before.last_connected);
    assert_eq!(after.last_full_sync, before.last_full_sync);
    // Nothing is left of a peer that was forgotten.
    green.edit_remote("red-mesh", |remote: &mut RemoteState| {
        *remote = RemoteState::default()
    });
    assert_eq!(watch(&green).last_full_sync, None);
}

#[test]
fn nothing_is_connected_that_was_not_heard_for_two_resync_periods() {
    let (_, mut green) = red_and_green();
    let is_connected = |green: &Lab| {
        let plan = green.plan();
        let status = plan.statuses.peers.values().next().unwrap().clone();
        let mut pods = status.discovery_status.active.iter();
        let connected = pods.any(|pod| pod.watch.connected);
        assert_eq!(connected, reason(&plan) == "Connected");
        connected
    };
    let ago = |seconds| now() - SignedDuration::from_secs(seconds);
    last_heard(&mut green, ago(119));
    assert!(is_connected(&green));
    assert_eq!(green.plan().wake_at, Some(ago(-1)));
    last_heard(&mut green, ago(120));
    assert!(!is_connected(&green), "an open connection says nothing");
    let plan = green.plan();
    let status = plan.statuses.peers.values().next().unwrap();
    assert_eq!(status.last_contact.as_ref().unwrap().0, ago(120));
}

#[test]
fn a_contact_that_lies_ahead_was_told_by_a_wrong_clock() {
    let (_, mut green) = red_and_green();
    let ahead = now() + SignedDuration::from_hours(1);
    last_heard(&mut green, ahead);
    let plan = green.plan();
    assert_ne!(reason(&plan), "Connected");
    let status = |plan: &Plan| plan.statuses.peers.values().next().unwrap().clone();
    assert_eq!(status(&plan).last_contact, None);
    let until = plan.wake_at.unwrap();
    assert!(until > now() && until < ahead);

    // One that was written to the status does not outlast it either.
    let heard = now() - SignedDuration::from_secs(30);
    last_heard(&mut green, heard);
    let mut wrong = status(&plan);
    wrong.last_contact = Some(Time(ahead));
    green.edit_peer("red-mesh", |peer| peer.status = Some(wrong.clone()));
    let plan = green.plan();
    assert_eq!(status(&plan).last_contact, Some(Time(heard)));
    assert_eq!(reason(&plan), "Connected");
    // The clocks of two instances are never quite the same.
    let soon = now() + SignedDuration::from_secs(2);
    wrong.last_contact = Some(Time(soon));
    green.edit_peer("red-mesh", |peer| peer.status = Some(wrong.clone()));
    assert_eq!(status(&green.plan()).last_contact, Some(Time(soon)));
}

#[test]
fn what_the_other_end_imported_is_shown_with_its_connection() {
    let (mut red, _) = red_and_green();
    let mut state = (*red.world.observed.peers["green-mesh"]).clone();
    state.watchers[0].report = Some(Report {
        imported: 2,
        services: vec![ServiceKey::parse("bookinfo", "red-ratings").unwrap()],
        last_sync: Some(now()),
        error: Some("the peer's list is suddenly empty".to_owned()),
    });
    red.world.observed.insert_peer("green-mesh", state);
    let plan = red.plan();
    let status = plan.statuses.peers.values().next().unwrap();
    let shown = serde_json::to_value(&status.discovery_status.active[0].remotes[0]).unwrap();
    let report = json!({
        "imported": 2,
        "services": ["bookinfo/red-ratings"],
        "lastSync": now().to_string(),
        "error": "the peer's list is suddenly empty",
    });
    assert_eq!(shown["report"], report);

    let observed = Observations::of(&red.world, None);
    let seen = Observations::decode(&observed.encode().unwrap()).unwrap();
    let mut resources = red.world.resources.clone();
    let peer = ObjectKey::new(red.system(), "green-mesh");
    let mut object = (*resources.peers[&peer]).clone();
    object.status = Some(status.clone());
    resources.peers.insert(peer, object.into());
    // By what the control plane tells, and by the status alone.
    for seen in [seen, Seen::from_statuses(&resources, &red.system(), now())] {
        let world = seen.world(resources.clone(), now());
        let all = summary(&world, &plan, &seen);
        assert_eq!(
            serde_json::to_value(&all).unwrap()["peers"][0]["report"],
            report
        );
        let screen = all.to_string();
        assert!(screen.contains("2, 2 imported"), "{screen}");
        assert!(screen.contains("PeerReportsError"), "{screen}");
    }
}

#[test]
fn a_service_whose_last_endpoint_went_in_the_other_mesh_has_nobody_here_either() {
    let (mut red, mut green) = red_and_green();
    let endpoints = |green: &Lab| {
        let config = sidecar(&green.plan(), "bookinfo", "client-v1");
        let imported = outbound_cluster(9080, IMPORTED);
        let all = &config
            .endpoints
            .get(&*imported)
            .expect("the import")
            .localities;
        all.iter().map(|l| l.endpoints.len()).sum::<usize>()
    };
    assert_eq!(endpoints(&green), 1);
    red.apply_json(json!({
        "kind": "EndpointSlice",
        "metadata": {
            "name": "ratings-mesh", "namespace": "red-mesh-bookinfo",
            "labels": {"kubernetes.io/service-name": "ratings"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 9080}],
        "endpoints": [{"addresses": ["127.64.1.20"], "conditions": {"ready": false}}],
    }));
    let list = red.exports_to("green-mesh");
    let ratings = list.services.iter().find(|s| s.name == "red-ratings");
    let gone = Health {
        ready_endpoints: 0,
        capacity: 1,
        draining: false,
    };
    assert_eq!(ratings.unwrap().health, Some(gone));
    green.hears("red-mesh", &list);
    assert_eq!(endpoints(&green), 0);
    assert!(imported(&green.plan()) > 0, "it stays imported");
}
