//! Several instances of the control plane write the same statuses, and do not fight.
//!
//! Each has an entry of its own in the `discoveryStatus` of every peer and leaves those of others as
//! they are. Everything else is written by one: the first by name of those that have lately heard
//! from a peer. All see the same entries, so all come to the same answer, without a word between
//! them. One that stops takes its entries away, so that another one leads at once.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use meshfed_api::peer::{DiscoveryStatus, PodDiscoveryStatus};

use super::Decided;
use crate::moment::is_credible;
use crate::world::{ObjectKey, Resources};

/// An instance that is connected hears something in this time: a list is asked for every minute.
const FRESH: Duration = Duration::from_secs(600);
/// Entries without contact for this long go, if there are others.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Entries of other instances in one status.
const MAX_OTHERS: usize = 15;

/// Entries of the instances of one peer, sorted by whether they are connected.
pub(super) fn merged(
    present: Option<&DiscoveryStatus>,
    ours: PodDiscoveryStatus,
    suffix: &str,
    now: Timestamp,
) -> DiscoveryStatus {
    let mut others = others(present, suffix, now);
    let is_idle = |entry: &PodDiscoveryStatus| {
        times(entry).next().is_some() && !times(entry).any(|at| is_within(at, now, KEPT))
    };
    if others.iter().chain([&ours]).any(|entry| !is_idle(entry)) {
        others.retain(|entry| !is_idle(entry));
    }
    others.sort_by(|a, b| {
        let last = |entry| times(entry).filter(|at| is_credible(*at, now)).max();
        let newest_first = last(b).cmp(&last(a));
        newest_first.then_with(|| a.pod.cmp(&b.pod))
    });
    others.truncate(MAX_OTHERS);
    others.push(ours);
    others.sort_by(|a, b| a.pod.cmp(&b.pod));
    let (active, inactive) = others.into_iter().partition(is_connected);
    DiscoveryStatus { active, inactive }
}

/// Entries of other instances. One that says that it is connected and has heard nothing for long
/// is of an instance that is gone.
///
/// `suffix` is the end of our own name. What stands before it follows the ServiceMeshControlPlane,
/// and an entry under an earlier name is ours as well.
pub(super) fn others(
    present: Option<&DiscoveryStatus>,
    suffix: &str,
    now: Timestamp,
) -> Vec<PodDiscoveryStatus> {
    let entries = present
        .into_iter()
        .flat_map(|s| s.active.iter().chain(&s.inactive));
    entries
        .filter(|entry| !is_of(entry, suffix))
        .filter(|entry| !is_connected(entry) || is_fresh(entry, now))
        .cloned()
        .collect()
}

/// The entry of the instance with this end of its name.
pub(super) fn own<'s>(
    present: &'s DiscoveryStatus,
    suffix: &str,
) -> Option<&'s PodDiscoveryStatus> {
    let mut entries = present.active.iter().chain(&present.inactive);
    entries.find(|entry| is_of(entry, suffix))
}

fn is_of(entry: &PodDiscoveryStatus, suffix: &str) -> bool {
    let name = entry.pod.strip_suffix(suffix);
    name.is_some_and(|name| name.ends_with('-'))
}

/// Whether the instance with this end of its name has lately heard from a peer, as statuses tell.
#[must_use]
pub fn is_heard(resources: &Resources, suffix: &str, now: Timestamp) -> bool {
    fresh(resources, now).any(|entry| is_of(entry, suffix))
}

/// Whether another instance than the one with this end of its name has lately heard from a peer.
#[must_use]
pub fn has_others(resources: &Resources, suffix: &str, now: Timestamp) -> bool {
    fresh(resources, now).any(|entry| !is_of(entry, suffix))
}

fn fresh(resources: &Resources, now: Timestamp) -> impl Iterator<Item = &PodDiscoveryStatus> {
    let statuses = resources.peers.values().filter_map(|p| p.status.as_ref());
    let entries = statuses.flat_map(|status| {
        let DiscoveryStatus { active, inactive } = &status.discovery_status;
        active.iter().chain(inactive)
    });
    entries.filter(move |entry| is_fresh(entry, now))
}

/// What is left of a status when the instance with this suffix stops: the entries of others. `None` if
/// there is nothing to change, or nobody who would go on.
#[must_use]
pub fn resigned(present: &DiscoveryStatus, suffix: &str) -> Option<DiscoveryStatus> {
    let others = |entries: &[PodDiscoveryStatus]| -> Vec<PodDiscoveryStatus> {
        let others = entries.iter().filter(|entry| !is_of(entry, suffix));
        others.cloned().collect()
    };
    let left = DiscoveryStatus {
        active: others(&present.active),
        inactive: others(&present.inactive),
    };
    let is_alone = left.active.is_empty() && left.inactive.is_empty();
    (!is_alone && left != *present).then_some(left)
}

fn is_connected(entry: &PodDiscoveryStatus) -> bool {
    entry.watch.connected || entry.remotes.iter().any(|remote| remote.connected)
}

/// When it was in contact with the peer.
fn times(entry: &PodDiscoveryStatus) -> impl Iterator<Item = Timestamp> {
    let watch = &entry.watch;
    let of_watch = [
        &watch.last_connected,
        &watch.last_disconnect,
        &watch.last_event,
        &watch.last_full_sync,
    ];
    let of_remotes = entry.remotes.iter().flat_map(|remote| {
        [
            &remote.last_connected,
            &remote.last_disconnect,
            &remote.last_event,
            &remote.last_full_sync,
        ]
    });
    let times = of_watch.into_iter().chain(of_remotes);
    times.flatten().map(|time| time.0)
}

fn is_fresh(entry: &PodDiscoveryStatus, now: Timestamp) -> bool {
    times(entry).any(|at| is_within(at, now, FRESH))
}

/// A time ahead, of a clock that was wrong, says nothing.
fn is_within(at: Timestamp, now: Timestamp, time: Duration) -> bool {
    let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
    now.duration_since(at) < time && is_credible(at, now)
}

/// Whether this instance writes what all instances share.
pub(super) fn leads<'s>(
    decided: &Decided<'_, '_>,
    peers: impl Iterator<Item = (&'s ObjectKey, &'s DiscoveryStatus)>,
) -> bool {
    let now = decided.world.now;
    let ours = decided.ruling.instance.as_str();
    let entries: Vec<&PodDiscoveryStatus> = peers
        .flat_map(|(_, status)| status.active.iter().chain(&status.inactive))
        .collect();
    let fresh = entries.iter().filter(|entry| is_fresh(entry, now));
    let first = fresh.map(|entry| entry.pod.as_str()).min();
    let first = first.or_else(|| entries.iter().map(|entry| entry.pod.as_str()).min());
    first.is_none_or(|first| first == ours)
}
