//! Answers peers that ask what we export to them; they come through our own ingress gateways.
//!
//! The ingress gateway has authenticated the peer and put its name into the path. So a path is
//! served only to the identity of the ingress gateway that this peer's resource names.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use meshfed_federation::discovery::extension::{
    ANNOUNCE_HEADER, ANNOUNCED, REPORT_HEADER, Report, announces,
};
use meshfed_federation::discovery::server::{
    Answer, Document, Exports, Server, ServerSettings, Take, WatchId, source_of,
};
use meshfed_federation::moment::Moment;
use meshfed_pki::{
    CertificateAuthority, HandshakeRefusal, ServerTls, SpiffeId, TlsConfigError, TrustDomain,
};
use meshfed_runtime::{AccessLog, DrainWatch};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::Clock;
use super::stalling::Stalling;
use crate::apply::Outcomes;
use crate::hub::Seen;
use crate::identity::{OwnIdentity, OwnIdentityError};

/// Connections at a time; each ingress gateway needs one for each watch and list.
const MAX_CONNECTIONS: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// A connection on which something waits to be written and nothing can be is given up after this.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// Lists on their way to one peer; more requests are answered with 503.
const MAX_LISTS: usize = 64;
/// Between two statuses of one peer's watches.
const PUBLISH_PAUSE: Duration = Duration::from_millis(250);
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Why discovery cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("discovery has no certificate")]
    Identity(#[from] OwnIdentityError),
    #[error("discovery has no TLS")]
    Tls(#[from] TlsConfigError),
}

/// The discovery service of one mesh.
#[derive(Debug, Clone)]
pub struct DiscoveryServer {
    state: Arc<Mutex<State>>,
    seen: Seen,
    log: AccessLog,
    clock: Clock,
    /// Some peer's watches are to be published.
    unpublished: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    peers: BTreeMap<String, Peer>,
    /// Counts the peers that there ever were, so that a watch of one that was removed and came back
    /// is not taken for one of now.
    generations: u64,
}

#[derive(Debug)]
struct Peer {
    generation: u64,
    /// The ingress gateway that may ask for this peer's list.
    client: Option<SpiffeId>,
    machine: Server,
    /// It is to hear that nothing is exported to it any more.
    telling: bool,
    wakers: BTreeMap<WatchId, Arc<Notify>>,
    /// Room for lists on their way.
    lists: Arc<Semaphore>,
    /// When its watches were last published, on the monotonic clock.
    published_at: Option<Duration>,
    unpublished: bool,
}

/// A request, as far as it matters.
struct Asked {
    source: String,
    extended: bool,
    /// The list that the peer has.
    known: Option<String>,
    report: Option<Report>,
}

/// What a request is answered with.
enum Reply {
    Empty(StatusCode),
    NotModified(String),
    List(Arc<Document>, OwnedSemaphorePermit),
    Watch(Events),
}

impl DiscoveryServer {
    pub fn new(seen: Seen, log: AccessLog) -> Self {
        Self {
            state: Arc::default(),
            seen,
            log,
            clock: Clock::default(),
            unpublished: Arc::default(),
        }
    }

    /// Gives each peer the exports that the plan has for it.
    pub async fn follow(self, mut outcomes: Outcomes) {
        let mut publish_at: Option<tokio::time::Instant> = None;
        loop {
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
                () = self.unpublished.notified(), if publish_at.is_none() => {
                    publish_at = Some(tokio::time::Instant::now() + PUBLISH_PAUSE);
                }
                () = until(publish_at) => {
                    publish_at = None;
                    self.publish_waiting();
                }
            }
        }
    }

    fn publish_waiting(&self) {
        let now = self.clock.now();
        for (name, peer) in &mut self.lock().peers {
            if std::mem::take(&mut peer.unpublished) {
                peer.published_at = Some(now.elapsed);
                self.seen.watchers(name, peer.machine.sources(now));
            }
        }
    }

    /// Tells who watches, under the lock, so that a newer state cannot be overtaken by this one.
    /// A peer that keeps us busy is told of a few times a second.
    fn publish(&self, name: &str, peer: &mut Peer, now: Moment) {
        let recent = |at: Duration| now.elapsed.saturating_sub(at) < PUBLISH_PAUSE;
        if peer.published_at.is_some_and(recent) {
            peer.unpublished = true;
            self.unpublished.notify_one();
        } else {
            peer.published_at = Some(now.elapsed);
            self.seen.watchers(name, peer.machine.sources(now));
        }
    }

    fn take(&self, outcome: &crate::hub::Outcome) {
        let now = self.clock.now();
        let plan = &outcome.plan;
        let mut state = self.lock();
        state.peers.retain(|name, peer| {
            let stays = plan.exports.keys().any(|peer| peer.as_str() == name);
            if !stays {
                self.seen.watchers(name, Vec::new());
                peer.wakers.values().for_each(|waker| waker.notify_one());
            }
            stays
        });
        for (name, exports) in &plan.exports {
            state.generations += 1;
            let generation = state.generations;
            let peer = state.peers.entry(name.to_string()).or_insert_with(|| Peer {
                generation,
                client: None,
                machine: Server::new(ServerSettings::default()),
                telling: false,
                wakers: BTreeMap::new(),
                lists: Arc::new(Semaphore::new(MAX_LISTS)),
                published_at: None,
                unpublished: false,
            });
            peer.client = plan.discovery_clients.get(name).cloned();
            if peer.update(exports, now) {
                self.publish(name.as_str(), peer, now);
            }
            peer.telling = plan.withdrawal.telling.contains(name);
            self.seen.told(name.as_str(), peer.told(now));
        }
    }

    /// Accepts until the drain begins.
    pub async fn serve(
        self,
        listener: TcpListener,
        identity: Arc<OwnIdentity>,
        outcomes: Outcomes,
        drain: DrainWatch,
    ) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        let mut tls: Option<Tls> = None;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = drain.signaled() => return,
                Some(_) = connections.join_next() => continue,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a discovery connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                warn!(%address, limit = MAX_CONNECTIONS, "too many discovery connections");
                continue;
            };
            let domain = outcomes
                .borrow()
                .as_ref()
                .map(|outcome| outcome.plan.trust_domain.clone());
            // Before the first plan nobody is known, and who is told so would believe it.
            let Some(domain) = domain else { continue };
            let acceptor = match Tls::for_now(&mut tls, &identity, domain) {
                Ok(acceptor) => acceptor,
                Err(error) => {
                    warn!(%error, "discovery cannot be served");
                    continue;
                }
            };
            let server = self.clone();
            connections.spawn(async move {
                let _place = place;
                let done = server.clone().connection(stream, address, acceptor).await;
                if let Err(error) = done {
                    let reason = HandshakeRefusal::find(&*error).map_or("broken", |r| r.label());
                    let time = server.clock.now().wall;
                    let line = format!("time={time} client={address} end={reason}");
                    server.log.line(line);
                    debug!(%address, %error, "a discovery connection was refused or broke");
                }
            });
        }
    }

    async fn connection(
        self,
        stream: TcpStream,
        address: SocketAddr,
        acceptor: TlsAcceptor,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        stream.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE);
        socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let accept = acceptor.accept(stream);
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, accept).await??;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let client = meshfed_pki::peer_id(certificates)?;
        let client = Arc::new(client);
        let service = service_fn(move |request: Request<Incoming>| {
            let (server, client) = (self.clone(), client.clone());
            async move { Ok::<_, Infallible>(server.respond(&request, &client, address).await) }
        });
        let mut http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES);
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(20))
            .max_header_list_size(MAX_HEADER_BYTES as u32);
        let stream = Stalling::new(stream, WRITE_PATIENCE);
        http.serve_connection(TokioIo::new(stream), service).await
    }

    async fn respond(
        &self,
        request: &Request<Incoming>,
        client: &SpiffeId,
        address: SocketAddr,
    ) -> Response<Either<Full<Bytes>, Events>> {
        let asked = self.asked(request, address);
        let extended = asked.extended;
        let response = match self.answer(request, client, asked) {
            Reply::Empty(status) => empty(status),
            Reply::NotModified(tag) => tagged(empty(StatusCode::NOT_MODIFIED), &tag),
            Reply::List(document, permit) => {
                let tag = document.tag().to_string();
                // The first who asks pays for the encoding, and must not hold up others for it.
                let body = tokio::task::spawn_blocking(move || document.body(extended)).await;
                match body {
                    Ok(body) => {
                        let body = Bytes::from_owner(Sending {
                            body,
                            _place: permit,
                        });
                        let response = Response::new(Either::Left(Full::new(body)));
                        if extended {
                            tagged(response, &tag)
                        } else {
                            response
                        }
                    }
                    Err(_) => empty(StatusCode::INTERNAL_SERVER_ERROR),
                }
            }
            Reply::Watch(events) => {
                let mut response = Response::new(Either::Right(events));
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    header::HeaderValue::from_static("application/json"),
                );
                response
            }
        };
        self.log.line(format!(
            "time={} client={address} peer={client} method={} path={} status={}",
            self.clock.now().wall,
            request.method(),
            request.uri().path(),
            response.status().as_u16(),
        ));
        if extended {
            announced(response)
        } else {
            response
        }
    }

    /// What a request says beside its path. All of it is the peer's word.
    fn asked(&self, request: &Request<Incoming>, address: SocketAddr) -> Asked {
        let value = |name: &str| {
            let value = request.headers().get(name);
            value.and_then(|value| value.to_str().ok())
        };
        let extended = announces(value(ANNOUNCE_HEADER));
        let report = request
            .headers()
            .get(REPORT_HEADER)
            .filter(|_| extended)
            .map(|value| Report::decode(value.as_bytes()));
        if let Some(Err(error)) = &report {
            debug!(%address, %error, "a report was not taken");
        }
        Asked {
            source: source_of(value("x-forwarded-for"), address.ip()),
            extended,
            known: value("if-none-match")
                .filter(|_| extended)
                .map(str::to_owned),
            report: report.and_then(Result::ok),
        }
    }

    fn answer(&self, request: &Request<Incoming>, client: &SpiffeId, asked: Asked) -> Reply {
        let path = request.uri().path();
        let (list, name) = if let Some(name) = path.strip_prefix("/v1/services/") {
            (true, name)
        } else if let Some(name) = path.strip_prefix("/v1/watch/") {
            (false, name)
        } else {
            return Reply::Empty(StatusCode::NOT_FOUND);
        };
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return Reply::Empty(StatusCode::METHOD_NOT_ALLOWED);
        }
        let now = self.clock.now();
        let source = &asked.source;
        let mut state = self.lock();
        let Some(peer) = state.peers.get_mut(name) else {
            // The reference's answer for a peer that it does not know.
            return Reply::Empty(StatusCode::BAD_REQUEST);
        };
        if peer.client.as_ref() != Some(client) {
            warn!(peer = name, %client, "this identity may not ask for the exports to this peer");
            return Reply::Empty(StatusCode::FORBIDDEN);
        }
        let reply = if list {
            let Ok(permit) = peer.lists.clone().try_acquire_owned() else {
                warn!(peer = name, limit = MAX_LISTS, "too many lists at a time");
                return Reply::Empty(StatusCode::SERVICE_UNAVAILABLE);
            };
            debug!(peer = name, source, "the peer asks for our exports");
            match peer.machine.list(source, asked.known.as_deref(), now) {
                Answer::NotModified(tag) => Reply::NotModified(tag.to_string()),
                Answer::List(document) => Reply::List(document, permit),
            }
        } else {
            let (id, evicted) = peer.machine.open_watch(source, asked.extended, now);
            if let Some(waker) = evicted.and_then(|id| peer.wakers.remove(&id)) {
                waker.notify_one();
            }
            let waker = Arc::new(Notify::new());
            peer.wakers.insert(id, waker.clone());
            info!(peer = name, source, "the peer watches our exports");
            Reply::Watch(Events {
                server: self.clone(),
                peer: name.to_owned(),
                generation: peer.generation,
                id,
                waiting: Box::pin(notified(waker.clone())),
                waker,
            })
        };
        if let Some(report) = asked.report {
            peer.machine.report(source, report, now);
        }
        self.publish(name, peer, now);
        reply
    }

    fn watch_ended(&self, peer: &str, generation: u64, id: WatchId) {
        let now = self.clock.now();
        let mut state = self.lock();
        let Some(known) = state.current(peer, generation) else {
            return;
        };
        known.wakers.remove(&id);
        known.machine.close_watch(id, now);
        self.seen.told(peer, known.told(now));
        self.publish(peer, known, now);
        info!(peer, "the peer's watch of our exports ended");
    }

    /// The machines keep their invariants in every call, so a panic elsewhere does not spoil them.
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn current(&mut self, peer: &str, generation: u64) -> Option<&mut Peer> {
        let peer = self.peers.get_mut(peer)?;
        (peer.generation == generation).then_some(peer)
    }
}

impl Peer {
    /// Now, if it has heard that nothing is exported to it any more.
    fn told(&self, now: meshfed_federation::moment::Moment) -> Option<jiff::Timestamp> {
        (self.telling && self.machine.has_told_all_removals()).then_some(now.wall)
    }

    /// True if somebody was told something.
    fn update(&mut self, exports: &Exports, now: Moment) -> bool {
        let concerned = self.machine.set_exports(exports, now);
        for id in &concerned {
            if let Some(waker) = self.wakers.get(id) {
                waker.notify_one();
            }
        }
        !concerned.is_empty()
    }
}

/// TLS for what is trusted now, made anew when that changes.
struct Tls {
    authority: Arc<CertificateAuthority>,
    domain: TrustDomain,
    config: Arc<ServerConfig>,
}

impl Tls {
    fn for_now(
        kept: &mut Option<Self>,
        identity: &OwnIdentity,
        domain: TrustDomain,
    ) -> Result<TlsAcceptor, ServeError> {
        let authority = identity.authority.load_full();
        if let Some(tls) = kept
            && Arc::ptr_eq(&tls.authority, &authority)
            && tls.domain == domain
        {
            return Ok(tls.config.clone().into());
        }
        let config = meshfed_pki::server_config(ServerTls {
            identity: identity.cell.clone(),
            trust: identity.trust(&domain)?,
            client_ids: Vec::new(),
            alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
        })?;
        *kept = Some(Self {
            authority,
            domain,
            config: config.clone(),
        });
        Ok(config.into())
    }
}

/// A list on its way, which has a place as long as it is not sent.
struct Sending {
    body: Arc<[u8]>,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

fn tagged<B>(mut response: Response<B>, tag: &str) -> Response<B> {
    if let Ok(tag) = header::HeaderValue::from_str(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

fn announced<B>(mut response: Response<B>) -> Response<B> {
    response
        .headers_mut()
        .insert(ANNOUNCE_HEADER, header::HeaderValue::from_static(ANNOUNCED));
    response
}

/// For ever without a time.
async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn empty(status: StatusCode) -> Response<Either<Full<Bytes>, Events>> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

async fn notified(waker: Arc<Notify>) {
    waker.notified().await;
}

/// The body of a watch: events as the machine has them, at the pace of the reader.
pub struct Events {
    server: DiscoveryServer,
    peer: String,
    generation: u64,
    id: WatchId,
    waker: Arc<Notify>,
    waiting: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            let taken = {
                let mut state = self.server.lock();
                let peer = state.current(&self.peer, self.generation);
                peer.map_or(Take::Closed, |peer| {
                    let taken = peer.machine.take(self.id);
                    // Whoever asks for more has sent what it had.
                    if taken == Take::Nothing {
                        let told = peer.told(self.server.clock.now());
                        self.server.seen.told(&self.peer, told);
                    }
                    taken
                })
            };
            match taken {
                Take::Event(event) => {
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(event)))));
                }
                Take::Closed => return Poll::Ready(None),
                Take::Nothing => {}
            }
            match self.waiting.as_mut().poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => self.waiting = Box::pin(notified(self.waker.clone())),
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.server
            .watch_ended(&self.peer, self.generation, self.id);
    }
}
