//! A connected proxy: what it has proven, and what it says about itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use meshfed_pki::SpiffeId;
use meshfed_xds::proto::{Node, Value, value};
use prost::Message;

/// The longest Node that is read, in bytes.
const MAX_NODE_LEN: usize = 64 * 1024;
/// The longest node id and cluster, in bytes.
const MAX_ID_LEN: usize = 1024;
/// Labels and addresses of a node, at most.
const MAX_ENTRIES: usize = 128;
/// Structs and lists in metadata nest at most this deep.
const MAX_DEPTH: usize = 16;

/// Keys of the node's metadata that are read here; the names are Istio's, but for `READY`.
mod key {
    /// Name of the Pod.
    pub const NAME: &str = "NAME";
    pub const NAMESPACE: &str = "NAMESPACE";
    pub const SERVICE_ACCOUNT: &str = "SERVICE_ACCOUNT";
    /// A struct of strings.
    pub const LABELS: &str = "LABELS";
    /// Addresses of the workload, separated by commas.
    pub const INSTANCE_IPS: &str = "INSTANCE_IPS";
    /// Whether the workload behind a sidecar answers: a bool, or the string `true` or `false`.
    pub const READY: &str = "READY";
}

/// Tells streams apart for the life of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub(super) u64);

/// A connected proxy.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthenticatedNode {
    pub connection: ConnectionId,
    /// Proven by its certificate: decides namespace and service account.
    pub identity: SpiffeId,
    /// Where the connection comes from.
    pub peer: SocketAddr,
    /// The node's id; its own word, as everything below.
    pub id: String,
    pub cluster: String,
    /// Name of the Pod (metadata `NAME`).
    pub name: Option<String>,
    /// Labels of the Pod (metadata `LABELS`).
    pub labels: BTreeMap<String, String>,
    /// Addresses of the Pod (metadata `INSTANCE_IPS`).
    pub addresses: Vec<IpAddr>,
    /// Whether the workload answers (metadata `READY`); `None` if the node does not say.
    pub ready: Option<bool>,
    /// All of the metadata, for what is not read here.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

/// Why a Node was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    #[error("the first request has no node")]
    Missing,
    #[error("the node is longer than {MAX_NODE_LEN} bytes, or nested deeper than {MAX_DEPTH}")]
    TooLarge,
    #[error("the node's id is empty or longer than {MAX_ID_LEN} bytes")]
    BadId,
    #[error("the node's id changed within a stream")]
    IdChanged,
    #[error("the node's metadata {field} cannot be used: {reason}")]
    Metadata {
        field: &'static str,
        reason: &'static str,
    },
    #[error("the node says {field} {claimed:?}, its certificate says {proven:?}")]
    NotProven {
        field: &'static str,
        claimed: String,
        proven: String,
    },
}

impl AuthenticatedNode {
    pub fn namespace(&self) -> &str {
        self.identity.namespace()
    }

    pub fn service_account(&self) -> &str {
        self.identity.service_account()
    }

    pub(super) fn read(
        connection: ConnectionId,
        identity: SpiffeId,
        peer: SocketAddr,
        node: &Node,
    ) -> Result<Self, NodeError> {
        if node.encoded_len() > MAX_NODE_LEN {
            return Err(NodeError::TooLarge);
        }
        if node.id.is_empty() || node.id.len() > MAX_ID_LEN || node.cluster.len() > MAX_ID_LEN {
            return Err(NodeError::BadId);
        }
        let metadata = match &node.metadata {
            Some(fields) => object(fields.fields.iter(), 0)?,
            None => serde_json::Map::new(),
        };
        for (field, proven) in [
            (key::NAMESPACE, identity.namespace()),
            (key::SERVICE_ACCOUNT, identity.service_account()),
        ] {
            match text(&metadata, field)? {
                Some(claimed) if claimed != proven => {
                    return Err(NodeError::NotProven {
                        field,
                        claimed: claimed.chars().take(120).collect(),
                        proven: proven.to_string(),
                    });
                }
                _ => {}
            }
        }
        let name = text(&metadata, key::NAME)?.map(str::to_string);
        Ok(Self {
            connection,
            peer,
            id: node.id.clone(),
            cluster: node.cluster.clone(),
            name,
            labels: labels(&metadata)?,
            addresses: addresses(&metadata)?,
            ready: ready(&metadata)?,
            identity,
            metadata,
        })
    }
}

type Fields = serde_json::Map<String, serde_json::Value>;

const fn bad(field: &'static str, reason: &'static str) -> NodeError {
    NodeError::Metadata { field, reason }
}

fn text<'a>(metadata: &'a Fields, field: &'static str) -> Result<Option<&'a str>, NodeError> {
    match metadata.get(field) {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(text)) => {
            Ok(Some(text).filter(|t| !t.is_empty()).map(|t| t.as_str()))
        }
        Some(_) => Err(bad(field, "it is not a string")),
    }
}

fn labels(metadata: &Fields) -> Result<BTreeMap<String, String>, NodeError> {
    let labels = match metadata.get(key::LABELS) {
        None | Some(serde_json::Value::Null) => return Ok(BTreeMap::new()),
        Some(serde_json::Value::Object(labels)) => labels,
        Some(_) => return Err(bad(key::LABELS, "it is not a struct")),
    };
    if labels.len() > MAX_ENTRIES {
        return Err(bad(key::LABELS, "there are too many"));
    }
    labels
        .iter()
        .map(|(name, value)| match value {
            serde_json::Value::String(value) => Ok((name.clone(), value.clone())),
            _ => Err(bad(key::LABELS, "a value is not a string")),
        })
        .collect()
}

fn addresses(metadata: &Fields) -> Result<Vec<IpAddr>, NodeError> {
    let Some(text) = text(metadata, key::INSTANCE_IPS)? else {
        return Ok(Vec::new());
    };
    let addresses = text
        .split(',')
        .map(|address| address.trim().parse())
        .collect::<Result<Vec<IpAddr>, _>>()
        .map_err(|_| bad(key::INSTANCE_IPS, "it is not a list of IP addresses"))?;
    if addresses.len() > MAX_ENTRIES {
        return Err(bad(key::INSTANCE_IPS, "there are too many"));
    }
    Ok(addresses)
}

fn ready(metadata: &Fields) -> Result<Option<bool>, NodeError> {
    match metadata.get(key::READY) {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::Bool(ready)) => Ok(Some(*ready)),
        Some(serde_json::Value::String(text)) => match text.as_str() {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            _ => Err(bad(key::READY, "it is neither true nor false")),
        },
        Some(_) => Err(bad(key::READY, "it is neither true nor false")),
    }
}

fn object<'a>(
    fields: impl Iterator<Item = (&'a String, &'a Value)>,
    depth: usize,
) -> Result<Fields, NodeError> {
    if depth > MAX_DEPTH {
        return Err(NodeError::TooLarge);
    }
    fields
        .map(|(name, value)| Ok((name.clone(), json(value, depth)?)))
        .collect()
}

fn json(value: &Value, depth: usize) -> Result<serde_json::Value, NodeError> {
    use serde_json::Value as Json;
    Ok(match &value.kind {
        None | Some(value::Kind::NullValue(_)) => Json::Null,
        Some(value::Kind::BoolValue(v)) => Json::Bool(*v),
        Some(value::Kind::NumberValue(v)) => {
            serde_json::Number::from_f64(*v).map_or(Json::Null, Json::Number)
        }
        Some(value::Kind::StringValue(v)) => Json::String(v.clone()),
        Some(value::Kind::StructValue(v)) => Json::Object(object(v.fields.iter(), depth + 1)?),
        Some(value::Kind::ListValue(v)) if depth < MAX_DEPTH => Json::Array(
            v.values
                .iter()
                .map(|v| json(v, depth + 1))
                .collect::<Result<_, _>>()?,
        ),
        Some(value::Kind::ListValue(_)) => return Err(NodeError::TooLarge),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use meshfed_xds::proto::Struct;

    use super::*;

    pub(in crate::ads) fn mk_node(id: &str, fields: serde_json::Value) -> Node {
        Node {
            id: id.to_string(),
            metadata: Some(Struct {
                fields: fields
                    .as_object()
                    .unwrap()
                    .iter()
                    .map(|(name, value)| (name.clone(), mk_value(value)))
                    .collect(),
            }),
            ..Node::default()
        }
    }

    fn mk_value(json: &serde_json::Value) -> Value {
        use serde_json::Value as Json;
        let kind = match json {
            Json::Null => value::Kind::NullValue(0),
            Json::Bool(v) => value::Kind::BoolValue(*v),
            Json::Number(v) => value::Kind::NumberValue(v.as_f64().unwrap()),
            Json::String(v) => value::Kind::StringValue(v.clone()),
            Json::Array(v) => value::Kind::ListValue(meshfed_xds::proto::ListValue {
                values: v.iter().map(mk_value).collect(),
            }),
            Json::Object(v) => value::Kind::StructValue(Struct {
                fields: v.iter().map(|(n, v)| (n.clone(), mk_value(v))).collect(),
            }),
        };
        Value { kind: Some(kind) }
    }

    pub(in crate::ads) fn read(node: &Node) -> Result<AuthenticatedNode, NodeError> {
        AuthenticatedNode::read(
            ConnectionId(1),
            "spiffe://red-mesh.local/ns/bookinfo/sa/ratings"
                .parse()
                .unwrap(),
            "127.0.0.1:1".parse().unwrap(),
            node,
        )
    }

    #[test]
    fn a_node_says_its_labels_addresses_and_readiness() {
        let node = read(&mk_node(
            "sidecar~ratings-1",
            serde_json::json!({
                "NAME": "ratings-1",
                "NAMESPACE": "bookinfo",
                "SERVICE_ACCOUNT": "ratings",
                "LABELS": {"app": "ratings", "version": "v1"},
                "INSTANCE_IPS": "127.0.10.1, ::1",
                "READY": true,
                "OTHER": [1, {"a": null}],
            }),
        ))
        .unwrap();
        assert_eq!(node.name.as_deref(), Some("ratings-1"));
        assert_eq!(node.labels["version"], "v1");
        assert_eq!(node.addresses.len(), 2);
        assert_eq!(node.ready, Some(true));
        assert_eq!(
            node.metadata["OTHER"],
            serde_json::json!([1.0, {"a": null}])
        );
    }

    #[test]
    fn a_node_cannot_claim_more_than_its_certificate() {
        for fields in [
            serde_json::json!({"NAMESPACE": "red-mesh-system"}),
            serde_json::json!({"SERVICE_ACCOUNT": "istiod"}),
        ] {
            let refused = read(&mk_node("n", fields));
            assert!(
                matches!(refused, Err(NodeError::NotProven { .. })),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn nodes_that_make_no_sense_are_refused() {
        let mut deep = serde_json::json!(1);
        for _ in 0..=MAX_DEPTH {
            deep = serde_json::json!([deep]);
        }
        for fields in [
            serde_json::json!({"NAME": 1}),
            serde_json::json!({"LABELS": "app=ratings"}),
            serde_json::json!({"LABELS": {"app": 1}}),
            serde_json::json!({"INSTANCE_IPS": "here"}),
            serde_json::json!({"READY": "maybe"}),
            serde_json::json!({"BIG": "x".repeat(MAX_NODE_LEN)}),
            serde_json::json!({"DEEP": deep}),
        ] {
            assert!(read(&mk_node("n", fields.clone())).is_err(), "{fields}");
        }
        assert_eq!(
            read(&mk_node("", serde_json::json!({}))),
            Err(NodeError::BadId)
        );
    }
}
