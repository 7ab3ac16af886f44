//! A sidecar: an explicit HTTP proxy for what its workload calls, and mutual TLS before what the
//! workload serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::SpiffeId;
use meshfed_proxy_config::{
    Cluster, DEFAULT_DRAIN, Discovery, Endpoints, FilterChain, Http, HttpRoutes, Listener,
    Locality, LocalityEndpoints, Network, Parts, PathMatch, ProxyConfig, Route, RouteAction,
    RouteTable, ServerIds, Tcp, TcpTarget, UpstreamProtocol, VirtualHost, outbound_cluster,
};

use super::balance::{Way, add_ways};
use super::ingress::CLIENT_CERTIFICATE_HEADER;
use super::local::LocalService;
use super::proxy::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, Mesh};
use crate::discovery::extension::Health;
use crate::names::{ImportedHost, ServiceKey};

/// Headers that would tell a peer who the caller is; they are removed towards imports.
const CALLER_HEADERS: [&str; 11] = [
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

/// An imported service, as our workloads call it.
#[derive(Debug, Clone, PartialEq)]
pub struct SidecarImport {
    pub imported: ImportedHost,
    /// Name and namespace here.
    pub key: ServiceKey,
    /// It joins the local service of the same name.
    pub as_local: bool,
    pub ports: Vec<u16>,
    /// Our egress gateway for the peer, port 15443.
    pub egress: SocketAddr,
    /// Who our egress gateway must prove to be.
    pub egress_id: SpiffeId,
    /// How long connections may go on when the import is gone.
    pub drain: Duration,
    pub locality: Locality,
    /// How it fares there, if the peer tells.
    pub health: Option<Health>,
}

/// What all sidecars of a mesh may call: clusters and endpoints that they share.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outbound {
    clusters: Parts<Cluster>,
    endpoints: Parts<Endpoints>,
    destinations: Vec<Destination>,
}

#[derive(Debug, Clone, PartialEq)]
struct Destination {
    key: ServiceKey,
    host: String,
    port: u16,
    /// In the cluster's own domain, so that short names lead to it.
    local: bool,
    /// Some of its endpoints are in another mesh.
    leaves_mesh: bool,
}

/// A destination with all that carries it.
struct Joined {
    destination: Destination,
    localities: Vec<LocalityEndpoints>,
    ways: Vec<Way>,
    /// Who may answer: any workload of the mesh for a local service, our egress gateways for an
    /// import, and both where a service is in this mesh and in another one.
    servers: ServerIds,
    drain: Duration,
}

impl Joined {
    fn add(&mut self, import: &SidecarImport) {
        self.destination.leaves_mesh = true;
        self.drain = self.drain.max(import.drain);
        if let ServerIds::OneOf(ids) = &mut self.servers
            && !ids.contains(&import.egress_id)
        {
            ids.push(import.egress_id.clone());
        }
        self.ways.push(Way {
            egress: import.egress,
            locality: import.locality.clone(),
            health: import.health,
        });
    }
}

/// Joins local services and imports.
pub fn outbound(
    mesh: &Mesh<'_>,
    services: &BTreeMap<ServiceKey, Arc<LocalService>>,
    imports: &[SidecarImport],
) -> Outbound {
    let mut joined: BTreeMap<(String, u16), Joined> = BTreeMap::new();
    for service in services.values() {
        for port in &service.ports {
            let destination = Destination {
                key: service.key.clone(),
                host: service.host.clone(),
                port: port.number,
                local: true,
                leaves_mesh: false,
            };
            let joint = Joined {
                destination,
                localities: port.endpoints.localities.clone(),
                ways: Vec::new(),
                servers: ServerIds::AnyOf(mesh.trust_domain.clone()),
                drain: DEFAULT_DRAIN,
            };
            joined.insert((service.host.clone(), port.number), joint);
        }
    }
    for import in imports {
        for port in &import.ports {
            let host = import.imported.to_string();
            let joint = joined
                .entry((host.clone(), *port))
                .or_insert_with(|| Joined {
                    destination: Destination {
                        key: import.key.clone(),
                        host,
                        port: *port,
                        local: import.as_local,
                        leaves_mesh: true,
                    },
                    localities: Vec::new(),
                    ways: Vec::new(),
                    servers: ServerIds::OneOf(Vec::new()),
                    drain: import.drain,
                });
            joint.add(import);
        }
    }
    let mut outbound = Outbound::default();
    for mut joint in joined.into_values() {
        add_ways(&mut joint.localities, &joint.ways);
        let destination = joint.destination;
        let name = outbound_cluster(destination.port, &destination.host);
        let endpoints = Arc::new(Endpoints {
            name: name.clone(),
            localities: joint.localities,
        });
        let cluster = Cluster {
            drain: joint.drain,
            ..mesh.workload_cluster(
                name.clone(),
                &destination.host,
                destination.port,
                &endpoints,
                joint.servers,
            )
        };
        outbound.clusters.insert(name.clone(), Arc::new(cluster));
        outbound.endpoints.insert(name, endpoints);
        outbound.destinations.push(destination);
    }
    outbound
}

/// The configuration of one sidecar.
pub fn config(mesh: &Mesh<'_>, workload: &Workload, outbound: &Outbound) -> ProxyConfig {
    let mut config = ProxyConfig {
        clusters: outbound.clusters.clone(),
        endpoints: outbound.endpoints.clone(),
        ..ProxyConfig::default()
    };
    config.trust.extend([mesh.trust()]);
    if let Some(address) = workload.outbound {
        let listener = outbound_listener(address);
        config
            .listeners
            .insert(listener.name.as_str().into(), Arc::new(listener));
        config.routes.insert(
            ROUTES.into(),
            Arc::new(outbound_routes(&workload.namespace, outbound)),
        );
    }
    if let Some(app) = workload.app {
        for port in &workload.inbound_ports {
            let (listener, cluster) = inbound(mesh, workload.ip, *port, app);
            config
                .listeners
                .insert(listener.name.as_str().into(), Arc::new(listener));
            config
                .clusters
                .insert(cluster.name.clone(), Arc::new(cluster));
        }
    }
    config
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

/// Every name of every destination, seen from one namespace. A name that two destinations would
/// have goes to the first: local services before imports.
fn outbound_routes(namespace: &str, outbound: &Outbound) -> RouteTable {
    let mut taken = BTreeSet::new();
    let (local, others): (Vec<_>, Vec<_>) = outbound.destinations.iter().partition(|d| d.local);
    let hosts = local.into_iter().chain(others).filter_map(|destination| {
        let domains: Vec<String> = names(destination, namespace)
            .into_iter()
            .flat_map(|name| authorities(&name, destination.port))
            .filter(|authority| taken.insert(authority.clone()))
            .collect();
        (!domains.is_empty()).then(|| VirtualHost {
            name: format!("{}:{}", destination.host, destination.port).into(),
            domains,
            routes: routes(destination),
        })
    });
    RouteTable::new(ROUTES, hosts)
}

/// The full name, and the short ones that a resolver of the cluster would complete to it.
fn names(destination: &Destination, namespace: &str) -> Vec<String> {
    let mut all = vec![destination.host.clone()];
    if destination.local {
        let ServiceKey {
            namespace: its,
            name,
        } = &destination.key;
        all.push(format!("{name}.{its}.svc"));
        all.push(format!("{name}.{its}"));
        if its.as_str() == namespace {
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
    let forward = |timeout| RouteAction::Forward {
        cluster: outbound_cluster(destination.port, &destination.host).to_string(),
        rewrite_authority: None,
        rewrite_path: None,
        timeout,
        remove_headers: if destination.leaves_mesh {
            CALLER_HEADERS.map(str::to_owned).to_vec()
        } else {
            Vec::new()
        },
    };
    vec![
        Route {
            name: "connect".to_owned(),
            path: PathMatch::Connect,
            headers: Vec::new(),
            action: forward(Duration::ZERO),
        },
        Route {
            name: "default".to_owned(),
            path: PathMatch::Prefix("/".to_owned()),
            headers: Vec::new(),
            action: forward(REQUEST_TIMEOUT),
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
