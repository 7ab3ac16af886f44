//! The exporting side: what one peer is told.
//!
//! One [`Server`] per peer. The shell gives it the current exports, opens and closes watches as the
//! peer does, and takes bytes for each watch as fast as the peer reads them. A watch that falls
//! too far behind is cut off; its peer opens another one and asks for the list.

mod document;
mod sources;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use document::Document;
use meshfed_ordmap::OrdMap;
pub use sources::{SourceStatus, source_of};

use self::sources::Sources;
use super::checksum::{ListHash, Variant};
use super::export::Export;
use super::extension::{ListTag, Report};
use super::message::{Action, encode_event};
use crate::moment::Moment;
use crate::names::ServiceKey;

/// What is exported to one peer: by exported name and namespace.
pub type Exports = OrdMap<ServiceKey, Arc<Export>>;

/// Bounds of one [`Server`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerSettings {
    /// Bytes of events that may wait for a watch when more come, before it is cut off. Default
    /// 8 MiB, which holds an update of 10,000 services.
    pub queue_bytes: usize,
    /// Watches of one peer; the oldest is cut off for a new one beyond it. Default 32.
    pub watches: usize,
    /// How long an address without a watch is shown in [`Server::sources`]. Default 5 min.
    pub kept: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            queue_bytes: 8 << 20,
            watches: 32,
            kept: Duration::from_secs(5 * 60),
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

/// The answer to a request for the list.
#[derive(Debug)]
pub enum Answer {
    /// The asker has it already.
    NotModified(ListTag),
    List(Arc<Document>),
}

/// The state of discovery towards one peer.
#[derive(Debug)]
pub struct Server {
    settings: ServerSettings,
    exports: Exports,
    hash: ListHash,
    health_hash: u64,
    /// Made when it is first asked for.
    document: Option<Arc<Document>>,
    /// Made when the first watch is told of it.
    farewell: Option<Farewell>,
    watches: BTreeMap<WatchId, Watch>,
    next_watch: u64,
    sources: Sources,
}

/// The events that tell that everything is gone, encoded once however many watches open meanwhile.
#[derive(Debug)]
struct Farewell {
    gone: Exports,
    plain: Option<Vec<Arc<[u8]>>>,
    extended: Option<Vec<Arc<[u8]>>>,
}

#[derive(Debug)]
struct Watch {
    source: String,
    /// The watcher announced the extension.
    extended: bool,
    queue: VecDeque<Arc<[u8]>>,
    queued_bytes: usize,
}

/// One change, to be written for those who watch.
struct Change<'e> {
    action: Action,
    export: &'e Export,
    checksum: u64,
    /// Only the health is another one: news for those alone who announced the extension.
    health_only: bool,
}

impl Change<'_> {
    fn encode(&self, with_health: bool) -> Arc<[u8]> {
        let service = self.export.encoded(with_health);
        encode_event(self.action.as_str(), Some(&service), self.checksum).into()
    }
}

impl Server {
    pub fn new(settings: ServerSettings) -> Self {
        Self {
            settings,
            exports: Exports::new(),
            hash: ListHash::default(),
            health_hash: 0,
            document: None,
            farewell: None,
            watches: BTreeMap::new(),
            next_watch: 0,
            sources: Sources::new(settings.kept),
        }
    }

    /// Takes the exports as they are now. Returns the watches for which [`take`](Self::take) has
    /// something new: events, or their end.
    pub fn set_exports(&mut self, exports: &Exports, now: Moment) -> Vec<WatchId> {
        if self.exports.ptr_eq(exports) {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.exports, exports.clone());
        let changes = self.changes(&before, exports);
        if changes.is_empty() {
            return Vec::new();
        }
        self.document = None;
        self.farewell = None;
        let mut concerned = Vec::new();
        let mut lagging = Vec::new();
        let mut plain: Option<Vec<Arc<[u8]>>> = None;
        let mut extended: Option<Vec<Arc<[u8]>>> = None;
        for (id, watch) in &mut self.watches {
            let events = if watch.extended {
                extended.get_or_insert_with(|| changes.iter().map(|c| c.encode(true)).collect())
            } else {
                let all = changes.iter().filter(|c| !c.health_only);
                plain.get_or_insert_with(|| all.map(|c| c.encode(false)).collect())
            };
            if events.is_empty() {
                continue;
            }
            // One change of everything may be larger than what may wait.
            let waited = !watch.queue.is_empty();
            watch.queued_bytes += events.iter().map(|event| event.len()).sum::<usize>();
            watch.queue.extend(events.iter().cloned());
            self.sources.event(&watch.source, now);
            concerned.push(*id);
            if waited && watch.queued_bytes > self.settings.queue_bytes {
                lagging.push(*id);
            }
        }
        for id in lagging {
            self.close_watch(id, now);
        }
        concerned
    }

    /// What leads from one list to the other, with the checksum after each step: deletes, then
    /// updates and adds. A new alias is a delete of the old name and an add of the new.
    fn changes<'e>(&mut self, before: &'e Exports, after: &'e Exports) -> Vec<Change<'e>> {
        let mut changes = Vec::new();
        let mut others = Vec::new();
        for (_, old, new) in before.changes(after) {
            match (old, new) {
                (old, Some(new)) => others.push((old, new)),
                (Some(old), None) => {
                    self.toggle(old);
                    changes.push(self.change(Action::Delete, old, false));
                }
                (None, None) => {}
            }
        }
        for (old, new) in others {
            if let Some(old) = old {
                self.toggle(old);
            }
            self.toggle(new);
            let action = old.map_or(Action::Add, |_| Action::Update);
            let health_only = old.is_some_and(|old| old.shown() == new.shown());
            changes.push(self.change(action, new, health_only));
        }
        changes
    }

    fn change<'e>(&self, action: Action, export: &'e Export, health_only: bool) -> Change<'e> {
        Change {
            action,
            export,
            checksum: self.hash.checksum(Variant::Current),
            health_only,
        }
    }

    /// Adds an entry to the hashes of the list, or takes it away.
    fn toggle(&mut self, export: &Export) {
        self.hash.toggle(export.hash());
        self.health_hash ^= export.health_hash();
    }

    /// The answer to `services`. `known` is the tag that a peer with the extension sent along.
    pub fn list(&mut self, source: &str, known: Option<&str>, now: Moment) -> Answer {
        self.sources.full_sync(source, now);
        let tag = self.tag();
        if known.is_some_and(|known| known == tag.to_string()) {
            return Answer::NotModified(tag);
        }
        let exports = &self.exports;
        let document = self
            .document
            .get_or_insert_with(|| Arc::new(Document::new(exports.clone(), tag)));
        Answer::List(document.clone())
    }

    /// What a watcher says of what it imported.
    pub fn report(&mut self, source: &str, report: Report, now: Moment) {
        self.sources.report(source, report, now);
    }

    /// A watch begins; its response is to be sent at once. Returns also the watch that was cut off
    /// to make room, if any.
    ///
    /// `extended`: the watcher announced the extension.
    pub fn open_watch(
        &mut self,
        source: &str,
        extended: bool,
        now: Moment,
    ) -> (WatchId, Option<WatchId>) {
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
            extended,
            queue: VecDeque::new(),
            queued_bytes: 0,
        };
        self.watches.insert(id, watch);
        (id, evicted)
    }

    /// Tells a new watch that these are gone, if nothing is exported. Who opens it may have them from
    /// an earlier life of ours, and would take a list that is empty all of a sudden for a fault.
    pub fn tell_gone(&mut self, id: WatchId, gone: &Exports) {
        if !self.exports.is_empty() {
            return;
        }
        let Some(with_health) = self.watches.get(&id).map(|watch| watch.extended) else {
            return;
        };
        let known = self.farewell.take().filter(|told| told.gone.ptr_eq(gone));
        let mut farewell = known.unwrap_or_else(|| Farewell {
            gone: gone.clone(),
            plain: None,
            extended: None,
        });
        let form = if with_health {
            &mut farewell.extended
        } else {
            &mut farewell.plain
        };
        let events = form.get_or_insert_with(|| self.deletes(gone, with_health));
        if let Some(watch) = self.watches.get_mut(&id) {
            watch.queue.extend(events.iter().cloned());
            watch.queued_bytes = watch.queue.iter().map(|event| event.len()).sum();
        }
        self.farewell = Some(farewell);
    }

    /// What takes a list of these to the empty one, which is ours.
    fn deletes(&mut self, gone: &Exports, with_health: bool) -> Vec<Arc<[u8]>> {
        gone.values().for_each(|export| self.toggle(export));
        let nothing = Exports::new();
        let changes = self.changes(gone, &nothing);
        let encoded = changes.iter().map(|change| change.encode(with_health));
        encoded.collect()
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

    /// After this time of the monotonic clock [`sources`](Self::sources) has an entry less, unless
    /// its address is heard of again.
    pub fn next_forgotten(&self) -> Option<Duration> {
        self.sources.next_forgotten()
    }

    /// Names the current list.
    pub fn tag(&self) -> ListTag {
        ListTag {
            checksum: self.hash.checksum(Variant::Current),
            health: self.health_hash,
        }
    }
}

#[cfg(test)]
mod tests;
