use k8s_openapi::api::core::v1::Service;
use meshfed_federation::discovery::client::RemoteState;
use meshfed_federation::discovery::message::{Limits, decode_list};
use meshfed_federation::discovery::remote::RemoteServices;
use meshfed_federation::world::{MeshSettings, Observed, PeerState, Resources};
use serde_json::{Value, json};

use super::*;

fn world() -> World {
    World {
        now: "2027-10-05T13:05:43Z".parse().unwrap(),
        mesh: MeshSettings {
            system_namespace: "system".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            default_trust_domain: "cluster.local".parse().unwrap(),
            instance_suffix: "0".to_owned(),
            discovery_address: "127.0.0.1:8188".parse().unwrap(),
            node_address: "127.0.0.1".parse().unwrap(),
            started: Timestamp::UNIX_EPOCH,
        },
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
    let mut writes = Writes::new(futures::stream::iter(all).boxed());
    writes.take_all();
    writes
}

fn write(verb: &str, name: &str, revision: u64) -> Write {
    Write {
        user: "anna".to_owned(),
        groups: vec!["system:masters".to_owned()],
        verb: verb.to_owned(),
        kind: "Service".to_owned(),
        object: ObjectKey::new("shop", name),
        revision,
    }
}

fn exposes(service: &str) -> Difference {
    serde_json::from_value(json!({"exposed": [{
        "peer": "green-mesh", "service": service,
        "exportedName": "a.b.svc.green-mesh-exports.local", "ports": [80],
    }]}))
    .unwrap()
}

#[test]
fn a_change_is_put_down_to_the_writes_that_led_to_it() {
    let before = with_service(&world(), "cart", json!({"resourceVersion": "7"}));
    let after = with_service(&before, "cart", json!({"resourceVersion": "9"}));
    let after = with_service(&after, "other", json!({"resourceVersion": "8"}));
    let writes = writes(vec![
        write("patch", "cart", 7),
        write("create", "other", 8),
        write("patch", "cart", 9),
        write("patch", "cart", 10),
    ]);
    let entry = entry(&before, &after, &writes, exposes("shop/cart"));
    let line = serde_json::to_value(&entry).unwrap();
    assert_eq!(
        line["by"],
        json!([{
            "user": "anna", "groups": ["system:masters"], "verb": "patch",
            "kind": "Service", "namespace": "shop", "name": "cart", "resourceVersion": "9",
        }])
    );
    assert_eq!(line["event"], "SharingChanged");
    assert_eq!(line["time"], "2027-10-05T13:05:43Z");
    assert_eq!(line["exposed"][0]["service"], "shop/cart");
}

#[test]
fn a_deletion_is_put_down_to_who_asked_for_it() {
    let before = with_service(&world(), "cart", json!({"resourceVersion": "7"}));
    let writes = writes(vec![write("delete", "cart", 12)]);
    let entry = entry(&before, &world(), &writes, exposes("shop/cart"));
    assert_eq!(entry.by[0].user.as_deref(), Some("anna"));
    assert_eq!(entry.by[0].verb, "delete");
}

#[test]
fn without_a_word_of_the_api_server_the_object_says_who_wrote_it() {
    let managed = json!({"resourceVersion": "9", "managedFields": [
        {"manager": "kubectl", "operation": "Apply", "time": "2027-10-05T13:05:40Z"},
        {"manager": "older", "operation": "Update", "time": "2027-10-05T13:05:00Z"},
        {"manager": "meshfed", "operation": "Update", "time": "2027-10-05T13:05:42Z",
         "subresource": "status"},
    ]});
    let after = with_service(&world(), "cart", managed);
    let entry = entry(&world(), &after, &writes(Vec::new()), exposes("shop/cart"));
    assert_eq!(entry.by[0].manager.as_deref(), Some("kubectl"));
    assert_eq!(entry.by[0].verb, "create");
    assert_eq!(entry.by[0].user, None);
}

#[test]
fn what_a_peer_changed_is_put_down_to_the_peer() {
    let list = br#"{"checksum":1,"services":[{"name":"a","namespace":"b","hostname":"a.b.svc.c-exports.local"}]}"#;
    let limits = Limits::default();
    let services = RemoteServices::check(decode_list(list, &limits).unwrap(), &limits).unwrap();
    let mut after = world();
    let state = PeerState {
        remote: Arc::new(RemoteState {
            services: Arc::new(services),
            ..RemoteState::default()
        }),
        ..PeerState::default()
    };
    let peers = &mut after.observed.peers;
    peers.insert("green-mesh".to_owned(), Arc::new(state));
    let writes = writes(Vec::new());
    let came = entry(&world(), &after, &writes, Difference::default());
    assert_eq!(came.by_peers, ["green-mesh"]);
    assert!(came.by.is_empty());
    let same = entry(&after, &after.clone(), &writes, Difference::default());
    assert!(same.by_peers.is_empty());
}
