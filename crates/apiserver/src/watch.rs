//! Watches: the changes of a kind, as they happen.
//!
//! A watch has no queue. It remembers the last revision that it sent, and reads on in the history
//! of the kind when its client takes more. A client that is too slow for the history is told to
//! list again (410), and costs nothing until then.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};

use crate::{
    api::{Api, Target, random_part},
    error::ApiError,
    http::Shape,
    store::{Event, Stored},
    verbs::ListOptions,
};

/// Events that are put in one piece of the body at most, and bytes after which a piece is sent.
const PIECE_EVENTS: usize = 64;
const PIECE_BYTES: usize = 64 * 1024;
/// How often a client hears how far it is, when nothing happens.
const BOOKMARKS: Duration = Duration::from_secs(30);
/// A watch that names no end ends after this time, and at most as much again.
const DEFAULT_LIFE: Duration = Duration::from_secs(30 * 60);
const LONGEST_LIFE: Duration = Duration::from_secs(2 * 3600);

/// Where a watch starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With what there is, as additions; then a bookmark that says so, if the flag is set.
    Initial { mark_end: bool },
    /// With the next change.
    Now,
    /// After a revision.
    After(u64),
}

#[derive(Debug, Clone)]
pub struct WatchOptions {
    pub selection: ListOptions,
    pub start: Start,
    pub bookmarks: bool,
    pub life: Option<Duration>,
    pub shape: Shape,
}

pub struct Watch {
    api: Arc<Api>,
    target: Target,
    options: WatchOptions,
    /// Everything up to here was sent.
    sent: u64,
    /// The last revision that the client knows of.
    told: u64,
    initial: VecDeque<Arc<Stored>>,
    mark_end: bool,
    columns_sent: bool,
    changed: watch::Receiver<u64>,
    ending: watch::Receiver<bool>,
    end: Instant,
    next_bookmark: Instant,
    over: bool,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    /// Starts a watch, unless there are too many.
    pub fn start(api: &Arc<Api>, target: Target, options: WatchOptions) -> Result<Self, ApiError> {
        let permit = Arc::clone(&api.watches).try_acquire_owned();
        let permit = permit.map_err(|_| ApiError::too_many_requests())?;
        let cache = api.store.read();
        let kind = cache.kind(target.ty.store);
        // Subscribed before the state is read, so that no change falls between.
        let changed = kind.subscribe();
        let mut initial = VecDeque::new();
        let mut mark_end = false;
        let mut sent = cache.revision;
        match options.start {
            Start::Now => {}
            Start::Initial { mark_end: mark } => {
                let objects = kind.in_namespace(&target.namespace);
                let matching = objects.filter(|object| options.selection.matches(&target, object));
                initial = matching.cloned().collect();
                mark_end = mark;
            }
            // Too old or never given: the first thing that the client hears, as with Kubernetes.
            Start::After(revision) => sent = revision,
        }
        drop(cache);
        let now = Instant::now();
        let life = options
            .life
            .unwrap_or_else(|| DEFAULT_LIFE + random_part(DEFAULT_LIFE));
        Ok(Self {
            target,
            sent,
            told: sent,
            initial,
            mark_end,
            columns_sent: false,
            changed,
            ending: api.ending.subscribe(),
            end: now + life.min(LONGEST_LIFE),
            next_bookmark: now + BOOKMARKS,
            over: false,
            options,
            api: Arc::clone(api),
            _permit: permit,
        })
    }

    /// The next piece of the body; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.over || *self.ending.borrow() {
                return None;
            }
            self.changed.borrow_and_update();
            let piece = self.ready();
            if !piece.is_empty() {
                return Some(piece);
            }
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.end) => {
                    self.over = true;
                    // So that the client goes on from here.
                    return self.bookmark();
                }
                () = tokio::time::sleep_until(self.next_bookmark) => {
                    self.next_bookmark = Instant::now() + BOOKMARKS;
                    if let Some(bookmark) = self.bookmark() {
                        return Some(bookmark);
                    }
                }
                ending = self.ending.changed() => ending.ok()?,
            }
        }
    }

    /// What can be sent now.
    fn ready(&mut self) -> Bytes {
        let mut piece = BytesMut::new();
        while piece.len() < PIECE_BYTES
            && let Some(object) = self.initial.pop_front()
        {
            self.write("ADDED", &object, object.revision, &mut piece);
        }
        if !self.initial.is_empty() {
            return piece.freeze();
        }
        if std::mem::take(&mut self.mark_end) {
            self.write_bookmark(true, &mut piece);
        }
        loop {
            let (events, revision) = {
                let cache = self.api.store.read();
                let kind = cache.kind(self.target.ty.store);
                let events = if self.sent > cache.revision {
                    Err(ApiError::expired(format!(
                        "too large resource version: {} (current: {})",
                        self.sent, cache.revision
                    )))
                } else {
                    let events = kind.events_after(self.sent, PIECE_EVENTS);
                    events.map_err(crate::verbs::too_old)
                };
                match events {
                    Ok(events) => (events, cache.revision),
                    Err(error) => {
                        self.over = true;
                        write_error(&error, &mut piece);
                        return piece.freeze();
                    }
                }
            };
            if events.is_empty() {
                self.sent = revision;
                return piece.freeze();
            }
            for event in events {
                self.sent = event.revision;
                self.write_event(&event, &mut piece);
                if piece.len() >= PIECE_BYTES {
                    return piece.freeze();
                }
            }
        }
    }

    fn write_event(&mut self, event: &Event, out: &mut BytesMut) {
        let selected = |object: &Stored| self.options.selection.matches(&self.target, object);
        let before = event.previous.as_deref().is_some_and(&selected);
        let after = !event.deleted && selected(&event.object);
        let (what, object) = match (before, after) {
            (false, false) => return,
            (false, true) => ("ADDED", &event.object),
            (true, true) => ("MODIFIED", &event.object),
            // The client knows the object as it was when it matched.
            (true, false) => ("DELETED", event.previous.as_ref().unwrap_or(&event.object)),
        };
        let object = Arc::clone(object);
        self.write(what, &object, event.revision, out);
    }

    fn write(&mut self, what: &str, object: &Arc<Stored>, revision: u64, out: &mut BytesMut) {
        out.extend_from_slice(format!(r#"{{"type":"{what}","object":"#).as_bytes());
        let as_of;
        let object = if object.revision == revision {
            object
        } else {
            as_of = Arc::new(Stored {
                revision,
                ..Stored::clone(object)
            });
            &as_of
        };
        let shape = self.options.shape;
        let first = !std::mem::replace(&mut self.columns_sent, true);
        shape.write_for_watch(&self.api, &self.target, object, first, out);
        out.extend_from_slice(b"}\n");
        self.told = revision;
    }

    fn bookmark(&mut self) -> Option<Bytes> {
        if !self.options.bookmarks || self.told >= self.sent {
            return None;
        }
        let mut out = BytesMut::new();
        self.write_bookmark(false, &mut out);
        Some(out.freeze())
    }

    fn write_bookmark(&mut self, initial_events_end: bool, out: &mut BytesMut) {
        let mut metadata = json!({"resourceVersion": self.sent.to_string()});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = self.options.shape.bookmark(&self.target, metadata);
        write_line("BOOKMARK", &object, out);
        self.told = self.sent;
    }
}

fn write_error(error: &ApiError, out: &mut BytesMut) {
    write_line("ERROR", &error.status(), out);
}

fn write_line(what: &str, object: &Value, out: &mut BytesMut) {
    let line = json!({"type": what, "object": object}).to_string();
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(b"\n");
}
