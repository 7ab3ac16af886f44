//! The control plane's gRPC port: TLS, limits and the identity of whoever calls.
//!
//! One port serves the certificate authority and ADS. A client without a certificate may connect,
//! since it comes to get one; what it may call is up to the services, which find a [`Peer`] in
//! the extensions of every request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use meshfed_pki::{
    HandshakeRefusal, IdentityCell, PeerCertificate, ServerTls, TlsConfigError, TrustDomain,
    TrustStore, peer_certificate, server_config_optional_client,
};
use meshfed_runtime::{Acceptor, DrainWatch};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::service::Routes;
use tower::ServiceExt;
use tracing::{debug, info};

/// Connections at a time, at most; further ones wait in the kernel.
pub const MAX_CONNECTIONS: usize = 4096;
/// Calls and streams of one connection at a time, at most.
pub const MAX_STREAMS: u32 = 64;
/// The longest header list of a request, in bytes; a token is the longest header.
pub const MAX_HEADER_LIST: u32 = 32 * 1024;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without a certificate has this long to get one.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(30);
/// What is open when a connection has to end gets this long to end by itself.
const CLOSING_GRACE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Received bytes that wait for their reader, for one stream and for one connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes that wait to be sent on one stream.
const SEND_BUFFER: usize = 256 * 1024;

/// Who calls: in the extensions of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// Verified for our own trust domain; `None`: the client presented none of it.
    pub certificate: Option<PeerCertificate>,
    /// Of a trust domain that the mesh had before, and of our own authority: it may be exchanged for one
    /// of ours, and is good for nothing else.
    pub former: Option<PeerCertificate>,
}

/// Whom the port believes.
#[derive(Debug, Clone)]
pub struct OwnTrust {
    /// The trust domain of the mesh.
    pub domain: TrustDomain,
    /// What vouches for it, and for the domains before.
    pub store: Arc<TrustStore>,
}

/// What the port needs.
pub struct GrpcServer {
    pub listener: TcpListener,
    /// Our own certificate.
    pub identity: Arc<IdentityCell>,
    /// Followed as it changes.
    pub trust: watch::Receiver<OwnTrust>,
    pub services: Routes,
    pub metrics: GrpcMetrics,
    pub drain: DrainWatch,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// What the port counts.
#[derive(Debug, Clone, Default)]
pub struct GrpcMetrics {
    connections: Gauge,
    refused: Family<ReasonLabel, Counter>,
}

impl GrpcMetrics {
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "meshfed_grpc_connections",
            "Open connections to the gRPC port of the control plane",
            metrics.connections.clone(),
        );
        registry.register(
            "meshfed_grpc_handshakes_refused",
            "TLS handshakes with the gRPC port that failed, by reason",
            metrics.refused.clone(),
        );
        metrics
    }
}

/// Serves until the drain begins, then closes: new calls are sent elsewhere (GOAWAY), running ones
/// have until the drain is forced.
pub async fn serve_grpc(server: GrpcServer) -> Result<(), TlsConfigError> {
    let GrpcServer {
        listener,
        identity,
        mut trust,
        services,
        metrics,
        drain,
    } = server;
    let services = services.prepare();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut acceptor = Acceptor::new(listener);
    let (mut tls, mut domain) = tls_acceptor(&identity, &mut trust)?;
    loop {
        let accepted = async {
            // The semaphore is never closed, so this only waits.
            let slot = slots.clone().acquire_owned().await.ok();
            (slot, acceptor.accept().await)
        };
        let (slot, (stream, address)) = tokio::select! {
            biased;
            () = drain.signaled() => return Ok(()),
            accepted = accepted => accepted,
        };
        if trust.has_changed().unwrap_or(false) {
            (tls, domain) = tls_acceptor(&identity, &mut trust)?;
        }
        let connection = Connection {
            address,
            tls: tls.clone(),
            domain: domain.clone(),
            services: services.clone(),
            trust: trust.clone(),
            metrics: metrics.clone(),
            drain: drain.clone(),
            _slot: slot,
        };
        tokio::spawn(connection.serve(stream));
    }
}

fn tls_acceptor(
    identity: &Arc<IdentityCell>,
    trust: &mut watch::Receiver<OwnTrust>,
) -> Result<(TlsAcceptor, TrustDomain), TlsConfigError> {
    let trust = trust.borrow_and_update().clone();
    let config = server_config_optional_client(ServerTls {
        identity: identity.clone(),
        trust: trust.store,
        client_ids: Vec::new(),
        alpn: vec!["h2".to_string()],
    })?;
    Ok((TlsAcceptor::from(config), trust.domain))
}

struct Connection {
    address: SocketAddr,
    tls: TlsAcceptor,
    /// The mesh's, for this handshake.
    domain: TrustDomain,
    services: Routes,
    trust: watch::Receiver<OwnTrust>,
    metrics: GrpcMetrics,
    drain: DrainWatch,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        let _guard = self.drain.guard();
        match self.handshake(stream).await {
            Ok((stream, peer)) => {
                self.metrics.connections.inc();
                self.serve_http(stream, peer).await;
                self.metrics.connections.dec();
            }
            Err(refusal) => {
                let reason = refusal.label();
                self.metrics
                    .refused
                    .get_or_create(&ReasonLabel { reason })
                    .inc();
                info!(peer = %self.address, reason, "refused a connection: {refusal}");
            }
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Peer), HandshakeRefusal> {
        let stream = tokio::select! {
            accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.tls.accept(stream)) => {
                accepted
                    .map_err(|_| HandshakeRefusal::Timeout)?
                    .map_err(|e| HandshakeRefusal::from(&e))?
            }
            () = self.drain.signaled() => return Err(HandshakeRefusal::Closed),
        };
        let certificate = match stream.get_ref().1.peer_certificates() {
            Some(chain) => Some(peer_certificate(chain).map_err(HandshakeRefusal::NotSpiffe)?),
            None => None,
        };
        let is_ours = |held: &PeerCertificate| *held.id.trust_domain() == self.domain;
        let (certificate, former) = match certificate {
            Some(held) if is_ours(&held) => (Some(held), None),
            former => (None, former),
        };
        let peer = Peer {
            address: self.address,
            certificate,
            former,
        };
        Ok((stream, peer))
    }

    /// Resolves when the mesh has left the trust domain of this connection.
    async fn disowned(&self) {
        let mut trust = self.trust.clone();
        if trust.wait_for(|t| t.domain != self.domain).await.is_err() {
            std::future::pending().await
        }
    }

    async fn serve_http(&self, stream: TlsStream<TcpStream>, peer: Peer) {
        let life = life(&peer, SystemTime::now());
        let address = peer.address;
        let is_known = peer.certificate.is_some();
        let services = self.services.clone();
        let service =
            tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(peer.clone());
                let services = services.clone();
                async move {
                    let answer = services.oneshot(request.map(tonic::body::Body::new)).await;
                    Ok::<_, Infallible>(answer.unwrap_or_else(|never| match never {}))
                }
            });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let connection =
            builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = self.drain.signaled() => None,
            () = tokio::time::sleep(life) => None,
            // It comes back once it has an identity of the domain of now.
            () = self.disowned(), if is_known => {
                info!(peer = %address, "closed a connection of another trust domain");
                return;
            }
        };
        let ended = match ended {
            Some(ended) => Some(ended),
            None => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => Some(ended),
                    () = self.drain.forced() => None,
                    () = tokio::time::sleep(CLOSING_GRACE) => None,
                }
            }
        };
        if let Some(Err(error)) = ended {
            debug!(peer = %self.address, %error, "connection ended");
        }
    }
}

/// How long a connection may stay: as long as the certificate that opened it.
fn life(peer: &Peer, now: SystemTime) -> Duration {
    match &peer.certificate {
        Some(certificate) => certificate
            .not_after
            .duration_since(now)
            .unwrap_or_default(),
        None => ANONYMOUS_LIFE,
    }
}

#[cfg(test)]
mod tests;
