//! Resources as bytes, made once for all clients that share them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use aws_lc_rs::digest::{Context, SHA256};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use meshfed_proxy_config::{
    Cluster, Discovery, Endpoints, Listener, Parts, ProxyConfig, RouteTable, TrustBundle,
};
use meshfed_xds::proto::Any;
use meshfed_xds::{TypeUrl, encode};

/// Entries whose source is gone are looked for when there are this many.
const FIRST_SWEEP: usize = 64;

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

/// The version stands for the content.
impl PartialEq for Encoded {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.name == other.name
    }
}

impl Eq for Encoded {}

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

/// The resources of one kind, by name.
pub(super) type Resources = OrdMap<Arc<str>, Arc<Encoded>>;

/// The names of resources that came, changed or went.
pub(super) fn names_of_difference<'a>(
    before: &'a Resources,
    now: &'a Resources,
) -> impl Iterator<Item = &'a Arc<str>> {
    before.diff(now).map(|item| match item {
        DiffItem::Add(name, _) | DiffItem::Remove(name, _) => name,
        DiffItem::Update { new: (name, _), .. } => name,
    })
}

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

/// A configuration with what was made from it.
#[derive(Debug, Clone)]
pub struct Known {
    pub config: Arc<ProxyConfig>,
    pub encoded: Arc<EncodedConfig>,
}

impl Encoder {
    /// The same `Arc` gives the same result without work; otherwise only what differs from
    /// `before` is looked at.
    pub fn encode(&self, config: &Arc<ProxyConfig>, before: Option<&Known>) -> Known {
        let encoded = self
            .configs
            .get(config, &"".into(), |config| self.make(config, before));
        Known {
            config: config.clone(),
            encoded,
        }
    }

    fn make(&self, config: &ProxyConfig, before: Option<&Known>) -> EncodedConfig {
        macro_rules! all {
            ($kind:ident, $encode:expr) => {
                follow(
                    before.map(|b| (&b.config.$kind, &b.encoded.$kind)),
                    &config.$kind,
                    &self.$kind,
                    $encode,
                )
            };
        }
        EncodedConfig {
            trust: all!(trust, |name, bundle| {
                Encoded::new(name, encode::trust(name, bundle))
            }),
            clusters: all!(clusters, |name, cluster: &Cluster| Encoded {
                endpoints: match &cluster.discovery {
                    Discovery::Eds(endpoints) => Some(endpoints.clone()),
                    Discovery::Static(_) | Discovery::Dns(_) => None,
                },
                ..Encoded::new(name, encode::cluster(cluster))
            }),
            endpoints: all!(endpoints, |name, endpoints| {
                Encoded::new(name, encode::endpoints(endpoints))
            }),
            listeners: all!(listeners, |name, listener| {
                Encoded::new(name, encode::listener(listener))
            }),
            routes: all!(routes, |name, routes| {
                Encoded::new(name, encode::routes(routes))
            }),
        }
    }
}

/// Makes of `before` what `now` is.
fn follow<T: PartialEq>(
    before: Option<(&Parts<T>, &Resources)>,
    now: &Parts<T>,
    cache: &Cache<T, Encoded>,
    encode: impl Fn(&Arc<str>, &T) -> Encoded,
) -> Resources {
    let encoded =
        |name: &Arc<str>, source: &Arc<T>| cache.get(source, name, |source| encode(name, source));
    let Some((sources, made)) = before else {
        let all = now.iter();
        return all
            .map(|(name, source)| (name.clone(), encoded(name, source)))
            .collect();
    };
    let mut made = made.clone();
    for item in sources.diff(now) {
        match item {
            DiffItem::Remove(name, _) => {
                made.remove(name);
            }
            DiffItem::Add(name, source)
            | DiffItem::Update {
                new: (name, source),
                ..
            } => {
                made.insert(name.clone(), encoded(name, source));
            }
        }
    }
    made
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
    fn get(&self, source: &Arc<S>, name: &Arc<str>, make: impl FnOnce(&S) -> T) -> Arc<T> {
        let key = (Arc::as_ptr(source) as usize, name.clone());
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
        let first = encoder.encode(&one, None).encoded;
        assert!(Arc::ptr_eq(&first, &encoder.encode(&one, None).encoded));
        let second = encoder.encode(&two, None).encoded;
        assert!(!Arc::ptr_eq(&first, &second));
        let kind = TypeUrl::Endpoints;
        assert!(Arc::ptr_eq(
            &first.of(kind)["ratings"],
            &second.of(kind)["ratings"]
        ));
    }

    #[test]
    fn after_a_change_only_what_changed_is_made_again() {
        let encoder = Encoder::default();
        let mut config = ProxyConfig::default();
        for n in 0..1000 {
            let endpoints = mk_endpoints(&n.to_string());
            config.endpoints.insert(endpoints.name.clone(), endpoints);
        }
        let before = encoder.encode(&Arc::new(config.clone()), None);
        config.endpoints.remove("7");
        let new = mk_endpoints("new");
        config.endpoints.insert(new.name.clone(), new);
        let after = encoder.encode(&Arc::new(config.clone()), Some(&before));
        let kind = TypeUrl::Endpoints;
        let differ: Vec<&str> =
            names_of_difference(before.encoded.of(kind), after.encoded.of(kind))
                .map(|name| &**name)
                .collect();
        assert_eq!(differ, ["7", "new"]);
        let whole = Encoder::default().encode(&Arc::new(config), None);
        assert_eq!(after.encoded.of(kind), whole.encoded.of(kind));
        assert_eq!(encoder.endpoints.lock().entries.len(), 1001);
    }

    #[test]
    fn a_version_is_the_content_and_the_name() {
        let version = |name: &str| {
            let encoded = Encoder::default().encode(&mk_config(&mk_endpoints(name)), None);
            let encoded = encoded.encoded;
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
        let known = Encoder::default().encode(&Arc::new(config), None);
        let trust = known.encoded.of(TypeUrl::Trust);
        assert_ne!(trust["red"].version, trust["green"].version);
        assert_ne!(trust["red"].resource.value, trust["green"].resource.value);
    }

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let encoder = Encoder::default();
        for n in 0..10 * FIRST_SWEEP {
            encoder.encode(&mk_config(&mk_endpoints(&n.to_string())), None);
        }
        assert!(encoder.configs.lock().entries.len() <= FIRST_SWEEP);
        assert!(encoder.endpoints.lock().entries.len() <= FIRST_SWEEP);
    }
}
