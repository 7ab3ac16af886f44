use serde_json::{Value, json};

use super::*;
use crate::error::FieldError;

fn mk_schema(schema: Value) -> Arc<Schema> {
    Compiler::custom_resource(&schema, &Schema::anything()).unwrap()
}

fn judged(schema: &Schema, mut value: Value) -> (Value, Vec<String>, Vec<String>) {
    let mut unknown = Vec::new();
    prune(schema, &mut value, &mut Path::default(), &mut unknown);
    default(schema, &mut value);
    let mut errors = Vec::new();
    validate(schema, &value, &mut Path::default(), &mut errors);
    if errors.is_empty() {
        cel::check(schema, &value, None, &mut errors);
    }
    let errors = errors.iter().map(FieldError::to_string).collect();
    (value, unknown, errors)
}

fn errors_of(schema: &Value, spec: Value) -> Vec<String> {
    let schema = mk_schema(json!({"type": "object", "properties": {"spec": schema}}));
    judged(&schema, json!({"spec": spec})).2
}

#[test]
fn each_rule_of_a_schema_names_the_field_and_the_reason() {
    let int = json!({"type": "integer", "minimum": 1, "maximum": 9});
    let text = json!({"type": "string", "pattern": "^a", "maxLength": 3, "minLength": 2});
    let list = json!({"type": "array", "maxItems": 2, "items": {"type": "string"},
        "x-kubernetes-list-type": "set"});
    let keyed = json!({"type": "array", "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": {"type": "object", "required": ["name"],
            "properties": {"name": {"type": "string"}}}});
    let port = json!({"x-kubernetes-int-or-string": true});
    for (schema, spec, expected) in [
        (&int, json!(5), ""),
        (
            &int,
            json!(0),
            "spec: Invalid value: 0: spec in body should be greater than or equal to 1",
        ),
        (
            &int,
            json!(10),
            "spec: Invalid value: 10: spec in body should be less than or equal to 9",
        ),
        (
            &int,
            json!("5"),
            "spec: Invalid value: \"string\": spec in body must be of type integer: \"string\"",
        ),
        (
            &int,
            json!(1.5),
            "spec: Invalid value: \"number\": spec in body must be of type integer: \"number\"",
        ),
        (&text, json!("ab"), ""),
        (
            &text,
            json!("xyz"),
            "spec: Invalid value: \"xyz\": spec in body should match '^a'",
        ),
        (
            &text,
            json!("a"),
            "spec: Invalid value: \"a\": spec in body should be at least 2 chars long",
        ),
        (
            &text,
            json!("abcd"),
            "spec: Too long: may not be more than 3 bytes",
        ),
        (&list, json!(["a", "a"]), "spec[1]: Duplicate value: \"a\""),
        (
            &list,
            json!(["a", "b", "c"]),
            "spec: Too many: 3: must have at most 2 items",
        ),
        (&keyed, json!([{"name": "a"}, {"name": "b"}]), ""),
        (
            &keyed,
            json!([{"name": "a"}, {"name": "a"}]),
            "spec[1]: Duplicate value: {\"name\":\"a\"}",
        ),
        (&keyed, json!([{}]), "spec[0].name: Required value"),
        (&port, json!("http"), ""),
        (&port, json!(80), ""),
        (
            &port,
            json!(true),
            "spec: Invalid value: \"boolean\": spec in body must be of type integer or string: \"boolean\"",
        ),
    ] {
        assert_eq!(
            errors_of(schema, spec.clone()).join("; "),
            expected,
            "{schema} {spec}"
        );
    }
    let chosen = json!({"enum": ["x", "y"]});
    assert_eq!(
        errors_of(&chosen, json!("z")),
        ["spec: Unsupported value: \"z\": supported values: \"x\", \"y\""]
    );
}

#[test]
fn combinations_of_schemas_are_judged() {
    let one_of = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "not": {"required": ["c"]}});
    assert!(errors_of(&one_of, json!({"a": 1})).is_empty());
    assert!(errors_of(&one_of, json!({"a": 1, "b": 2}))[0].contains("oneOf"));
    assert!(errors_of(&one_of, json!({}))[0].contains("oneOf"));
    assert!(errors_of(&one_of, json!({"a": 1, "c": 2}))[0].contains("not"));
}

#[test]
fn unknown_fields_are_taken_out_and_named_but_for_where_they_are_kept() {
    let schema = mk_schema(json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "a": {"type": "string"},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "integer"}}}},
            "list": {"type": "array", "items": {"type": "object"}},
        }},
    }}));
    let (value, unknown, errors) = judged(
        &schema,
        json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "x"}, "other": 1, "spec": {
            "a": null, "b": 1, "free": {"c": {"d": 1}}, "map": {"k": {"x": 1, "y": 2}},
            "list": [{"z": 1}],
        }}),
    );
    assert_eq!(
        unknown,
        ["other", "spec.b", "spec.map.k.y", "spec.list[0].z"]
    );
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(
        value["spec"],
        json!({"free": {"c": {"d": 1}}, "map": {"k": {"x": 1}}, "list": [{}]})
    );
}

#[test]
fn defaults_are_filled_in_from_the_outside() {
    let schema = mk_schema(json!({"type": "object", "properties": {
        "spec": {"type": "object", "default": {}, "properties": {
            "mode": {"type": "string", "default": "auto"},
            "list": {"type": "array", "items": {"type": "object", "properties": {
                "port": {"type": "integer", "default": 80}}}},
        }},
    }}));
    assert_eq!(
        judged(&schema, json!({})).0,
        json!({"spec": {"mode": "auto"}})
    );
    assert_eq!(
        judged(&schema, json!({"spec": {"mode": "own", "list": [{}]}})).0,
        json!({"spec": {"mode": "own", "list": [{"port": 80}]}})
    );
}

#[test]
fn cel_rules_say_their_message_at_their_field() {
    let schema = json!({"type": "object",
    "properties": {
        "min": {"type": "integer"}, "max": {"type": "integer"},
        "names": {"type": "array", "items": {"type": "string"}},
        "namespace": {"type": "string"},
    },
    "x-kubernetes-validations": [
        {"rule": "!has(self.min) || !has(self.max) || self.min <= self.max",
         "message": "min must not exceed max", "fieldPath": ".min"},
        {"rule": "!has(self.names) || self.names.all(n, n.startsWith('a'))",
         "messageExpression": "'bad names: ' + string(size(self.names))"},
        {"rule": "!has(self.__namespace__) || self.__namespace__ != 'x'"},
    ]});
    assert!(errors_of(&schema, json!({"min": 1, "max": 2, "names": ["a"]})).is_empty());
    assert_eq!(
        errors_of(&schema, json!({"min": 3, "max": 2})),
        ["spec.min: Invalid value: \"object\": min must not exceed max"]
    );
    assert_eq!(
        errors_of(&schema, json!({"names": ["a", "b"]})),
        ["spec: Invalid value: \"object\": bad names: 2"]
    );
    assert_eq!(
        errors_of(&schema, json!({"namespace": "x"})),
        [
            "spec: Invalid value: \"object\": failed rule: !has(self.__namespace__) || self.__namespace__ != 'x'"
        ]
    );
}

#[test]
fn transition_rules_compare_with_the_old_object() {
    let schema = mk_schema(
        json!({"type": "object", "properties": {"spec": {"type": "object",
        "properties": {"id": {"type": "string",
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}]}}}}}),
    );
    let check = |old: Option<&Value>, new: &Value| {
        let mut errors = Vec::new();
        cel::check(&schema, new, old, &mut errors);
        errors.iter().map(FieldError::to_string).collect::<Vec<_>>()
    };
    let (a, b) = (json!({"spec": {"id": "a"}}), json!({"spec": {"id": "b"}}));
    assert!(check(None, &a).is_empty());
    assert!(check(Some(&a), &a).is_empty());
    assert_eq!(
        check(Some(&a), &b),
        ["spec.id: Invalid value: \"b\": is immutable"]
    );
}

#[test]
fn a_rule_that_would_run_too_long_is_refused_instead() {
    let schema = json!({"type": "array", "items": {"type": "integer"}, "x-kubernetes-validations": [
        {"rule": "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))"}]});
    let started = std::time::Instant::now();
    let errors = errors_of(&schema, json!(vec![1; 5000]));
    assert!(errors[0].contains("too large"), "{errors:?}");
    assert!(started.elapsed().as_secs() < 5);
    assert!(errors_of(&schema, json!([1, 2, 3])).is_empty());
}

#[test]
fn rules_and_patterns_that_cannot_be_read_are_refused_with_their_place() {
    for schema in [
        json!({"type": "object", "properties": {"a": {"x-kubernetes-validations": [{"rule": "self.("}]}}}),
        json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}),
    ] {
        let error = Compiler::custom_resource(&schema, &Schema::anything()).unwrap_err();
        assert_eq!(error.path, "a");
    }
}

#[test]
fn builtin_schemas_know_merge_keys_defaults_and_quantities() {
    let definitions = builtin::definitions();
    let mut builtins = builtin::Builtins::new(&definitions);
    let service = builtins.schema("core.v1.Service").unwrap();
    let ports = service.property("spec").unwrap().property("ports").unwrap();
    assert_eq!(&*ports.merge.as_ref().unwrap().key, "port");
    let (value, unknown, errors) = judged(
        &service,
        json!({"metadata": {}, "spec": {"ports": [{"port": 80, "targetport": 1}], "type": "Best"}}),
    );
    assert_eq!(unknown, ["spec.ports[0].targetport"]);
    assert_eq!(value["spec"]["ports"][0]["protocol"], "TCP");
    assert_eq!(value["status"], json!({"loadBalancer": {}}));
    assert!(
        errors[0].starts_with("spec.type: Unsupported value"),
        "{errors:?}"
    );

    let pod = builtins.schema("core.v1.Pod").unwrap();
    let container = json!({"name": "a", "resources": {"limits": {"cpu": 0.5, "memory": "1Gi"}}});
    let (value, unknown, errors) = judged(
        &pod,
        json!({"metadata": {}, "spec": {"containers": [container]}}),
    );
    assert!(
        unknown.is_empty() && errors.is_empty(),
        "{unknown:?} {errors:?}"
    );
    assert_eq!(value["status"]["phase"], "Pending");
    let slice = builtins.schema("discovery.v1.EndpointSlice").unwrap();
    let (value, _, errors) = judged(&slice, json!({"metadata": {}, "addressType": "IPv4"}));
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(value["endpoints"], json!([]));
}
