//! Resources as bytes.
//!
//! A configuration may have tens of thousands of clusters and endpoints. Each is small, and is
//! encoded when it is sent, which costs less than to hold its bytes; what clients had already is known
//! by its version. The others are few, may be large and are the same for many clients, so they are
//! encoded once for as long as they are in use.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use aws_lc_rs::digest::{Context, SHA256};
use meshfed_proxy_config::{
    Cluster, Discovery, Endpoints, Listener, Parts, ProxyConfig, RouteTable, TrustBundle,
    VirtualHost, table_of,
};
use meshfed_xds::proto::Any;
use meshfed_xds::{TypeUrl, encode};

/// Entries whose source is gone are looked for when there are this many,
const FIRST_SWEEP: usize = 64;
/// and before one of so many bytes is kept.
const LARGE: usize = 64 * 1024;

/// The hash of a content: equal for equal bytes, also after a restart of the control plane.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version([u8; 8]);

impl Version {
    fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Context::new(&SHA256);
        for part in parts {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let hash = hash.finish();
        let mut short = [0; 8];
        for (short, hash) in short.iter_mut().zip(hash.as_ref()) {
            *short = *hash;
        }
        Self(short)
    }

    /// The version of a set of resources is that of all its members, each toggled once. It names a
    /// content, it protects nothing.
    pub(super) fn toggled(self, member: Self) -> Self {
        Self((u64::from_be_bytes(self.0) ^ u64::from_be_bytes(member.0)).to_be_bytes())
    }

    /// As a client says it; `None` for what no version of ours looks like.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() != 16 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        u64::from_str_radix(text, 16)
            .ok()
            .map(|n| Self(n.to_be_bytes()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A resource as it goes to proxies.
#[derive(Debug)]
pub struct Encoded {
    pub name: Arc<str>,
    pub version: Version,
    pub resource: Any,
    /// Of a cluster: the name of the endpoints that it waits for.
    pub endpoints: Option<Arc<str>>,
}

impl Encoded {
    fn new(name: &Arc<str>, resource: Any) -> Self {
        Self {
            name: name.clone(),
            version: Version::of(&[name.as_bytes(), &resource.value]),
            resource,
            endpoints: None,
        }
    }
}

/// Calls a function for the parts of a kind; virtual hosts lie in the route tables.
macro_rules! of_kind {
    ($kind:expr, $call:ident($($config:expr),+; $($argument:expr),*), $hosts:expr) => {
        match $kind {
            TypeUrl::VirtualHosts => $hosts,
            TypeUrl::Trust => $call($(&$config.trust),+, $($argument),*),
            TypeUrl::Cluster => $call($(&$config.clusters),+, $($argument),*),
            TypeUrl::Endpoints => $call($(&$config.endpoints),+, $($argument),*),
            TypeUrl::Listener => $call($(&$config.listeners),+, $($argument),*),
            TypeUrl::Routes => $call($(&$config.routes),+, $($argument),*),
        }
    };
}

/// Whether there is a resource of this name.
pub(super) fn has(config: &ProxyConfig, kind: TypeUrl, name: &str) -> bool {
    fn has<T>(parts: &Parts<T>, name: &str) -> bool {
        parts.contains_key(name)
    }
    of_kind!(kind, has(config; name), host(config, name).is_some())
}

/// How many resources of a kind there are.
pub(super) fn count(config: &ProxyConfig, kind: TypeUrl) -> usize {
    fn len<T>(parts: &Parts<T>) -> usize {
        parts.len()
    }
    let hosts = || config.routes.values().map(|table| table.hosts.len());
    of_kind!(kind, len(config;), hosts().sum())
}

/// The names of all resources of a kind.
pub(super) fn names(config: &ProxyConfig, kind: TypeUrl) -> Vec<Arc<str>> {
    fn names<T>(parts: &Parts<T>) -> Vec<Arc<str>> {
        parts.keys().cloned().collect()
    }
    let hosts = || config.routes.values().flat_map(|table| names(&table.hosts));
    of_kind!(kind, names(config;), hosts().collect())
}

/// A virtual host with its name.
fn host<'c>(config: &'c ProxyConfig, name: &str) -> Option<(&'c Arc<str>, &'c Arc<VirtualHost>)> {
    let table = config.routes.get(table_of(name)?)?;
    table.hosts.get_key_value(name)
}

/// The names of the resources of a kind that came, changed or went, at the cost of what the two
/// versions do not share.
pub(super) fn names_of_difference(
    kind: TypeUrl,
    before: &ProxyConfig,
    now: &ProxyConfig,
) -> Vec<Arc<str>> {
    fn difference<T: PartialEq>(before: &Parts<T>, now: &Parts<T>) -> Vec<Arc<str>> {
        let changes = before.changes(now);
        changes.map(|(name, _, _)| name.clone()).collect()
    }
    let hosts = || {
        let tables = before.routes.changes(&now.routes);
        let of =
            |table: Option<&Arc<RouteTable>>| table.map(|t| t.hosts.clone()).unwrap_or_default();
        tables.flat_map(move |(_, before, now)| difference(&of(before), &of(now)))
    };
    of_kind!(kind, difference(before, now;), hosts().collect())
}

/// Encodes, and remembers what is worth it.
#[derive(Debug, Default)]
pub struct Encoder {
    trust: Cache<TrustBundle, Arc<Encoded>>,
    listeners: Cache<Listener, Arc<Encoded>>,
    routes: Cache<RouteTable, Arc<Encoded>>,
    /// Versions that clients had already: after a restart, many come back with the same ones.
    clusters: Cache<Cluster, Version>,
    endpoints: Cache<Endpoints, Version>,
    hosts: Cache<VirtualHost, Version>,
}

impl Encoder {
    /// The resource of this name, if there is one and it is of another version. Many clients that come back
    /// with the same resource cost one encoding.
    pub(super) fn encode_other(
        &self,
        config: &ProxyConfig,
        kind: TypeUrl,
        name: &str,
        version: Version,
    ) -> Option<Arc<Encoded>> {
        let (clusters, endpoints) = (&config.clusters, &config.endpoints);
        let known = match kind {
            TypeUrl::Cluster => self.clusters.is(clusters.get_key_value(name), version),
            TypeUrl::Endpoints => self.endpoints.is(endpoints.get_key_value(name), version),
            TypeUrl::VirtualHosts => self.hosts.is(host(config, name), version),
            TypeUrl::Trust | TypeUrl::Listener | TypeUrl::Routes => false,
        };
        if known {
            return None;
        }
        let encoded = self.encode(config, kind, name)?;
        if encoded.version != version {
            return Some(encoded);
        }
        match kind {
            TypeUrl::Cluster => self.clusters.note(clusters.get_key_value(name), version),
            TypeUrl::Endpoints => self.endpoints.note(endpoints.get_key_value(name), version),
            TypeUrl::VirtualHosts => self.hosts.note(host(config, name), version),
            TypeUrl::Trust | TypeUrl::Listener | TypeUrl::Routes => {}
        }
        None
    }

    /// The route table of this name, if there is one, for a client that gets its virtual hosts one by one.
    pub(super) fn separate_routes(config: &ProxyConfig, name: &str) -> Option<Arc<Encoded>> {
        let (name, _) = config.routes.get_key_value(name)?;
        Some(Arc::new(Encoded::new(name, encode::separate_routes(name))))
    }

    /// The resource of this name, if there is one.
    pub fn encode(&self, config: &ProxyConfig, kind: TypeUrl, name: &str) -> Option<Arc<Encoded>> {
        fn found<'c, T>(parts: &'c Parts<T>, name: &str) -> Option<(&'c Arc<str>, &'c Arc<T>)> {
            parts.get_key_value(name)
        }
        Some(match kind {
            TypeUrl::Cluster => {
                let (name, cluster) = found(&config.clusters, name)?;
                Arc::new(Encoded {
                    endpoints: match &cluster.discovery {
                        Discovery::Eds(endpoints) => Some(endpoints.clone()),
                        Discovery::Static(_) | Discovery::Dns(_) => None,
                    },
                    ..Encoded::new(name, encode::cluster(cluster))
                })
            }
            TypeUrl::Endpoints => {
                let (name, endpoints) = found(&config.endpoints, name)?;
                Arc::new(Encoded::new(name, encode::endpoints(endpoints)))
            }
            TypeUrl::VirtualHosts => {
                let (name, host) = host(config, name)?;
                Arc::new(Encoded::new(name, encode::virtual_host(host)))
            }
            TypeUrl::Trust => {
                let (name, bundle) = found(&config.trust, name)?;
                self.trust.encoded(bundle, name, |b| encode::trust(name, b))
            }
            TypeUrl::Listener => {
                let (name, listener) = found(&config.listeners, name)?;
                self.listeners.encoded(listener, name, encode::listener)
            }
            TypeUrl::Routes => {
                let (name, table) = found(&config.routes, name)?;
                self.routes.encoded(table, name, encode::routes)
            }
        })
    }
}

/// What was made from shared values, by their address (and the name that they were under). The
/// weak reference keeps an address from being used again while it is a key.
#[derive(Debug)]
struct Cache<S, M> {
    made: Mutex<Made<S, M>>,
}

/// Address and name.
type Key = (usize, Arc<str>);

#[derive(Debug)]
struct Made<S, M> {
    entries: HashMap<Key, (Weak<S>, M)>,
    sweep_at: usize,
}

impl<S, M> Made<S, M> {
    fn sweep(&mut self) {
        self.entries
            .retain(|_, (source, _)| source.strong_count() > 0);
        self.sweep_at = (self.entries.len() * 2).max(FIRST_SWEEP);
    }
}

impl<S, M> Default for Cache<S, M> {
    fn default() -> Self {
        Self {
            made: Mutex::new(Made {
                entries: HashMap::new(),
                sweep_at: FIRST_SWEEP,
            }),
        }
    }
}

impl<S> Cache<S, Arc<Encoded>> {
    fn encoded(
        &self,
        source: &Arc<S>,
        name: &Arc<str>,
        make: impl FnOnce(&S) -> Any,
    ) -> Arc<Encoded> {
        let known = self.known(source, name);
        // Made outside of the lock: twice in a race, which is harmless.
        known.unwrap_or_else(|| {
            let new = Arc::new(Encoded::new(name, make(source)));
            if new.resource.value.len() >= LARGE {
                self.lock().sweep();
            }
            self.keep(source, name, new)
        })
    }
}

impl<S> Cache<S, Version> {
    /// Whether the resource with this name is known to be of this version.
    fn is(&self, source: Option<(&Arc<str>, &Arc<S>)>, version: Version) -> bool {
        let known = source.and_then(|(name, source)| self.known(source, name));
        known == Some(version)
    }

    fn note(&self, source: Option<(&Arc<str>, &Arc<S>)>, version: Version) {
        if let Some((name, source)) = source {
            self.keep(source, name, version);
        }
    }
}

impl<S, M: Clone> Cache<S, M> {
    fn known(&self, source: &Arc<S>, name: &Arc<str>) -> Option<M> {
        let key = (Arc::as_ptr(source) as usize, name.clone());
        self.lock().entries.get(&key).map(|(_, made)| made.clone())
    }

    /// What is known from now on: this, unless somebody was faster.
    fn keep(&self, source: &Arc<S>, name: &Arc<str>, new: M) -> M {
        let key = (Arc::as_ptr(source) as usize, name.clone());
        let mut made = self.lock();
        if made.entries.len() >= made.sweep_at {
            made.sweep();
        }
        made.entries
            .entry(key)
            .or_insert_with(|| (Arc::downgrade(source), new))
            .1
            .clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Made<S, M>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_config(table: &Arc<RouteTable>) -> ProxyConfig {
        let mut config = ProxyConfig::default();
        config
            .routes
            .insert(table.name.as_str().into(), table.clone());
        config
    }

    fn mk_table(name: &str) -> Arc<RouteTable> {
        Arc::new(RouteTable::new(name, []))
    }

    fn mk_endpoints(names: impl IntoIterator<Item = String>) -> ProxyConfig {
        let mut config = ProxyConfig::default();
        for name in names {
            let name: Arc<str> = name.into();
            let localities = Vec::new();
            let endpoints = Endpoints {
                name: name.clone(),
                localities,
            };
            config.endpoints.insert(name, Arc::new(endpoints));
        }
        config
    }

    #[test]
    fn what_is_large_and_shared_is_encoded_once() {
        let encoder = Encoder::default();
        let shared = mk_table("http-proxy");
        let encode = || encoder.encode(&mk_config(&shared), TypeUrl::Routes, "http-proxy");
        assert!(Arc::ptr_eq(&encode().unwrap(), &encode().unwrap()));
    }

    #[test]
    fn what_differs_is_named() {
        let kind = TypeUrl::Endpoints;
        let before = mk_endpoints((0..1000).map(|n| n.to_string()));
        let mut now = before.clone();
        now.endpoints.remove("7");
        let new = mk_endpoints(["new".into()]).endpoints["new"].clone();
        now.endpoints.insert("new".into(), new);
        let differ = names_of_difference(kind, &before, &now);
        assert_eq!(differ, ["7".into(), "new".into()]);
        assert!(!has(&now, kind, "7") && has(&now, kind, "new"));
        assert!(!has(&now, TypeUrl::Cluster, "new"));
        assert_eq!(names(&now, kind).len(), 1000);
    }

    #[test]
    fn a_version_is_the_content_and_the_name() {
        let version = |name: &str| {
            let config = mk_endpoints([name.to_owned()]);
            let encoded = Encoder::default().encode(&config, TypeUrl::Endpoints, name);
            encoded.unwrap().version
        };
        assert_eq!(version("a"), version("a"));
        assert_ne!(version("a"), version("b"));
        assert_eq!(
            Version::parse(&version("a").to_string()),
            Some(version("a"))
        );
        for foreign in ["", "1", "0123456789ABCDEF", "+123456789abcdef"] {
            assert_eq!(Version::parse(foreign), None);
        }
    }

    #[test]
    fn one_bundle_under_two_names_is_two_resources() {
        let bundle = Arc::new(TrustBundle::default());
        let mut config = ProxyConfig::default();
        for name in ["red", "green"] {
            config.trust.insert(name.into(), bundle.clone());
        }
        let encoder = Encoder::default();
        let encode = |name| encoder.encode(&config, TypeUrl::Trust, name).unwrap();
        assert_ne!(encode("red").version, encode("green").version);
        assert_ne!(encode("red").resource.value, encode("green").resource.value);
    }

    #[test]
    fn what_a_client_has_is_not_encoded_for_the_next_one() {
        let (encoder, kind) = (Encoder::default(), TypeUrl::Endpoints);
        let config = mk_endpoints(["a".into()]);
        let version = encoder.encode(&config, kind, "a").unwrap().version;
        let other = encoder.encode_other(&config, kind, "a", Version::default());
        assert_eq!(other.unwrap().version, version);
        let known = |config: &ProxyConfig| {
            let (name, endpoints) = config.endpoints.get_key_value("a").unwrap();
            encoder.endpoints.known(endpoints, name)
        };
        assert_eq!(known(&config), None);
        for _ in 0..2 {
            let other = encoder.encode_other(&config, kind, "a", version);
            assert!(other.is_none());
            assert_eq!(known(&config), Some(version));
        }
        assert_eq!(known(&mk_endpoints(["a".into()])), None, "another value");
    }

    #[test]
    fn of_what_is_large_nothing_is_kept_that_nobody_holds() {
        let encoder = Encoder::default();
        let hosts = (0..1000).map(|n| VirtualHost {
            name: format!("large/{n}").into(),
            domains: vec!["d".repeat(100)],
            routes: Vec::new(),
        });
        let hosts: Vec<VirtualHost> = hosts.collect();
        for _ in 0..5 {
            let table = Arc::new(RouteTable::new("large", hosts.clone()));
            encoder.encode(&mk_config(&table), TypeUrl::Routes, "large");
        }
        assert_eq!(encoder.routes.lock().entries.len(), 1);
    }

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let encoder = Encoder::default();
        for n in 0..10 * FIRST_SWEEP {
            let name = n.to_string();
            encoder.encode(&mk_config(&mk_table(&name)), TypeUrl::Routes, &name);
        }
        assert!(encoder.routes.lock().entries.len() <= FIRST_SWEEP);
    }
}
