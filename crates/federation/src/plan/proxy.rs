//! What the configurations of all proxies share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::{SpiffeId, TrustDomain};
use meshfed_proxy_config::{
    Cluster, DEFAULT_DRAIN, Discovery, DownstreamTls, ServerIds, TrustBundle, UpstreamProtocol,
    UpstreamTls,
};

use crate::names::PeerName;

/// Name of the trust bundle of our own mesh.
pub const MESH_TRUST: &str = "mesh";
/// A client has this long from accept to the end of its handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without a byte for this long is closed, as in Envoy.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What every proxy of the mesh needs to know of it.
#[derive(Debug, Clone, Copy)]
pub struct Mesh<'a> {
    pub trust_domain: &'a TrustDomain,
    /// [`MESH_TRUST`], shared.
    pub trust_name: &'a Arc<str>,
    /// PEM certificates that vouch for it.
    pub roots: &'a Arc<str>,
    /// The bundles of all peers, for gateways. One that leads to a peer no more still needs the
    /// peer's roots: connections that go on are cut when nothing vouches for them.
    pub peers: &'a [(Arc<str>, TrustBundle)],
    pub system_namespace: &'a str,
    pub cluster_domain: &'a str,
    pub control_plane_id: &'a SpiffeId,
    /// Where the control plane serves discovery.
    pub discovery_address: std::net::SocketAddr,
}

impl Mesh<'_> {
    /// The bundle that vouches for our own mesh, under [`MESH_TRUST`].
    pub fn trust(&self) -> (Arc<str>, TrustBundle) {
        (MESH_TRUST.into(), bundle(self.trust_domain, self.roots))
    }

    /// Clients of our own mesh; any of them unless `client_ids` names some.
    pub fn downstream_tls(&self, client_ids: Vec<SpiffeId>, alpn: Vec<String>) -> DownstreamTls {
        DownstreamTls {
            trust: MESH_TRUST.to_owned(),
            client_ids,
            alpn,
        }
    }

    /// A cluster of workloads (or our own egress gateways) behind mutual TLS of the mesh, which must
    /// prove to be one of `servers`.
    pub fn workload_cluster(
        &self,
        name: Arc<str>,
        sni: Arc<str>,
        endpoints: Arc<str>,
        servers: ServerIds,
    ) -> Cluster {
        Cluster {
            name,
            discovery: Discovery::Eds(endpoints),
            connect_timeout: CONNECT_TIMEOUT,
            tls: Some(UpstreamTls {
                trust: self.trust_name.clone(),
                server: servers,
                sni: Some(sni),
                alpn: Vec::new(),
            }),
            protocol: UpstreamProtocol::Http1,
            outlier: None,
            drain: DEFAULT_DRAIN,
        }
    }
}

/// Name of the trust bundle of one peer.
pub fn peer_trust(peer: &PeerName) -> Arc<str> {
    format!("peer/{peer}").into()
}

pub fn bundle(domain: &TrustDomain, roots: &Arc<str>) -> TrustBundle {
    TrustBundle {
        domains: BTreeMap::from([(domain.clone(), roots.clone())]),
    }
}
