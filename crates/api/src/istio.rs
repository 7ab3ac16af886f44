//! Kinds of Istio that meshfed stores, as data: several versions over one storage.
//!
//! Their schemas check what every object of the kind must have and keep everything else as it
//! is.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

struct Kind {
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    /// The first is the stored one.
    versions: &'static [&'static str],
    required: &'static [&'static str],
    properties: fn() -> Value,
    columns: fn() -> Value,
}

const KINDS: [Kind; 4] = [
    Kind {
        group: "networking.istio.io",
        kind: "DestinationRule",
        plural: "destinationrules",
        short: &["dr"],
        versions: &["v1", "v1beta1", "v1alpha3"],
        required: &["host"],
        properties: || {
            json!({
                "host": {"type": "string", "minLength": 1, "maxLength": 1024},
                "trafficPolicy": open(),
                "subsets": {"type": "array", "items": open()},
                "exportTo": {"type": "array", "items": {"type": "string"}},
                "workloadSelector": open(),
            })
        },
        columns: || {
            json!([
                {"name": "Host", "type": "string", "jsonPath": ".spec.host"},
                {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            ])
        },
    },
    Kind {
        group: "networking.istio.io",
        kind: "VirtualService",
        plural: "virtualservices",
        short: &["vs"],
        versions: &["v1", "v1beta1", "v1alpha3"],
        required: &[],
        properties: || {
            json!({
                "hosts": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 1024}},
                "gateways": {"type": "array", "items": {"type": "string"}},
                "http": {"type": "array", "items": open()},
                "tls": {"type": "array", "items": open()},
                "tcp": {"type": "array", "items": open()},
                "exportTo": {"type": "array", "items": {"type": "string"}},
            })
        },
        columns: || {
            json!([
                {"name": "Gateways", "type": "string", "jsonPath": ".spec.gateways"},
                {"name": "Hosts", "type": "string", "jsonPath": ".spec.hosts"},
                {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            ])
        },
    },
    Kind {
        group: "security.istio.io",
        kind: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        short: &["ap"],
        versions: &["v1", "v1beta1"],
        required: &[],
        properties: || {
            json!({
                "selector": open(),
                "targetRef": open(),
                "targetRefs": {"type": "array", "items": open()},
                "rules": {"type": "array", "maxItems": 512, "items": open()},
                "action": {"type": "string", "enum": ["ALLOW", "DENY", "AUDIT", "CUSTOM"]},
                "provider": open(),
            })
        },
        columns: || {
            json!([
                {"name": "Action", "type": "string", "jsonPath": ".spec.action"},
                {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            ])
        },
    },
    Kind {
        group: "security.istio.io",
        kind: "PeerAuthentication",
        plural: "peerauthentications",
        short: &["pa"],
        versions: &["v1", "v1beta1"],
        required: &[],
        properties: || {
            let mode = json!({"type": "object", "properties": {"mode": {
                "type": "string", "enum": ["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]
            }}});
            json!({
                "selector": open(),
                "mtls": mode,
                "portLevelMtls": {"type": "object", "additionalProperties": mode},
            })
        },
        columns: || {
            json!([
                {"name": "Mode", "type": "string", "jsonPath": ".spec.mtls.mode"},
                {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            ])
        },
    },
];

/// The CustomResourceDefinitions of the Istio kinds.
///
/// # Panics
///
/// Never: a test makes every one of them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    KINDS.iter().map(definition).collect()
}

/// An object whose fields are kept and not checked.
fn open() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

#[expect(
    clippy::expect_used,
    reason = "the tables above are constants, and a test converts each"
)]
fn definition(kind: &Kind) -> CustomResourceDefinition {
    let schema = json!({
        "type": "object",
        "properties": {
            "spec": {"type": "object", "required": kind.required, "properties": (kind.properties)()},
            "status": open(),
        },
    });
    let versions: Vec<Value> = kind
        .versions
        .iter()
        .enumerate()
        .map(|(i, name)| {
            json!({
                "name": name,
                "served": true,
                "storage": i == 0,
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}},
                "additionalPrinterColumns": (kind.columns)(),
            })
        })
        .collect();
    let warning = format!(
        "meshfed keeps this {} and checks its form, and does not act on it yet",
        kind.kind
    );
    serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{}", kind.plural, kind.group),
            "annotations": {"meshfed.io/warning": warning},
        },
        "spec": {
            "group": kind.group,
            "names": {
                "kind": kind.kind,
                "listKind": format!("{}List", kind.kind),
                "plural": kind.plural,
                "singular": kind.kind.to_lowercase(),
                "shortNames": kind.short,
                "categories": ["istio-io"],
            },
            "scope": "Namespaced",
            "versions": versions,
        },
    }))
    .expect("a constant table is a valid CustomResourceDefinition")
}
