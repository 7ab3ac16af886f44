//! Two plans share what did not change, so that a difference is found by pointer.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use meshfed_proxy_config::ProxyConfig;

use super::Plan;

impl Plan {
    /// Takes from `previous` every part that is equal. Says the same as before.
    pub fn share_with(&mut self, previous: &Self) {
        share_values(&mut self.gateways, &previous.gateways);
        share_values(&mut self.discovery, &previous.discovery);
        for (peer, exports) in &mut self.exports {
            if let Some(old) = previous.exports.get(peer) {
                *exports = shared(exports, old);
            }
        }
        let mut proxies = self.proxies.clone();
        for (proxy, config) in &self.proxies {
            if let Some(old) = previous.proxies.get(proxy) {
                let config = share_config(config, old);
                proxies.insert(proxy.clone(), config);
            }
        }
        self.proxies = shared(&proxies, &previous.proxies);
    }
}

fn share_config(config: &ProxyConfig, old: &Arc<ProxyConfig>) -> Arc<ProxyConfig> {
    let config = ProxyConfig {
        listeners: shared(&config.listeners, &old.listeners),
        clusters: shared(&config.clusters, &old.clusters),
        endpoints: shared(&config.endpoints, &old.endpoints),
        routes: shared(&config.routes, &old.routes),
        trust: shared(&config.trust, &old.trust),
    };
    let same = config.listeners.ptr_eq(&old.listeners)
        && config.clusters.ptr_eq(&old.clusters)
        && config.endpoints.ptr_eq(&old.endpoints)
        && config.routes.ptr_eq(&old.routes)
        && config.trust.ptr_eq(&old.trust);
    if same { old.clone() } else { Arc::new(config) }
}

/// The content of `new`, made from `old`.
fn shared<K: Ord + Clone, V: PartialEq>(
    new: &OrdMap<K, Arc<V>>,
    old: &OrdMap<K, Arc<V>>,
) -> OrdMap<K, Arc<V>> {
    let mut made = old.clone();
    for item in old.diff(new) {
        match item {
            DiffItem::Add(key, value)
            | DiffItem::Update {
                new: (key, value), ..
            } => {
                made.insert(key.clone(), value.clone());
            }
            DiffItem::Remove(key, _) => {
                made.remove(key);
            }
        }
    }
    made
}

fn share_values<K: Ord, V: PartialEq>(new: &mut BTreeMap<K, Arc<V>>, old: &BTreeMap<K, Arc<V>>) {
    for (key, value) in new {
        if let Some(before) = old.get(key)
            && !Arc::ptr_eq(value, before)
            && value == before
        {
            *value = before.clone();
        }
    }
}
