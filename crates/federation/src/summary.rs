//! The mesh on one screen, problems first.

mod certificates;
mod conditions;
mod reports;
mod show;

use std::collections::BTreeMap;

use jiff::Timestamp;
use meshfed_api::peer::ImportReport;
use serde::Serialize;

pub use self::certificates::Certificate;
pub(crate) use self::conditions::problems;
pub use self::conditions::{Problem, Weight};
pub(crate) use self::reports::reported;

use crate::difference::Sharing;
use crate::observations::Seen;
use crate::plan::{GatewayKind, PeerSettings, Plan, is_watching};
use crate::world::{ObjectKey, PeerState, World};

/// What an administrator asks for first.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The ServiceMeshControlPlane; empty without one.
    pub name: String,
    pub namespace: String,
    pub trust_domain: String,
    /// Worst first.
    pub problems: Vec<Problem>,
    pub peers: Vec<Peer>,
    pub gateways: Vec<Gateway>,
    pub certificates: Vec<Certificate>,
    /// Namespaces that belong to the mesh.
    pub members: Vec<String>,
    /// What could not be found out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
    #[serde(skip)]
    now: Timestamp,
}

/// One peer, in both directions.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    pub name: String,
    pub ready: bool,
    /// Why it is ready or not, in a word.
    pub reason: String,
    /// Our watch of the peer.
    pub watch: Watch,
    /// The peer's watches of us, by the address that they come from.
    pub watchers: Vec<Watcher>,
    /// Services that the peer may call.
    pub exports: usize,
    /// What it says that it made of them, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<ImportReport>,
    /// Services of the peer that are called here.
    pub imports: usize,
    /// Services that the peer exports to us.
    pub offered: usize,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Watch {
    pub connected: bool,
    #[serde(serialize_with = "time")]
    pub last_full_sync: Option<Timestamp>,
    /// When the peer was last heard, also in an earlier life of our control plane.
    #[serde(serialize_with = "time")]
    pub last_contact: Option<Timestamp>,
    #[serde(serialize_with = "time")]
    pub last_event: Option<Timestamp>,
    /// What the last attempt that failed got.
    pub last_disconnect_status: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Watcher {
    pub source: String,
    pub connected: bool,
    #[serde(serialize_with = "time")]
    pub last_full_sync: Option<Timestamp>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    pub name: String,
    /// `ingress` or `egress`.
    pub kind: &'static str,
    /// `LoadBalancer`, `NodePort` or `ClusterIP`.
    pub service_type: String,
    pub addresses: Vec<String>,
    pub ready: bool,
}

#[expect(clippy::ref_option, reason = "the form that serde asks for")]
fn time<S: serde::Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.collect_str(at),
        None => serializer.serialize_none(),
    }
}

/// The summary of a world and its plan; `seen` is what the world was made of beside the resources.
pub fn summary(world: &World, plan: &Plan, seen: &Seen) -> Summary {
    let certificates = certificates::all(world, seen);
    let mut problems = conditions::problems(world, plan);
    problems.extend(certificates.iter().filter_map(|c| c.problem(world.now)));
    problems.extend(reports::problems(world));
    problems.sort();
    let sharing = Sharing::of(world, plan);
    let mut imports: BTreeMap<String, usize> = BTreeMap::new();
    for entry in sharing.imported() {
        *imports.entry(entry.what.peer).or_default() += 1;
    }
    let system = &world.mesh.system_namespace;
    let name = plan.control_plane.as_ref();
    Summary {
        name: name.map(|key| key.name.clone()).unwrap_or_default(),
        namespace: system.clone(),
        trust_domain: plan.trust_domain.to_string(),
        problems,
        peers: (world.resources.peers.keys())
            .filter(|key| key.namespace == *system)
            .map(|key| {
                let imports = imports.get(key.name.as_str()).copied();
                peer(world, plan, key, imports.unwrap_or(0))
            })
            .collect(),
        gateways: plan
            .gateways
            .keys()
            .filter_map(|name| gateway(world, plan, name))
            .collect(),
        certificates,
        members: plan.members.iter().cloned().collect(),
        unknown: seen.unknown.clone(),
        now: world.now,
    }
}

fn peer(world: &World, plan: &Plan, key: &ObjectKey, imports: usize) -> Peer {
    let status = plan.statuses.peers.get(key);
    let conditions = status.iter().flat_map(|s| &s.conditions);
    let ready = conditions.into_iter().find(|c| c.type_ == "Ready");
    let connected = status.is_some_and(|status| {
        let active = &status.discovery_status.active;
        active.iter().any(|pod| pod.watch.connected)
    });
    let state = world.observed.peers.get(&key.name);
    let state = state
        .map(|state| PeerState::clone(state))
        .unwrap_or_default();
    let remote = &state.remote;
    let object = world.resources.peers.get(key);
    let annotations = object.and_then(|object| object.metadata.annotations.as_ref());
    let (settings, _) = PeerSettings::parse(annotations);
    Peer {
        name: key.name.clone(),
        ready: ready.is_some_and(|c| c.status == "True"),
        reason: ready.and_then(|c| c.reason.clone()).unwrap_or_default(),
        watch: Watch {
            connected,
            last_full_sync: remote.last_full_sync,
            last_contact: status.and_then(|s| Some(s.last_contact.as_ref()?.0)),
            last_event: remote.watch.last_event,
            last_disconnect_status: remote.watch.last_disconnect_status.clone(),
        },
        watchers: state
            .watchers
            .iter()
            .map(|watcher| Watcher {
                source: watcher.source.clone(),
                connected: is_watching(&settings, remote, watcher, world.now),
                last_full_sync: watcher.last_full_sync,
            })
            .collect(),
        exports: plan
            .exports
            .get(key.name.as_str())
            .map_or(0, |list| list.len()),
        report: state.report().map(ImportReport::from),
        imports,
        offered: remote.services.len(),
    }
}

fn gateway(world: &World, plan: &Plan, name: &str) -> Option<Gateway> {
    let gateway = plan.gateways.get(name)?;
    let key = ObjectKey::new(world.mesh.system_namespace.clone(), name);
    let service = world.resources.services.get(&key);
    let addresses = service.map_or_else(Vec::new, |service| {
        crate::plan::gateways::addresses(service, world.mesh.node_address)
    });
    let spec = gateway.service.spec.as_ref();
    let state = world.observed.gateways.get(name);
    Some(Gateway {
        name: name.to_owned(),
        kind: match gateway.kind {
            GatewayKind::Ingress => "ingress",
            GatewayKind::Egress => "egress",
        },
        service_type: spec
            .and_then(|s| s.type_.clone())
            .unwrap_or_else(|| "ClusterIP".to_owned()),
        addresses: addresses
            .iter()
            // The first is for use inside the mesh.
            .skip(usize::from(addresses.len() > 1))
            .map(|a| format!("{}:{}", a.ip, a.service_port))
            .collect(),
        ready: state.is_some_and(|state| state.ready && state.refused.is_none()),
    })
}
