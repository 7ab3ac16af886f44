//! The xDS protocol of one stream, without I/O: requests go in, responses come out.
//!
//! Both variants are served: delta and state of the world. What they share is what the client
//! subscribed to, what it was sent, and the order of a change:
//!
//! 1. trust, clusters and endpoints, new and changed ones;
//! 2. when these are answered, listeners (gone ones too) and routes, which refer to them;
//! 3. when these are answered, what is gone: routes, clusters, endpoints, trust.
//!
//! So nothing refers to what is not there yet or not there any more. Within step 1 nothing waits
//! for an answer, because Envoy answers for a cluster only when it has its endpoints and secrets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use meshfed_xds::{MAX_NAME_LEN, TypeUrl};

use super::encoder::{Encoded, EncodedConfig, Resources, Version};

/// Names of one kind that a client may subscribe to, at most.
pub(super) const MAX_NAMES: usize = 16 * 1024;
/// A client's reason for a refusal is cut after this many characters.
const MAX_MESSAGE: usize = 1000;
/// Subscribes to every resource of a kind.
const WILDCARD: &str = "*";

/// What must be answered before listeners and routes may refer to it.
const FOUNDATION: [TypeUrl; 3] = [TypeUrl::Trust, TypeUrl::Cluster, TypeUrl::Endpoints];
const SUPERSTRUCTURE: [TypeUrl; 2] = [TypeUrl::Listener, TypeUrl::Routes];
/// In this order, what is gone is taken away. Listeners are not here: they go at once.
const REMOVALS: [TypeUrl; 4] = [
    TypeUrl::Routes,
    TypeUrl::Cluster,
    TypeUrl::Endpoints,
    TypeUrl::Trust,
];

/// Which of the two protocols the stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Delta,
    StateOfTheWorld,
}

/// A client that asks for more than it can need.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum LimitError {
    #[error("more than {MAX_NAMES} names of one kind")]
    TooManyNames,
    #[error("a resource name longer than {MAX_NAME_LEN} bytes")]
    NameTooLong,
}

/// What is sent next.
#[derive(Debug)]
pub(super) struct Response {
    pub kind: TypeUrl,
    pub nonce: String,
    /// Of everything of this kind that the client now has.
    pub version: Version,
    /// Delta: what is new or changed. State of the world: everything.
    pub resources: Vec<Arc<Encoded>>,
    /// Delta only.
    pub removed: Vec<Arc<str>>,
}

/// What a client made of a response.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub kind: TypeUrl,
    pub version: Version,
    /// Its reason, if it refused.
    pub refused: Option<String>,
}

/// The answer that a request may carry.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub nonce: String,
    pub error: Option<String>,
}

/// A delta request, as far as it is about subscriptions.
#[derive(Debug, Default)]
pub(super) struct DeltaSubscription {
    pub subscribe: Vec<String>,
    pub unsubscribe: Vec<String>,
    pub initial_versions: HashMap<String, String>,
}

#[derive(Debug)]
pub(super) struct Session {
    mode: Mode,
    /// Kinds that the client has asked for.
    kinds: BTreeMap<TypeUrl, Subscription>,
    config: Option<Arc<EncodedConfig>>,
    /// Endpoints that are due again: their cluster was sent, and Envoy waits for them anew even if
    /// it has them.
    rewarm: BTreeSet<Arc<str>>,
    nonces: u64,
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// What the client has, as far as we know.
    sent: BTreeMap<Arc<str>, Sent>,
    /// Names that it was told do not exist.
    absent: BTreeSet<Arc<str>>,
    last_nonce: String,
    /// The version of the response that was not answered yet; at most one for each kind.
    outstanding: Option<Version>,
    /// It refused what it was sent last.
    refused: bool,
    /// A response is due even if it is empty: the client waits for it.
    owed: bool,
}

#[derive(Debug)]
struct Sent {
    /// `None`: it has one, but not of ours.
    version: Option<Version>,
    /// State of the world only, where what is gone is said again until it may go.
    resource: Option<Arc<Encoded>>,
}

impl Session {
    pub(super) fn new(mode: Mode) -> Self {
        Self {
            mode,
            kinds: BTreeMap::new(),
            config: None,
            rewarm: BTreeSet::new(),
            nonces: 0,
        }
    }

    /// From now on this is what the client should have.
    pub(super) fn set_config(&mut self, config: Arc<EncodedConfig>) {
        self.config = Some(config);
    }

    /// Takes a delta request.
    pub(super) fn delta(
        &mut self,
        kind: TypeUrl,
        request: DeltaSubscription,
        reply: Reply,
    ) -> Result<Option<Answer>, LimitError> {
        let DeltaSubscription {
            subscribe,
            unsubscribe,
            initial_versions,
        } = request;
        check_names(
            subscribe
                .iter()
                .chain(&unsubscribe)
                .chain(initial_versions.keys()),
        )?;
        let first = !self.kinds.contains_key(&kind);
        let subscription = self.kinds.entry(kind).or_default();
        if first {
            subscription.wildcard = subscribe.is_empty() && is_wildcard_by_default(kind);
            subscription.owed = subscription.wildcard;
            for (name, version) in initial_versions {
                subscription.sent.insert(
                    name.into(),
                    Sent {
                        version: Version::parse(&version),
                        resource: None,
                    },
                );
            }
        }
        for name in subscribe {
            if name == WILDCARD {
                subscription.wildcard = true;
                subscription.owed = true;
                continue;
            }
            if !first {
                // Asking again for what it should have means that it has lost it.
                subscription.sent.remove(name.as_str());
            }
            subscription.absent.remove(name.as_str());
            subscription.names.insert(name.into());
        }
        for name in unsubscribe {
            if name == WILDCARD {
                subscription.wildcard = false;
            } else {
                subscription.names.remove(name.as_str());
            }
        }
        subscription.forget_unwanted();
        if subscription.names.len() > MAX_NAMES {
            return Err(LimitError::TooManyNames);
        }
        Ok(subscription.answer(kind, reply))
    }

    /// Takes a request of the state-of-the-world protocol; it repeats all names each time.
    pub(super) fn state_of_the_world(
        &mut self,
        kind: TypeUrl,
        names: Vec<String>,
        reply: Reply,
    ) -> Result<Option<Answer>, LimitError> {
        check_names(names.iter())?;
        let first = !self.kinds.contains_key(&kind);
        let subscription = self.kinds.entry(kind).or_default();
        if !first && reply.nonce != subscription.last_nonce {
            // About an older response. What it says now is said again with the newer one.
            return Ok(None);
        }
        let names: BTreeSet<Arc<str>> = names.into_iter().map(Arc::from).collect();
        if first {
            subscription.wildcard = names.is_empty() && is_wildcard_by_default(kind);
            subscription.owed = true;
        }
        if names.contains(WILDCARD) && !subscription.wildcard {
            subscription.wildcard = true;
            subscription.owed = true;
        }
        if !names.is_subset(&subscription.names) {
            subscription.owed = true;
        }
        subscription.names = names;
        subscription.names.remove(WILDCARD);
        subscription.forget_unwanted();
        Ok(subscription.answer(kind, reply))
    }

    /// The next response, if anything can be said now. It counts as sent.
    pub(super) fn next(&mut self) -> Option<Response> {
        let config = self.config.clone()?;
        for stage in [&FOUNDATION[..], &SUPERSTRUCTURE[..]] {
            for kind in stage {
                let response = self.announce(*kind, &config);
                if response.is_some() {
                    return response;
                }
            }
            if self.waits_for_any(stage) {
                return None;
            }
        }
        for kind in REMOVALS {
            let response = self.retire(kind, &config);
            if response.is_some() {
                return response;
            }
        }
        None
    }

    /// Whether the client has accepted all of the configuration; meaningful when
    /// [`next`](Self::next) has nothing more to say.
    pub(super) fn is_synced(&self) -> bool {
        let asked = |kind| self.kinds.contains_key(&kind);
        self.config.is_some()
            && asked(TypeUrl::Cluster)
            && asked(TypeUrl::Listener)
            && self
                .kinds
                .values()
                .all(|s| s.outstanding.is_none() && !s.refused)
    }

    fn waits_for_any(&self, kinds: &[TypeUrl]) -> bool {
        kinds
            .iter()
            .filter_map(|kind| self.kinds.get(kind))
            .any(|subscription| subscription.outstanding.is_some())
    }

    /// What is new or changed, and the listeners that are gone.
    fn announce(&mut self, kind: TypeUrl, config: &EncodedConfig) -> Option<Response> {
        let mode = self.mode;
        let Self { kinds, rewarm, .. } = self;
        let subscription = free(kinds, kind)?;
        let current = config.of(kind);
        if kind == TypeUrl::Endpoints {
            for name in std::mem::take(rewarm) {
                // What is gone meanwhile stays until nothing refers to it.
                if current.contains_key(&name) {
                    subscription.sent.remove(&name);
                }
                subscription.absent.remove(&name);
            }
        }
        let changed = subscription.changed(current);
        let mut removed = match mode {
            Mode::Delta => subscription.newly_absent(current),
            Mode::StateOfTheWorld => Vec::new(),
        };
        if kind == TypeUrl::Listener {
            removed.extend(subscription.gone(current));
        }
        if changed.is_empty() && removed.is_empty() && !subscription.owed {
            return None;
        }
        Some(self.respond(kind, current, changed, removed))
    }

    /// What is gone and no longer referred to.
    fn retire(&mut self, kind: TypeUrl, config: &EncodedConfig) -> Option<Response> {
        let mode = self.mode;
        let subscription = free(&mut self.kinds, kind)?;
        let current = config.of(kind);
        let gone = subscription.gone(current);
        if gone.is_empty() {
            return None;
        }
        if mode == Mode::StateOfTheWorld && kind != TypeUrl::Cluster {
            // In this protocol only clusters and listeners go by not being said.
            for name in &gone {
                subscription.sent.remove(name);
            }
            return None;
        }
        Some(self.respond(kind, current, Vec::new(), gone))
    }

    fn respond(
        &mut self,
        kind: TypeUrl,
        current: &Resources,
        changed: Vec<Arc<Encoded>>,
        removed: Vec<Arc<str>>,
    ) -> Response {
        self.nonces += 1;
        let nonce = format!("{:x}", self.nonces);
        let keep = self.mode == Mode::StateOfTheWorld;
        let subscription = self.kinds.entry(kind).or_default();
        for name in &removed {
            subscription.sent.remove(name);
            if subscription.names.contains(name) {
                subscription.absent.insert(name.clone());
            }
        }
        for resource in &changed {
            self.rewarm.extend(resource.endpoints.clone());
            subscription.absent.remove(&resource.name);
            subscription.sent.insert(
                resource.name.clone(),
                Sent {
                    version: Some(resource.version),
                    resource: keep.then(|| resource.clone()),
                },
            );
        }
        let resources = match self.mode {
            Mode::Delta => changed,
            Mode::StateOfTheWorld => subscription
                .sent
                .values()
                .filter_map(|sent| sent.resource.clone())
                .collect(),
        };
        let version = match self.mode {
            Mode::Delta => Version::of_all(subscription.wanted(current)),
            Mode::StateOfTheWorld => Version::of_all(resources.iter()),
        };
        subscription.owed = false;
        subscription.outstanding = Some(version);
        subscription.last_nonce = nonce.clone();
        Response {
            kind,
            nonce,
            version,
            resources,
            removed,
        }
    }
}

/// The subscription to a kind, if nothing of it is unanswered.
fn free(kinds: &mut BTreeMap<TypeUrl, Subscription>, kind: TypeUrl) -> Option<&mut Subscription> {
    kinds
        .get_mut(&kind)
        .filter(|subscription| subscription.outstanding.is_none())
}

impl Subscription {
    fn wanted<'a>(&'a self, current: &'a Resources) -> impl Iterator<Item = &'a Arc<Encoded>> {
        // By the shorter way: a gateway has thousands of endpoints, a sidecar asks for a few.
        let all = self.wildcard.then(|| current.values());
        let named = (!self.wildcard).then(|| self.names.iter().filter_map(|n| current.get(n)));
        all.into_iter().flatten().chain(named.into_iter().flatten())
    }

    fn changed(&self, current: &Resources) -> Vec<Arc<Encoded>> {
        self.wanted(current)
            .filter(|resource| {
                let sent = self.sent.get(&resource.name);
                sent.and_then(|sent| sent.version) != Some(resource.version)
            })
            .cloned()
            .collect()
    }

    fn gone(&self, current: &Resources) -> Vec<Arc<str>> {
        self.sent
            .keys()
            .filter(|name| !current.contains_key(*name))
            .cloned()
            .collect()
    }

    /// Names that it asked for, that do not exist, and of which it was not told so.
    fn newly_absent(&self, current: &Resources) -> Vec<Arc<str>> {
        self.names
            .iter()
            .filter(|name| {
                !current.contains_key(*name)
                    && !self.sent.contains_key(*name)
                    && !self.absent.contains(*name)
            })
            .cloned()
            .collect()
    }

    fn forget_unwanted(&mut self) {
        let Self {
            wildcard,
            names,
            sent,
            absent,
            ..
        } = self;
        if !*wildcard {
            sent.retain(|name, _| names.contains(name));
        }
        absent.retain(|name| names.contains(name));
    }

    fn answer(&mut self, kind: TypeUrl, reply: Reply) -> Option<Answer> {
        if reply.nonce.is_empty() || reply.nonce != self.last_nonce {
            return None;
        }
        let version = self.outstanding.take()?;
        self.refused = reply.error.is_some();
        Some(Answer {
            kind,
            version,
            refused: reply
                .error
                .map(|message| message.chars().take(MAX_MESSAGE).collect()),
        })
    }
}

/// Without names in its first request, a client means all clusters or listeners, as it cannot know
/// their names. For the other kinds it means none.
fn is_wildcard_by_default(kind: TypeUrl) -> bool {
    matches!(kind, TypeUrl::Cluster | TypeUrl::Listener)
}

fn check_names<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), LimitError> {
    let mut count = 0;
    for name in names {
        count += 1;
        if name.len() > MAX_NAME_LEN {
            return Err(LimitError::NameTooLong);
        }
    }
    if count > 2 * MAX_NAMES {
        return Err(LimitError::TooManyNames);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
