//! An ingress gateway: where peers come in.
//!
//! 15443 carries service traffic. One filter chain per peer is chosen by the end of the SNI; only
//! that peer's `clientID`, vouched for by that peer's roots, finishes the handshake; the SNI then
//! names the cluster, and only exported names have one. 8188 carries discovery: the identity of
//! the caller, never its SNI or Host, decides whose list it gets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use meshfed_ordmap::OrdMap;
use meshfed_pki::{SpiffeId, TrustDomain};
use meshfed_proxy_config::{
    AllowPolicy, Cluster, DEFAULT_DRAIN, Discovery, DownstreamTls, Endpoints, FilterChain,
    HeaderMatch, Http, HttpRoutes, Listener, Network, Parts, PathMatch, ProxyConfig, Route,
    RouteAction, RouteTable, ServerIds, ServerName, Tcp, TcpTarget, TrustBundle, UpstreamProtocol,
    UpstreamTls, VirtualHost, sni,
};

use super::changes::{put, put_all, replace};
use super::exports::Exported;
use super::gateways::GatewayAddress;
use super::local::LocalPort;
use super::proxy::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, Mesh, peer_trust};
use crate::names::{ExportedHost, PeerName};

/// Header in which a proxy says who its client is.
pub const CLIENT_CERTIFICATE_HEADER: &str = "x-forwarded-client-cert";
const DISCOVERY_CLUSTER: &str = "control-plane-discovery";
const DISCOVERY_TRUST: &str = "discovery-clients";
/// A list may be 64 MiB; a watch has no limit.
const LIST_TIMEOUT: Duration = Duration::from_secs(120);

/// A peer that may come in here.
#[derive(Debug, Clone)]
pub(super) struct IngressPeer<'a> {
    pub name: &'a PeerName,
    pub trust_domain: &'a TrustDomain,
    /// PEM certificates that vouch for it.
    pub roots: &'a Arc<str>,
    pub client_id: &'a SpiffeId,
    /// How long connections of an export that is gone may go on.
    pub drain: Duration,
    /// What it may call, under which name.
    pub exports: OrdMap<ExportedHost, Arc<Exported>>,
}

/// An ingress gateway, which follows what is exported by it at a cost that is proportional to what
/// changed.
#[derive(Debug, Default)]
pub(super) struct Ingress {
    config: Arc<ProxyConfig>,
    trust_domain: Option<TrustDomain>,
    peers: BTreeMap<PeerName, Shown>,
    /// How many ports of exports use an endpoints resource besides the first, where there are some.
    more_users: BTreeMap<Arc<str>, usize>,
}

/// What was made for a peer.
#[derive(Debug, Clone, Default)]
struct Shown {
    drain: Duration,
    exports: OrdMap<ExportedHost, Arc<Exported>>,
}

impl Ingress {
    /// The configuration for these peers.
    pub fn follow(
        &mut self,
        mesh: &Mesh<'_>,
        addresses: &[GatewayAddress],
        peers: &[IngressPeer<'_>],
    ) -> &Arc<ProxyConfig> {
        let mut config = ProxyConfig::clone(&self.config);
        let (clusters, endpoints) = (&mut config.clusters, &mut config.endpoints);
        self.exports(mesh, peers, clusters, endpoints);
        let control_plane = discovery_cluster(mesh);
        put(clusters, control_plane.name.clone(), control_plane);
        let listeners = addresses.iter().flat_map(|address| {
            [
                service_listener(address, peers),
                discovery_listener(mesh, address, peers),
            ]
        });
        put_all(
            &mut config.listeners,
            listeners.map(|l| (l.name.as_str().into(), l)),
        );
        let domains = peers
            .iter()
            .map(|p| (p.trust_domain.clone(), p.roots.clone()))
            .collect();
        let all = [
            mesh.trust(),
            (DISCOVERY_TRUST.into(), TrustBundle { domains }),
        ];
        put_all(
            &mut config.trust,
            all.into_iter().chain(mesh.peers.iter().cloned()),
        );
        replace(&mut self.config, config)
    }

    /// Everything that goes, goes before something comes: a name may move from one to another.
    fn exports(
        &mut self,
        mesh: &Mesh<'_>,
        peers: &[IngressPeer<'_>],
        clusters: &mut Parts<Cluster>,
        endpoints: &mut Parts<Endpoints>,
    ) {
        let wanted: BTreeMap<PeerName, Shown> = peers
            .iter()
            .map(|peer| {
                let (drain, exports) = (peer.drain, peer.exports.clone());
                (peer.name.clone(), Shown { drain, exports })
            })
            .collect();
        let before = std::mem::replace(&mut self.peers, wanted);
        let nothing = Shown::default();
        let mut unused = BTreeSet::new();
        for (peer, before) in &before {
            let now = self.peers.get(peer).unwrap_or(&nothing);
            for (host, old, new) in before.exports.changes(&now.exports) {
                let Some(old) = old else { continue };
                let stay: BTreeSet<Arc<str>> = new
                    .into_iter()
                    .flat_map(|new| names(host, new))
                    .map(|(name, _)| name)
                    .collect();
                for (name, _) in names(host, old).filter(|(name, _)| !stay.contains(name)) {
                    clusters.remove(&name);
                }
                for port in &old.local.ports {
                    let name = &port.endpoints.name;
                    match self.more_users.get_mut(name) {
                        None => {
                            unused.insert(name.clone());
                        }
                        Some(1) => {
                            self.more_users.remove(name);
                        }
                        Some(more) => *more -= 1,
                    }
                }
            }
        }
        let same_mesh = self.trust_domain.as_ref() == Some(mesh.trust_domain);
        let (mut by_port, mut by_host) = (Vec::new(), Vec::new());
        let mut used: Vec<Arc<Endpoints>> = Vec::new();
        for (peer, now) in &self.peers {
            let before = before.get(peer).unwrap_or(&nothing);
            for (host, old, new) in before.exports.changes(&now.exports) {
                let Some(new) = new else { continue };
                for (name, port) in names(host, new) {
                    let cluster = cluster(mesh, name.clone(), port, now.drain);
                    if old.is_some() {
                        put(clusters, name, cluster);
                    } else if Arc::ptr_eq(&name, host.shared()) {
                        by_host.push((name, Arc::new(cluster)));
                    } else {
                        by_port.push((name, Arc::new(cluster)));
                    }
                }
                used.extend(new.local.ports.iter().map(|port| port.endpoints.clone()));
            }
            if !same_mesh || before.drain != now.drain {
                let stayed = |host: &ExportedHost| before.exports.contains_key(host);
                for (host, exported) in now.exports.iter().filter(|(host, _)| stayed(host)) {
                    for (name, port) in names(host, exported) {
                        let cluster = cluster(mesh, name.clone(), port, now.drain);
                        put(clusters, name, cluster);
                    }
                }
            }
        }
        // In the order of the hosts they are mostly sorted.
        for mut new in [by_host, by_port] {
            new.sort_by(|(a, _), (b, _)| a.cmp(b));
            clusters.extend_all(new);
        }
        used.sort_by(|a, b| a.name.cmp(&b.name));
        let mut new_endpoints = Vec::new();
        for same in used.chunk_by(|a, b| a.name == b.name) {
            let Some(first) = same.first() else { continue };
            let there = endpoints.get(&first.name);
            let stays = unused.remove(&first.name);
            let more = same.len() - usize::from(there.is_none() || stays);
            if more > 0 {
                *self.more_users.entry(first.name.clone()).or_default() += more;
            }
            if !there.is_some_and(|there| Arc::ptr_eq(there, first)) {
                new_endpoints.push((first.name.clone(), first.clone()));
            }
        }
        for name in unused {
            endpoints.remove(&name);
        }
        endpoints.extend_all(new_endpoints);
        self.trust_domain = Some(mesh.trust_domain.clone());
    }
}

/// The names of the clusters of an export: one for each port, and the bare host for the first.
fn names<'e>(
    host: &ExportedHost,
    exported: &'e Exported,
) -> impl Iterator<Item = (Arc<str>, &'e LocalPort)> {
    let ports = exported.local.ports.iter();
    let by_port = ports.map(|port| (sni(port.number, host.as_str()), port));
    let first = exported.local.ports.first();
    by_port.chain(first.map(|port| (host.shared().clone(), port)))
}

fn cluster(mesh: &Mesh<'_>, name: Arc<str>, port: &LocalPort, drain: Duration) -> Cluster {
    let servers = ServerIds::AnyOf(mesh.trust_domain.clone());
    let endpoints = port.endpoints.name.clone();
    Cluster {
        drain,
        ..mesh.workload_cluster(name, port.sni.clone(), endpoints, servers)
    }
}

fn service_listener(address: &GatewayAddress, peers: &[IngressPeer<'_>]) -> Listener {
    Listener {
        name: format!("{}_{}", address.ip, address.service_port),
        address: (address.ip, address.service_port).into(),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        chains: peers.iter().map(service_chain).collect(),
    }
}

fn service_chain(peer: &IngressPeer<'_>) -> FilterChain {
    let suffix = ExportedHost::suffix_for(peer.name);
    FilterChain {
        name: format!("exports-to-{}", peer.name),
        server_names: vec![ServerName::Suffix(suffix.clone())],
        tls: Some(DownstreamTls {
            trust: peer_trust(peer.name).to_string(),
            client_ids: vec![peer.client_id.clone()],
            alpn: Vec::new(),
        }),
        drain: peer.drain,
        network: Network::Tcp(Tcp {
            target: TcpTarget::SniCluster,
            allow: Some(vec![AllowPolicy {
                name: peer.name.to_string(),
                principals: vec![peer.client_id.clone()],
                server_name_suffix: Some(format!(".{suffix}")),
            }]),
            idle_timeout: IDLE_TIMEOUT,
        }),
    }
}

fn discovery_listener(
    mesh: &Mesh<'_>,
    address: &GatewayAddress,
    peers: &[IngressPeer<'_>],
) -> Listener {
    let client_ids: Vec<SpiffeId> = peers.iter().map(|p| p.client_id.clone()).collect();
    // Without a peer nobody is let in, rather than everybody.
    let allow = peers
        .iter()
        .map(|peer| AllowPolicy {
            name: peer.name.to_string(),
            principals: vec![peer.client_id.clone()],
            server_name_suffix: None,
        })
        .collect();
    let chain = FilterChain {
        name: "discovery".to_owned(),
        server_names: Vec::new(),
        tls: Some(DownstreamTls {
            trust: DISCOVERY_TRUST.to_owned(),
            // Left open, so that a caller with a wrong identity is told 403.
            client_ids: Vec::new(),
            alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
        }),
        drain: DEFAULT_DRAIN,
        network: Network::Http(Http {
            stat_prefix: "discovery".to_owned(),
            routes: HttpRoutes::Inline(RouteTable::new(
                "discovery",
                [VirtualHost {
                    name: "discovery".into(),
                    domains: vec!["*".to_owned()],
                    routes: peers
                        .iter()
                        .flat_map(|peer| discovery_routes(mesh, peer))
                        .collect(),
                }],
            )),
            allow: Some(allow),
            forward_client_id: true,
            append_forwarded_for: true,
            accept_connect: false,
            stream_idle_timeout: Duration::ZERO,
        }),
    };
    Listener {
        name: format!("{}_{}", address.ip, address.discovery_port),
        address: (address.ip, address.discovery_port).into(),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        chains: if client_ids.is_empty() {
            Vec::new()
        } else {
            vec![chain]
        },
    }
}

/// `/v1/services/` and `/v1/watch` lead to the caller's own list, whatever else it asks for.
fn discovery_routes(mesh: &Mesh<'_>, peer: &IngressPeer<'_>) -> [Route; 2] {
    [
        ("/v1/services/", LIST_TIMEOUT),
        ("/v1/watch", Duration::ZERO),
    ]
    .map(|(path, timeout)| Route {
        name: format!("{}{path}", peer.name),
        path: PathMatch::Exact(path.to_owned()),
        headers: vec![HeaderMatch::Suffix {
            name: CLIENT_CERTIFICATE_HEADER.to_owned(),
            value: format!(";URI={}", peer.client_id),
        }],
        action: RouteAction::Forward {
            cluster: DISCOVERY_CLUSTER.to_owned(),
            rewrite_authority: Some(control_plane_host(mesh)),
            rewrite_path: Some(format!("{}/{}", path.trim_end_matches('/'), peer.name)),
            timeout,
            remove_headers: [CLIENT_CERTIFICATE_HEADER.to_owned()].into(),
        },
    })
}

fn discovery_cluster(mesh: &Mesh<'_>) -> Cluster {
    Cluster {
        name: DISCOVERY_CLUSTER.into(),
        discovery: Discovery::Static(vec![mesh.discovery_address]),
        connect_timeout: CONNECT_TIMEOUT,
        tls: Some(UpstreamTls {
            trust: super::proxy::MESH_TRUST.into(),
            server: ServerIds::OneOf(vec![mesh.control_plane_id.clone()]),
            sni: Some(control_plane_host(mesh).into()),
            alpn: vec!["http/1.1".to_owned()],
        }),
        protocol: UpstreamProtocol::Http1,
        outlier: None,
        drain: DEFAULT_DRAIN,
    }
}

/// `<istiod account>.<system namespace>.svc.<cluster domain>`.
fn control_plane_host(mesh: &Mesh<'_>) -> String {
    format!(
        "{}.{}.svc.{}",
        mesh.control_plane_id.service_account(),
        mesh.system_namespace,
        mesh.cluster_domain
    )
}
