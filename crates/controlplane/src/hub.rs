//! The owner of the world: takes observations, plans, and publishes what follows.
//!
//! ```text
//! watches of the API --+
//! discovery clients  --+--> hub: World --Planner-> Outcome --> appliers, ADS, discovery
//! discovery servers  --+         (one task)        (watch channel)
//! ADS connections    --+
//!    (Seen: a watch channel)
//! ```

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use meshfed_federation::discovery::client::RemoteState;
use meshfed_federation::discovery::server::SourceStatus;
use meshfed_federation::plan::{Plan, Planner};
use meshfed_federation::world::{GatewayState, Observed, PeerState, Refusals, Shared, World};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info};

use crate::journal::{Backlog, Feed, backlog};
use crate::observe::Observation;

/// Observations that wait before their senders do.
const INBOX: usize = 1024;
/// At most this many observations go into one plan, so that a flood cannot delay it for ever.
const BATCH: usize = 512;

/// A machine may sleep and a clock may be set; times of the wall clock are looked at this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// A world and what follows from it.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub world: World,
    pub plan: Plan,
}

/// Where everything that is seen outside of the API is told. The newest state counts, and telling
/// never waits.
#[derive(Debug, Clone)]
pub struct Seen(Arc<watch::Sender<Observed>>);

impl Seen {
    #[cfg(test)]
    pub(crate) fn observed(&self) -> Observed {
        self.0.borrow().clone()
    }

    pub fn own_roots(&self, roots: Arc<str>) {
        self.0.send_if_modified(|seen| {
            let changed = seen.own_roots != roots;
            seen.own_roots = roots;
            changed
        });
    }

    /// A gateway's proxy; `None` when it is gone.
    pub fn gateway(&self, name: &str, state: Option<GatewayState>) {
        self.0
            .send_if_modified(|seen| set(&mut seen.gateways, name, state));
    }

    /// The sidecars that refuse their configuration.
    pub fn refusals(&self, refusals: Refusals) {
        self.0.send_if_modified(|seen| {
            let changed = *seen.refusals != refusals;
            if changed {
                seen.refusals = Arc::new(refusals);
            }
            changed
        });
    }

    /// What we know of a peer.
    pub fn remote(&self, peer: &str, remote: Arc<RemoteState>) {
        self.peer(peer, |state| state.remote = remote);
    }

    /// Who of a peer watches us.
    pub fn watchers(&self, peer: &str, watchers: Vec<SourceStatus>) {
        self.peer(peer, |state| state.watchers = watchers);
    }

    /// The peer is not asked any more; what it exported stays, and is returned.
    pub fn disconnected(&self, peer: &str) -> RemoteState {
        let mut kept = RemoteState::default();
        self.peer(peer, |state| {
            let remote = Arc::make_mut(&mut state.remote);
            if remote.watch.connected {
                remote.watch.connected = false;
                remote.watch.last_disconnect = Some(Timestamp::now());
            }
            if remote.services.has_health() {
                remote.services = Arc::new(remote.services.without_health());
            }
            kept = RemoteState::kept(
                remote.services.clone(),
                remote.last_contact,
                remote.lost_at(),
            );
        });
        kept
    }

    /// It is no peer any more, so nothing is imported from it.
    pub fn forget_remote(&self, peer: &str) {
        self.peer(peer, |state| state.remote = Arc::default());
    }

    /// Since when a peer's watchers have heard that nothing is exported to it any more; the first
    /// time counts. `None`: they have not, or are not to.
    pub fn told(&self, peer: &str, at: Option<Timestamp>) {
        let known = self.0.borrow().peers.get(peer).map(|s| s.farewell.told);
        if known.flatten().is_some() == at.is_some() {
            return;
        }
        self.peer(peer, |state| state.farewell.told = at);
    }

    /// No connected proxy has this ServiceMeshPeer in its configuration.
    pub fn let_go(&self, peer: &str, uid: &str) {
        self.peer(peer, |state| {
            state.farewell.let_go = Some(uid.to_owned());
        });
    }

    /// Nothing is kept of this ServiceMeshPeer.
    pub fn forgotten(&self, peer: &str, uid: &str) {
        self.peer(peer, |state| {
            state.remote = Arc::default();
            state.farewell.forgotten = Some(uid.to_owned());
        });
    }

    /// The ServiceMeshPeer is gone, and with it everything that was seen of it.
    pub fn forget(&self, peer: &str) {
        self.0
            .send_if_modified(|seen| set(&mut seen.peers, peer, None));
    }

    fn peer(&self, peer: &str, change: impl FnOnce(&mut PeerState)) {
        self.0.send_if_modified(|seen| {
            let mut state = seen
                .peers
                .get(peer)
                .map(|s| PeerState::clone(s))
                .unwrap_or_default();
            change(&mut state);
            let known = Some(state).filter(|state| *state != PeerState::default());
            set(&mut seen.peers, peer, known)
        });
    }
}

/// True if that changed anything.
fn set<V: PartialEq>(map: &mut Shared<String, V>, key: &str, value: Option<V>) -> bool {
    if map.get(key).map(AsRef::as_ref) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => map.insert(key.to_owned(), Arc::new(value)),
        None => map.remove(key),
    };
    true
}

/// The owner of the world.
#[derive(Debug)]
pub struct Hub {
    world: World,
    planner: Planner,
    observations: mpsc::Receiver<Observation>,
    seen: watch::Receiver<Observed>,
    out: watch::Sender<Option<Arc<Outcome>>>,
    every: Feed,
}

/// What the hub's surroundings need.
#[derive(Debug)]
pub struct Ends {
    pub observations: mpsc::Sender<Observation>,
    pub seen: Seen,
    /// The newest.
    pub outcomes: watch::Receiver<Option<Arc<Outcome>>>,
    /// Each of them.
    pub backlog: Backlog,
}

impl Hub {
    pub fn new(world: World) -> (Self, Ends) {
        let (observations_in, observations) = mpsc::channel(INBOX);
        let (seen_in, seen) = watch::channel(world.observed.clone());
        let (out, outcomes) = watch::channel(None);
        let (every, backlog) = backlog();
        let hub = Self {
            world,
            planner: Planner::new(),
            observations,
            seen,
            out,
            every,
        };
        let ends = Ends {
            observations: observations_in,
            seen: Seen(Arc::new(seen_in)),
            outcomes,
            backlog,
        };
        (hub, ends)
    }

    /// Plans after every change, once the first lists of all `kinds` are there. Ends when nobody
    /// reports any more.
    pub async fn run(mut self, kinds: usize) {
        let mut missing = kinds;
        let mut observations = Vec::with_capacity(BATCH);
        let mut wake_at: Option<Timestamp> = None;
        loop {
            tokio::select! {
                n = self.observations.recv_many(&mut observations, BATCH) => if n == 0 { return },
                changed = self.seen.changed() => if changed.is_err() { return },
                () = sleep_until(wake_at) => {}
            }
            for observation in observations.drain(..) {
                match observation {
                    Observation::Changed(change) => change(&mut self.world.resources),
                    Observation::Listed(change) => {
                        change(&mut self.world.resources);
                        missing = missing.saturating_sub(1);
                        if missing == 0 {
                            info!("the world is whole");
                        }
                    }
                }
            }
            self.world.observed = self.seen.borrow_and_update().clone();
            if missing > 0 {
                continue;
            }
            self.world.now = Timestamp::now();
            let plan = self.planner.plan(&self.world);
            wake_at = plan.wake_at;
            debug!(proxies = plan.proxies.len(), "planned");
            let outcome = Arc::new(Outcome {
                world: self.world.clone(),
                plan,
            });
            self.every.push(outcome.clone());
            self.out.send_replace(Some(outcome));
        }
    }
}

/// Waits for a time of the wall clock; for ever without one.
async fn sleep_until(at: Option<Timestamp>) {
    match at {
        None => std::future::pending().await,
        Some(at) => {
            let left = at.duration_since(Timestamp::now());
            let left = Duration::try_from(left).unwrap_or_default();
            tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
        }
    }
}
