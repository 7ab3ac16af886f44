//! One peer: its machine, and the requests that the machine asks for.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use meshfed_federation::discovery::client::{Action, Client, Failure, RemoteState, RequestId};
use meshfed_federation::names::PeerName;
use meshfed_federation::plan::DiscoveryTarget;
use meshfed_pki::{CertificateAuthority, ClientTls, ServerIds};
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::{self, AbortHandle, JoinError, JoinSet};
use tracing::{debug, error, info, warn};

use super::exchange::{Kind, Progress, exchange, failed, not_modified};
use super::{DiscoveryClient, Way};
use crate::discovery::Clock;
use crate::discovery::publishing::Publishing;

/// Chunks of answers that wait for the machine.
const BACKLOG: usize = 64;
/// A list of more than this is read where it holds up nobody.
const LARGE_LIST: usize = 128 << 10;

pub(super) struct Driver {
    name: PeerName,
    ways: watch::Receiver<Way>,
    target: Arc<DiscoveryTarget>,
    called: Option<Timestamp>,
    ours: DiscoveryClient,
    /// Made for the way to the peer, and anew when that or our own root is another one.
    tls: Option<(Arc<CertificateAuthority>, Arc<ClientConfig>)>,
    clock: Clock,
    machine: Client,
    publishing: Publishing,
    /// Of the last list; it is said once when a peer's lists begin to disagree, and when that ends.
    checksum_agrees: bool,
    requests: BTreeMap<RequestId, Asked>,
    tasks: JoinSet<()>,
    progress_in: mpsc::Sender<(RequestId, Progress)>,
    progress: mpsc::Receiver<(RequestId, Progress)>,
}

/// A request on its way.
struct Asked {
    kind: Kind,
    /// Of its body, so far.
    bytes: usize,
    task: AbortHandle,
}

impl Driver {
    pub fn new(
        name: PeerName,
        ways: watch::Receiver<Way>,
        ours: DiscoveryClient,
        kept: RemoteState,
    ) -> Self {
        let (progress_in, progress) = mpsc::channel(BACKLOG);
        let seed = RandomState::new().hash_one(name.as_str());
        let Way { target, called } = ways.borrow().clone();
        let settings = ours.settings.with_peer(&target.settings);
        Self {
            machine: Client::new(settings, seed, kept),
            publishing: Publishing::new(name.clone(), ours.seen.clone(), ours.cache.clone()),
            checksum_agrees: true,
            name,
            ways,
            target,
            called,
            ours,
            tls: None,
            clock: Clock::default(),
            requests: BTreeMap::new(),
            tasks: JoinSet::new(),
            progress_in,
            progress,
        }
    }

    /// Until nobody has a way for it any more.
    pub async fn run(mut self) {
        loop {
            let actions = self.machine.tick(self.clock.now());
            self.act(actions);
            let now = self.clock.now();
            let wake_in = self.machine.wake_at().saturating_sub(now.elapsed);
            let actions = tokio::select! {
                Some((id, progress)) = self.progress.recv() => self.take(id, progress),
                changed = self.ways.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.go_by_way()
                }
                Some(ended) = self.tasks.join_next_with_id() => self.task_ended(ended),
                () = self.publishing.due() => Vec::new(),
                // Capped, as the timer does not take every duration.
                () = tokio::time::sleep(wake_in.min(Duration::from_secs(3600))) => Vec::new(),
            };
            self.act(actions);
        }
        self.publishing.finish().await;
    }

    /// One that broke has not said so itself.
    fn task_ended(&mut self, ended: Result<(task::Id, ()), JoinError>) -> Vec<Action> {
        let Err(broken) = ended else {
            return Vec::new();
        };
        let mut requests = self.requests.iter();
        let of_task = requests.find(|(_, request)| request.task.id() == broken.id());
        let Some((&id, _)) = of_task else {
            return Vec::new();
        };
        error!(peer = %self.name, error = %broken, "a discovery request broke, which is a fault in this program");
        self.take(
            id,
            Progress::Ended(Some(failed("own control plane", &broken))),
        )
    }

    /// Only another way to the peer needs new connections.
    fn go_by_way(&mut self) -> Vec<Action> {
        let now = self.clock.now();
        let Way { target, called } = self.ways.borrow().clone();
        let before = std::mem::replace(&mut self.target, target);
        let mut actions = Vec::new();
        if !self.target.same_way(&before) {
            self.tls = None;
            actions = self.machine.restart(now);
        }
        let settings = self.ours.settings.with_peer(&self.target.settings);
        actions.extend(self.machine.set_settings(settings, now));
        actions.extend(self.machine.set_imported(&self.target.imported, now));
        if called > self.called {
            self.called = called;
            actions.extend(self.machine.peer_called(now));
        }
        actions
    }

    fn take(&mut self, id: RequestId, progress: Progress) -> Vec<Action> {
        let now = self.clock.now();
        let Some(request) = self.requests.get_mut(&id) else {
            return Vec::new();
        };
        match (request.kind, progress) {
            (Kind::Watch, Progress::Opened(extended)) => {
                info!(peer = %self.name, extended, "watching the exports of the peer");
                self.machine.watch_opened(id, extended, now)
            }
            (Kind::List, Progress::Opened(extended)) => self.machine.list_opened(id, extended, now),
            (Kind::Watch, Progress::Data(chunk)) => self.machine.watch_data(id, &chunk, now),
            (Kind::List, Progress::Data(chunk)) => {
                request.bytes += chunk.len();
                self.machine.list_data(id, &chunk, now)
            }
            (kind, Progress::Ended(failure)) => {
                let (bytes, answered) = (request.bytes, failure.is_none());
                self.requests.remove(&id);
                if let Some(failure) = &failure
                    && *failure != not_modified()
                {
                    info!(peer = %self.name, request = ?kind, ?failure, "a discovery request ended");
                }
                let list = kind == Kind::List && answered;
                if list {
                    debug!(peer = %self.name, bytes, "the list of the peer has arrived");
                }
                let actions = match kind {
                    Kind::Watch => self.machine.watch_closed(id, failure.as_ref(), now),
                    Kind::List if bytes > LARGE_LIST => {
                        aside(|| self.machine.list_done(id, failure.as_ref(), now))
                    }
                    Kind::List => self.machine.list_done(id, failure.as_ref(), now),
                };
                if list {
                    let services = self.machine.state().services.len();
                    debug!(peer = %self.name, services, "the list of the peer was read");
                }
                actions
            }
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::OpenWatch(id) => self.request(id, Kind::Watch),
                Action::GetList(id) => {
                    debug!(peer = %self.name, "asking the peer for its list");
                    self.request(id, Kind::List);
                }
                Action::Cancel(id) => {
                    if let Some(request) = self.requests.remove(&id) {
                        request.task.abort();
                    }
                }
                Action::Changed { services } => {
                    debug!(peer = %self.name, services, "what is known of the peer changed");
                    self.publishing.changed(self.machine.state(), services);
                    self.note_checksum();
                }
            }
        }
    }

    fn note_checksum(&mut self) {
        let state = self.machine.state();
        let agrees = state.list_checksum_agrees || state.last_full_sync.is_none();
        if self.checksum_agrees && !agrees {
            warn!(peer = %self.name, "the checksum of the peer's list is not that of its services; the list was taken");
        } else if agrees && !self.checksum_agrees {
            info!(peer = %self.name, "the checksum of the peer's list is that of its services again");
        }
        self.checksum_agrees = agrees;
    }

    fn request(&mut self, id: RequestId, kind: Kind) {
        let tls = self.tls();
        let target = self.target.clone();
        let headers = match kind {
            Kind::Watch => self.machine.watch_headers(),
            Kind::List => self.machine.list_headers(),
        };
        let progress = self.progress_in.clone();
        let task = self.tasks.spawn(async move {
            let failure = match tls {
                Ok(tls) => exchange(&target, tls, kind, headers, id, &progress)
                    .await
                    .err(),
                Err(failure) => Some(failure),
            };
            // Nobody listens when the peer was removed meanwhile.
            let _gone = progress.send((id, Progress::Ended(failure))).await;
        });
        let bytes = 0;
        self.requests.insert(id, Asked { kind, bytes, task });
    }

    fn tls(&mut self) -> Result<Arc<ClientConfig>, Failure> {
        let authority = self.ours.identity.authority.load_full();
        if let Some((of, tls)) = &self.tls
            && Arc::ptr_eq(of, &authority)
        {
            return Ok(tls.clone());
        }
        let server_id = &self.target.server_id;
        let trust = self.ours.identity.trust(server_id.trust_domain());
        let tls = meshfed_pki::client_config(ClientTls {
            identity: self.ours.identity.cell.clone(),
            trust: trust.map_err(|e| failed("own trust", &e))?,
            server: ServerIds::OneOf(vec![server_id.clone()]),
            alpn: vec!["http/1.1".to_owned()],
        })
        .map_err(|e| failed("TLS", &e))?;
        self.tls = Some((authority, tls.clone()));
        Ok(tls)
    }
}

/// Runs what takes long without holding up the other tasks of this thread.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::PeerCache;
    use crate::discovery::tests::Bench;

    #[tokio::test]
    async fn a_watch_whose_task_breaks_is_over() {
        let bench = Bench::new();
        let dir = tempfile::tempdir().unwrap();
        let cache = PeerCache::open(dir.path().join("peers")).unwrap();
        let ours = DiscoveryClient::new(bench.identity.clone(), bench.seen.clone(), cache);
        let target = Arc::new(bench.target(([127, 0, 0, 1], 1).into()));
        let way = Way {
            target,
            called: None,
        };
        let (_ways, receiver) = watch::channel(way);
        let name: PeerName = "red-mesh".parse().unwrap();
        let mut driver = Driver::new(name, receiver, ours, RemoteState::default());
        let now = driver.clock.now();
        let [Action::OpenWatch(id)] = driver.machine.tick(now)[..] else {
            panic!("a watch is the first thing");
        };
        let task = driver.tasks.spawn(async { panic!("as a fault would") });
        let asked = Asked {
            kind: Kind::Watch,
            bytes: 0,
            task,
        };
        driver.requests.insert(id, asked);
        driver.machine.watch_opened(id, false, now);
        assert!(driver.machine.state().watch.connected);
        let ended = driver.tasks.join_next_with_id().await.unwrap();
        driver.task_ended(ended);
        assert!(!driver.machine.state().watch.connected);
        assert!(
            driver.machine.wake_at() < Duration::MAX,
            "it is opened again"
        );
    }
}
