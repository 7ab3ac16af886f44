//! Keeps the last good list of a peer on disk, as fresh as its size allows.
//!
//! What is written is bounded in bytes, not in times: else a peer with a long list that changes one
//! entry a second would keep the disk busy with all of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use meshfed_federation::discovery::client::RemoteState;
use meshfed_federation::discovery::remote::RemoteServices;
use meshfed_federation::names::PeerName;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::PeerCache;

/// Between two writes.
const PAUSE: Duration = Duration::from_secs(1);
/// Of writing without an end.
const BYTES_PER_SECOND: u32 = 1 << 20;
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(30);
/// How exact the time of the last contact on disk is.
const CONTACT_STEP: SignedDuration = SignedDuration::from_secs(30);

pub(super) struct Storing {
    name: PeerName,
    cache: PeerCache,
    newest: Arc<RemoteState>,
    /// What is on disk, if that is known.
    stored: Option<Stored>,
    due: Option<Instant>,
    /// When the disk may be asked again.
    free_at: Option<Instant>,
    /// One at a time, so that an older list never replaces a newer one.
    writing: Option<Writing>,
}

#[derive(Clone)]
struct Stored {
    services: Arc<RemoteServices>,
    contact: Option<Timestamp>,
    lost_at: Option<Timestamp>,
}

struct Writing {
    what: Stored,
    /// Ends with the bytes of the list, none if only the contact is noted.
    task: JoinHandle<io::Result<usize>>,
}

impl Storing {
    pub fn new(name: PeerName, cache: PeerCache) -> Self {
        Self {
            name,
            cache,
            newest: Arc::default(),
            stored: None,
            due: None,
            free_at: None,
            writing: None,
        }
    }

    pub fn changed(&mut self, state: &Arc<RemoteState>) {
        self.newest = state.clone();
        self.schedule();
    }

    /// Resolves after something that was due has been done. Can be dropped before.
    pub async fn step(&mut self) {
        if let Some(writing) = &mut self.writing {
            let done = (&mut writing.task).await;
            self.written(done.unwrap_or_else(|broken| Err(broken.into())));
        } else if let Some(at) = self.due {
            sleep_until(at).await;
            self.begin();
        } else {
            std::future::pending().await
        }
    }

    /// Puts on disk what is not there yet.
    pub async fn finish(&mut self) {
        if self.writing.is_some() {
            self.step().await;
        }
        if self.due.is_some() {
            self.begin();
        }
        if self.writing.is_some() {
            self.step().await;
        }
    }

    /// Behaves as if a write did not come to its end.
    #[cfg(test)]
    pub fn stand_still(&mut self) {
        let what = Stored {
            services: Arc::default(),
            contact: None,
            lost_at: None,
        };
        let task = tokio::spawn(std::future::pending());
        self.writing = Some(Writing { what, task });
    }

    fn schedule(&mut self) {
        if self.writing.is_none() && self.due.is_none() && self.is_wanted() {
            let now = Instant::now();
            self.due = Some(self.free_at.map_or(now, |at| at.max(now)));
        }
    }

    fn is_wanted(&self) -> bool {
        match &self.stored {
            Some(stored) => {
                !Arc::ptr_eq(&stored.services, &self.newest.services) || self.is_stale(stored)
            }
            None => self.newest.last_contact.is_some() || !self.newest.services.is_empty(),
        }
    }

    fn is_stale(&self, stored: &Stored) -> bool {
        if stored.lost_at != self.newest.lost_at() {
            return true;
        }
        match (stored.contact, self.newest.last_contact) {
            (Some(stored), Some(contact)) => contact.duration_since(stored) >= CONTACT_STEP,
            (None, contact) => contact.is_some(),
            (Some(_), None) => false,
        }
    }

    fn begin(&mut self) {
        self.due = None;
        let services = self.newest.services.clone();
        let contact = self.newest.last_contact;
        let mut whole = true;
        if let Some(stored) = &mut self.stored
            && stored.services.lasts_as(&services)
        {
            whole = false;
            stored.services = services.clone();
        }
        // How services fare is not kept, so a change of that alone is none.
        if !whole && !self.is_wanted() {
            return;
        }
        let lost_at = self.newest.lost_at();
        let what = Stored {
            services,
            contact,
            lost_at,
        };
        let (cache, name, written) = (self.cache.clone(), self.name.clone(), what.clone());
        let task = tokio::task::spawn_blocking(move || {
            let bytes = if whole {
                cache.store(&name, &written.services)?
            } else {
                0
            };
            if let Some(at) = written.contact {
                cache.touch(&name, at)?;
            }
            cache.note_lost(&name, written.lost_at)?;
            Ok(bytes)
        });
        self.writing = Some(Writing { what, task });
    }

    fn written(&mut self, done: io::Result<usize>) {
        let what = self.writing.take().map(|writing| writing.what);
        let pause = match done {
            Ok(bytes) => {
                self.stored = what;
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                PAUSE.max(Duration::from_secs(1) * bytes / BYTES_PER_SECOND)
            }
            Err(error) => {
                warn!(peer = %self.name, %error, "cannot keep the list of this peer; it is tried again");
                self.stored = None;
                RETRY
            }
        };
        self.free_at = Some(Instant::now() + pause);
        self.schedule();
    }
}

#[cfg(test)]
mod tests;
