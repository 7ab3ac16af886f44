//! Which of several instances of the control plane keeps the Pod of a workload.
//!
//! A Pod says which instance holds it: the one that its sidecar came to last. That one alone writes
//! and deletes it. An instance that yields does not take it back by the connection that it has, so
//! two that both believe to have the sidecar do not fight.
//!
//! An instance that was killed cannot let go. Once no status tells of it any more, the others strike
//! it out; if it lives after all, it writes itself in again. What is nobody's for a time goes.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use meshfed_federation::world::ObjectKey;
use tokio::time::Instant;

use crate::ads::ConnectionId;

/// On the Pod of a sidecar: the end of the name of the instance that holds it.
pub(super) const HOLDER_ANNOTATION: &str = "meshfed.io/registered-by";
/// After a restart of its control plane, or once nobody holds its Pod, a sidecar has this long to
/// come back.
const GRACE: Duration = Duration::from_secs(30);
/// Another instance has this long to be heard of, as in statuses; then it is looked at now and then.
const SILENCE: Duration = Duration::from_secs(600);
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Who holds a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holder {
    Us,
    Nobody,
    Other(String),
}

impl Holder {
    /// `suffix` is the end of our own name.
    pub(super) fn of(pod: &Pod, suffix: &str) -> Self {
        let annotations = pod.metadata.annotations.as_ref();
        match annotations.and_then(|all| all.get(HOLDER_ANNOTATION)) {
            None => Self::Nobody,
            Some(holder) if holder == suffix => Self::Us,
            Some(holder) => Self::Other(holder.clone()),
        }
    }
}

/// What is to be done with the Pod of a workload that is not connected here, or has gone on from here.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// Nothing before this.
    Wait(Instant),
    /// Its holder seems to be gone: it is to be nobody's.
    StrikeOut,
    Delete,
}

/// What one instance knows of who holds what.
#[derive(Debug)]
pub(super) struct Holds {
    started: Instant,
    /// When we were last found to have stood still.
    stood_still: Option<Instant>,
    /// Pods that were ours, and the connection by which they were.
    ours: BTreeMap<ObjectKey, ConnectionId>,
    /// Pods of others and of nobody, and since when.
    others: BTreeMap<ObjectKey, (Holder, Instant)>,
}

impl Holds {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            stood_still: None,
            ours: BTreeMap::new(),
            others: BTreeMap::new(),
        }
    }

    /// This instance did nothing for a while, as a process that is stopped, or a machine that sleeps. Its
    /// sidecars have lost it meanwhile and come back, so all have the time that they have after a restart.
    pub(super) fn stood_still(&mut self, now: Instant) {
        self.started = now;
        self.stood_still = Some(now);
        for (_, since) in self.others.values_mut() {
            *since = now;
        }
    }

    /// Whether the Pod of a workload that is connected here is ours to write. Not if the workload has
    /// gone to another instance since it came by this connection.
    pub(super) fn may_write(
        &mut self,
        key: &ObjectKey,
        connection: ConnectionId,
        holder: &Holder,
    ) -> bool {
        if *holder == Holder::Us {
            self.wrote(key, connection);
        }
        let may = !matches!(holder, Holder::Other(_)) || self.ours.get(key) != Some(&connection);
        if may {
            self.others.remove(key);
        }
        may
    }

    /// The Pod is ours by this connection, also while we are still shown another holder.
    pub(super) fn wrote(&mut self, key: &ObjectKey, connection: ConnectionId) {
        self.ours.insert(key.clone(), connection);
    }

    /// What is to be done with a Pod that is not ours to write; with that of another instance only once
    /// that one seems to be gone.
    pub(super) fn judge(
        &mut self,
        key: &ObjectKey,
        holder: Holder,
        now: Instant,
        is_alive: impl FnOnce(&str) -> bool,
    ) -> Deed {
        let since = if holder == Holder::Us {
            self.others.remove(key);
            // It was here, and has left.
            let left = self.ours.contains_key(key);
            if left && self.stood_still.is_none_or(|at| now >= at + GRACE) {
                return Deed::Delete;
            }
            self.started
        } else {
            let known = self.others.get(key).filter(|(before, _)| *before == holder);
            let since = known.map_or(now, |(_, since)| *since);
            self.others.insert(key.clone(), (holder.clone(), since));
            since
        };
        match holder {
            Holder::Us | Holder::Nobody if now >= since + GRACE => Deed::Delete,
            Holder::Us | Holder::Nobody => Deed::Wait(since + GRACE),
            Holder::Other(_) if now < since + SILENCE => Deed::Wait(since + SILENCE),
            Holder::Other(other) if is_alive(&other) => Deed::Wait(now + LOOK_AGAIN),
            Holder::Other(_) => Deed::StrikeOut,
        }
    }

    /// The Pod was made nobody's. A holder that is shown after that has its time anew.
    pub(super) fn struck_out(&mut self, key: &ObjectKey, now: Instant) {
        self.others.insert(key.clone(), (Holder::Nobody, now));
    }

    /// Forgets the Pods that are not there any more.
    pub(super) fn keep(&mut self, is_there: impl Fn(&ObjectKey) -> bool) {
        self.ours.retain(|key, _| is_there(key));
        self.others.retain(|key, _| is_there(key));
    }
}

#[cfg(test)]
mod tests;
