//! Connections to discovery: of our own ingress gateways, and of nobody else.
//!
//! Whoever reaches the port can begin a handshake, so those have places of their own, and the one that
//! takes longest makes room. After it, everyone but our ingress gateways is turned away; each of those
//! has as many places as its peers can use. So neither a workload nor one gateway can take the places
//! of another.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use meshfed_pki::{
    CertificateAuthority, HandshakeRefusal, ServerTls, SpiffeId, TlsConfigError, TrustDomain,
};
use meshfed_runtime::DrainWatch;
use meshfed_xds::KEEPALIVE_TIME;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::DiscoveryServer;
use crate::discovery::keep_alive;
use crate::discovery::stalling::Stalling;
use crate::identity::{OwnIdentity, OwnIdentityError};

const MAX_HEADER_BYTES: usize = 64 * 1024;
/// What every connection begins with has as many bytes at least: the preface of HTTP/2 has, and a request
/// of HTTP/1.1 with a host.
const GREETING_BYTES: usize = 24;
/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What connections may take.
#[derive(Debug, Clone, Copy)]
pub(in crate::discovery) struct Bounds {
    /// Handshakes at a time.
    pub handshakes: usize,
    /// Connections of one gateway at a time, for each peer that it serves: its watches and lists, and
    /// some that idle.
    pub connections: usize,
    /// For a handshake.
    pub handshake: Duration,
    /// For the first bytes, and for the head of a request.
    pub head: Duration,
    /// While something waits to be written and nothing can be.
    pub write: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            handshakes: 256,
            connections: 192,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            write: Duration::from_secs(30),
        }
    }
}

/// Why discovery cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("discovery has no certificate")]
    Identity(#[from] OwnIdentityError),
    #[error("discovery has no TLS")]
    Tls(#[from] TlsConfigError),
}

/// Why a connection was turned away.
#[derive(Debug, thiserror::Error)]
enum TurnedAway {
    #[error(transparent)]
    Refused(#[from] HandshakeRefusal),
    #[error("{0} has as many connections as its peers can use")]
    TooMany(SpiffeId),
    #[error("the connection broke: {0}")]
    Broke(#[from] std::io::Error),
}

impl TurnedAway {
    /// For the access log.
    fn label(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.label(),
            Self::TooMany(_) => "connection_limit",
            Self::Broke(_) => "broken",
        }
    }

    fn who(&self) -> Option<&SpiffeId> {
        match self {
            Self::Refused(refusal) => refusal.claimed_id(),
            Self::TooMany(id) => Some(id),
            Self::Broke(_) => None,
        }
    }
}

/// A connection of one of our ingress gateways.
struct Admitted {
    stream: TlsStream<TcpStream>,
    address: SocketAddr,
    client: SpiffeId,
    /// Counts among the gateway's connections.
    place: Arc<()>,
}

impl DiscoveryServer {
    /// Accepts until the drain begins.
    pub async fn serve(self, listener: TcpListener, identity: Arc<OwnIdentity>, drain: DrainWatch) {
        let mut connections = JoinSet::new();
        let mut handshakes = JoinSet::new();
        let mut shaking: VecDeque<AbortHandle> = VecDeque::new();
        let mut tls: Option<Tls> = None;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = drain.signaled() => return,
                Some(_) = connections.join_next() => continue,
                Some(done) = handshakes.join_next() => {
                    if let Ok(Some(admitted)) = done {
                        connections.spawn(self.clone().connection(admitted));
                    }
                    continue;
                }
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a discovery connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Before the first plan nobody is known, and who is told so would believe it.
            let domain = self.lock().trust_domain.clone();
            let Some(domain) = domain else { continue };
            let acceptor = match Tls::for_now(&mut tls, &identity, domain) {
                Ok(acceptor) => acceptor,
                Err(error) => {
                    warn!(%error, "discovery cannot be served");
                    continue;
                }
            };
            if shaking.len() >= self.bounds.handshakes {
                shaking.retain(|handshake| !handshake.is_finished());
            }
            if shaking.len() >= self.bounds.handshakes
                && let Some(oldest) = shaking.pop_front()
            {
                oldest.abort();
            }
            let server = self.clone();
            shaking.push_back(handshakes.spawn(async move {
                let admitted = server.admit(stream, address, acceptor).await;
                admitted
                    .map_err(|why| server.turned_away(address, &why))
                    .ok()
            }));
        }
    }

    async fn admit(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        acceptor: TlsAcceptor,
    ) -> Result<Admitted, TurnedAway> {
        keep_alive(&stream)?;
        let accept = tokio::time::timeout(self.bounds.handshake, acceptor.accept(stream));
        let accepted = accept.await.map_err(|_| HandshakeRefusal::Timeout)?;
        let stream = accepted.map_err(|error| {
            let refusal = HandshakeRefusal::find(&error);
            refusal.map_or(TurnedAway::Broke(error), TurnedAway::Refused)
        })?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let client = meshfed_pki::peer_id(certificates).map_err(HandshakeRefusal::NotSpiffe)?;
        let place = {
            let state = self.lock();
            let Some(gateway) = state.gateways.get(&client) else {
                return Err(HandshakeRefusal::WrongIdentity { id: client }.into());
            };
            let limit = gateway.peers.max(1) * self.bounds.connections;
            let place = gateway.connections.clone();
            // The gateway itself has one, and this connection.
            if Arc::strong_count(&place) > limit + 1 {
                return Err(TurnedAway::TooMany(client));
            }
            place
        };
        Ok(Admitted {
            stream,
            address,
            client,
            place,
        })
    }

    fn turned_away(&self, address: SocketAddr, why: &TurnedAway) {
        let (time, label) = (self.clock.now().wall, why.label());
        let who = why.who().map_or(String::new(), |id| format!(" peer={id}"));
        self.log
            .line(format!("time={time} client={address}{who} end={label}"));
        debug!(%address, %why, "a discovery connection was turned away");
    }

    async fn connection(self, admitted: Admitted) {
        let Admitted {
            stream,
            address,
            client,
            place: _place,
        } = admitted;
        let bounds = self.bounds;
        let client = Arc::new(client);
        let server = self.clone();
        let asked = Arc::new(AtomicBool::new(false));
        let asks = asked.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            asks.store(true, Ordering::Relaxed);
            let (server, client) = (server.clone(), client.clone());
            async move { Ok::<_, Infallible>(server.respond(&request, &client, address).await) }
        });
        let mut http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.head)
            .max_buf_size(MAX_HEADER_BYTES);
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE_TIME)
            .max_header_list_size(MAX_HEADER_BYTES as u32);
        let stream = Stalling::new(stream, bounds.write).greeted(GREETING_BYTES, bounds.head);
        if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
            // Kept for a next request that did not come in time: nothing is wrong with that.
            let late = error.downcast_ref().is_some_and(hyper::Error::is_timeout);
            let idle = late && asked.load(Ordering::Relaxed);
            let label = if idle { "idle" } else { "broken" };
            let time = self.clock.now().wall;
            self.log
                .line(format!("time={time} client={address} end={label}"));
            debug!(%address, %error, label, "a discovery connection ended");
        }
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
