//! When to ask for the whole list, and what to do with the events that come meanwhile.

use std::time::Duration;

use super::{ClientSettings, Failure, RemoteError, RequestId};
use crate::discovery::message::{WatchEvent, decode_list};
use crate::discovery::remote::RemoteServices;
use crate::moment::Moment;

/// Bytes of events that are remembered while a list is on its way.
const MAX_WAITING_BYTES: usize = 4 << 20;

#[derive(Debug)]
pub(super) struct Sync {
    running: Option<Running>,
    /// When to ask next; `MAX` for never.
    next_at: Duration,
    last_end: Duration,
    /// Since when every answer has been 400.
    unknown_since: Option<Duration>,
    /// Since when the list has been empty that was not before.
    empty_since: Option<Duration>,
    /// Events since the list was asked for. They have been applied; if the list turns out to be
    /// older than they are, they are applied again.
    waiting: Vec<WatchEvent>,
    waiting_bytes: usize,
}

#[derive(Debug)]
struct Running {
    id: RequestId,
    deadline: Duration,
    body: Vec<u8>,
}

/// How a list that arrived in full was taken.
pub(super) enum ListEnd {
    /// It belongs to a request that was given up.
    NotOurs,
    Refused(RemoteError),
    /// Its services, and whether it carries their checksum.
    Good(Box<RemoteServices>, bool),
}

impl Default for Sync {
    fn default() -> Self {
        Self {
            running: None,
            next_at: Duration::MAX,
            last_end: Duration::ZERO,
            unknown_since: None,
            empty_since: None,
            waiting: Vec::new(),
            waiting_bytes: 0,
        }
    }
}

impl Sync {
    pub fn wake_at(&self) -> Duration {
        match &self.running {
            Some(running) => running.deadline,
            None => self.next_at,
        }
    }

    pub fn is_due(&self, now: Moment) -> bool {
        self.running.is_none() && self.next_at <= now.elapsed
    }

    pub fn begin(&mut self, id: RequestId, deadline: Duration) {
        self.next_at = Duration::MAX;
        self.forget_waiting();
        self.running = Some(Running {
            id,
            deadline,
            body: Vec::new(),
        });
    }

    /// A list that is asked for from now on is needed; one on its way is not enough.
    pub fn want_now(&mut self) {
        self.next_at = Duration::ZERO;
    }

    /// A list is needed; one on its way will do, as the events are compared with it.
    pub fn want_soon(&mut self, now: Moment, settings: &ClientSettings) {
        if self.running.is_none() {
            let earliest = self.last_end + settings.list_retry;
            self.want_at(earliest.max(now.elapsed));
        }
    }

    pub fn want_at(&mut self, at: Duration) {
        self.next_at = self.next_at.min(at);
    }

    /// Gives up a request that takes too long.
    pub fn timed_out(&mut self, now: Moment) -> Option<RequestId> {
        let late = self.running.take_if(|r| r.deadline <= now.elapsed);
        late.map(|running| running.id)
    }

    /// Forgets what is on its way. Returns the request to cancel.
    pub fn reset(&mut self) -> Option<RequestId> {
        let running = self.running.take();
        *self = Self::default();
        running.map(|r| r.id)
    }

    /// Bytes of the list. False, and the request is given up, if they are more than `limit`.
    pub fn push(&mut self, id: RequestId, chunk: &[u8], limit: usize) -> bool {
        let Some(running) = self.running.as_mut().filter(|r| r.id == id) else {
            return true;
        };
        if running.body.len() + chunk.len() > limit {
            self.running = None;
            return false;
        }
        running.body.extend_from_slice(chunk);
        true
    }

    /// Whether this was the running request; it is no more.
    pub fn abandon(&mut self, id: RequestId) -> bool {
        self.running.take_if(|r| r.id == id).is_some()
    }

    pub fn finish(&mut self, id: RequestId, settings: &ClientSettings) -> ListEnd {
        let Some(running) = self.running.take_if(|r| r.id == id) else {
            return ListEnd::NotOurs;
        };
        let received = match decode_list(&running.body, &settings.limits) {
            Ok(received) => received,
            Err(error) => return ListEnd::Refused(RemoteError::Unreadable(error)),
        };
        let checksum = received.list.checksum;
        match RemoteServices::check(received, &settings.limits) {
            Ok(services) => {
                let agrees = services.agrees_with(checksum);
                ListEnd::Good(Box::new(services), agrees)
            }
            Err(fault) => ListEnd::Refused(RemoteError::Refused(fault)),
        }
    }

    /// Whether the list counts. A list that is suddenly empty does after it stayed so.
    pub fn succeeded(&mut self, emptied: bool, now: Moment, settings: &ClientSettings) -> bool {
        self.last_end = now.elapsed;
        self.unknown_since = None;
        self.want_at(now.elapsed + settings.resync);
        if !emptied {
            self.empty_since = None;
            return true;
        }
        let since = *self.empty_since.get_or_insert(now.elapsed);
        let believed_at = since + settings.hold_empty;
        if now.elapsed >= believed_at {
            self.empty_since = None;
            return true;
        }
        self.want_at(believed_at);
        false
    }

    /// The request failed. True if the peer has answered 400 for long enough to mean it.
    ///
    /// A 400 comes from the peer's control plane, through TLS that proved both ends: our own egress
    /// and the peer's ingress answer failures of their own with other codes.
    pub fn failed(
        &mut self,
        failure: &Failure,
        connected: bool,
        now: Moment,
        settings: &ClientSettings,
    ) -> bool {
        self.last_end = now.elapsed;
        let unknown = matches!(failure, Failure::Status(400, _));
        let since = if unknown {
            *self.unknown_since.get_or_insert(now.elapsed)
        } else {
            self.unknown_since = None;
            now.elapsed
        };
        let withdrawn = unknown && now.elapsed.saturating_sub(since) >= settings.withdrawal;
        let retry_soon = connected || (unknown && !withdrawn);
        self.want_at(
            now.elapsed
                + if retry_soon && !withdrawn {
                    settings.list_retry
                } else {
                    settings.resync
                },
        );
        withdrawn
    }

    /// The list was read and is bad.
    pub fn refused(&mut self, now: Moment, settings: &ClientSettings) {
        self.last_end = now.elapsed;
        self.unknown_since = None;
        self.want_at(now.elapsed + settings.resync);
    }

    /// Remembers events that come while a list is on its way.
    pub fn note(&mut self, events: &[WatchEvent], bytes: usize) {
        if self.running.is_none() {
            return;
        }
        self.waiting_bytes += bytes;
        if self.waiting_bytes > MAX_WAITING_BYTES {
            self.waiting = Vec::new();
            self.want_now();
        } else {
            self.waiting.extend_from_slice(events);
        }
    }

    /// The events that are not in `list` yet: those after the last one that left it as it is.
    pub fn waiting_after(&mut self, list: &RemoteServices) -> Vec<WatchEvent> {
        let mut waiting = std::mem::take(&mut self.waiting);
        let included = waiting
            .iter()
            .rposition(|event| list.agrees_with(event.checksum));
        waiting.drain(..included.map_or(0, |last| last + 1));
        waiting
    }

    fn forget_waiting(&mut self) {
        self.waiting = Vec::new();
        self.waiting_bytes = 0;
    }
}
