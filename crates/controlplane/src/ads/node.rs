//! Who is connected: what a proxy has proven, and what it says about itself.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshfed_pki::SpiffeId;
use meshfed_xds::proto::{Node, Value, value};
use prost::Message;
use tokio::sync::watch;

/// The longest Node that is read, in bytes.
const MAX_NODE_LEN: usize = 64 * 1024;
/// The longest node id and cluster, in bytes.
const MAX_ID_LEN: usize = 1024;
/// Labels and addresses of a node, at most.
const MAX_ENTRIES: usize = 128;
/// A proxy whose stream was ended from here has this long to come back.
const COMING_BACK: Duration = Duration::from_secs(30);
/// So many of one identity are waited for at a time; more of them are gone when they go. A proxy may
/// bring it about that it is sent away, and say another name each time.
const MAX_COMING_BACK: usize = 128;
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
pub struct ConnectionId(u64);

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

/// The proxies that are connected at a moment. One that reconnects may be there twice until its
/// old connection is noticed to be gone.
pub type NodeSet = Arc<BTreeMap<ConnectionId, Arc<AuthenticatedNode>>>;

/// Who is connected, for whoever keeps their registration. Cheap to clone.
///
/// What is told is the state, not the events, so that a slow listener misses nothing that still
/// matters and nothing has to be queued.
#[derive(Debug, Clone)]
pub struct Nodes {
    connected: Arc<watch::Sender<NodeSet>>,
    /// Those, and the ones that may come back.
    registered: Arc<watch::Sender<NodeSet>>,
    /// How many of each identity are waited for.
    coming_back: Arc<Mutex<BTreeMap<SpiffeId, usize>>>,
    next: Arc<AtomicU64>,
}

impl Default for Nodes {
    fn default() -> Self {
        Self::new()
    }
}

impl Nodes {
    pub fn new() -> Self {
        Self {
            connected: Arc::new(watch::Sender::new(NodeSet::default())),
            registered: Arc::new(watch::Sender::new(NodeSet::default())),
            coming_back: Arc::default(),
            next: Arc::new(AtomicU64::new(1)),
        }
    }

    /// The set as it changes: proxies that connect, change their Node, or are gone.
    pub fn subscribe(&self) -> watch::Receiver<NodeSet> {
        self.connected.subscribe()
    }

    /// Those of [`subscribe`](Self::subscribe), and for a while those whose stream was ended from
    /// here: that is no sign that the workload is gone.
    pub fn registrations(&self) -> watch::Receiver<NodeSet> {
        self.registered.subscribe()
    }

    pub(crate) fn next_id(&self) -> ConnectionId {
        ConnectionId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The node is connected until the guard is dropped.
    pub(super) fn connect(&self, node: Arc<AuthenticatedNode>) -> ConnectedGuard {
        let guard = ConnectedGuard {
            nodes: self.clone(),
            connection: node.connection,
            comes_back: false,
        };
        guard.update(node);
        guard
    }

    /// A place among those of this identity that are waited for, if there is one.
    fn wait_for(&self, identity: SpiffeId) -> Option<Place> {
        let mut all = lock(&self.coming_back);
        let waiting = all.entry(identity.clone()).or_default();
        if *waiting >= MAX_COMING_BACK {
            return None;
        }
        *waiting += 1;
        Some(Place {
            all: self.coming_back.clone(),
            identity,
        })
    }

    fn unregister(&self, connection: ConnectionId) {
        self.registered.send_if_modified(|set| {
            let is_there = set.contains_key(&connection);
            if is_there {
                Arc::make_mut(set).remove(&connection);
            }
            is_there
        });
    }
}

/// Keeps a node in the set.
#[derive(Debug)]
pub(super) struct ConnectedGuard {
    nodes: Nodes,
    connection: ConnectionId,
    comes_back: bool,
}

impl ConnectedGuard {
    /// The stream was ended from here: the node stays registered for [`COMING_BACK`].
    pub(super) fn expect_back(&mut self) {
        self.comes_back = true;
    }

    /// Replaces what the node says about itself.
    pub(super) fn update(&self, node: Arc<AuthenticatedNode>) {
        self.nodes.connected.send_modify(|set| {
            Arc::make_mut(set).insert(self.connection, node.clone());
        });
        let connected = self.nodes.connected.borrow().clone();
        self.nodes.registered.send_modify(|set| {
            let set = Arc::make_mut(set);
            // It is back.
            set.retain(|connection, other| {
                !is_same(other, &node) || connected.contains_key(connection)
            });
            set.insert(self.connection, node);
        });
    }
}

impl Drop for ConnectedGuard {
    fn drop(&mut self) {
        let (nodes, connection) = (self.nodes.clone(), self.connection);
        let mut left = None;
        let mut is_back = false;
        nodes.connected.send_modify(|set| {
            let set = Arc::make_mut(set);
            left = set.remove(&connection);
            // Before this stream was seen to end.
            is_back = left
                .as_ref()
                .is_some_and(|left| set.values().any(|other| is_same(other, left)));
        });
        let place = left
            .filter(|_| self.comes_back && !is_back)
            .and_then(|left| nodes.wait_for(left.identity.clone()));
        match place {
            None => nodes.unregister(connection),
            Some(place) => {
                tokio::spawn(async move {
                    tokio::time::sleep(COMING_BACK).await;
                    nodes.unregister(connection);
                    drop(place);
                });
            }
        }
    }
}

fn is_same(one: &AuthenticatedNode, other: &AuthenticatedNode) -> bool {
    one.id == other.id && one.identity == other.identity
}

/// Counting does not fail in between.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of an identity that is waited for.
#[derive(Debug)]
struct Place {
    all: Arc<Mutex<BTreeMap<SpiffeId, usize>>>,
    identity: SpiffeId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = lock(&self.all);
        if let Entry::Occupied(mut waiting) = all.entry(self.identity.clone()) {
            *waiting.get_mut() -= 1;
            if *waiting.get() == 0 {
                waiting.remove();
            }
        }
    }
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

    fn read(node: &Node) -> Result<AuthenticatedNode, NodeError> {
        AuthenticatedNode::read(
            ConnectionId(1),
            "spiffe://red-mesh.local/ns/bookinfo/sa/ratings"
                .parse()
                .unwrap(),
            "127.0.0.1:1".parse().unwrap(),
            node,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_was_sent_away_and_does_not_come_back_is_forgotten() {
        let nodes = Nodes::new();
        let node = read(&mk_node("sidecar~ratings-1", serde_json::json!({}))).unwrap();
        let mut guard = nodes.connect(Arc::new(node));
        guard.expect_back();
        drop(guard);
        assert!(nodes.subscribe().borrow().is_empty());
        let mut registrations = nodes.registrations();
        assert_eq!(registrations.borrow_and_update().len(), 1);
        let sent_away = tokio::time::Instant::now();
        registrations.changed().await.unwrap();
        assert!(registrations.borrow().is_empty());
        assert_eq!(sent_away.elapsed(), COMING_BACK);
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_was_back_before_it_was_sent_away_is_not_waited_for() {
        let nodes = Nodes::new();
        let mut node = read(&mk_node("sidecar~ratings-1", serde_json::json!({}))).unwrap();
        node.connection = nodes.next_id();
        let mut old = nodes.connect(Arc::new(node.clone()));
        node.connection = nodes.next_id();
        let new = nodes.connect(Arc::new(node.clone()));
        old.expect_back();
        drop(old);
        let registered = |nodes: &Nodes| -> Vec<ConnectionId> {
            nodes.registrations().borrow().keys().copied().collect()
        };
        assert_eq!(registered(&nodes), [node.connection]);
        drop(new);
        assert!(registered(&nodes).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_of_one_identity_are_waited_for_and_no_more() {
        let nodes = Nodes::new();
        let mut node = read(&mk_node("sidecar~0", serde_json::json!({}))).unwrap();
        let send_away = |node: &mut AuthenticatedNode, n: usize| {
            node.connection = nodes.next_id();
            node.id = format!("sidecar~{n}");
            let mut guard = nodes.connect(Arc::new(node.clone()));
            guard.expect_back();
        };
        for n in 0..2 * MAX_COMING_BACK {
            send_away(&mut node, n);
        }
        let mut registrations = nodes.registrations();
        assert_eq!(registrations.borrow().len(), MAX_COMING_BACK);
        // Others have places of their own.
        node.identity = "spiffe://red-mesh.local/ns/bookinfo/sa/details"
            .parse()
            .unwrap();
        send_away(&mut node, 0);
        assert_eq!(registrations.borrow().len(), MAX_COMING_BACK + 1);
        let gone = registrations.wait_for(|set| set.is_empty());
        gone.await.unwrap();
        tokio::task::yield_now().await;
        assert!(lock(&nodes.coming_back).is_empty());
        send_away(&mut node, 1);
        assert_eq!(nodes.registrations().borrow().len(), 1);
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

    #[test]
    fn listeners_see_who_is_connected() {
        let nodes = Nodes::new();
        let mut seen = nodes.subscribe();
        let mut node = read(&mk_node("n", serde_json::json!({"READY": false}))).unwrap();
        let guard = nodes.connect(Arc::new(node.clone()));
        assert_eq!(
            seen.borrow_and_update()[&node.connection].ready,
            Some(false)
        );
        node.ready = Some(true);
        guard.update(Arc::new(node.clone()));
        assert_eq!(seen.borrow_and_update()[&node.connection].ready, Some(true));
        drop(guard);
        assert!(seen.borrow_and_update().is_empty());
    }
}
