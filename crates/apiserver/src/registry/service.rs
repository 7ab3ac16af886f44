//! What a Service must be.

use std::{collections::HashSet, net::IpAddr};

use serde_json::{Map, Value, json};

use crate::{
    error::FieldError,
    json::{self, text},
    names,
};

const NODE_PORTS: std::ops::RangeInclusive<u64> = 30000..=32767;

/// Fills in what depends on other fields, and keeps what was allocated for the old object when
/// the new one leaves it out. Allocating is a controller's work.
pub fn prepare(service: &mut Value, old: Option<&Value>) {
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let kind = spec
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let mut set = |field: &str, value: Value| {
        spec.entry(field).or_insert(value);
    };
    if kind != "ExternalName" {
        set("internalTrafficPolicy", json!("Cluster"));
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        set("externalTrafficPolicy", json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        set("allocateLoadBalancerNodePorts", json!(true));
    }
    if let Some(old) = old.and_then(|old| old.get("spec")) {
        keep_allocated(spec, &kind, old);
    }
    for port in ports_mut(spec) {
        if port.get("targetPort").is_none_or(is_zero) {
            let number = port.get("port").cloned().unwrap_or_default();
            port.insert("targetPort".to_owned(), number);
        }
    }
}

fn is_zero(value: &Value) -> bool {
    *value == json!(0) || *value == json!("")
}

fn keep_allocated(spec: &mut Map<String, Value>, kind: &str, old: &Value) {
    let old_kind = text(old, &["type"]);
    if kind != "ExternalName" && old_kind != "ExternalName" {
        for field in ["clusterIP", "clusterIPs"] {
            let absent = spec
                .get(field)
                .is_none_or(|v| is_zero(v) || *v == json!([]));
            if absent && let Some(value) = old.get(field) {
                spec.insert(field.to_owned(), value.clone());
            }
        }
    }
    let has_node_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    if !has_node_ports(kind) || !has_node_ports(old_kind) {
        return;
    }
    let old_ports = old.get("ports").and_then(Value::as_array);
    let same = |a: &Map<String, Value>, b: &Value| {
        a.get("port") == b.get("port") && a.get("protocol") == b.get("protocol")
    };
    // One that another port asks for now is not kept.
    let asked: HashSet<(String, u64)> = ports_mut(spec)
        .filter_map(|port| Some((protocol(port), port.get("nodePort")?.as_u64()?)))
        .collect();
    for port in ports_mut(spec) {
        if port.get("nodePort").is_none_or(is_zero)
            && let Some(old) = old_ports.and_then(|ports| ports.iter().find(|old| same(port, old)))
            && let Some(node_port) = old.get("nodePort")
            && node_port
                .as_u64()
                .is_none_or(|number| !asked.contains(&(protocol(port), number)))
        {
            port.insert("nodePort".to_owned(), node_port.clone());
        }
    }
}

fn protocol(port: &Map<String, Value>) -> String {
    let protocol = port.get("protocol").and_then(Value::as_str);
    protocol.unwrap_or("TCP").to_owned()
}

fn ports_mut(spec: &mut Map<String, Value>) -> impl Iterator<Item = &mut Map<String, Value>> {
    let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
    ports.into_iter().flatten().filter_map(Value::as_object_mut)
}

pub fn validate(service: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let Some(spec) = service.get("spec") else {
        errors.push(FieldError::required("spec", ""));
        return;
    };
    let kind = text(spec, &["type"]);
    let headless = text(spec, &["clusterIP"]) == "None";
    let ports = spec.get("ports").and_then(Value::as_array);
    let ports = ports.map(Vec::as_slice).unwrap_or_default();
    if kind == "ExternalName" {
        if !names::is_dns_subdomain(text(spec, &["externalName"]).trim_end_matches('.')) {
            let name = spec.get("externalName").unwrap_or(&Value::Null);
            let why = "must be a DNS name, as the type is ExternalName";
            errors.push(FieldError::invalid("spec.externalName", name, why));
        }
        if !text(spec, &["clusterIP"]).is_empty() {
            let why = "may not be set when the type is ExternalName";
            errors.push(FieldError::forbidden("spec.clusterIP", why));
        }
    } else if ports.is_empty() && !headless {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let why = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid("spec.clusterIP", &json!("None"), why));
    }
    validate_addresses(spec, errors);
    let mut ids = HashSet::new();
    let mut port_names = HashSet::new();
    let mut node_ports = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        validate_port(port, ports.len() > 1, kind, &field, errors);
        let id = (
            port.get("port").map(Value::to_string),
            text(port, &["protocol"]),
        );
        if !ids.insert(id) {
            errors.push(FieldError::duplicate(format!("spec.ports[{index}]"), port));
        }
        let name = text(port, &["name"]);
        if !name.is_empty() && !port_names.insert(name) {
            errors.push(FieldError::duplicate(field("name"), &json!(name)));
        }
        if let Some(node_port) = port
            .get("nodePort")
            .and_then(Value::as_u64)
            .filter(|p| *p != 0)
            && !node_ports.insert((node_port, text(port, &["protocol"])))
        {
            errors.push(FieldError::duplicate(field("nodePort"), &json!(node_port)));
        }
    }
    if let Some(old) = old {
        validate_update(spec, old, errors);
    }
}

fn validate_port(
    port: &Value,
    named: bool,
    kind: &str,
    field: &impl Fn(&str) -> String,
    errors: &mut Vec<FieldError>,
) {
    let in_range = |value: &Value| value.as_u64().is_some_and(|n| (1..=65535).contains(&n));
    let name = text(port, &["name"]);
    if name.is_empty() && named {
        errors.push(FieldError::required(field("name"), ""));
    } else if !name.is_empty() && !names::is_dns_label(name) {
        errors.push(FieldError::invalid(
            field("name"),
            &json!(name),
            "must be a DNS label",
        ));
    }
    let why = "must be between 1 and 65535, inclusive";
    if let Some(number) = port.get("port").filter(|number| !in_range(number)) {
        errors.push(FieldError::invalid(field("port"), number, why));
    }
    match port.get("targetPort") {
        Some(target @ Value::String(name)) if !names::is_port_name(name) => {
            let why = "must be a port name: at most 15 lower case letters, digits and '-'";
            errors.push(FieldError::invalid(field("targetPort"), target, why));
        }
        Some(target @ Value::Number(_)) if !in_range(target) => {
            errors.push(FieldError::invalid(field("targetPort"), target, why));
        }
        _ => {}
    }
    let node_port = port.get("nodePort").filter(|port| !is_zero(port));
    if let Some(node_port) = node_port {
        if !matches!(kind, "NodePort" | "LoadBalancer") {
            let why = format!("may not be used when `type` is '{kind}'");
            errors.push(FieldError::forbidden(field("nodePort"), why));
        } else if node_port
            .as_u64()
            .is_none_or(|port| !NODE_PORTS.contains(&port))
        {
            let why =
                "provided port is not in the valid range. The range of valid ports is 30000-32767";
            errors.push(FieldError::invalid(field("nodePort"), node_port, why));
        }
    }
}

fn validate_addresses(spec: &Value, errors: &mut Vec<FieldError>) {
    let is_ip = |text: &str| text.parse::<IpAddr>().is_ok();
    for field in ["clusterIP", "loadBalancerIP"] {
        let address = text(spec, &[field]);
        if !address.is_empty() && address != "None" && !is_ip(address) {
            let why = "must be a valid IP address";
            errors.push(FieldError::invalid(
                format!("spec.{field}"),
                &json!(address),
                why,
            ));
        }
    }
    for field in ["externalIPs", "clusterIPs"] {
        let addresses = spec.get(field).and_then(Value::as_array);
        for (index, address) in addresses.into_iter().flatten().enumerate() {
            if address
                .as_str()
                .is_none_or(|text| !is_ip(text) && text != "None")
            {
                let field = format!("spec.{field}[{index}]");
                errors.push(FieldError::invalid(
                    field,
                    address,
                    "must be a valid IP address",
                ));
            }
        }
    }
}

fn validate_update(spec: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let old_ip = json::text(old, &["spec", "clusterIP"]);
    let ip = text(spec, &["clusterIP"]);
    let external = |spec: &Value| text(spec, &["type"]) == "ExternalName";
    if !old_ip.is_empty() && ip != old_ip && !external(spec) && !external(&old["spec"]) {
        errors.push(FieldError::invalid(
            "spec.clusterIP",
            &json!(ip),
            "field is immutable",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_port_is_kept_unless_another_port_asks_for_it() {
        let node_ports = |asked: Value| {
            let old = json!({"spec": {"type": "NodePort", "ports": [
                {"port": 1, "protocol": "TCP", "nodePort": 30001},
                {"port": 2, "protocol": "TCP", "nodePort": 30002},
            ]}});
            let mut new = json!({"spec": {"type": "LoadBalancer", "ports": [
                {"port": 1, "protocol": "TCP"},
                {"port": 2, "protocol": "TCP", "nodePort": asked},
            ]}});
            prepare(&mut new, Some(&old));
            let ports = new["spec"]["ports"].as_array().unwrap().iter();
            ports
                .map(|port| port["nodePort"].as_u64().unwrap_or_default())
                .collect::<Vec<_>>()
        };
        assert_eq!(node_ports(json!(0)), [30001, 30002]);
        assert_eq!(node_ports(json!(30001)), [0, 30001]);
    }
}
