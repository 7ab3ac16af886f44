//! Applying changes, one piece at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::IdentityCell;
use meshfed_proxy_config::{
    Cluster as ClusterConfig, Discovery, Endpoints, Listener, ProxyConfig, TrustBundle, UpstreamTls,
};
use meshfed_runtime::AccessLog;
use tokio::sync::Semaphore;

use super::Tables;
use super::chains::{Chain, Chains};
use super::change::{Change, Rejection, RejectionCause, difference};
use super::hosts::SeparateHosts;
use super::leaving::Leaving;
use super::running::Running;
use crate::cluster::Cluster;
use crate::cut::Cut;
use crate::dns::Dns;
use crate::http::RouteIndex;
use crate::limits::ConnectionLimits;
use crate::listener::{Reserved, Shared, reserve};
use crate::metrics::Metrics;
use crate::record::Reporter;
use crate::shards::Shards;
use crate::trust::{Judge, Trust};

/// What an [`Engine`] needs from its surroundings.
pub struct EngineOptions {
    /// Names the proxy among those of the process, in metrics.
    pub proxy: String,
    /// Presented to clients and endpoints; read at every handshake.
    pub identity: Arc<IdentityCell>,
    pub access_log: AccessLog,
    pub metrics: Metrics,
    pub limits: ConnectionLimits,
    /// Name servers to ask; none: those of the system.
    pub name_servers: Vec<SocketAddr>,
}

/// Owns the configuration: one task applies changes, connections read what is in force.
///
/// Lives inside a tokio runtime. Dropping it cuts everything; [`stop`](Self::stop) ends it in
/// order.
pub struct Engine {
    options: EngineOptions,
    tables: Arc<Tables>,
    dns: Dns,
    slots: Arc<Semaphore>,
    listeners: BTreeMap<String, Running>,
    /// Addresses of listeners that were checked and are not in force yet.
    reserved: HashMap<String, Reserved>,
    endpoints: HashMap<Arc<str>, Arc<Endpoints>>,
    /// Cluster names by the EDS resource, and by the trust bundle, that they use.
    by_endpoints: Users,
    by_trust: Users,
    leaving: Leaving,
    hosts: SeparateHosts,
}

/// Clusters by the name of what they use; the texts are those of the clusters.
type Users = HashMap<Arc<str>, HashSet<Arc<str>>>;

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
            dns: Dns::new(options.name_servers.clone()),
            slots: Arc::new(Semaphore::new(total)),
            listeners: BTreeMap::new(),
            reserved: HashMap::new(),
            endpoints: HashMap::new(),
            by_endpoints: HashMap::new(),
            by_trust: HashMap::new(),
            leaving: Leaving::default(),
            hosts: SeparateHosts::default(),
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
            Change::Cluster(config) => named(config.name.to_string(), |_| {
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
            Change::Cluster(config) => named(config.name.to_string(), |name| {
                self.set_cluster(name, config)
            }),
            Change::Endpoints(endpoints) => {
                self.set_endpoints(endpoints);
                Ok(())
            }
            Change::Listener(config) => {
                named(config.name.clone(), |name| self.set_listener(name, config))
            }
            Change::Routes(table) => named(table.name.clone(), |name| {
                let index = RouteIndex::new(table)?;
                self.hosts.release(name);
                self.tables.routes.insert(&name.into(), Arc::new(index));
                Ok(())
            }),
            Change::SeparateRoutes(name) => {
                let index = self.hosts.table(&name);
                self.tables.routes.insert(&name.into(), index);
                Ok(())
            }
            Change::VirtualHost(host) => named(host.name.to_string(), |_| {
                self.hosts.insert(host)?;
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
                    self.leaving.cluster(&old);
                }
                Ok(())
            }
            Change::RemoveEndpoints(name) => {
                self.endpoints.remove(name.as_str());
                self.give_endpoints(&name, &Endpoints::default());
                Ok(())
            }
            Change::RemoveListener(name) => {
                self.reserved.remove(&name);
                if let Some(running) = self.listeners.remove(&name) {
                    self.leave(running);
                }
                Ok(())
            }
            Change::RemoveVirtualHost(name) => {
                self.hosts.remove(&name);
                Ok(())
            }
            Change::RemoveRoutes(name) => {
                self.hosts.release(&name);
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
        self.tables.trust.insert(&name.into(), Arc::new(trust));
        self.trust_changed(name);
        Ok(())
    }

    /// Whether connections whose way is gone still go on by this trust bundle.
    pub fn uses_trust(&self, name: &str) -> bool {
        self.leaving.use_trust(name)
    }

    /// Ends what the bundle no longer vouches for, at both ends.
    fn trust_changed(&mut self, name: &str) {
        let trust = self.tables.trust.get(name);
        let store = trust.as_ref().map(|t| &t.store);
        let mut judge = Judge::default();
        for cluster in self.by_trust.get(name).into_iter().flatten() {
            if let Some(cluster) = self.tables.clusters.get(cluster) {
                cluster.judge_users(&cluster.config, store, &mut judge);
            }
        }
        for running in self.listeners.values() {
            let chains = running.shared.chains.load();
            let uses = |c: &&Arc<Chain>| c.config.tls.as_ref().is_some_and(|t| t.trust == name);
            let using = chains.all().iter().filter(uses);
            running
                .shared
                .judge_members(using, &self.tables, &mut judge);
        }
        self.leaving.judge(name, store, &mut judge);
    }

    /// Stops listening; what is open may go on for a while.
    fn leave(&mut self, running: Running) {
        let chains = running.shared.chains.load_full();
        running.drain();
        for chain in chains.all() {
            self.leaving.chain(chain);
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
            Discovery::Eds(name) => self.endpoints.get(&**name),
            _ => None,
        };
        let cluster = Cluster::new(config, endpoints.map(|e| &**e), &self.dns, old.as_deref())?;
        if let Some(old) = &old {
            self.unlink(&old.config);
        }
        self.link(&cluster.config);
        self.tables.clusters.insert(&cluster.name, cluster.clone());
        if let Some(old) = old
            && old.config.tls != cluster.config.tls
        {
            let trust = self.trust_of(cluster.config.tls.as_ref());
            let store = trust.as_ref().map(|t| &t.store);
            cluster.judge_users(&old.config, store, &mut Judge::default());
        }
        Ok(())
    }

    fn trust_of(&self, tls: Option<&UpstreamTls>) -> Option<Arc<Trust>> {
        self.tables.trust.get(&tls?.trust)
    }

    fn link(&mut self, cluster: &ClusterConfig) {
        let put = |map: &mut Users, key: &Arc<str>| {
            let users = map.entry(key.clone()).or_default();
            users.insert(cluster.name.clone());
        };
        if let Discovery::Eds(service) = &cluster.discovery {
            put(&mut self.by_endpoints, service);
        }
        if let Some(tls) = &cluster.tls {
            put(&mut self.by_trust, &tls.trust);
        }
    }

    fn unlink(&mut self, cluster: &ClusterConfig) {
        let take = |map: &mut Users, key: &str| {
            if let Some(users) = map.get_mut(key) {
                users.remove(&*cluster.name);
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
            let chains = Arc::new(Chains::new(config, Some(&old))?);
            running.shared.chains.store(chains.clone());
            let touched = old.touched_by(&chains);
            let judge = &mut Judge::default();
            running.shared.judge_members(touched, &self.tables, judge);
            for chain in old.all() {
                if chains.by_name(&chain.name).is_none() {
                    self.leaving.chain(chain);
                }
            }
            return Ok(());
        }
        // Another address: the new one must be there before the old one goes.
        let chains = Chains::new(config.clone(), None)?;
        let reserved = match reserved {
            Some(reserved) if reserved.address == config.address => reserved,
            _ => reserve(config.address)?,
        };
        let reporter = Arc::new(Reporter {
            listener: name.into(),
            log: self.options.access_log.clone(),
            metrics: self.options.metrics.listener(&self.options.proxy, name),
        });
        let limit = self.options.limits.per_listener;
        let shared = Shared::new(chains, reporter, limit, self.slots.clone());
        let socket = reserved.listen()?;
        let running = Running::start(config.address, socket, shared, self.tables.clone())?;
        if let Some(old) = self.listeners.insert(name.to_owned(), running) {
            self.leave(old);
        }
        Ok(())
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

fn named(
    name: String,
    apply: impl FnOnce(&str) -> Result<(), RejectionCause>,
) -> Result<(), Rejection> {
    apply(&name).map_err(|cause| Rejection {
        name,
        cause: Box::new(cause),
    })
}

#[cfg(test)]
mod tests {
    use meshfed_runtime::AccessLogMetrics;

    use super::*;

    fn cluster(name: &str, connect_timeout: u64) -> Change {
        Change::Cluster(Arc::new(ClusterConfig {
            name: name.into(),
            discovery: Discovery::Eds(name.into()),
            connect_timeout: Duration::from_secs(connect_timeout),
            tls: None,
            protocol: meshfed_proxy_config::UpstreamProtocol::Http1,
            outlier: None,
            drain: meshfed_proxy_config::DEFAULT_DRAIN,
        }))
    }

    #[tokio::test]
    async fn one_change_touches_none_of_ten_thousand_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = Engine::new(EngineOptions {
            proxy: "p".into(),
            identity: Arc::default(),
            access_log: AccessLog::open(dir.path(), "p", &AccessLogMetrics::default()).unwrap(),
            metrics: Metrics::default(),
            limits: ConnectionLimits::default(),
            name_servers: Vec::new(),
        });
        let names: Vec<String> = (0..10_000).map(|n| format!("c{n}")).collect();
        assert!(engine.apply(names.iter().map(|n| cluster(n, 1))).is_empty());
        let all = |engine: &Engine| -> Vec<Arc<Cluster>> {
            let found = names.iter().map(|n| engine.tables.clusters.get(n).unwrap());
            found.collect()
        };
        let before = all(&engine);
        let endpoints = Endpoints {
            name: "c9".into(),
            localities: vec![],
        };
        let changes = [
            cluster("c7", 2),
            // Nothing new.
            cluster("c8", 1),
            Change::Endpoints(Arc::new(endpoints)),
        ];
        assert!(engine.apply(changes).is_empty());
        let after = all(&engine);
        let replaced: Vec<_> = (0..names.len())
            .filter(|n| !Arc::ptr_eq(&before[*n], &after[*n]))
            .collect();
        assert_eq!(replaced, [7]);
    }
}
