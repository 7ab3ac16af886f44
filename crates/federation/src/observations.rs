//! What a control plane sees outside of the API, as a document for tools.
//!
//! A tool lists the resources from the API, takes this document beside them, and plans as the control
//! plane does. There is nothing secret in it, but it tells everything that peers export.

mod statuses;
mod wire;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use meshfed_pki::{IdError, TrustDomain};
use serde::{Deserialize, Serialize};

use self::wire::{Instant, Peer};
use crate::world::{GatewayState, MeshSettings, Observed, Refusals, Resources, World};

/// Group, version and plural of the path at which the document is served.
pub const PATH: [&str; 3] = ["view.meshfed.io", "v1", "observations"];

/// The document.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observations {
    at: Instant,
    mesh: Mesh,
    own_roots: String,
    /// What signs the certificates of workloads; unknown to who has no access to it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    issuer: Option<String>,
    gateways: BTreeMap<String, Gateway>,
    #[serde(default)]
    refusals: Refusals,
    peers: BTreeMap<String, Peer>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mesh {
    system_namespace: String,
    cluster_domain: String,
    default_trust_domain: String,
    instance_suffix: String,
    discovery_address: SocketAddr,
    node_address: IpAddr,
    started: Instant,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Gateway {
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    refused: Option<String>,
}

/// Why a document is not one of ours.
#[derive(Debug, thiserror::Error)]
pub enum ObservationsError {
    #[error("it is no JSON of the expected form: {0}")]
    Form(#[from] serde_json::Error),
    #[error("mesh.defaultTrustDomain: {0}")]
    TrustDomain(#[from] IdError),
    #[error("the list of the peer {peer}: {fault}")]
    List { peer: String, fault: String },
}

/// What a tool knows of the mesh beside its resources.
#[derive(Debug, Clone)]
pub struct Seen {
    /// When it was seen.
    pub at: Timestamp,
    pub mesh: MeshSettings,
    pub observed: Observed,
    /// PEM of the certificate that signs those of workloads.
    pub issuer: Option<String>,
    /// What is not known, for people. Empty when everything is.
    pub unknown: Vec<String>,
}

impl Observations {
    pub fn of(world: &World, issuer: Option<String>) -> Self {
        let (mesh, observed) = (&world.mesh, &world.observed);
        Self {
            at: Instant(world.now),
            mesh: Mesh {
                system_namespace: mesh.system_namespace.clone(),
                cluster_domain: mesh.cluster_domain.clone(),
                default_trust_domain: mesh.default_trust_domain.to_string(),
                instance_suffix: mesh.instance_suffix.clone(),
                discovery_address: mesh.discovery_address,
                node_address: mesh.node_address,
                started: Instant(mesh.started),
            },
            own_roots: observed.own_roots.to_string(),
            issuer,
            gateways: observed
                .gateways
                .iter()
                .map(|(name, state)| {
                    let gateway = Gateway {
                        ready: state.ready,
                        refused: state.refused.clone(),
                    };
                    (name.clone(), gateway)
                })
                .collect(),
            refusals: Refusals::clone(&observed.refusals),
            peers: observed
                .peers
                .iter()
                .map(|(name, state)| (name.clone(), Peer::of(state)))
                .collect(),
        }
    }

    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Seen, ObservationsError> {
        let all: Self = serde_json::from_slice(bytes)?;
        let mesh = all.mesh;
        let domain: TrustDomain = mesh.default_trust_domain.parse()?;
        let mut observed = Observed {
            own_roots: all.own_roots.as_str().into(),
            refusals: Arc::new(all.refusals),
            ..Observed::default()
        };
        for (name, gateway) in all.gateways {
            let state = GatewayState {
                ready: gateway.ready,
                refused: gateway.refused,
            };
            observed.insert_gateway(name, state);
        }
        for (name, peer) in all.peers {
            let state = peer.into_state(&name)?;
            observed.insert_peer(name, state);
        }
        Ok(Seen {
            at: all.at.0,
            mesh: MeshSettings {
                system_namespace: mesh.system_namespace,
                cluster_domain: mesh.cluster_domain,
                default_trust_domain: domain,
                instance_suffix: mesh.instance_suffix,
                discovery_address: mesh.discovery_address,
                node_address: mesh.node_address,
                started: mesh.started.0,
            },
            observed,
            issuer: all.issuer,
            unknown: Vec::new(),
        })
    }
}

impl Seen {
    /// What the resources alone tell, where the document is not to be had: the statuses that a
    /// control plane wrote.
    pub fn from_statuses(resources: &Resources, system_namespace: &str, now: Timestamp) -> Self {
        statuses::seen(resources, system_namespace, now)
    }

    /// The world of this and of the resources of the API.
    pub fn world(&self, resources: Resources, now: Timestamp) -> World {
        World {
            now,
            mesh: self.mesh.clone(),
            resources,
            observed: self.observed.clone(),
        }
    }
}
