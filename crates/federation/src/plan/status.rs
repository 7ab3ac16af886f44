//! The statuses of all resources.
//!
//! They are in the form of the documents, plus conditions in the Kubernetes manner. A status says
//! the same until something changes: times have whole seconds, as the API stores them, and a condition
//! keeps the time at which it last turned.

mod bounded;
mod condition;
mod connection;
mod control_plane;
mod crowded;
mod members;
mod peer;
mod replicas;
mod sets;

pub use self::replicas::{has_others, is_heard, resigned};

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use meshfed_api::ImportedServiceSetSpec;

pub(super) use self::peer::next_change;
use super::Statuses;
use super::control_plane::Ruling;
use super::exports::PeerExports;
use super::imports::PeerImports;
use super::membership::membership;
use super::peers::{self, Peers};
use super::roots::ReadRoots;
use super::withdrawal::{Withdrawal, withdrawal};
use crate::names::{DomainSuffix, PeerName};
use crate::rules::ImportRules;
use crate::world::{Resources, Shared, World};

/// What was decided before anything is said of it.
pub(super) struct Decided<'d, 'w> {
    pub world: &'w World,
    pub ruling: &'d Ruling<'w>,
    pub peers: &'d Peers<'w>,
    pub exports: &'d BTreeMap<PeerName, PeerExports>,
    pub imports: &'d BTreeMap<PeerName, PeerImports>,
    pub withdrawal: &'d Withdrawal,
}

impl Decided<'_, '_> {
    pub fn import_rules(&self, spec: &ImportedServiceSetSpec, peer: &PeerName) -> ImportRules {
        let local_suffix = DomainSuffix::of_cluster(&self.world.mesh.cluster_domain);
        ImportRules::parse(spec, peer, &local_suffix)
    }
}

/// What a plan says of services, which a status repeats.
pub(super) struct Judged {
    pub exports: BTreeMap<PeerName, PeerExports>,
    pub imports: BTreeMap<PeerName, PeerImports>,
}

/// The statuses of a plan, made when they are first looked at: they are written a few times in a
/// second at most, and a plan that is followed by another one is never asked for them.
#[derive(Clone)]
pub struct LazyStatuses(Arc<LazyLock<Statuses, Box<dyn FnOnce() -> Statuses + Send>>>);

impl LazyStatuses {
    pub(super) fn new(world: World, judged: Judged) -> Self {
        Self(Arc::new(LazyLock::new(Box::new(move || {
            statuses(&world, &judged)
        }))))
    }
}

impl Deref for LazyStatuses {
    type Target = Statuses;

    fn deref(&self) -> &Statuses {
        &self.0
    }
}

impl Debug for LazyStatuses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Debug::fmt(&**self, f)
    }
}

impl PartialEq for LazyStatuses {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || **self == **other
    }
}

fn statuses(world: &World, judged: &Judged) -> Statuses {
    let ruling = super::control_plane::ruling(world);
    let membership = membership(world, ruling.object.map(|(key, _)| key));
    let peers = peers::judge(world, &ruling, &mut ReadRoots::default());
    let decided = &Decided {
        world,
        ruling: &ruling,
        peers: &peers,
        exports: &judged.exports,
        imports: &judged.imports,
        withdrawal: &withdrawal(world, &ruling, &peers),
    };
    let resources = &world.resources;
    let crowded = crowded::crowded(decided);
    let mut all = Statuses {
        control_planes: self::control_plane::statuses(decided),
        member_rolls: members::rolls(world, &membership),
        members: members::members(world, &membership),
        peers: peer::statuses(decided),
        exports: each(&resources.exports, |key, set| {
            sets::exported(decided, key, set)
        }),
        imports: each(&resources.imports, |key, set| {
            sets::imported(decided, &crowded, key, set)
        }),
    };
    let entries = all.peers.iter();
    if !replicas::leads(decided, entries.map(|(key, s)| (key, &s.discovery_status))) {
        all.leave_to_another(resources);
    }
    all
}

impl Statuses {
    /// Another instance says what all share; ours stays as that one wrote it.
    fn leave_to_another(&mut self, resources: &Resources) {
        macro_rules! leave {
            ($($field:ident),+) => {$(
                for (key, status) in &mut self.$field {
                    let present = resources.$field.get(key);
                    if let Some(present) = present.and_then(|object| object.status.as_ref()) {
                        status.clone_from(present);
                    }
                }
            )+};
        }
        leave!(control_planes, member_rolls, members, exports, imports);
        for (key, status) in &mut self.peers {
            let present = resources
                .peers
                .get(key)
                .and_then(|peer| peer.status.as_ref());
            if let Some(present) = present.filter(|status| !status.conditions.is_empty()) {
                status.conditions.clone_from(&present.conditions);
            }
        }
    }
}

fn each<K: Ord + Clone, V, S>(all: &Shared<K, V>, status: impl Fn(&K, &V) -> S) -> BTreeMap<K, S> {
    all.iter()
        .map(|(key, object)| (key.clone(), status(key, object)))
        .collect()
}

/// The time in whole seconds, as the API stores it.
fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}
