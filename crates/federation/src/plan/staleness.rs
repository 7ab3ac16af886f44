//! How long what a peer exported counts after it was last heard.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::peers::{Peers, Trusted};
use super::settings::PeerSettings;
use crate::discovery::client::RemoteState;
use crate::discovery::remote::RemoteServices;
use crate::discovery::server::SourceStatus;
use crate::moment::CLOCK_SKEW;
use crate::world::{PeerState, World};

/// Why a peer is not `Ready` whose imports have ended by its silence.
pub(crate) const IMPORTS_EXPIRED: &str = "ImportsExpired";
/// A watch counts as connected as long as something came from the peer within this many resync periods.
const CONTACT: u32 = 2;

/// What of a peer's services may still be imported: all, or none when it was silent for longer than
/// its settings allow.
pub(super) fn services(
    peer: &Trusted<'_>,
    remote: &RemoteState,
    world: &World,
) -> Arc<RemoteServices> {
    if is_expired(&peer.settings, remote, world) {
        Arc::default()
    } else {
        remote.services.clone()
    }
}

/// Whether the imports from a peer have ended by its silence.
pub(crate) fn is_expired(settings: &PeerSettings, remote: &RemoteState, world: &World) -> bool {
    !remote.services.is_empty()
        && settings.imports_outlive_contact.is_some()
        && expires_at(settings, remote, world.mesh.started).is_none_or(|at| at <= world.now)
}

/// When the imports end unless the peer is heard; without a time of contact they have ended. A
/// contact that lies ahead ends none: the client sets it right as soon as it is at work.
fn expires_at(
    settings: &PeerSettings,
    remote: &RemoteState,
    started: Timestamp,
) -> Option<Timestamp> {
    let life = SignedDuration::try_from(settings.imports_outlive_contact?).ok()?;
    lost_at(settings, remote, started)?.checked_add(life).ok()
}

/// When the contact was lost, or will be unless the peer is heard. An idle peer says nothing between two
/// of our questions, so an open watch is contact as long as it counts as connected. While we were away nobody
/// asked: a contact that had not ended before lasts until we know better.
fn lost_at(settings: &PeerSettings, remote: &RemoteState, started: Timestamp) -> Option<Timestamp> {
    let confirmed = remote.last_contact?;
    let at_last = two_periods_after(settings, confirmed.max(started))?;
    let ended = remote.lost_at().map(|at| at.max(confirmed));
    Some(ended.map_or(at_last, |at| at.min(at_last)))
}

/// Whether our watch counts as connected: never without an event or an answer to `services` in the last
/// two resync periods.
pub(super) fn is_connected(settings: &PeerSettings, remote: &RemoteState, now: Timestamp) -> bool {
    heard(settings, remote).is_some_and(|time| time.contains(&now))
}

/// The time for which the last contact by an open watch counts: not before it, as then a wrong clock told
/// it.
fn heard(settings: &PeerSettings, remote: &RemoteState) -> Option<Range<Timestamp>> {
    let last = remote.last_contact.filter(|_| remote.watch.connected)?;
    Some(last.checked_sub(CLOCK_SKEW).ok()?..two_periods_after(settings, last)?)
}

/// Whether a watch of the peer's counts as connected. That it is open is no proof: nobody need be at its
/// other end any more. Either the peer has lately asked for something, or it is heard by our own watch.
pub(crate) fn is_watching(
    settings: &PeerSettings,
    remote: &RemoteState,
    watcher: &SourceStatus,
    now: Timestamp,
) -> bool {
    let asks = || asked(settings, watcher).is_some_and(|time| time.contains(&now));
    watcher.connected && (is_connected(settings, remote, now) || asks())
}

/// The time for which the last request beside an open watch counts. How often the peer asks is its own
/// setting, once a minute by default.
fn asked(settings: &PeerSettings, watcher: &SourceStatus) -> Option<Range<Timestamp>> {
    let last = watcher.last_full_sync.max(watcher.last_connected);
    let last = last.filter(|_| watcher.connected)?;
    let theirs = PeerSettings::default().resync_period;
    let until = periods_after(settings.resync_period.max(theirs), last)?;
    Some(last.checked_sub(CLOCK_SKEW).ok()?..until)
}

/// When a watch, ours or one of the peer's, begins or stops to count as connected by time alone.
pub(super) fn next_loss(
    settings: &PeerSettings,
    state: &PeerState,
    now: Timestamp,
) -> Option<Timestamp> {
    let ours = heard(settings, &state.remote);
    let theirs = state.watchers.iter().filter_map(|w| asked(settings, w));
    let changes = ours.into_iter().chain(theirs);
    let changes = changes.flat_map(|counts| [counts.start, counts.end]);
    changes.filter(|at| *at > now).min()
}

fn two_periods_after(settings: &PeerSettings, at: Timestamp) -> Option<Timestamp> {
    periods_after(settings.resync_period, at)
}

fn periods_after(period: Duration, at: Timestamp) -> Option<Timestamp> {
    let time = SignedDuration::try_from(period * CONTACT).ok()?;
    at.checked_add(time).ok()
}

/// When imports end by time alone.
pub(super) fn next_change(world: &World, peers: &Peers<'_>) -> Option<Timestamp> {
    let trusted = peers.iter().filter_map(|(key, peer)| {
        let state = world.observed.peers.get(&key.name)?;
        let settings = &peer.as_ref().ok()?.settings;
        expires_at(settings, &state.remote, world.mesh.started)
    });
    trusted.filter(|at| *at > world.now).min()
}
