//! Tells what is known of a peer: to the hub, and to the disk.
//!
//! The first change is told at once. A peer that never stops changing is told of as often as a
//! person could follow, so that it costs the others nothing.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use meshfed_federation::discovery::client::RemoteState;
use meshfed_federation::names::PeerName;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::PeerCache;
use crate::hub::Seen;

/// Between two changes of the services.
const SERVICES_PAUSE: Duration = Duration::from_millis(20);
/// Between two changes of times and connections alone.
const TIMES_PAUSE: Duration = Duration::from_millis(250);
/// Between two writes to disk.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// How exact the time of the last contact on disk is.
const CONTACT_STEP: SignedDuration = SignedDuration::from_secs(30);

pub(super) struct Publishing {
    name: PeerName,
    seen: Seen,
    cache: PeerCache,
    state: Arc<RemoteState>,
    published_at: Option<Instant>,
    publish_due: Option<Instant>,
    stored_at: Option<Instant>,
    store_due: Option<Instant>,
    stored_contact: Option<Timestamp>,
    /// One at a time, so that an older list never replaces a newer one.
    writing: Option<JoinHandle<()>>,
}

impl Publishing {
    pub fn new(name: PeerName, seen: Seen, cache: PeerCache) -> Self {
        Self {
            name,
            seen,
            cache,
            state: Arc::default(),
            published_at: None,
            publish_due: None,
            stored_at: None,
            store_due: None,
            stored_contact: None,
            writing: None,
        }
    }

    /// `services`: they are others too.
    pub fn changed(&mut self, state: &Arc<RemoteState>, services: bool) {
        self.state = state.clone();
        let now = Instant::now();
        let pause = if services {
            SERVICES_PAUSE
        } else {
            TIMES_PAUSE
        };
        let due = self.published_at.map_or(now, |at| at + pause);
        let due = self.publish_due.map_or(due, |before| before.min(due));
        self.publish_due = Some(due);
        let stale = match (self.stored_contact, state.last_contact) {
            (Some(stored), Some(contact)) => contact.duration_since(stored) >= CONTACT_STEP,
            (None, contact) => contact.is_some(),
            (Some(_), None) => false,
        };
        if services {
            self.stored_contact = None;
        }
        if (services || stale) && self.store_due.is_none() {
            self.store_due = Some(self.stored_at.map_or(now, |at| at + STORE_PAUSE));
        }
        self.publish(now);
    }

    /// Resolves after something that was due has been done.
    pub async fn due(&mut self) {
        if let Some(at) = self.publish_due
            && self.store_due.is_none_or(|store| at <= store)
        {
            sleep_until(at).await;
            self.publish(Instant::now());
        } else if let Some(at) = self.store_due {
            sleep_until(at).await;
            if let Some(writing) = &mut self.writing {
                let _panic_was_reported = writing.await;
                self.writing = None;
            }
            self.store();
        } else {
            std::future::pending().await
        }
    }

    fn publish(&mut self, now: Instant) {
        if self.publish_due.is_some_and(|due| due <= now) {
            self.publish_due = None;
            self.published_at = Some(now);
            self.seen.remote(self.name.as_str(), self.state.clone());
        }
    }

    fn store(&mut self) {
        self.store_due = None;
        self.stored_at = Some(Instant::now());
        let whole = self.stored_contact.is_none();
        self.stored_contact = self.state.last_contact;
        let (cache, name, state) = (self.cache.clone(), self.name.clone(), self.state.clone());
        self.writing = Some(tokio::task::spawn_blocking(move || {
            if whole {
                cache.store(&name, &state.services);
            }
            if let Some(at) = state.last_contact {
                cache.touch(&name, at);
            }
        }));
    }
}
