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
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use meshfed_federation::discovery::client::{
    Action, Client, ClientSettings, Failure, RemoteState, RequestId,
};
use meshfed_federation::discovery::extension::{ANNOUNCE_HEADER, announces};
use meshfed_federation::names::PeerName;
use meshfed_federation::plan::{DiscoveryTarget, Step};
use meshfed_federation::world::ObjectKey;
use meshfed_pki::{CertificateAuthority, ClientTls, HandshakeRefusal, ServerIds};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsConnector;
use tracing::{debug, info};

use super::publishing::Publishing;
use super::{Clock, PeerCache};
use crate::apply::Outcomes;
use crate::hub::Seen;
use crate::identity::OwnIdentity;

/// Chunks of answers that wait for the machine.
const BACKLOG: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long, and how many characters, a gateway may take to say why it has no answer for us.
const WORDS_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_WORDS: usize = 120;
/// A dead path is noticed within about a minute even when nothing is sent: the system asks nine times.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(5);
/// Bytes of the head of an answer.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// A list of more than this is read where it holds up nobody.
const LARGE_LIST: usize = 128 << 10;

/// Keeps one task for each peer that the plan names. `kept` is what peers exported when they were
/// last heard.
pub async fn follow(
    identity: Arc<OwnIdentity>,
    seen: Seen,
    cache: PeerCache,
    mut kept: BTreeMap<PeerName, RemoteState>,
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
                let state = seen.disconnected(name.as_str());
                kept.insert(name, state);
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
                let observed = outcome.world.observed.peers.get(name.as_str());
                let watchers = observed.iter().flat_map(|state| &state.watchers);
                let way = Way {
                    target: target.clone(),
                    called: watchers.filter_map(|w| w.last_connected).max(),
                };
                if let Some(task) = running.get_mut(name) {
                    task.go_by(way);
                    continue;
                }
                let (ways, mut receiver) = watch::channel(way);
                receiver.mark_changed();
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
                running.insert(name.clone(), Running { ways, tasks });
            }
        }
        if outcomes.changed().await.is_err() {
            return;
        }
    }
}

/// How a peer is reached, and whether it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    target: Arc<DiscoveryTarget>,
    /// When it last began to watch us.
    called: Option<Timestamp>,
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

    /// Waits until the task has nothing more to say.
    async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

/// What a request has to tell.
#[derive(Debug)]
enum Progress {
    /// Answered with 200; whether the answer announces the extension.
    Opened(bool),
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
    ways: watch::Receiver<Way>,
    target: Arc<DiscoveryTarget>,
    called: Option<Timestamp>,
    identity: Arc<OwnIdentity>,
    /// Made for the way to the peer, and anew when that or our own root is another one.
    tls: Option<(Arc<CertificateAuthority>, Arc<ClientConfig>)>,
    clock: Clock,
    machine: Client,
    publishing: Publishing,
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
    fn new(
        name: PeerName,
        ways: watch::Receiver<Way>,
        identity: Arc<OwnIdentity>,
        seen: Seen,
        cache: PeerCache,
        kept: RemoteState,
    ) -> Self {
        let (progress_in, progress) = mpsc::channel(BACKLOG);
        let seed = RandomState::new().hash_one(name.as_str());
        let Way { target, called } = ways.borrow().clone();
        Self {
            machine: Client::new(ClientSettings::of_peer(&target.settings), seed, kept),
            publishing: Publishing::new(name.clone(), seen, cache),
            name,
            ways,
            target,
            called,
            identity,
            tls: None,
            clock: Clock::default(),
            requests: BTreeMap::new(),
            tasks: JoinSet::new(),
            progress_in,
            progress,
        }
    }

    async fn run(mut self) {
        loop {
            let actions = self.machine.tick(self.clock.now());
            self.act(actions);
            let now = self.clock.now();
            let wake_in = self.machine.wake_at().saturating_sub(now.elapsed);
            let actions = tokio::select! {
                Some((id, progress)) = self.progress.recv() => self.take(id, progress),
                changed = self.ways.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.go_by_way()
                }
                Some(_) = self.tasks.join_next() => Vec::new(),
                () = self.publishing.due() => Vec::new(),
                // Capped, as the timer does not take every duration.
                () = tokio::time::sleep(wake_in.min(Duration::from_secs(3600))) => Vec::new(),
            };
            self.act(actions);
        }
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
        let settings = ClientSettings::of_peer(&self.target.settings);
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
                let bytes = request.bytes;
                self.requests.remove(&id);
                if let Some(failure) = &failure
                    && *failure != not_modified()
                {
                    info!(peer = %self.name, request = ?kind, ?failure, "a discovery request ended");
                }
                match kind {
                    Kind::Watch => self.machine.watch_closed(id, failure.as_ref(), now),
                    Kind::List if bytes > LARGE_LIST => {
                        aside(|| self.machine.list_done(id, failure.as_ref(), now))
                    }
                    Kind::List => self.machine.list_done(id, failure.as_ref(), now),
                }
            }
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::OpenWatch(id) => self.request(id, Kind::Watch),
                Action::GetList(id) => self.request(id, Kind::List),
                Action::Cancel(id) => {
                    if let Some(request) = self.requests.remove(&id) {
                        request.task.abort();
                    }
                }
                Action::Changed { services } => {
                    debug!(peer = %self.name, services, "what is known of the peer changed");
                    self.publishing.changed(self.machine.state(), services);
                }
            }
        }
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
        let authority = self.identity.authority.load_full();
        if let Some((of, tls)) = &self.tls
            && Arc::ptr_eq(of, &authority)
        {
            return Ok(tls.clone());
        }
        let server_id = &self.target.server_id;
        let trust = self.identity.trust(server_id.trust_domain());
        let tls = meshfed_pki::client_config(ClientTls {
            identity: self.identity.cell.clone(),
            trust: trust.map_err(|e| failed("own trust", &e))?,
            server: ServerIds::OneOf(vec![server_id.clone()]),
            alpn: vec!["http/1.1".to_owned()],
        })
        .map_err(|e| failed("TLS", &e))?;
        self.tls = Some((authority, tls.clone()));
        Ok(tls)
    }
}

fn not_modified() -> Failure {
    status_failure(StatusCode::NOT_MODIFIED, String::new())
}

/// `says` is empty unless a gateway on the way said something.
fn status_failure(status: StatusCode, says: String) -> Failure {
    let code = status.as_u16();
    let reason = status.canonical_reason().unwrap_or_default().to_owned();
    if says.is_empty() {
        Failure::Status(code, reason)
    } else {
        Failure::Gateway { code, reason, says }
    }
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::Transport(format!("{what}: {error}"))
}

/// Runs what takes long without holding up the other tasks of this thread.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// One request from connect to the end of its body.
async fn exchange(
    target: &DiscoveryTarget,
    tls: Arc<ClientConfig>,
    kind: Kind,
    headers: Vec<(&'static str, String)>,
    id: RequestId,
    progress: &mpsc::Sender<(RequestId, Progress)>,
) -> Result<(), Failure> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target.address))
        .await
        .map_err(|e| failed("egress gateway", &e))?
        .map_err(|e| failed("egress gateway", &e))?;
    keep_alive(&stream).map_err(|e| failed("egress gateway", &e))?;
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
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
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
    for (name, value) in headers {
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
    let announced = response.headers().get(ANNOUNCE_HEADER);
    let extended = announces(announced.and_then(|value| value.to_str().ok()));
    let mut body = response.into_body();
    if status != StatusCode::OK {
        let says = match status.as_u16() {
            502..=504 => words(&mut body).await,
            _ => String::new(),
        };
        return Err(status_failure(status, says));
    }
    let tell = async |what| {
        let told = progress.send((id, what)).await;
        told.map_err(|_| Failure::Transport("not wanted any more".to_owned()))
    };
    tell(Progress::Opened(extended)).await?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| failed("HTTP", &e))?;
        if let Ok(chunk) = frame.into_data() {
            tell(Progress::Data(chunk)).await?;
        }
    }
    Ok(())
}

/// The first line of an answer that is text, without what a terminal would act on; empty if there
/// is none in time.
async fn words(body: &mut Incoming) -> String {
    let frame = tokio::time::timeout(WORDS_TIMEOUT, body.frame()).await;
    let data = frame.ok().flatten().and_then(Result::ok);
    let data = data.and_then(|frame| frame.into_data().ok());
    let text = String::from_utf8_lossy(data.as_deref().unwrap_or_default()).into_owned();
    let line = text.lines().next().unwrap_or_default();
    let plain = line.chars().filter(|c| c.is_ascii_graphic() || *c == ' ');
    plain.take(MAX_WORDS).collect()
}

fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE_AGAIN);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}
