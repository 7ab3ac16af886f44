//! What becomes of the lists and events of a peer.

use std::sync::Arc;

use super::sync::{Ended, ListEnd, Meanwhile};
use super::{Client, Failure, LATE_EVENT, Limits, RemoteError, RequestId, Watch};
use crate::discovery::message::{Action, Service, WatchEvent};
use crate::discovery::remote::{RemoteFault, RemoteService, RemoteServices};
use crate::moment::Moment;

impl Client {
    pub(super) fn list_ended(&mut self, id: RequestId, failure: Option<&Failure>, now: Moment) {
        let extended = self.state.extended;
        match failure {
            None => match self.sync.finish(id, extended, now, &self.settings) {
                ListEnd::NotOurs => {}
                ListEnd::Refused(error) => self.list_refused(error, now),
                ListEnd::Good(services, checksum_agrees) => {
                    self.take_list(*services, checksum_agrees, now);
                }
            },
            Some(failure) => {
                let Some(ended) = self.sync.abandon(id, now) else {
                    return;
                };
                // Nobody but a peer that we asked "is it still this list?" says so.
                if extended && matches!(failure, Failure::Status(304, _)) {
                    self.way_is_good();
                    self.list_unchanged(now);
                } else {
                    self.list_failed(failure, ended, now);
                }
            }
        }
    }

    /// The answer took too long.
    pub(super) fn list_late(&mut self, cause: String, ended: Ended, now: Moment) {
        if !self.doubt_watch(ended, now) {
            self.fail(RemoteError::NoList(cause.clone()), now);
        }
        self.list_failed(&Failure::Transport(cause), ended, now);
    }

    fn list_failed(&mut self, failure: &Failure, ended: Ended, now: Moment) {
        let connected = self.state.watch.connected;
        let failed = self.sync.failed(failure, connected, now, &self.settings);
        if failed.lasting && failure.is_of_the_way() && self.doubt_watch(ended, now) {
            return;
        }
        if failed.withdrawn && !self.state.withdrawn {
            self.change(true, |state| {
                state.services = Arc::default();
                state.withdrawn = true;
                state.error = None;
            });
        } else if connected && failed.lasting && !failed.withdrawn {
            self.fail(RemoteError::NoList(failure.text()), now);
        }
    }

    /// A list that came and is not taken: asking again at once would give the same.
    pub(super) fn list_refused(&mut self, error: RemoteError, now: Moment) {
        self.sync.refused(now, &self.settings);
        self.fail(error, now);
    }

    fn take_list(&mut self, mut services: RemoteServices, checksum_agrees: bool, now: Moment) {
        self.hear(now);
        let emptied = services.is_empty() && !self.state.services.is_empty();
        if !self.sync.succeeded(emptied, now, &self.settings) {
            self.fail(RemoteError::SuddenlyEmpty, now);
            return;
        }
        let Meanwhile { included, later } = self.sync.meanwhile(&services);
        if included.is_empty() && later.is_empty() {
            self.compare(&services, now);
        }
        if self.state.extended {
            for service in included.into_iter().filter_map(changed_service) {
                services.set_health(&service.namespace, &service.name, service.health);
            }
        }
        services.keep(&self.state.services);
        self.put(services);
        self.change(false, |state| state.list_checksum_agrees = checksum_agrees);
        self.list_is_good(now);
        self.apply(later, now);
    }

    /// Compares a list with what events have made of the one before. Only a change that they should have
    /// told is a reason for doubt.
    fn compare(&mut self, services: &RemoteServices, now: Moment) {
        let same = services.same_hash(&self.state.services);
        if let Watch::Open {
            in_step: true,
            silent_until,
            ..
        } = &mut self.watch
            && !same
        {
            *silent_until = (*silent_until).min(now.elapsed + LATE_EVENT);
        }
    }

    /// Whether our list is known to be the peer's, so that events alone change it.
    fn keep_step(&mut self, agrees: bool) {
        if let Watch::Open { in_step, .. } = &mut self.watch {
            *in_step = agrees;
        }
    }

    /// The peer's list was the one that we had when we asked; since then only events changed ours.
    fn list_unchanged(&mut self, now: Moment) {
        self.hear(now);
        self.sync.succeeded(false, now, &self.settings);
        // The question was by our own checksum of it.
        self.change(false, |state| state.list_checksum_agrees = true);
        self.list_is_good(now);
        // Those that could not be applied still cannot, and that is still to be said.
        let Meanwhile { later, .. } = self.sync.meanwhile(&self.state.services);
        self.apply(later, now);
    }

    fn list_is_good(&mut self, now: Moment) {
        let recovered = self.state.error.is_some();
        self.change(false, |state| {
            state.last_full_sync = Some(now.wall);
            state.withdrawn = false;
            state.error = None;
        });
        self.keep_step(self.sync.is_enough());
        if recovered {
            self.want_to_tell(now);
        }
    }

    /// Events do not depend on each other: one that is refused leaves the others as they are.
    pub(super) fn apply(&mut self, events: Vec<WatchEvent>, now: Moment) {
        if events.is_empty() {
            return;
        }
        let mut services = RemoteServices::clone(&self.state.services);
        let mut refused = None;
        let mut changed = false;
        for mut event in events {
            if !self.state.extended
                && let Some(service) = &mut event.service
            {
                service.health = None;
            }
            match apply_event(&mut services, event, &self.settings.limits) {
                Ok(Applied { change, agrees }) => {
                    changed |= change;
                    if !agrees {
                        self.out_of_step(now);
                    }
                }
                Err(fault) => {
                    self.out_of_step(now);
                    refused = Some(fault);
                }
            }
        }
        let announced = services.is_empty();
        self.put(services);
        if changed {
            self.change(false, |state| state.withdrawn = false);
        }
        if announced && self.state.error == Some(RemoteError::SuddenlyEmpty) {
            self.sync.forget_empty();
            self.change(false, |state| state.error = None);
            self.want_to_tell(now);
        }
        if let Some(fault) = refused {
            self.fail(RemoteError::Refused(fault), now);
        }
    }

    fn out_of_step(&mut self, now: Moment) {
        self.keep_step(false);
        self.sync.want_soon(now, &self.settings);
    }

    /// Takes the services. It is told only if they mean something else than those before.
    fn put(&mut self, services: RemoteServices) {
        let changed = *self.state.services != services;
        if changed || !self.state.services.same_hash(&services) {
            self.change(changed, |state| state.services = Arc::new(services));
        }
    }

    fn fail(&mut self, error: RemoteError, now: Moment) {
        if self.state.error.as_ref() != Some(&error) {
            self.change(false, |state| state.error = Some(error));
            self.want_to_tell(now);
        }
    }

    /// A peer that no longer announces the extension does not tell how its services fare.
    pub(super) fn set_extended(&mut self, extended: bool) {
        if self.state.extended == extended {
            return;
        }
        let forget = !extended && self.state.services.has_health();
        self.change(forget, |state| {
            state.extended = extended;
            if forget {
                state.services = Arc::new(state.services.without_health());
            }
        });
    }
}

struct Applied {
    /// The services mean something else now.
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
        (Action::Add | Action::Update, Some(service)) => {
            services.put(RemoteService::check(service)?, limits)?
        }
        (Action::Delete, Some(service)) => services.remove(&service.namespace, &service.name),
        (Action::Other(_), Some(_)) => {
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

/// The service of an event that says how it fares.
fn changed_service(event: WatchEvent) -> Option<Service> {
    let tells = matches!(event.action, Action::Add | Action::Update);
    event.service.filter(|_| tells)
}
