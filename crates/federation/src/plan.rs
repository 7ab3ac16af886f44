//! `plan(&World) -> Plan`: everything that follows from what is known.
//!
//! A deterministic function without I/O. The shell observes a [`World`], plans, and applies the
//! difference between two plans.
//
// WORK SPLIT (delete this note when done): plan/{gateways,ingress,egress,sidecar,local,proxy}.rs are written (pure builders from
// explicit inputs). The engineer of this crate writes the rest: exports, imports, statuses, membership, trust (peer
// roots), tests of the builders' output, and `plan()` itself, which calls them. A Sidecar's inbound ports come from the
// selectors of Services (not from EndpointSlices), so that the listener exists before the Pod is ready.

pub mod egress;
pub mod gateways;
pub mod ingress;
pub mod local;
pub mod proxy;
pub mod sidecar;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use meshfed_api::control_plane::ServiceMeshControlPlaneStatus;
use meshfed_api::exported::ExportedServiceSetStatus;
use meshfed_api::imported::ImportedServiceSetStatus;
use meshfed_api::member::{ServiceMeshMemberRollStatus, ServiceMeshMemberStatus};
use meshfed_api::peer::ServiceMeshPeerStatus;
use meshfed_pki::{SpiffeId, TrustDomain};
use meshfed_proxy_config::ProxyConfig;

use crate::discovery::server::Exports;
use crate::names::PeerName;
use crate::world::ObjectKey;

/// Everything that follows from a [`World`](crate::world::World).
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Our trust domain: the active control plane's, else the default.
    pub trust_domain: TrustDomain,
    /// The ServiceMeshControlPlane that rules; the oldest, if there are several.
    pub control_plane: Option<ObjectKey>,
    /// The identity of the control plane itself:
    /// `<trust domain>/ns/<system namespace>/sa/istiod-<smcp>`.
    pub control_plane_id: SpiffeId,
    /// Gateways that should exist, by name. All others that carry our label go.
    pub gateways: BTreeMap<String, Arc<GatewayPlan>>,
    /// What each peer that may be talked to gets to see.
    pub exports: BTreeMap<PeerName, Arc<Exports>>,
    /// Whom to ask for exports, and how.
    pub discovery: BTreeMap<PeerName, Arc<DiscoveryTarget>>,
    /// Which ingress gateway may ask for which peer's list.
    pub discovery_clients: BTreeMap<PeerName, SpiffeId>,
    /// The configuration of every gateway and sidecar.
    pub proxies: BTreeMap<ProxyKey, Arc<ProxyConfig>>,
    pub statuses: Statuses,
    /// When the answer changes without a change of the world.
    pub wake_at: Option<Timestamp>,
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
