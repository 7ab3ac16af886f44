use k8s_openapi::api::core::v1::{ConfigMap, Service};
use meshfed_federation::plan::plan;
use meshfed_federation::world::{Observed, Resources};
use serde_json::{Value, json};

use super::super::backlog::backlog;
use super::*;
use crate::test_world::mesh;

fn world() -> World {
    World {
        now: "2027-10-05T13:05:43Z".parse().unwrap(),
        mesh: mesh(Timestamp::UNIX_EPOCH),
        resources: Resources::default(),
        observed: Observed::default(),
    }
}

fn with_service(world: &World, name: &str, metadata: Value) -> World {
    let mut world = world.clone();
    let mut service = json!({"metadata": {"namespace": "shop", "name": name}});
    let given = metadata.as_object().unwrap().clone();
    service["metadata"].as_object_mut().unwrap().extend(given);
    let service: Service = serde_json::from_value(service).unwrap();
    let services = &mut world.resources.services;
    services.insert(ObjectKey::new("shop", name), Arc::new(service));
    world
}

fn writes(all: Vec<Write>) -> Writes {
    let writes = Writes::new("system");
    all.into_iter().for_each(|write| writes.tell(write));
    writes
}

/// The `by` of a line about these two worlds.
fn by(before: &World, after: &World, told: Vec<Write>, difference: &Difference) -> Value {
    let authors = authors(before, after, Some(&writes(told)), difference);
    serde_json::to_value(authors).unwrap()
}

fn brief(by: &Value) -> Vec<String> {
    let all = by.as_array().unwrap().iter();
    all.map(|author| {
        let text = |field: &str| author[field].as_str().unwrap_or("-").to_owned();
        format!(
            "{} {} {}",
            text("user"),
            text("verb"),
            text("resourceVersion")
        )
    })
    .collect()
}

fn write(verb: &str, name: &str, revision: u64) -> Write {
    Write {
        user: "anna".to_owned(),
        groups: vec!["system:masters".to_owned()],
        verb: verb.to_owned(),
        kind: "Service".to_owned(),
        object: ObjectKey::new("shop", name),
        uid: "1".to_owned(),
        revision,
    }
}

fn of(user: &str, uid: &str, write: Write) -> Write {
    Write {
        user: user.to_owned(),
        uid: uid.to_owned(),
        ..write
    }
}

fn exposes(service: &str) -> Difference {
    serde_json::from_value(json!({"exposed": [{
        "peer": "green-mesh", "service": service,
        "exportedName": "a.b.svc.green-mesh-exports.local", "ports": [80],
    }]}))
    .unwrap()
}

fn version(uid: &str, revision: u64) -> Value {
    json!({"uid": uid, "resourceVersion": revision.to_string()})
}

fn going(uid: &str, revision: u64) -> Value {
    let mut metadata = version(uid, revision);
    metadata["deletionTimestamp"] = "2027-10-05T13:05:40Z".into();
    metadata
}

#[test]
fn a_change_is_put_down_to_the_writes_that_led_to_it() {
    let before = with_service(&world(), "cart", version("1", 7));
    let after = with_service(&before, "cart", version("1", 9));
    let after = with_service(&after, "other", version("1", 8));
    let told = vec![
        write("patch", "cart", 7),
        write("create", "other", 8),
        write("patch", "cart", 9),
        write("patch", "cart", 10),
    ];
    assert_eq!(
        by(&before, &after, told, &exposes("shop/cart")),
        json!([{
            "user": "anna", "groups": ["system:masters"], "verb": "patch",
            "kind": "Service", "namespace": "shop", "name": "cart", "resourceVersion": "9",
        }])
    );
}

#[test]
fn a_deletion_is_put_down_to_who_asked_for_it() {
    let before = with_service(&world(), "cart", version("1", 7));
    let told = vec![write("delete", "cart", 12)];
    let by = by(&before, &world(), told, &exposes("shop/cart"));
    assert_eq!(brief(&by), ["anna delete 12"]);
}

#[test]
fn the_last_step_of_a_deletion_is_put_down_to_who_asked_for_it() {
    let before = with_service(&world(), "cart", going("1", 14));
    let told = vec![
        write("patch", "cart", 11),
        write("delete", "cart", 12),
        of("bob", "0", write("delete", "cart", 3)),
    ];
    let by = by(&before, &world(), told, &exposes("shop/cart"));
    assert_eq!(brief(&by), ["anna delete 12"]);
}

#[test]
fn who_makes_an_object_anew_is_named_without_those_who_wrote_the_one_before() {
    let old = with_service(&world(), "cart", version("1", 7));
    let new = with_service(&world(), "cart", version("2", 15));
    let told = || {
        vec![
            write("create", "cart", 7),
            write("delete", "cart", 12),
            of("bob", "2", write("create", "cart", 15)),
            of("eve", "2", write("delete", "cart", 20)),
        ]
    };
    let difference = exposes("shop/cart");
    let brief = |before: &World, after: &World| brief(&by(before, after, told(), &difference));
    assert_eq!(brief(&old, &world()), ["anna delete 12"]);
    assert_eq!(brief(&world(), &new), ["bob create 15"]);
    // Both in one.
    assert_eq!(brief(&old, &new), ["anna delete 12", "bob create 15"]);
}

fn with_config_map(world: &World, name: &str, revision: u64) -> World {
    let mut world = world.clone();
    let map = json!({"metadata": {"namespace": "system", "name": name, "uid": "1",
        "resourceVersion": revision.to_string()}});
    let map: ConfigMap = serde_json::from_value(map).unwrap();
    let maps = &mut world.resources.config_maps;
    maps.insert(ObjectKey::new("system", name), Arc::new(map));
    world
}

#[test]
fn of_config_maps_only_the_roots_of_a_peer_count() {
    let mut before = world();
    for (name, security) in [
        ("green-mesh", json!({})),
        (
            "blue-mesh",
            json!({"certificateChain": {"kind": "ConfigMap", "name": "blue"}}),
        ),
    ] {
        let peer = json!({
            "metadata": {"namespace": "system", "name": name},
            "spec": {
                "remote": {"addresses": ["127.0.0.1"]},
                "gateways": {"ingress": {"name": "in"}, "egress": {"name": "out"}},
                "security": security,
            },
        });
        let peer: ServiceMeshPeer = serde_json::from_value(peer).unwrap();
        let peers = &mut before.resources.peers;
        peers.insert(ObjectKey::new("system", name), Arc::new(peer));
    }
    let mut after = before.clone();
    let mut told = Vec::new();
    for (n, name) in [
        "green-mesh-ca-root-cert",
        "blue",
        "blue-mesh-ca-root-cert",
        "notes",
    ]
    .into_iter()
    .enumerate()
    {
        let revision = n as u64 + 1;
        after = with_config_map(&after, name, revision);
        told.push(Write {
            kind: "ConfigMap".to_owned(),
            object: ObjectKey::new("system", name),
            ..write("create", name, revision)
        });
    }
    let by = by(&before, &after, told, &Difference::default());
    let mut named: Vec<&str> = by
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|author| author["name"].as_str())
        .collect();
    named.sort_unstable();
    assert_eq!(named, ["blue", "green-mesh-ca-root-cert"]);
}

fn managed(uid: &str, revision: u64, manager: &str, time: &str) -> Value {
    let mut metadata = version(uid, revision);
    metadata["managedFields"] = json!([
        {"manager": manager, "operation": "Apply", "time": time},
        {"manager": "older", "operation": "Update", "time": "2027-10-05T13:05:00Z"},
        {"manager": "meshfed", "operation": "Update", "time": "2027-10-05T13:05:42Z",
         "subresource": "status"},
    ]);
    metadata
}

#[test]
fn without_a_word_of_the_api_server_the_object_says_who_wrote_it_and_who_deletes_stays_unknown() {
    let difference = exposes("shop/cart");
    let said = |before: &World, after: &World| {
        let all = authors(before, after, None, &difference);
        all.into_iter()
            .map(|author| (author.verb, author.manager, author.user))
            .collect::<Vec<_>>()
    };
    let made = managed("1", 9, "kubectl", "2027-10-05T13:05:40Z");
    let made = with_service(&world(), "cart", made);
    let create = ("create".to_owned(), Some("kubectl".to_owned()), None);
    assert_eq!(said(&world(), &made), [create]);
    // A status is ours.
    let status = managed("1", 10, "kubectl", "2027-10-05T13:05:40Z");
    let status = with_service(&made, "cart", status);
    assert_eq!(said(&made, &status), []);
    let edited = managed("1", 11, "helm", "2027-10-05T13:05:41Z");
    let edited = with_service(&status, "cart", edited);
    let update = ("update".to_owned(), Some("helm".to_owned()), None);
    assert_eq!(said(&status, &edited), [update]);
    let mut leaving = managed("1", 12, "helm", "2027-10-05T13:05:41Z");
    leaving["deletionTimestamp"] = "2027-10-05T13:05:42Z".into();
    let leaving = with_service(&edited, "cart", leaving);
    let delete = ("delete".to_owned(), None, None);
    assert_eq!(said(&edited, &leaving), std::slice::from_ref(&delete));
    assert_eq!(said(&leaving, &world()), [delete]);
}

fn step(world: &World, merged: u64) -> Step {
    let plan = plan(world);
    let world = world.clone();
    Step {
        outcome: Arc::new(Outcome { world, plan }),
        merged,
    }
}

/// The line, or null for none.
fn one(entries: Vec<Entry>) -> Value {
    assert!(entries.len() < 2, "{entries:?}");
    serde_json::to_value(entries.first()).unwrap()
}

/// With a peer of this name that may be asked and served by nobody.
fn with_peer(world: &World, uid: &str, revision: u64, address: &str) -> World {
    let mut world = world.clone();
    let peer = json!({
        "metadata": {"namespace": "system", "name": "green-mesh", "uid": uid,
            "resourceVersion": revision.to_string()},
        "spec": {
            "remote": {"addresses": [address]},
            "gateways": {"ingress": {"name": "in"}, "egress": {"name": "out"}},
            "security": {},
        },
    });
    let peer: ServiceMeshPeer = serde_json::from_value(peer).unwrap();
    let key = ObjectKey::new("system", "green-mesh");
    world.resources.peers.insert(key, Arc::new(peer));
    world
}

fn peer_write(verb: &str, revision: u64) -> Write {
    Write {
        kind: "ServiceMeshPeer".to_owned(),
        object: ObjectKey::new("system", "green-mesh"),
        ..write(verb, "green-mesh", revision)
    }
}

#[test]
fn what_was_shared_for_a_moment_has_its_lines() {
    let told = writes(vec![peer_write("create", 1), peer_write("patch", 2)]);
    let mut scribe = Scribe::new(Some(told));
    let here = with_peer(&world(), "1", 1, "127.0.0.9");
    let moved = with_peer(&world(), "1", 2, "127.0.0.66");
    let mut line = |world: &World, merged| one(scribe.entries(&step(world, merged)));
    let started = line(&world(), 0);
    assert_eq!(started["event"], "Started");
    assert_eq!(started["totals"], json!({"exposed": 0, "imported": 0}));
    let came = line(&here, 0);
    assert_eq!(came["event"], "SharingChanged");
    assert_eq!(brief(&came["by"]), ["anna create 1"]);
    assert_eq!(came["statesMerged"], Value::Null);
    let there = line(&moved, 0);
    assert_eq!(brief(&there["by"]), ["anna patch 2"]);
    assert_eq!(there["peers"][0]["after"], "127.0.0.66");
    let nothing = line(&moved, 3);
    assert_eq!(nothing, Value::Null);
    let back = line(&here, 2);
    assert_eq!(back["peers"][0]["after"], "127.0.0.9");
    assert_eq!(back["statesMerged"], 5);
}

#[test]
fn what_no_write_is_part_of_names_those_of_the_seconds_before() {
    let told = writes(vec![
        peer_write("create", 1),
        peer_write("patch", 2),
        peer_write("delete", 4),
    ]);
    let mut scribe = Scribe::new(Some(told));
    let mut at = |seconds, world: &World| {
        let mut world = world.clone();
        world.now += jiff::SignedDuration::from_secs(seconds);
        one(scribe.entries(&step(&world, 0)))
    };
    let here = |revision| with_peer(&world(), "1", revision, "127.0.0.9");
    // Nobody told of this one.
    let moved = with_peer(&world(), "1", 3, "127.0.0.66");
    at(0, &world());
    assert_eq!(brief(&at(0, &here(1))["by"]), ["anna create 1"]);
    assert_eq!(at(1, &here(2)), Value::Null);
    let soon = at(5, &moved);
    assert_eq!(soon["by"], Value::Null);
    assert_eq!(brief(&soon["follows"]), ["anna patch 2"]);
    assert_eq!(at(7, &here(2))["follows"], Value::Null);
    assert_eq!(brief(&at(8, &world())["by"]), ["anna delete 4"]);
    let another = with_peer(&world(), "2", 5, "127.0.0.9");
    assert_eq!(brief(&at(9, &another)["follows"]), ["anna delete 4"]);
}

#[tokio::test]
async fn a_backlog_ends_with_what_waits_and_says_what_had_no_place() {
    let (feed, mut backlog) = backlog();
    let outcome = step(&world(), 0).outcome;
    for _ in 0..260 {
        feed.push(outcome.clone());
    }
    drop(feed);
    let steps = backlog.next().await.unwrap();
    assert_eq!(steps.len(), 256);
    assert_eq!(steps.iter().map(|step| step.merged).sum::<u64>(), 4);
    assert!(backlog.next().await.is_none());
}

#[test]
fn what_a_peer_alone_has_caused_is_told_apart_and_is_no_longer_than_a_line_may_be() {
    let usage = |n: usize| {
        json!({
            "peer": "red-mesh", "exportedName": format!("s{n}.a.svc.green-exports.local"),
            "hostname": format!("s{n}.a.svc.red-mesh-imports.local"), "ports": [80],
        })
    };
    let imported: Vec<_> = (0..MAX_IMPORTS + 7).map(usage).collect();
    let difference = json!({"imported": imported, "dropped": [usage(0)]});
    let cut = |by_peers: &[&str], by: Vec<Author>, difference: &Difference| {
        let mut entry = Entry {
            by,
            by_peers: by_peers.iter().map(|&peer| peer.to_owned()).collect(),
            difference: Some(difference.clone()),
            ..Entry::new(Timestamp::UNIX_EPOCH, "SharingChanged")
        };
        entry.cut();
        let left = entry.difference.as_ref().unwrap();
        let listed = left.imported.len() + left.dropped.len();
        (entry.peer_alone().is_some(), listed, entry.not_listed)
    };
    let mut difference: Difference = serde_json::from_value(difference).unwrap();
    let all = MAX_IMPORTS + 8;
    assert_eq!(cut(&["red-mesh"], vec![], &difference), (true, all - 7, 7));
    let anna = vec![Author::of_write(&write("patch", "cart", 7))];
    assert_eq!(
        cut(&["red-mesh"], anna.clone(), &difference),
        (false, all - 7, 7)
    );
    assert_eq!(cut(&[], anna, &difference), (false, all, 0));
    // No peer can change what is exposed to another.
    difference.exposed = exposes("shop/cart").exposed;
    assert!(!cut(&["red-mesh"], vec![], &difference).0);
}
