//! What is shared with whom, and what two states of the mesh share differently.
//!
//! A difference is a difference of sets: every service port under every name, for every peer. So a
//! service that only gets a new name is hidden under the old one and exposed under the new one, and a
//! port that is added is exposed alone. Who a peer is (its identity, its roots, where it is) stands
//! beside it, since a peer that is somebody else sees the same names.

mod peers;
mod terms;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use meshfed_ordmap::OrdMap;
use serde::{Deserialize, Serialize};

pub use self::peers::by_peers;
pub(crate) use self::terms::{OURS, roots_of_peer};
pub use self::terms::{PeerChange, Terms, root_config_map};
use crate::names::{ExportedHost, PeerName};
use crate::plan::{Exported, Offer, Plan, Shares};
use crate::world::World;

/// Everything that is shared. Two that share their entries are compared at the cost of what differs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sharing {
    shares: Shares,
    /// By the ServiceMeshPeer's name.
    peers: BTreeMap<String, Terms>,
}

/// A service of ours that a peer may call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exposure {
    /// The ServiceMeshPeer's name here.
    pub peer: String,
    /// `<namespace>/<name>` in this mesh.
    pub service: String,
    /// `<name>.<ns>.svc.<peer>-exports.local`
    pub exported_name: String,
}

/// A service of a peer that our workloads may call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// The ServiceMeshPeer's name here.
    pub peer: String,
    /// The name that the peer exports.
    pub exported_name: String,
    /// The name by which it is called here.
    pub hostname: String,
}

/// An entry of a difference, with the ports that are gained or lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<T> {
    #[serde(flatten)]
    pub what: T,
    /// Service ports, ascending.
    pub ports: Vec<u16>,
}

/// What one state of the mesh shares and another one does not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Difference {
    /// What peers can newly call.
    pub exposed: Vec<Entry<Exposure>>,
    /// What peers can call no longer.
    pub hidden: Vec<Entry<Exposure>>,
    /// What of peers our workloads can newly call.
    pub imported: Vec<Entry<Usage>>,
    /// What of peers our workloads can call no longer.
    pub dropped: Vec<Entry<Usage>>,
    /// Who peers are, how they are reached, and who we are to them.
    pub peers: Vec<PeerChange>,
}

impl Sharing {
    /// What `plan`, which follows from `world`, shares.
    pub fn of(world: &World, plan: &Plan) -> Self {
        Self {
            shares: plan.shares.clone(),
            peers: terms::all(world, plan),
        }
    }

    /// What `plan`, which follows from `world`, shares, when `self` is what the state `before` it
    /// shared. The same as [`of`](Self::of), at the cost of what differs.
    pub fn then(&self, before: (&World, &Plan), world: &World, plan: &Plan) -> Self {
        Self {
            shares: plan.shares.clone(),
            peers: if terms::are_same(before, (world, plan)) {
                self.peers.clone()
            } else {
                terms::all(world, plan)
            },
        }
    }

    /// Everything that peers can call, with its ports.
    pub fn exposed(&self) -> impl Iterator<Item = Entry<Exposure>> {
        let all = self.shares.exports.iter();
        all.flat_map(|(peer, exports)| {
            let all = exports.iter();
            all.map(|(host, exported)| exposure(peer, host, exported))
        })
    }

    /// Everything of peers that our workloads can call, with its ports.
    pub fn imported(&self) -> impl Iterator<Item = Entry<Usage>> {
        let all = self.shares.imports.iter();
        all.flat_map(|(peer, offers)| offers.values().filter_map(|offer| usage(peer, offer)))
    }

    /// What `self` has and `before` has not, and the other way round.
    pub fn since(&self, before: &Self) -> Difference {
        let (old, new) = (&before.shares, &self.shares);
        let (exposed, hidden) = compare(&old.exports, &new.exports, |peer, host, exported| {
            Some(exposure(peer, host, exported))
        });
        let (imported, dropped) = compare(&old.imports, &new.imports, |peer, _, offer| {
            usage(peer, offer)
        });
        Difference {
            exposed,
            hidden,
            imported,
            dropped,
            peers: terms::changes(&before.peers, &self.peers),
        }
    }
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What came and what went, in order, of the entries that `entry` makes.
fn compare<K: Ord + Clone, V: PartialEq, T: Ord + Clone>(
    before: &BTreeMap<PeerName, OrdMap<K, Arc<V>>>,
    after: &BTreeMap<PeerName, OrdMap<K, Arc<V>>>,
    entry: impl Fn(&PeerName, &K, &V) -> Option<Entry<T>>,
) -> (Vec<Entry<T>>, Vec<Entry<T>>) {
    let (mut came, mut went) = (Vec::new(), Vec::new());
    let none = OrdMap::new();
    let peers: BTreeSet<&PeerName> = before.keys().chain(after.keys()).collect();
    for peer in peers {
        let old = before.get(peer).unwrap_or(&none);
        let new = after.get(peer).unwrap_or(&none);
        for (key, old, new) in old.changes(new) {
            let old = old.and_then(|old| entry(peer, key, old));
            let new = new.and_then(|new| entry(peer, key, new));
            went.extend(beyond(old.clone(), new.as_ref()));
            came.extend(beyond(new, old.as_ref()));
        }
    }
    came.sort_by(|a, b| a.what.cmp(&b.what));
    went.sort_by(|a, b| a.what.cmp(&b.what));
    (came, went)
}

/// What `more` has beyond `less`.
fn beyond<T: PartialEq>(more: Option<Entry<T>>, less: Option<&Entry<T>>) -> Option<Entry<T>> {
    let mut more = more?;
    if let Some(less) = less.filter(|less| less.what == more.what) {
        more.ports.retain(|port| !less.ports.contains(port));
    }
    (!more.ports.is_empty()).then_some(more)
}

fn exposure(peer: &PeerName, host: &ExportedHost, exported: &Exported) -> Entry<Exposure> {
    let local = &exported.local;
    Entry {
        what: Exposure {
            peer: peer.to_string(),
            service: format!("{}/{}", local.key.namespace, local.key.name),
            exported_name: host.to_string(),
        },
        ports: ascending(local.ports.iter().map(|port| port.number)),
    }
}

/// `None` if it is not imported.
fn usage(peer: &PeerName, offer: &Offer) -> Option<Entry<Usage>> {
    let import = offer.imported()?;
    Some(Entry {
        what: Usage {
            peer: peer.to_string(),
            exported_name: offer.remote.host.to_string(),
            hostname: import.host.to_string(),
        },
        ports: ascending(import.ports.iter().copied()),
    })
}

fn ascending(ports: impl Iterator<Item = u16>) -> Vec<u16> {
    let ports: BTreeSet<u16> = ports.collect();
    ports.into_iter().collect()
}

impl fmt::Display for Entry<Exposure> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exposure {
            peer,
            service,
            exported_name,
        } = &self.what;
        let ports = Ports(&self.ports);
        write!(f, "{service} {ports} to {peer}, as {exported_name}")
    }
}

impl fmt::Display for Entry<Usage> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Usage {
            peer,
            exported_name,
            hostname,
        } = &self.what;
        let ports = Ports(&self.ports);
        write!(f, "{hostname} {ports} from {peer}, there {exported_name}")
    }
}

/// `(port 9080)`, `(ports 80, 443)`.
struct Ports<'a>(&'a [u16]);

impl fmt::Display for Ports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u16::to_string).collect();
        let word = if numbers.len() == 1 { "port" } else { "ports" };
        write!(f, "({word} {})", numbers.join(", "))
    }
}
