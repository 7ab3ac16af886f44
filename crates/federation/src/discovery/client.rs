//! The importing side: what we know of one peer.
//!
//! One [`Client`] per peer. The shell does the requests that it asks for, reports what comes back,
//! and calls [`Client::tick`] at [`Client::wake_at`]. Each request has an id; what is reported for one
//! that is over is ignored.
//!
//! ```text
//! tick -> OpenWatch -> watch_opened -> GetList -> list_done -> events apply to the list
//!            ^             |                         ^    |
//!            |   watch_closed, backoff               |    +- every resync period
//!            +-------------+                         +------ checksum mismatch, event without service
//! ```
//!
//! What a watch or a list takes is bounded: bytes, entries, events, and time where the protocol has an
//! end. What goes beyond is told in the state, and asked for again a resync period later.
//!
//! A way that fell silent tells nobody, so the lists are also what shows that it is there: when one
//! is not answered, and the watch has nothing to say either, the watch is opened anew. So it is when a list
//! has changed and no event tells of it, not even some time later: such a watch brings nothing.
//!
//! The last good list stays when the peer is away or sends nonsense. It goes when the peer says so:
//! by events, by a list, or by answering `services` with 400 for some time, which is how a peer
//! that no longer knows us answers.

mod allowance;
mod backoff;
mod request;
mod state;
mod sync;
mod taking;

use std::sync::Arc;
use std::time::Duration;

pub use request::{Action, AnsweredBy, Failure, RequestId};
pub use state::{FaultKind, RemoteError, RemoteState, WatchState};

use self::allowance::Allowance;
use self::backoff::Backoff;
use self::sync::{Ended, Sync};
use super::extension::{ANNOUNCE_HEADER, ANNOUNCED, REPORT_HEADER, Report};
use super::message::{DecodeError, EventDecoder, Limits};
use crate::moment::Moment;
use crate::names::{ServiceKey, clip};
use crate::plan::PeerSettings;

/// Times and bounds of one [`Client`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSettings {
    pub limits: Limits,
    /// From one full list to the next while nothing else asks for one. Default 60 s.
    pub resync: Duration,
    /// From a failed request for the list to the next one, and the least time between two lists that
    /// events ask for. Default 1 s.
    pub list_retry: Duration,
    /// For the whole answer to `services`. Default 60 s.
    pub list_timeout: Duration,
    /// Between two pieces of that answer. Default 15 s.
    pub list_idle: Duration,
    /// For the head of the answer to `watch`. Default 10 s.
    pub watch_timeout: Duration,
    /// For how long every answer to `services` must have been 400 until it counts as "nothing is
    /// exported any more". Default 10 s.
    pub withdrawal: Duration,
    /// For how long a list that is suddenly empty is held back. Default 30 s.
    pub hold_empty: Duration,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            resync: PeerSettings::default().resync_period,
            list_retry: Duration::from_secs(1),
            list_timeout: Duration::from_secs(60),
            list_idle: Duration::from_secs(15),
            watch_timeout: Duration::from_secs(10),
            withdrawal: Duration::from_secs(10),
            hold_empty: Duration::from_secs(30),
        }
    }
}

impl ClientSettings {
    /// With what is set for one peer.
    #[must_use]
    pub fn with_peer(self, settings: &PeerSettings) -> Self {
        Self {
            limits: Limits {
                services: settings.max_services,
                list_bytes: settings.max_list_bytes,
                ..self.limits
            },
            hold_empty: settings.hold_empty_list,
            resync: settings.resync_period,
            ..self
        }
    }
}

/// A watch that lasted less than this is not reopened without a delay.
const SHORT_WATCH: Duration = Duration::from_secs(1);
/// A peer that calls us is called back, but not before this after the last attempt.
const CALL_BACK: Duration = Duration::from_secs(1);
/// An event may come this long after the list that has its change already: it takes another way.
const LATE_EVENT: Duration = Duration::from_secs(10);
const ENDED: &str = "the peer ended the watch";

/// What is imported of a peer's services, to be reported to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    pub count: u32,
    /// The first of them, by the names that the peer gave them.
    pub services: Vec<ServiceKey>,
}

/// The state of discovery from one peer.
#[derive(Debug)]
pub struct Client {
    settings: ClientSettings,
    state: Arc<RemoteState>,
    watch: Watch,
    backoff: Backoff,
    sync: Sync,
    allowance: Allowance,
    /// When the fault of the last watch is forgotten, unless it comes again.
    watch_error_until: Duration,
    /// When the peer was last heard, on the monotonic clock; `None`: in an earlier life of ours.
    heard: Option<Duration>,
    imported: Arc<Imported>,
    next_request: u64,
    actions: Vec<Action>,
}

#[derive(Debug)]
enum Watch {
    Closed {
        retry_at: Duration,
        /// Not before this, even if the peer calls; `MAX` for what the peer did wrong itself.
        call_back_at: Duration,
    },
    Opening {
        id: RequestId,
        deadline: Duration,
    },
    Open {
        id: RequestId,
        since: Duration,
        /// When the last bytes came.
        heard_at: Duration,
        /// A list was answered since it was opened, so the way was good.
        proven: bool,
        /// A list was taken since it was opened, and every event since then agreed with ours.
        in_step: bool,
        /// A list has changed without an event. The watch is given up at this time unless one comes;
        /// `MAX` for never.
        silent_until: Duration,
        decoder: EventDecoder,
    },
}

/// When to open the watch again.
enum Reopen {
    AtOnceIfItLasted,
    /// By the back-off.
    Later,
    After(Duration),
}

impl Client {
    /// `seed` drives the jitter of the backoff. `kept` is what is known from an earlier life.
    pub fn new(settings: ClientSettings, seed: u64, kept: RemoteState) -> Self {
        Self {
            allowance: Allowance::new(&settings.limits, Duration::ZERO),
            watch_error_until: Duration::MAX,
            heard: None,
            imported: Arc::default(),
            settings,
            state: Arc::new(kept),
            watch: Watch::Closed {
                retry_at: Duration::ZERO,
                call_back_at: Duration::ZERO,
            },
            backoff: Backoff::new(seed),
            sync: Sync::default(),
            next_request: 0,
            actions: Vec::new(),
        }
    }

    /// What is known of the peer.
    pub fn state(&self) -> &Arc<RemoteState> {
        &self.state
    }

    /// Other times and bounds from now on. What is connected stays so; a list that was refused is
    /// asked for again.
    pub fn set_settings(&mut self, settings: ClientSettings, now: Moment) -> Vec<Action> {
        if settings != self.settings {
            self.settings = settings;
            if let Watch::Open { decoder, .. } = &mut self.watch {
                decoder.set_limits(settings.limits);
            }
            self.sync.times_changed(&settings);
            if self.state.error.is_some() {
                self.sync.want_soon(now, &settings);
            }
        }
        self.tick(now)
    }

    /// What is imported of the peer's services. A peer with the extension is told soon.
    pub fn set_imported(&mut self, imported: &Arc<Imported>, now: Moment) -> Vec<Action> {
        if self.imported != *imported {
            self.imported = imported.clone();
            self.want_to_tell(now);
        }
        self.tick(now)
    }

    /// Nobody is told who does not understand it, or is away. Who was cut off is there.
    fn want_to_tell(&mut self, now: Moment) {
        let watch = &self.state.watch;
        if self.state.extended && (watch.connected || watch.error.is_some()) {
            self.sync.want_to_tell(now, &self.settings);
        }
    }

    /// The peer's control plane was heard.
    fn hear(&mut self, now: Moment) {
        self.heard = Some(now.elapsed);
        self.change(false, |state| state.last_contact = Some(now.wall));
    }

    /// When the wall clock is set back, a contact stays as long ago as it is.
    fn go_by_clock(&mut self, now: Moment) {
        if self.state.last_contact.is_some_and(|at| at > now.wall) {
            let ago = |heard| now.elapsed.saturating_sub(heard);
            let ago = self.heard.map_or(Duration::ZERO, ago);
            let contact = now.wall.checked_sub(ago).unwrap_or(now.wall);
            self.change(false, |state| state.last_contact = Some(contact));
        }
    }

    /// Request headers beyond those of the reference, for a watch.
    pub fn watch_headers(&self) -> Vec<(&'static str, String)> {
        let announce = (ANNOUNCE_HEADER, ANNOUNCED.to_owned());
        if self.state.extended {
            vec![announce, (REPORT_HEADER, self.report().encode())]
        } else {
            vec![announce]
        }
    }

    /// Request headers beyond those of the reference, for the list.
    pub fn list_headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = self.watch_headers();
        if self.state.extended {
            headers.push(("if-none-match", self.state.services.tag().to_string()));
        }
        headers
    }

    fn report(&self) -> Report {
        Report {
            imported: self.imported.count,
            services: self.imported.services.clone(),
            last_sync: self.state.last_full_sync,
            error: self.state.fault().map(ToString::to_string),
        }
    }

    /// When [`tick`](Self::tick) has something to do, on the monotonic clock.
    pub fn wake_at(&self) -> Duration {
        let watch = match &self.watch {
            Watch::Closed { retry_at, .. } => *retry_at,
            Watch::Opening { deadline, .. } => *deadline,
            Watch::Open { silent_until, .. } => *silent_until,
        };
        watch.min(self.sync.wake_at()).min(self.watch_error_until)
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Moment) -> Vec<Action> {
        self.go_by_clock(now);
        match &self.watch {
            Watch::Closed { retry_at, .. } if *retry_at <= now.elapsed => {
                let id = self.request_id();
                self.watch = Watch::Opening {
                    id,
                    deadline: now.elapsed + self.settings.watch_timeout,
                };
                self.actions.push(Action::OpenWatch(id));
            }
            Watch::Opening { id, deadline } if *deadline <= now.elapsed => {
                let id = *id;
                self.actions.push(Action::Cancel(id));
                let cause = Failure::Transport("no answer in time".to_owned());
                self.watch_failed(&cause, now);
            }
            Watch::Open {
                id, silent_until, ..
            } if *silent_until <= now.elapsed => {
                self.actions.push(Action::Cancel(*id));
                self.watch_brings_nothing(now);
            }
            _ => {}
        }
        if let Some(ended) = self.sync.timed_out(now) {
            self.actions.push(Action::Cancel(ended.id));
            let late = "it did not arrive in time, or too slowly".to_owned();
            self.list_late(late, ended, now);
        }
        if self.sync.is_due(now) {
            let id = self.request_id();
            self.sync.begin(id, now, &self.settings);
            self.actions.push(Action::GetList(id));
        }
        if self.watch_error_until <= now.elapsed {
            self.watch_error_until = Duration::MAX;
            self.change(false, |state| state.watch.error = None);
            self.want_to_tell(now);
        }
        std::mem::take(&mut self.actions)
    }

    /// The watch was answered with 200. `extended`: the answer announces the extension.
    pub fn watch_opened(&mut self, id: RequestId, extended: bool, now: Moment) -> Vec<Action> {
        if matches!(&self.watch, Watch::Opening { id: current, .. } if *current == id) {
            self.watch = Watch::Open {
                id,
                since: now.elapsed,
                heard_at: now.elapsed,
                proven: false,
                in_step: false,
                silent_until: Duration::MAX,
                decoder: EventDecoder::new(self.settings.limits),
            };
            self.backoff.arrived();
            self.sync.want_anew();
            self.set_extended(extended);
            self.change(false, |state| {
                state.watch.connected = true;
                state.watch.last_connected = Some(now.wall);
            });
        }
        self.tick(now)
    }

    /// Bytes of the watch's body.
    pub fn watch_data(&mut self, id: RequestId, chunk: &[u8], now: Moment) -> Vec<Action> {
        let Watch::Open {
            id: current,
            decoder,
            heard_at,
            silent_until,
            ..
        } = &mut self.watch
        else {
            return self.tick(now);
        };
        if *current != id {
            return self.tick(now);
        }
        *heard_at = now.elapsed;
        *silent_until = Duration::MAX;
        let mut events = Vec::new();
        let result = decoder.push(chunk, &mut events);
        let limits = &self.settings.limits;
        let spent = self
            .allowance
            .spend(events.len(), chunk.len(), limits, now.elapsed);
        if !events.is_empty() {
            self.sync.note(&events, chunk.len());
            self.hear(now);
            self.change(false, |state| state.watch.last_event = Some(now.wall));
            self.apply(events, now);
        }
        let error = match result {
            Err(error) => Some(RemoteError::Unreadable(error)),
            Ok(()) if !spent => Some(RemoteError::TooManyEvents),
            Ok(()) => None,
        };
        if let Some(error) = error {
            // A new watch will hardly be better, so it is not opened as fast as after a failure.
            self.actions.push(Action::Cancel(id));
            let resync = self.settings.resync;
            self.watch_ended(&clip(&error.to_string()), Reopen::After(resync), now);
            if let Watch::Closed { call_back_at, .. } = &mut self.watch {
                *call_back_at = Duration::MAX;
            }
            self.blame_watch(error, now);
        }
        self.tick(now)
    }

    /// The watch ended: `None` if its body ended cleanly.
    pub fn watch_closed(
        &mut self,
        id: RequestId,
        failure: Option<&Failure>,
        now: Moment,
    ) -> Vec<Action> {
        match &self.watch {
            Watch::Open { id: current, .. } if *current == id && failure.is_none() => {
                self.watch_ended(ENDED, Reopen::AtOnceIfItLasted, now);
            }
            Watch::Open { id: current, .. } | Watch::Opening { id: current, .. }
                if *current == id =>
            {
                let early_end = Failure::Transport(ENDED.to_owned());
                self.watch_failed(failure.unwrap_or(&early_end), now);
            }
            _ => {}
        }
        self.tick(now)
    }

    /// `services` was answered with 200. `extended`: the answer announces the extension.
    pub fn list_opened(&mut self, id: RequestId, extended: bool, now: Moment) -> Vec<Action> {
        if self.sync.opened(id, now) {
            self.way_is_good();
            self.set_extended(extended);
        }
        self.tick(now)
    }

    /// Bytes of the list's body, after a 200.
    pub fn list_data(&mut self, id: RequestId, chunk: &[u8], now: Moment) -> Vec<Action> {
        if !self.sync.push(id, chunk, now, &self.settings) {
            self.actions.push(Action::Cancel(id));
            let limit = self.settings.limits.list_bytes;
            let error = DecodeError::ListTooLong { limit };
            self.list_refused(RemoteError::Unreadable(error), now);
        }
        self.tick(now)
    }

    /// The request for the list ended: `None` if its body ended cleanly after a 200.
    pub fn list_done(
        &mut self,
        id: RequestId,
        failure: Option<&Failure>,
        now: Moment,
    ) -> Vec<Action> {
        self.list_ended(id, failure, now);
        self.tick(now)
    }

    /// The peer is to be reached in another way from now on: begin anew, keeping what it exports.
    pub fn restart(&mut self, now: Moment) -> Vec<Action> {
        if let Watch::Opening { id, .. } | Watch::Open { id, .. } = &self.watch {
            self.actions.push(Action::Cancel(*id));
            let changed = "the way to the peer was changed";
            self.watch_ended(changed, Reopen::After(Duration::ZERO), now);
        }
        if let Some(id) = self.sync.reset() {
            self.actions.push(Action::Cancel(id));
        }
        self.backoff.begin();
        self.watch = Watch::Closed {
            retry_at: now.elapsed,
            call_back_at: now.elapsed,
        };
        self.tick(now)
    }

    /// The peer has called us, so it is there, and there is nothing to wait for.
    pub fn peer_called(&mut self, now: Moment) -> Vec<Action> {
        if let Watch::Closed {
            retry_at,
            call_back_at,
        } = &mut self.watch
        {
            *retry_at = (*retry_at).min((*call_back_at).max(now.elapsed));
        }
        self.tick(now)
    }

    fn way_is_good(&mut self) {
        if let Watch::Open { proven, .. } = &mut self.watch {
            *proven = true;
        }
    }

    /// A list was not answered. If the watch was silent since it was asked for, although the way
    /// was good once, it is opened anew; true then.
    fn doubt_watch(&mut self, ended: Ended, now: Moment) -> bool {
        match &self.watch {
            Watch::Open {
                id,
                heard_at,
                proven: true,
                ..
            } if !ended.answered && *heard_at < ended.begun => {
                self.actions.push(Action::Cancel(*id));
                let silent = "the way to the peer is silent: its list was not answered";
                self.watch_failed(&Failure::Transport(silent.to_owned()), now);
                true
            }
            _ => false,
        }
    }

    /// The watch is open and useless, which may be a matter of the way, so a new one is tried.
    fn watch_brings_nothing(&mut self, now: Moment) {
        let error = RemoteError::SilentWatch;
        self.watch_failed(&Failure::Transport(error.to_string()), now);
        self.blame_watch(error, now);
    }

    /// Says what was wrong with the watch until another one has lasted.
    fn blame_watch(&mut self, error: RemoteError, now: Moment) {
        self.watch_error_until = now.elapsed + 2 * self.settings.resync;
        if self.state.watch.error.as_ref() != Some(&error) {
            self.change(false, |state| state.watch.error = Some(error));
            self.want_to_tell(now);
        }
    }

    fn request_id(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    fn watch_failed(&mut self, failure: &Failure, now: Moment) {
        if matches!(failure, Failure::Status(400, _)) {
            self.sync.want_soon(now, &self.settings);
        }
        self.watch_ended(&failure.text(), Reopen::Later, now);
        self.change(false, |state| {
            state.watch.last_disconnect_cause = failure.says();
            state.watch.last_disconnect_by = failure.by();
        });
    }

    /// A peer that answers and ends the watch at once is as one that does not answer.
    fn watch_ended(&mut self, status: &str, again: Reopen, now: Moment) {
        let lasted = matches!(&self.watch, Watch::Open { since, .. }
            if now.elapsed.saturating_sub(*since) >= SHORT_WATCH);
        if lasted {
            self.backoff.reset();
        }
        let delay = match again {
            Reopen::AtOnceIfItLasted if lasted => Duration::ZERO,
            Reopen::AtOnceIfItLasted | Reopen::Later => self.backoff.next_delay(),
            Reopen::After(delay) => delay,
        };
        self.watch = Watch::Closed {
            retry_at: now.elapsed + delay,
            call_back_at: now.elapsed + CALL_BACK,
        };
        self.sync.forget_empty();
        self.sync.want_at(now.elapsed + self.settings.resync);
        self.change(false, |state| {
            // A contact of an earlier life of ours ends with the first attempt that fails.
            let was_in_contact = state.watch.connected
                || state.last_full_sync.is_none()
                    && state.last_contact.is_some()
                    && state.watch.last_disconnect.is_none();
            state.watch.connected = false;
            if was_in_contact {
                state.watch.last_disconnect = Some(now.wall);
            }
            state.watch.last_disconnect_status = Some(status.to_owned());
            state.watch.last_disconnect_cause = None;
            state.watch.last_disconnect_by = AnsweredBy::Unknown;
        });
    }

    fn change(&mut self, services: bool, edit: impl FnOnce(&mut RemoteState)) {
        edit(Arc::make_mut(&mut self.state));
        match self.actions.last_mut() {
            Some(Action::Changed { services: before }) => *before |= services,
            _ => self.actions.push(Action::Changed { services }),
        }
    }
}

#[cfg(test)]
mod tests;
