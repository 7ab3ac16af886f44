//! `plan(&World) -> Plan`: everything that follows from what is known.
//!
//! A deterministic function without I/O. The shell observes a [`World`], plans, and applies the
//! difference between two plans.
//!
//! ```text
//! control plane -> members -> services -+
//!              \-> peers (trust, gateways) -> exports, imports -> configurations, statuses
//! ```

mod balance;
mod changes;
mod configs;
mod control_plane;
pub mod egress;
mod exports;
pub mod gateways;
mod imports;
pub mod ingress;
pub mod local;
mod membership;
mod parallel;
mod peers;
mod planner;
pub mod proxy;
mod roots;
mod settings;
pub mod sidecar;
mod staleness;
mod status;
mod withdrawal;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use meshfed_api::control_plane::ServiceMeshControlPlaneStatus;
use meshfed_api::exported::ExportedServiceSetStatus;
use meshfed_api::imported::ImportedServiceSetStatus;
use meshfed_api::member::{ServiceMeshMemberRollStatus, ServiceMeshMemberStatus};
use meshfed_api::peer::ServiceMeshPeerStatus;
use meshfed_ordmap::OrdMap;
use meshfed_pki::{SpiffeId, TrustDomain};
use meshfed_proxy_config::ProxyConfig;

pub use self::control_plane::ControlPlaneProblem;
pub(crate) use self::exports::hides;
pub use self::exports::{Exported, NameTaken};
pub use self::imports::{Import, ImportProblem, Offer};
pub use self::membership::MemberProblem;
pub use self::peers::{GatewayGap, PeerProblem, is_remote_address};
pub use self::planner::Planner;
pub use self::roots::RootProblem;
pub use self::settings::{PeerSettings, SettingProblem};
pub(crate) use self::staleness::{IMPORTS_EXPIRED, is_expired, is_watching};
pub use self::status::{LazyStatuses, has_others, is_heard, resigned};
pub use self::withdrawal::{FINALIZER, Finalizers, Removal, Step, Withdrawal};

use self::egress::{DISCOVERY_SERVICE_HEADER, REMOTE_HEADER};
use self::imports::{Imports, PeerImports};
use self::peers::Peers;
use self::planner::trusted;
use crate::discovery::client::Imported;
use crate::discovery::server::Exports;
use crate::names::{ExportedHost, PeerName, ServiceKey};
use crate::world::{ObjectKey, World};

/// Everything that follows from a [`World`].
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Our trust domain: the active control plane's, else the default.
    pub trust_domain: TrustDomain,
    /// The ServiceMeshControlPlane that rules; the oldest, if there are several.
    pub control_plane: Option<ObjectKey>,
    /// The identity of the control plane itself:
    /// `<trust domain>/ns/<system namespace>/sa/istiod-<smcp>`.
    pub control_plane_id: SpiffeId,
    /// The namespaces that belong to the mesh, as far as they exist. The system namespace does not
    /// count.
    pub members: BTreeSet<String>,
    /// Gateways that should exist, by name. All others that carry our label go.
    pub gateways: BTreeMap<String, Arc<GatewayPlan>>,
    /// What each peer that may be talked to gets to see.
    pub exports: BTreeMap<PeerName, Exports>,
    /// Peers that are to hear that nothing is exported to them any more, with what would be.
    pub withdrawn: BTreeMap<PeerName, Exports>,
    /// What is shared with each peer, service by service.
    pub shares: Shares,
    /// Whom to ask for exports, and how.
    pub discovery: BTreeMap<PeerName, Arc<DiscoveryTarget>>,
    /// Which ingress gateway may ask for which peer's list.
    pub discovery_clients: BTreeMap<PeerName, SpiffeId>,
    /// The configuration of every gateway and sidecar.
    pub proxies: OrdMap<ProxyKey, Arc<ProxyConfig>>,
    /// Made when they are first looked at.
    pub statuses: LazyStatuses,
    /// What is going, step by step.
    pub withdrawal: Withdrawal,
    /// When the answer changes without a change of the world.
    pub wake_at: Option<Timestamp>,
}

/// What is shared, and by which rules. A copy shares the entries, so that two are compared at the
/// cost of what differs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shares {
    /// What each peer may call, by exported name.
    pub exports: BTreeMap<PeerName, OrdMap<ExportedHost, Arc<Exported>>>,
    /// What each peer offers, by exported name and namespace.
    pub imports: BTreeMap<PeerName, OrdMap<ServiceKey, Arc<Offer>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProxyKey {
    /// A gateway in the system namespace, by name.
    Gateway(String),
    /// The sidecar of a Pod.
    Sidecar(ObjectKey),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GatewayKind {
    Ingress,
    Egress,
}

/// One federation gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayPlan {
    pub kind: GatewayKind,
    /// `<gateway>-service-account`.
    pub service_account: String,
    /// The Service that should exist, without the addresses that the shell allocates
    /// (`clusterIP`, and the address of a load balancer unless `loadBalancerIP` asks for one).
    pub service: Service,
    /// Nobody asks for it any more: its Service is to be deleted, and it runs until that is gone.
    pub going: bool,
    /// What is asked for now makes no gateway. The one that runs stays as it is, as a slip of the pen
    /// is no removal.
    pub kept: Option<gateways::GatewayProblem>,
}

/// Where the control plane asks for a peer's exports: our own egress gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryTarget {
    /// Address of the egress gateway, port 8188.
    pub address: std::net::SocketAddr,
    /// The only identity that may answer: the egress gateway's.
    pub server_id: SpiffeId,
    /// The request's authority: `<egress>.<ns>.svc.<cluster domain>:8188`.
    pub authority: String,
    /// Request headers: `discovery-service` and `remote`.
    pub headers: Vec<(String, String)>,
    /// What the peer's annotations set.
    pub settings: PeerSettings,
    /// What is imported of the peer's services, for the report to it.
    pub imported: Arc<Imported>,
}

impl DiscoveryTarget {
    /// Whether both lead to the peer in the same way, so that connections may stay.
    pub fn same_way(&self, other: &Self) -> bool {
        self.address == other.address
            && self.server_id == other.server_id
            && self.authority == other.authority
            && self.headers == other.headers
    }
}

/// The statuses that resources should have. Times of transitions are kept from the resource's
/// present status where the condition did not change.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Statuses {
    pub control_planes: BTreeMap<ObjectKey, ServiceMeshControlPlaneStatus>,
    pub member_rolls: BTreeMap<ObjectKey, ServiceMeshMemberRollStatus>,
    pub members: BTreeMap<ObjectKey, ServiceMeshMemberStatus>,
    pub peers: BTreeMap<ObjectKey, ServiceMeshPeerStatus>,
    pub exports: BTreeMap<ObjectKey, ExportedServiceSetStatus>,
    pub imports: BTreeMap<ObjectKey, ImportedServiceSetStatus>,
}

/// What follows from `world`. The same world always gives the same plan.
pub fn plan(world: &World) -> Plan {
    Planner::new().plan(world)
}

/// Whom we ask: every peer that is reached by an egress gateway.
fn discovery_targets(
    world: &World,
    peers: &Peers<'_>,
    imports: &Imports,
) -> BTreeMap<PeerName, Arc<DiscoveryTarget>> {
    let mesh = &world.mesh;
    trusted(peers)
        .filter(|(_, peer)| !peer.going)
        .filter_map(|(_, peer)| {
            let egress = peer.egress.as_ref().ok()?;
            let (name, port) = (&egress.name, egress.address.discovery_port);
            let target = DiscoveryTarget {
                address: (egress.address.ip, port).into(),
                server_id: egress.id.clone(),
                authority: format!(
                    "{name}.{}.svc.{}:{port}",
                    mesh.system_namespace, mesh.cluster_domain
                ),
                headers: vec![
                    (
                        DISCOVERY_SERVICE_HEADER.to_owned(),
                        peer.discovery_host.to_string(),
                    ),
                    (REMOTE_HEADER.to_owned(), peer.remote_hash.to_string()),
                ],
                settings: peer.settings.clone(),
                imported: Arc::new(
                    imports
                        .of(&peer.name)
                        .map(PeerImports::to_report)
                        .unwrap_or_default(),
                ),
            };
            Some((peer.name.clone(), Arc::new(target)))
        })
        .collect()
}

/// Who asks us: for each peer the ingress gateway that it comes in by.
fn discovery_clients(peers: &Peers<'_>) -> BTreeMap<PeerName, SpiffeId> {
    trusted(peers)
        .filter_map(|(_, peer)| {
            let ingress = peer.ingress.as_ref().ok()?;
            Some((peer.name.clone(), ingress.id.clone()))
        })
        .collect()
}
