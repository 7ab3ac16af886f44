use std::collections::BTreeMap;

use meshfed_api::{ExportedServiceSetSpec, ImportedServiceSetSpec};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::names::{DomainSuffix, PeerName, ServiceKey};

fn key(namespace: &str, name: &str) -> ServiceKey {
    ServiceKey::parse(namespace, name).unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn export(rules: Value) -> ExportRules {
    let spec: ExportedServiceSetSpec =
        serde_json::from_value(json!({ "exportRules": rules })).unwrap();
    ExportRules::parse(&spec)
}

fn import(spec: Value) -> ImportRules {
    let spec: ImportedServiceSetSpec = serde_json::from_value(spec).unwrap();
    let peer: PeerName = "red-mesh".parse().unwrap();
    ImportRules::parse(&spec, &peer, &"svc.cluster.local".parse().unwrap())
}

/// `rule:namespace/name`, or why not.
fn exported(rules: &ExportRules, namespace: &str, name: &str, with: &[(&str, &str)]) -> String {
    match rules.decide(&key(namespace, name), &labels(with)) {
        ExportDecision::Exported { rule, exported } => format!("{rule}:{exported}"),
        ExportDecision::NoRule => "-".into(),
        ExportDecision::Broken { rule } => format!("broken {rule}"),
    }
}

/// `rule:host`, or why not.
fn imported(rules: &ImportRules, namespace: &str, name: &str) -> String {
    match rules.decide(&key(namespace, name)) {
        ImportDecision::Imported { rule, host, .. } => format!("{rule}:{host}"),
        ImportDecision::BadName { rule, .. } => format!("bad name {rule}"),
        ImportDecision::NoRule => "-".into(),
        ImportDecision::Broken { rule } => format!("broken {rule}"),
    }
}

#[test]
fn example_exported_service_set_of_the_documents() {
    let rules = export(json!([
        {"type": "NameSelector", "nameSelector": {
            "namespace": "red-mesh-bookinfo", "name": "red-ratings",
            "alias": {"namespace": "bookinfo", "name": "ratings"}}},
        {"type": "LabelSelector", "labelSelector": {
            "namespace": "red-mesh-bookinfo",
            "selector": {"matchLabels": {"export-service": "true"}},
            "aliases": [{"namespace": "*", "name": "*", "alias": {"namespace": "bookinfo"}}]}},
    ]));
    let yes = &[("export-service", "true")];
    let in_bookinfo = |name, with| exported(&rules, "red-mesh-bookinfo", name, with);
    assert_eq!(in_bookinfo("red-ratings", yes), "0:bookinfo/ratings");
    assert_eq!(in_bookinfo("reviews", yes), "1:bookinfo/reviews");
    assert_eq!(in_bookinfo("reviews", &[("export-service", "false")]), "-");
    assert_eq!(in_bookinfo("reviews", &[]), "-");
    assert_eq!(exported(&rules, "other", "reviews", yes), "-");
}

#[test]
fn example_export_ratings_from_all_namespaces() {
    let rules = export(json!([
        {"type": "NameSelector", "nameSelector": {"namespace": "*", "name": "ratings"}},
    ]));
    assert_eq!(exported(&rules, "a", "ratings", &[]), "0:a/ratings");
    assert_eq!(exported(&rules, "b", "ratings", &[]), "0:b/ratings");
    assert_eq!(exported(&rules, "a", "reviews", &[]), "-");
}

#[test]
fn example_export_all_services_of_a_namespace() {
    let rules = export(json!([
        {"type": "NameSelector", "nameSelector": {"namespace": "west-data-center", "name": "*"}},
    ]));
    assert_eq!(
        exported(&rules, "west-data-center", "x", &[]),
        "0:west-data-center/x"
    );
    assert_eq!(exported(&rules, "east-data-center", "x", &[]), "-");
}

#[test]
fn example_export_from_red_mesh_to_green_mesh() {
    let rules = export(json!([
        {"type": "NameSelector", "nameSelector": {
            "namespace": "red-mesh-bookinfo", "name": "ratings",
            "alias": {"namespace": "bookinfo", "name": "red-ratings"}}},
        {"type": "NameSelector", "nameSelector": {
            "namespace": "red-mesh-bookinfo", "name": "reviews"}},
    ]));
    let of = |name| exported(&rules, "red-mesh-bookinfo", name, &[]);
    assert_eq!(of("ratings"), "0:bookinfo/red-ratings");
    assert_eq!(of("reviews"), "1:red-mesh-bookinfo/reviews");
}

#[test]
fn example_imported_service_set_of_the_documents() {
    let rules = import(json!({"importRules": [
        {"type": "NameSelector", "importAsLocal": false, "nameSelector": {
            "namespace": "bookinfo", "name": "red-ratings",
            "alias": {"namespace": "bookinfo", "name": "ratings"}}},
    ]}));
    assert_eq!(
        imported(&rules, "bookinfo", "red-ratings"),
        "0:ratings.bookinfo.svc.red-mesh-imports.local"
    );
    assert_eq!(imported(&rules, "red-mesh-bookinfo", "reviews"), "-");
}

#[test]
fn example_import_all_services_of_a_namespace() {
    let rules = import(json!({"importRules": [
        {"type": "NameSelector", "nameSelector": {"namespace": "west-data-center", "name": "*"}},
    ]}));
    assert_eq!(
        imported(&rules, "west-data-center", "x"),
        "0:x.west-data-center.svc.red-mesh-imports.local"
    );
}

#[test]
fn example_import_for_failover() {
    let rules = import(json!({
        "importRules": [{"type": "NameSelector", "importAsLocal": true, "nameSelector": {
            "namespace": "bookinfo", "name": "ratings",
            "alias": {"namespace": "bookinfo", "name": "ratings"}}}],
        "locality": {"region": "us-west"},
    }));
    assert_eq!(
        rules.decide(&key("bookinfo", "ratings")),
        ImportDecision::Imported {
            rule: 0,
            local: key("bookinfo", "ratings"),
            host: crate::names::ImportedHost::new(
                &key("bookinfo", "ratings"),
                &"svc.cluster.local".parse().unwrap()
            )
            .unwrap(),
            as_local: true,
        }
    );
    assert_eq!(rules.locality().region, "us-west");
}

#[test]
fn example_custom_domain_suffix() {
    let rules = import(json!({
        "domainSuffix": "imported.local",
        "importRules": [
            {"type": "NameSelector", "domainSuffix": "rule.example", "nameSelector": {
                "namespace": "custom-ns", "name": "foo"}},
            {"type": "NameSelector", "nameSelector": {
                "namespace": "custom-ns", "name": "bar", "alias": {"namespace": "other-mesh"}}},
        ],
    }));
    assert_eq!(
        imported(&rules, "custom-ns", "foo"),
        "0:foo.custom-ns.rule.example"
    );
    assert_eq!(
        imported(&rules, "custom-ns", "bar"),
        "1:bar.other-mesh.imported.local"
    );
}

#[test]
fn missing_empty_and_star_match_anything_and_keep_a_name() {
    for open in [
        json!({}),
        json!({"namespace": "", "name": ""}),
        json!({"namespace": "*", "name": "*"}),
    ] {
        let mut selector = open.clone();
        selector["alias"] = open;
        let rules = export(json!([{"type": "NameSelector", "nameSelector": selector}]));
        assert_eq!(exported(&rules, "a", "b", &[]), "0:a/b");
    }
}

#[test]
fn label_selectors_know_the_operators_of_kubernetes() {
    let decide = |expression: Value, with: &[(&str, &str)]| {
        let rules = export(json!([{"type": "LabelSelector", "labelSelector": {
            "selector": {"matchExpressions": [expression]}}}]));
        exported(&rules, "a", "b", with) == "0:a/b"
    };
    let of = |operator: &str| json!({"key": "k", "operator": operator, "values": ["x", "y"]});
    assert!(decide(of("In"), &[("k", "y")]));
    assert!(!decide(of("In"), &[("k", "z")]));
    assert!(!decide(of("In"), &[]));
    assert!(decide(of("NotIn"), &[]));
    assert!(decide(of("NotIn"), &[("k", "z")]));
    assert!(!decide(of("NotIn"), &[("k", "x")]));
    assert!(decide(
        json!({"key": "k", "operator": "Exists"}),
        &[("k", "")]
    ));
    assert!(!decide(json!({"key": "k", "operator": "Exists"}), &[]));
    assert!(decide(json!({"key": "k", "operator": "DoesNotExist"}), &[]));
    assert!(!decide(
        json!({"key": "k", "operator": "DoesNotExist"}),
        &[("k", "")]
    ));
}

#[test]
fn all_requirements_of_a_label_selector_hold_and_none_selects_everything() {
    let decide = |selector: Value, with: &[(&str, &str)]| {
        let rules = export(json!([{"type": "LabelSelector", "labelSelector": {
            "selector": selector}}]));
        exported(&rules, "a", "b", with) == "0:a/b"
    };
    let both = json!({
        "matchLabels": {"k": "v", "l": "w"},
        "matchExpressions": [{"key": "m", "operator": "DoesNotExist"}],
    });
    assert!(decide(both.clone(), &[("k", "v"), ("l", "w"), ("n", "")]));
    assert!(!decide(both.clone(), &[("k", "v")]));
    assert!(!decide(both, &[("k", "v"), ("l", "w"), ("m", "")]));
    assert!(decide(json!({}), &[]));
}

#[test]
fn a_label_selector_with_a_namespace_selects_there_alone_and_else_in_the_whole_mesh() {
    let decide = |namespace: Value| {
        let rules = export(json!([{"type": "LabelSelector", "labelSelector": {
            "namespace": namespace, "selector": {"matchLabels": {"k": "v"}}}}]));
        ["a", "b"].map(|namespace| exported(&rules, namespace, "x", &[("k", "v")]) != "-")
    };
    assert_eq!(decide(json!("a")), [true, false]);
    for open in [Value::Null, json!(""), json!("*")] {
        assert_eq!(decide(open), [true, true]);
    }
}

#[test]
fn an_alias_may_fix_the_name_or_the_namespace_or_both() {
    for (alias, name) in [
        (json!({"name": "n"}), "0:a/n"),
        (json!({"namespace": "m", "name": "*"}), "0:m/b"),
        (json!({"namespace": "m", "name": "n"}), "0:m/n"),
    ] {
        let selector = json!({"namespace": "a", "name": "b", "alias": alias});
        let by_name = export(json!([{"type": "NameSelector", "nameSelector": selector}]));
        let by_label = export(json!([{"type": "LabelSelector", "labelSelector": {
            "selector": {}, "aliases": [selector]}}]));
        assert_eq!(exported(&by_name, "a", "b", &[]), name);
        assert_eq!(exported(&by_label, "a", "b", &[]), name);
        let rules = import(json!({"importRules": [
            {"type": "NameSelector", "nameSelector": selector}]}));
        let (namespace, name) = name[2..].split_once('/').unwrap();
        assert_eq!(
            imported(&rules, "a", "b"),
            format!("0:{name}.{namespace}.svc.red-mesh-imports.local")
        );
    }
}

#[test]
fn the_first_alias_of_a_label_selector_that_matches_renames() {
    let rules = export(json!([{"type": "LabelSelector", "labelSelector": {
    "selector": {},
    "aliases": [
        {"namespace": "a", "name": "b", "alias": {"name": "c"}},
        {"namespace": "a", "alias": {"namespace": "x"}},
    ]}}]));
    assert_eq!(exported(&rules, "a", "b", &[]), "0:a/c");
    assert_eq!(exported(&rules, "a", "d", &[]), "0:x/d");
    assert_eq!(exported(&rules, "e", "b", &[]), "0:e/b");
}

#[test]
fn an_explanation_names_each_rule_that_did_not_match_and_why() {
    let rules = export(json!([
        {"type": "NameSelector", "nameSelector": {"namespace": "x"}},
        {"type": "NameSelector", "nameSelector": {"name": "y"}},
        {"type": "LabelSelector", "labelSelector": {"selector": {"matchLabels": {"k": "v"}}}},
        {"type": "NameSelector", "nameSelector": {}},
    ]));
    let explained = rules.explain(&key("a", "b"), &labels(&[]));
    let misses: Vec<String> = explained.tried.iter().map(|t| t.miss.to_string()).collect();
    assert_eq!(
        misses,
        [
            "its namespace is not x",
            "its name is not y",
            "its labels do not satisfy k=v"
        ]
    );
    assert!(matches!(
        explained.decision,
        ExportDecision::Exported { rule: 3, .. }
    ));
}

#[test]
fn a_rule_that_cannot_be_read_ends_the_set_and_is_named_by_its_path() {
    let good = json!({"type": "NameSelector", "nameSelector": {"name": "good"}});
    let all = json!({"type": "NameSelector", "nameSelector": {}});
    let by_labels =
        |selector: Value| json!({"type": "LabelSelector", "labelSelector": {"selector": selector}});
    for (bad, path) in [
        (json!({"type": "NameSelector"}), "nameSelector"),
        (json!({"type": "Selector"}), "type"),
        (
            json!({"type": "LabelSelector", "labelSelector": {"namespace": "a"}}),
            "labelSelector.selector",
        ),
        (
            json!({"type": "NameSelector", "nameSelector": {"name": "A"}}),
            "nameSelector.name",
        ),
        (
            json!({"type": "NameSelector", "nameSelector": {"alias": {"namespace": "a.b"}}}),
            "nameSelector.alias.namespace",
        ),
        (
            json!({"type": "LabelSelector", "labelSelector": {"selector": {"matchExpressions": [
                {"key": "k", "operator": "Like"}]}}}),
            "labelSelector.selector.matchExpressions[0].operator",
        ),
        (
            json!({"type": "LabelSelector", "labelSelector": {"selector": {"matchExpressions": [
                {"key": "k", "operator": "In"}]}}}),
            "labelSelector.selector.matchExpressions[0].values",
        ),
        (
            by_labels(json!({"matchLabels": {"a b": "x"}})),
            "labelSelector.selector.matchLabels",
        ),
        (
            by_labels(json!({"matchLabels": {"a/b/c": "x"}})),
            "labelSelector.selector.matchLabels",
        ),
        (
            by_labels(json!({"matchLabels": {"A.io/b": "x"}})),
            "labelSelector.selector.matchLabels",
        ),
        (
            by_labels(json!({"matchLabels": {"a.io/B_c": "", "k": "x z"}})),
            "labelSelector.selector.matchLabels.k",
        ),
        (
            by_labels(json!({"matchExpressions": [{"key": "/k", "operator": "Exists"}]})),
            "labelSelector.selector.matchExpressions[0].key",
        ),
        (
            by_labels(json!({"matchExpressions": [
                {"key": "k", "operator": "In", "values": ["x", "-"]}]})),
            "labelSelector.selector.matchExpressions[0].values[1]",
        ),
    ] {
        let rules = export(json!([good, bad, all]));
        let error = rules.broken().unwrap();
        assert_eq!(error.path, format!("spec.exportRules[1].{path}"));
        assert_eq!(exported(&rules, "a", "good", &[]), "0:a/good");
        assert_eq!(exported(&rules, "a", "other", &[]), "broken 1");
    }
}

#[test]
fn import_rules_that_would_give_the_peer_a_say_in_our_names_are_refused() {
    let rule = |rule: Value| import(json!({"importRules": [rule]}));
    for (bad, path) in [
        (
            rule(json!({"type": "LabelSelector"})),
            "spec.importRules[0].type",
        ),
        (
            rule(json!({"type": "NameSelector", "importAsLocal": true, "nameSelector": {}})),
            "spec.importRules[0].nameSelector.alias.namespace",
        ),
        (
            rule(json!({"type": "NameSelector", "importAsLocal": true,
                "nameSelector": {"alias": {"namespace": "*"}}})),
            "spec.importRules[0].nameSelector.alias.namespace",
        ),
        (
            rule(
                json!({"type": "NameSelector", "domainSuffix": "svc.cluster.local",
                "nameSelector": {}}),
            ),
            "spec.importRules[0].domainSuffix",
        ),
        (
            import(json!({"domainSuffix": "x.svc.cluster.local", "importRules": []})),
            "spec.domainSuffix",
        ),
        (
            import(json!({"domainSuffix": "svc", "importRules": []})),
            "spec.domainSuffix",
        ),
        (
            import(json!({"locality": {"zone": "a"}, "importRules": []})),
            "spec.locality",
        ),
        (
            import(json!({"locality": {"region": "a", "subzone": "a"}, "importRules": []})),
            "spec.locality",
        ),
        (
            import(json!({"locality": {"region": "a", "zone": "b/c"}, "importRules": []})),
            "spec.locality.zone",
        ),
    ] {
        assert_eq!(bad.broken().unwrap().path, path);
        assert!(imported(&bad, "a", "b").starts_with("broken"));
    }
}

proptest! {
    #[test]
    fn nothing_is_exported_that_no_rule_names(
        namespace in "[a-c]", name in "[a-c]", picks in proptest::collection::vec(("[a-c*]", "[a-c*]"), 0..5)
    ) {
        let rules: Vec<Value> = picks.iter().map(|(namespace, name)| {
            json!({"type": "NameSelector", "nameSelector": {"namespace": namespace, "name": name}})
        }).collect();
        let first = picks.iter().position(|(ns, n)| {
            (ns == "*" || *ns == namespace) && (n == "*" || *n == name)
        });
        let decision = export(json!(rules)).decide(&key(&namespace, &name), &labels(&[]));
        prop_assert_eq!(decision, match first {
            Some(rule) => ExportDecision::Exported { rule, exported: key(&namespace, &name) },
            None => ExportDecision::NoRule,
        });
    }
}

fn pattern() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["*", "a", "b"])
}

proptest! {
    #[test]
    fn the_rule_that_is_found_is_the_first_of_all_that_match(
        rules in prop::collection::vec((pattern(), pattern(), any::<bool>()), 0..8),
        namespace in prop::sample::select(vec!["a", "b", "c"]),
        name in prop::sample::select(vec!["a", "b", "c"]),
    ) {
        let by_name = |(namespace, name, _): &(&str, &str, bool)| json!({
            "type": "NameSelector",
            "nameSelector": {"namespace": namespace, "name": name},
        });
        let exports: Vec<_> = rules.iter().map(|rule| if rule.2 { by_name(rule) } else {
            json!({
                "type": "LabelSelector",
                "labelSelector": {"namespace": rule.0, "selector": {"matchLabels": {"l": rule.1}}},
            })
        }).collect();
        let exports = serde_json::from_value(json!({"exportRules": exports}));
        let exports = ExportRules::parse(&exports.unwrap());
        let key = ServiceKey::parse(namespace, name).unwrap();
        let labels = [("l".to_owned(), name.to_owned())].into();
        let found = exports.decide(&key, &labels);
        prop_assert_eq!(found, exports.explain(&key, &labels).decision);

        let imports: Vec<_> = rules.iter().map(by_name).collect();
        let imports = serde_json::from_value(json!({"importRules": imports}));
        let suffix = DomainSuffix::of_cluster("cluster.local");
        let imports = ImportRules::parse(&imports.unwrap(), &"p".parse().unwrap(), &suffix);
        prop_assert_eq!(imports.decide(&key), imports.explain(&key).decision);
    }
}
