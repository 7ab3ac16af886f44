//! Asks every peer for its exports, through our own egress gateway.
//!
//! One task per peer drives a [`Client`](meshfed_federation::discovery::client::Client) machine; each
//! request that the machine asks for is a task of its own with a connection of its own.

mod driver;
mod exchange;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use meshfed_federation::discovery::client::{ClientSettings, RemoteState};
use meshfed_federation::names::PeerName;
use meshfed_federation::plan::{DiscoveryTarget, Step};
use meshfed_federation::world::ObjectKey;
use meshfed_runtime::DrainWatch;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::error;

use self::driver::Driver;
use super::PeerCache;
use crate::apply::Outcomes;
use crate::hub::{Outcome, Seen};
use crate::identity::OwnIdentity;

/// From a task that broke to the one in its place.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// The discovery of what all peers export.
#[derive(Debug, Clone)]
pub struct DiscoveryClient {
    identity: Arc<OwnIdentity>,
    seen: Seen,
    cache: PeerCache,
    /// For all peers; each may have others.
    pub(super) settings: ClientSettings,
}

impl DiscoveryClient {
    pub fn new(identity: Arc<OwnIdentity>, seen: Seen, cache: PeerCache) -> Self {
        Self {
            identity,
            seen,
            cache,
            settings: ClientSettings::default(),
        }
    }

    /// Keeps one task for each peer that the plan names. `kept` is what peers exported when they were
    /// last heard. When the drain begins, what is known is put on disk, and this ends.
    pub async fn follow(
        self,
        mut kept: BTreeMap<PeerName, RemoteState>,
        mut outcomes: Outcomes,
        drain: DrainWatch,
    ) {
        let _guard = drain.guard();
        let mut running: BTreeMap<PeerName, Running> = BTreeMap::new();
        let mut forgotten: BTreeSet<PeerName> = BTreeSet::new();
        loop {
            let newest = outcomes.borrow_and_update().clone();
            if let Some(outcome) = newest {
                let wanted = &outcome.plan.discovery;
                let (stay, gone): (BTreeMap<_, _>, _) = std::mem::take(&mut running)
                    .into_iter()
                    .partition(|(name, _)| wanted.contains_key(name));
                running = stay;
                let (names, tasks): (Vec<_>, Vec<_>) = gone.into_iter().unzip();
                join_all(tasks.into_iter().map(Running::end)).await;
                for name in names {
                    // It cannot be asked now; what it exported stays, for as long as it is a peer.
                    let state = self.seen.disconnected(name.as_str());
                    kept.insert(name, state);
                }
                self.forget(&outcome, &mut kept, &mut forgotten);
                for (name, target) in wanted {
                    let way = Way::new(name, target, &outcome);
                    if let Some(task) = running.get_mut(name) {
                        task.go_by(way);
                    } else {
                        let known = kept.remove(name).unwrap_or_default();
                        running.insert(name.clone(), self.start(name, way, known));
                    }
                }
            }
            tokio::select! {
                changed = outcomes.changed() => if changed.is_err() { break },
                () = drain.signaled() => break,
            }
        }
        join_all(running.into_values().map(Running::end)).await;
    }

    /// Nothing stays of what is no peer any more.
    fn forget(
        &self,
        outcome: &Outcome,
        kept: &mut BTreeMap<PeerName, RemoteState>,
        forgotten: &mut BTreeSet<PeerName>,
    ) {
        let system = &outcome.world.mesh.system_namespace;
        let peers = &outcome.world.resources.peers;
        let is_peer =
            |name: &PeerName| peers.contains_key(&ObjectKey::new(system.clone(), name.as_str()));
        forgotten.retain(|name| {
            let stays = is_peer(name);
            if !stays {
                self.seen.forget(name.as_str());
            }
            stays
        });
        for (key, removal) in &outcome.plan.withdrawal.peers {
            if removal.step >= Step::Names
                && let Ok(name) = key.name.parse::<PeerName>()
            {
                kept.remove(&name);
                self.cache.remove(&name);
                self.seen.forgotten(&key.name, &removal.uid);
                forgotten.insert(name);
            }
        }
        kept.retain(|name, _| {
            let stays = is_peer(name);
            if !stays {
                self.seen.forget_remote(name.as_str());
                self.cache.remove(name);
            }
            stays
        });
    }

    fn start(&self, name: &PeerName, way: Way, kept: RemoteState) -> Running {
        let (ways, mut receiver) = watch::channel(way);
        receiver.mark_changed();
        let (ours, name) = (self.clone(), name.clone());
        let mut known = Some(kept);
        let mut tasks = JoinSet::new();
        tasks.spawn(unbroken(name.clone(), move || {
            let known = known
                .take()
                .unwrap_or_else(|| ours.seen.disconnected(name.as_str()));
            Driver::new(name.clone(), receiver.clone(), ours.clone(), known).run()
        }));
        Running { ways, tasks }
    }
}

/// Runs a task until it ends well. One that breaks would leave its peer as it is for ever.
async fn unbroken<T>(peer: PeerName, mut task: impl FnMut() -> T)
where
    T: Future<Output = ()> + Send + 'static,
{
    loop {
        let mut running = JoinSet::new();
        running.spawn(task());
        match running.join_next().await {
            Some(Err(broken)) => {
                error!(%peer, error = %broken, "the discovery of this peer broke, which is a fault in this program, and begins anew");
            }
            _ => return,
        }
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

/// How a peer is reached, and whether it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    target: Arc<DiscoveryTarget>,
    /// When it last began to watch us.
    called: Option<Timestamp>,
}

impl Way {
    fn new(peer: &PeerName, target: &Arc<DiscoveryTarget>, outcome: &Outcome) -> Self {
        let observed = outcome.world.observed.peers.get(peer.as_str());
        let watchers = observed.iter().flat_map(|state| &state.watchers);
        Self {
            target: target.clone(),
            called: watchers.filter_map(|w| w.last_connected).max(),
        }
    }
}

/// The task of one peer; it ends with this value.
struct Running {
    ways: watch::Sender<Way>,
    tasks: JoinSet<()>,
}

impl Running {
    /// Tells the task the way to its peer; it keeps what it knows.
    fn go_by(&mut self, way: Way) {
        self.ways.send_if_modified(|present| {
            let changed = *present != way;
            *present = way;
            changed
        });
    }

    /// Waits until the task has nothing more to say, nor to put on disk.
    async fn end(self) {
        let Self { ways, mut tasks } = self;
        drop(ways);
        while tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests;
