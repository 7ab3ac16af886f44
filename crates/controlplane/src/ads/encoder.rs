//! Resources as bytes, made once for all clients that share them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use aws_lc_rs::digest::{Context, SHA256};
use meshfed_proxy_config::{
    Cluster, Discovery, Endpoints, Listener, Parts, ProxyConfig, RouteTable, TrustBundle,
};
use meshfed_xds::proto::Any;
use meshfed_xds::{TypeUrl, encode};

/// Entries whose source is gone are looked for when there are this many.
const FIRST_SWEEP: usize = 64;

/// The hash of a content: equal for equal bytes, also after a restart of the control plane.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

    /// The version of a list of resources.
    pub(super) fn of_all<'a>(resources: impl Iterator<Item = &'a Arc<Encoded>>) -> Self {
        let mut bytes = Vec::new();
        for resource in resources {
            bytes.extend_from_slice(resource.name.as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(&resource.version.0);
        }
        Self::of(&[&bytes])
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
    fn new(name: &str, resource: Any) -> Self {
        Self {
            name: name.into(),
            version: Version::of(&[name.as_bytes(), &resource.value]),
            resource,
            endpoints: None,
        }
    }
}

/// The resources of one kind, by name.
pub(super) type Resources = BTreeMap<Arc<str>, Arc<Encoded>>;

/// A whole configuration as it goes to proxies.
#[derive(Debug, Default)]
pub struct EncodedConfig {
    trust: Resources,
    clusters: Resources,
    endpoints: Resources,
    listeners: Resources,
    routes: Resources,
}

impl EncodedConfig {
    pub(super) fn of(&self, kind: TypeUrl) -> &Resources {
        match kind {
            TypeUrl::Trust => &self.trust,
            TypeUrl::Cluster => &self.clusters,
            TypeUrl::Endpoints => &self.endpoints,
            TypeUrl::Listener => &self.listeners,
            TypeUrl::Routes => &self.routes,
        }
    }

    /// The versions of the resources of one kind, by name.
    pub fn versions(&self, kind: TypeUrl) -> BTreeMap<&str, Version> {
        let resources = self.of(kind).values();
        resources.map(|r| (&*r.name, r.version)).collect()
    }
}

/// Encodes, and remembers by pointer what it has encoded for as long as the source is alive.
#[derive(Debug, Default)]
pub struct Encoder {
    configs: Cache<ProxyConfig, EncodedConfig>,
    trust: Cache<TrustBundle, Encoded>,
    clusters: Cache<Cluster, Encoded>,
    endpoints: Cache<Endpoints, Encoded>,
    listeners: Cache<Listener, Encoded>,
    routes: Cache<RouteTable, Encoded>,
}

impl Encoder {
    /// The same `Arc` gives the same result without work.
    pub fn encode(&self, config: &Arc<ProxyConfig>) -> Arc<EncodedConfig> {
        self.configs.get(config, "", |config| EncodedConfig {
            trust: all(&config.trust, &self.trust, |name, bundle| {
                Encoded::new(name, encode::trust(name, bundle))
            }),
            clusters: all(&config.clusters, &self.clusters, |name, cluster| Encoded {
                endpoints: match &cluster.discovery {
                    Discovery::Eds(endpoints) => Some(endpoints.clone()),
                    Discovery::Static(_) | Discovery::Dns(_) => None,
                },
                ..Encoded::new(name, encode::cluster(cluster))
            }),
            endpoints: all(&config.endpoints, &self.endpoints, |name, endpoints| {
                Encoded::new(name, encode::endpoints(endpoints))
            }),
            listeners: all(&config.listeners, &self.listeners, |name, listener| {
                Encoded::new(name, encode::listener(listener))
            }),
            routes: all(&config.routes, &self.routes, |name, routes| {
                Encoded::new(name, encode::routes(routes))
            }),
        })
    }
}

fn all<T>(
    resources: &Parts<T>,
    cache: &Cache<T, Encoded>,
    encode: impl Fn(&str, &T) -> Encoded,
) -> Resources {
    resources
        .iter()
        .map(|(name, source)| {
            let encoded = cache.get(source, name, |source| encode(name, source));
            (encoded.name.clone(), encoded)
        })
        .collect()
}

/// What was made from shared values, by their address (and the name that they were under). The
/// weak reference keeps an address from being used again while it is a key.
#[derive(Debug)]
struct Cache<S, T> {
    made: Mutex<Made<S, T>>,
}

/// Address and name.
type Key = (usize, Arc<str>);

#[derive(Debug)]
struct Made<S, T> {
    entries: HashMap<Key, (Weak<S>, Arc<T>)>,
    sweep_at: usize,
}

impl<S, T> Default for Cache<S, T> {
    fn default() -> Self {
        Self {
            made: Mutex::new(Made {
                entries: HashMap::new(),
                sweep_at: FIRST_SWEEP,
            }),
        }
    }
}

impl<S, T> Cache<S, T> {
    fn get(&self, source: &Arc<S>, name: &str, make: impl FnOnce(&S) -> T) -> Arc<T> {
        let key = (Arc::as_ptr(source) as usize, Arc::from(name));
        if let Some((_, made)) = self.lock().entries.get(&key) {
            return made.clone();
        }
        // Made outside of the lock: twice in a race, which is harmless.
        let new = Arc::new(make(source));
        let mut made = self.lock();
        if made.entries.len() >= made.sweep_at {
            made.entries
                .retain(|_, (source, _)| source.strong_count() > 0);
            made.sweep_at = (made.entries.len() * 2).max(FIRST_SWEEP);
        }
        made.entries
            .entry(key)
            .or_insert_with(|| (Arc::downgrade(source), new))
            .1
            .clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Made<S, T>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_config(endpoints: &Arc<Endpoints>) -> Arc<ProxyConfig> {
        let mut config = ProxyConfig::default();
        config
            .endpoints
            .insert(endpoints.name.clone(), endpoints.clone());
        Arc::new(config)
    }

    fn mk_endpoints(name: &str) -> Arc<Endpoints> {
        Arc::new(Endpoints {
            name: name.into(),
            localities: Vec::new(),
        })
    }

    #[test]
    fn what_is_shared_is_encoded_once() {
        let encoder = Encoder::default();
        let shared = mk_endpoints("ratings");
        let (one, two) = (mk_config(&shared), mk_config(&shared));
        let first = encoder.encode(&one);
        assert!(Arc::ptr_eq(&first, &encoder.encode(&one)));
        let second = encoder.encode(&two);
        assert!(!Arc::ptr_eq(&first, &second));
        let kind = TypeUrl::Endpoints;
        assert!(Arc::ptr_eq(
            &first.of(kind)["ratings"],
            &second.of(kind)["ratings"]
        ));
    }

    #[test]
    fn a_version_is_the_content_and_the_name() {
        let version = |name: &str| {
            let encoded = Encoder::default().encode(&mk_config(&mk_endpoints(name)));
            encoded.of(TypeUrl::Endpoints)[name].version
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
        let encoded = Encoder::default().encode(&Arc::new(config));
        let trust = encoded.of(TypeUrl::Trust);
        assert_ne!(trust["red"].version, trust["green"].version);
        assert_ne!(trust["red"].resource.value, trust["green"].resource.value);
    }

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let encoder = Encoder::default();
        for n in 0..10 * FIRST_SWEEP {
            encoder.encode(&mk_config(&mk_endpoints(&n.to_string())));
        }
        assert!(encoder.configs.lock().entries.len() <= FIRST_SWEEP);
        assert!(encoder.endpoints.lock().entries.len() <= FIRST_SWEEP);
    }
}
