//! When to ask for the whole list, and what to do with the events that come meanwhile.

use std::time::Duration;

use super::{ClientSettings, Failure, RemoteError, RequestId};
use crate::discovery::message::{WatchEvent, decode_list};
use crate::discovery::remote::RemoteServices;
use crate::moment::Moment;

/// Bytes of events that are remembered while a list is on its way.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// For how long a request that fails is repeated soon; then it is part of every resync period.
const PERSISTENCE: Duration = Duration::from_secs(120);
/// A failure that lasts this long is told, and is not one of those that pass by themselves.
const LASTING: Duration = Duration::from_secs(10);
/// Lists that the peer makes us ask for take at most one part in this of the time, and one more.
const SHARE: u32 = 4;
/// Of the time in which nothing of an answer has come, this counts at most: it is no work for us, and a peer
/// that stood still is to be heard again soon.
const WAIT_THAT_COUNTS: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Sync {
    running: Option<Running>,
    /// When to ask next; `MAX` for never.
    next_at: Duration,
    /// A list that is asked for from now on is needed.
    anew: bool,
    /// A list was needed while one was on its way.
    wanted_meanwhile: bool,
    last_end: Duration,
    /// How long the last list took, however it ended; nothing if there was none in the answer.
    last_took: Duration,
    /// Since when every request has failed.
    failing_since: Option<Duration>,
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
    begun: Duration,
    deadline: Duration,
    /// When it is given up unless something comes.
    idle_deadline: Duration,
    /// When it was answered with 200.
    answered: Option<Duration>,
    body: Vec<u8>,
}

/// A request that is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub id: RequestId,
    pub begun: Duration,
    /// It was answered with 200.
    pub answered: bool,
}

impl From<Running> for Ended {
    fn from(running: Running) -> Self {
        Self {
            id: running.id,
            begun: running.begun,
            answered: running.answered.is_some(),
        }
    }
}

/// What follows from a request that failed.
pub(super) struct Failed {
    /// The peer has answered 400 for long enough to mean it.
    pub withdrawn: bool,
    /// It has been so for some time.
    pub lasting: bool,
}

/// Events that came while a list was on its way, in their order.
pub(super) struct Meanwhile {
    /// Up to the last one that left the list as it is. As health is no part of the checksum, they
    /// may tell of it what the list does not have yet.
    pub included: Vec<WatchEvent>,
    /// The list does not have them.
    pub later: Vec<WatchEvent>,
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
            anew: false,
            wanted_meanwhile: false,
            last_end: Duration::ZERO,
            last_took: Duration::ZERO,
            failing_since: None,
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
            Some(running) => running.deadline.min(running.idle_deadline),
            None => self.due_at(),
        }
    }

    pub fn is_due(&self, now: Moment) -> bool {
        self.running.is_none() && self.due_at() <= now.elapsed
    }

    fn due_at(&self) -> Duration {
        if self.anew {
            self.next_at.min(self.last_end + self.share())
        } else {
            self.next_at
        }
    }

    /// The time that belongs to others after a list.
    fn share(&self) -> Duration {
        self.last_took * SHARE
    }

    /// The request was answered with 200. False if it is not the running one.
    pub fn opened(&mut self, id: RequestId, now: Moment) -> bool {
        let running = self.running.as_mut().filter(|r| r.id == id);
        running.map(|r| r.answered = Some(now.elapsed)).is_some()
    }

    pub fn begin(&mut self, id: RequestId, now: Moment, settings: &ClientSettings) {
        self.next_at = Duration::MAX;
        self.anew = false;
        self.wanted_meanwhile = false;
        self.forget_waiting();
        self.running = Some(Running {
            id,
            begun: now.elapsed,
            deadline: now.elapsed + settings.list_timeout,
            idle_deadline: now.elapsed + settings.list_idle,
            answered: None,
            body: Vec::new(),
        });
    }

    /// A list that is asked for from now on is needed; one on its way is not enough.
    pub fn want_anew(&mut self) {
        self.anew = true;
    }

    /// Nothing has happened since the last list was asked for that it may lack.
    pub fn is_enough(&self) -> bool {
        !self.anew
    }

    /// A list is needed; one on its way will do if it is good, as the events are compared with it.
    pub fn want_soon(&mut self, now: Moment, settings: &ClientSettings) {
        if self.running.is_some() {
            self.wanted_meanwhile = true;
        } else {
            let pause = settings.list_retry.max(self.share());
            self.want_at((self.last_end + pause).max(now.elapsed));
        }
    }

    /// A request is needed that begins from now on, as it has something to tell.
    pub fn want_to_tell(&mut self, now: Moment, settings: &ClientSettings) {
        let since = if self.running.is_some() {
            now.elapsed
        } else {
            self.last_end
        };
        let pause = settings.list_retry.max(self.share());
        self.want_at((since + pause).max(now.elapsed));
    }

    /// The time for which an empty list is held, or from one list to the next, may be another one.
    pub fn times_changed(&mut self, settings: &ClientSettings) {
        if self.running.is_none() && self.next_at != Duration::MAX {
            self.want_at(self.last_end + settings.resync);
        }
        if let Some(since) = self.empty_since {
            self.want_at(since + settings.hold_empty);
        }
    }

    pub fn want_at(&mut self, at: Duration) {
        self.next_at = self.next_at.min(at);
    }

    /// Gives up a request that takes too long.
    pub fn timed_out(&mut self, now: Moment) -> Option<Ended> {
        let late = |r: &mut Running| r.deadline.min(r.idle_deadline) <= now.elapsed;
        let running = self.running.take_if(late)?;
        self.end(&running, now);
        Some(running.into())
    }

    fn end(&mut self, running: &Running, now: Moment) {
        self.last_end = now.elapsed;
        self.last_took = running.answered.map_or(Duration::ZERO, |answered| {
            let waited = answered.saturating_sub(running.begun);
            waited.min(WAIT_THAT_COUNTS) + now.elapsed.saturating_sub(answered)
        });
    }

    /// Forgets what is on its way. Returns the request to cancel.
    pub fn reset(&mut self) -> Option<RequestId> {
        let running = self.running.take();
        *self = Self::default();
        running.map(|r| r.id)
    }

    /// Bytes of the list. False, and the request is given up, if they are more than `limit`.
    pub fn push(
        &mut self,
        id: RequestId,
        chunk: &[u8],
        now: Moment,
        settings: &ClientSettings,
    ) -> bool {
        let limit = settings.limits.list_bytes;
        let Some(running) = self.running.as_mut().filter(|r| r.id == id) else {
            return true;
        };
        if running.body.len() + chunk.len() > limit {
            self.abandon(id, now);
            return false;
        }
        running.idle_deadline = now.elapsed + settings.list_idle;
        running.answered.get_or_insert(now.elapsed);
        running.body.extend_from_slice(chunk);
        true
    }

    /// If this was the running request, it is no more.
    pub fn abandon(&mut self, id: RequestId, now: Moment) -> Option<Ended> {
        let running = self.running.take_if(|r| r.id == id)?;
        self.end(&running, now);
        Some(running.into())
    }

    /// `extended`: the peer announces the extension, so that what it says of health counts.
    pub fn finish(
        &mut self,
        id: RequestId,
        extended: bool,
        now: Moment,
        settings: &ClientSettings,
    ) -> ListEnd {
        let Some(running) = self.running.take_if(|r| r.id == id) else {
            return ListEnd::NotOurs;
        };
        self.end(&running, now);
        let received = match decode_list(&running.body, &settings.limits) {
            Ok(received) => received,
            Err(error) => return ListEnd::Refused(RemoteError::Unreadable(error)),
        };
        let checksum = received.list.checksum;
        match RemoteServices::check(received, &settings.limits) {
            Ok(services) => {
                let services = if extended || !services.has_health() {
                    services
                } else {
                    services.without_health()
                };
                let agrees = services.agrees_with(checksum);
                ListEnd::Good(Box::new(services), agrees)
            }
            Err(fault) => ListEnd::Refused(RemoteError::Refused(fault)),
        }
    }

    /// Whether the list counts. A list that is suddenly empty does after it stayed so.
    pub fn succeeded(&mut self, emptied: bool, now: Moment, settings: &ClientSettings) -> bool {
        self.unknown_since = None;
        self.failing_since = None;
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
        self.want_if_missed(now, settings);
        false
    }

    /// The request failed.
    ///
    /// A 400 comes from the peer's control plane, through TLS that proved both ends: our own egress
    /// and the peer's ingress answer failures of their own with other codes.
    pub fn failed(
        &mut self,
        failure: &Failure,
        connected: bool,
        now: Moment,
        settings: &ClientSettings,
    ) -> Failed {
        self.empty_since = None;
        let unknown = matches!(failure, Failure::Status(400, _));
        if !unknown {
            self.unknown_since = None;
        }
        let lasts = |since: Duration| now.elapsed.saturating_sub(since);
        let failing = lasts(*self.failing_since.get_or_insert(now.elapsed));
        let withdrawn =
            unknown && lasts(*self.unknown_since.get_or_insert(now.elapsed)) >= settings.withdrawal;
        let retry_soon = !withdrawn && (unknown || connected) && failing < PERSISTENCE;
        let pause = if retry_soon {
            settings.list_retry
        } else {
            settings.resync
        };
        self.want_at(now.elapsed + pause);
        self.want_if_missed(now, settings);
        Failed {
            withdrawn,
            lasting: failing >= LASTING,
        }
    }

    /// Nothing was heard of the peer for a time, so that an empty list did not stay empty.
    pub fn forget_empty(&mut self) {
        self.empty_since = None;
    }

    /// The list was read and is bad.
    pub fn refused(&mut self, now: Moment, settings: &ClientSettings) {
        self.empty_since = None;
        self.unknown_since = None;
        self.failing_since = None;
        self.want_at(now.elapsed + settings.resync);
        self.want_if_missed(now, settings);
    }

    /// The list on its way that would have done was none.
    fn want_if_missed(&mut self, now: Moment, settings: &ClientSettings) {
        if std::mem::take(&mut self.wanted_meanwhile) {
            self.want_soon(now, settings);
        }
    }

    /// Remembers events that come while a list is on its way.
    pub fn note(&mut self, events: &[WatchEvent], bytes: usize) {
        if self.running.is_none() {
            return;
        }
        self.waiting_bytes += bytes;
        if self.waiting_bytes > MAX_WAITING_BYTES {
            self.waiting = Vec::new();
            self.want_anew();
        } else {
            self.waiting.extend_from_slice(events);
        }
    }

    /// The events that came while `list` was on its way.
    pub fn meanwhile(&mut self, list: &RemoteServices) -> Meanwhile {
        let mut included = std::mem::take(&mut self.waiting);
        let agrees = |event: &WatchEvent| list.agrees_with(event.checksum);
        let count = included.iter().rposition(agrees).map_or(0, |last| last + 1);
        let later = included.split_off(count);
        Meanwhile { included, later }
    }

    fn forget_waiting(&mut self) {
        self.waiting = Vec::new();
        self.waiting_bytes = 0;
    }
}
