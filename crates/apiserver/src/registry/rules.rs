//! What the other builtin kinds must be.

use std::{collections::HashSet, net::IpAddr};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

use crate::{
    error::{FieldError, FieldErrorKind},
    json::{self, text},
    names,
};

/// ConfigMaps and Secrets hold at most this many bytes.
const LARGEST_DATA: usize = 1024 * 1024;

/// Namespaces carry their name as a label, for selectors, and are emptied before they go.
pub fn prepare_namespace(namespace: &mut Value, old: Option<&Value>) {
    if old.is_none() {
        namespace["spec"] = json!({"finalizers": ["kubernetes"]});
    }
    let Some(metadata) = json::metadata_mut(namespace) else {
        return;
    };
    let name = metadata.get("name").cloned().unwrap_or_default();
    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name);
    }
}

/// `stringData` is a way to write `data`.
pub fn prepare_secret(secret: &mut Value, _old: Option<&Value>) {
    let Some(secret) = secret.as_object_mut() else {
        return;
    };
    let Some(Value::Object(plain)) = secret.remove("stringData") else {
        return;
    };
    let data = secret.entry("data").or_insert_with(|| json!({}));
    if let Some(data) = data.as_object_mut() {
        for (key, value) in plain {
            let encoded = BASE64_STANDARD.encode(value.as_str().unwrap_or_default());
            data.insert(key, encoded.into());
        }
    }
}

fn entries<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let entries = object.get(field).and_then(Value::as_object);
    entries.into_iter().flatten()
}

fn validate_data(object: &Value, fields: &[&str], errors: &mut Vec<FieldError>) {
    let mut size = 0;
    let mut seen = HashSet::new();
    for field in fields {
        for (key, value) in entries(object, field) {
            size += value.as_str().map_or(0, str::len);
            if !names::is_config_key(key) {
                let why =
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
                errors.push(FieldError::invalid(
                    format!("{field}[{key}]"),
                    &json!(key),
                    why,
                ));
            }
            if !seen.insert(key) {
                let why = "duplicate of key present in data";
                errors.push(FieldError::invalid(
                    format!("{field}[{key}]"),
                    &json!(key),
                    why,
                ));
            }
        }
    }
    if size > LARGEST_DATA {
        let message = format!("Too long: may not be more than {LARGEST_DATA} bytes");
        errors.push(FieldError::new("", FieldErrorKind::TooLong, message));
    }
}

fn validate_immutable(
    object: &Value,
    old: Option<&Value>,
    fields: &[&str],
    errors: &mut Vec<FieldError>,
) {
    let Some(old) = old else { return };
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    for field in ["immutable"].iter().chain(fields) {
        if object.get(field) != old.get(field) {
            errors.push(FieldError::forbidden(*field, why));
        }
    }
}

pub fn validate_config_map(object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    validate_data(object, &["data", "binaryData"], errors);
    validate_immutable(object, old, &["data", "binaryData"], errors);
}

pub fn validate_secret(secret: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    validate_data(secret, &["data"], errors);
    validate_immutable(secret, old, &["data"], errors);
    if let Some(old) = old
        && old.get("type") != secret.get("type")
    {
        let kind = secret.get("type").unwrap_or(&Value::Null);
        errors.push(FieldError::invalid("type", kind, "field is immutable"));
    }
    let needed: &[&str] = match text(secret, &["type"]) {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        _ => &[],
    };
    for key in needed {
        if json::at(secret, &["data", key]).is_none() {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    }
}

/// Completes what clients show.
pub fn prepare_event(event: &mut Value, _old: Option<&Value>) {
    if let Some(event) = event.as_object_mut() {
        event.entry("type").or_insert_with(|| json!("Normal"));
    }
}

pub fn validate_event(event: &Value, _old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let field = if event.get("regarding").is_some() {
        "regarding"
    } else {
        "involvedObject"
    };
    let about = text(event, &[field, "namespace"]);
    let own = text(event, &["metadata", "namespace"]);
    // Events about what has no namespace are kept in `default`.
    if about != own && !(about.is_empty() && own == "default") {
        let why = "does not match event.namespace";
        errors.push(FieldError::invalid(
            format!("{field}.namespace"),
            &json!(about),
            why,
        ));
    }
}

pub fn validate_lease(lease: &Value, _old: Option<&Value>, errors: &mut Vec<FieldError>) {
    for (field, least) in [("leaseDurationSeconds", 1), ("leaseTransitions", 0)] {
        let value = json::at(lease, &["spec", field]);
        if let Some(value) = value.filter(|value| value.as_i64().is_none_or(|n| n < least)) {
            let why = format!("must be greater than or equal to {least}");
            errors.push(FieldError::invalid(format!("spec.{field}"), value, why));
        }
    }
}

pub fn validate_endpoint_slice(slice: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let kind = text(slice, &["addressType"]);
    if let Some(old) = old
        && text(old, &["addressType"]) != kind
    {
        errors.push(FieldError::invalid(
            "addressType",
            &json!(kind),
            "field is immutable",
        ));
    }
    let list = |field: &str| {
        let list = slice.get(field).and_then(Value::as_array);
        list.map(Vec::as_slice).unwrap_or_default()
    };
    for (field, most) in [("endpoints", 1000), ("ports", 100)] {
        let count = list(field).len();
        if count > most {
            let message = format!("Too many: {count}: must have at most {most} items");
            errors.push(FieldError::new(field, FieldErrorKind::TooMany, message));
        }
    }
    for (index, endpoint) in list("endpoints").iter().enumerate() {
        let field = format!("endpoints[{index}].addresses");
        let addresses = endpoint.get("addresses").and_then(Value::as_array);
        let addresses = addresses.map(Vec::as_slice).unwrap_or_default();
        if addresses.is_empty() {
            errors.push(FieldError::required(
                field.clone(),
                "must contain at least 1 address",
            ));
        }
        for (index, address) in addresses.iter().enumerate() {
            let ip = address.as_str().map(str::parse::<IpAddr>);
            let fits = match (kind, ip) {
                ("IPv4", Some(Ok(ip))) => ip.is_ipv4(),
                ("IPv6", Some(Ok(ip))) => ip.is_ipv6(),
                ("FQDN", _) => address.as_str().is_some_and(names::is_dns_subdomain),
                _ => false,
            };
            if !fits {
                let why = format!("must be an address of the type {kind}");
                errors.push(FieldError::invalid(
                    format!("{field}[{index}]"),
                    address,
                    why,
                ));
            }
        }
    }
    let mut seen = HashSet::new();
    for (index, port) in list("ports").iter().enumerate() {
        let name = text(port, &["name"]);
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(
                format!("ports[{index}].name"),
                &json!(name),
            ));
        }
        let number = port.get("port");
        if let Some(number) =
            number.filter(|n| !n.as_u64().is_some_and(|n| (1..=65535).contains(&n)))
        {
            let why = "must be between 1 and 65535, inclusive";
            errors.push(FieldError::invalid(
                format!("ports[{index}].port"),
                number,
                why,
            ));
        }
    }
}

pub fn validate_pod(pod: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let containers = spec.get("containers").and_then(Value::as_array);
    let containers = containers.map(Vec::as_slice).unwrap_or_default();
    if containers.is_empty() {
        errors.push(FieldError::required("spec.containers", ""));
    }
    for (index, container) in containers.iter().enumerate() {
        let name = text(container, &["name"]);
        if !names::is_dns_label(name) {
            let field = format!("spec.containers[{index}].name");
            errors.push(FieldError::invalid(
                field,
                &json!(name),
                "must be a DNS label",
            ));
        }
        if text(container, &["image"]).is_empty() {
            errors.push(FieldError::required(
                format!("spec.containers[{index}].image"),
                "",
            ));
        }
    }
    let old = old.and_then(|old| old.get("spec"));
    if old.is_some_and(|old| fixed(old) != fixed(spec)) {
        let why = "pod updates may not change fields other than images, \
                   `spec.activeDeadlineSeconds` and `spec.tolerations`";
        errors.push(FieldError::forbidden("spec", why));
    }
}

/// The part of a pod's spec that never changes.
fn fixed(spec: &Value) -> Value {
    let mut spec = spec.as_object().cloned().unwrap_or_else(Map::new);
    for field in ["activeDeadlineSeconds", "tolerations"] {
        spec.remove(field);
    }
    for field in ["containers", "initContainers"] {
        let containers = spec.get_mut(field).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.remove("image");
            }
        }
    }
    Value::Object(spec)
}
