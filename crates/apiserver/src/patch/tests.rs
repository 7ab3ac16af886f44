use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::{Schema, builtin};

fn service_schema() -> Arc<Schema> {
    let definitions = builtin::definitions();
    let mut builtins = builtin::Builtins::new(&definitions);
    builtins.schema("core.v1.Service").unwrap()
}

fn patched(mut target: Value, patch: Value) -> Value {
    strategic(&service_schema(), &mut target, patch).unwrap();
    target
}

#[test]
fn merge_patches_set_and_remove_fields() {
    let mut target = json!({"a": 1, "b": {"c": 2, "d": 3}, "l": [1]});
    merge(
        &mut target,
        json!({"a": null, "b": {"c": 4}, "l": [2], "n": {"x": null, "y": 1}}),
    );
    assert_eq!(
        target,
        json!({"b": {"c": 4, "d": 3}, "l": [2], "n": {"y": 1}})
    );
}

#[test]
fn json_patches_apply_as_a_whole_or_not_at_all() {
    let mut target = json!({"a": [1, 2]});
    json(
        &mut target,
        json!([{"op": "replace", "path": "/a/0", "value": 9}]),
    )
    .unwrap();
    assert_eq!(target, json!({"a": [9, 2]}));
    let failing =
        json!([{"op": "remove", "path": "/a/0"}, {"op": "test", "path": "/a", "value": 1}]);
    assert!(json(&mut target, failing).is_err());
    assert_eq!(target, json!({"a": [9, 2]}));
    let copy = json!({"op": "copy", "from": "/a", "path": "/a/0"});
    let doubling = Value::Array(vec![copy; 60]);
    assert!(matches!(
        json(&mut target, doubling),
        Err(PatchError::Copies)
    ));
    assert!(json(&mut target, json!({})).is_err());
    assert!(json(&mut target, json!([{"op": "explode"}])).is_err());
}

#[test]
fn lists_with_a_merge_key_are_merged_and_others_replaced() {
    let service = json!({"spec": {
        "ports": [{"port": 80, "name": "http"}, {"port": 443, "name": "https"}],
        "externalIPs": ["1.1.1.1"],
    }});
    assert_eq!(
        patched(
            service.clone(),
            json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 9}], "externalIPs": ["2.2.2.2"]}}),
        ),
        json!({"spec": {
            "ports": [{"port": 80, "name": "http", "targetPort": 8080}, {"port": 443, "name": "https"}, {"port": 9}],
            "externalIPs": ["2.2.2.2"],
        }})
    );
    assert_eq!(
        patched(
            service.clone(),
            json!({"spec": {"ports": [{"port": 80, "$patch": "delete"}]}})
        )["spec"]["ports"],
        json!([{"port": 443, "name": "https"}])
    );
    assert_eq!(
        patched(
            service.clone(),
            json!({"spec": {"ports": [{"$patch": "replace"}, {"port": 1}]}})
        )["spec"]["ports"],
        json!([{"port": 1}])
    );
    assert_eq!(
        patched(
            service,
            json!({"spec": {"$patch": "replace", "type": "NodePort"}})
        ),
        json!({"spec": {"type": "NodePort"}})
    );
}

#[test]
fn lists_of_scalars_and_orders_follow_their_directives() {
    let object = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    assert_eq!(
        patched(
            object.clone(),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"], "finalizers": ["d"]}})
        ),
        json!({"metadata": {"finalizers": ["a", "c", "d"]}})
    );
    assert_eq!(
        patched(
            object,
            json!({"metadata": {"$setElementOrder/finalizers": ["c", "a"]}})
        ),
        json!({"metadata": {"finalizers": ["b", "c", "a"]}})
    );
    let service = json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}});
    assert_eq!(
        patched(
            service,
            json!({"spec": {
            "$setElementOrder/ports": [{"port": 3}, {"port": 2}, {"port": 1}], "ports": [{"port": 3}]}})
        )["spec"]["ports"],
        json!([{"port": 3}, {"port": 2}, {"port": 1}])
    );
    assert_eq!(
        patched(
            json!({"spec": {"a": 1, "b": 2}}),
            json!({"spec": {"$retainKeys": ["b"], "b": 3}})
        ),
        json!({"spec": {"b": 3}})
    );
}

#[test]
fn malformed_strategic_patches_are_refused_with_the_field() {
    let schema = service_schema();
    for (patch, expected) in [
        (json!([]), "not a JSON object"),
        (
            json!({"spec": {"$patch": "explode"}}),
            "spec: unknown directive",
        ),
        (json!({"spec": {"$what": 1}}), "spec: unknown directive"),
        (
            json!({"spec": {"ports": [{"name": "x"}]}}),
            "spec.ports: an element has no merge key",
        ),
        (
            json!({"spec": {"ports": ["x"]}}),
            "spec.ports: an object expected",
        ),
        (
            json!({"metadata": {"finalizers": vec!["x"; 5000]}}),
            "metadata.finalizers: more than",
        ),
        (
            json!({"spec": {"$retainKeys": 1}}),
            "spec: a list of keys expected",
        ),
    ] {
        let error = strategic(&schema, &mut json!({"spec": {}}), patch).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// What a client makes of two versions of an object: the changes of a three-way merge, with the
/// service's ports merged by their number.
fn difference(old: &Value, new: &Value) -> Value {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else {
        return new.clone();
    };
    let mut patch = Map::new();
    for (name, value) in new {
        match old.get(name) {
            Some(before) if before == value => {}
            Some(before) if name == "ports" => {
                let empty = Vec::new();
                let before = before.as_array().unwrap_or(&empty);
                let after = value.as_array().unwrap_or(&empty);
                let find = |list: &[Value], port: &Value| {
                    list.iter().find(|p| p["port"] == port["port"]).cloned()
                };
                let mut changes = Vec::new();
                for port in after {
                    let mut change = match find(before, port) {
                        Some(before) => difference(&before, port),
                        None => port.clone(),
                    };
                    change["port"] = port["port"].clone();
                    changes.push(change);
                }
                for port in before.iter().filter(|port| find(after, port).is_none()) {
                    changes.push(json!({"$patch": "delete", "port": port["port"]}));
                }
                patch.insert("ports".to_owned(), changes.into());
                let order: Vec<Value> = after.iter().map(|p| json!({"port": p["port"]})).collect();
                patch.insert("$setElementOrder/ports".to_owned(), order.into());
            }
            Some(before) => {
                patch.insert(name.clone(), difference(before, value));
            }
            None => {
                patch.insert(name.clone(), value.clone());
            }
        }
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    Value::Object(patch)
}

fn services() -> impl Strategy<Value = Value> {
    let port = (
        1..6_u16,
        prop::option::of("[a-c]"),
        prop::option::of(1..4_u8),
    );
    let ports = prop::collection::vec(port, 0..5).prop_map(|ports| {
        let mut seen = std::collections::BTreeSet::new();
        let ports = ports.into_iter().filter(|(port, _, _)| seen.insert(*port));
        let ports = ports.map(|(port, name, target)| {
            let mut object = json!({"port": port});
            if let Some(name) = name {
                object["name"] = name.into();
            }
            if let Some(target) = target {
                object["targetPort"] = target.into();
            }
            object
        });
        Value::Array(ports.collect())
    });
    let selector = prop::collection::btree_map("[a-c]", "[a-c]", 0..3);
    (ports, prop::option::of(selector)).prop_map(|(ports, selector)| {
        let mut spec = json!({"ports": ports});
        if let Some(selector) = selector {
            spec["selector"] = json!(selector);
        }
        json!({"spec": spec})
    })
}

proptest! {
    #[test]
    fn a_difference_applied_to_the_old_object_gives_the_new_one(old in services(), new in services()) {
        let mut target = old.clone();
        strategic(&service_schema_once(), &mut target, difference(&old, &new)).unwrap();
        prop_assert_eq!(target, new);
    }

    #[test]
    fn a_patch_keeps_what_a_third_party_set_and_applies_twice_as_once(old in services(), new in services()) {
        let patch = difference(&old, &new);
        let mut live = old;
        live["spec"]["clusterIP"] = json!("10.0.0.1");
        strategic(&service_schema_once(), &mut live, patch.clone()).unwrap();
        prop_assert_eq!(&live["spec"]["clusterIP"], "10.0.0.1");
        let once = live.clone();
        strategic(&service_schema_once(), &mut live, patch).unwrap();
        prop_assert_eq!(live, once);
    }
}

fn service_schema_once() -> Arc<Schema> {
    static SCHEMA: std::sync::LazyLock<Arc<Schema>> = std::sync::LazyLock::new(service_schema);
    SCHEMA.clone()
}
