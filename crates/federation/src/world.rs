//! What the control plane knows: the input of [`plan`](crate::plan).
//!
//! Everything sits in persistent maps, so that a copy of the world costs a few pointers, a change
//! costs the path to its entry, and what differs between two versions is found by pointer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use meshfed_api::{
    ExportedServiceSet, ImportedServiceSet, ServiceMeshControlPlane, ServiceMeshMember,
    ServiceMeshMemberRoll, ServiceMeshPeer,
};
use meshfed_ordmap::OrdMap;
use meshfed_pki::TrustDomain;
use serde::{Deserialize, Serialize};

use crate::discovery::client::RemoteState;
use crate::discovery::extension::Report;
use crate::discovery::server::SourceStatus;

/// Label on the Service and the Pod of a gateway: the gateway's name.
pub const GATEWAY_LABEL: &str = "meshfed.io/gateway";
/// Label on Pods whose inbound traffic is mutual TLS: [`TLS_MODE_ISTIO`].
pub const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";
pub const TLS_MODE_ISTIO: &str = "istio";
/// Annotation on the Pod of a sidecar: where its explicit HTTP proxy listens (`ip:port`).
pub const OUTBOUND_ANNOTATION: &str = "meshfed.io/outbound";
/// Annotation on the Pod of a sidecar: where the workload itself listens (`ip:port`); absent for
/// one that only calls others.
pub const APP_ANNOTATION: &str = "meshfed.io/app";

/// A version of it shares with the one before what did not change.
pub type Shared<K, V> = OrdMap<K, Arc<V>>;

/// Namespace and name of an object; the namespace is empty for what has none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The objects of one namespace. Costs nothing for those of others.
pub fn in_namespace<'m, V>(
    all: &'m Shared<ObjectKey, V>,
    namespace: &'m str,
) -> impl Iterator<Item = (&'m ObjectKey, &'m Arc<V>)> {
    all.range_from(&ObjectKey::new(namespace, ""))
        .take_while(move |(key, _)| key.namespace == namespace)
}

/// Everything that a plan depends on.
#[derive(Debug, Clone)]
pub struct World {
    pub now: Timestamp,
    pub mesh: MeshSettings,
    pub resources: Resources,
    pub observed: Observed,
}

/// What stays the same while the control plane runs.
#[derive(Debug, Clone)]
pub struct MeshSettings {
    /// Where the ServiceMeshControlPlane, the peers and the sets must be.
    pub system_namespace: String,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// The trust domain while no ServiceMeshControlPlane sets one.
    pub default_trust_domain: TrustDomain,
    /// End of the name of this instance in statuses: `istiod-<smcp>-<suffix>`.
    pub instance_suffix: String,
    /// Where the control plane serves discovery (port 8188), for our ingress gateways.
    pub discovery_address: SocketAddr,
    /// Where node ports are bound.
    pub node_address: IpAddr,
    /// When this control plane began to act; time before does not count as waiting.
    pub started: Timestamp,
}

/// The objects of the API, as they are stored.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    pub namespaces: Shared<ObjectKey, Namespace>,
    pub services: Shared<ObjectKey, Service>,
    pub endpoint_slices: Shared<ObjectKey, EndpointSlice>,
    pub pods: Shared<ObjectKey, Pod>,
    /// Those of the system namespace.
    pub config_maps: Shared<ObjectKey, ConfigMap>,
    pub control_planes: Shared<ObjectKey, ServiceMeshControlPlane>,
    pub member_rolls: Shared<ObjectKey, ServiceMeshMemberRoll>,
    pub members: Shared<ObjectKey, ServiceMeshMember>,
    pub peers: Shared<ObjectKey, ServiceMeshPeer>,
    pub exports: Shared<ObjectKey, ExportedServiceSet>,
    pub imports: Shared<ObjectKey, ImportedServiceSet>,
}

/// Hands the fields of [`Resources`](crate::world::Resources) that hold all objects of their kind to a macro;
/// of config maps, only those of the system namespace count.
#[macro_export]
macro_rules! with_mesh_wide {
    ($each:ident) => {
        $each!(
            namespaces,
            services,
            endpoint_slices,
            pods,
            control_planes,
            member_rolls,
            members,
            peers,
            exports,
            imports
        )
    };
}

/// Hands the fields of [`Resources`](crate::world::Resources) whose objects have a status of ours to a macro.
#[macro_export]
macro_rules! with_status {
    ($each:ident) => {
        $each!(
            control_planes,
            member_rolls,
            members,
            peers,
            exports,
            imports
        )
    };
}

/// What was seen outside of the API.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// PEM certificates that vouch for our own trust domain.
    pub own_roots: Arc<str>,
    /// Running proxies of gateways, by gateway name: those that are connected.
    pub gateways: Shared<String, GatewayState>,
    /// Of the connected sidecars.
    pub refusals: Arc<Refusals>,
    /// Discovery with each peer, by the ServiceMeshPeer's name.
    pub peers: Shared<String, PeerState>,
}

impl Observed {
    pub fn insert_gateway(&mut self, name: impl Into<String>, state: GatewayState) {
        self.gateways.insert(name.into(), Arc::new(state));
    }

    pub fn insert_peer(&mut self, name: impl Into<String>, state: PeerState) {
        self.peers.insert(name.into(), Arc::new(state));
    }
}

/// A connected gateway proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayState {
    /// It has applied its configuration and listens.
    pub ready: bool,
    /// What it last refused to apply, in its words.
    pub refused: Option<String>,
}

/// Sidecars that do not take their configuration, and go on with the one that they have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    pub sidecars: usize,
    /// The words of the first few, by `<namespace>/<name>` of their Pods.
    pub words: BTreeMap<String, String>,
}

/// Both directions of discovery with one peer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PeerState {
    /// What we know of the peer, from our connection to it.
    pub remote: Arc<RemoteState>,
    /// The peer's connections to us.
    pub watchers: Vec<SourceStatus>,
    pub farewell: Farewell,
}

impl PeerState {
    /// What the peer says that it made of our exports. Where several of its replicas say so, the one
    /// that took a list last.
    pub fn report(&self) -> Option<&Report> {
        let connected = self.watchers.iter().filter(|watcher| watcher.connected);
        let reports = connected.filter_map(|watcher| watcher.report.as_ref());
        reports.max_by_key(|report| report.last_sync)
    }
}

/// What is seen of the removal of a peer, or of its ingress gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Farewell {
    /// Since when its watchers have been sent the removal of everything, of which they are to
    /// hear.
    pub told: Option<Timestamp>,
    /// uid of the ServiceMeshPeer that no connected proxy has in its configuration any more.
    pub let_go: Option<String>,
    /// uid of the ServiceMeshPeer of which nothing is kept any more.
    pub forgotten: Option<String>,
}
