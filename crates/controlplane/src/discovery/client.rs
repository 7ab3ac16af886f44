//! Asks every peer for its exports, through our own egress gateway.
//!
//! One task per peer drives a [`Client`] machine; each request that the machine asks for is a task
//! of its own with a connection of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use meshfed_federation::discovery::client::{Action, Client, ClientSettings, Failure, RequestId};
use meshfed_federation::discovery::remote::RemoteServices;
use meshfed_federation::names::PeerName;
use meshfed_federation::plan::{DiscoveryTarget, Step};
use meshfed_federation::world::ObjectKey;
use meshfed_pki::{ClientTls, HandshakeRefusal, ServerIds};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsConnector;
use tracing::{debug, info};

use super::{Clock, PeerCache};
use crate::apply::Outcomes;
use crate::hub::Seen;
use crate::identity::OwnIdentity;

/// Chunks of answers that wait for the machine.
const BACKLOG: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A dead path is noticed within about a minute even when nothing is sent.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Keeps one task for each peer that the plan names. `kept` is what peers exported when they were
/// last heard.
pub async fn follow(
    identity: Arc<OwnIdentity>,
    seen: Seen,
    cache: PeerCache,
    mut kept: BTreeMap<PeerName, Arc<RemoteServices>>,
    mut outcomes: Outcomes,
) {
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
            for (name, task) in gone {
                task.end().await;
                // It cannot be asked now; what it exported stays, for as long as it is a peer.
                let services = seen.disconnected(name.as_str());
                kept.insert(name, services);
            }
            let system = &outcome.world.mesh.system_namespace;
            let peers = &outcome.world.resources.peers;
            let is_peer = |name: &PeerName| {
                peers.contains_key(&ObjectKey::new(system.clone(), name.as_str()))
            };
            forgotten.retain(|name| {
                let stays = is_peer(name);
                if !stays {
                    seen.forget(name.as_str());
                }
                stays
            });
            for (key, removal) in &outcome.plan.withdrawal.peers {
                if removal.step >= Step::Names
                    && let Ok(name) = key.name.parse::<PeerName>()
                {
                    kept.remove(&name);
                    cache.remove(&name);
                    seen.forgotten(&key.name, &removal.uid);
                    forgotten.insert(name);
                }
            }
            kept.retain(|name, _| {
                let stays = is_peer(name);
                if !stays {
                    seen.forget_remote(name.as_str());
                    cache.remove(name);
                }
                stays
            });
            for (name, target) in wanted {
                if let Some(task) = running.get_mut(name) {
                    task.go_by(target);
                    continue;
                }
                let (targets, receiver) = watch::channel(target.clone());
                let driver = Driver::new(
                    name.clone(),
                    receiver,
                    identity.clone(),
                    seen.clone(),
                    cache.clone(),
                    kept.remove(name).unwrap_or_default(),
                );
                let mut tasks = JoinSet::new();
                tasks.spawn(driver.run());
                running.insert(name.clone(), Running { targets, tasks });
            }
        }
        if outcomes.changed().await.is_err() {
            return;
        }
    }
}

/// The task of one peer; it ends with this value.
struct Running {
    targets: watch::Sender<Arc<DiscoveryTarget>>,
    tasks: JoinSet<()>,
}

impl Running {
    /// Tells the task the way to its peer; it keeps what it knows.
    fn go_by(&mut self, target: &Arc<DiscoveryTarget>) {
        self.targets.send_if_modified(|present| {
            let changed = present != target;
            *present = target.clone();
            changed
        });
    }

    /// Waits until the task has nothing more to say.
    async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

/// What a request has to tell.
#[derive(Debug)]
enum Progress {
    Opened,
    Data(Bytes),
    Ended(Option<Failure>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Watch,
    List,
}

struct Driver {
    name: PeerName,
    targets: watch::Receiver<Arc<DiscoveryTarget>>,
    identity: Arc<OwnIdentity>,
    seen: Seen,
    cache: PeerCache,
    clock: Clock,
    machine: Client,
    requests: BTreeMap<RequestId, (Kind, AbortHandle)>,
    tasks: JoinSet<()>,
    progress_in: mpsc::Sender<(RequestId, Progress)>,
    progress: mpsc::Receiver<(RequestId, Progress)>,
}

impl Driver {
    fn new(
        name: PeerName,
        targets: watch::Receiver<Arc<DiscoveryTarget>>,
        identity: Arc<OwnIdentity>,
        seen: Seen,
        cache: PeerCache,
        last_good: Arc<RemoteServices>,
    ) -> Self {
        let (progress_in, progress) = mpsc::channel(BACKLOG);
        let seed = RandomState::new().hash_one(name.as_str());
        Self {
            name,
            targets,
            identity,
            seen,
            cache,
            clock: Clock::default(),
            machine: Client::new(ClientSettings::default(), seed, last_good),
            requests: BTreeMap::new(),
            tasks: JoinSet::new(),
            progress_in,
            progress,
        }
    }

    async fn run(mut self) {
        loop {
            let actions = self.machine.tick(self.clock.now());
            self.act(actions).await;
            let wake_in = self
                .machine
                .wake_at()
                .saturating_sub(self.clock.now().elapsed);
            let actions = tokio::select! {
                Some((id, progress)) = self.progress.recv() => self.take(id, progress),
                changed = self.targets.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.machine.restart(self.clock.now())
                }
                Some(_) = self.tasks.join_next() => Vec::new(),
                // Capped, as the timer does not take every duration.
                () = tokio::time::sleep(wake_in.min(Duration::from_secs(3600))) => Vec::new(),
            };
            self.act(actions).await;
        }
    }

    fn take(&mut self, id: RequestId, progress: Progress) -> Vec<Action> {
        let now = self.clock.now();
        let Some((kind, _)) = self.requests.get(&id) else {
            return Vec::new();
        };
        match (*kind, progress) {
            (Kind::Watch, Progress::Opened) => {
                info!(peer = %self.name, "watching the exports of the peer");
                self.machine.watch_opened(id, now)
            }
            (Kind::List, Progress::Opened) => Vec::new(),
            (Kind::Watch, Progress::Data(chunk)) => self.machine.watch_data(id, &chunk, now),
            (Kind::List, Progress::Data(chunk)) => self.machine.list_data(id, &chunk, now),
            (kind, Progress::Ended(failure)) => {
                self.requests.remove(&id);
                if let Some(failure) = &failure {
                    info!(peer = %self.name, request = ?kind, ?failure, "a discovery request ended");
                }
                match kind {
                    Kind::Watch => self.machine.watch_closed(id, failure.as_ref(), now),
                    Kind::List => self.machine.list_done(id, failure.as_ref(), now),
                }
            }
        }
    }

    async fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::OpenWatch(id) => self.request(id, Kind::Watch),
                Action::GetList(id) => self.request(id, Kind::List),
                Action::Cancel(id) => {
                    if let Some((_, task)) = self.requests.remove(&id) {
                        task.abort();
                    }
                }
                Action::Changed { services } => {
                    debug!(peer = %self.name, services, "what is known of the peer changed");
                    let state = self.machine.state().clone();
                    if services {
                        let (cache, name) = (self.cache.clone(), self.name.clone());
                        let list = state.services.clone();
                        // One after the other, so that an older list never replaces a newer one.
                        let writing =
                            tokio::task::spawn_blocking(move || cache.store(&name, &list));
                        let _panic_was_reported = writing.await;
                    }
                    self.seen.remote(self.name.as_str(), state);
                }
            }
        }
    }

    fn request(&mut self, id: RequestId, kind: Kind) {
        let target = self.targets.borrow().clone();
        let identity = self.identity.clone();
        let progress = self.progress_in.clone();
        let task = self.tasks.spawn(async move {
            let failure = exchange(&target, &identity, kind, id, &progress)
                .await
                .err();
            // Nobody listens when the peer was removed meanwhile.
            let _gone = progress.send((id, Progress::Ended(failure))).await;
        });
        self.requests.insert(id, (kind, task));
    }
}

/// One request from connect to the end of its body.
async fn exchange(
    target: &DiscoveryTarget,
    identity: &OwnIdentity,
    kind: Kind,
    id: RequestId,
    progress: &mpsc::Sender<(RequestId, Progress)>,
) -> Result<(), Failure> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| Failure::Transport(format!("{what}: {error}"));
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target.address))
        .await
        .map_err(|e| failed("egress gateway", &e))?
        .map_err(|e| failed("egress gateway", &e))?;
    keep_alive(&stream).map_err(|e| failed("egress gateway", &e))?;
    let domain = target.server_id.trust_domain();
    let tls = meshfed_pki::client_config(ClientTls {
        identity: identity.cell.clone(),
        trust: identity
            .trust(domain)
            .map_err(|e| failed("own trust", &e))?,
        server: ServerIds::OneOf(vec![target.server_id.clone()]),
        alpn: vec!["http/1.1".to_owned()],
    })
    .map_err(|e| failed("TLS", &e))?;
    let host = target.authority.split(':').next().unwrap_or_default();
    let name = rustls::pki_types::ServerName::try_from(host.to_owned())
        .map_err(|e| failed("egress gateway", &e))?;
    let stream = TlsConnector::from(tls)
        .connect(name, stream)
        .await
        .map_err(|error| {
            let refusal = HandshakeRefusal::find(&error);
            refusal.map_or_else(
                || failed("TLS with the egress gateway", &error),
                |refusal| failed("TLS with the egress gateway", &refusal.label()),
            )
        })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed("HTTP", &e))?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // What goes wrong here comes back from the request or its body as well.
        let _ = connection.await;
    });
    let path = match kind {
        Kind::Watch => "/v1/watch",
        Kind::List => "/v1/services/",
    };
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(header::HOST, &target.authority)
        .header(
            header::USER_AGENT,
            concat!("meshfed/", env!("CARGO_PKG_VERSION")),
        );
    for (name, value) in &target.headers {
        request = request.header(name, value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed("HTTP", &e))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| failed("HTTP", &e))?;
    let status = response.status();
    if status != StatusCode::OK {
        let reason = status.canonical_reason().unwrap_or_default().to_owned();
        return Err(Failure::Status(status.as_u16(), reason));
    }
    let mut body = response.into_body();
    let tell = async |what| {
        let told = progress.send((id, what)).await;
        told.map_err(|_| Failure::Transport("not wanted any more".to_owned()))
    };
    tell(Progress::Opened).await?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| failed("HTTP", &e))?;
        if let Ok(chunk) = frame.into_data() {
            tell(Progress::Data(chunk)).await?;
        }
    }
    Ok(())
}

fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}
