//! Status of ServiceMeshPeer.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use meshfed_api::ServiceMeshPeer;
use meshfed_api::peer::{
    DiscoveryStatus, ImportReport, PodDiscoveryStatus, RemoteDiscoveryStatus,
    ServiceMeshPeerStatus, WatchStatus,
};

use super::Decided;
use super::condition::{READY, Verdict, conditions};
use super::{connection, replicas, time};
use crate::discovery::client::{FaultKind, RemoteState};
use crate::discovery::extension::Report;
use crate::moment::is_credible;
use crate::plan::peers::{PeerProblem, Peers, Trusted};
use crate::plan::staleness::{self, is_connected};
use crate::plan::{PeerSettings, SettingProblem, Step};
use crate::world::{ObjectKey, PeerState, World};

pub(super) fn statuses(decided: &Decided<'_, '_>) -> BTreeMap<ObjectKey, ServiceMeshPeerStatus> {
    let world = decided.world;
    let judged = decided.peers.iter();
    judged
        .filter_map(|(key, judged)| {
            let object = world.resources.peers.get(key)?;
            let state = state_of(world, key);
            let verdict = match judged {
                Err(problem) => Verdict::fails(READY, problem.reason(), problem.to_string()),
                Ok(peer) => ready(decided, peer, &state),
            };
            let present = object.status.as_ref().map(|s| s.conditions.as_slice());
            let status = ServiceMeshPeerStatus {
                discovery_status: discovery_status(decided, object, &state),
                last_contact: last_contact(object, &state.remote, world.now),
                conditions: conditions(
                    present,
                    [verdict, settings(object)]
                        .into_iter()
                        .chain(withdrawn(decided, key, object)),
                    &object.metadata,
                    world.now,
                ),
            };
            Some((key.clone(), status))
        })
        .collect()
}

/// What is known of a peer; nothing for one outside of the system namespace.
fn state_of(world: &World, key: &ObjectKey) -> Arc<PeerState> {
    let ours = key.namespace == world.mesh.system_namespace;
    let state = world.observed.peers.get(&key.name).filter(|_| ours);
    state.cloned().unwrap_or_default()
}

fn ready(decided: &Decided<'_, '_>, peer: &Trusted<'_>, state: &PeerState) -> Verdict {
    let remote = &state.remote;
    let now = decided.world.now;
    // What another instance is connected to is connected.
    let present = peer.object.status.as_ref().map(|s| &s.discovery_status);
    let others = replicas::others(present, &decided.world.mesh.instance_suffix, now);
    let watched_by_us = others.iter().any(|entry| entry.watch.connected);
    let told_by_others = others.iter().flat_map(|entry| &entry.remotes);
    let watches_us = told_by_others.into_iter().any(|remote| remote.connected)
        || (state.watchers.iter())
            .any(|watcher| staleness::is_watching(&peer.settings, remote, watcher, now));
    if peer.going {
        let message = "the peer is being removed; what was exported to it is withdrawn";
        return Verdict::fails(READY, "Deleting", message);
    }
    if let Ok(ingress) = &peer.ingress
        && ingress.going
    {
        let message = format!(
            "the gateway {} is being removed; what was exported through it is withdrawn",
            ingress.name
        );
        return Verdict::fails(READY, "GatewayGoing", message);
    }
    let mut names = Vec::new();
    for gateway in [&peer.ingress, &peer.egress] {
        match gateway {
            Err(gap) => return Verdict::fails(READY, gap.reason(), gap.to_string()),
            Ok(gateway) if !gateway.ready => {
                let view = decided.ruling.gateways.get(&gateway.name);
                let why = view.map_or("", |view| view.waits_for());
                names.push(format!("{}: {why}", gateway.name));
            }
            Ok(_) => {}
        }
    }
    if !names.is_empty() && !watched_by_us {
        let message = format!("waiting for {}", names.join("; "));
        return Verdict::fails(READY, "GatewayNotReady", message);
    }
    if remote.withdrawn {
        let message = "the peer says that it does not know this mesh: \
                       a ServiceMeshPeer for it is missing there";
        return Verdict::fails(READY, "UnknownToPeer", message);
    }
    if staleness::is_expired(&peer.settings, remote, decided.world) {
        let since = remote
            .last_contact
            .map_or_else(String::new, |contact| format!(" since {}", time(contact).0));
        let message = format!(
            "nothing was heard of the peer{since}, which is longer than \
             meshfed.io/imports-outlive-contact allows: its imports are gone until it is heard again"
        );
        return Verdict::fails(READY, staleness::IMPORTS_EXPIRED, message);
    }
    if let Some(fault) = remote.fault() {
        let kept = match fault.kind() {
            FaultKind::SilentWatch => "",
            _ => "what the peer exported before is still in use; ",
        };
        let message = format!("{fault}; {kept}{}", fault.kind().advice());
        return Verdict::fails(READY, fault.kind().reason(), message);
    }
    if !is_connected(&peer.settings, remote, now) && !watched_by_us {
        return connection::not_watching(peer, remote, watches_us);
    }
    connection::watching(peer, watches_us)
}

/// The latest that any instance of the control plane knows of, so that they do not fight over it.
fn last_contact(object: &ServiceMeshPeer, remote: &RemoteState, now: Timestamp) -> Option<Time> {
    let told = object.status.as_ref().and_then(|s| s.last_contact.clone());
    let known = [remote.last_contact.map(time), told];
    let credible = known.into_iter().flatten();
    credible.filter(|at| is_credible(at.0, now)).max()
}

/// How far the removal of a peer has come.
fn withdrawn(
    decided: &Decided<'_, '_>,
    key: &ObjectKey,
    object: &ServiceMeshPeer,
) -> Option<Verdict> {
    const TYPE: &str = "Withdrawn";
    let removal = decided.withdrawal.peers.get(key)?;
    let (reason, waits_for) = match removal.step {
        Step::Exports => (
            "WithdrawingExports",
            "the peer is told that nothing is exported to it any more",
        ),
        Step::Connections => (
            "DrainingConnections",
            "what was open goes on for the drain period; the annotation meshfed.io/drain-period: 0s ends it now",
        ),
        Step::Names => (
            "RemovingNames",
            "proxies lose its names, connections and root; each confirms it",
        ),
        Step::Trust => ("RemovingTrust", "what is kept of it is removed"),
        Step::Done => {
            let message = "nothing of the peer is left";
            return Some(Verdict::holds(TYPE, "Withdrawn", message));
        }
    };
    let gateways = &object.spec.gateways;
    let away: Vec<&str> = [&gateways.ingress.name, &gateways.egress.name]
        .into_iter()
        .filter(|name| {
            let known = decided.ruling.gateways.contains_key(*name);
            known && !decided.world.observed.gateways.contains_key(*name)
        })
        .map(String::as_str)
        .collect();
    let message = match away[..] {
        [] => waits_for.to_owned(),
        _ => format!(
            "{waits_for}; not connected, and told when they are again: {}",
            away.join(", ")
        ),
    };
    Some(Verdict::fails(TYPE, reason, message))
}

fn settings_of(object: &ServiceMeshPeer) -> (PeerSettings, Vec<SettingProblem>) {
    PeerSettings::parse(object.metadata.annotations.as_ref())
}

/// Whether the peer's annotations have the effect that was meant.
fn settings(object: &ServiceMeshPeer) -> Verdict {
    const TYPE: &str = "SettingsUsable";
    let (_, problems) = settings_of(object);
    if problems.is_empty() {
        return Verdict::holds(TYPE, "SettingsUsed", "every setting has its effect");
    }
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Verdict::fails(TYPE, "InvalidSetting", problems.join("; "))
}

/// When a watch, ours or one of the peer's, may begin or cease to count as connected by time alone.
pub(in crate::plan) fn next_change(world: &World, peers: &Peers<'_>) -> Option<Timestamp> {
    let trusted = peers.iter().filter_map(|(key, peer)| {
        let settings = &peer.as_ref().ok()?.settings;
        staleness::next_loss(settings, &state_of(world, key), world.now)
    });
    trusted.min()
}

fn discovery_status(
    decided: &Decided<'_, '_>,
    object: &ServiceMeshPeer,
    state: &PeerState,
) -> DiscoveryStatus {
    let remote = &state.remote;
    let (settings, now) = (settings_of(object).0, decided.world.now);
    let mut remotes: Vec<RemoteDiscoveryStatus> = state
        .watchers
        .iter()
        .map(|watcher| RemoteDiscoveryStatus {
            connected: staleness::is_watching(&settings, remote, watcher, now),
            last_connected: watcher.last_connected.map(time),
            last_disconnect: watcher.last_disconnect.map(time),
            last_event: watcher.last_event.map(time),
            last_full_sync: watcher.last_full_sync.map(time),
            source: watcher.source.clone(),
            report: watcher.report.as_ref().map(ImportReport::from),
        })
        .collect();
    remotes.sort_by(|a, b| a.source.cmp(&b.source));
    let present = object.status.as_ref().map(|s| &s.discovery_status);
    let earlier = earlier(decided, present, remote);
    let watch = WatchStatus {
        connected: is_connected(&settings, remote, now),
        last_connected: (remote.watch.last_connected.map(time)).or(earlier.last_connected),
        last_disconnect: remote.watch.last_disconnect.map(time),
        last_disconnect_status: remote.watch.last_disconnect_status.clone(),
        last_event: remote.watch.last_event.map(time).or(earlier.last_event),
        last_full_sync: remote.last_full_sync.map(time).or(earlier.last_full_sync),
    };
    let instance = PodDiscoveryStatus {
        pod: decided.ruling.instance.clone(),
        remotes,
        watch,
    };
    replicas::merged(
        present,
        instance,
        &decided.world.mesh.instance_suffix,
        decided.world.now,
    )
}

/// What our own entry said in an earlier life of ours, from which what the peer exports is kept as well.
fn earlier(
    decided: &Decided<'_, '_>,
    present: Option<&DiscoveryStatus>,
    remote: &RemoteState,
) -> WatchStatus {
    let suffix = &decided.world.mesh.instance_suffix;
    let told = present.filter(|_| remote.last_contact.is_some());
    let told = told.and_then(|present| replicas::own(present, suffix));
    let mut watch = told.map_or_else(WatchStatus::default, |entry| entry.watch.clone());
    let times = [
        &mut watch.last_connected,
        &mut watch.last_event,
        &mut watch.last_full_sync,
    ];
    for at in times {
        *at = at.take().filter(|at| is_credible(at.0, decided.world.now));
    }
    watch
}

impl From<&Report> for ImportReport {
    fn from(report: &Report) -> Self {
        Self {
            imported: report.imported,
            services: report.services.iter().map(ToString::to_string).collect(),
            last_sync: report.last_sync.map(time),
            error: report.error.clone(),
        }
    }
}

/// Whether the peer's exports are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contact {
    Now,
    /// As they were when it was last heard.
    Before,
    Never,
}

pub(super) fn contact(decided: &Decided<'_, '_>, key: &ObjectKey) -> Contact {
    let remote = &state_of(decided.world, key).remote;
    let object = decided.world.resources.peers.get(key);
    let settings = object.map(|object| settings_of(object).0);
    if is_connected(&settings.unwrap_or_default(), remote, decided.world.now) {
        Contact::Now
    } else if remote.last_contact.is_some()
        || remote.last_full_sync.is_some()
        || !remote.services.is_empty()
    {
        Contact::Before
    } else {
        Contact::Never
    }
}

/// How many services of the peer do not count any more because of its silence.
pub(super) fn expired(decided: &Decided<'_, '_>, key: &ObjectKey) -> Option<usize> {
    let peer = decided.peers.get(key)?.as_ref().ok()?;
    let remote = &state_of(decided.world, key).remote;
    let expired = staleness::is_expired(&peer.settings, remote, decided.world);
    expired.then(|| remote.services.len())
}

/// Why a set that belongs to this peer is without effect.
pub(super) fn set_problem(decided: &Decided<'_, '_>, key: &ObjectKey) -> Option<Verdict> {
    let system = &decided.world.mesh.system_namespace;
    if key.namespace != *system {
        let message = format!("this mesh's control plane is in {system}; the set belongs there");
        return Some(Verdict::fails(READY, "NotInSystemNamespace", message));
    }
    match decided.peers.get(key) {
        None => {
            let message = format!(
                "there is no ServiceMeshPeer {} in {system}; a set has the name of its peer",
                key.name
            );
            Some(Verdict::fails(READY, "NoPeer", message))
        }
        Some(Err(problem)) => Some(peer_not_connected(problem)),
        Some(Ok(_)) => None,
    }
}

fn peer_not_connected(problem: &PeerProblem) -> Verdict {
    let message = format!("the ServiceMeshPeer is not connected: {problem}");
    Verdict::fails(READY, "PeerNotConnected", message)
}
