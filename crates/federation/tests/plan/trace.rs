//! Follows a connection through the configurations of all proxies: who answers at an address, who
//! may finish the handshake there, and which cluster the SNI leads to.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use meshfed_federation::plan::{Plan, ProxyKey};
use meshfed_federation::world::ObjectKey;
use meshfed_pki::SpiffeId;
use meshfed_proxy_config::{
    AllowPolicy, Cluster, Discovery, FilterChain, HeaderMatch, Http, HttpRoutes, Listener, Network,
    PathMatch, ProxyConfig, Route, RouteAction, ServerIds, ServerName, TcpTarget, UpstreamTls,
};

use crate::lab::Lab;
use crate::meshes::Meshes;

/// Why a connection gets no further.
pub type Stop = String;

/// Addresses of workloads, each with the number of its mesh.
pub type Reached = BTreeSet<(usize, SocketAddr)>;

/// All meshes as they are planned.
pub struct Net<'a> {
    meshes: Vec<(&'a Lab, &'a Plan)>,
}

/// A proxy: somebody who makes and accepts connections.
#[derive(Clone)]
pub struct Proxy<'a> {
    pub mesh: usize,
    pub id: SpiffeId,
    pub config: &'a ProxyConfig,
}

impl<'a> Net<'a> {
    pub fn of(meshes: &'a Meshes) -> Self {
        Self {
            meshes: meshes.labs.iter().zip(&meshes.plans).collect(),
        }
    }

    pub fn sidecar(&self, mesh: usize, namespace: &str, pod: &str) -> Proxy<'a> {
        self.proxy(mesh, &ProxyKey::Sidecar(ObjectKey::new(namespace, pod)))
    }

    fn proxy(&self, mesh: usize, key: &ProxyKey) -> Proxy<'a> {
        let (lab, plan) = self.meshes[mesh];
        let (namespace, account) = match key {
            ProxyKey::Gateway(name) => (lab.system(), plan.gateways[name].service_account.clone()),
            ProxyKey::Sidecar(pod) => (pod.namespace.clone(), "default".to_owned()),
        };
        let id = format!("{}/ns/{namespace}/sa/{account}", plan.trust_domain);
        Proxy {
            mesh,
            id: id.parse().unwrap(),
            config: &plan.proxies[key],
        }
    }

    /// Every proxy of every mesh.
    pub fn proxies(&self) -> Vec<(ProxyKey, Proxy<'a>)> {
        let each = self.meshes.iter().enumerate();
        each.flat_map(|(mesh, (_, plan))| plan.proxies.keys().map(move |key| (mesh, key)))
            .map(|(mesh, key)| (key.clone(), self.proxy(mesh, key)))
            .collect()
    }

    /// Where a request of this workload ends up.
    pub fn request(&self, from: &Proxy<'a>, authority: &str) -> Result<Reached, Stop> {
        let hosts = &from.config.routes["http-proxy"].hosts;
        let host = hosts
            .values()
            .find(|host| host.domains.iter().any(|domain| domain == authority))
            .ok_or_else(|| format!("nobody is called {authority}"))?;
        let mut ends = BTreeSet::new();
        for route in &host.routes {
            let RouteAction::Forward { cluster, .. } = &route.action else {
                return Err(format!("{authority} is answered on the spot"));
            };
            ends.insert(self.cluster(from, cluster)?);
        }
        assert_eq!(ends.len(), 1, "requests and tunnels to {authority} part");
        Ok(ends.pop_first().unwrap())
    }

    /// Every authority that a workload's requests may name.
    pub fn authorities(&self, from: &Proxy<'a>) -> BTreeSet<String> {
        let hosts = &from.config.routes["http-proxy"].hosts;
        hosts.values().flat_map(|h| h.domains.clone()).collect()
    }

    /// Where connections to a cluster end up; one that is stopped stops all.
    fn cluster(&self, from: &Proxy<'a>, name: &str) -> Result<Reached, Stop> {
        let cluster = from.config.clusters.get(name);
        let cluster = cluster.ok_or_else(|| format!("{} has no cluster {name}", from.id))?;
        let mut reached = Reached::new();
        for (address, with_tls) in endpoints(from, cluster)? {
            let tls = cluster.tls.as_ref().filter(|_| with_tls);
            reached.extend(self.connect(from, address, tls)?);
        }
        Ok(reached)
    }

    /// What a connection with this TLS reaches at an address.
    pub fn connect(
        &self,
        from: &Proxy<'a>,
        address: SocketAddr,
        tls: Option<&UpstreamTls>,
    ) -> Result<Reached, Stop> {
        let Some((to, listener)) = self.listener(address) else {
            if tls.is_some() {
                return Err(format!("nobody speaks TLS at {address}"));
            }
            return Ok(BTreeSet::from([(self.mesh_of(address), address)]));
        };
        let tls = tls.ok_or_else(|| format!("{} wants TLS at {address}", to.id))?;
        let chain = self.handshake(from, &to, listener, tls)?;
        let Network::Tcp(tcp) = &chain.network else {
            return Err(format!("{} speaks HTTP at {address}", to.id));
        };
        allowed(tcp.allow.as_deref(), &from.id, tls.sni.as_deref())?;
        match &tcp.target {
            TcpTarget::SniCluster => self.cluster(&to, tls.sni.as_deref().unwrap_or_default()),
            TcpTarget::Weighted(all) => {
                let each = all.iter().map(|(name, _)| self.cluster(&to, name));
                let each: Result<Vec<Reached>, Stop> = each.collect();
                Ok(each?.into_iter().flatten().collect())
            }
            TcpTarget::Cluster(name) => {
                assert!(name.starts_with("inbound|"), "{name}");
                Ok(BTreeSet::from([(to.mesh, address)]))
            }
        }
    }

    fn listener(&self, address: SocketAddr) -> Option<(Proxy<'a>, &'a Listener)> {
        self.meshes
            .iter()
            .enumerate()
            .find_map(|(mesh, (_, plan))| {
                plan.proxies.iter().find_map(|(key, config)| {
                    let mut all = config.listeners.values();
                    let listener = all.find(|listener| listener.address == address)?;
                    Some((self.proxy(mesh, key), &**listener))
                })
            })
    }

    fn mesh_of(&self, address: SocketAddr) -> usize {
        let same = |(lab, _): &(&Lab, &Plan)| {
            let here = lab.world.mesh.node_address.to_string();
            address.ip().to_string().rsplit_once('.').unwrap().0 == here.rsplit_once('.').unwrap().0
        };
        self.meshes.iter().position(same).unwrap()
    }

    /// Both ends look at each other's certificate.
    fn handshake(
        &self,
        from: &Proxy<'a>,
        to: &Proxy<'a>,
        listener: &'a Listener,
        tls: &UpstreamTls,
    ) -> Result<&'a FilterChain, Stop> {
        self.vouches(from, &tls.trust, to)?;
        accepts(&tls.server, &to.id)?;
        let chain = chain(listener, tls.sni.as_deref())?;
        let server = chain.tls.as_ref().ok_or("plain text")?;
        self.vouches(to, &server.trust, from)?;
        let ids = &server.client_ids;
        if ids.is_empty() || ids.contains(&from.id) {
            Ok(chain)
        } else {
            Err(format!("{} does not let {} in", to.id, from.id))
        }
    }

    /// Whether a bundle of `judge` vouches for `other`: it holds the roots of that one's mesh.
    fn vouches(&self, judge: &Proxy<'a>, bundle: &str, other: &Proxy<'a>) -> Result<(), Stop> {
        let roots = judge.config.trust[bundle]
            .domains
            .get(other.id.trust_domain());
        let real = &self.meshes[other.mesh].0.world.observed.own_roots;
        match roots {
            Some(roots) if roots == real => Ok(()),
            _ => Err(format!("{} does not trust {}", judge.id, other.id)),
        }
    }

    /// Whose server answers this mesh's discovery of a peer: the other mesh, and what it calls us.
    pub fn discovery(&self, mesh: usize, peer: &str) -> Result<(usize, String), Stop> {
        let (lab, plan) = self.meshes[mesh];
        let target = &plan.discovery[peer];
        let (egress, listener) = self.listener(target.address).ok_or("no egress gateway")?;
        accepts(
            &ServerIds::OneOf(vec![target.server_id.clone()]),
            &egress.id,
        )?;
        let control_plane = Proxy {
            mesh,
            id: plan.control_plane_id.clone(),
            config: egress.config,
        };
        let chain = chain(listener, None)?;
        let server = chain.tls.as_ref().ok_or("plain text")?;
        self.vouches(&egress, &server.trust, &control_plane)?;
        let way = route(chain, &control_plane.id, "/v1/services/", &target.headers)?;
        let cluster = &egress.config.clusters[way.cluster];
        let tls = cluster.tls.as_ref().ok_or("plain text")?;
        let (address, _) = endpoints(&egress, cluster)?[0];
        let (ingress, listener) = self.listener(address).ok_or("no ingress gateway")?;
        let chain = self.handshake(&egress, &ingress, listener, tls)?;
        let client = format!("By=x;Hash=x;URI={}", egress.id);
        let headers = [("x-forwarded-client-cert".to_owned(), client)];
        let way = route(chain, &egress.id, "/v1/services/", &headers)?;
        let (there, other) = self.meshes[ingress.mesh];
        let cluster = &ingress.config.clusters[way.cluster];
        assert_eq!(
            cluster.discovery,
            Discovery::Static(vec![there.world.mesh.discovery_address])
        );
        let name = way.path.and_then(|path| path.strip_prefix("/v1/services/"));
        let name = name.ok_or("no list of ours")?;
        assert_eq!(
            other.discovery_clients[name],
            ingress.id,
            "{}",
            lab.system()
        );
        Ok((ingress.mesh, name.to_owned()))
    }
}

struct Way<'a> {
    cluster: &'a str,
    path: Option<&'a str>,
}

/// The route of an HTTP listener that a request takes.
fn route<'a>(
    chain: &'a FilterChain,
    client: &SpiffeId,
    path: &str,
    headers: &[(String, String)],
) -> Result<Way<'a>, Stop> {
    let Network::Http(http) = &chain.network else {
        return Err("not HTTP".to_owned());
    };
    allowed(http.allow.as_deref(), client, None)?;
    let holds = |wanted: &HeaderMatch| {
        headers.iter().any(|(name, value)| match wanted {
            HeaderMatch::Exact { name: n, value: v } => n == name && v == value,
            HeaderMatch::Suffix { name: n, value: v } => n == name && value.ends_with(v),
        })
    };
    let matches = |route: &&Route| {
        route.path == PathMatch::Exact(path.to_owned()) && route.headers.iter().all(holds)
    };
    match routes(http).find(matches).map(|route| &route.action) {
        Some(RouteAction::Forward {
            cluster,
            rewrite_path,
            ..
        }) => Ok(Way {
            cluster,
            path: rewrite_path.as_deref(),
        }),
        _ => Err("404 Not Found".to_owned()),
    }
}

fn routes(http: &Http) -> impl Iterator<Item = &Route> {
    let HttpRoutes::Inline(table) = &http.routes else {
        panic!("the routes of a gateway come with it");
    };
    table.hosts.values().flat_map(|host| &host.routes)
}

/// The filter chain for an SNI: exact before suffix, longer before shorter, any last.
fn chain<'a>(listener: &'a Listener, sni: Option<&str>) -> Result<&'a FilterChain, Stop> {
    let sni = sni.unwrap_or_default();
    let rank = |chain: &FilterChain| {
        if chain.server_names.is_empty() {
            return Some(0);
        }
        let names = chain.server_names.iter();
        names
            .filter_map(|name| match name {
                ServerName::Exact(name) => (name == sni).then_some(usize::MAX),
                ServerName::Suffix(suffix) => {
                    sni.ends_with(&format!(".{suffix}")).then_some(suffix.len())
                }
            })
            .max()
    };
    let ranked = listener.chains.iter();
    let ranked = ranked.filter_map(|chain| Some((rank(chain)?, chain)));
    let best = ranked.max_by_key(|(rank, _)| *rank);
    best.map(|(_, chain)| chain)
        .ok_or_else(|| format!("nobody answers for {sni:?} at {}", listener.name))
}

fn accepts(wanted: &ServerIds, id: &SpiffeId) -> Result<(), Stop> {
    let good = match wanted {
        ServerIds::OneOf(ids) => ids.contains(id),
        ServerIds::AnyOf(domain) => id.trust_domain() == domain,
    };
    if good {
        Ok(())
    } else {
        Err(format!("{id} is not who was expected"))
    }
}

fn allowed(
    policies: Option<&[AllowPolicy]>,
    client: &SpiffeId,
    sni: Option<&str>,
) -> Result<(), Stop> {
    let Some(policies) = policies else {
        return Ok(());
    };
    let lets_in = |policy: &AllowPolicy| {
        let suffix = policy.server_name_suffix.as_deref();
        (policy.principals.is_empty() || policy.principals.contains(client))
            && suffix.is_none_or(|suffix| sni.is_some_and(|sni| sni.ends_with(suffix)))
    };
    if policies.iter().any(lets_in) {
        Ok(())
    } else {
        Err(format!("no policy lets {client} in for {sni:?}"))
    }
}

/// Addresses of a cluster, and whether they are reached by TLS.
fn endpoints(proxy: &Proxy<'_>, cluster: &Cluster) -> Result<Vec<(SocketAddr, bool)>, Stop> {
    match &cluster.discovery {
        Discovery::Static(addresses) => Ok(addresses.iter().map(|a| (*a, true)).collect()),
        Discovery::Eds(name) => {
            let found = proxy.config.endpoints.get(name);
            let found = found.ok_or_else(|| format!("no endpoints {name}"))?;
            let all = found.localities.iter().flat_map(|l| &l.endpoints);
            Ok(all.map(|e| (e.address, e.mesh_tls)).collect())
        }
        Discovery::Dns(_) => Err("the bench has no DNS".to_owned()),
    }
}
