//! Clusters: groups of endpoints that are equal for routing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::{SpiffeId, TrustDomain};

use crate::UpstreamProtocol;

#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    pub name: Arc<str>,
    pub discovery: Discovery,
    pub connect_timeout: Duration,
    pub tls: Option<UpstreamTls>,
    pub protocol: UpstreamProtocol,
    pub outlier: Option<OutlierDetection>,
    /// How long its connections may go on after it was taken away, in whole milliseconds, at most
    /// [`MAX_DRAIN`](crate::MAX_DRAIN).
    pub drain: Duration,
}

impl Cluster {
    /// Takes over the texts of `other` that are equal to its own, so that thousands of clusters
    /// towards one peer hold them once.
    pub fn share(&mut self, other: &Self) {
        let (Some(tls), Some(other)) = (&mut self.tls, &other.tls) else {
            return;
        };
        if tls.trust == other.trust {
            tls.trust = other.trust.clone();
        }
        if tls.server == other.server {
            tls.server = other.server.clone();
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Discovery {
    /// Endpoints come as the [`Endpoints`] of this name.
    Eds(Arc<str>),
    /// Fixed addresses.
    Static(Vec<SocketAddr>),
    /// Host names, resolved by the proxy and again as their TTL ends: `(host, port)`.
    Dns(Vec<(String, u16)>),
}

/// TLS towards endpoints; our own certificate is always presented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Name of the [`TrustBundle`](crate::TrustBundle) that the server's certificate must satisfy.
    pub trust: Arc<str>,
    pub server: ServerIds,
    /// The SNI to send; `None` sends none.
    pub sni: Option<Arc<str>>,
    pub alpn: Vec<String>,
}

/// Which server identities are accepted, beyond what the bundle says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerIds {
    OneOf(Vec<SpiffeId>),
    /// Any id of this trust domain.
    AnyOf(TrustDomain),
}

#[derive(Debug, Clone, PartialEq)]
pub struct OutlierDetection {
    pub consecutive_failures: u32,
    pub interval: Duration,
    pub base_ejection: Duration,
    pub max_ejection_percent: u32,
}

/// An EDS resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    pub name: Arc<str>,
    pub localities: Vec<LocalityEndpoints>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalityEndpoints {
    pub locality: Locality,
    /// 0 is the highest; lower ones are used when the higher have no healthy endpoint.
    pub priority: u32,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub subzone: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// False: the workload has no sidecar, plain bytes are sent even though the cluster has TLS
    /// (Envoy: `transport_socket_matches` on endpoint metadata `tlsMode`).
    pub mesh_tls: bool,
    /// Share of the traffic in proportion to the other endpoints of the priority: 1 to
    /// [`MAX_WEIGHT`]. What is outside is written as the nearest bound.
    pub weight: u32,
    /// Who is reached through it, if it is a gateway that spreads connections over several. When one of them is
    /// there no more, connections may still lead to it, so that none is used again. Only with `mesh_tls`.
    pub behind: Vec<Arc<str>>,
}

/// The heaviest that an endpoint can be. Envoy adds the weights of a locality in 32 bits, so this
/// leaves room for 65,536 of the heaviest.
pub const MAX_WEIGHT: u32 = 65_535;

impl Endpoint {
    /// An endpoint behind mutual TLS, of weight 1.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            mesh_tls: true,
            weight: 1,
            behind: Vec::new(),
        }
    }
}
