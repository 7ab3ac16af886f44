//! Applying changes, one piece at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::{IdentityCell, TrustError};
use meshfed_proxy_config::{
    Cluster as ClusterConfig, Discovery, Endpoints, Listener, ProxyConfig, RouteTable, TrustBundle,
    UpstreamTls,
};
use meshfed_runtime::AccessLog;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Tables;
use super::chains::{Chains, ChainsError};
use crate::cluster::{Cluster, ClusterError};
use crate::cut::Cut;
use crate::http::{RouteError, RouteIndex};
use crate::limits::ConnectionLimits;
use crate::listener::{BindError, Reserved, Shared, accept, reserve};
use crate::metrics::Metrics;
use crate::record::Reporter;
use crate::shards::Shards;
use crate::trust::Trust;

/// What an [`Engine`] needs from its surroundings.
pub struct EngineOptions {
    /// Names the proxy among those of the process, in metrics.
    pub proxy: String,
    /// Presented to clients and endpoints; read at every handshake.
    pub identity: Arc<IdentityCell>,
    pub access_log: AccessLog,
    pub metrics: Metrics,
    pub limits: ConnectionLimits,
    /// How long the connections of a removed listener may go on.
    pub drain: Duration,
}

/// One piece of configuration that is new, changed or gone.
#[derive(Debug, Clone)]
pub enum Change {
    Trust(String, Arc<TrustBundle>),
    Cluster(Arc<ClusterConfig>),
    Endpoints(Arc<Endpoints>),
    Listener(Arc<Listener>),
    Routes(Arc<RouteTable>),
    RemoveTrust(String),
    RemoveCluster(String),
    RemoveEndpoints(String),
    RemoveListener(String),
    RemoveRoutes(String),
}

/// A piece that was not applied. What was there before under its name stays.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {cause}")]
pub struct Rejection {
    pub name: String,
    #[source]
    pub cause: Box<RejectionCause>,
}

#[derive(Debug, thiserror::Error)]
pub enum RejectionCause {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Chains(#[from] ChainsError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Routes(#[from] RouteError),
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Owns the configuration: one task applies changes, connections read what is in force.
///
/// Lives inside a tokio runtime. Dropping it cuts everything; [`stop`](Self::stop) ends it in
/// order.
pub struct Engine {
    options: EngineOptions,
    tables: Arc<Tables>,
    slots: Arc<Semaphore>,
    listeners: BTreeMap<String, Running>,
    /// Addresses of listeners that were checked and are not in force yet.
    reserved: HashMap<String, Reserved>,
    endpoints: HashMap<String, Arc<Endpoints>>,
    /// Cluster names by the EDS resource, and by the trust bundle, that they use.
    by_endpoints: HashMap<String, HashSet<String>>,
    by_trust: HashMap<String, HashSet<String>>,
}

struct Running {
    /// As configured: port 0 stays 0.
    address: SocketAddr,
    bound: SocketAddr,
    shared: Arc<Shared>,
    socket: Arc<TcpListener>,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        // The task that accepts may hold the socket a moment longer; the address is free now. If
        // this fails, it is free a moment later.
        let _ = SockRef::from(&*self.socket).shutdown(Shutdown::Both);
    }
}

impl Engine {
    pub fn new(options: EngineOptions) -> Self {
        let total = options.limits.total.min(Semaphore::MAX_PERMITS);
        Self {
            tables: Arc::new(Tables {
                identity: options.identity.clone(),
                clusters: Shards::new(),
                routes: Shards::new(),
                trust: Shards::new(),
            }),
            slots: Arc::new(Semaphore::new(total)),
            listeners: BTreeMap::new(),
            reserved: HashMap::new(),
            endpoints: HashMap::new(),
            by_endpoints: HashMap::new(),
            by_trust: HashMap::new(),
            options,
        }
    }

    /// The addresses that are listened on, by listener; with the real port where 0 was asked for.
    pub fn bound(&self) -> BTreeMap<String, SocketAddr> {
        self.listeners
            .iter()
            .map(|(name, running)| (name.clone(), running.bound))
            .collect()
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.listeners
            .values()
            .map(|l| l.shared.connections.len())
            .sum()
    }

    /// Applies the difference between two whole configurations; parts behind the same [`Arc`] are
    /// not looked into.
    pub fn apply_config(&mut self, old: &ProxyConfig, new: &ProxyConfig) -> Vec<Rejection> {
        self.apply(difference(old, new))
    }

    /// Applies changes in their order. Each one is in force or rejected when this returns, without
    /// an effect on the others.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<Rejection> {
        changes
            .into_iter()
            .filter_map(|change| self.apply_one(change).err())
            .collect()
    }

    /// Says whether a change would be rejected, without putting it in force. The address of a new
    /// listener is taken, so that it is still free when the listener is applied.
    pub fn check(&mut self, change: &Change) -> Result<(), Rejection> {
        match change {
            Change::Cluster(config) => named(config.name.clone(), |_| {
                Cluster::check(config)?;
                Ok(())
            }),
            Change::Listener(config) => named(config.name.clone(), |name| {
                Chains::new(config.clone(), None)?;
                let address = config.address;
                let running = self.listeners.get(name).map(|r| r.address);
                let reserved = self.reserved.get(name).map(|r| r.address);
                if running != Some(address) && reserved != Some(address) {
                    let reserved = reserve(address)?;
                    self.reserved.insert(name.to_owned(), reserved);
                }
                Ok(())
            }),
            _ => Ok(()),
        }
    }

    /// Applies one change.
    pub fn apply_one(&mut self, change: Change) -> Result<(), Rejection> {
        match change {
            Change::Trust(name, bundle) => named(name, |name| self.set_trust(name, bundle)),
            Change::Cluster(config) => {
                named(config.name.clone(), |name| self.set_cluster(name, config))
            }
            Change::Endpoints(endpoints) => {
                self.set_endpoints(endpoints);
                Ok(())
            }
            Change::Listener(config) => {
                named(config.name.clone(), |name| self.set_listener(name, config))
            }
            Change::Routes(table) => named(table.name.clone(), |name| {
                let index = RouteIndex::new(table)?;
                self.tables.routes.insert(name, Arc::new(index));
                Ok(())
            }),
            Change::RemoveTrust(name) => {
                if self.tables.trust.remove(&name).is_some() {
                    self.trust_changed(&name);
                }
                Ok(())
            }
            Change::RemoveCluster(name) => {
                if let Some(old) = self.tables.clusters.remove(&name) {
                    self.unlink(&old.config);
                    old.remove();
                }
                Ok(())
            }
            Change::RemoveEndpoints(name) => {
                self.endpoints.remove(&name);
                self.give_endpoints(&name, &Endpoints::default());
                Ok(())
            }
            Change::RemoveListener(name) => {
                self.reserved.remove(&name);
                if let Some(running) = self.listeners.remove(&name) {
                    drain(running, self.options.drain);
                }
                Ok(())
            }
            Change::RemoveRoutes(name) => {
                self.tables.routes.remove(&name);
                Ok(())
            }
        }
    }

    fn set_trust(&mut self, name: &str, bundle: Arc<TrustBundle>) -> Result<(), RejectionCause> {
        if let Some(old) = self.tables.trust.get(name)
            && old.bundle == bundle
        {
            return Ok(());
        }
        let trust = Trust::parse(bundle)?;
        self.tables.trust.insert(name, Arc::new(trust));
        self.trust_changed(name);
        Ok(())
    }

    /// Ends what the bundle no longer vouches for, at both ends.
    fn trust_changed(&self, name: &str) {
        let trust = self.tables.trust.get(name);
        for cluster in self.by_trust.get(name).into_iter().flatten() {
            if let Some(cluster) = self.tables.clusters.get(cluster) {
                let tls = cluster.config.tls.as_ref();
                cluster.judge_users(tls, trust.as_ref().map(|t| &t.store));
            }
        }
        for running in self.listeners.values() {
            let chains = running.shared.chains.load();
            let uses = |c: &meshfed_proxy_config::FilterChain| {
                c.tls.as_ref().is_some_and(|t| t.trust == name)
            };
            if chains.listener.chains.iter().any(uses) {
                running.shared.judge_connections(&self.tables);
            }
        }
    }

    fn set_cluster(
        &mut self,
        name: &str,
        config: Arc<ClusterConfig>,
    ) -> Result<(), RejectionCause> {
        let old = self.tables.clusters.get(name);
        if old.as_ref().is_some_and(|old| old.config == config) {
            return Ok(());
        }
        let endpoints = match &config.discovery {
            Discovery::Eds(name) => self.endpoints.get(name),
            _ => None,
        };
        let cluster = Cluster::new(config, endpoints.map(|e| &**e), old.as_deref())?;
        if let Some(old) = &old {
            self.unlink(&old.config);
        }
        self.link(&cluster.config);
        self.tables.clusters.insert(name, cluster.clone());
        if let Some(old) = old
            && old.config.tls != cluster.config.tls
        {
            let trust = self.trust_of(cluster.config.tls.as_ref());
            cluster.judge_users(old.config.tls.as_ref(), trust.as_ref().map(|t| &t.store));
        }
        Ok(())
    }

    fn trust_of(&self, tls: Option<&UpstreamTls>) -> Option<Arc<Trust>> {
        self.tables.trust.get(&tls?.trust)
    }

    fn link(&mut self, cluster: &ClusterConfig) {
        let put = |map: &mut HashMap<String, HashSet<String>>, key: &str| {
            map.entry(key.to_owned())
                .or_default()
                .insert(cluster.name.clone());
        };
        if let Discovery::Eds(service) = &cluster.discovery {
            put(&mut self.by_endpoints, service);
        }
        if let Some(tls) = &cluster.tls {
            put(&mut self.by_trust, &tls.trust);
        }
    }

    fn unlink(&mut self, cluster: &ClusterConfig) {
        let take = |map: &mut HashMap<String, HashSet<String>>, key: &str| {
            if let Some(users) = map.get_mut(key) {
                users.remove(&cluster.name);
                if users.is_empty() {
                    map.remove(key);
                }
            }
        };
        if let Discovery::Eds(service) = &cluster.discovery {
            take(&mut self.by_endpoints, service);
        }
        if let Some(tls) = &cluster.tls {
            take(&mut self.by_trust, &tls.trust);
        }
    }

    fn set_endpoints(&mut self, endpoints: Arc<Endpoints>) {
        let old = self
            .endpoints
            .insert(endpoints.name.clone(), endpoints.clone());
        if old.is_none_or(|old| old != endpoints) {
            self.give_endpoints(&endpoints.name, &endpoints);
        }
    }

    fn give_endpoints(&self, service: &str, endpoints: &Endpoints) {
        for name in self.by_endpoints.get(service).into_iter().flatten() {
            if let Some(cluster) = self.tables.clusters.get(name) {
                cluster.set_endpoints(endpoints);
            }
        }
    }

    fn set_listener(&mut self, name: &str, config: Arc<Listener>) -> Result<(), RejectionCause> {
        let reserved = self.reserved.remove(name);
        if let Some(running) = self.listeners.get(name)
            && running.address == config.address
        {
            let old = running.shared.chains.load_full();
            if old.listener == config {
                return Ok(());
            }
            let chains = Chains::new(config, Some(&old))?;
            running.shared.chains.store(Arc::new(chains));
            running.shared.judge_connections(&self.tables);
            return Ok(());
        }
        // Another address: the new one must be there before the old one goes.
        let chains = Chains::new(config.clone(), None)?;
        let reserved = match reserved {
            Some(reserved) if reserved.address == config.address => reserved,
            _ => reserve(config.address)?,
        };
        let running = self.run(name, &config, chains, reserved.listen()?)?;
        if let Some(old) = self.listeners.insert(name.to_owned(), running) {
            drain(old, self.options.drain);
        }
        Ok(())
    }

    fn run(
        &self,
        name: &str,
        config: &Listener,
        chains: Chains,
        socket: TcpListener,
    ) -> Result<Running, BindError> {
        let bound = socket
            .local_addr()
            .map_err(|cause| BindError::new(config.address, cause))?;
        let reporter = Arc::new(Reporter {
            listener: name.into(),
            log: self.options.access_log.clone(),
            metrics: self.options.metrics.listener(&self.options.proxy, name),
        });
        let limit = self.options.limits.per_listener;
        let shared = Shared::new(chains, reporter, limit, self.slots.clone());
        let stop = CancellationToken::new();
        let socket = Arc::new(socket);
        tokio::spawn(accept(
            socket.clone(),
            shared.clone(),
            self.tables.clone(),
            stop.clone(),
        ));
        tracing::info!(listener = name, address = %bound, "listening");
        Ok(Running {
            address: config.address,
            bound,
            shared,
            socket,
            stop,
        })
    }

    /// Stops accepting, lets connections finish until the deadline, and cuts the rest. Returns
    /// when no connection is left.
    pub async fn stop(mut self, deadline: Duration) {
        let all: Vec<_> = std::mem::take(&mut self.listeners).into_values().collect();
        let shared: Vec<_> = all.iter().map(|r| r.shared.clone()).collect();
        drop(all);
        for listener in &shared {
            listener.connections.drain();
        }
        let empty = async {
            for listener in &shared {
                listener.connections.emptied().await;
            }
        };
        let _ = tokio::time::timeout(deadline, empty).await;
        for listener in &shared {
            listener.connections.close(Cut::Drained);
        }
        for listener in &shared {
            listener.connections.emptied().await;
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for running in self.listeners.values() {
            running.shared.connections.close(Cut::Drained);
        }
    }
}

/// Connections of a listener that is gone may end by themselves for a while.
fn drain(running: Running, deadline: Duration) {
    let shared = running.shared.clone();
    drop(running);
    shared.connections.drain();
    tokio::spawn(async move {
        let _ = tokio::time::timeout(deadline, shared.connections.emptied()).await;
        shared.connections.close(Cut::Drained);
    });
}

fn named(
    name: String,
    apply: impl FnOnce(&str) -> Result<(), RejectionCause>,
) -> Result<(), Rejection> {
    apply(&name).map_err(|cause| Rejection {
        name,
        cause: Box::new(cause),
    })
}

/// The changes from one configuration to another, in an order that never refers to what is not
/// there yet: what is needed comes first, what needs it goes first.
fn difference(old: &ProxyConfig, new: &ProxyConfig) -> Vec<Change> {
    let mut changes = Vec::new();
    let pairs =
        |name: &String, bundle: &Arc<TrustBundle>| Change::Trust(name.clone(), bundle.clone());
    changed(&old.trust, &new.trust, pairs, &mut changes);
    let own = |_: &String, c: &Arc<ClusterConfig>| Change::Cluster(c.clone());
    changed(&old.clusters, &new.clusters, own, &mut changes);
    let own = |_: &String, e: &Arc<Endpoints>| Change::Endpoints(e.clone());
    changed(&old.endpoints, &new.endpoints, own, &mut changes);
    let own = |_: &String, r: &Arc<RouteTable>| Change::Routes(r.clone());
    changed(&old.routes, &new.routes, own, &mut changes);
    // Before the new ones, which may have the same addresses.
    removed(
        &old.listeners,
        &new.listeners,
        Change::RemoveListener,
        &mut changes,
    );
    let own = |_: &String, l: &Arc<Listener>| Change::Listener(l.clone());
    changed(&old.listeners, &new.listeners, own, &mut changes);
    removed(&old.routes, &new.routes, Change::RemoveRoutes, &mut changes);
    removed(
        &old.clusters,
        &new.clusters,
        Change::RemoveCluster,
        &mut changes,
    );
    removed(
        &old.endpoints,
        &new.endpoints,
        Change::RemoveEndpoints,
        &mut changes,
    );
    removed(&old.trust, &new.trust, Change::RemoveTrust, &mut changes);
    changes
}

fn changed<T: PartialEq>(
    old: &BTreeMap<String, Arc<T>>,
    new: &BTreeMap<String, Arc<T>>,
    change: impl Fn(&String, &Arc<T>) -> Change,
    out: &mut Vec<Change>,
) {
    for (name, value) in new {
        let same = |o: &Arc<T>| Arc::ptr_eq(o, value) || o == value;
        if !old.get(name).is_some_and(same) {
            out.push(change(name, value));
        }
    }
}

fn removed<T>(
    old: &BTreeMap<String, Arc<T>>,
    new: &BTreeMap<String, Arc<T>>,
    change: impl Fn(String) -> Change,
    out: &mut Vec<Change>,
) {
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    out.extend(gone.map(|name| change(name.clone())));
}
