//! Storage: a database file, everything in memory, and one thread that writes.
//!
//! ```text
//! handlers ──Write──▶ writer thread ──fsync──▶ api.redb
//!    ▲                     │
//!    └──── Cache ◀─────────┘ events, in the order of their revisions
//! ```
//!
//! The writer is the only place where the order of changes is decided. It takes what has queued
//! up, checks each write against the state that the ones before it make, commits them in one
//! transaction, and only then shows them to readers and answers.

mod cache;
mod disk;
mod object;
mod writer;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use tokio::sync::{mpsc, oneshot};

pub use self::{
    cache::{Cache, Event, KindId, TooOld},
    disk::io,
    object::{Key, StoreKind, Stored, Uid, format_uid, head, key, parse_uid},
    writer::{Author, Change, Committed, Expect, Observers, Write, WriteError},
};
use self::{disk::Disk, writer::Writer};
use crate::error::OpenError;

/// Writes that may wait for the disk; more wait at the door.
const QUEUE: usize = 1024;

/// The store. Dropping it ends the writer after what is queued.
pub struct Store {
    cache: Arc<RwLock<Cache>>,
    queue: Option<mpsc::Sender<writer::Request>>,
    writer: Option<JoinHandle<()>>,
    healthy: Arc<AtomicBool>,
}

impl Store {
    /// Opens the store in `dir`, which must exist. `namespaces` is the kind whose objects must be there before those
    /// in them.
    pub fn open(
        dir: &Path,
        kinds: Vec<StoreKind>,
        namespaces: KindId,
        observers: Observers,
    ) -> Result<Self, OpenError> {
        let (disk, contents) = Disk::open(dir)?;
        let mut cache = Cache::new(kinds.len(), contents.revision);
        let by_path: HashMap<&str, usize> = kinds
            .iter()
            .enumerate()
            .map(|(index, kind)| (kind.path.as_str(), index))
            .collect();
        for (key, revision, object) in contents.objects {
            let kind = key.split_once('\0').and_then(|(path, _)| by_path.get(path));
            // Objects of a kind that is not defined any more stay on the disk, unseen.
            let Some(&index) = kind else { continue };
            let stored = Stored::from_disk(revision, &object, &kinds[index]);
            let Some(stored) = stored else {
                return Err(OpenError::Object {
                    path: dir.join("api.redb"),
                    key: key.replace('\0', " "),
                    message: "not a JSON object with metadata".to_owned(),
                });
            };
            cache.load(KindId(index as u16), Arc::new(stored));
        }
        let cache = Arc::new(RwLock::new(cache));
        let healthy = Arc::new(AtomicBool::new(true));
        let (queue, requests) = mpsc::channel(QUEUE);
        let writer = Writer {
            disk,
            cache: cache.clone(),
            kinds,
            namespaces,
            observers,
            healthy: Arc::clone(&healthy),
        };
        let writer = std::thread::Builder::new()
            .name("api-writer".to_owned())
            .stack_size(512 * 1024)
            .spawn(move || writer.run(requests))
            .map_err(OpenError::Thread)?;
        Ok(Self {
            cache,
            queue: Some(queue),
            writer: Some(writer),
            healthy,
        })
    }

    /// What is committed. Hold it shortly, and never across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Cache> {
        // The writer is the only one that takes it for writing and keeps it consistent at each step.
        self.cache
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether the last write reached the disk, or none was tried.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Queues a write and waits until it is on the disk.
    pub async fn write(&self, write: Write) -> Result<Arc<Stored>, WriteError> {
        let (request, answer) = writer::Request::new(write);
        let queue = self.queue.as_ref().ok_or(WriteError::Closed)?;
        queue.send(request).await.map_err(|_| WriteError::Closed)?;
        Self::answered(answer.await)
    }

    /// Like [`Store::write`], for threads outside an async runtime.
    pub fn write_blocking(&self, write: Write) -> Result<Arc<Stored>, WriteError> {
        let (request, answer) = writer::Request::new(write);
        let queue = self.queue.as_ref().ok_or(WriteError::Closed)?;
        queue
            .blocking_send(request)
            .map_err(|_| WriteError::Closed)?;
        Self::answered(answer.blocking_recv())
    }

    fn answered(
        answer: Result<Result<Arc<Stored>, WriteError>, oneshot::error::RecvError>,
    ) -> Result<Arc<Stored>, WriteError> {
        answer.unwrap_or(Err(WriteError::Closed))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.queue.take();
        if let Some(writer) = self.writer.take()
            && writer.thread().id() != std::thread::current().id()
            && writer.join().is_err()
        {
            tracing::error!("the API server's writer thread panicked");
        }
    }
}

#[cfg(test)]
mod tests;
