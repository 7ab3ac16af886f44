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
//! The last good list stays when the peer is away or sends nonsense. It goes when the peer says so:
//! by events, by a list, or by answering `services` with 400 for some time, which is how a peer
//! that no longer knows us answers.

mod backoff;
mod state;
mod sync;

use std::sync::Arc;
use std::time::Duration;

pub use state::{RemoteError, RemoteState, WatchState};

use self::backoff::Backoff;
use self::sync::{ListEnd, Sync};
use super::message::{Action as EventAction, DecodeError, EventDecoder, Limits, WatchEvent};
use super::remote::{RemoteFault, RemoteService, RemoteServices};
use crate::moment::Moment;
use crate::names::clip;

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
            resync: Duration::from_secs(60),
            list_retry: Duration::from_secs(1),
            list_timeout: Duration::from_secs(60),
            watch_timeout: Duration::from_secs(10),
            withdrawal: Duration::from_secs(10),
            hold_empty: Duration::from_secs(30),
        }
    }
}

/// A watch that lasted less than this is not reopened without a delay.
const SHORT_WATCH: Duration = Duration::from_secs(1);

/// Names one request of a [`Client`]. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// GET `/v1/watch`.
    OpenWatch(RequestId),
    /// GET `/v1/services/`.
    GetList(RequestId),
    /// Drop this request and its connection.
    Cancel(RequestId),
    /// [`Client::state`] is another one now; `services` tells whether the services changed too.
    Changed { services: bool },
}

/// Why a request ended without a good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// An answer other than 200: its code and reason.
    Status(u16, String),
    /// No answer, or it broke off: the cause in words.
    Transport(String),
}

impl Failure {
    fn text(&self) -> String {
        match self {
            Self::Status(code, reason) => clip(format!("{code} {reason}").trim_end()),
            Self::Transport(cause) => clip(cause),
        }
    }
}

/// The state of discovery from one peer.
#[derive(Debug)]
pub struct Client {
    settings: ClientSettings,
    state: Arc<RemoteState>,
    watch: Watch,
    backoff: Backoff,
    sync: Sync,
    next_request: u64,
    actions: Vec<Action>,
}

#[derive(Debug)]
enum Watch {
    Closed {
        retry_at: Duration,
    },
    Opening {
        id: RequestId,
        deadline: Duration,
    },
    Open {
        id: RequestId,
        since: Duration,
        decoder: EventDecoder,
    },
}

impl Client {
    /// `seed` drives the jitter of the backoff. `last_good` is what the peer exported when it was
    /// last heard, from disk.
    pub fn new(settings: ClientSettings, seed: u64, last_good: Arc<RemoteServices>) -> Self {
        Self {
            settings,
            state: Arc::new(RemoteState {
                services: last_good,
                ..RemoteState::default()
            }),
            watch: Watch::Closed {
                retry_at: Duration::ZERO,
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

    /// When [`tick`](Self::tick) has something to do, on the monotonic clock.
    pub fn wake_at(&self) -> Duration {
        let watch = match &self.watch {
            Watch::Closed { retry_at } => *retry_at,
            Watch::Opening { deadline, .. } => *deadline,
            Watch::Open { .. } => Duration::MAX,
        };
        watch.min(self.sync.wake_at())
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Moment) -> Vec<Action> {
        match &self.watch {
            Watch::Closed { retry_at } if *retry_at <= now.elapsed => {
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
            _ => {}
        }
        if let Some(id) = self.sync.timed_out(now) {
            self.actions.push(Action::Cancel(id));
            let cause = Failure::Transport("the list did not arrive in time".to_owned());
            self.list_failed(&cause, now);
        }
        if self.sync.is_due(now) {
            let id = self.request_id();
            self.sync
                .begin(id, now.elapsed + self.settings.list_timeout);
            self.actions.push(Action::GetList(id));
        }
        std::mem::take(&mut self.actions)
    }

    /// The watch was answered with 200.
    pub fn watch_opened(&mut self, id: RequestId, now: Moment) -> Vec<Action> {
        if matches!(&self.watch, Watch::Opening { id: current, .. } if *current == id) {
            self.watch = Watch::Open {
                id,
                since: now.elapsed,
                decoder: EventDecoder::new(self.settings.limits),
            };
            self.backoff.reset();
            self.sync.want_now();
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
            ..
        } = &mut self.watch
        else {
            return self.tick(now);
        };
        if *current != id {
            return self.tick(now);
        }
        let mut events = Vec::new();
        let result = decoder.push(chunk, &mut events);
        if !events.is_empty() {
            self.sync.note(&events, chunk.len());
            self.apply(events, now);
        }
        if let Err(error) = result {
            // A new watch will hardly be better, so it is not opened as fast as after a failure.
            self.actions.push(Action::Cancel(id));
            self.watch_ended(&clip(&error.to_string()), self.settings.resync, now);
            self.fail(RemoteError::Unreadable(error));
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
        match (&self.watch, failure) {
            (
                Watch::Open {
                    id: current, since, ..
                },
                None,
            ) if *current == id => {
                let lasted = now.elapsed.saturating_sub(*since);
                let delay = if lasted < SHORT_WATCH {
                    self.backoff.next_delay()
                } else {
                    Duration::ZERO
                };
                self.watch_ended("the peer ended the watch", delay, now);
            }
            (Watch::Open { id: current, .. } | Watch::Opening { id: current, .. }, failure)
                if *current == id =>
            {
                let early_end = Failure::Transport("the peer ended the watch".to_owned());
                self.watch_failed(failure.unwrap_or(&early_end), now);
            }
            _ => {}
        }
        self.tick(now)
    }

    /// Bytes of the list's body, after a 200.
    pub fn list_data(&mut self, id: RequestId, chunk: &[u8], now: Moment) -> Vec<Action> {
        let limit = self.settings.limits.list_bytes;
        if !self.sync.push(id, chunk, limit) {
            self.actions.push(Action::Cancel(id));
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
        let ended = match failure {
            None => self.sync.finish(id, &self.settings),
            Some(failure) => {
                if self.sync.abandon(id) {
                    self.list_failed(failure, now);
                }
                return self.tick(now);
            }
        };
        match ended {
            ListEnd::NotOurs => {}
            ListEnd::Refused(error) => self.list_refused(error, now),
            ListEnd::Good(services, checksum_agrees) => {
                self.take_list(*services, checksum_agrees, now);
            }
        }
        self.tick(now)
    }

    /// The peer is to be reached in another way from now on: begin anew, keeping what it exports.
    pub fn restart(&mut self, now: Moment) -> Vec<Action> {
        if let Watch::Opening { id, .. } | Watch::Open { id, .. } = &self.watch {
            self.actions.push(Action::Cancel(*id));
            self.watch_ended("the way to the peer was changed", Duration::ZERO, now);
        }
        if let Some(id) = self.sync.reset() {
            self.actions.push(Action::Cancel(id));
        }
        self.backoff.reset();
        self.watch = Watch::Closed {
            retry_at: now.elapsed,
        };
        self.tick(now)
    }

    fn request_id(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    fn watch_failed(&mut self, failure: &Failure, now: Moment) {
        if matches!(failure, Failure::Status(400, _)) {
            self.sync.want_soon(now, &self.settings);
        }
        let delay = self.backoff.next_delay();
        self.watch_ended(&failure.text(), delay, now);
    }

    fn watch_ended(&mut self, status: &str, delay: Duration, now: Moment) {
        self.watch = Watch::Closed {
            retry_at: now.elapsed + delay,
        };
        self.sync.want_at(now.elapsed + self.settings.resync);
        self.change(false, |state| {
            if state.watch.connected {
                state.watch.connected = false;
                state.watch.last_disconnect = Some(now.wall);
            }
            state.watch.last_disconnect_status = Some(status.to_owned());
        });
    }

    fn list_failed(&mut self, failure: &Failure, now: Moment) {
        let connected = self.state.watch.connected;
        let withdrawn = self.sync.failed(failure, connected, now, &self.settings);
        if withdrawn && !self.state.withdrawn {
            self.change(true, |state| {
                state.services = Arc::default();
                state.withdrawn = true;
                state.error = None;
            });
        }
    }

    /// A list that came and is not taken: asking again at once would give the same.
    fn list_refused(&mut self, error: RemoteError, now: Moment) {
        self.sync.refused(now, &self.settings);
        self.fail(error);
    }

    fn take_list(&mut self, services: RemoteServices, checksum_agrees: bool, now: Moment) {
        let emptied = services.is_empty() && !self.state.services.is_empty();
        if !self.sync.succeeded(emptied, now, &self.settings) {
            self.fail(RemoteError::SuddenlyEmpty);
            return;
        }
        let waiting = self.sync.waiting_after(&services);
        let changed = *self.state.services != services;
        self.change(changed, |state| {
            if changed {
                state.services = Arc::new(services);
            }
            state.last_full_sync = Some(now.wall);
            state.list_checksum_agrees = checksum_agrees;
            state.withdrawn = false;
            state.error = None;
        });
        if !waiting.is_empty() {
            self.apply(waiting, now);
        }
    }

    fn apply(&mut self, events: Vec<WatchEvent>, now: Moment) {
        let mut services = RemoteServices::clone(&self.state.services);
        let mut changed = false;
        for event in events {
            match apply_event(&mut services, event, &self.settings.limits) {
                Ok(Applied { change, agrees }) => {
                    changed |= change;
                    if !agrees {
                        self.sync.want_soon(now, &self.settings);
                    }
                }
                Err(error) => {
                    self.sync.want_soon(now, &self.settings);
                    self.fail(RemoteError::Refused(error));
                    break;
                }
            }
        }
        self.change(changed, |state| {
            if changed {
                state.services = Arc::new(services);
                state.withdrawn = false;
            }
            state.watch.last_event = Some(now.wall);
        });
    }

    fn fail(&mut self, error: RemoteError) {
        self.change(false, |state| state.error = Some(error));
    }

    fn change(&mut self, services: bool, edit: impl FnOnce(&mut RemoteState)) {
        edit(Arc::make_mut(&mut self.state));
        match self.actions.last_mut() {
            Some(Action::Changed { services: before }) => *before |= services,
            _ => self.actions.push(Action::Changed { services }),
        }
    }
}

struct Applied {
    change: bool,
    /// False: the list has to be asked for, because the event says so or because its checksum shows
    /// that we missed something.
    agrees: bool,
}

fn apply_event(
    services: &mut RemoteServices,
    event: WatchEvent,
    limits: &Limits,
) -> Result<Applied, RemoteFault> {
    let change = match (event.action, event.service) {
        (_, None) => {
            return Ok(Applied {
                change: false,
                agrees: false,
            });
        }
        (EventAction::Add | EventAction::Update, Some(service)) => {
            services.put(RemoteService::check(service)?, limits)?
        }
        (EventAction::Delete, Some(service)) => services.remove(&service.namespace, &service.name),
        (EventAction::Other(_), Some(_)) => {
            return Ok(Applied {
                change: false,
                agrees: true,
            });
        }
    };
    Ok(Applied {
        change,
        agrees: services.agrees_with(event.checksum),
    })
}

#[cfg(test)]
mod tests;
