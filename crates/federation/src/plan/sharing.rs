//! Two plans share what did not change, so that a difference is found by pointer.

use std::collections::BTreeMap;
use std::sync::Arc;

use meshfed_proxy_config::ProxyConfig;

use super::Plan;

impl Plan {
    /// Takes from `previous` every part that is equal. Says the same as before.
    pub fn share_with(&mut self, previous: &Self) {
        share_values(&mut self.gateways, &previous.gateways);
        share_values(&mut self.discovery, &previous.discovery);
        for (peer, exports) in &mut self.exports {
            let Some(old) = previous.exports.get(peer) else {
                continue;
            };
            if exports == old {
                *exports = old.clone();
            } else {
                share_values(Arc::make_mut(exports), old);
            }
        }
        for (proxy, config) in &mut self.proxies {
            let Some(old) = previous.proxies.get(proxy) else {
                continue;
            };
            share_config(Arc::make_mut(config), old);
            if same_config(config, old) {
                *config = old.clone();
            }
        }
    }
}

fn share_config(config: &mut ProxyConfig, old: &ProxyConfig) {
    share_values(&mut config.listeners, &old.listeners);
    share_values(&mut config.clusters, &old.clusters);
    share_values(&mut config.endpoints, &old.endpoints);
    share_values(&mut config.routes, &old.routes);
    share_values(&mut config.trust, &old.trust);
}

fn same_config(a: &ProxyConfig, b: &ProxyConfig) -> bool {
    same_values(&a.listeners, &b.listeners)
        && same_values(&a.clusters, &b.clusters)
        && same_values(&a.endpoints, &b.endpoints)
        && same_values(&a.routes, &b.routes)
        && same_values(&a.trust, &b.trust)
}

fn same_values<K: Ord, V>(a: &BTreeMap<K, Arc<V>>, b: &BTreeMap<K, Arc<V>>) -> bool {
    let mut pairs = a.iter().zip(b);
    a.len() == b.len() && pairs.all(|((ka, va), (kb, vb))| ka == kb && Arc::ptr_eq(va, vb))
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
