//! What callers ask about themselves: `kubectl auth whoami` and `kubectl auth can-i`.

use serde_json::{Value, json};

use super::{Attributes, Caller};
use crate::json::text;

/// The virtual resources: group, plural, kind.
pub const REVIEWS: &[(&str, &str, &str)] = &[
    (
        "authentication.k8s.io",
        "selfsubjectreviews",
        "SelfSubjectReview",
    ),
    (
        "authorization.k8s.io",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
    ),
    (
        "authorization.k8s.io",
        "selfsubjectrulesreviews",
        "SelfSubjectRulesReview",
    ),
];

/// Answers a review; `None` if there is no such one.
pub fn answer(caller: &Caller, group: &str, plural: &str, request: &Value) -> Option<Value> {
    let (_, _, kind) = REVIEWS
        .iter()
        .find(|(known, resource, _)| *known == group && *resource == plural)?;
    let spec = request.get("spec").cloned().unwrap_or_else(|| json!({}));
    let status = match *kind {
        "SelfSubjectReview" => who_am_i(caller),
        "SelfSubjectAccessReview" => may_i(caller, &spec),
        _ => rules(caller),
    };
    let mut review = json!({
        "kind": kind,
        "apiVersion": format!("{group}/v1"),
        "metadata": {"creationTimestamp": null},
        "spec": spec,
        "status": status,
    });
    if *kind == "SelfSubjectReview"
        && let Some(review) = review.as_object_mut()
    {
        review.shift_remove("spec");
    }
    Some(review)
}

fn who_am_i(caller: &Caller) -> Value {
    let mut user = json!({"username": caller.name(), "groups": caller.groups()});
    if let Some(uid) = caller.uid() {
        user["uid"] = uid.into();
    }
    json!({"userInfo": user})
}

fn may_i(caller: &Caller, spec: &Value) -> Value {
    let allowed = if let Some(resource) = spec.get("resourceAttributes") {
        let full = match text(resource, &["subresource"]) {
            "" => text(resource, &["resource"]).to_owned(),
            subresource => format!("{}/{subresource}", text(resource, &["resource"])),
        };
        caller.may(&Attributes {
            verb: text(resource, &["verb"]),
            group: text(resource, &["group"]),
            resource: &full,
            namespace: text(resource, &["namespace"]),
            name: text(resource, &["name"]),
        })
    } else {
        let path = spec.get("nonResourceAttributes").unwrap_or(&Value::Null);
        let all = matches!(caller, Caller::Admin { .. });
        let reads = text(path, &["verb"]) == "get" && caller.may_read(text(path, &["path"]));
        all || reads
    };
    json!({"allowed": allowed})
}

fn rules(caller: &Caller) -> Value {
    let (resources, paths) = match caller {
        Caller::Admin { .. } => (
            json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]),
            json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]),
        ),
        Caller::ServiceAccount(_) => (
            REVIEWS
                .iter()
                .map(|(group, plural, _)| {
                    json!({"verbs": ["create"], "apiGroups": [group], "resources": [plural]})
                })
                .collect(),
            json!([{"verbs": ["get"], "nonResourceURLs":
                ["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*", "/version"]}]),
        ),
        Caller::Anonymous => (json!([]), json!([])),
    };
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}
