//! Host names and their addresses, asked for again as their TTL ends.
//!
//! A name is asked for once for all clusters that use it, and for as long as one does.

mod lookup;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::task::AbortHandle;

use crate::limits::{DNS_LAST_RETRY, DNS_LONGEST, DNS_RETRY, DNS_SHORTEST};
use crate::random;
use lookup::{Answer, Lookup};

/// Something that wants to know when a name has other addresses.
pub(crate) trait Watcher: Send + Sync {
    fn addresses_changed(&self);
}

/// All names that a proxy knows addresses of.
pub(crate) struct Dns {
    lookup: Arc<Lookup>,
    names: Mutex<HashMap<Arc<str>, Weak<Name>>>,
}

impl Dns {
    /// Asks these servers; none: those of the system.
    pub(crate) fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            lookup: Arc::new(Lookup::new(servers)),
            names: Mutex::default(),
        }
    }

    /// The name, which is kept up to date until it is dropped. Must run inside a tokio runtime.
    pub(crate) fn name(&self, host: &str) -> Arc<Name> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(host).and_then(Weak::upgrade) {
            return known;
        }
        names.retain(|_, name| name.strong_count() > 0);
        let name = Arc::new(Name {
            host: host.into(),
            found: ArcSwap::default(),
            watchers: Mutex::default(),
            task: OnceLock::new(),
        });
        names.insert(name.host.clone(), Arc::downgrade(&name));
        let task = tokio::spawn(keep_current(Arc::downgrade(&name), self.lookup.clone()));
        // Empty until here.
        let _ = name.task.set(task.abort_handle());
        name
    }
}

/// A host name with its addresses.
pub(crate) struct Name {
    host: Arc<str>,
    /// Sorted. Empty until the first answer.
    found: ArcSwap<Vec<IpAddr>>,
    watchers: Mutex<Vec<Weak<dyn Watcher>>>,
    task: OnceLock<AbortHandle>,
}

impl Drop for Name {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

impl Name {
    pub(crate) fn addresses(&self) -> Arc<Vec<IpAddr>> {
        self.found.load_full()
    }

    /// Tells this watcher from now on.
    pub(crate) fn watch(&self, watcher: Weak<dyn Watcher>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if watchers.len() == watchers.capacity() {
            watchers.retain(|w| w.strong_count() > 0);
        }
        watchers.push(watcher);
    }

    fn set(&self, addresses: Vec<IpAddr>) {
        if **self.found.load() == addresses {
            return;
        }
        tracing::debug!(host = &*self.host, ?addresses, "name has other addresses");
        self.found.store(Arc::new(addresses));
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let watchers: Vec<_> = watchers.iter().filter_map(Weak::upgrade).collect();
        for watcher in watchers {
            watcher.addresses_changed();
        }
    }
}

/// Asks until the name is dropped. A failure takes no address away.
async fn keep_current(name: Weak<Name>, lookup: Arc<Lookup>) {
    let mut retry = DNS_RETRY;
    loop {
        let Some(host) = name.upgrade().map(|name| name.host.clone()) else {
            return;
        };
        let wait = match lookup.addresses(&host).await {
            Ok(answer) => {
                let Some(name) = name.upgrade() else { return };
                retry = DNS_RETRY;
                let wait = lasting(&answer);
                name.set(answer.addresses);
                wait
            }
            Err(error) => {
                tracing::debug!(host = &*host, %error, "name does not resolve");
                let wait = random::jittered(retry);
                retry = (retry * 2).min(DNS_LAST_RETRY);
                wait
            }
        };
        tokio::time::sleep(wait).await;
    }
}

fn lasting(answer: &Answer) -> Duration {
    answer.lasts.clamp(DNS_SHORTEST, DNS_LONGEST)
}
