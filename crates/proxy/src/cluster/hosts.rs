//! The endpoints of a cluster and the choice among them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use meshfed_proxy_config::{Endpoint, Endpoints, OutlierDetection};

use super::group::Group;
use super::pool::HostPool;

/// One endpoint as a cluster sees it. Lives on while the address stays, so that what is known of
/// it survives a change of the others.
pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    /// Whether it speaks the cluster's TLS.
    pub(crate) mesh_tls: bool,
    /// Connections and requests in use.
    pub(super) active: AtomicUsize,
    health: Health,
    pub(crate) pool: HostPool,
}

/// Passive health: what connections and requests have shown.
struct Health {
    epoch: Instant,
    failures: AtomicU32,
    /// Milliseconds since `epoch`; 0: never ejected.
    ejected_until: AtomicU64,
    ejections: AtomicU32,
}

/// A use of a host that counts as load until it is dropped.
pub(crate) struct Load(Arc<Host>);

impl Load {
    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.0
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Host {
    pub(crate) fn new(address: SocketAddr, mesh_tls: bool) -> Arc<Self> {
        let health = Health {
            epoch: Instant::now(),
            failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
        };
        Self::with(address, mesh_tls, health, HostPool::default())
    }

    fn with(address: SocketAddr, mesh_tls: bool, health: Health, pool: HostPool) -> Arc<Self> {
        Arc::new(Self {
            address,
            mesh_tls,
            active: AtomicUsize::new(0),
            health,
            pool,
        })
    }

    /// One with the same health and no connections.
    fn renewed(&self) -> Arc<Self> {
        let health = self.health.copy();
        Self::with(self.address, self.mesh_tls, health, HostPool::settling())
    }

    fn take(self: &Arc<Self>) -> Load {
        self.active.fetch_add(1, Ordering::Relaxed);
        Load(self.clone())
    }

    fn is_ejected(&self) -> bool {
        self.health.ejected_until.load(Ordering::Relaxed) > self.health.now()
    }

    pub(crate) fn succeeded(&self) {
        // Mostly it is zero already: then no cache line is taken from other threads.
        if self.health.failures.load(Ordering::Relaxed) != 0 {
            self.health.failures.store(0, Ordering::Relaxed);
        }
    }
}

impl Health {
    fn copy(&self) -> Self {
        let of_u32 = |value: &AtomicU32| AtomicU32::new(value.load(Ordering::Relaxed));
        Self {
            epoch: self.epoch,
            failures: of_u32(&self.failures),
            ejected_until: AtomicU64::new(self.ejected_until.load(Ordering::Relaxed)),
            ejections: of_u32(&self.ejections),
        }
    }

    fn now(&self) -> u64 {
        // Begins at 1, as 0 stands for "never".
        self.epoch.elapsed().as_millis() as u64 + 1
    }

    /// The more often in a row, the longer; every healthy `interval` forgives one time.
    fn eject(&self, policy: &OutlierDetection) {
        let now = self.now();
        let healthy = now.saturating_sub(self.ejected_until.load(Ordering::Relaxed));
        let interval = (policy.interval.as_millis() as u64).max(1);
        let forgiven = u32::try_from(healthy / interval).unwrap_or(u32::MAX);
        let times = self
            .ejections
            .load(Ordering::Relaxed)
            .saturating_sub(forgiven)
            + 1;
        self.ejections.store(times, Ordering::Relaxed);
        let long = policy.base_ejection.saturating_mul(times).min(MAX_EJECTION);
        self.ejected_until
            .store(now + long.as_millis() as u64, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
    }
}

/// The longest time that an endpoint is left out at once.
const MAX_EJECTION: Duration = Duration::from_secs(300);

/// The endpoints of a cluster, by priority. Immutable; a change makes a new one.
#[derive(Default)]
pub(crate) struct Hosts {
    /// Highest priority first; none is empty.
    priorities: Box<[Group]>,
    /// Who is behind those that are gateways of several.
    behind: BTreeMap<HostKey, Behind>,
}

/// Address, and whether it speaks the cluster's TLS.
type HostKey = (SocketAddr, bool);
type Behind = Box<[Arc<str>]>;

impl Hosts {
    /// Takes over the hosts of `old` that are still there, with their connections unless those may lead to
    /// somebody who is behind the host no more.
    pub(crate) fn new(endpoints: &Endpoints, old: &Self) -> Self {
        let known: HashMap<HostKey, &Arc<Host>> =
            old.all().map(|h| ((h.address, h.mesh_tls), h)).collect();
        let mut made: HashMap<HostKey, Arc<Host>> = HashMap::with_capacity(known.len());
        let mut behind = BTreeMap::new();
        let mut localities: Vec<_> = endpoints.localities.iter().collect();
        localities.sort_by_key(|l| l.priority);
        let mut priorities: Vec<(u32, Group)> = Vec::new();
        for locality in localities.into_iter().filter(|l| !l.endpoints.is_empty()) {
            if priorities
                .last()
                .is_none_or(|(p, _)| *p != locality.priority)
            {
                priorities.push((locality.priority, Group::default()));
            }
            let Some((_, group)) = priorities.last_mut() else {
                continue;
            };
            for e in &locality.endpoints {
                let key = (e.address, e.mesh_tls);
                let host = made.entry(key).or_insert_with(|| {
                    if !e.behind.is_empty() {
                        behind.insert(key, Behind::from(&*e.behind));
                    }
                    let before = old.behind.get(&key);
                    let lost = before.is_some_and(|b| b.iter().any(|one| !e.behind.contains(one)));
                    match known.get(&key) {
                        Some(host) if lost => host.renewed(),
                        Some(host) => (*host).clone(),
                        None => Host::new(e.address, e.mesh_tls),
                    }
                });
                group.push(host.clone(), e.weight);
            }
        }
        Self {
            priorities: priorities
                .into_iter()
                .map(|(_, group)| group.fitted())
                .collect(),
            behind,
        }
    }

    /// A single group of addresses that all speak the cluster's TLS.
    pub(crate) fn of_addresses(addresses: &[SocketAddr], old: &Self) -> Self {
        let endpoints = addresses.iter().copied().map(Endpoint::new);
        let endpoints = Endpoints {
            localities: vec![meshfed_proxy_config::LocalityEndpoints {
                endpoints: endpoints.collect(),
                ..Default::default()
            }],
            ..Default::default()
        };
        Self::new(&endpoints, old)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.priorities.iter().flat_map(Group::hosts)
    }

    /// A host of the best priority that has one which is neither ejected nor `tried`. If all are ejected, ejections are ignored: a doubtful endpoint is
    /// better than none.
    pub(crate) fn pick(&self, tried: &[Arc<Host>]) -> Option<Load> {
        let fresh = |h: &Host| !tried.iter().any(|t| std::ptr::eq(&**t, h));
        let usable = |h: &Host| !h.is_ejected() && fresh(h);
        let find = |test: &dyn Fn(&Host) -> bool| {
            self.priorities.iter().find_map(|group| group.choose(test))
        };
        find(&usable).or_else(|| find(&fresh)).map(Host::take)
    }

    /// Counts a failure of a host, and leaves the host out for a while if it fails too often.
    pub(crate) fn failed(&self, host: &Arc<Host>, policy: Option<&OutlierDetection>) {
        let Some(policy) = policy else { return };
        let failures = host.health.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures < policy.consecutive_failures.max(1) || host.is_ejected() {
            return;
        }
        let (mut ejected, mut total) = (1, 0);
        for other in self.all() {
            total += 1;
            ejected += usize::from(other.is_ejected());
        }
        // One may always go, as with Envoy, or small clusters would never be protected.
        if ejected == 1 || ejected * 100 <= total * policy.max_ejection_percent as usize {
            host.health.eject(policy);
        }
    }
}

#[cfg(test)]
mod tests;
