//! An egress gateway: where our workloads, and our own control plane, leave for peers.
//!
//! 15443 takes mutual TLS of our mesh; the SNI names the imported service, and the cluster of that
//! name leads to the peer's ingress gateway under the name that the peer gave the service. 8188
//! takes discovery requests of our control plane alone.
//!
//! Every import has its hidden name here, which tells peers apart. A local name may be that of
//! several peers: its clusters lead to the first one, and where several are reached from here, a filter
//! chain for the name spreads connections over their hidden ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use meshfed_ordmap::OrdMap;
use meshfed_pki::TrustDomain;
use meshfed_proxy_config::{
    AllowPolicy, Cluster, DEFAULT_DRAIN, Discovery, FilterChain, HeaderMatch, Http, HttpRoutes,
    Listener, Network, OutlierDetection, Parts, PathMatch, ProxyConfig, Route, RouteAction,
    RouteTable, ServerIds, ServerName, Tcp, TcpTarget, UpstreamProtocol, UpstreamTls, VirtualHost,
    sni,
};

use super::balance::weights;
use super::changes::{put, put_all, replace};
use super::gateways::GatewayAddress;
use super::imports::{Import, Imports, Offer};
use super::ingress::CLIENT_CERTIFICATE_HEADER;
use super::proxy::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, Mesh, peer_trust};
use crate::names::{DiscoveryHost, PeerName, RemoteHost, ServiceKey};

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

/// Ports of shared names that have a filter chain of their own; a listener is one resource, and its size
/// has a limit. Those beyond go to the first peer that has the name.
pub(super) const MOST_SHARED: usize = 1000;
/// The same, where each port counts once for each of the peers that have it.
pub(super) const MOST_WAYS: usize = 10_000;

/// How many of the ports of shared names have a filter chain, by how many peers have each.
pub(super) fn with_chain(peers: impl Iterator<Item = usize>) -> usize {
    let mut ways = 0;
    let fits = |peers: &usize| {
        ways += peers;
        ways <= MOST_WAYS
    };
    peers.take(MOST_SHARED).take_while(fits).count()
}

/// A peer that is reached from here.
#[derive(Debug, Clone)]
pub(super) struct EgressPeer<'a> {
    pub name: &'a PeerName,
    /// Decides who comes first where several have a name.
    pub created: Option<Timestamp>,
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
    /// What several peers behind this gateway have together, by name.
    shared: BTreeMap<Arc<str>, Vec<SharedPort>>,
    /// How many imports have a name that ends so.
    suffixes: BTreeMap<String, usize>,
}

/// What was made for a peer.
#[derive(Debug, Clone, Default)]
struct Shown {
    way: Way,
    imports: OrdMap<ServiceKey, Arc<Offer>>,
}

/// A port of a name that several peers have.
#[derive(Debug)]
struct SharedPort {
    /// The SNIs that ask for it.
    names: Vec<Arc<str>>,
    /// How many have it, whether they take requests or not.
    peers: usize,
    clusters: Vec<(Arc<str>, u32)>,
}

/// Local names whose carriers may be others than before, with the ports that they had.
type Touched = BTreeMap<Arc<str>, BTreeSet<u16>>;

/// How a peer is reached, and its place among those that share a name.
#[derive(Debug, Clone, Default, PartialEq)]
struct Way {
    created: Option<Timestamp>,
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
        imports: &Imports,
    ) -> &Arc<ProxyConfig> {
        let mut config = ProxyConfig::clone(&self.config);
        let touched = self.imports(peers, &mut config.clusters);
        self.local_names(imports, touched, &mut config.clusters);
        for peer in peers {
            let cluster = discovery_cluster(peer);
            put(&mut config.clusters, cluster.name.clone(), cluster);
        }
        let chains = self.service_chains(mesh, peers);
        let listeners = addresses.iter().flat_map(|address| {
            [
                service_listener(address, chains.clone()),
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
    fn imports(&mut self, peers: &[EgressPeer<'_>], clusters: &mut Parts<Cluster>) -> Touched {
        let mut touched = Touched::new();
        let wanted: BTreeMap<PeerName, Shown> = peers
            .iter()
            .map(|peer| {
                let way = Way {
                    created: peer.created,
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
            for (key, old, new) in before.imports.changes(&now.imports) {
                let Some(old) = old.and_then(|old| old.imported()) else {
                    continue;
                };
                let stay: BTreeSet<Arc<str>> = new
                    .and_then(|new| new.imported())
                    .into_iter()
                    .flat_map(|new| names(peer, key, new))
                    .map(|(name, _)| name)
                    .collect();
                for (name, _) in names(peer, key, old).filter(|(name, _)| !stay.contains(name)) {
                    clusters.remove(&name);
                }
                if old.as_local {
                    let ports = touched.entry(old.host.as_str().into()).or_default();
                    ports.extend(&old.ports);
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
            for (_, _, new) in before.imports.changes(&now.imports) {
                let Some(new) = new else { continue };
                put_clusters(clusters, peer, &now.way, new);
                if let Some(import) = new.imported() {
                    touch(&mut touched, import);
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
                    if let Some(import) = offer.imported() {
                        touch(&mut touched, import);
                    }
                }
            }
        }
        touched
    }

    /// The clusters of local names, and who shares one.
    fn local_names(&mut self, imports: &Imports, touched: Touched, clusters: &mut Parts<Cluster>) {
        for (host, had) in touched {
            let holders: Vec<_> = imports
                .holders(&host)
                .filter_map(|(peer, offer, import)| {
                    let shown = self.peers.get(peer)?;
                    Some((peer, &shown.way, offer, import))
                })
                .collect();
            let ports: BTreeSet<u16> = holders
                .iter()
                .flat_map(|(_, _, _, import)| import.ports.iter().copied())
                .collect();
            for gone in had.difference(&ports) {
                clusters.remove(&sni(*gone, &host));
            }
            // The bare host is the first port of the first one.
            let bare = holders.first().and_then(|(_, _, _, i)| i.ports.first());
            if bare.is_none() {
                clusters.remove(&host);
            }
            let mut shared = Vec::new();
            for port in ports {
                let of_port = holders
                    .iter()
                    .filter(|(_, _, _, i)| i.ports.contains(&port));
                let of_port: Vec<_> = of_port.collect();
                let mut names = vec![sni(port, &host)];
                names.extend((bare == Some(&port)).then(|| host.clone()));
                if let Some((peer, way, offer, import)) = of_port.first() {
                    for name in &names {
                        let cluster = cluster(name.clone(), port, peer, way, offer, import);
                        put(clusters, name.clone(), cluster);
                    }
                }
                if of_port.len() > 1 {
                    let healths: Vec<_> = of_port.iter().map(|(_, _, _, i)| i.health).collect();
                    let of_peers = of_port
                        .iter()
                        .map(|(peer, _, offer, _)| hidden_sni(port, &offer.remote.key, peer));
                    let clusters = spread(of_peers.zip(weights(false, &healths)).collect());
                    shared.push(SharedPort {
                        names,
                        peers: of_port.len(),
                        clusters,
                    });
                }
            }
            if shared.is_empty() {
                self.shared.remove(&host);
            } else {
                self.shared.insert(host, shared);
            }
        }
    }

    /// Only names of imports are let through: the SNI picks a cluster, and the clusters of
    /// discovery are for the control plane alone.
    fn service_chains(&self, mesh: &Mesh<'_>, peers: &[EgressPeer<'_>]) -> Vec<FilterChain> {
        let hidden = peers.iter().map(|peer| hidden_suffix(peer.name));
        let suffixes = self.suffixes.keys().cloned().chain(hidden);
        let allow = suffixes.map(|suffix| AllowPolicy {
            server_name_suffix: Some(format!(".{suffix}")),
            principals: Vec::new(),
            name: suffix,
        });
        // The clusters of each peer have their own, which may be shorter.
        let drain = peers.iter().map(|p| p.drain).max().unwrap_or(DEFAULT_DRAIN);
        let chain = |name: &str, target, allow| FilterChain {
            name: name.to_owned(),
            server_names: Vec::new(),
            tls: Some(mesh.downstream_tls(Vec::new(), Vec::new())),
            drain,
            network: Network::Tcp(Tcp {
                target,
                allow,
                idle_timeout: IDLE_TIMEOUT,
            }),
        };
        let mut all = vec![chain(
            "imports",
            TcpTarget::SniCluster,
            Some(allow.collect()),
        )];
        let shared = || self.shared.values().flatten();
        let chains = with_chain(shared().map(|port| port.peers));
        let shared = shared().take(chains);
        all.extend(shared.map(|port| {
            let exact = |name: &Arc<str>| ServerName::Exact(name.to_string());
            FilterChain {
                server_names: port.names.iter().map(exact).collect(),
                // Who asks for exactly this name may have it.
                ..chain(
                    &port.names[0],
                    TcpTarget::Weighted(port.clusters.clone()),
                    None,
                )
            }
        }));
        all
    }
}

fn touch(touched: &mut Touched, import: &Import) {
    if import.as_local {
        touched.entry(import.host.as_str().into()).or_default();
    }
}

/// Without those that get nothing. If nobody takes requests, callers are told so by their sidecars
/// before they come here.
fn spread(mut all: Vec<(Arc<str>, u32)>) -> Vec<(Arc<str>, u32)> {
    if all.iter().any(|(_, weight)| *weight > 0) {
        all.retain(|(_, weight)| *weight > 0);
    }
    for (_, weight) in &mut all {
        *weight = (*weight).max(1);
    }
    all
}

fn service_listener(address: &GatewayAddress, chains: Vec<FilterChain>) -> Listener {
    Listener {
        name: format!("{}_{}", address.ip, address.service_port),
        address: (address.ip, address.service_port).into(),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        chains,
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
            remove_headers: [CLIENT_CERTIFICATE_HEADER.to_owned()].into(),
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

fn hidden_suffix(peer: &PeerName) -> String {
    format!("svc.{peer}.remote")
}

/// The SNI of a port of a peer's service under its hidden name, `<name>.<namespace>.svc.<peer>.remote`.
/// `key` is its exported name and namespace.
pub(super) fn hidden_sni(port: u16, key: &ServiceKey, peer: &PeerName) -> Arc<str> {
    sni(port, RemoteHost::new(key, peer).as_str())
}

/// The names of the clusters that an import has for itself: the hidden one for each port, which our
/// workloads ask for, and the bare host for the first. A local name may be that of others too.
fn names(
    peer: &PeerName,
    key: &ServiceKey,
    import: &Import,
) -> impl Iterator<Item = (Arc<str>, u16)> {
    let hidden = RemoteHost::new(key, peer);
    let first = import.ports.first().filter(|_| !import.as_local);
    let bare = first.map(|port| (import.host.as_str().into(), *port));
    let by_port = import.ports.iter();
    by_port
        .map(move |port| (sni(*port, hidden.as_str()), *port))
        .chain(bare)
}

fn put_clusters(clusters: &mut Parts<Cluster>, peer: &PeerName, way: &Way, offer: &Offer) {
    let Some(import) = offer.imported() else {
        return;
    };
    for (name, port) in names(peer, &offer.remote.key, import) {
        let cluster = cluster(name.clone(), port, peer, way, offer, import);
        put(clusters, name, cluster);
    }
}

fn cluster(
    name: Arc<str>,
    port: u16,
    peer: &PeerName,
    way: &Way,
    offer: &Offer,
    import: &Import,
) -> Cluster {
    Cluster {
        name,
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
