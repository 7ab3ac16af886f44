//! What happens after writes: dependents of deleted owners go, ending namespaces are emptied, and
//! old events are forgotten. One thread, fed by the writer.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Weak,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    api::{Api, Target},
    error::OpenError,
    json,
    store::{Cache, Change, Committed, Expect, Key, KindId, Stored, Uid, Write, WriteError, key},
    verbs::{FOREGROUND, ORPHAN},
};

/// Events are kept for this long, as in Kubernetes.
const EVENT_LIFE: Duration = Duration::from_secs(3600);
const SWEEP: Duration = Duration::from_secs(60);
/// Beyond this number the oldest are forgotten earlier.
const MOST_EVENTS: usize = 5000;
/// What failed is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);
/// Times that a change is made anew because another write came between.
const RETRIES: usize = 16;

/// Something to look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// An owner is gone.
    Gone(Uid),
    /// Something that this owner may wait for is gone.
    Dependent(Uid),
    /// An object has owners, which may be gone already.
    Owned(KindId, Key),
    /// An object waits for a finalizer that is ours.
    Finalize(KindId, Key),
    /// A namespace is ending.
    Namespace(Key),
}

/// Says what is to be looked at after these changes. Called by the writer: it must be short.
pub fn observe(namespaces: KindId, tasks: &Sender<Task>, committed: &[Committed]) {
    for change in committed {
        let object = &change.event.object;
        // The thread is gone only when the server is.
        let send = |task| drop(tasks.send(task));
        if change.event.deleted {
            send(Task::Gone(object.uid));
            // An owner that is deleted in the foreground may have waited for this one only.
            for owner in &object.owners {
                send(Task::Dependent(*owner));
            }
            if !object.namespace().is_empty() {
                send(Task::Namespace(key("", object.namespace())));
            }
        } else {
            send_for(namespaces, change.kind, object, send);
        }
    }
}

fn send_for(namespaces: KindId, kind: KindId, object: &Stored, mut send: impl FnMut(Task)) {
    if object.deleting && kind == namespaces {
        send(Task::Namespace(object.key.clone()));
    }
    if object.deleting && object.finalizers {
        send(Task::Finalize(kind, object.key.clone()));
    }
    if !object.owners.is_empty() {
        send(Task::Owned(kind, object.key.clone()));
    }
}

/// Starts the thread. It ends with the API.
pub fn start(api: &Arc<Api>, tasks: Receiver<Task>) -> Result<(), OpenError> {
    // What was left undone when the process ended.
    let mut left = BTreeSet::new();
    {
        let cache = api.store.read();
        for kind in cache.kinds() {
            for object in cache.kind(kind).objects.values() {
                let namespaces = api.registry.namespaces;
                send_for(namespaces, kind, object, |task| {
                    left.insert(task);
                });
            }
        }
    }
    let api = Arc::downgrade(api);
    std::thread::Builder::new()
        .name("api-janitor".to_owned())
        .stack_size(512 * 1024)
        .spawn(move || run(&api, &tasks, left))
        .map_err(OpenError::Thread)?;
    Ok(())
}

fn run(api: &Weak<Api>, tasks: &Receiver<Task>, mut batch: BTreeSet<Task>) {
    let mut swept = Instant::now();
    loop {
        let Some(strong) = api.upgrade() else { return };
        batch.retain(|task| !strong.look_at(task));
        if swept.elapsed() >= SWEEP {
            strong.forget_events();
            swept = Instant::now();
        }
        drop(strong);
        let wait = if batch.is_empty() { SWEEP } else { RETRY };
        match tasks.recv_timeout(wait) {
            Ok(task) => {
                batch.insert(task);
                batch.extend(tasks.try_iter());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Api {
    /// Whether it is done with.
    fn look_at(&self, task: &Task) -> bool {
        let result = match task {
            Task::Gone(uid) => self.owner_gone(*uid),
            Task::Dependent(owner) => self.dependent_gone(*owner),
            Task::Owned(kind, key) => self.collect(*kind, key),
            Task::Finalize(kind, key) => self.finalize(*kind, key),
            Task::Namespace(key) => self.empty_namespace(key),
        };
        if let Err(error) = &result {
            tracing::warn!(%error, ?task, "cleaning up failed; it is tried again");
        }
        result.is_ok()
    }

    fn owner_gone(&self, uid: Uid) -> Result<(), WriteError> {
        let dependents = self.store.read().dependents(uid);
        for (kind, key) in dependents {
            self.collect(kind, &key)?;
        }
        Ok(())
    }

    fn dependent_gone(&self, owner: Uid) -> Result<(), WriteError> {
        let place = self.store.read().place(owner);
        place.map_or(Ok(()), |(kind, key)| self.finalize(kind, &key))
    }

    /// Deletes an object if none of its owners exists. Who gets another owner meanwhile is judged anew.
    fn collect(&self, kind: KindId, key: &Key) -> Result<(), WriteError> {
        for _ in 0..RETRIES {
            let (object, owned) = {
                let cache = self.store.read();
                let Some(object) = cache.get(kind, key).cloned() else {
                    return Ok(());
                };
                let owned = object.owners.iter().any(|uid| cache.lives(*uid));
                (object, owned)
            };
            if owned || object.owners.is_empty() {
                return Ok(());
            }
            match self.remove_as(kind, key, Some(object.revision)) {
                Err(WriteError::Changed) => {}
                done => return done,
            }
        }
        Err(WriteError::Changed)
    }

    /// Does what the garbage collector's own finalizers ask for.
    fn finalize(&self, kind: KindId, key: &Key) -> Result<(), WriteError> {
        let Some(object) = self.find(kind, key) else {
            return Ok(());
        };
        let value = object.to_value();
        let finalizers = json::metadata(&value)
            .get("finalizers")
            .and_then(Value::as_array);
        let waits_for = |name: &str| finalizers.is_some_and(|all| all.iter().any(|f| f == name));
        let dependents = self.store.read().dependents(object.uid);
        if waits_for(ORPHAN) {
            for (kind, key) in &dependents {
                self.change(*kind, key, None, |value| disown(value, object.uid))?;
            }
            return self.change(kind, key, None, |value| drop_finalizer(value, ORPHAN));
        }
        if waits_for(FOREGROUND) {
            for (kind, key) in &dependents {
                if self.has_owner_beside(*kind, key, object.uid) {
                    self.change(*kind, key, None, |value| disown(value, object.uid))?;
                } else {
                    self.remove(*kind, key)?;
                }
            }
            if self.store.read().dependents(object.uid).is_empty() {
                return self.change(kind, key, None, |value| drop_finalizer(value, FOREGROUND));
            }
        }
        Ok(())
    }

    fn empty_namespace(&self, key: &Key) -> Result<(), WriteError> {
        let namespaces = self.registry.namespaces;
        let Some(namespace) = self
            .find(namespaces, key)
            .filter(|namespace| namespace.deleting)
        else {
            return Ok(());
        };
        let content: Vec<(KindId, Key)> = {
            let cache = self.store.read();
            let in_kind = |kind| {
                let objects = cache.kind(kind).in_namespace(namespace.name());
                objects
                    .map(move |object| (kind, object.key.clone()))
                    .collect::<Vec<_>>()
            };
            cache.kinds().flat_map(in_kind).collect()
        };
        for (kind, key) in &content {
            self.remove(*kind, key)?;
        }
        let emptied = |cache: &Cache| {
            let mut kinds = cache.kinds();
            kinds.all(|kind| {
                cache
                    .kind(kind)
                    .in_namespace(namespace.name())
                    .next()
                    .is_none()
            })
        };
        // What has finalizers of others is still there; its end brings us here again.
        if !emptied(&self.store.read()) {
            return Ok(());
        }
        self.change(namespaces, key, None, |value| {
            let spec = value.get_mut("spec").and_then(Value::as_object_mut);
            if let Some(list) = spec.and_then(|spec| spec.get_mut("finalizers")?.as_array_mut()) {
                list.retain(|finalizer| finalizer != "kubernetes");
            }
        })
    }

    fn forget_events(&self) {
        let now = self.now();
        let Some(oldest) = now.checked_sub(EVENT_LIFE) else {
            return;
        };
        let Ok(oldest) = jiff::Timestamp::try_from(oldest) else {
            return;
        };
        let events: Vec<Arc<Stored>> = {
            let cache = self.store.read();
            cache
                .kind(self.registry.events)
                .objects
                .values()
                .cloned()
                .collect()
        };
        let events = events
            .into_iter()
            .map(|event| (last_seen(&event.to_value()), event));
        for event in forgotten(events.collect(), oldest) {
            if let Err(error) = self.remove(self.registry.events, &event.key) {
                tracing::warn!(%error, "an old event cannot be removed");
                return;
            }
        }
    }

    fn find(&self, kind: KindId, key: &Key) -> Option<Arc<Stored>> {
        self.store.read().get(kind, key).cloned()
    }

    fn has_owner_beside(&self, kind: KindId, key: &Key, owner: Uid) -> bool {
        let cache = self.store.read();
        let lives = |uid: &Uid| *uid != owner && cache.lives(*uid);
        cache
            .get(kind, key)
            .is_some_and(|object| object.owners.iter().any(lives))
    }

    /// Deletes an object, or begins to if it has finalizers.
    fn remove(&self, kind: KindId, key: &Key) -> Result<(), WriteError> {
        self.remove_as(kind, key, None)
    }

    /// The same, if it is of this revision.
    fn remove_as(&self, kind: KindId, key: &Key, judged: Option<u64>) -> Result<(), WriteError> {
        let now = self.time_text();
        let object = self.find(kind, key);
        if object.is_none_or(|object| object.deleting && object.finalizers) {
            return Ok(());
        }
        self.change(kind, key, judged, |value| {
            if let Some(metadata) = json::metadata_mut(value) {
                metadata
                    .entry("deletionTimestamp")
                    .or_insert_with(|| now.as_str().into());
            }
        })
    }

    /// Changes an object, if it is still of the revision that was judged; one that is being deleted and has
    /// no finalizers left is removed.
    fn change(
        &self,
        kind: KindId,
        key: &Key,
        judged: Option<u64>,
        change: impl Fn(&mut Value),
    ) -> Result<(), WriteError> {
        for _ in 0..RETRIES {
            let Some(current) = self.find(kind, key) else {
                return Ok(());
            };
            if judged.is_some_and(|revision| revision != current.revision) {
                return Err(WriteError::Changed);
            }
            let mut value = current.to_value();
            change(&mut value);
            let Some(ty) = self.registry.of_store(kind) else {
                return Ok(());
            };
            let target = Target {
                ty: Arc::clone(ty),
                version: 0,
                namespace: current.namespace().to_owned(),
                name: current.name().to_owned(),
            };
            let Ok(stored) = target.to_stored(value) else {
                return Ok(());
            };
            let change = match stored.deleting && !stored.finalizers {
                true if kind == self.registry.namespaces => Change::DeleteEmptyNamespace,
                true => Change::Delete,
                false => Change::Put(Box::new(stored)),
            };
            let write = Write {
                kind,
                key: key.clone(),
                expect: Expect::Revision(current.revision),
                change,
                into_namespace: false,
                by: None,
            };
            match self.store.write_blocking(write) {
                Ok(_) | Err(WriteError::Missing) => return Ok(()),
                Err(WriteError::Changed) => {}
                // Something came in meanwhile; its own event brings us here again.
                Err(WriteError::NamespaceInUse) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Err(WriteError::Changed)
    }
}

/// Of events with the time of each, those that are too old, and the oldest of those that are too many.
fn forgotten<T>(
    mut events: Vec<(Option<jiff::Timestamp>, T)>,
    oldest: jiff::Timestamp,
) -> impl Iterator<Item = T> {
    events.sort_by_key(|(time, _)| *time);
    let beyond = events.len().saturating_sub(MOST_EVENTS);
    let is_old = move |time: Option<jiff::Timestamp>| time.is_some_and(|time| time < oldest);
    let all = events.into_iter().enumerate();
    all.filter(move |(n, (time, _))| *n < beyond || is_old(*time))
        .map(|(_, (_, event))| event)
}

fn last_seen(event: &Value) -> Option<jiff::Timestamp> {
    let times = [
        &["series", "lastObservedTime"][..],
        &["lastTimestamp"],
        &["metadata", "creationTimestamp"],
    ];
    let times = times
        .iter()
        .filter_map(|path| json::text(event, path).parse().ok());
    times.max()
}

fn drop_finalizer(value: &mut Value, name: &str) {
    let metadata = json::metadata_mut(value);
    let list = metadata.and_then(|metadata| metadata.get_mut("finalizers")?.as_array_mut());
    if let Some(list) = list {
        list.retain(|finalizer| finalizer != name);
    }
}

fn disown(value: &mut Value, owner: Uid) {
    let metadata = json::metadata_mut(value);
    let list = metadata.and_then(|metadata| metadata.get_mut("ownerReferences")?.as_array_mut());
    if let Some(list) = list {
        list.retain(|reference| crate::store::parse_uid(json::text(reference, &["uid"])) != owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Option<jiff::Timestamp> {
        jiff::Timestamp::from_second(second).ok()
    }

    fn gone(events: impl Iterator<Item = i64>) -> Vec<i64> {
        // The newest first, as no order is promised.
        let mut events: Vec<_> = events.map(|n| (at(n), n)).collect();
        events.reverse();
        forgotten(events, at(1000).unwrap()).collect()
    }

    #[test]
    fn events_that_are_too_old_are_forgotten_and_no_others() {
        assert_eq!(gone([998, 999, 1000, 1001].into_iter()), [998, 999]);
        let timeless = forgotten(vec![(None, "timeless")], at(1000).unwrap());
        assert_eq!(timeless.count(), 0);
    }

    #[test]
    fn of_more_than_five_thousand_events_the_oldest_are_forgotten() {
        assert_eq!(gone(2000..7000), [0; 0]);
        assert_eq!(gone(2000..7003), [2000, 2001, 2002]);
        assert_eq!(gone(999..6003), [999, 1000, 1001, 1002]);
    }
}
