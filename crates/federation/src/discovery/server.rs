//! The exporting side: what one peer is told.
//!
//! One [`Server`] per peer. The shell gives it the current exports, opens and closes watches as the
//! peer does, and takes bytes for each watch as fast as the peer reads them. A watch that falls
//! too far behind is cut off; its peer opens another one and asks for the list.

mod sources;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use imbl::OrdMap;

pub use sources::{SourceStatus, source_of};

use self::sources::Sources;
use super::checksum::{ListHash, Variant, service_hash};
use super::message::{Action, Service, ServiceList, WatchEvent};
use crate::moment::Moment;
use crate::names::ServiceKey;

/// What is exported to one peer: by exported name and namespace.
pub type Exports = OrdMap<ServiceKey, Arc<Service>>;

/// Bounds of one [`Server`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerSettings {
    /// Bytes of events that may wait for a watch before it is cut off. Default 8 MiB, which holds
    /// an update of 10,000 services.
    pub queue_bytes: usize,
    /// Watches of one peer; the oldest is cut off for a new one beyond it. Default 32.
    pub watches: usize,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            queue_bytes: 8 << 20,
            watches: 32,
        }
    }
}

/// Names one watch of a [`Server`]. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchId(u64);

/// What there is to send on a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Take {
    /// One encoded event.
    Event(Arc<[u8]>),
    /// Nothing now.
    Nothing,
    /// The watch was cut off or is unknown: end the response.
    Closed,
}

/// The state of discovery towards one peer.
#[derive(Debug)]
pub struct Server {
    settings: ServerSettings,
    exports: Exports,
    hash: ListHash,
    /// The encoded list, made when it is first asked for.
    document: Option<Arc<[u8]>>,
    watches: BTreeMap<WatchId, Watch>,
    next_watch: u64,
    sources: Sources,
}

#[derive(Debug)]
struct Watch {
    source: String,
    queue: VecDeque<Arc<[u8]>>,
    queued_bytes: usize,
}

impl Server {
    pub fn new(settings: ServerSettings) -> Self {
        Self {
            settings,
            exports: Exports::new(),
            hash: ListHash::default(),
            document: None,
            watches: BTreeMap::new(),
            next_watch: 0,
            sources: Sources::default(),
        }
    }

    /// Takes the exports as they are now. Returns the watches for which [`take`](Self::take) has
    /// something new: events, or their end.
    pub fn set_exports(&mut self, exports: &Exports, now: Moment) -> Vec<WatchId> {
        if self.exports.ptr_eq(exports) {
            return Vec::new();
        }
        let events = self.changes_to(exports);
        if events.is_empty() {
            return Vec::new();
        }
        self.exports = exports.clone();
        self.document = None;
        let concerned: Vec<WatchId> = self.watches.keys().copied().collect();
        let mut lagging = Vec::new();
        for (id, watch) in &mut self.watches {
            for event in &events {
                watch.queued_bytes += event.len();
                watch.queue.push_back(event.clone());
            }
            self.sources.event(&watch.source, now);
            if watch.queued_bytes > self.settings.queue_bytes {
                lagging.push(*id);
            }
        }
        for id in lagging {
            self.close_watch(id, now);
        }
        concerned
    }

    /// The events that lead from the current list to `exports`, with the checksum after each:
    /// deletes, then updates and adds. A new alias is a delete of the old name and an add of the new.
    fn changes_to(&mut self, exports: &Exports) -> Vec<Arc<[u8]>> {
        let mut events = Vec::new();
        let mut emit = |action, service: &Service, hash: ListHash| {
            let event = WatchEvent {
                action,
                service: Some(service.clone()),
                checksum: hash.checksum(Variant::Current),
            };
            events.push(event.encode().into());
        };
        for (key, old) in &self.exports {
            if !exports.contains_key(key) {
                self.hash.toggle(service_hash(old));
                emit(Action::Delete, old, self.hash);
            }
        }
        for (key, new) in exports {
            let old = self.exports.get(key);
            let action = match old {
                Some(old) if Arc::ptr_eq(old, new) || old == new => continue,
                Some(old) => {
                    self.hash.toggle(service_hash(old));
                    Action::Update
                }
                None => Action::Add,
            };
            self.hash.toggle(service_hash(new));
            emit(action, new, self.hash);
        }
        events
    }

    /// The answer to `services`: the encoded list.
    pub fn list(&mut self, source: &str, now: Moment) -> Arc<[u8]> {
        self.sources.full_sync(source, now);
        self.document
            .get_or_insert_with(|| {
                let services = self.exports.values().map(|s| Service::clone(s)).collect();
                ServiceList::new(services).encode().into()
            })
            .clone()
    }

    /// A watch begins; its response is to be sent at once. Returns also the watch that was cut off
    /// to make room, if any.
    pub fn open_watch(&mut self, source: &str, now: Moment) -> (WatchId, Option<WatchId>) {
        let oldest = self.watches.keys().next().copied();
        let evicted = oldest.filter(|_| self.watches.len() >= self.settings.watches);
        if let Some(id) = evicted {
            self.close_watch(id, now);
        }
        let id = WatchId(self.next_watch);
        self.next_watch += 1;
        self.sources.connected(source, now);
        let watch = Watch {
            source: source.to_owned(),
            queue: VecDeque::new(),
            queued_bytes: 0,
        };
        self.watches.insert(id, watch);
        (id, evicted)
    }

    /// The next event to send on a watch.
    pub fn take(&mut self, id: WatchId) -> Take {
        let Some(watch) = self.watches.get_mut(&id) else {
            return Take::Closed;
        };
        match watch.queue.pop_front() {
            Some(event) => {
                watch.queued_bytes -= event.len();
                Take::Event(event)
            }
            None => Take::Nothing,
        }
    }

    /// The watch has ended, by whatever cause.
    pub fn close_watch(&mut self, id: WatchId, now: Moment) {
        if let Some(watch) = self.watches.remove(&id) {
            self.sources.disconnected(&watch.source, now);
        }
    }

    /// Whether nothing is exported and every watch has been given all that led there.
    pub fn has_told_all_removals(&self) -> bool {
        let mut watches = self.watches.values();
        self.exports.is_empty() && watches.all(|watch| watch.queue.is_empty())
    }

    /// Who watches or has lately watched, in the order of their addresses.
    pub fn sources(&mut self, now: Moment) -> Vec<SourceStatus> {
        self.sources.statuses(now)
    }

    /// The checksum of the current list.
    pub fn checksum(&self) -> u64 {
        self.hash.checksum(Variant::Current)
    }
}

#[cfg(test)]
mod tests;
