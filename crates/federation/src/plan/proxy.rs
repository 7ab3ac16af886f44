//! What the configurations of all proxies share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::{SpiffeId, TrustDomain};
use meshfed_proxy_config::{
    Cluster, DEFAULT_DRAIN, Discovery, DownstreamTls, Endpoints, ProxyConfig, ServerIds,
    TrustBundle, UpstreamProtocol, UpstreamTls, sni,
};

use super::local::{LocalPort, LocalService};
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
    /// PEM certificates that vouch for it.
    pub roots: &'a Arc<str>,
    pub system_namespace: &'a str,
    pub cluster_domain: &'a str,
    pub control_plane_id: &'a SpiffeId,
    /// Where the control plane serves discovery.
    pub discovery_address: std::net::SocketAddr,
}

impl Mesh<'_> {
    /// The bundle that vouches for our own mesh, under [`MESH_TRUST`].
    pub fn trust(&self) -> (&'static str, Arc<TrustBundle>) {
        (MESH_TRUST, bundle(self.trust_domain, self.roots))
    }

    /// Clients of our own mesh; any of them unless `client_ids` names some.
    pub fn downstream_tls(&self, client_ids: Vec<SpiffeId>, alpn: Vec<String>) -> DownstreamTls {
        DownstreamTls {
            trust: MESH_TRUST.to_owned(),
            client_ids,
            alpn,
        }
    }

    /// Adds what leads to a local service: for each port a cluster of each given name and the
    /// endpoints that they share.
    pub fn add_local(
        &self,
        config: &mut ProxyConfig,
        service: &LocalService,
        port: &LocalPort,
        cluster_names: impl IntoIterator<Item = Arc<str>>,
        drain: Duration,
    ) {
        let endpoints = &port.endpoints;
        config
            .endpoints
            .insert(endpoints.name.clone(), endpoints.clone());
        for name in cluster_names {
            let servers = ServerIds::AnyOf(self.trust_domain.clone());
            let cluster = Cluster {
                drain,
                ..self.workload_cluster(name, &service.host, port.number, endpoints, servers)
            };
            config
                .clusters
                .insert(cluster.name.clone(), Arc::new(cluster));
        }
    }

    /// A cluster of workloads (or our own egress gateways) behind mutual TLS of the mesh, which must
    /// prove to be one of `servers`.
    pub fn workload_cluster(
        &self,
        name: Arc<str>,
        host: &str,
        port: u16,
        endpoints: &Endpoints,
        servers: ServerIds,
    ) -> Cluster {
        Cluster {
            name,
            discovery: Discovery::Eds(endpoints.name.clone()),
            connect_timeout: CONNECT_TIMEOUT,
            tls: Some(UpstreamTls {
                trust: MESH_TRUST.into(),
                server: servers,
                sni: Some(sni(port, host)),
                alpn: Vec::new(),
            }),
            protocol: UpstreamProtocol::Http1,
            outlier: None,
            drain: DEFAULT_DRAIN,
        }
    }
}

/// Name of the trust bundle of one peer.
pub fn peer_trust(peer: &PeerName) -> String {
    format!("peer/{peer}")
}

pub fn bundle(domain: &TrustDomain, roots: &Arc<str>) -> Arc<TrustBundle> {
    Arc::new(TrustBundle {
        domains: BTreeMap::from([(domain.clone(), roots.clone())]),
    })
}
