//! A sidecar: an explicit HTTP proxy for what its workload calls, and mutual TLS before what the
//! workload serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use meshfed_ordmap::OrdMap;
use meshfed_pki::{SpiffeId, TrustDomain};
use meshfed_proxy_config::{
    Cluster, DEFAULT_DRAIN, Discovery, Endpoints, FilterChain, Http, HttpRoutes, Listener,
    LocalityEndpoints, Network, Parts, PathMatch, ProxyConfig, Route, RouteAction, RouteTable,
    ServerIds, Tcp, TcpTarget, UpstreamProtocol, VirtualHost, host_name, outbound_cluster, sni,
};

use super::balance::{Way, add_ways};
use super::changes::{put, put_all};
use super::egress::hidden_sni;
use super::imports::{Imports, Offer, PeerImports};
use super::ingress::CLIENT_CERTIFICATE_HEADER;
use super::local::LocalService;
use super::proxy::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, Mesh};
use crate::names::{PeerName, ServiceKey};

/// Headers that would tell a peer who the caller is; they are removed towards imports.
static CALLER_HEADERS: LazyLock<Arc<[String]>> = LazyLock::new(|| {
    let headers = [
        CLIENT_CERTIFICATE_HEADER,
        "forwarded",
        "via",
        "x-envoy-attempt-count",
        "x-envoy-decorator-operation",
        "x-envoy-external-address",
        "x-envoy-peer-metadata",
        "x-envoy-peer-metadata-id",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-real-ip",
    ];
    headers.map(str::to_owned).into()
});
const ROUTES: &str = "http-proxy";
/// Envoy's default for a route.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// The workload behind a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    pub namespace: String,
    pub ip: IpAddr,
    /// Where its explicit proxy listens.
    pub outbound: Option<SocketAddr>,
    /// Where it listens itself.
    pub app: Option<SocketAddr>,
    /// The ports on which Services expect it.
    pub inbound_ports: BTreeSet<u16>,
}

/// How our workloads reach what is imported from a peer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct SidecarPeer {
    /// Our egress gateway for the peer, port 15443, and who it must prove to be.
    pub egress: Option<(SocketAddr, SpiffeId)>,
    /// How long connections may go on when an import is gone.
    pub drain: Duration,
    pub imports: PeerImports,
}

/// What all sidecars of a mesh may call: clusters and endpoints that they share, and the routes of each
/// namespace. Follows what there is at a cost that is proportional to what changed.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    pub clusters: Parts<Cluster>,
    pub endpoints: Parts<Endpoints>,
    /// By namespace, as short names depend on it.
    tables: BTreeMap<String, Arc<RouteTable>>,
    /// The hosts as they are seen from other namespaces than their own, while there are tables: nearly
    /// all that a table has, so all tables share them.
    from_elsewhere: Parts<VirtualHost>,
    destinations: BTreeMap<(Arc<str>, u16), Destination>,
    trust_domain: Option<TrustDomain>,
    services: OrdMap<ServiceKey, Arc<LocalService>>,
    peers: BTreeMap<PeerName, SidecarPeer>,
}

#[derive(Debug, Clone, PartialEq)]
struct Destination {
    key: ServiceKey,
    host: Arc<str>,
    port: u16,
    /// In the cluster's own domain, so that short names lead to it.
    local: bool,
    /// Some of its endpoints are in another mesh.
    leaves_mesh: bool,
}

/// A destination with all that carries it.
struct Joined {
    destination: Destination,
    /// What is asked for at every endpoint. Where several may carry a name, that is the name.
    sni: Arc<str>,
    localities: Vec<LocalityEndpoints>,
    ways: Vec<Way>,
    /// Who may answer: any workload of the mesh for a local service, our egress gateways for an
    /// import, and both where a service is in this mesh and in another one.
    servers: ServerIds,
    drain: Duration,
}

impl Outbound {
    /// Takes everything as it is now. `namespaces` are those that routes are made for. True if
    /// something changed.
    pub fn follow(
        &mut self,
        mesh: &Mesh<'_>,
        services: &OrdMap<ServiceKey, Arc<LocalService>>,
        peers: BTreeMap<PeerName, SidecarPeer>,
        imports: &Imports,
        namespaces: &BTreeSet<&str>,
    ) -> bool {
        if self.trust_domain.as_ref() != Some(mesh.trust_domain) {
            *self = Self {
                trust_domain: Some(mesh.trust_domain.clone()),
                ..Self::default()
            };
        }
        let touched = self.touched(services, &peers);
        self.services = services.clone();
        self.peers = peers;
        let mut changed = self.namespaces(namespaces);
        for (host, key) in touched {
            changed |= self.judge(mesh, &host, key.as_ref(), imports);
        }
        changed
    }

    /// The hosts whose carriers may be others than before; with its key, if it is one of ours.
    fn touched(
        &self,
        services: &OrdMap<ServiceKey, Arc<LocalService>>,
        peers: &BTreeMap<PeerName, SidecarPeer>,
    ) -> BTreeMap<Arc<str>, Option<ServiceKey>> {
        let mut touched = BTreeMap::new();
        for (key, old, new) in self.services.changes(services) {
            for service in [old, new].into_iter().flatten() {
                touched.insert(service.host.clone(), Some(key.clone()));
            }
        }
        let mut touch = |offer: &Offer| {
            if let Some(import) = offer.imported() {
                let key = import.as_local.then(|| import.key.clone());
                touched.insert(import.host.as_str().into(), key);
            }
        };
        let nothing = SidecarPeer::default();
        let names: BTreeSet<&PeerName> = self.peers.keys().chain(peers.keys()).collect();
        for name in names {
            let old = self.peers.get(name).unwrap_or(&nothing);
            let new = peers.get(name).unwrap_or(&nothing);
            let same_way = old.egress == new.egress
                && old.drain == new.drain
                && old.imports.locality == new.imports.locality;
            if same_way {
                for (_, old, new) in old.imports.offers.changes(&new.imports.offers) {
                    for offer in [old, new].into_iter().flatten() {
                        touch(offer);
                    }
                }
            } else {
                let all = [old, new].map(|peer| peer.imports.offers.values());
                all.into_iter().flatten().for_each(|offer| touch(offer));
            }
        }
        touched
    }

    /// Makes tables for new namespaces and forgets those of others.
    fn namespaces(&mut self, namespaces: &BTreeSet<&str>) -> bool {
        let before = self.tables.len();
        self.tables
            .retain(|namespace, _| namespaces.contains(namespace.as_str()));
        let mut changed = before != self.tables.len();
        if namespaces.is_empty() {
            self.from_elsewhere.clear();
        } else if self.tables.is_empty() {
            let hosts = self.destinations.values().map(|d| d.seen_from(None));
            self.from_elsewhere = RouteTable::new(ROUTES, hosts).hosts;
        }
        for namespace in namespaces {
            if !self.tables.contains_key(*namespace) {
                let mut hosts = self.from_elsewhere.clone();
                for own in self.destinations.values().filter(|d| d.is_in(namespace)) {
                    hosts.insert(own.name(), Arc::new(own.seen_from(Some(namespace))));
                }
                let name = ROUTES.to_owned();
                let table = RouteTable { name, hosts };
                self.tables.insert((*namespace).to_owned(), Arc::new(table));
                changed = true;
            }
        }
        changed
    }

    fn judge(
        &mut self,
        mesh: &Mesh<'_>,
        host: &Arc<str>,
        key: Option<&ServiceKey>,
        imports: &Imports,
    ) -> bool {
        let joined = self.joined(mesh, host, key, imports);
        let range = (host.clone(), 0)..=(host.clone(), u16::MAX);
        let there = self.destinations.range(range);
        let gone: Vec<u16> = there
            .map(|((_, port), _)| *port)
            .filter(|port| !joined.contains_key(port))
            .collect();
        let mut changed = !gone.is_empty();
        for port in gone {
            if let Some(old) = self.destinations.remove(&(host.clone(), port)) {
                let name = outbound_cluster(port, host);
                self.clusters.remove(&name);
                self.endpoints.remove(&name);
                let name = old.name();
                self.from_elsewhere.remove(&name);
                for table in self.tables.values_mut() {
                    Arc::make_mut(table).hosts.remove(&name);
                }
            }
        }
        for joint in joined.into_values() {
            changed |= self.put(mesh, joint);
        }
        changed
    }

    /// Everything that carries a host, by port.
    fn joined(
        &self,
        mesh: &Mesh<'_>,
        host: &Arc<str>,
        key: Option<&ServiceKey>,
        imports: &Imports,
    ) -> BTreeMap<u16, Joined> {
        let mut joined = BTreeMap::new();
        if let Some(local) = key.and_then(|key| self.services.get(key)) {
            for port in &local.ports {
                let destination = Destination {
                    key: local.key.clone(),
                    host: host.clone(),
                    port: port.number,
                    local: true,
                    leaves_mesh: false,
                };
                let joint = Joined {
                    destination,
                    sni: sni(port.number, host),
                    localities: port.endpoints.localities.clone(),
                    ways: Vec::new(),
                    servers: ServerIds::AnyOf(mesh.trust_domain.clone()),
                    drain: DEFAULT_DRAIN,
                };
                joined.insert(port.number, joint);
            }
        }
        let mut holders: Vec<_> = imports.holders(host).collect();
        // Not in their own order, which may change without a change of theirs.
        holders.sort_by_key(|(peer, _, _)| *peer);
        for (name, offer, import) in holders {
            let Some(peer) = self.peers.get(name) else {
                continue;
            };
            let Some((egress, id)) = &peer.egress else {
                continue;
            };
            for port in &import.ports {
                let joint = joined.entry(*port).or_insert_with(|| Joined {
                    destination: Destination {
                        key: import.key.clone(),
                        host: host.clone(),
                        port: *port,
                        local: import.as_local,
                        leaves_mesh: true,
                    },
                    sni: match import.as_local {
                        true => sni(*port, host),
                        false => hidden_sni(*port, &offer.remote.key, name),
                    },
                    localities: Vec::new(),
                    ways: Vec::new(),
                    servers: ServerIds::OneOf(Vec::new()),
                    drain: peer.drain,
                });
                joint.destination.leaves_mesh = true;
                joint.drain = joint.drain.max(peer.drain);
                if let ServerIds::OneOf(ids) = &mut joint.servers
                    && !ids.contains(id)
                {
                    ids.push(id.clone());
                }
                joint.ways.push(Way {
                    egress: *egress,
                    shared_by: import.as_local.then(|| name.clone()),
                    locality: peer.imports.locality.clone(),
                    health: import.health,
                });
            }
        }
        joined
    }

    fn put(&mut self, mesh: &Mesh<'_>, mut joint: Joined) -> bool {
        add_ways(&mut joint.localities, &joint.ways);
        let destination = joint.destination;
        let name = outbound_cluster(destination.port, &destination.host);
        let endpoints = Endpoints {
            name: name.clone(),
            localities: joint.localities,
        };
        let cluster = Cluster {
            drain: joint.drain,
            ..mesh.workload_cluster(name.clone(), joint.sni, name.clone(), joint.servers)
        };
        let mut changed = put(&mut self.clusters, name.clone(), cluster);
        changed |= put(&mut self.endpoints, name, endpoints);
        let at = (destination.host.clone(), destination.port);
        if self.destinations.get(&at) != Some(&destination) {
            if !self.tables.is_empty() {
                let host = Arc::new(destination.seen_from(None));
                self.from_elsewhere.insert(host.name.clone(), host.clone());
                for (namespace, table) in &mut self.tables {
                    let host = match destination.is_in(namespace) {
                        true => Arc::new(destination.seen_from(Some(namespace))),
                        false => host.clone(),
                    };
                    let hosts = &mut Arc::make_mut(table).hosts;
                    hosts.insert(host.name.clone(), host);
                }
            }
            self.destinations.insert(at, destination);
            changed = true;
        }
        changed
    }
}

/// The sidecar of one workload.
#[derive(Debug, Default)]
pub(super) struct Sidecar {
    config: Arc<ProxyConfig>,
    /// What leads to the workload itself.
    inbound: Vec<Arc<Cluster>>,
    listeners: Parts<Listener>,
}

impl Sidecar {
    pub fn config(&self) -> &Arc<ProxyConfig> {
        &self.config
    }

    /// Takes what its workload is now.
    pub fn is_for(&mut self, mesh: &Mesh<'_>, workload: &Workload) {
        let inbound: Vec<_> = workload
            .app
            .into_iter()
            .flat_map(|app| workload.inbound_ports.iter().map(move |port| (app, *port)))
            .map(|(app, port)| inbound(mesh, workload.ip, port, app))
            .collect();
        let outbound = workload.outbound.map(outbound_listener);
        let listeners = inbound.iter().map(|(listener, _)| listener.clone());
        put_all(
            &mut self.listeners,
            listeners
                .chain(outbound)
                .map(|l| (l.name.as_str().into(), l)),
        );
        self.inbound = inbound.into_iter().map(|(_, c)| Arc::new(c)).collect();
    }

    /// Takes what it may call.
    pub fn follow(&mut self, mesh: &Mesh<'_>, workload: &Workload, outbound: &Outbound) {
        let mut config = ProxyConfig {
            listeners: self.listeners.clone(),
            clusters: outbound.clusters.clone(),
            endpoints: outbound.endpoints.clone(),
            ..ProxyConfig::clone(&self.config)
        };
        for cluster in &self.inbound {
            config
                .clusters
                .insert(cluster.name.clone(), cluster.clone());
        }
        let table = workload
            .outbound
            .and(outbound.tables.get(&workload.namespace));
        config.routes = table
            .map(|table| (Arc::from(ROUTES), table.clone()))
            .into_iter()
            .collect();
        put_all(&mut config.trust, [mesh.trust()]);
        self.config = Arc::new(config);
    }
}

fn outbound_listener(address: SocketAddr) -> Listener {
    Listener {
        name: "outbound".to_owned(),
        address,
        handshake_timeout: HANDSHAKE_TIMEOUT,
        chains: vec![FilterChain {
            name: "outbound".to_owned(),
            server_names: Vec::new(),
            tls: None,
            drain: DEFAULT_DRAIN,
            network: Network::Http(Http {
                stat_prefix: "outbound".to_owned(),
                routes: HttpRoutes::Rds(ROUTES.to_owned()),
                allow: None,
                forward_client_id: false,
                append_forwarded_for: false,
                accept_connect: true,
                stream_idle_timeout: STREAM_IDLE_TIMEOUT,
            }),
        }],
    }
}

impl Destination {
    /// The name of its virtual host.
    fn name(&self) -> Arc<str> {
        host_name(ROUTES, &format!("{}:{}", self.host, self.port))
    }

    /// Whether the bare name of the service leads to it from this namespace.
    fn is_in(&self, namespace: &str) -> bool {
        self.local && self.key.namespace.as_str() == namespace
    }

    /// From one of our namespaces, or from any other than its own. No two destinations have a name in common: full names have a port each, short names are
    /// those of one service, and an import's name has three labels at least, of which the third is
    /// not `svc`.
    fn seen_from(&self, namespace: Option<&str>) -> VirtualHost {
        VirtualHost {
            name: self.name(),
            domains: names(self, namespace)
                .into_iter()
                .flat_map(|name| authorities(&name, self.port))
                .collect(),
            routes: routes(self),
        }
    }
}

/// The full name, and the short ones that a resolver of the cluster would complete to it.
fn names(destination: &Destination, namespace: Option<&str>) -> Vec<String> {
    let mut all = vec![destination.host.to_string()];
    if destination.local {
        let ServiceKey {
            namespace: its,
            name,
        } = &destination.key;
        all.push(format!("{name}.{its}.svc"));
        all.push(format!("{name}.{its}"));
        if namespace.is_some_and(|from| destination.is_in(from)) {
            all.push(name.to_string());
        }
    }
    all
}

/// An authority names its port, unless it is HTTP's own.
fn authorities(name: &str, port: u16) -> Vec<String> {
    let mut all = vec![format!("{name}:{port}")];
    if port == 80 {
        all.push(name.to_owned());
    }
    all
}

fn routes(destination: &Destination) -> Vec<Route> {
    let forward = |timeout, remove_headers| RouteAction::Forward {
        cluster: outbound_cluster(destination.port, &destination.host).to_string(),
        rewrite_authority: None,
        rewrite_path: None,
        timeout,
        remove_headers,
    };
    let caller_headers = if destination.leaves_mesh {
        CALLER_HEADERS.clone()
    } else {
        Arc::default()
    };
    vec![
        Route {
            name: "connect".to_owned(),
            path: PathMatch::Connect,
            headers: Vec::new(),
            // Ends here; its headers go no further, and a table is long enough.
            action: forward(Duration::ZERO, Arc::default()),
        },
        Route {
            name: "default".to_owned(),
            path: PathMatch::Prefix("/".to_owned()),
            headers: Vec::new(),
            action: forward(REQUEST_TIMEOUT, caller_headers),
        },
    ]
}

/// The listener that others reach the workload by, and the cluster of the workload itself.
fn inbound(mesh: &Mesh<'_>, ip: IpAddr, port: u16, app: SocketAddr) -> (Listener, Cluster) {
    let cluster = Cluster {
        name: format!("inbound|{port}").into(),
        discovery: Discovery::Static(vec![app]),
        connect_timeout: CONNECT_TIMEOUT,
        tls: None,
        protocol: UpstreamProtocol::Http1,
        outlier: None,
        drain: DEFAULT_DRAIN,
    };
    let listener = Listener {
        name: format!("inbound_{port}"),
        address: (ip, port).into(),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        chains: vec![FilterChain {
            name: "inbound".to_owned(),
            server_names: Vec::new(),
            tls: Some(mesh.downstream_tls(Vec::new(), Vec::new())),
            drain: DEFAULT_DRAIN,
            network: Network::Tcp(Tcp {
                target: TcpTarget::Cluster(cluster.name.to_string()),
                allow: None,
                idle_timeout: IDLE_TIMEOUT,
            }),
        }],
    };
    (listener, cluster)
}
