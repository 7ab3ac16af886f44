//! Who is connected, and who was sent away and may come back.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meshfed_pki::SpiffeId;
use tokio::sync::watch;

use super::node::{AuthenticatedNode, ConnectionId};

/// A proxy whose stream was ended from here has this long to come back.
const COMING_BACK: Duration = Duration::from_secs(30);
/// So many of one identity are waited for at a time; more of them are gone when they go. A proxy may
/// bring it about that it is sent away, and say another name each time.
const MAX_COMING_BACK: usize = 128;

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
mod tests {
    use super::super::node::tests::{mk_node, read};
    use super::*;

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
}
