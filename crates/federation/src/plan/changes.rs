//! The parts of a configuration that follow what changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use meshfed_ordmap::OrdMap;
use meshfed_proxy_config::{Parts, ProxyConfig};

/// Puts a value under its key. One that is there and equal stays, and this is false.
pub(super) fn put<K: Ord + Clone, V: PartialEq>(
    map: &mut OrdMap<K, Arc<V>>,
    key: K,
    value: V,
) -> bool {
    let is_new = map.get(&key).is_none_or(|there| **there != value);
    if is_new {
        map.insert(key, Arc::new(value));
    }
    is_new
}

/// Makes these all the parts that there are.
pub(super) fn put_all<V: PartialEq>(
    parts: &mut Parts<V>,
    all: impl IntoIterator<Item = (Arc<str>, V)>,
) {
    let mut names = BTreeSet::new();
    for (name, part) in all {
        names.insert(name.clone());
        put(parts, name, part);
    }
    if parts.len() != names.len() {
        let gone: Vec<Arc<str>> = parts
            .keys()
            .filter(|name| !names.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            parts.remove(&name);
        }
    }
}

/// Takes a new configuration unless it says the same as the one before.
pub(super) fn replace(config: &mut Arc<ProxyConfig>, new: ProxyConfig) -> &Arc<ProxyConfig> {
    let same = new.listeners.ptr_eq(&config.listeners)
        && new.clusters.ptr_eq(&config.clusters)
        && new.endpoints.ptr_eq(&config.endpoints)
        && new.routes.ptr_eq(&config.routes)
        && new.trust.ptr_eq(&config.trust);
    if !same {
        *config = Arc::new(new);
    }
    config
}
