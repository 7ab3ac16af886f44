//! The statuses of all resources.
//!
//! They are in the form of the documents, plus conditions in the Kubernetes manner. A status says
//! the same until something changes: times have whole seconds, as the API stores them, and a condition
//! keeps the time at which it last turned.

mod condition;
mod connection;
mod control_plane;
mod members;
mod peer;
mod replicas;
mod sets;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(super) use self::peer::next_change;
use super::Statuses;
use super::configs::Decided;
use super::membership::Membership;
use crate::world::{Resources, Shared};

pub(super) fn statuses(decided: &Decided<'_, '_>, membership: &Membership) -> Statuses {
    let resources = &decided.world.resources;
    let mut all = Statuses {
        control_planes: control_plane::statuses(decided),
        member_rolls: members::rolls(decided.world, membership),
        members: members::members(decided.world, membership),
        peers: peer::statuses(decided),
        exports: each(&resources.exports, |key, set| {
            sets::exported(decided, key, set)
        }),
        imports: each(&resources.imports, |key, set| {
            sets::imported(decided, key, set)
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
