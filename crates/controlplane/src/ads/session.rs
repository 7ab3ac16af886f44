//! The xDS protocol of one stream, without I/O: requests go in, responses come out.
//!
//! Both variants are served: delta and state of the world. What they share is what the client
//! subscribed to, what it was sent, and the order of a change:
//!
//! 1. trust that is gone: what goes on by it ends at once, however much else is on its way;
//! 2. trust, clusters and endpoints, new and changed ones;
//! 3. when these are answered, virtual hosts, of clients that get them one by one, which refer to them;
//! 4. when these are answered, listeners (gone ones too) and routes, which refer to them all;
//! 5. when these are answered, what else is gone: virtual hosts, routes, clusters, endpoints.
//!
//! So nothing refers to what is not there yet or not there any more, but to trust that was taken
//! away; a configuration that still needs a bundle has it. Within step 2 nothing waits for an answer,
//! because Envoy answers for a cluster only when it has its endpoints and secrets.
//!
//! The work is proportional to what changed: a new configuration is compared with the one before it,
//! which costs what is not shared between them, and only those names are looked at.

mod subscription;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use meshfed_proxy_config::ProxyConfig;
use meshfed_xds::{MAX_NAME_LEN, TypeUrl};

use super::encoder::{Encoded, Encoder, Version, count, has};
use subscription::{Current, Outstanding, Sent, Subscription};

/// Names of one kind that a client may always subscribe to beyond those that it was sent or that its
/// configuration has, which is bounded where it is made.
const MAX_NAMES: usize = 16 * 1024;
/// Names of one kind that a client may say it has, and those that it may ask for, when we do not know
/// them: after a restart of the control plane, all of a proxy's are such.
const MAX_UNKNOWN: usize = 256 * 1024;
/// Their bytes.
const MAX_UNKNOWN_BYTES: usize = 32 * 1024 * 1024;
/// About as many bytes of resources are put into one delta response; what is left follows when it
/// was answered. So neither end holds more of a large configuration than this on its way.
const RESPONSE_BYTES: usize = 256 * 1024;
/// After a restart everything is looked at, and little of it may differ from what the client has. After
/// so many names, about those that fill a response, others have their turn.
const NAMES_A_TURN: usize = 768;
/// So many names at most are taken away by one delta response: with the longest names 8 MiB, which a proxy
/// reads.
const MAX_REMOVED: usize = 8 * 1024;
/// A client's reason for a refusal is cut after this many characters.
const MAX_MESSAGE: usize = 1000;
/// Subscribes to every resource of a kind.
const WILDCARD: &str = "*";

/// What must be answered before listeners and routes may refer to it.
const FOUNDATION: [TypeUrl; 3] = [TypeUrl::Trust, TypeUrl::Cluster, TypeUrl::Endpoints];
/// A client is ready when it has listeners and routes, so they come after all else.
const SUPERSTRUCTURE: [TypeUrl; 2] = [TypeUrl::Listener, TypeUrl::Routes];
const STAGES: [&[TypeUrl]; 3] = [&FOUNDATION, &[TypeUrl::VirtualHosts], &SUPERSTRUCTURE];
/// In this order, what is gone is taken away. Listeners are not here: they go at once, and trust goes
/// before everything else.
const REMOVALS: [TypeUrl; 4] = [
    TypeUrl::VirtualHosts,
    TypeUrl::Routes,
    TypeUrl::Cluster,
    TypeUrl::Endpoints,
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
    #[error(
        "more names of one kind that do not exist than {MAX_UNKNOWN}, or than {MAX_UNKNOWN_BYTES} bytes"
    )]
    TooManyNames,
    #[error("more than {MAX_UNKNOWN} resources of one kind that are not ours")]
    TooManyUnknown,
    #[error("a resource name longer than {MAX_NAME_LEN} bytes")]
    NameTooLong,
}

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Next {
    Say(Response),
    /// There is more to look at; others may go on meanwhile.
    Pause,
    /// Nothing, until something changes or is answered.
    Wait,
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
    /// Bytes of resources in a response, about.
    response_bytes: usize,
    names_a_turn: usize,
    /// Kinds that the client has asked for.
    kinds: BTreeMap<TypeUrl, Subscription>,
    encoder: Arc<Encoder>,
    config: Option<Arc<ProxyConfig>>,
    /// Endpoints that are due again: their cluster was sent, and Envoy waits for them anew even if
    /// it has them. Those that are gone since, as they were last.
    rewarm: BTreeMap<Arc<str>, Option<Arc<Encoded>>>,
    nonces: u64,
}

impl Session {
    pub(super) fn new(mode: Mode, encoder: Arc<Encoder>) -> Self {
        let (response_bytes, names_a_turn) = match mode {
            Mode::Delta => (RESPONSE_BYTES, NAMES_A_TURN),
            // It can say nothing but everything.
            Mode::StateOfTheWorld => (usize::MAX, usize::MAX),
        };
        Self {
            mode,
            response_bytes,
            names_a_turn,
            kinds: BTreeMap::new(),
            encoder,
            config: None,
            rewarm: BTreeMap::new(),
            nonces: 0,
        }
    }

    /// From now on this is what the client should have.
    pub(super) fn set_config(&mut self, config: Arc<ProxyConfig>) {
        for (kind, subscription) in &mut self.kinds {
            match &self.config {
                Some(before) => subscription.note(*kind, before, &config, &self.encoder),
                None => subscription.unseen = true,
            }
        }
        if let Some(before) = &self.config {
            for (name, last) in &mut self.rewarm {
                if has(&config, TypeUrl::Endpoints, name) {
                    *last = None;
                } else if has(before, TypeUrl::Endpoints, name) {
                    *last = self.encoder.encode(before, TypeUrl::Endpoints, name);
                }
            }
        }
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
        let room = self.room(kind);
        let config = self.config.clone();
        let is_ours = |name: &str| config.as_ref().is_some_and(|c| has(c, kind, name));
        let unknown = initial_versions.keys().filter(|name| !is_ours(name));
        if unknown.count() > MAX_UNKNOWN {
            return Err(LimitError::TooManyUnknown);
        }
        let grows = !subscribe.is_empty();
        let first = !self.kinds.contains_key(&kind);
        let subscription = self.kinds.entry(kind).or_default();
        if first {
            subscription.wildcard = subscribe.is_empty() && is_wildcard_by_default(kind);
            subscription.owed = subscription.wildcard;
            subscription.unseen = true;
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
                subscription.unseen = true;
                subscription.owed = true;
                continue;
            }
            if !first {
                subscription.lost(&name);
            }
            let name: Arc<str> = name.into();
            subscription.absent.remove(&name);
            subscription.open.insert(name.clone());
            subscription.names.insert(name);
        }
        for name in unsubscribe {
            if name == WILDCARD {
                subscription.wildcard = false;
                subscription.forget_unwanted();
            } else {
                subscription.names.remove(name.as_str());
                subscription.absent.remove(name.as_str());
                if !subscription.wildcard || !is_ours(&name) {
                    subscription.open.remove(name.as_str());
                }
                if !subscription.wildcard {
                    subscription.forget(&name);
                }
            }
        }
        if first {
            subscription.forget_unwanted();
        }
        if grows && !subscription.has_room(room) {
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
        let room = self.room(kind);
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
        let grows = !names.is_subset(&subscription.names);
        subscription.owed |= grows;
        subscription.unseen |= first || names != subscription.names;
        subscription.names = names;
        subscription.names.remove(WILDCARD);
        subscription.forget_unwanted();
        if grows && !subscription.has_room(room) {
            return Err(LimitError::TooManyNames);
        }
        Ok(subscription.answer(kind, reply))
    }

    /// How many names of a kind that the client has nothing of it may always subscribe to.
    fn room(&self, kind: TypeUrl) -> usize {
        let known = self.config.as_ref().map(|config| count(config, kind));
        known.unwrap_or(0) + MAX_NAMES
    }

    /// The next response, if anything can be said now. It counts as sent.
    pub(super) fn next(&mut self) -> Next {
        let Some(config) = self.config.clone() else {
            return Next::Wait;
        };
        if let Some(response) = self.retire(TypeUrl::Trust) {
            return Next::Say(response);
        }
        for stage in STAGES {
            for kind in stage {
                match self.announce(*kind, &config) {
                    Next::Wait => {}
                    other => return other,
                }
            }
            if self.waits_for_any(stage) {
                return Next::Wait;
            }
        }
        let mut retired = REMOVALS.into_iter().filter_map(|kind| self.retire(kind));
        retired.next().map_or(Next::Wait, Next::Say)
    }

    /// Whether the client has accepted all of the configuration; meaningful when
    /// [`next`](Self::next) says to wait.
    pub(super) fn is_synced(&self) -> bool {
        let asked = |kind| self.kinds.contains_key(&kind);
        self.config.is_some()
            && asked(TypeUrl::Cluster)
            && asked(TypeUrl::Listener)
            && self
                .kinds
                .values()
                .all(|s| s.outstanding.is_none() && !s.refuses())
    }

    fn waits_for_any(&self, kinds: &[TypeUrl]) -> bool {
        kinds
            .iter()
            .filter_map(|kind| self.kinds.get(kind))
            .any(|subscription| subscription.outstanding.is_some())
    }

    /// What is new or changed, and the listeners that are gone.
    fn announce(&mut self, kind: TypeUrl, config: &ProxyConfig) -> Next {
        let (mode, turn) = (self.mode, (self.response_bytes, self.names_a_turn));
        let separate = self.kinds.contains_key(&TypeUrl::VirtualHosts);
        let Self { kinds, rewarm, .. } = self;
        let Some(subscription) = free(kinds, kind) else {
            return Next::Wait;
        };
        let current = Current {
            encoder: &self.encoder,
            config,
            kind,
            separate,
        };
        if kind == TypeUrl::Endpoints {
            for (name, last) in std::mem::take(rewarm) {
                // Also what is gone meanwhile: it stays until nothing refers to it, and may come back before.
                if subscription.doubt(&name) {
                    subscription
                        .last
                        .extend(last.map(|last| (name.clone(), last)));
                }
                subscription.absent.remove(&name);
                subscription.open.insert(name);
            }
        }
        let (changed, absent) = subscription.settle_open(&current, turn);
        let mut removed = match mode {
            Mode::Delta => absent,
            Mode::StateOfTheWorld => Vec::new(),
        };
        if kind == TypeUrl::Listener {
            removed.extend(subscription.gone.iter().cloned());
        }
        if changed.is_empty() && removed.is_empty() {
            if !subscription.open.is_empty() {
                return Next::Pause;
            }
            if !subscription.owed {
                return Next::Wait;
            }
        }
        Next::Say(self.respond(kind, changed, removed))
    }

    /// What is gone, and may go.
    fn retire(&mut self, kind: TypeUrl) -> Option<Response> {
        let mode = self.mode;
        let subscription = free(&mut self.kinds, kind)?;
        if subscription.gone.is_empty() {
            return None;
        }
        let most = match mode {
            Mode::Delta => MAX_REMOVED,
            Mode::StateOfTheWorld => usize::MAX,
        };
        let gone: Vec<Arc<str>> = subscription.gone.iter().take(most).cloned().collect();
        if mode == Mode::StateOfTheWorld && kind != TypeUrl::Cluster {
            // In this protocol only clusters and listeners go by not being said.
            for name in &gone {
                subscription.forget(name);
            }
            return None;
        }
        Some(self.respond(kind, Vec::new(), gone))
    }

    fn respond(
        &mut self,
        kind: TypeUrl,
        changed: Vec<Arc<Encoded>>,
        removed: Vec<Arc<str>>,
    ) -> Response {
        self.nonces += 1;
        let nonce = format!("{:x}", self.nonces);
        let keep = self.mode == Mode::StateOfTheWorld;
        let subscription = self.kinds.entry(kind).or_default();
        for name in &removed {
            subscription.forget(name);
            if subscription.names.contains(name) {
                subscription.absent.insert(name.clone());
            }
        }
        let names = changed.iter().map(|r| r.name.clone()).collect();
        for resource in &changed {
            let endpoints = resource.endpoints.clone();
            self.rewarm.extend(endpoints.map(|name| (name, None)));
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
                .resources
                .values()
                .filter_map(|sent| sent.resource.clone())
                .collect(),
        };
        let version = subscription.sent.version;
        subscription.owed = false;
        subscription.continues =
            std::mem::replace(&mut subscription.more, !subscription.open.is_empty());
        subscription.outstanding = Some(Outstanding { version, names });
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

/// Without names in its first request, a client means all clusters or listeners, as it cannot know
/// their names. For the other kinds it means none.
fn is_wildcard_by_default(kind: TypeUrl) -> bool {
    matches!(kind, TypeUrl::Cluster | TypeUrl::Listener)
}

fn check_names<'a>(mut names: impl Iterator<Item = &'a String>) -> Result<(), LimitError> {
    if names.any(|name| name.len() > MAX_NAME_LEN) {
        return Err(LimitError::NameTooLong);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
