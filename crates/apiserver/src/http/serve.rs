//! HTTPS.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Request, Response, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, Sleep},
};
use tokio_rustls::TlsAcceptor;

use super::{ResponseBody, answer, refusal};
use crate::{
    api::Api,
    auth::{AdminCertificate, Caller, admin_from_certificates},
    error::ApiError,
};

/// What clients may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// Requests at a time, watches not counted; more are told to come back (429).
    pub requests: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the headers of a request.
    pub headers: Duration,
    /// For a request that is not a watch.
    pub request: Duration,
    /// For a connection without an administrator's certificate, whatever it does; such clients have
    /// nothing to watch. So strangers cannot hold all connections.
    pub stranger: Duration,
    /// For a client that takes nothing of what it is sent.
    pub stall: Duration,
    /// For requests that run when the server is to end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            requests: 256,
            handshake: Duration::from_secs(10),
            headers: Duration::from_secs(15),
            request: Duration::from_secs(60),
            stranger: Duration::from_secs(60),
            stall: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}

/// The server cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener is broken; single failed connections are not reported here.
    #[error("cannot accept connections for the API: {0}")]
    Accept(#[source] io::Error),
}

/// The largest headers of a request, in bytes.
const LARGEST_HEADERS: usize = 64 * 1024;
const STREAMS: u32 = 128;
/// Waiting before accepting again when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Failures of accepting in a row after which the listener is held for broken.
const MOST_FAILURES: u32 = 100;

/// Serves until `drain` is ready, then lets what runs finish within `limits.drain`.
pub async fn serve(
    api: Arc<Api>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    limits: Limits,
    drain: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let shared = Arc::new(Shared {
        acceptor: TlsAcceptor::from(tls),
        requests: Semaphore::new(limits.requests),
        api,
        limits,
    });
    let places = Arc::new(Semaphore::new(shared.limits.connections));
    let (ending, ends) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut failures = 0;
    let mut drain = std::pin::pin!(drain);
    let result = loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        tokio::select! {
            () = &mut drain => break Ok(()),
            Some(_) = connections.join_next() => {}
            (place, accepted) = accepted => match accepted {
                Ok((stream, peer)) => {
                    failures = 0;
                    let (shared, ends) = (Arc::clone(&shared), ends.clone());
                    connections.spawn(async move {
                        if let Err(error) = shared.connection(stream, ends).await {
                            tracing::debug!(%peer, %error, "an API connection ended early");
                        }
                        drop(place);
                    });
                }
                Err(error) if failures < MOST_FAILURES => {
                    failures += 1;
                    tracing::warn!(%error, "cannot accept a connection to the API");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(error) => break Err(ServeError::Accept(error)),
            },
        }
    };
    drop(listener);
    ending.send_replace(true);
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(shared.limits.drain, finished)
        .await
        .is_err()
    {
        connections.shutdown().await;
    }
    result
}

struct Shared {
    acceptor: TlsAcceptor,
    requests: Semaphore,
    api: Arc<Api>,
    limits: Limits,
}

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the client took too long")]
    Slow,
    #[error("{0}")]
    Http(Box<dyn std::error::Error + Send + Sync>),
}

impl Shared {
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        mut ends: watch::Receiver<bool>,
    ) -> Result<(), ConnectionError> {
        stream.set_nodelay(true)?;
        let stream = Stall::new(stream, self.limits.stall);
        let handshake = self.acceptor.accept(stream);
        let stream = tokio::time::timeout(self.limits.handshake, handshake)
            .await
            .map_err(|_| ConnectionError::Slow)??;
        let certificates = stream.get_ref().1.peer_certificates();
        let admin = certificates.and_then(admin_from_certificates).map(Arc::new);
        let stranger = admin.is_none();
        let service = {
            let (shared, ends) = (Arc::clone(&self), ends.clone());
            service_fn(move |request| {
                let (shared, admin, ends) = (Arc::clone(&shared), admin.clone(), ends.clone());
                async move { Ok::<_, Infallible>(shared.request(admin.as_deref(), request, ends).await) }
            })
        };
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.headers)
            .max_buf_size(LARGEST_HEADERS)
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(LARGEST_HEADERS as u32)
            .max_concurrent_streams(STREAMS)
            .keep_alive_interval(Duration::from_secs(30));
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return result.map_err(ConnectionError::Http),
            _ = ends.wait_for(|ending| *ending) => {}
            () = tokio::time::sleep(self.limits.stranger), if stranger => {}
        }
        connection.as_mut().graceful_shutdown();
        match tokio::time::timeout(self.limits.request, connection).await {
            Ok(result) => result.map_err(ConnectionError::Http),
            Err(_) => Err(ConnectionError::Slow),
        }
    }

    async fn request(
        &self,
        admin: Option<&AdminCertificate>,
        request: Request<Incoming>,
        ends: watch::Receiver<bool>,
    ) -> Response<ResponseBody> {
        // Only making the answer counts: a watch's body is not a request that is being worked on.
        let Ok(_place) = self.requests.try_acquire() else {
            return refusal(&ApiError::too_many_requests());
        };
        let caller = Caller::authenticate(&self.api, admin, request.headers());
        let work = Box::pin(answer(&self.api, caller, request));
        let mut response = match tokio::time::timeout(self.limits.request, work).await {
            Ok(response) => response,
            Err(_) => refusal(&ApiError::timeout("the request took too long")),
        };
        response.body_mut().end_with(ends);
        if response.status() == http::StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// A connection whose peer must take something of what it is sent from time to time.
struct Stall {
    stream: TcpStream,
    limit: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    fn new(stream: TcpStream, limit: Duration) -> Self {
        Self {
            stream,
            limit,
            waiting: None,
        }
    }

    fn judge<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.waiting = None;
            return poll;
        }
        let limit = self.limit;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        match waiting.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Stall {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stall {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(context, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(context, poll)
    }
}
