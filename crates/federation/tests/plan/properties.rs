//! What holds for every world.

use meshfed_federation::discovery::message::{Service, ServiceList, ServicePort};
use meshfed_proxy_config::table_of;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::lab::Lab;

#[derive(Debug, Clone)]
pub struct Pick {
    namespace: &'static str,
    name: &'static str,
    alias: Option<&'static str>,
}

pub fn pick() -> impl Strategy<Value = Pick> {
    (
        prop::sample::select(vec!["*", "a", "b"]),
        prop::sample::select(vec!["*", "x", "y", "z"]),
        prop::option::of(prop::sample::select(vec!["p", "q"])),
    )
        .prop_map(|(namespace, name, alias)| Pick {
            namespace,
            name,
            alias,
        })
}

pub fn rule(pick: &Pick) -> Value {
    let alias = pick.alias.map(|name| json!({"name": name}));
    let mut selector = json!({"namespace": pick.namespace, "name": pick.name});
    if let Some(alias) = alias {
        selector["alias"] = alias;
    }
    json!({"type": "NameSelector", "nameSelector": selector})
}

fn matches(pick: &Pick, namespace: &str, name: &str) -> bool {
    (pick.namespace == "*" || pick.namespace == namespace)
        && (pick.name == "*" || pick.name == name)
}

/// A red mesh with services in two member namespaces and one that is no member.
pub fn red(services: &[(&str, &str)], picks: &[Pick]) -> Vec<Value> {
    let mut all = vec![json!({
        "kind": "ServiceMeshMemberRoll",
        "metadata": {"name": "default", "namespace": "red-mesh-system",
            "creationTimestamp": "2027-01-01T00:00:00Z"},
        "spec": {"members": ["a", "b"]},
    })];
    for namespace in ["a", "b", "c"] {
        all.push(json!({"kind": "Namespace", "metadata": {"name": namespace}}));
    }
    for (i, (namespace, name)) in services.iter().enumerate() {
        all.push(json!({
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace,
                "creationTimestamp": format!("2027-01-01T00:{:02}:00Z", i % 3)},
            "spec": {"ports": [{"port": 80}]},
        }));
    }
    all.push(json!({
        "kind": "ExportedServiceSet",
        "metadata": {"name": "green-mesh", "namespace": "red-mesh-system",
            "creationTimestamp": "2027-01-01T00:00:00Z"},
        "spec": {"exportRules": picks.iter().map(rule).collect::<Vec<_>>()},
    }));
    all
}

pub fn lab(documents: impl IntoIterator<Item = Value>) -> Lab {
    let mut lab = Lab::of_examples("red");
    for document in documents {
        lab.apply_json(document);
    }
    lab
}

pub fn services() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let all: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .flat_map(|namespace| ["x", "y", "z"].map(|name| (namespace, name)))
        .collect();
    prop::sample::subsequence(all, 0..9)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_exported_but_what_a_rule_names_in_a_member_namespace(
        services in services(), picks in prop::collection::vec(pick(), 0..4),
    ) {
        let lab = lab(red(&services, &picks));
        let plan = lab.plan();
        let status = plan.statuses.exports.values().next().unwrap();
        prop_assert_eq!(status.exported_services.len(), plan.exports["green-mesh"].len());
        for exported in &status.exported_services {
            let local = &exported.local_service;
            prop_assert!(["a", "b"].contains(&local.namespace.as_str()));
            let first = picks.iter().find(|p| matches(p, &local.namespace, &local.name));
            let name = first.expect("a rule").alias.unwrap_or(&local.name);
            let expected = format!("{name}.{}.svc.green-mesh-exports.local", local.namespace);
            prop_assert_eq!(&exported.exported_name, &expected);
        }
        let config = crate::lab::gateway(&plan, "ingress-green-mesh");
        let exported: Vec<&str> =
            plan.exports["green-mesh"].values().map(|s| s.shown().host.as_str()).collect();
        for name in config.clusters.keys().filter(|name| name.contains("exports.local")) {
            prop_assert!(exported.iter().any(|host| name.ends_with(host)), "{}", name);
        }
    }

    #[test]
    fn the_order_in_which_objects_came_does_not_matter(
        services in services(), picks in prop::collection::vec(pick(), 0..4),
        order in prop::collection::vec(any::<u16>(), 20),
    ) {
        let mut documents = red(&services, &picks);
        for document in &mut documents {
            if document["metadata"].get("creationTimestamp").is_none() {
                document["metadata"]["creationTimestamp"] = json!("2027-01-01T00:00:00Z");
            }
        }
        let mut shuffled: Vec<_> = documents.iter().cloned().zip(order.iter().cycle()).collect();
        shuffled.sort_by_key(|(_, key)| **key);
        let first = lab(documents).plan();
        let second = lab(shuffled.into_iter().map(|(document, _)| document)).plan();
        prop_assert_eq!(first, second);
    }

    #[test]
    fn names_of_a_peer_never_become_local_names_beyond_our_rules(
        offers in prop::collection::btree_set(("[a-z]{1,8}", "[a-z]{1,8}"), 0..6),
        picks in prop::collection::vec(pick(), 0..4),
    ) {
        let mut green = Lab::of_examples("green");
        green.workload("bookinfo", "client", 30);
        green.apply_json(json!({
            "kind": "ImportedServiceSet",
            "metadata": {"name": "red-mesh", "namespace": "green-mesh-system"},
            "spec": {"importRules": picks.iter().map(rule).collect::<Vec<_>>()},
        }));
        let list = offers.iter().map(|(namespace, name)| Service {
            name: name.clone(),
            namespace: namespace.clone(),
            hostname: format!("{name}.{namespace}.svc.evil-exports.local"),
            ports: vec![ServicePort { name: String::new(), port: 80, protocol: "HTTP".into() }],
            accounts: Vec::new(),
            health: None,
        });
        green.hears("red-mesh", &ServiceList::new(list.collect()));
        let plan = green.plan();
        let config = crate::lab::sidecar(&plan, "bookinfo", "client-v1");
        let text = format!("{config:?}");
        prop_assert!(!text.contains("evil-exports"));
        for (name, host) in &config.routes["http-proxy"].hosts {
            prop_assert_eq!(name, &host.name);
            prop_assert_eq!(table_of(name), Some("http-proxy"));
            for domain in &host.domains {
                let ours = domain.contains(".svc.red-mesh-imports.local");
                prop_assert!(ours, "{} is not a name of our rules", domain);
            }
        }
        let status = plan.statuses.imports.values().next().unwrap();
        let imported = status.imported_services.iter().filter(|s| !s.local_service.name.is_empty());
        for service in imported {
            let (name, rest) = service.exported_name.split_once('.').unwrap();
            let (namespace, _) = rest.split_once('.').unwrap();
            let first = picks.iter().find(|p| matches(p, namespace, name));
            let local = first.expect("a rule").alias.unwrap_or(name);
            let expected = format!("{local}.{namespace}.svc.red-mesh-imports.local");
            prop_assert_eq!(&service.local_service.hostname, &expected);
        }
    }
}
