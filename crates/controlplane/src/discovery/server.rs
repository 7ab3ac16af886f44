//! Tells peers what we export to them: who may ask, who watches, and what each is told.
//!
//! Peers come through our own ingress gateways. The gateway has authenticated the peer and put its
//! name into the path. So a path is served only to the identity of the ingress gateway that this
//! peer's resource names.

mod listener;
mod requests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(super) use listener::Bounds;
pub use listener::ServeError;
use meshfed_federation::discovery::server::{Exports, Server, ServerSettings, WatchId};
use meshfed_federation::moment::Moment;
use meshfed_federation::plan::GatewayKind;
use meshfed_pki::{SpiffeId, TrustDomain};
use meshfed_runtime::AccessLog;
use tokio::sync::{Notify, Semaphore};

use super::Clock;
use crate::apply::Outcomes;
use crate::hub::{Outcome, Seen};

/// Lists on their way to one peer; more requests are answered with 503.
const MAX_LISTS: usize = 64;
/// Between two statuses of one peer's watches.
const PUBLISH_PAUSE: Duration = Duration::from_millis(250);
/// An entry of a status is dropped after its time, not at it.
const AFTER: Duration = Duration::from_millis(1);

/// The discovery service of one mesh.
#[derive(Debug, Clone)]
pub struct DiscoveryServer {
    state: Arc<Mutex<State>>,
    seen: Seen,
    log: AccessLog,
    clock: Clock,
    /// Some peer's watches are to be published at another time.
    rescheduled: Arc<Notify>,
    pub(super) bounds: Bounds,
    pub(super) settings: ServerSettings,
}

#[derive(Debug, Default)]
struct State {
    /// Of the first plan and those after it.
    trust_domain: Option<TrustDomain>,
    peers: BTreeMap<String, Peer>,
    /// Who may connect at all: our ingress gateways, also while no peer names them. A request that
    /// arrives by one that has not heard yet that its peer is gone is answered with 400.
    gateways: BTreeMap<SpiffeId, Gateway>,
    /// Counts the peers that there ever were, so that a watch of one that was removed and came back
    /// is not taken for one of now.
    generations: u64,
}

#[derive(Debug, Default)]
struct Gateway {
    /// Whose list it asks for.
    peers: usize,
    /// Each of its connections has one.
    connections: Arc<()>,
}

#[derive(Debug)]
struct Peer {
    generation: u64,
    /// The ingress gateway that may ask for this peer's list.
    client: Option<SpiffeId>,
    machine: Server,
    /// It is to hear that nothing is exported to it any more, and that this is gone.
    withdrawn: Option<Exports>,
    /// That was so when it was first heard of, as we began in the middle of its removal. Nobody watches
    /// then, and that says nothing: who did is on the way.
    resumed: bool,
    watches: BTreeMap<WatchId, Watch>,
    /// Room for lists on their way.
    lists: Arc<Semaphore>,
    /// When its watches were last published, and are to be next, on the monotonic clock.
    published_at: Option<Duration>,
    publish_due: Option<Duration>,
}

#[derive(Debug)]
struct Watch {
    /// Who opened it.
    client: SpiffeId,
    waker: Arc<Notify>,
}

impl DiscoveryServer {
    pub fn new(seen: Seen, log: AccessLog) -> Self {
        Self {
            state: Arc::default(),
            seen,
            log,
            clock: Clock::default(),
            rescheduled: Arc::default(),
            bounds: Bounds::default(),
            settings: ServerSettings::default(),
        }
    }

    /// Gives each peer the exports that the plan has for it.
    pub async fn follow(self, mut outcomes: Outcomes) {
        loop {
            let due = self.next_publication();
            tokio::select! {
                changed = outcomes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let newest = outcomes.borrow_and_update().clone();
                    if let Some(outcome) = newest {
                        self.take(&outcome);
                    }
                }
                () = self.rescheduled.notified() => {}
                () = self.until(due) => self.publish_due(),
            }
        }
    }

    fn next_publication(&self) -> Option<Duration> {
        let state = self.lock();
        let dues = state.peers.values().filter_map(|peer| peer.publish_due);
        dues.min()
    }

    /// For ever without a time.
    async fn until(&self, due: Option<Duration>) {
        match due {
            Some(due) => {
                let wait = due.saturating_sub(self.clock.now().elapsed);
                tokio::time::sleep(wait).await;
            }
            None => std::future::pending().await,
        }
    }

    fn publish_due(&self) {
        let now = self.clock.now();
        for (name, peer) in &mut self.lock().peers {
            if peer.publish_due.is_some_and(|due| due <= now.elapsed) {
                self.publish_now(name, peer, now);
            }
        }
    }

    /// Tells who watches, under the lock, so that a newer state cannot be overtaken by this one.
    /// A peer that keeps us busy is told of a few times a second.
    fn publish(&self, name: &str, peer: &mut Peer, now: Moment) {
        let next = peer.published_at.map(|at| at + PUBLISH_PAUSE);
        match next.filter(|next| *next > now.elapsed) {
            Some(next) => peer.publish_due = Some(next),
            None => self.publish_now(name, peer, now),
        }
        self.rescheduled.notify_one();
    }

    fn publish_now(&self, name: &str, peer: &mut Peer, now: Moment) {
        peer.published_at = Some(now.elapsed);
        self.seen.watchers(name, peer.machine.sources(now));
        // Who went is shown for a time, also when nothing else happens.
        peer.publish_due = peer.machine.next_forgotten().map(|at| at + AFTER);
    }

    fn take(&self, outcome: &Outcome) {
        let now = self.clock.now();
        let plan = &outcome.plan;
        let mut state = self.lock();
        state.trust_domain = Some(plan.trust_domain.clone());
        state.set_gateways(outcome);
        state.peers.retain(|name, peer| {
            let stays = plan.exports.keys().any(|peer| peer.as_str() == name);
            if !stays {
                self.seen.watchers(name, Vec::new());
                peer.watches.values().for_each(|w| w.waker.notify_one());
            }
            stays
        });
        for (name, exports) in &plan.exports {
            state.generations += 1;
            let generation = state.generations;
            let peer = state.peers.entry(name.to_string()).or_insert_with(|| Peer {
                generation,
                client: None,
                machine: Server::new(self.settings),
                withdrawn: None,
                resumed: plan.withdrawn.contains_key(name),
                watches: BTreeMap::new(),
                lists: Arc::new(Semaphore::new(MAX_LISTS)),
                published_at: None,
                publish_due: None,
            });
            let ended = peer.set_client(plan.discovery_clients.get(name), now);
            if peer.update(exports, now) || ended {
                self.publish(name.as_str(), peer, now);
            }
            peer.withdrawn = plan.withdrawn.get(name).cloned();
            peer.resumed &= peer.withdrawn.is_some();
            self.seen.told(name.as_str(), peer.told(now));
        }
    }

    fn watch_ended(&self, peer: &str, generation: u64, id: WatchId) {
        let now = self.clock.now();
        let mut state = self.lock();
        let Some(known) = state.current(peer, generation) else {
            return;
        };
        known.watches.remove(&id);
        known.machine.close_watch(id, now);
        self.seen.told(peer, known.told(now));
        self.publish(peer, known, now);
    }

    /// The machines keep their invariants in every call, so a panic elsewhere does not spoil them.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn current(&mut self, peer: &str, generation: u64) -> Option<&mut Peer> {
        let peer = self.peers.get_mut(peer)?;
        (peer.generation == generation).then_some(peer)
    }

    fn set_gateways(&mut self, outcome: &Outcome) {
        let plan = &outcome.plan;
        let namespace = &outcome.world.mesh.system_namespace;
        let mut before = std::mem::take(&mut self.gateways);
        let ingresses = plan.gateways.values();
        let ids = ingresses
            .filter(|gateway| gateway.kind == GatewayKind::Ingress)
            .filter_map(|gateway| {
                let account = &gateway.service_account;
                plan.trust_domain.service_account(namespace, account).ok()
            });
        for id in ids.chain(plan.discovery_clients.values().cloned()) {
            let mut gateway = before.remove(&id).unwrap_or_default();
            gateway.peers = plan
                .discovery_clients
                .values()
                .filter(|c| **c == id)
                .count();
            self.gateways.entry(id).or_insert(gateway);
        }
    }
}

impl Peer {
    /// Now, if it has heard that nothing is exported to it any more.
    fn told(&self, now: Moment) -> Option<jiff::Timestamp> {
        let telling = self.withdrawn.is_some() && !self.resumed;
        (telling && self.machine.has_told_all_removals()).then_some(now.wall)
    }

    /// Ends what another gateway opened, once there is one that may ask: the peer comes back by that.
    /// While there is none, nothing is exported, and who watches is to hear so. True if any ended.
    fn set_client(&mut self, client: Option<&SpiffeId>, now: Moment) -> bool {
        self.client = client.cloned();
        let Some(client) = client else { return false };
        let before = self.watches.len();
        self.watches.retain(|id, watch| {
            let stays = watch.client == *client;
            if !stays {
                self.machine.close_watch(*id, now);
                watch.waker.notify_one();
            }
            stays
        });
        self.watches.len() != before
    }

    /// True if somebody was told something.
    fn update(&mut self, exports: &Exports, now: Moment) -> bool {
        let concerned = self.machine.set_exports(exports, now);
        for id in &concerned {
            if let Some(watch) = self.watches.get(id) {
                watch.waker.notify_one();
            }
        }
        !concerned.is_empty()
    }
}
