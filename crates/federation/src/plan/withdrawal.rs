//! Removal in steps: what was given is taken back before its way is closed.
//!
//! ```text
//! ServiceMeshPeer deleted -> Exports: its watchers hear that everything is gone
//!                         -> Connections: what is open may go on for its drain period
//!                         -> Names:   no proxy has a name, a connection or the root of it
//!                         -> Trust:   its last list is off the disk
//!                         -> Done:    our finalizer goes, and the object with it
//! ingress gateway leaves  -> its peers' watchers hear that everything is gone; then its finalizer goes
//! ```
//!
//! Names and ways are gone with the first step; in the second the peer's root stays at the gateways
//! that have connections of it, as those of a peer whose root is gone are cut.
//!
//! Nothing is remembered: a step follows from the objects of the API and from what is seen, so a
//! control plane that starts in the middle goes on there. Every step ends after a time, since a
//! peer or a gateway may be away.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshfed_api::{ServiceMeshControlPlane, ServiceMeshPeer};

use super::GatewayKind;
use super::control_plane::Ruling;
use super::gateways;
use super::peers::{PeerProblem, Peers, Trusted};
use super::settings::PeerSettings;
use crate::world::{ObjectKey, World, in_namespace};

/// Our finalizer on ServiceMeshPeers, on the Services of ingress gateways and on the
/// ServiceMeshControlPlane that rules.
pub const FINALIZER: &str = "meshfed.io/withdraw";

/// How long watchers have to take the removal of what was exported to them.
const EXPORTS: Duration = Duration::from_secs(2);
/// How long proxies have to confirm a configuration without the peer, once its connections have
/// drained.
const NAMES: Duration = Duration::from_secs(3);
/// When a peer is gone whatever else happens, after the same moment.
const TRUST: Duration = Duration::from_secs(6);
/// What was sent needs a moment for its way through the gateway.
const ON_THE_WAY: Duration = Duration::from_millis(250);

/// What is going.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Withdrawal {
    /// ServiceMeshPeers of the system namespace that are being deleted.
    pub peers: BTreeMap<ObjectKey, Removal>,
    /// Who shall carry our finalizer.
    pub finalizers: Finalizers,
    /// When a step ends by time alone.
    pub next_change: Option<Timestamp>,
}

/// The removal of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Of the ServiceMeshPeer; another one may come under the same name.
    pub uid: String,
    pub step: Step,
}

/// What a removal waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Until the peer's watchers have heard that nothing is exported any more.
    Exports,
    /// Until the drain period of the connections that were open is over.
    Connections,
    /// Until no connected proxy has a configuration with the peer.
    Names,
    /// Until nothing is kept of the peer.
    Trust,
    Done,
}

/// Whether an object shall carry our finalizer. Objects that are not named do not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finalizers {
    pub control_planes: BTreeMap<ObjectKey, bool>,
    pub peers: BTreeMap<ObjectKey, bool>,
    pub services: BTreeMap<ObjectKey, bool>,
}

pub(super) fn is_held(metadata: &ObjectMeta) -> bool {
    let finalizers = metadata.finalizers.iter().flatten();
    finalizers.into_iter().any(|f| f == FINALIZER)
}

/// Whether the watchers of a peer that is going need not be waited for any more.
pub(super) fn is_told(world: &World, peer: &str, metadata: &ObjectMeta) -> bool {
    let told = told_at(world, peer);
    let deadline = deadline(world, metadata, EXPORTS);
    [told, deadline]
        .into_iter()
        .flatten()
        .any(|at| at <= world.now)
}

/// When what was sent to a peer's watchers has arrived.
fn told_at(world: &World, peer: &str) -> Option<Timestamp> {
    let told = world.observed.peers.get(peer)?.farewell.told?;
    told.checked_add(ON_THE_WAY).ok()
}

/// The end of a step of an object that is being deleted. Time before this control plane ran does
/// not count, as it could not do anything then.
fn deadline(world: &World, metadata: &ObjectMeta, within: Duration) -> Option<Timestamp> {
    let deleted = metadata.deletion_timestamp.as_ref()?.0;
    deleted.max(world.mesh.started).checked_add(within).ok()
}

/// When the connections of a peer that is being deleted have had their time. It begins when its
/// watchers need not be waited for any more, as what they are told by is one of them.
pub(super) fn drained_at(world: &World, peer: &ServiceMeshPeer) -> Option<Timestamp> {
    let metadata = &peer.metadata;
    let deadline = deadline(world, metadata, EXPORTS)?;
    let told = told_at(world, metadata.name.as_deref()?);
    let began = told.map_or(deadline, |told| told.min(deadline));
    let (settings, _) = PeerSettings::parse(metadata.annotations.as_ref());
    began.checked_add(settings.drain_period).ok()
}

pub(super) fn withdrawal(world: &World, ruling: &Ruling<'_>, peers: &Peers<'_>) -> Withdrawal {
    let mut all = Withdrawal::default();
    for (key, judged) in peers {
        let trusted = judged.as_ref().ok();
        if trusted.is_some_and(|peer| peer.withdraws()) {
            all.wake_at(world, told_at(world, &key.name));
        }
        let Some(object) = world.resources.peers.get(key) else {
            continue;
        };
        if key.namespace != world.mesh.system_namespace {
            continue;
        }
        let metadata = &object.metadata;
        let mut held = true;
        if metadata.deletion_timestamp.is_some() {
            // What was open of a peer that is in doubt is cut, not drained.
            let drains = matches!(judged, Err(PeerProblem::Leaving));
            let drained = match trusted {
                Some(_) => None,
                None if drains => drained_at(world, object),
                None => deadline(world, metadata, EXPORTS),
            };
            let step = drained.map_or(Step::Exports, |at| step(world, key, object, drains, at));
            let uid = metadata.uid.clone().unwrap_or_default();
            all.peers.insert(key.clone(), Removal { uid, step });
            all.wake_at(world, deadline(world, metadata, EXPORTS));
            for after in [Duration::ZERO, NAMES, TRUST] {
                all.wake_at(world, drained.and_then(|at| at.checked_add(after).ok()));
            }
            held = step != Step::Done;
        }
        all.finalizers.peers.insert(key.clone(), held);
    }
    all.services(world, ruling, peers);
    all.control_planes(world, ruling);
    all
}

/// The step of a peer that has left, whose connections end by themselves at `drained`.
fn step(
    world: &World,
    key: &ObjectKey,
    object: &ServiceMeshPeer,
    drains: bool,
    drained: Timestamp,
) -> Step {
    let seen = world.observed.peers.get(&key.name);
    let is_over = |after| drained.checked_add(after).is_ok_and(|at| at <= world.now);
    let uid = object.metadata.uid.as_ref();
    let is_ours = |seen: &Option<String>| seen.is_some() && seen.as_ref() == uid;
    if drains && !is_over(Duration::ZERO) {
        Step::Connections
    } else if !seen.is_some_and(|s| is_ours(&s.farewell.let_go)) && !is_over(NAMES) {
        Step::Names
    } else if !seen.is_some_and(|s| is_ours(&s.farewell.forgotten)) && !is_over(TRUST) {
        Step::Trust
    } else {
        Step::Done
    }
}

impl Withdrawal {
    fn wake_at(&mut self, world: &World, at: Option<Timestamp>) {
        let at = at.filter(|at| *at > world.now);
        self.next_change = [self.next_change, at].into_iter().flatten().min();
    }

    /// Ingress gateways are held until their peers have heard; egress gateways have nobody to tell.
    fn services(&mut self, world: &World, ruling: &Ruling<'_>, peers: &Peers<'_>) {
        let system = &world.mesh.system_namespace;
        for (key, service) in in_namespace(&world.resources.services, system) {
            let metadata = &service.metadata;
            let is_ours = gateways::is_ours(service);
            // Ours is the finalizer too, and nobody else would take it away.
            if !is_ours && !is_held(metadata) {
                continue;
            }
            let view = ruling.gateways.get(&key.name).filter(|_| is_ours);
            let view = view.filter(|view| view.kind() == Some(GatewayKind::Ingress));
            let held = match view {
                None => false,
                // Somebody deleted it; it is made anew.
                Some(view) if !view.is_going() => metadata.deletion_timestamp.is_none(),
                Some(_) => {
                    self.wake_at(world, deadline(world, metadata, EXPORTS));
                    served_by(peers, &key.name).any(|peer| !is_told(world, peer, metadata))
                }
            };
            self.finalizers.services.insert(key.clone(), held);
        }
    }

    /// One goes after its gateways, or when another one has them: what it owns goes with it.
    fn control_planes(&mut self, world: &World, ruling: &Ruling<'_>) {
        let ours = ruling.object.map(|(key, _)| key);
        for (key, object) in world.resources.control_planes.iter() {
            let stays = object.metadata.deletion_timestamp.is_none();
            let rules = ours == Some(key);
            let held = if stays {
                rules
            } else {
                rules && !ruling.gateways.is_empty() || owns_gateways(world, object)
            };
            self.finalizers.control_planes.insert(key.clone(), held);
        }
    }
}

fn owns_gateways(world: &World, object: &ServiceMeshControlPlane) -> bool {
    let Some(uid) = &object.metadata.uid else {
        return false;
    };
    let mut services = in_namespace(&world.resources.services, &world.mesh.system_namespace);
    services.any(|(_, service)| {
        let mut owners = service.metadata.owner_references.iter().flatten();
        owners.any(|owner| owner.uid == *uid)
    })
}

fn served_by<'p>(peers: &'p Peers<'_>, gateway: &str) -> impl Iterator<Item = &'p str> {
    let trusted = peers.values().filter_map(|peer| peer.as_ref().ok());
    trusted
        .filter(move |peer| matches!(&peer.ingress, Ok(ingress) if ingress.name == gateway))
        .map(|peer| peer.name.as_str())
}

impl Trusted<'_> {
    /// What is exported to it is being taken back, and so is the way that it comes in by.
    pub fn withdraws(&self) -> bool {
        match &self.ingress {
            Ok(ingress) => self.going || ingress.going,
            Err(_) => false,
        }
    }
}
