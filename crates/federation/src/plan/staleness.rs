//! How long what a peer exported counts after it was last heard.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::peers::{Peers, Trusted};
use super::settings::PeerSettings;
use crate::discovery::client::RemoteState;
use crate::discovery::remote::RemoteServices;
use crate::world::World;

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

/// Until when an open watch counts as connected unless the peer is heard.
pub(super) fn counts_until(settings: &PeerSettings, remote: &RemoteState) -> Option<Timestamp> {
    two_periods_after(settings, remote.last_contact?)
}

fn two_periods_after(settings: &PeerSettings, at: Timestamp) -> Option<Timestamp> {
    let time = SignedDuration::try_from(settings.resync_period * CONTACT).ok()?;
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
