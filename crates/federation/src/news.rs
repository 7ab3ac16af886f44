//! What an administrator should hear of: the difference of two outcomes, in words.
//!
//! The shell posts each piece as an Event of Kubernetes. Services are counted and the first of them named,
//! so that 10,000 services that come at once are one piece of news.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use meshfed_api::control_plane::ServiceMeshControlPlaneStatus;
use meshfed_api::{Condition, Resource};

use crate::difference::Difference;
use crate::plan::Plan;
use crate::world::{ObjectKey, Shared, World};

/// Names that a message has room for; more are counted.
const MAX_NAMED: usize = 5;
/// Kubernetes takes 1024 bytes.
const MAX_MESSAGE: usize = 1000;
/// Conditions whose being false is no fault.
const PROGRESS: &str = "Withdrawn";
/// Reasons for which something that has just begun waits; they are news only when it was there
/// before.
const BEGINNING: [&str; 7] = [
    "ComponentsNotReady",
    "ConnectedOneWay",
    "GatewayNotReady",
    "GatewayWithoutAddress",
    "NotConnected",
    "PeerNotConnected",
    "PeerNotHeard",
];

/// One piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    pub about: About,
    /// Somebody should look at it.
    pub warning: bool,
    /// A word in CamelCase for machines.
    pub reason: String,
    /// For people; at most 1000 bytes.
    pub message: String,
}

/// The object that a piece of news is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct About {
    pub kind: Cow<'static, str>,
    pub api_version: Cow<'static, str>,
    pub key: ObjectKey,
    pub uid: String,
}

/// A world and the plan that follows from it.
pub type Outcome<'a> = (&'a World, &'a Plan);

/// What is new in `after`, of which `shared` is the difference in sharing.
pub fn news(before: Outcome<'_>, after: Outcome<'_>, shared: &Difference) -> Vec<News> {
    let mut all = Vec::new();
    gateways(&mut all, before, after);
    macro_rules! conditions {
        ($($field:ident),+) => {$(
            let about = |key: &ObjectKey| About::of(key, &after.0.resources.$field);
            for (key, status) in &after.1.statuses.$field {
                let known = before.1.statuses.$field.get(key);
                let known = known.map(|status| status.conditions.as_slice());
                turned(&mut all, || about(key), known, &status.conditions);
            }
        )+};
    }
    conditions!(control_planes, peers, exports, imports);
    sharing(&mut all, before.0, after.0, shared);
    all
}

/// Conditions that turned, or are false for another reason than before.
fn turned(
    all: &mut Vec<News>,
    about: impl Fn() -> Option<About>,
    before: Option<&[Condition]>,
    after: &[Condition],
) {
    for condition in after {
        let same_type = |c: &&Condition| c.type_ == condition.type_;
        let known = before.into_iter().flatten().find(same_type);
        let holds = condition.status == "True";
        let reason = condition.reason.as_deref().unwrap_or_default();
        let is_news = match known {
            Some(known) => known.status != condition.status || known.reason != condition.reason,
            None if holds => condition.type_ == "Ready",
            None => !BEGINNING.contains(&reason),
        };
        if !is_news {
            continue;
        }
        let Some(about) = about() else { return };
        let message = condition.message.clone().unwrap_or_default();
        all.push(News {
            about,
            warning: condition.status == "False" && condition.type_ != PROGRESS,
            reason: reason.to_owned(),
            message: bounded(message),
        });
    }
}

/// Gateways that became ready, or are so no longer.
fn gateways(all: &mut Vec<News>, before: Outcome<'_>, after: Outcome<'_>) {
    let Some(ruling) = &after.1.control_plane else {
        return;
    };
    let (Some(status), Some(about)) = (
        after.1.statuses.control_planes.get(ruling),
        About::of(ruling, &after.0.resources.control_planes),
    ) else {
        return;
    };
    let known = before.1.statuses.control_planes.get(ruling);
    for name in after.1.gateways.keys() {
        let (was, is) = (known.map(|status| state(status, name)), state(status, name));
        if was == Some(is) {
            continue;
        }
        let (warning, reason, message) = match is {
            Gateway::Ready => (false, "GatewayReady", "is ready"),
            Gateway::Failed => (true, "GatewayFailed", "does not work as it is configured"),
            Gateway::Waiting if was == Some(Gateway::Ready) => {
                (true, "GatewayNotReady", "is no longer ready")
            }
            Gateway::Waiting => continue,
        };
        all.push(News {
            about: about.clone(),
            warning,
            reason: reason.to_owned(),
            message: format!("the gateway {name} {message}"),
        });
    }
    // One that is going only waits for its peers to hear of it.
    let is_wanted = |plan: &Plan, name| plan.gateways.get(name).is_some_and(|g| !g.going);
    for name in before.1.gateways.keys() {
        if is_wanted(before.1, name) && !is_wanted(after.1, name) {
            all.push(News {
                about: about.clone(),
                warning: false,
                reason: "GatewayRemoved".to_owned(),
                message: format!("the gateway {name} is taken away"),
            });
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gateway {
    Ready,
    Waiting,
    Failed,
}

fn state(status: &ServiceMeshControlPlaneStatus, name: &str) -> Gateway {
    let components = &status.readiness.components;
    let is_in = |all: &[String]| all.iter().any(|n| n == name);
    if is_in(&components.ready) {
        Gateway::Ready
    } else if is_in(&components.unready) {
        Gateway::Failed
    } else {
        Gateway::Waiting
    }
}

/// Names of services by the name of the peer.
type ByPeer = BTreeMap<String, BTreeSet<String>>;
/// The set that says what is shared with a peer in one direction.
type SetOf = fn(&World, &ObjectKey) -> Option<About>;

/// What was exposed, hidden, imported and dropped, by peer.
fn sharing(all: &mut Vec<News>, before: &World, after: &World, shared: &Difference) {
    let by_peer = |entries: Vec<(&str, String)>| {
        let mut peers = ByPeer::new();
        for (peer, name) in entries {
            peers.entry(peer.to_owned()).or_default().insert(name);
        }
        peers
    };
    let exposures = |entries: &[crate::difference::Entry<crate::difference::Exposure>]| {
        let names = entries.iter().map(|entry| {
            let what = &entry.what;
            let service = match what.service.as_str() {
                "" => &what.exported_name,
                service => service,
            };
            (what.peer.as_str(), service.to_owned())
        });
        by_peer(names.collect())
    };
    let usages = |entries: &[crate::difference::Entry<crate::difference::Usage>]| {
        let names = entries.iter();
        by_peer(
            names
                .map(|entry| (entry.what.peer.as_str(), entry.what.hostname.clone()))
                .collect(),
        )
    };
    let kinds: [(&str, &str, ByPeer, SetOf); 4] = [
        (
            "ServicesExposed",
            "newly exported to",
            exposures(&shared.exposed),
            export_set,
        ),
        (
            "ServicesHidden",
            "no longer exported to",
            exposures(&shared.hidden),
            export_set,
        ),
        (
            "ServicesImported",
            "newly imported from",
            usages(&shared.imported),
            import_set,
        ),
        (
            "ServicesDropped",
            "no longer imported from",
            usages(&shared.dropped),
            import_set,
        ),
    ];
    for (reason, what, peers, set) in kinds {
        for (peer, names) in peers {
            let key = ObjectKey::new(after.mesh.system_namespace.clone(), peer.clone());
            let about = set(after, &key)
                .or_else(|| peer_object(after, &key))
                .or_else(|| set(before, &key))
                .or_else(|| peer_object(before, &key));
            let Some(about) = about else { continue };
            let count = match names.len() {
                1 => "1 service is".to_owned(),
                n => format!("{n} services are"),
            };
            all.push(News {
                about,
                warning: false,
                reason: reason.to_owned(),
                message: bounded(format!("{count} {what} {peer}: {}", first_of(&names))),
            });
        }
    }
}

fn first_of(names: &BTreeSet<String>) -> String {
    let named: Vec<&str> = names.iter().take(MAX_NAMED).map(String::as_str).collect();
    match names.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn export_set(world: &World, key: &ObjectKey) -> Option<About> {
    About::of(key, &world.resources.exports)
}

fn import_set(world: &World, key: &ObjectKey) -> Option<About> {
    About::of(key, &world.resources.imports)
}

fn peer_object(world: &World, key: &ObjectKey) -> Option<About> {
    About::of(key, &world.resources.peers)
}

impl About {
    fn of<K: Resource<DynamicType = ()>>(
        key: &ObjectKey,
        all: &Shared<ObjectKey, K>,
    ) -> Option<Self> {
        let object = all.get(key)?;
        Some(Self {
            kind: K::kind(&()),
            api_version: K::api_version(&()),
            key: key.clone(),
            uid: object.meta().uid.clone().unwrap_or_default(),
        })
    }
}

/// Cut at a character, with a sign that something is missing.
fn bounded(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let mut end = MAX_MESSAGE - "…".len();
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    message
}
