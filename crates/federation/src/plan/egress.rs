//! An egress gateway: where our workloads, and our own control plane, leave for peers.
//!
//! 15443 takes mutual TLS of our mesh; the SNI names the imported service, and the cluster of that
//! name leads to the peer's ingress gateway under the name that the peer gave the service. 8188
//! takes discovery requests of our control plane alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use meshfed_pki::TrustDomain;
use meshfed_proxy_config::{
    AllowPolicy, Cluster, DEFAULT_DRAIN, Discovery, FilterChain, HeaderMatch, Http, HttpRoutes,
    Listener, Network, OutlierDetection, Parts, PathMatch, ProxyConfig, Route, RouteAction,
    RouteTable, ServerIds, Tcp, TcpTarget, UpstreamProtocol, UpstreamTls, VirtualHost, sni,
};

use super::changes::{changes, put, put_all, replace};
use super::gateways::GatewayAddress;
use super::imports::{Import, Offer};
use super::ingress::CLIENT_CERTIFICATE_HEADER;
use super::proxy::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, Mesh, peer_trust};
use crate::names::{DiscoveryHost, PeerName, ServiceKey};

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
pub(super) struct EgressPeer<'a> {
    pub name: &'a PeerName,
    pub trust_domain: &'a TrustDomain,
    /// IP addresses or DNS names of its ingress gateways.
    pub addresses: &'a [String],
    pub service_port: u16,
    pub discovery_port: u16,
    pub discovery_host: &'a DiscoveryHost,
    /// Value of [`REMOTE_HEADER`].
    pub remote_hash: u64,
    /// How long connections of an import that is gone may go on.
    pub drain: Duration,
    pub imports: OrdMap<ServiceKey, Arc<Offer>>,
}

/// An egress gateway, which follows what is imported by it at a cost that is proportional to what
/// changed.
#[derive(Debug, Default)]
pub(super) struct Egress {
    config: Arc<ProxyConfig>,
    peers: BTreeMap<PeerName, Shown>,
    /// How many imports have a name that ends so.
    suffixes: BTreeMap<String, usize>,
}

/// What was made for a peer.
#[derive(Debug, Clone, Default)]
struct Shown {
    way: Way,
    imports: OrdMap<ServiceKey, Arc<Offer>>,
}

/// How a peer is reached.
#[derive(Debug, Clone, Default, PartialEq)]
struct Way {
    addresses: Vec<String>,
    service_port: u16,
    drain: Duration,
}

impl Egress {
    /// The configuration for these peers.
    pub fn follow(
        &mut self,
        mesh: &Mesh<'_>,
        addresses: &[GatewayAddress],
        peers: &[EgressPeer<'_>],
    ) -> &Arc<ProxyConfig> {
        let mut config = ProxyConfig::clone(&self.config);
        self.imports(peers, &mut config.clusters);
        for peer in peers {
            let cluster = discovery_cluster(peer);
            put(&mut config.clusters, cluster.name.clone(), cluster);
        }
        // The clusters of each peer have their own, which may be shorter.
        let drain = peers.iter().map(|p| p.drain).max().unwrap_or(DEFAULT_DRAIN);
        let listeners = addresses.iter().flat_map(|address| {
            [
                service_listener(mesh, address, self.suffixes.keys(), drain),
                discovery_listener(mesh, address, peers),
            ]
        });
        put_all(
            &mut config.listeners,
            listeners.map(|l| (l.name.as_str().into(), l)),
        );
        let of_peers = mesh.peers.iter().cloned();
        put_all(
            &mut config.trust,
            [mesh.trust()].into_iter().chain(of_peers),
        );
        replace(&mut self.config, config)
    }

    /// Everything that goes, goes before something comes: a name may move from one peer to another.
    fn imports(&mut self, peers: &[EgressPeer<'_>], clusters: &mut Parts<Cluster>) {
        let wanted: BTreeMap<PeerName, Shown> = peers
            .iter()
            .map(|peer| {
                let way = Way {
                    addresses: peer.addresses.to_vec(),
                    service_port: peer.service_port,
                    drain: peer.drain,
                };
                let imports = peer.imports.clone();
                (peer.name.clone(), Shown { way, imports })
            })
            .collect();
        let before = std::mem::replace(&mut self.peers, wanted);
        let nothing = Shown::default();
        for (peer, before) in &before {
            let now = self.peers.get(peer);
            if now.is_none() {
                clusters.remove(&discovery_cluster_name(peer));
            }
            let now = now.unwrap_or(&nothing);
            for (_, old, new) in changes(&before.imports, &now.imports) {
                let Some(old) = old.and_then(|old| old.imported()) else {
                    continue;
                };
                let stay: BTreeSet<Arc<str>> = new
                    .and_then(|new| new.imported())
                    .into_iter()
                    .flat_map(|new| names(new))
                    .map(|(name, _)| name)
                    .collect();
                for (name, _) in names(old).filter(|(name, _)| !stay.contains(name)) {
                    clusters.remove(&name);
                }
                let suffix = old.host.suffix();
                if let Some(users) = self.suffixes.get_mut(suffix) {
                    *users -= 1;
                    if *users == 0 {
                        self.suffixes.remove(suffix);
                    }
                }
            }
        }
        for (peer, now) in &self.peers {
            let before = before.get(peer).unwrap_or(&nothing);
            for (_, _, new) in changes(&before.imports, &now.imports) {
                let Some(new) = new else { continue };
                put_clusters(clusters, peer, &now.way, new);
                if let Some(import) = new.imported() {
                    let suffix = import.host.suffix();
                    match self.suffixes.get_mut(suffix) {
                        Some(users) => *users += 1,
                        None => {
                            self.suffixes.insert(suffix.to_owned(), 1);
                        }
                    }
                }
            }
            if before.way != now.way {
                for offer in now.imports.values() {
                    put_clusters(clusters, peer, &now.way, offer);
                }
            }
        }
    }
}

/// Only names of imports are let through: the SNI picks a cluster, and the clusters of discovery are
/// for the control plane alone.
fn service_listener<'s>(
    mesh: &Mesh<'_>,
    address: &GatewayAddress,
    suffixes: impl Iterator<Item = &'s String>,
    drain: Duration,
) -> Listener {
    let allow = suffixes
        .map(|suffix| AllowPolicy {
            name: suffix.clone(),
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
            drain,
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
            cluster: discovery_cluster_name(peer.name).to_string(),
            rewrite_authority: Some(peer.discovery_host.to_string()),
            rewrite_path: None,
            timeout,
            remove_headers: vec![CLIENT_CERTIFICATE_HEADER.to_owned()],
        },
    })
}

fn discovery_cluster_name(peer: &PeerName) -> Arc<str> {
    format!("discovery/{peer}").into()
}

fn discovery_cluster(peer: &EgressPeer<'_>) -> Cluster {
    Cluster {
        name: discovery_cluster_name(peer.name),
        discovery: remote_endpoints(peer.addresses, peer.discovery_port),
        connect_timeout: CONNECT_TIMEOUT,
        tls: Some(UpstreamTls {
            trust: peer_trust(peer.name),
            server: ServerIds::AnyOf(peer.trust_domain.clone()),
            sni: Some(peer.discovery_host.as_str().into()),
            alpn: vec!["http/1.1".to_owned()],
        }),
        protocol: UpstreamProtocol::Http1,
        outlier: Some(LEFT_OUT),
        drain: DEFAULT_DRAIN,
    }
}

/// The names of the clusters of an import: for each port the SNI that our workloads send, and the
/// bare host for the first.
fn names(import: &Import) -> impl Iterator<Item = (Arc<str>, u16)> {
    let host = import.host.as_str();
    let first = import.ports.first().map(|p| (host.into(), *p));
    let by_port = import.ports.iter().map(move |p| (sni(*p, host), *p));
    by_port.chain(first)
}

fn put_clusters(clusters: &mut Parts<Cluster>, peer: &PeerName, way: &Way, offer: &Offer) {
    let Some(import) = offer.imported() else {
        return;
    };
    for (name, port) in names(import) {
        let cluster = Cluster {
            name: name.clone(),
            discovery: remote_endpoints(&way.addresses, way.service_port),
            connect_timeout: CONNECT_TIMEOUT,
            tls: Some(UpstreamTls {
                trust: peer_trust(peer),
                server: import.servers.clone(),
                sni: Some(sni(port, offer.remote.host.as_str())),
                alpn: Vec::new(),
            }),
            protocol: UpstreamProtocol::Http1,
            outlier: Some(LEFT_OUT),
            drain: way.drain,
        };
        put(clusters, name, cluster);
    }
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
