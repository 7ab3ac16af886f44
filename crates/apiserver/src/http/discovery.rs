//! What is served: the groups, their versions and resources, in the old and the aggregated form.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    auth::reviews::REVIEWS,
    registry::{Registry, ResourceType},
};

/// The version that clients judge compatibility by.
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "33",
        "gitVersion": concat!("v1.33.0+meshfed.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

const READ: &[&str] = &["get", "list", "watch"];
const ALL: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// Versions by group, the preferred first.
pub fn groups(registry: &Registry) -> BTreeMap<String, Vec<String>> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for ty in registry.types() {
        let versions = groups.entry(ty.group.clone()).or_default();
        for version in &ty.versions {
            if !versions.contains(&version.name) {
                versions.push(version.name.clone());
            }
        }
    }
    for (group, _, _) in REVIEWS {
        groups.insert((*group).to_owned(), vec!["v1".to_owned()]);
    }
    for versions in groups.values_mut() {
        versions.sort_by_key(|version| std::cmp::Reverse(crate::registry::priority(version)));
    }
    groups
}

pub fn api_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

pub fn group_list(registry: &Registry) -> Value {
    let groups: Vec<Value> = groups(registry)
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_entry(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

pub fn group(registry: &Registry, name: &str) -> Option<Value> {
    let groups = groups(registry);
    let versions = groups.get(name).filter(|_| !name.is_empty())?;
    let mut entry = group_entry(name, versions);
    entry["kind"] = "APIGroup".into();
    entry["apiVersion"] = "v1".into();
    Some(entry)
}

fn group_entry(group: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

/// The resources of a group's version.
pub fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    if !groups(registry)
        .get(group)?
        .iter()
        .any(|known| known == version)
    {
        return None;
    }
    let mut resources = Vec::new();
    for ty in served(registry, group, version) {
        resources.push(json!({
            "name": ty.plural,
            "singularName": ty.singular,
            "namespaced": ty.namespaced,
            "kind": ty.kind,
            "verbs": verbs(ty),
            "shortNames": ty.short_names,
            "categories": ty.categories,
        }));
        for sub in subresources(ty, version) {
            let mut entry = json!({
                "name": format!("{}/{}", ty.plural, sub.name),
                "singularName": "",
                "namespaced": ty.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if let Some(group) = sub.group {
                entry["group"] = group.into();
                entry["version"] = "v1".into();
            }
            resources.push(entry);
        }
    }
    for (_, plural, kind) in reviews(group, version) {
        resources.push(json!({
            "name": plural,
            "singularName": kind.to_lowercase(),
            "namespaced": false,
            "kind": kind,
            "verbs": ["create"],
        }));
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    }))
}

/// Everything in one document; `core` chooses between the core group and all others.
pub fn aggregated(registry: &Registry, core: bool) -> Value {
    let items: Vec<Value> = groups(registry)
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    json!({
                        "version": version,
                        "resources": aggregated_resources(registry, group, version),
                        "freshness": "Current",
                    })
                })
                .collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resources(registry: &Registry, group: &str, version: &str) -> Vec<Value> {
    let response_kind =
        |group: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut resources: Vec<Value> = served(registry, group, version)
        .map(|ty| {
            let subresources: Vec<Value> = subresources(ty, version)
                .map(|sub| {
                    let kind = match sub.group {
                        Some(group) => json!({"group": group, "version": "v1", "kind": sub.kind}),
                        None => response_kind(group, &sub.kind),
                    };
                    json!({"subresource": sub.name, "responseKind": kind, "verbs": sub.verbs})
                })
                .collect();
            json!({
                "resource": ty.plural,
                "responseKind": response_kind(group, &ty.kind),
                "scope": if ty.namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": ty.singular,
                "verbs": verbs(ty),
                "shortNames": ty.short_names,
                "categories": ty.categories,
                "subresources": subresources,
            })
        })
        .collect();
    resources.extend(reviews(group, version).map(|(_, plural, kind)| {
        json!({
            "resource": plural,
            "responseKind": response_kind(group, kind),
            "scope": "Cluster",
            "singularResource": kind.to_lowercase(),
            "verbs": ["create"],
        })
    }));
    resources
}

struct Subresource {
    name: &'static str,
    kind: String,
    /// If it is not that of the resource.
    group: Option<&'static str>,
    verbs: &'static [&'static str],
}

fn subresources<'a>(
    ty: &'a ResourceType,
    version: &str,
) -> impl Iterator<Item = Subresource> + use<'a> {
    let status = ty.version(version).is_some_and(|version| version.status);
    let status = (status && !ty.read_only).then(|| Subresource {
        name: "status",
        kind: ty.kind.clone(),
        group: None,
        verbs: &["get", "patch", "update"],
    });
    let token = ty.is("", "serviceaccounts").then(|| Subresource {
        name: "token",
        kind: "TokenRequest".to_owned(),
        group: Some("authentication.k8s.io"),
        verbs: &["create"],
    });
    status.into_iter().chain(token)
}

fn served<'a>(
    registry: &'a Registry,
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a ResourceType> {
    let types = registry.types().map(|ty| &**ty);
    types.filter(move |ty| ty.group == group && ty.version(version).is_some())
}

fn reviews<'a>(
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'static (&'static str, &'static str, &'static str)> + use<'a> {
    REVIEWS
        .iter()
        .filter(move |(known, _, _)| *known == group && version == "v1")
}

fn verbs(ty: &ResourceType) -> &'static [&'static str] {
    if ty.read_only { READ } else { ALL }
}
