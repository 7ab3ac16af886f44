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
use meshfed_federation::discovery::server::{
    Exports, Server, ServerSettings, Take, WatchId, source_of,
};
use meshfed_pki::{HandshakeRefusal, ServerTls, SpiffeId, TlsConfigError, TrustDomain};
use meshfed_runtime::{AccessLog, DrainWatch};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::Clock;
use crate::apply::Outcomes;
use crate::hub::Seen;
use crate::identity::{OwnIdentity, OwnIdentityError};

/// Connections at a time; each ingress gateway needs one for each watch and list.
const MAX_CONNECTIONS: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: usize = 64 * 1024;

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
}

impl DiscoveryServer {
    pub fn new(seen: Seen, log: AccessLog) -> Self {
        Self {
            state: Arc::default(),
            seen,
            log,
            clock: Clock::default(),
        }
    }

    /// Gives each peer the exports that the plan has for it.
    pub async fn follow(self, mut outcomes: Outcomes) {
        loop {
            let newest = outcomes.borrow_and_update().clone();
            if let Some(outcome) = newest {
                self.take(&outcome);
            }
            if outcomes.changed().await.is_err() {
                return;
            }
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
            });
            peer.client = plan.discovery_clients.get(name).cloned();
            if peer.update(exports, now) {
                let sources = peer.machine.sources(now);
                self.seen.watchers(name.as_str(), sources);
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
            let (server, identity) = (self.clone(), identity.clone());
            connections.spawn(async move {
                let _place = place;
                let Some(domain) = domain else { return };
                let done = server
                    .clone()
                    .connection(stream, address, &identity, &domain)
                    .await;
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
        identity: &OwnIdentity,
        domain: &TrustDomain,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        stream.set_nodelay(true)?;
        let tls = meshfed_pki::server_config(ServerTls {
            identity: identity.cell.clone(),
            trust: identity.trust(domain)?,
            client_ids: Vec::new(),
            alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
        })?;
        let accept = TlsAcceptor::from(tls).accept(stream);
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, accept).await??;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let client = meshfed_pki::peer_id(certificates)?;
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = self.answer(&request, &client, address);
            self.log.line(format!(
                "time={} client={address} peer={client} method={} path={} status={}",
                self.clock.now().wall,
                request.method(),
                request.uri().path(),
                answer.status().as_u16(),
            ));
            async move { Ok::<_, Infallible>(answer) }
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
        http.serve_connection(TokioIo::new(stream), service).await
    }

    fn answer(
        &self,
        request: &Request<Incoming>,
        client: &SpiffeId,
        address: SocketAddr,
    ) -> Response<Either<Full<Bytes>, Events>> {
        let path = request.uri().path();
        let (list, name) = if let Some(name) = path.strip_prefix("/v1/services/") {
            (true, name)
        } else if let Some(name) = path.strip_prefix("/v1/watch/") {
            (false, name)
        } else {
            return empty(StatusCode::NOT_FOUND);
        };
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return empty(StatusCode::METHOD_NOT_ALLOWED);
        }
        let now = self.clock.now();
        let forwarded_for = request
            .headers()
            .get("x-forwarded-for")
            .and_then(|value| value.to_str().ok());
        let source = source_of(forwarded_for, address.ip());
        let mut state = self.lock();
        let Some(peer) = state.peers.get_mut(name) else {
            // The reference's answer for a peer that it does not know.
            return empty(StatusCode::BAD_REQUEST);
        };
        if peer.client.as_ref() != Some(client) {
            warn!(peer = name, %client, "this identity may not ask for the exports to this peer");
            return empty(StatusCode::FORBIDDEN);
        }
        let response = if list {
            let document = peer.machine.list(&source, now);
            debug!(
                peer = name,
                source,
                bytes = document.len(),
                "sent the list of exports"
            );
            Response::new(Either::Left(Full::new(Bytes::from_owner(document))))
        } else {
            let (id, evicted) = peer.machine.open_watch(&source, now);
            if let Some(waker) = evicted.and_then(|id| peer.wakers.remove(&id)) {
                waker.notify_one();
            }
            let waker = Arc::new(Notify::new());
            peer.wakers.insert(id, waker.clone());
            info!(peer = name, source, "the peer watches our exports");
            let events = Events {
                server: self.clone(),
                peer: name.to_owned(),
                generation: peer.generation,
                id,
                waiting: Box::pin(notified(waker.clone())),
                waker,
            };
            let mut response = Response::new(Either::Right(events));
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                header::HeaderValue::from_static("application/json"),
            );
            response
        };
        // Under the lock, so that a newer state cannot be overtaken by this one.
        self.seen.watchers(name, peer.machine.sources(now));
        response
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
        self.seen.watchers(peer, known.machine.sources(now));
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
    fn update(&mut self, exports: &Exports, now: meshfed_federation::moment::Moment) -> bool {
        let concerned = self.machine.set_exports(exports, now);
        for id in &concerned {
            if let Some(waker) = self.wakers.get(id) {
                waker.notify_one();
            }
        }
        !concerned.is_empty()
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
