//! The thread that decides the order of writes and puts them on the disk.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{mpsc, oneshot};

use super::{
    StoreKind,
    cache::{Cache, Event, KindId},
    disk::{Disk, DiskChange},
    object::{Key, Stored},
};

/// Writes that share one transaction at most.
const LARGEST_BATCH: usize = 256;

/// What must be true of the object before a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Absent,
    Revision(u64),
}

#[derive(Debug)]
pub enum Change {
    /// Its revision is given by the writer.
    Put(Box<Stored>),
    Delete,
    /// Deletes a namespace, if nothing is in it.
    DeleteEmptyNamespace,
}

#[derive(Debug)]
pub struct Write {
    pub kind: KindId,
    pub key: Key,
    pub expect: Expect,
    pub change: Change,
    /// The namespace must exist and not be ending.
    pub into_namespace: bool,
    /// Who asked for it, if that is to be told.
    pub by: Option<Arc<Author>>,
}

/// Somebody outside of this process who writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// As authenticated.
    pub user: String,
    pub groups: Vec<String>,
    /// `create`, `update`, `patch` or `delete`.
    pub verb: &'static str,
    /// What is written, such as `ConfigMap`.
    pub kind: String,
}

/// Why a write did not happen.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum WriteError {
    #[error("the object exists")]
    Exists,
    #[error("the object does not exist")]
    Missing,
    #[error("the object was changed by another write")]
    Changed,
    #[error("the namespace does not exist")]
    NoNamespace,
    #[error("the namespace is being terminated")]
    NamespaceEnding,
    #[error("the namespace still has content")]
    NamespaceInUse,
    /// Nothing of the batch was written.
    #[error("the database cannot be written: {0}")]
    Disk(Arc<str>),
    #[error("the store is closed")]
    Closed,
}

/// A change that is on the disk.
#[derive(Debug, Clone)]
pub struct Committed {
    pub kind: KindId,
    pub event: Event,
    pub by: Option<Arc<Author>>,
}

type Answer = Result<Arc<Stored>, WriteError>;

pub struct Request {
    write: Write,
    answer: oneshot::Sender<Answer>,
}

impl Request {
    pub fn new(write: Write) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        (Self { write, answer }, receiver)
    }
}

/// Hears of what was committed.
pub type Observer = Box<dyn Fn(&[Committed]) + Send>;

/// Who hears of commits. The writer calls them, so they must not block.
pub struct Observers {
    /// Before readers see what was committed: nobody can act on a write that it was not told.
    pub before: Observer,
    /// After that.
    pub after: Observer,
}

pub struct Writer {
    pub disk: Disk,
    pub cache: Arc<RwLock<Cache>>,
    pub kinds: Vec<StoreKind>,
    pub namespaces: KindId,
    pub observers: Observers,
    /// Whether the last commit succeeded.
    pub healthy: Arc<AtomicBool>,
}

/// The state that the writes of a batch make on top of the cache.
#[derive(Default)]
struct Staged {
    revision: u64,
    overlay: HashMap<(KindId, Key), Option<Arc<Stored>>>,
    committed: Vec<Committed>,
    changes: Vec<DiskChange>,
}

impl Writer {
    pub fn run(self, mut requests: mpsc::Receiver<Request>) {
        let mut batch = Vec::new();
        while requests.blocking_recv_many(&mut batch, LARGEST_BATCH) > 0 {
            self.commit(batch.drain(..));
        }
    }

    fn commit(&self, batch: impl Iterator<Item = Request>) {
        let mut answers = Vec::new();
        let mut staged = Staged::default();
        {
            let cache = self
                .cache
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            staged.revision = cache.revision;
            for request in batch {
                let answer = self.stage(&cache, &mut staged, request.write);
                answers.push((request.answer, answer));
            }
        }
        if !staged.changes.is_empty() {
            let result = self.disk.commit(staged.revision, &staged.changes);
            self.healthy.store(result.is_ok(), Ordering::Relaxed);
            if let Err(error) = result {
                tracing::error!(%error, "cannot write to the database; changes are refused");
                let error = WriteError::Disk(error.to_string().into());
                for (_, answer) in &mut answers {
                    if answer.is_ok() {
                        *answer = Err(error.clone());
                    }
                }
            } else {
                (self.observers.before)(&staged.committed);
                self.show(&staged.committed);
                (self.observers.after)(&staged.committed);
            }
        }
        for (sender, answer) in answers {
            // Whoever asked may have gone away.
            let _ = sender.send(answer);
        }
    }

    fn show(&self, committed: &[Committed]) {
        let mut cache = self
            .cache
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut kinds = BTreeSet::new();
        for change in committed {
            kinds.insert(change.kind);
            cache.apply(change.kind, change.event.clone());
        }
        cache.announce(&kinds);
    }

    fn stage(&self, cache: &Cache, staged: &mut Staged, write: Write) -> Answer {
        let current = staged.current(cache, write.kind, &write.key);
        match (write.expect, &current) {
            (Expect::Absent, None) => {}
            (Expect::Absent, Some(_)) => return Err(WriteError::Exists),
            (Expect::Revision(_), None) => return Err(WriteError::Missing),
            (Expect::Revision(revision), Some(current)) if current.revision == revision => {}
            (Expect::Revision(_), Some(_)) => return Err(WriteError::Changed),
        }
        if write.into_namespace {
            let namespace = write.key.split_once('/').map_or("", |(name, _)| name);
            let key = super::key("", namespace);
            match staged.current(cache, self.namespaces, &key) {
                None => return Err(WriteError::NoNamespace),
                Some(namespace) if namespace.deleting => return Err(WriteError::NamespaceEnding),
                Some(_) => {}
            }
        }
        let (object, deleted) = match write.change {
            Change::Put(object) => (*object, false),
            Change::Delete | Change::DeleteEmptyNamespace => {
                let current = current.as_ref().ok_or(WriteError::Missing)?;
                if matches!(write.change, Change::DeleteEmptyNamespace)
                    && self.in_use(cache, staged, current.name())
                {
                    return Err(WriteError::NamespaceInUse);
                }
                (Stored::clone(current), true)
            }
        };
        staged.revision += 1;
        let object = Arc::new(Stored {
            revision: staged.revision,
            ..object
        });
        staged.changes.push(DiskChange {
            key: format!(
                "{}\0{}",
                self.kinds[usize::from(write.kind.0)].path,
                write.key
            ),
            value: (!deleted).then(|| (object.revision, object.tail.clone())),
        });
        staged.committed.push(Committed {
            kind: write.kind,
            event: Event {
                revision: staged.revision,
                object: object.clone(),
                previous: current,
                deleted,
            },
            by: write.by,
        });
        let after = (!deleted).then(|| object.clone());
        staged.overlay.insert((write.kind, write.key), after);
        Ok(object)
    }

    fn in_use(&self, cache: &Cache, staged: &Staged, namespace: &str) -> bool {
        let removed = |kind: KindId, key: &Key| {
            let staged = staged.overlay.get(&(kind, key.clone()));
            staged.is_some_and(Option::is_none)
        };
        let stored = cache.kinds().any(|kind| {
            let mut objects = cache.kind(kind).in_namespace(namespace);
            objects.any(|object| !removed(kind, &object.key))
        });
        let mut overlay = staged.overlay.values().flatten();
        stored || overlay.any(|object| object.namespace() == namespace)
    }
}

impl Staged {
    fn current(&self, cache: &Cache, kind: KindId, key: &Key) -> Option<Arc<Stored>> {
        match self.overlay.get(&(kind, key.clone())) {
            Some(staged) => staged.clone(),
            None => cache.get(kind, key).cloned(),
        }
    }
}
