//! Which peers may be talked to, and how. Whatever is not beyond doubt is closed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use meshfed_api::ServiceMeshPeer;
use meshfed_api::peer::{DEFAULT_DISCOVERY_PORT, DEFAULT_SERVICE_PORT};
use meshfed_pki::{IdError, SpiffeId, TrustDomain};

use super::GatewayKind;
use super::control_plane::Ruling;
use super::gateways::{GatewayAddress, GatewayProblem};
use super::roots::{ReadRoots, RootProblem, Roots, roots_of_peer};
use super::settings::PeerSettings;
use super::withdrawal::{drained_at, is_told};
use crate::discovery::checksum::remote_hash;
use crate::names::{DiscoveryHost, DomainSuffix, Label, NameError, PeerName, clip};
use crate::world::{ObjectKey, World};

/// Why nothing at all is shared with a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerProblem {
    #[error("this mesh's control plane is in {0}; a ServiceMeshPeer belongs there")]
    OutsideSystemNamespace(String),
    #[error("metadata.name: {0}")]
    Name(#[from] NameError),
    #[error("there is no ServiceMeshControlPlane in {0}; create one first")]
    NoControlPlane(String),
    #[error("spec.security.trustDomain is not set; set it to the trust domain of the peer")]
    TrustDomainUnset,
    #[error("spec.security.trustDomain: {0}")]
    TrustDomainInvalid(IdError),
    #[error(
        "spec.security.trustDomain {0} is this mesh's own; each mesh needs its own trust domain"
    )]
    TrustDomainOurs(TrustDomain),
    #[error(
        "spec.security.trustDomain {domain} belongs to the ServiceMeshPeer {holder}, which is the older one \
         or the first by name; each mesh needs its own: correct it, or delete one of the two"
    )]
    TrustDomainTaken { domain: TrustDomain, holder: String },
    #[error(
        "spec.security.clientID is not set; set it to the identity of the peer's egress gateway"
    )]
    ClientIdUnset,
    #[error("spec.security.clientID: {0}")]
    ClientIdInvalid(IdError),
    #[error("spec.security.clientID {id} is not in the peer's trust domain {domain}")]
    ClientIdForeign { id: SpiffeId, domain: TrustDomain },
    #[error(transparent)]
    Root(#[from] RootProblem),
    #[error("spec.remote.addresses is empty; list the addresses of the peer's ingress gateway")]
    NoAddress,
    #[error("spec.remote.addresses has {0:?}, which is neither an IP address nor a DNS name")]
    BadAddress(String),
    #[error("spec.remote.{field} is {port}; a port is between 1 and 65535")]
    BadPort { field: &'static str, port: i32 },
    #[error("it is being removed")]
    Leaving,
}

impl PeerProblem {
    /// The reason of the Ready condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::OutsideSystemNamespace(_) => "NotInSystemNamespace",
            Self::Name(_) => "InvalidName",
            Self::NoControlPlane(_) => "NoControlPlane",
            Self::TrustDomainUnset => "TrustDomainUnset",
            Self::TrustDomainInvalid(_) => "InvalidTrustDomain",
            Self::TrustDomainOurs(_) => "TrustDomainIsOurs",
            Self::TrustDomainTaken { .. } => "TrustDomainTaken",
            Self::ClientIdUnset => "ClientIDUnset",
            Self::ClientIdInvalid(_) => "InvalidClientID",
            Self::ClientIdForeign { .. } => "ClientIDOutsideTrustDomain",
            Self::Root(RootProblem::Kind(_)) => "UnsupportedCertificateChain",
            Self::Root(RootProblem::Missing(_)) => "RootCertificateMissing",
            Self::Root(RootProblem::KeyMissing(_)) => "RootCertificateKeyMissing",
            Self::Root(RootProblem::Invalid { .. }) => "InvalidRootCertificate",
            Self::Root(RootProblem::NotValidNow(_)) => "RootCertificateNotValid",
            Self::NoAddress | Self::BadAddress(_) | Self::BadPort { .. } => "InvalidRemote",
            Self::Leaving => "Deleting",
        }
    }
}

/// Why one direction is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GatewayGap {
    #[error(
        "spec.gateways.{side}.name {name:?} is no enabled gateway in {list} of the ServiceMeshControlPlane"
    )]
    NotThere {
        side: &'static str,
        list: &'static str,
        name: String,
    },
    #[error("the gateway {name} cannot be made: {problem}")]
    Broken {
        name: String,
        problem: GatewayProblem,
    },
    #[error("the gateway {0} has no address yet")]
    NoAddress(String),
}

impl GatewayGap {
    /// The reason of the Ready condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotThere { .. } => "GatewayMissing",
            Self::Broken { .. } => "GatewayBroken",
            Self::NoAddress(_) => "GatewayWithoutAddress",
        }
    }
}

/// A peer beyond doubt.
#[derive(Debug)]
pub(super) struct Trusted<'w> {
    pub object: &'w ServiceMeshPeer,
    pub name: PeerName,
    pub trust_domain: TrustDomain,
    pub client_id: SpiffeId,
    pub roots: Roots,
    pub service_port: u16,
    pub discovery_port: u16,
    pub remote_hash: u64,
    pub discovery_host: DiscoveryHost,
    pub settings: PeerSettings,
    /// Where the peer comes in.
    pub ingress: Result<Gateway, GatewayGap>,
    /// Where we go out to the peer.
    pub egress: Result<Gateway, GatewayGap>,
    /// The peer is being deleted, and its watchers are being told: nothing is asked of it any more.
    pub going: bool,
}

impl Trusted<'_> {
    /// Of two that want the same, the older one has it.
    pub fn created(&self) -> Option<Timestamp> {
        let created = self.object.metadata.creation_timestamp.as_ref();
        created.map(|time| time.0)
    }
}

/// A gateway of ours that serves a peer.
#[derive(Debug, Clone)]
pub(super) struct Gateway {
    pub name: String,
    pub id: SpiffeId,
    /// The address for use inside the mesh.
    pub address: GatewayAddress,
    pub ready: bool,
    /// It is leaving the mesh.
    pub going: bool,
}

/// All ServiceMeshPeers with what became of them.
pub(super) type Peers<'w> = BTreeMap<ObjectKey, Result<Trusted<'w>, PeerProblem>>;

pub(super) fn judge<'w>(world: &'w World, ruling: &Ruling<'_>, read: &mut ReadRoots) -> Peers<'w> {
    read.retain(&world.resources.config_maps);
    let holders = domain_holders(world);
    world
        .resources
        .peers
        .iter()
        .map(|(key, peer)| {
            let judged = judge_one(world, ruling, &holders, read, key, peer);
            (key.clone(), judged)
        })
        .collect()
}

/// Who holds each trust domain: the oldest peer that claims it, whatever else is wrong with it, so
/// that the answer does not change as other faults come and go.
fn domain_holders(world: &World) -> BTreeMap<&str, &str> {
    let system = &world.mesh.system_namespace;
    let ours = world.resources.peers.iter();
    let mut claims: Vec<_> = ours
        .filter(|(key, _)| key.namespace == *system)
        .filter_map(|(key, peer)| {
            let domain = peer.spec.security.trust_domain.as_deref()?;
            let created = peer.metadata.creation_timestamp.as_ref().map(|time| time.0);
            Some((created, key.name.as_str(), domain))
        })
        .collect();
    claims.sort();
    let mut holders = BTreeMap::new();
    for (_, name, domain) in claims {
        holders.entry(domain).or_insert(name);
    }
    holders
}

fn judge_one<'w>(
    world: &'w World,
    ruling: &Ruling<'_>,
    holders: &BTreeMap<&str, &str>,
    read: &mut ReadRoots,
    key: &ObjectKey,
    object: &'w ServiceMeshPeer,
) -> Result<Trusted<'w>, PeerProblem> {
    let trusted = beyond_doubt(world, ruling, holders, read, key, object)?;
    if has_left(world, &trusted) {
        return Err(PeerProblem::Leaving);
    }
    Ok(trusted)
}

/// A peer that is being deleted has left when its watchers need not be waited for. Without a way in
/// there is nobody who can be told.
fn has_left(world: &World, peer: &Trusted<'_>) -> bool {
    let told = || is_told(world, peer.name.as_str(), &peer.object.metadata);
    peer.going && (peer.ingress.is_err() || told())
}

/// Peers that have left, and whose open connections may go on for a while. Their roots still vouch
/// for those; nothing else is left of them.
pub(super) fn draining<'w>(
    world: &'w World,
    ruling: &Ruling<'_>,
    read: &mut ReadRoots,
    peers: &Peers<'w>,
) -> Vec<Trusted<'w>> {
    let left = peers.iter().filter(|(key, judged)| {
        let object = world.resources.peers.get(*key);
        let drained = object.and_then(|object| drained_at(world, object));
        matches!(judged, Err(PeerProblem::Leaving)) && drained.is_some_and(|at| world.now < at)
    });
    let left: Vec<&ObjectKey> = left.map(|(key, _)| key).collect();
    if left.is_empty() {
        return Vec::new();
    }
    let holders = domain_holders(world);
    left.into_iter()
        .filter_map(|key| {
            let object = world.resources.peers.get(key)?;
            beyond_doubt(world, ruling, &holders, read, key, object).ok()
        })
        .collect()
}

fn beyond_doubt<'w>(
    world: &'w World,
    ruling: &Ruling<'_>,
    holders: &BTreeMap<&str, &str>,
    read: &mut ReadRoots,
    key: &ObjectKey,
    object: &'w ServiceMeshPeer,
) -> Result<Trusted<'w>, PeerProblem> {
    let system = &world.mesh.system_namespace;
    if key.namespace != *system {
        return Err(PeerProblem::OutsideSystemNamespace(system.clone()));
    }
    let name: PeerName = key.name.parse()?;
    let namespace: Label = system.parse()?;
    if ruling.object.is_none() {
        return Err(PeerProblem::NoControlPlane(system.clone()));
    }
    let trust_domain = trust_domain(ruling, holders, key, object)?;
    let client_id = client_id(object, &trust_domain)?;
    let security = &object.spec.security;
    let roots = roots_of_peer(world, read, &name, security.certificate_chain.as_ref())?;
    let remote = &object.spec.remote;
    check_addresses(&remote.addresses)?;
    let gateways = &object.spec.gateways;
    let ingress = gateway(ruling, GatewayKind::Ingress, &gateways.ingress.name);
    let going = object.metadata.deletion_timestamp.is_some();
    Ok(Trusted {
        service_port: port("servicePort", remote.service_port, DEFAULT_SERVICE_PORT)?,
        discovery_port: port(
            "discoveryPort",
            remote.discovery_port,
            DEFAULT_DISCOVERY_PORT,
        )?,
        remote_hash: remote_hash(
            remote.addresses.iter().map(String::as_str),
            remote.discovery_port.unwrap_or(0),
            remote.service_port.unwrap_or(0),
        ),
        discovery_host: DiscoveryHost::new(&namespace, &name),
        ingress,
        egress: gateway(ruling, GatewayKind::Egress, &gateways.egress.name),
        settings: PeerSettings::parse(object.metadata.annotations.as_ref()).0,
        going,
        object,
        name,
        trust_domain,
        client_id,
        roots,
    })
}

fn trust_domain(
    ruling: &Ruling<'_>,
    holders: &BTreeMap<&str, &str>,
    key: &ObjectKey,
    object: &ServiceMeshPeer,
) -> Result<TrustDomain, PeerProblem> {
    let text = match object.spec.security.trust_domain.as_deref() {
        None | Some("") => return Err(PeerProblem::TrustDomainUnset),
        Some(text) => text,
    };
    let domain: TrustDomain = text.parse().map_err(PeerProblem::TrustDomainInvalid)?;
    if domain == ruling.trust_domain {
        return Err(PeerProblem::TrustDomainOurs(domain));
    }
    match holders.get(text) {
        Some(holder) if *holder != key.name => Err(PeerProblem::TrustDomainTaken {
            domain,
            holder: (*holder).to_owned(),
        }),
        _ => Ok(domain),
    }
}

fn client_id(object: &ServiceMeshPeer, domain: &TrustDomain) -> Result<SpiffeId, PeerProblem> {
    let id: SpiffeId = match object.spec.security.client_id.as_deref() {
        None | Some("") => return Err(PeerProblem::ClientIdUnset),
        Some(text) => text.parse().map_err(PeerProblem::ClientIdInvalid)?,
    };
    if id.trust_domain() != domain {
        let domain = domain.clone();
        return Err(PeerProblem::ClientIdForeign { id, domain });
    }
    Ok(id)
}

fn check_addresses(addresses: &[String]) -> Result<(), PeerProblem> {
    if addresses.is_empty() {
        return Err(PeerProblem::NoAddress);
    }
    match addresses.iter().find(|text| !is_remote_address(text)) {
        Some(bad) => Err(PeerProblem::BadAddress(clip(bad))),
        None => Ok(()),
    }
}

/// Whether a peer may be reached at it: an IP address or a DNS name. No name ends with a number, so
/// `10.0.0.256` is neither.
pub fn is_remote_address(text: &str) -> bool {
    let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    let is_name = || {
        let is_domain = text.to_ascii_lowercase().parse::<DomainSuffix>().is_ok();
        is_domain && !text.rsplit('.').next().is_some_and(is_number)
    };
    text.parse::<IpAddr>().is_ok() || is_name()
}

/// 0 counts as unset, as in the reference.
fn port(field: &'static str, given: Option<i32>, default: u16) -> Result<u16, PeerProblem> {
    match given {
        None | Some(0) => Ok(default),
        Some(port) => u16::try_from(port).map_err(|_| PeerProblem::BadPort { field, port }),
    }
}

fn gateway(ruling: &Ruling<'_>, kind: GatewayKind, name: &str) -> Result<Gateway, GatewayGap> {
    let (side, list) = match kind {
        GatewayKind::Ingress => ("ingress", "spec.gateways.additionalIngress"),
        GatewayKind::Egress => ("egress", "spec.gateways.additionalEgress"),
    };
    let not_there = || GatewayGap::NotThere {
        side,
        list,
        name: clip(name),
    };
    let view = ruling.gateways.get(name).ok_or_else(not_there)?;
    if let Err(problem) = &view.plan {
        return Err(GatewayGap::Broken {
            name: name.to_owned(),
            problem: problem.clone(),
        });
    }
    let id = view.id.clone().filter(|_| view.kind() == Some(kind));
    let id = id.ok_or_else(not_there)?;
    match view.addresses.first() {
        None => Err(GatewayGap::NoAddress(name.to_owned())),
        Some(address) => Ok(Gateway {
            name: name.to_owned(),
            id,
            address: *address,
            ready: view.ready,
            going: view.is_going(),
        }),
    }
}

/// When the trust in some peer changes by time alone.
pub(super) fn next_change(peers: &Peers<'_>) -> Option<Timestamp> {
    let trusted = peers.values().filter_map(|peer| peer.as_ref().ok());
    trusted.filter_map(|peer| peer.roots.next_change).min()
}
