//! Statuses say the same until something changes.

use std::sync::Arc;

use jiff::SignedDuration;
use meshfed_api::Condition;
use meshfed_federation::discovery::client::RemoteError;
use meshfed_federation::observations::Seen;
use meshfed_federation::summary::summary;
use meshfed_federation::world::ObjectKey;
use serde_json::json;

use crate::lab::{Lab, now, red_and_green};

fn reason(lab: &Lab) -> String {
    let plan = lab.plan();
    let status = plan.statuses.peers.values().next().unwrap();
    status.conditions[0].reason.clone().unwrap()
}

#[test]
fn a_stored_status_is_not_written_again() {
    for mut lab in <[Lab; 2]>::from(red_and_green()) {
        let first = lab.plan().statuses;
        lab.keep_statuses();
        lab.world.now = now() + SignedDuration::from_secs(1);
        let again = lab.plan().statuses;
        assert_eq!(
            serde_json::to_string(&first.peers.values().collect::<Vec<_>>()).unwrap(),
            serde_json::to_string(&again.peers.values().collect::<Vec<_>>()).unwrap()
        );
        assert_eq!(again, first);
    }
}

#[test]
fn a_condition_keeps_its_time_until_it_turns_and_those_of_others_stay() {
    let (mut red, _) = red_and_green();
    red.edit_peer("green-mesh", |peer| {
        peer.status = serde_json::from_value(json!({"conditions": [
            {"type": "Ready", "status": "True", "reason": "Other",
             "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "Audited", "status": "True"},
        ]}))
        .unwrap();
    });
    let ready = |lab: &Lab| {
        let conditions = lab
            .plan()
            .statuses
            .peers
            .values()
            .next()
            .unwrap()
            .conditions
            .clone();
        assert_eq!(conditions.last().unwrap().type_, "Audited");
        (
            conditions[0].status.clone(),
            conditions[0]
                .last_transition_time
                .clone()
                .unwrap()
                .0
                .to_string(),
        )
    };
    assert_eq!(ready(&red), ("True".into(), "2020-01-01T00:00:00Z".into()));
    red.edit_peer("green-mesh", |peer| peer.spec.security.client_id = None);
    assert_eq!(ready(&red), ("False".into(), now().to_string()));
}

#[test]
fn a_setting_that_cannot_be_read_is_said_and_nothing_else_changes() {
    let (mut red, _) = red_and_green();
    let settings = |lab: &Lab| {
        let plan = lab.plan();
        let status = plan.statuses.peers.values().next().unwrap();
        let mut conditions = status.conditions.iter();
        let condition = conditions.find(|c| c.type_ == "SettingsUsable").unwrap();
        let said = condition.message.clone().unwrap();
        (condition.status.clone(), said, plan.discovery)
    };
    let (status, _, before) = settings(&red);
    assert_eq!(status, "True");
    let set = |lab: &mut Lab, value: &str| {
        lab.edit_peer("green-mesh", |peer| {
            let annotations = peer.metadata.annotations.get_or_insert_default();
            annotations.insert("meshfed.io/max-services".into(), value.into());
        });
    };
    set(&mut red, "all");
    let (status, said, discovery) = settings(&red);
    assert_eq!(status, "False");
    assert!(
        said.contains("meshfed.io/max-services is \"all\"") && said.contains("the default counts"),
        "{said}"
    );
    assert_eq!(discovery, before);
    set(&mut red, "7");
    let (status, _, discovery) = settings(&red);
    assert_eq!(status, "True");
    assert_eq!(discovery["green-mesh"].settings.max_services, 7);
    red.edit_peer("green-mesh", |peer| {
        let annotations = peer.metadata.annotations.get_or_insert_default();
        annotations.insert("meshfed.io/bogus".into(), "1".into());
    });
    let (_, said, _) = settings(&red);
    let expected = "the annotation meshfed.io/bogus is no setting of a peer and does nothing";
    assert_eq!(said, expected, "a name that nobody knows has no default");
}

#[test]
fn a_watch_without_contact_for_two_resync_periods_is_not_connected() {
    let (mut red, _) = red_and_green();
    assert_eq!(reason(&red), "Connected");
    let wake_at = red.plan().wake_at.unwrap();
    assert_eq!(wake_at, "2027-10-05T13:07:43.5Z".parse().unwrap());
    red.world.now = wake_at;
    assert_eq!(reason(&red), "NotConnected");
    let status = red.plan().statuses.peers.values().next().unwrap().clone();
    let entry = &status.discovery_status.inactive[0];
    assert!(!entry.watch.connected && !entry.remotes[0].connected);
    let said = status.conditions[0].message.clone().unwrap();
    let begin = "the watch of the peer's exports is open, and yet nothing was heard of the peer \
                 within two resync periods of 60s, no event and no list; it was last heard \
                 2027-10-05T13:05:43Z";
    assert!(said.starts_with(begin), "{said}");
    assert!(!said.contains("503"), "how an earlier one ended: {said}");
    assert!(!said.contains("watches ours"), "{said}");
}

#[test]
fn an_open_watch_of_a_peer_counts_while_it_asks_or_is_heard() {
    let ago = |seconds| now() - SignedDuration::from_secs(seconds);
    let (mut red, _) = red_and_green();
    let mut see = |contact: i64, asked: i64, period: &str| {
        red.edit_peer("green-mesh", |peer| {
            let annotations = peer.metadata.annotations.get_or_insert_default();
            annotations.insert("meshfed.io/resync-period".into(), period.into());
        });
        red.edit_remote("green-mesh", |remote| {
            remote.last_contact = Some(ago(contact))
        });
        let state = red.world.observed.peers.get_mut("green-mesh").unwrap();
        let watcher = &mut Arc::make_mut(state).watchers[0];
        (watcher.last_connected, watcher.last_full_sync) = (None, Some(ago(asked)));
        let plan = red.plan();
        let status = plan.statuses.peers.values().next().unwrap();
        let entries = &status.discovery_status;
        let entry = entries.active.iter().chain(&entries.inactive).next();
        let told = entry.unwrap().remotes[0].connected;
        let ready = status.conditions[0].message.clone().unwrap();
        let seen = Seen::from_statuses(&red.world.resources, "red-mesh-system", now());
        let shown = summary(&red.world, &plan, &seen).peers[0].watchers[0].connected;
        assert_eq!(shown, told);
        if !told {
            assert!(!ready.contains("watches ours"), "{ready}");
        }
        (told, plan.wake_at)
    };
    // It is heard, however rarely it asks, as its own setting may be.
    assert_eq!(see(30, 600, "60s"), (true, Some(ago(-90))));
    // It is not heard: what it asks for counts for two periods, of a minute at the least.
    assert_eq!(see(600, 119, "60s"), (true, Some(ago(-1))));
    assert!(!see(600, 120, "60s").0);
    assert!(see(600, 119, "5s").0);
    assert!(see(600, 599, "5m").0);
    assert!(!see(600, 600, "5m").0);
    // A clock that was wrong told it.
    assert!(!see(600, -60, "60s").0);
}

#[test]
fn what_is_wrong_with_a_peer_is_said() {
    let (mut red, _) = red_and_green();
    red.edit_remote("green-mesh", |r| r.error = Some(RemoteError::SuddenlyEmpty));
    assert_eq!(reason(&red), "SuddenlyEmpty");
    red.edit_remote("green-mesh", |r| {
        r.error = None;
        r.watch.error = Some(RemoteError::TooManyEvents);
    });
    assert_eq!(reason(&red), "TooManyEvents");
    red.edit_remote("green-mesh", |r| {
        r.watch.error = Some(RemoteError::SilentWatch);
    });
    let plan = red.plan();
    let ready = &plan.statuses.peers.values().next().unwrap().conditions[0];
    assert_eq!(ready.reason.as_deref(), Some("SilentWatch"));
    let message = ready.message.as_deref().unwrap();
    assert!(!message.contains("still in use"), "its list is: {message}");
    red.edit_remote("green-mesh", |r| r.withdrawn = true);
    assert_eq!(reason(&red), "UnknownToPeer");
    let (mut red, _) = red_and_green();
    let gateways = &mut red.world.observed.gateways;
    gateways.remove("egress-green-mesh");
    assert_eq!(reason(&red), "GatewayNotReady");
    let plan = red.plan();
    let smcp = plan.statuses.control_planes.values().next().unwrap();
    assert_eq!(smcp.annotations["readyComponentCount"], "5/6");
    assert_eq!(smcp.readiness.components.pending, ["egress-green-mesh"]);
}

#[test]
fn a_rule_that_cannot_be_read_is_named_in_the_set() {
    let (mut red, mut green) = red_and_green();
    red.apply_json(json!({
        "kind": "ExportedServiceSet",
        "metadata": {"name": "green-mesh", "namespace": "red-mesh-system"},
        "spec": {"exportRules": [{"type": "Everything"}]},
    }));
    let plan = red.plan();
    let ready = &plan.statuses.exports.values().next().unwrap().conditions[0];
    assert_eq!(ready.reason.as_deref(), Some("InvalidRule"));
    assert!(
        ready
            .message
            .as_ref()
            .unwrap()
            .starts_with("spec.exportRules[0].type: ")
    );
    green.apply_json(json!({
        "kind": "ImportedServiceSet",
        "metadata": {"name": "red-mesh", "namespace": "green-mesh-system"},
        "spec": {"importRules": [{"type": "NameSelector", "importAsLocal": true, "nameSelector": {}}]},
    }));
    let plan = green.plan();
    let status = plan.statuses.imports.values().next().unwrap();
    assert_eq!(status.conditions[0].reason.as_deref(), Some("InvalidRule"));
    assert_eq!(status.imported_services.len(), 2);
    assert!(
        status
            .imported_services
            .iter()
            .all(|s| s.local_service.hostname.is_empty())
    );
}

#[test]
fn a_status_stays_below_the_size_of_an_object() {
    let mut red = Lab::of_examples("red");
    for i in 0..6000 {
        red.service(
            "red-mesh-bookinfo",
            &format!("{}-{i}", "s".repeat(50)),
            json!({}),
        );
    }
    red.apply_json(json!({
        "kind": "ExportedServiceSet",
        "metadata": {"name": "green-mesh", "namespace": "red-mesh-system"},
        "spec": {"exportRules": [{"type": "NameSelector", "nameSelector": {}}]},
    }));
    let plan = red.plan();
    let status = plan.statuses.exports.values().next().unwrap();
    assert_eq!(plan.exports["green-mesh"].len(), 6004);
    assert!(serde_json::to_string(status).unwrap().len() < 1 << 20);
    let listed = &status.conditions[1];
    assert_eq!(listed.reason.as_deref(), Some("TooMany"));
    let left_out = 6004 - status.exported_services.len();
    assert!(
        listed
            .message
            .as_ref()
            .unwrap()
            .starts_with(&left_out.to_string())
    );
}

#[test]
fn members_that_do_not_exist_yet_are_pending() {
    let mut red = Lab::of_examples("red");
    red.apply_json(json!({
        "kind": "ServiceMeshMemberRoll",
        "metadata": {"name": "default", "namespace": "red-mesh-system"},
        "spec": {"members": ["red-mesh-bookinfo", "later"]},
    }));
    let roll = |lab: &Lab| {
        lab.plan()
            .statuses
            .member_rolls
            .values()
            .next()
            .unwrap()
            .clone()
    };
    let before = roll(&red);
    assert_eq!(before.annotations["configuredMemberCount"], "1/2");
    assert_eq!(before.pending_members, ["later"]);
    assert_eq!(before.conditions[0].status, "False");
    red.namespace("later");
    let after = roll(&red);
    assert_eq!(after.configured_members, ["later", "red-mesh-bookinfo"]);
    assert_eq!(after.conditions[0].status, "True");
}

#[test]
fn without_a_control_plane_members_wait_for_that_and_not_for_namespaces_that_are_there() {
    let mut red = Lab::of_examples("red");
    red.apply_json(json!({
        "kind": "ServiceMeshMember",
        "metadata": {"name": "default", "namespace": "red-mesh-bookinfo"},
        "spec": {"controlPlaneRef": {"name": "red-mesh", "namespace": "red-mesh-system"}},
    }));
    let ready = |lab: &Lab| {
        let statuses = lab.plan().statuses;
        let roll = statuses.member_rolls.values().next().unwrap();
        let member = statuses.members.values().next().unwrap();
        assert_eq!(
            roll.pending_members.len() + roll.configured_members.len(),
            1
        );
        [&roll.conditions[0], &member.conditions[0]]
            .map(|c| (c.reason.clone().unwrap(), c.message.clone().unwrap()))
    };
    assert_eq!(ready(&red).map(|(reason, _)| reason), ["Configured"; 2]);
    let smcp = ObjectKey::new("red-mesh-system", "red-mesh");
    red.delete(|r| &mut r.control_planes, &smcp);
    for (reason, message) in ready(&red) {
        assert_eq!(reason, "NoControlPlane");
        assert!(
            message.starts_with("there is no ServiceMeshControlPlane in red-mesh-system"),
            "{message}"
        );
    }
}

#[test]
fn only_the_oldest_control_plane_of_the_system_namespace_rules() {
    let mut red = Lab::of_examples("red");
    for (name, namespace) in [
        ("later", "red-mesh-system"),
        ("elsewhere", "red-mesh-bookinfo"),
    ] {
        red.apply_json(json!({
            "kind": "ServiceMeshControlPlane",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"security": {"trust": {"domain": "other.local"}}},
        }));
    }
    let plan = red.plan();
    assert_eq!(
        plan.control_plane,
        Some(ObjectKey::new("red-mesh-system", "red-mesh"))
    );
    assert_eq!(plan.trust_domain.as_str(), "red-mesh.local");
    let reason = |namespace: &str, name: &str| {
        let status = &plan.statuses.control_planes[&ObjectKey::new(namespace, name)];
        status.conditions[0].reason.clone().unwrap()
    };
    assert_eq!(reason("red-mesh-system", "later"), "NotTheOldest");
    assert_eq!(
        reason("red-mesh-bookinfo", "elsewhere"),
        "NotInSystemNamespace"
    );
}

/// Says how many entries there are, and of them how many are listed.
fn all_listed(conditions: &[Condition]) -> (String, String, usize) {
    let condition = conditions.iter().find(|c| c.type_ == "AllListed").unwrap();
    let message = condition.message.clone().unwrap();
    let left_out = message.split(' ').next().unwrap().parse().unwrap_or(0);
    let reason = condition.reason.clone().unwrap();
    (condition.status.clone(), reason, left_out)
}

fn assert_bounded(
    status: &impl serde::Serialize,
    conditions: &[Condition],
    listed: usize,
    all: usize,
) {
    let bytes = serde_json::to_vec(status).unwrap().len();
    assert!(bytes < 1 << 20, "{bytes}");
    assert!(bytes > 1 << 19, "there is place for more: {bytes}");
    let expected = ("False".to_owned(), "TooMany".to_owned(), all - listed);
    assert_eq!(all_listed(conditions), expected);
}

#[test]
fn a_status_stays_below_1_mib_and_counts_what_it_does_not_list() {
    const MANY: usize = 6000;
    let (mut red, mut green) = red_and_green();
    let name = |n: usize| format!("{n:04}{}", "x".repeat(59));
    for n in 0..MANY {
        red.service("red-mesh-bookinfo", &name(n), json!({}));
        red.namespace(&name(n));
    }
    red.apply_json(json!({
        "kind": "ExportedServiceSet",
        "metadata": {"name": "green-mesh", "namespace": "red-mesh-system"},
        "spec": {"exportRules": [{"type": "NameSelector",
            "nameSelector": {"namespace": "red-mesh-bookinfo"}}]},
    }));
    red.apply_json(json!({
        "kind": "ServiceMeshMemberRoll",
        "metadata": {"name": "default", "namespace": "red-mesh-system"},
        "spec": {"members": ["*"]},
    }));
    let statuses = red.plan().statuses;
    let exports = statuses.exports.values().next().unwrap();
    let list = red.exports_to("green-mesh");
    assert!(list.services.len() >= MANY);
    let listed = exports.exported_services.len();
    assert_bounded(exports, &exports.conditions, listed, list.services.len());
    let roll = statuses.member_rolls.values().next().unwrap();
    let listed = roll.members.len();
    assert_eq!(listed, roll.configured_members.len());
    let (is, of) = roll.annotations["configuredMemberCount"]
        .split_once('/')
        .unwrap();
    assert_eq!(is, of);
    let of: usize = of.parse().unwrap();
    assert!(of >= MANY);
    assert_bounded(roll, &roll.conditions, listed, of);
    green.hears("red-mesh", &list);
    let statuses = green.plan().statuses;
    let imports = statuses.imports.values().next().unwrap();
    let listed = imports.imported_services.len();
    assert_bounded(imports, &imports.conditions, listed, list.services.len());

    let (red, _) = red_and_green();
    let exports = red.plan().statuses.exports.values().next().unwrap().clone();
    let complete = ("True".to_owned(), "Complete".to_owned(), 0);
    assert_eq!(all_listed(&exports.conditions), complete);
}
