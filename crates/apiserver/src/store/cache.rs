//! Everything that is stored, in memory, and the recent history that watches read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use tokio::sync::watch;

use super::object::{Key, Stored, Uid};

/// Events kept for each kind; a watch that is further behind must list again.
const EVENTS_KEPT: usize = 2048;
/// Bytes of old objects that the history of one kind may hold, but for the last few events.
const HISTORY_BYTES: usize = 512 * 1024;
const EVENTS_KEPT_AT_LEAST: usize = 4;

/// The number of a kind of stored object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KindId(pub u16);

/// One change of one object.
#[derive(Debug, Clone)]
pub struct Event {
    pub revision: u64,
    /// The object after the change; for a deletion, its last state under the deletion's revision.
    pub object: Arc<Stored>,
    /// The object before the change; `None` for a creation.
    pub previous: Option<Arc<Stored>>,
    pub deleted: bool,
}

/// A watch asked for changes that are no longer known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooOld {
    pub oldest: u64,
}

pub struct KindCache {
    pub objects: BTreeMap<Key, Arc<Stored>>,
    history: VecDeque<Arc<Event>>,
    history_bytes: usize,
    /// Every event after this revision is in the history.
    floor: u64,
    /// The revision of the last change, for those who wait for one.
    changed: watch::Sender<u64>,
}

impl KindCache {
    fn new(revision: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            floor: revision,
            changed: watch::Sender::new(revision),
        }
    }

    /// The events after a revision, at most `limit`.
    pub fn events_after(&self, revision: u64, limit: usize) -> Result<Vec<Arc<Event>>, TooOld> {
        if revision < self.floor {
            return Err(TooOld { oldest: self.floor });
        }
        let start = self
            .history
            .partition_point(|event| event.revision <= revision);
        Ok(self.history.range(start..).take(limit).cloned().collect())
    }

    /// The objects of a namespace (all if empty) as they were at a revision.
    pub fn at(&self, revision: u64, namespace: &str) -> Result<Vec<Arc<Stored>>, TooOld> {
        let newer = self.events_after(revision, usize::MAX)?;
        let mut objects: BTreeMap<Key, Arc<Stored>> = self
            .in_namespace(namespace)
            .map(|object| (object.key.clone(), object.clone()))
            .collect();
        for event in newer.iter().rev() {
            if !namespace.is_empty() && event.object.namespace() != namespace {
                continue;
            }
            match &event.previous {
                Some(previous) => {
                    objects.insert(previous.key.clone(), previous.clone());
                }
                None => {
                    objects.remove(&event.object.key);
                }
            }
        }
        Ok(objects.into_values().collect())
    }

    /// The objects of a namespace, all if it is empty.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Stored>> {
        // '0' is the character after '/'.
        let (from, to) = match namespace {
            "" => (Key::from(""), None),
            some => (
                Key::from(format!("{some}/")),
                Some(Key::from(format!("{some}0"))),
            ),
        };
        let from = std::ops::Bound::Included(from);
        let to = to.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.objects.range((from, to)).map(|(_, object)| object)
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn push(&mut self, event: Arc<Event>) {
        self.history_bytes += event.object.weight();
        self.history.push_back(event);
        while self.history.len() > EVENTS_KEPT
            || (self.history_bytes > HISTORY_BYTES && self.history.len() > EVENTS_KEPT_AT_LEAST)
        {
            if let Some(old) = self.history.pop_front() {
                self.history_bytes -= old.object.weight();
                self.floor = old.revision;
            }
        }
    }
}

/// All kinds and what goes across them.
pub struct Cache {
    pub revision: u64,
    kinds: Vec<KindCache>,
    uids: HashMap<Uid, (KindId, Key)>,
    dependents: HashMap<Uid, BTreeSet<(KindId, Key)>>,
}

impl Cache {
    pub fn new(kinds: usize, revision: u64) -> Self {
        Self {
            revision,
            kinds: (0..kinds).map(|_| KindCache::new(revision)).collect(),
            uids: HashMap::new(),
            dependents: HashMap::new(),
        }
    }

    pub fn kind(&self, kind: KindId) -> &KindCache {
        &self.kinds[usize::from(kind.0)]
    }

    pub fn get(&self, kind: KindId, key: &str) -> Option<&Arc<Stored>> {
        self.kind(kind).objects.get(key)
    }

    pub fn kinds(&self) -> impl Iterator<Item = KindId> + use<> {
        (0..self.kinds.len()).map(|index| KindId(index as u16))
    }

    /// Whether an object with this uid exists.
    pub fn lives(&self, uid: Uid) -> bool {
        self.uids.contains_key(&uid)
    }

    /// Where the object with this uid is.
    pub fn place(&self, uid: Uid) -> Option<(KindId, Key)> {
        self.uids.get(&uid).cloned()
    }

    /// Those that name `uid` among their owners.
    pub fn dependents(&self, uid: Uid) -> Vec<(KindId, Key)> {
        let dependents = self.dependents.get(&uid);
        dependents.into_iter().flatten().cloned().collect()
    }

    /// Takes in an object that was read from the disk.
    pub fn load(&mut self, kind: KindId, object: Arc<Stored>) {
        self.index(kind, &object);
        let objects = &mut self.kinds[usize::from(kind.0)].objects;
        objects.insert(object.key.clone(), object);
    }

    /// Takes in a committed change.
    pub fn apply(&mut self, kind: KindId, event: Event) {
        self.revision = event.revision;
        if let Some(previous) = &event.previous {
            self.unindex(kind, previous);
        }
        if !event.deleted {
            self.index(kind, &event.object);
        }
        let cache = &mut self.kinds[usize::from(kind.0)];
        if event.deleted {
            cache.objects.remove(&event.object.key);
        } else {
            cache
                .objects
                .insert(event.object.key.clone(), event.object.clone());
        }
        cache.push(Arc::new(event));
    }

    /// Wakes those who wait for changes of these kinds.
    pub fn announce(&self, kinds: &BTreeSet<KindId>) {
        for kind in kinds {
            self.kind(*kind).changed.send_replace(self.revision);
        }
    }

    fn index(&mut self, kind: KindId, object: &Arc<Stored>) {
        self.uids.insert(object.uid, (kind, object.key.clone()));
        for owner in &object.owners {
            let dependents = self.dependents.entry(*owner).or_default();
            dependents.insert((kind, object.key.clone()));
        }
    }

    fn unindex(&mut self, kind: KindId, object: &Arc<Stored>) {
        self.uids.remove(&object.uid);
        for owner in &object.owners {
            if let Some(dependents) = self.dependents.get_mut(owner) {
                dependents.remove(&(kind, object.key.clone()));
                if dependents.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
    }
}
