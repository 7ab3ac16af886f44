//! What is shared with whom, and what two states of the mesh share differently.
//!
//! A difference is a difference of sets: every service port under every name, for every peer. So a
//! service that only gets a new name is hidden under the old one and exposed under the new one, and a
//! port that is added is exposed alone. Who a peer is (its identity, its roots, where it is) stands
//! beside it, since a peer that is somebody else sees the same names.

mod terms;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use meshfed_api::peer::{GatewayReference, Gateways};
use meshfed_proxy_config::{Discovery, ProxyConfig, sni};
use serde::{Deserialize, Serialize};

pub(crate) use self::terms::roots_of_peer;
pub use self::terms::{PeerChange, Terms};
use crate::plan::proxy::peer_trust;
use crate::plan::{Plan, ProxyKey};
use crate::world::{ObjectKey, World};

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
            exports: exports(world, plan),
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

/// The names on a peer's list, with the services that our ingress gateway sends them to.
fn exports(world: &World, plan: &Plan) -> BTreeMap<Exposure, BTreeSet<u16>> {
    let mut all: BTreeMap<Exposure, BTreeSet<u16>> = BTreeMap::new();
    for (peer, list) in &plan.exports {
        let Some(gateway) = gateway(world, plan, peer.as_str(), |g| &g.ingress) else {
            continue;
        };
        for message in list.values() {
            let ports = message.ports.iter();
            for port in ports.filter_map(|p| u16::try_from(p.port).ok()) {
                let cluster = gateway.clusters.get(&*sni(port, &message.hostname));
                let Some(service) = cluster.and_then(|cluster| target(&cluster.discovery)) else {
                    continue;
                };
                let exposure = Exposure {
                    peer: peer.to_string(),
                    service,
                    exported_name: message.hostname.clone(),
                };
                all.entry(exposure).or_default().insert(port);
            }
        }
    }
    all
}

/// `<namespace>/<name>` of the service whose endpoints these are.
fn target(discovery: &Discovery) -> Option<String> {
    let Discovery::Eds(name) = discovery else {
        return None;
    };
    // outbound|<port>||<name>.<namespace>.svc.<domain>
    let mut labels = name.rsplit('|').next()?.split('.');
    let (service, namespace) = (labels.next()?, labels.next()?);
    Some(format!("{namespace}/{service}"))
}

/// The names that our egress gateways answer to, with what they ask the peer for.
fn imports(world: &World, plan: &Plan) -> BTreeMap<Usage, BTreeSet<u16>> {
    let mut all: BTreeMap<Usage, BTreeSet<u16>> = BTreeMap::new();
    for peer in plan.discovery.keys() {
        let Some(gateway) = gateway(world, plan, peer.as_str(), |g| &g.egress) else {
            continue;
        };
        // One gateway may serve several peers.
        let trust = peer_trust(peer);
        for cluster in gateway.clusters.values() {
            let Some(tls) = cluster.tls.as_ref() else {
                continue;
            };
            let Some(asked) = tls.sni.as_deref().and_then(host_of) else {
                continue;
            };
            let Some((port, hostname)) = parts(&cluster.name) else {
                continue;
            };
            if *tls.trust == *trust {
                let usage = Usage {
                    peer: peer.to_string(),
                    exported_name: asked.to_owned(),
                    hostname: hostname.to_owned(),
                };
                all.entry(usage).or_default().insert(port);
            }
        }
    }
    all
}

/// The host in `outbound_.<port>_._.<host>`.
fn host_of(sni: &str) -> Option<&str> {
    parts(sni).map(|(_, host)| host)
}

fn parts(sni: &str) -> Option<(u16, &str)> {
    let (port, host) = sni.strip_prefix("outbound_.")?.split_once("_._.")?;
    Some((port.parse().ok()?, host))
}

/// What the gateway that a peer names is told.
fn gateway<'p>(
    world: &World,
    plan: &'p Plan,
    peer: &str,
    side: fn(&Gateways) -> &GatewayReference,
) -> Option<&'p ProxyConfig> {
    let key = ObjectKey::new(world.mesh.system_namespace.clone(), peer);
    let object = world.resources.peers.get(&key)?;
    let name = side(&object.spec.gateways).name.clone();
    plan.proxies
        .get(&ProxyKey::Gateway(name))
        .map(|config| &**config)
}
