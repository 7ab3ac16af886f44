//! Who a peer is, as far as it decides who sees what is shared, and who we are to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use meshfed_api::peer::{DEFAULT_DISCOVERY_PORT, DEFAULT_SERVICE_PORT};
use meshfed_api::{ROOT_CERT_KEY, ServiceMeshPeer};
use meshfed_pki::{RootCert, TrustStore};
use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::plan::gateways::service_account;
use crate::world::{ObjectKey, World};

/// What a peer is taken to be. Texts, as they are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms(BTreeMap<&'static str, String>);

/// One change of who a peer is or how it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerChange {
    /// The ServiceMeshPeer's name here.
    pub peer: String,
    /// The field of the ServiceMeshPeer; `roots`; `shares`: in which directions it is open; or of ours what
    /// the peer must know, `our trust domain` and `our clientID`.
    pub what: String,
    /// `None`: the peer was not there, or had no such thing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<String>,
}

impl fmt::Display for PeerChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &Option<String>| text.clone().unwrap_or_else(|| "nothing".to_owned());
        let (before, after) = (shown(&self.before), shown(&self.after));
        write!(f, "{}: {} from {before} to {after}", self.peer, self.what)
    }
}

/// What the peer's ServiceMeshPeer for this mesh must have as `spec.security.trustDomain` and `clientID`.
pub(crate) const OURS: [&str; 2] = ["our trust domain", "our clientID"];

/// The terms with every peer of the system namespace.
pub(super) fn all(world: &World, plan: &Plan) -> BTreeMap<String, Terms> {
    let system = &world.mesh.system_namespace;
    let peers = world.resources.peers.iter();
    peers
        .filter(|(key, _)| key.namespace == *system)
        .map(|(key, peer)| (key.name.clone(), terms(world, plan, key, peer)))
        .collect()
}

/// True only if nothing that the terms are made of differs.
pub(super) fn are_same(before: (&World, &Plan), after: (&World, &Plan)) -> bool {
    let (old, new) = (&before.0.resources, &after.0.resources);
    old.peers.ptr_eq(&new.peers)
        && before.1.trust_domain == after.1.trust_domain
        && before.1.control_plane.is_some() == after.1.control_plane.is_some()
        && old.config_maps.ptr_eq(&new.config_maps)
        && before
            .1
            .discovery_clients
            .keys()
            .eq(after.1.discovery_clients.keys())
        && before.1.discovery.keys().eq(after.1.discovery.keys())
}

fn terms(world: &World, plan: &Plan, key: &ObjectKey, peer: &ServiceMeshPeer) -> Terms {
    let security = &peer.spec.security;
    let remote = &peer.spec.remote;
    let gateways = &peer.spec.gateways;
    let name = key.name.as_str();
    let going = peer.metadata.deletion_timestamp.is_some();
    let served = plan.discovery_clients.contains_key(name) && !going;
    let asked = plan.discovery.contains_key(name);
    let directions = match (served, asked) {
        (true, true) => "both directions",
        (true, false) => "only what it is given",
        (false, true) => "only what it is asked for",
        (false, false) => "nothing",
    };
    let mut terms = BTreeMap::from([
        ("shares", directions.to_owned()),
        ("spec.remote.addresses", remote.addresses.join(", ")),
        (
            "spec.remote.discoveryPort",
            port(remote.discovery_port, DEFAULT_DISCOVERY_PORT),
        ),
        (
            "spec.remote.servicePort",
            port(remote.service_port, DEFAULT_SERVICE_PORT),
        ),
        ("spec.gateways.ingress.name", gateways.ingress.name.clone()),
        ("spec.gateways.egress.name", gateways.egress.name.clone()),
        ("roots", roots(world, key, peer)),
    ]);
    let mut set = |what, text: &Option<String>| {
        if let Some(text) = text.as_deref().filter(|text| !text.is_empty()) {
            let id = text.strip_prefix("spiffe://").unwrap_or(text);
            terms.insert(what, id.to_owned());
        }
    };
    set("spec.security.trustDomain", &security.trust_domain);
    set("spec.security.clientID", &security.client_id);
    if plan.control_plane.is_some() {
        let (domain, account) = (&plan.trust_domain, service_account(&gateways.egress.name));
        let id = domain.service_account(&key.namespace, &account).ok();
        let id = id.map(|id| id.without_scheme().to_owned());
        let ours = [Some(domain.to_string()), id];
        let known = std::iter::zip(OURS, ours);
        terms.extend(known.filter_map(|(what, text)| Some((what, text?))));
    }
    terms.retain(|_, text| !text.is_empty());
    Terms(terms)
}

fn port(given: Option<i32>, default: u16) -> String {
    match given {
        None | Some(0) => default.to_string(),
        Some(port) => port.to_string(),
    }
}

/// Where the roots of a peer are.
pub fn root_config_map(key: &ObjectKey, peer: &ServiceMeshPeer) -> ObjectKey {
    let chain = peer.spec.security.certificate_chain.as_ref();
    let named = chain.and_then(|chain| chain.name.clone());
    let name = named
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| format!("{}-ca-root-cert", key.name));
    ObjectKey::new(key.namespace.clone(), name)
}

/// The roots that vouch for a peer, whatever else is wrong with it; none if they cannot be read.
pub(crate) fn roots_of_peer(
    world: &World,
    key: &ObjectKey,
    peer: &ServiceMeshPeer,
) -> Vec<RootCert> {
    let map = world.resources.config_maps.get(&root_config_map(key, peer));
    map.and_then(|map| map.data.as_ref()?.get(ROOT_CERT_KEY))
        .and_then(|pem| TrustStore::parse_roots(pem).ok())
        .unwrap_or_default()
}

/// By subject and fingerprint.
fn roots(world: &World, key: &ObjectKey, peer: &ServiceMeshPeer) -> String {
    let mut shown: Vec<String> = roots_of_peer(world, key, peer)
        .iter()
        .map(|root| format!("{} (SHA-256 {})", root.subject, root.fingerprint()))
        .collect();
    shown.sort();
    shown.join("; ")
}

/// What changed, peer by peer.
pub(super) fn changes(
    before: &BTreeMap<String, Terms>,
    after: &BTreeMap<String, Terms>,
) -> Vec<PeerChange> {
    let none = Terms::default();
    let mut changes = Vec::new();
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for peer in names {
        let (old, new) = (
            before.get(peer).unwrap_or(&none),
            after.get(peer).unwrap_or(&none),
        );
        let fields: BTreeSet<&&str> = old.0.keys().chain(new.0.keys()).collect();
        for what in fields {
            let (before, after) = (old.0.get(*what), new.0.get(*what));
            // Who we are is news only to a peer that knows us otherwise.
            let is_new = OURS.contains(what) && (before.is_none() || after.is_none());
            if before != after && !is_new {
                changes.push(PeerChange {
                    peer: peer.clone(),
                    what: (*what).to_owned(),
                    before: before.cloned(),
                    after: after.cloned(),
                });
            }
        }
    }
    changes
}
