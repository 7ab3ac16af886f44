//! An egress gateway: where our workloads, and our own control plane, leave for peers.
//!
//! 15443 takes mutual TLS of our mesh; the SNI names the imported service, and the cluster of that
//! name leads to the peer's ingress gateway under the name that the peer gave the service. 8188
//! takes discovery requests of our control plane alone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::TrustDomain;
use meshfed_proxy_config::{
    AllowPolicy, Cluster, DEFAULT_DRAIN, Discovery, FilterChain, HeaderMatch, Http, HttpRoutes,
    Listener, Network, OutlierDetection, PathMatch, ProxyConfig, Route, RouteAction, RouteTable,
    ServerIds, Tcp, TcpTarget, UpstreamProtocol, UpstreamTls, VirtualHost, sni,
};

use super::gateways::GatewayAddress;
use super::ingress::CLIENT_CERTIFICATE_HEADER;
use super::proxy::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, Mesh, bundle, peer_trust};
use crate::names::{DiscoveryHost, ExportedHost, ImportedHost, PeerName};

/// Request header by which an egress gateway tells peers apart.
pub const DISCOVERY_SERVICE_HEADER: &str = "discovery-service";
/// Request header with the hash of `spec.remote`, so that a request fails until the gateway has the
/// same addresses as the control plane.
pub const REMOTE_HEADER: &str = "remote";
const LIST_TIMEOUT: Duration = Duration::from_secs(120);
/// An address of a peer that fails three times in a row is left out for five seconds, longer if it
/// fails again; all of them together are never left out.
const LEFT_OUT: OutlierDetection = OutlierDetection {
    consecutive_failures: 3,
    interval: Duration::from_secs(5),
    base_ejection: Duration::from_secs(5),
    max_ejection_percent: 100,
};

/// A peer that is reached from here.
#[derive(Debug, Clone)]
pub struct EgressPeer<'a> {
    pub name: &'a PeerName,
    pub trust_domain: &'a TrustDomain,
    /// PEM certificates that vouch for it.
    pub roots: &'a Arc<str>,
    /// IP addresses or DNS names of its ingress gateways.
    pub addresses: &'a [String],
    pub service_port: u16,
    pub discovery_port: u16,
    pub discovery_host: &'a DiscoveryHost,
    /// Value of [`REMOTE_HEADER`].
    pub remote_hash: u64,
    /// How long connections of an import that is gone may go on.
    pub drain: Duration,
    pub imports: Vec<EgressImport>,
}

/// One service of a peer that we import.
#[derive(Debug, Clone)]
pub struct EgressImport {
    pub imported: ImportedHost,
    pub exported: ExportedHost,
    /// The service's ports.
    pub ports: Vec<u16>,
    /// Who may answer at the peer's ingress.
    pub servers: ServerIds,
}

/// The configuration of an egress gateway.
pub fn config(
    mesh: &Mesh<'_>,
    addresses: &[GatewayAddress],
    peers: &[EgressPeer<'_>],
) -> ProxyConfig {
    let mut config = ProxyConfig::default();
    config.trust.extend([mesh.trust()]);
    for peer in peers {
        let roots = bundle(peer.trust_domain, peer.roots);
        config.trust.insert(peer_trust(peer.name).into(), roots);
        let services = peer
            .imports
            .iter()
            .flat_map(|import| service_clusters(peer, import));
        for cluster in services.chain([discovery_cluster(peer)]) {
            config
                .clusters
                .insert(cluster.name.clone(), Arc::new(cluster));
        }
    }
    for address in addresses {
        for listener in [
            service_listener(mesh, address, peers),
            discovery_listener(mesh, address, peers),
        ] {
            config
                .listeners
                .insert(listener.name.as_str().into(), Arc::new(listener));
        }
    }
    config
}

/// Only names of imports are let through: the SNI picks a cluster, and the clusters of discovery are
/// for the control plane alone.
fn service_listener(
    mesh: &Mesh<'_>,
    address: &GatewayAddress,
    peers: &[EgressPeer<'_>],
) -> Listener {
    let imports = peers.iter().flat_map(|peer| &peer.imports);
    let suffixes: BTreeSet<&str> = imports.map(|import| import.imported.suffix()).collect();
    let allow = suffixes
        .into_iter()
        .map(|suffix| AllowPolicy {
            name: suffix.to_owned(),
            principals: Vec::new(),
            server_name_suffix: Some(format!(".{suffix}")),
        })
        .collect();
    Listener {
        name: format!("{}_{}", address.ip, address.service_port),
        address: (address.ip, address.service_port).into(),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        chains: vec![FilterChain {
            name: "imports".to_owned(),
            server_names: Vec::new(),
            tls: Some(mesh.downstream_tls(Vec::new(), Vec::new())),
            drain: DEFAULT_DRAIN,
            network: Network::Tcp(Tcp {
                target: TcpTarget::SniCluster,
                allow: Some(allow),
                idle_timeout: IDLE_TIMEOUT,
            }),
        }],
    }
}

fn discovery_listener(
    mesh: &Mesh<'_>,
    address: &GatewayAddress,
    peers: &[EgressPeer<'_>],
) -> Listener {
    let routes = peers.iter().flat_map(discovery_routes).collect();
    Listener {
        name: format!("{}_{}", address.ip, address.discovery_port),
        address: (address.ip, address.discovery_port).into(),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        chains: vec![FilterChain {
            name: "discovery".to_owned(),
            server_names: Vec::new(),
            tls: Some(
                mesh.downstream_tls(Vec::new(), vec!["h2".to_owned(), "http/1.1".to_owned()]),
            ),
            drain: DEFAULT_DRAIN,
            network: Network::Http(Http {
                stat_prefix: "discovery".to_owned(),
                routes: HttpRoutes::Inline(RouteTable::new(
                    "discovery",
                    [VirtualHost {
                        name: "discovery".into(),
                        domains: vec!["*".to_owned()],
                        routes,
                    }],
                )),
                allow: Some(vec![AllowPolicy {
                    name: "control-plane".to_owned(),
                    principals: vec![mesh.control_plane_id.clone()],
                    server_name_suffix: None,
                }]),
                forward_client_id: false,
                append_forwarded_for: true,
                accept_connect: false,
                stream_idle_timeout: Duration::ZERO,
            }),
        }],
    }
}

fn discovery_routes(peer: &EgressPeer<'_>) -> [Route; 2] {
    [
        ("/v1/services/", LIST_TIMEOUT),
        ("/v1/watch", Duration::ZERO),
    ]
    .map(|(path, timeout)| Route {
        name: format!("{}{path}", peer.name),
        path: PathMatch::Exact(path.to_owned()),
        headers: vec![
            HeaderMatch::Exact {
                name: DISCOVERY_SERVICE_HEADER.to_owned(),
                value: peer.discovery_host.to_string(),
            },
            HeaderMatch::Exact {
                name: REMOTE_HEADER.to_owned(),
                value: peer.remote_hash.to_string(),
            },
        ],
        action: RouteAction::Forward {
            cluster: discovery_cluster_name(peer.name),
            rewrite_authority: Some(peer.discovery_host.to_string()),
            rewrite_path: None,
            timeout,
            remove_headers: vec![CLIENT_CERTIFICATE_HEADER.to_owned()],
        },
    })
}

fn discovery_cluster_name(peer: &PeerName) -> String {
    format!("discovery/{peer}")
}

fn discovery_cluster(peer: &EgressPeer<'_>) -> Cluster {
    Cluster {
        name: discovery_cluster_name(peer.name).into(),
        discovery: remote_endpoints(peer.addresses, peer.discovery_port),
        connect_timeout: CONNECT_TIMEOUT,
        tls: Some(UpstreamTls {
            trust: peer_trust(peer.name).into(),
            server: ServerIds::AnyOf(peer.trust_domain.clone()),
            sni: Some(peer.discovery_host.as_str().into()),
            alpn: vec!["http/1.1".to_owned()],
        }),
        protocol: UpstreamProtocol::Http1,
        outlier: Some(LEFT_OUT),
        drain: DEFAULT_DRAIN,
    }
}

/// One cluster for each port, named by the SNI that our workloads send, and one by the bare name
/// for the first port.
fn service_clusters(peer: &EgressPeer<'_>, import: &EgressImport) -> impl Iterator<Item = Cluster> {
    let imported = import.imported.as_str();
    let first = import.ports.first().map(|p| (imported.into(), *p));
    let by_port = import.ports.iter().map(|p| (sni(*p, imported), *p));
    by_port.chain(first).map(|(name, port)| Cluster {
        name,
        discovery: remote_endpoints(peer.addresses, peer.service_port),
        connect_timeout: CONNECT_TIMEOUT,
        tls: Some(UpstreamTls {
            trust: peer_trust(peer.name).into(),
            server: import.servers.clone(),
            sni: Some(sni(port, import.exported.as_str())),
            alpn: Vec::new(),
        }),
        protocol: UpstreamProtocol::Http1,
        outlier: Some(LEFT_OUT),
        drain: peer.drain,
    })
}

/// The peer's addresses; names among them make the proxy resolve all of them.
fn remote_endpoints(addresses: &[String], port: u16) -> Discovery {
    let ips: Option<Vec<_>> = addresses
        .iter()
        .map(|a| a.parse().ok().map(|ip: std::net::IpAddr| (ip, port).into()))
        .collect();
    ips.map_or_else(
        || Discovery::Dns(addresses.iter().map(|a| (a.clone(), port)).collect()),
        Discovery::Static,
    )
}
