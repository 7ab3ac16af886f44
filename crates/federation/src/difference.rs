//! What is shared with whom, and what two states of the mesh share differently.
//!
//! A difference is a difference of sets: every service port under every name, for every peer. So a
//! service that only gets a new name is hidden under the old one and exposed under the new one, and a
//! port that is added is exposed alone. Who a peer is (its identity, its roots, where it is) stands
//! beside it, since a peer that is somebody else sees the same names.

mod terms;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::terms::{PeerChange, Terms};
use crate::discovery::remote::RemoteService;
use crate::plan::Plan;
use crate::world::World;

/// Everything that is shared, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sharing {
    exports: BTreeMap<Exposure, BTreeSet<u16>>,
    imports: BTreeMap<Usage, BTreeSet<u16>>,
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
    /// Who peers are, and how they are reached.
    pub peers: Vec<PeerChange>,
}

impl Sharing {
    /// What `plan`, which follows from `world`, shares.
    pub fn of(world: &World, plan: &Plan) -> Self {
        Self {
            exports: exports(plan),
            imports: imports(world, plan),
            peers: terms::all(world, plan),
        }
    }

    /// Everything that peers can call, with its ports.
    pub fn exposed(&self) -> impl Iterator<Item = (&Exposure, &BTreeSet<u16>)> {
        self.exports.iter()
    }

    /// Everything of peers that our workloads can call, with its ports.
    pub fn imported(&self) -> impl Iterator<Item = (&Usage, &BTreeSet<u16>)> {
        self.imports.iter()
    }

    /// What `self` has and `before` has not, and the other way round.
    pub fn since(&self, before: &Self) -> Difference {
        Difference {
            exposed: beyond(&self.exports, &before.exports),
            hidden: beyond(&before.exports, &self.exports),
            imported: beyond(&self.imports, &before.imports),
            dropped: beyond(&before.imports, &self.imports),
            peers: terms::changes(&before.peers, &self.peers),
        }
    }
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What `more` has beyond `less`.
fn beyond<T: Ord + Clone>(
    more: &BTreeMap<T, BTreeSet<u16>>,
    less: &BTreeMap<T, BTreeSet<u16>>,
) -> Vec<Entry<T>> {
    more.iter()
        .filter_map(|(what, ports)| {
            let ports: Vec<u16> = match less.get(what) {
                Some(known) => ports.difference(known).copied().collect(),
                None => ports.iter().copied().collect(),
            };
            (!ports.is_empty()).then(|| Entry {
                what: what.clone(),
                ports,
            })
        })
        .collect()
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

fn exports(plan: &Plan) -> BTreeMap<Exposure, BTreeSet<u16>> {
    let mut all = BTreeMap::new();
    for (peer, list) in &plan.exports {
        let status = plan
            .statuses
            .exports
            .iter()
            .find(|(key, _)| key.name == peer.as_str());
        let local: BTreeMap<&str, String> = status
            .iter()
            .flat_map(|(_, status)| &status.exported_services)
            .map(|s| {
                let local = &s.local_service;
                (
                    s.exported_name.as_str(),
                    format!("{}/{}", local.namespace, local.name),
                )
            })
            .collect();
        for message in list.values() {
            let exposure = Exposure {
                peer: peer.to_string(),
                service: local
                    .get(message.hostname.as_str())
                    .cloned()
                    .unwrap_or_default(),
                exported_name: message.hostname.clone(),
            };
            let ports = message
                .ports
                .iter()
                .filter_map(|p| u16::try_from(p.port).ok());
            all.insert(exposure, ports.collect());
        }
    }
    all
}

fn imports(world: &World, plan: &Plan) -> BTreeMap<Usage, BTreeSet<u16>> {
    let mut all = BTreeMap::new();
    for (key, status) in &plan.statuses.imports {
        let Some(state) = world.observed.peers.get(&key.name) else {
            continue;
        };
        let remote: BTreeMap<&str, &RemoteService> = state
            .remote
            .services
            .iter()
            .map(|service| (service.host.as_str(), &**service))
            .collect();
        let used = status
            .imported_services
            .iter()
            .filter(|s| !s.local_service.name.is_empty());
        for service in used {
            let usage = Usage {
                peer: key.name.clone(),
                exported_name: service.exported_name.clone(),
                hostname: service.local_service.hostname.clone(),
            };
            let ports = remote
                .get(service.exported_name.as_str())
                .map(|remote| remote.tcp_ports().collect())
                .unwrap_or_default();
            all.insert(usage, ports);
        }
    }
    all
}
