//! Cells of builtin kinds' tables that are more than a field.

use jiff::Timestamp;
use serde_json::Value;

use super::columns::age;
use crate::json;

pub type Cell = fn(&Value, Timestamp) -> Value;

const NONE: &str = "<none>";
/// Elements of a list that are shown before "+ n more...".
const MOST_SHOWN: usize = 3;

pub fn text(object: &Value, path: &[&str]) -> Value {
    Value::from(json::text(object, path))
}

/// The number of entries of all the given fields.
pub fn count(object: &Value, fields: &[&str]) -> Value {
    let entries = |field: &&str| match object.get(field) {
        Some(Value::Object(entries)) => entries.len(),
        Some(Value::Array(entries)) => entries.len(),
        _ => 0,
    };
    Value::from(fields.iter().map(entries).sum::<usize>())
}

pub fn labels(object: &Value, path: &[&str]) -> Value {
    let labels = json::at(object, path).and_then(Value::as_object);
    let labels = labels.into_iter().flatten();
    let shown: Vec<String> = labels
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    joined(shown)
}

fn joined(items: Vec<String>) -> Value {
    if items.is_empty() {
        Value::from(NONE)
    } else {
        Value::from(items.join(","))
    }
}

fn or_none(text: &str) -> Value {
    Value::from(if text.is_empty() { NONE } else { text })
}

fn list<'a>(object: &'a Value, path: &[&str]) -> impl Iterator<Item = &'a Value> {
    let list = json::at(object, path).and_then(Value::as_array);
    list.into_iter().flatten()
}

pub fn cluster_ip(service: &Value) -> Value {
    or_none(json::text(service, &["spec", "clusterIP"]))
}

pub fn external_ip(service: &Value) -> Value {
    let own: Vec<String> = list(service, &["spec", "externalIPs"])
        .filter_map(|ip| Some(ip.as_str()?.to_owned()))
        .collect();
    match json::text(service, &["spec", "type"]) {
        "ExternalName" => or_none(json::text(service, &["spec", "externalName"])),
        "LoadBalancer" => {
            let mut all: Vec<String> = list(service, &["status", "loadBalancer", "ingress"])
                .map(|ingress| match json::text(ingress, &["ip"]) {
                    "" => json::text(ingress, &["hostname"]).to_owned(),
                    ip => ip.to_owned(),
                })
                .collect();
            all.extend(own);
            if all.is_empty() {
                return Value::from("<pending>");
            }
            joined(all)
        }
        _ => joined(own),
    }
}

pub fn service_ports(service: &Value) -> Value {
    let ports = list(service, &["spec", "ports"]).map(|port| {
        let number = |field| port.get(field).and_then(Value::as_u64).unwrap_or_default();
        let protocol = json::text(port, &["protocol"]);
        match number("nodePort") {
            0 => format!("{}/{protocol}", number("port")),
            node_port => format!("{}:{node_port}/{protocol}", number("port")),
        }
    });
    joined(ports.collect())
}

pub fn slice_ports(slice: &Value) -> Value {
    let ports: Vec<String> = list(slice, &["ports"])
        .map(|port| {
            port.get("port")
                .and_then(Value::as_u64)
                .map_or_else(|| "*".to_owned(), |port| port.to_string())
        })
        .collect();
    if ports.is_empty() {
        return Value::from("<unset>");
    }
    shortened(ports)
}

pub fn slice_endpoints(slice: &Value) -> Value {
    let addresses = list(slice, &["endpoints"]).flat_map(|endpoint| list(endpoint, &["addresses"]));
    let addresses: Vec<String> = addresses
        .filter_map(|address| Some(address.as_str()?.to_owned()))
        .collect();
    if addresses.is_empty() {
        return Value::from("<unset>");
    }
    shortened(addresses)
}

fn shortened(items: Vec<String>) -> Value {
    let more = items.len().saturating_sub(MOST_SHOWN);
    let shown = items[..items.len() - more].join(",");
    Value::from(match more {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    })
}

/// Events start with when they were seen, and have no name column but in wide output.
pub const EVENT: &[(&str, Cell)] = &[
    ("Last Seen|string|Time since it was last seen", |o, now| {
        Value::from(age(
            event_time(
                o,
                &["series.lastObservedTime", "lastTimestamp", "eventTime"],
            ),
            now,
        ))
    }),
    ("Type|string|Normal or Warning", |o, _| text(o, &["type"])),
    ("Reason|string|Why, in one word", |o, _| {
        text(o, &["reason"])
    }),
    ("Object|string|What it is about", |o, _| {
        let kind = json::text(o, &["involvedObject", "kind"]).to_lowercase();
        let name = json::text(o, &["involvedObject", "name"]);
        Value::from(format!("{kind}/{name}"))
    }),
    ("*Subobject|string|The part of the object", |o, _| {
        text(o, &["involvedObject", "fieldPath"])
    }),
    ("*Source|string|Who says so", |o, _| {
        match json::text(o, &["source", "component"]) {
            "" => text(o, &["reportingComponent"]),
            component => Value::from(component),
        }
    }),
    ("Message|string|What happened", |o, _| {
        Value::from(json::text(o, &["message"]).trim())
    }),
    (
        "*First Seen|string|Time since it was first seen",
        |o, now| Value::from(age(event_time(o, &["firstTimestamp", "eventTime"]), now)),
    ),
    ("*Count|string|How often it happened", |o, _| {
        let series = json::at(o, &["series", "count"]).and_then(Value::as_u64);
        let own = o.get("count").and_then(Value::as_u64);
        Value::from(series.or(own).unwrap_or(1))
    }),
    ("*Name|string|The name of the event", |o, _| {
        text(o, &["metadata", "name"])
    }),
];

fn event_time<'a>(event: &'a Value, fields: &[&str]) -> &'a str {
    let times = fields.iter().map(|field| {
        let path: Vec<&str> = field.split('.').collect();
        json::text(event, &path)
    });
    times
        .into_iter()
        .find(|time| !time.is_empty())
        .unwrap_or_default()
}

pub const POD: &[(&str, Cell)] = &[
    ("Ready|string|Ready containers of all", |o, _| {
        let ready = list(o, &["status", "containerStatuses"])
            .filter(|status| status.get("ready") == Some(&Value::Bool(true)))
            .count();
        let all = list(o, &["spec", "containers"]).count();
        Value::from(format!("{ready}/{all}"))
    }),
    ("Status|string|The phase, or the reason for it", |o, _| {
        if json::at(o, &["metadata", "deletionTimestamp"]).is_some() {
            return Value::from("Terminating");
        }
        match json::text(o, &["status", "reason"]) {
            "" => text(o, &["status", "phase"]),
            reason => Value::from(reason),
        }
    }),
    ("Restarts|string|Restarts of all its containers", |o, _| {
        let restarts = list(o, &["status", "containerStatuses"])
            .filter_map(|status| status.get("restartCount")?.as_u64());
        Value::from(restarts.sum::<u64>().to_string())
    }),
    ("*IP|string|The address", |o, _| {
        or_none(json::text(o, &["status", "podIP"]))
    }),
    ("*Node|string|The node", |o, _| {
        or_none(json::text(o, &["spec", "nodeName"]))
    }),
    ("*Nominated Node|string|The node that was chosen", |o, _| {
        or_none(json::text(o, &["status", "nominatedNodeName"]))
    }),
    (
        "*Readiness Gates|string|Conditions for readiness",
        |o, _| match list(o, &["spec", "readinessGates"]).count() {
            0 => Value::from(NONE),
            gates => Value::from(gates.to_string()),
        },
    ),
];

pub const NODE: &[(&str, Cell)] = &[
    ("Status|string|Whether it is ready", |o, _| {
        let ready = list(o, &["status", "conditions"])
            .find(|condition| json::text(condition, &["type"]) == "Ready");
        let status = match ready.map(|ready| json::text(ready, &["status"])) {
            Some("True") => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        };
        Value::from(status)
    }),
    ("Roles|string|Its roles, from labels", |o, _| {
        let labels = json::at(o, &["metadata", "labels"]).and_then(Value::as_object);
        let roles = labels.into_iter().flatten().filter_map(|(key, _)| {
            let role = key.strip_prefix("node-role.kubernetes.io/")?;
            Some(role.to_owned())
        });
        joined(roles.collect())
    }),
    ("Version|string|The version of what runs it", |o, _| {
        text(o, &["status", "nodeInfo", "kubeletVersion"])
    }),
    ("*Internal-IP|string|Its address", |o, _| {
        let internal = list(o, &["status", "addresses"])
            .find(|address| json::text(address, &["type"]) == "InternalIP");
        or_none(internal.map_or("", |address| json::text(address, &["address"])))
    }),
];
