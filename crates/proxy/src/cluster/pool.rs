//! HTTP connections to endpoints, kept for the next request.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::Cluster;
use super::connect::{Attempts, Dialed, Failure, Generation, dial};
use super::hosts::{Host, Load};
use crate::cut::Control;
use crate::end::End;
use crate::engine::Tables;
use crate::http::RequestBody;
use crate::limits::{
    HTTP_HEAD_BYTES, HTTP_HEADERS, HTTP2_CONNECTION_WINDOW, HTTP2_SEND_BUFFER, HTTP2_STREAM_WINDOW,
    POOL_IDLE, POOL_IDLE_PER_HOST,
};
use crate::trust::Proof;

/// After somebody behind a gateway has gone, the gateway may not know it yet: connections that are opened within
/// this time may still lead there, so they serve one request.
const SETTLING: Duration = Duration::from_secs(2);

/// The connections of one host that are ready for a request.
#[derive(Default)]
pub(crate) struct HostPool(Mutex<State>);

#[derive(Default)]
struct State {
    closed: bool,
    /// What was opened before is not kept.
    settled: Option<Instant>,
    idle: Vec<Idle>,
    shared: Option<Shared>,
    sweeping: bool,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    made: Made,
    since: Instant,
}

struct Shared {
    sender: http2::SendRequest<RequestBody>,
    made: Made,
    used: Instant,
}

/// How a connection was made.
#[derive(Clone)]
struct Made {
    generation: Generation,
    opened: Instant,
    proof: Option<Arc<Proof>>,
    /// What may cut it; tells why if it broke off.
    control: Arc<Control>,
}

impl Made {
    fn cut_reason(&self) -> Option<End> {
        self.control.cut_reason().map(End::from)
    }
}

enum Sender {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

/// A response with its connection.
pub(crate) struct Exchange {
    pub(crate) response: Response<Incoming>,
    pub(crate) upstream: SocketAddr,
    pub(crate) proof: Option<Arc<Proof>>,
    pub(crate) lease: Lease,
}

/// The use of a host for one request, and of the connection if nobody else may use it meanwhile.
pub(crate) struct Lease {
    load: Load,
    sender: Option<http1::SendRequest<RequestBody>>,
    made: Made,
}

impl Lease {
    /// Why we have cut the connection, if we have.
    pub(crate) fn cut_reason(&self) -> Option<End> {
        self.made.cut_reason()
    }

    /// Keeps the connection for the next request. Right only after the end of the response; a
    /// lease that is dropped before closes its connection.
    pub(crate) fn finish(self) {
        let host = self.load.host().clone();
        if let Some(sender) = self.sender {
            HostPool::put(&host, sender, self.made);
        }
    }
}

/// Sends a request to the best endpoint over a kept or a new connection, trying others while it is
/// certain that nothing was sent.
pub(crate) async fn send(
    tables: &Tables,
    cluster: &Cluster,
    http2: bool,
    mut request: Request<RequestBody>,
) -> Result<Exchange, Failure> {
    let mut attempts = Attempts::new(cluster);
    loop {
        let load = attempts.next()?;
        let host = load.host();
        let generation = Generation::current(tables, cluster, host);
        let kept = host.pool.take(http2, &generation);
        let fresh = kept.is_none();
        let (mut sender, made) = match kept {
            Some(kept) => kept,
            None => match establish(tables, cluster, host, http2, generation).await {
                Ok(new) => new,
                Err(end) => {
                    attempts.failed(&load, end);
                    continue;
                }
            },
        };
        let sent = match &mut sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        };
        let upstream = host.address;
        match sent {
            Ok(response) => {
                if response.status().is_server_error() {
                    cluster
                        .hosts()
                        .failed(host, cluster.config.outlier.as_ref());
                } else {
                    host.succeeded();
                }
                let sender = match sender {
                    Sender::Http1(sender) => Some(sender),
                    Sender::Http2(_) => None,
                };
                return Ok(Exchange {
                    response,
                    upstream,
                    proof: made.proof.clone(),
                    lease: Lease { load, sender, made },
                });
            }
            Err(error) => match unsent(error) {
                // A kept connection that was closed meanwhile says nothing about the host.
                Some(unsent) if !fresh => request = unsent,
                Some(unsent) => {
                    attempts.failed(&load, End::UpstreamReset);
                    request = unsent;
                }
                None => {
                    let cut = made.cut_reason();
                    if cut.is_none() {
                        attempts.failed(&load, End::UpstreamReset);
                    }
                    return Err(Failure {
                        end: cut.unwrap_or(End::UpstreamReset),
                        upstream: Some(upstream),
                    });
                }
            },
        }
    }
}

/// The request, if none of it was sent.
fn unsent(mut error: TrySendError<Request<RequestBody>>) -> Option<Request<RequestBody>> {
    error.take_message()
}

async fn establish(
    tables: &Tables,
    cluster: &Cluster,
    host: &Arc<Host>,
    http2: bool,
    generation: Generation,
) -> Result<(Sender, Made), End> {
    let opened = Instant::now();
    let dialed = dial(tables, cluster, host).await?;
    let control = Control::new();
    let guard = dialed.enter(tables, cluster, &control);
    let Dialed { stream, proof, .. } = dialed;
    let made = Made {
        generation,
        opened,
        proof,
        control: control.clone(),
    };
    let io = TokioIo::new(stream);
    if http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
            .max_header_list_size(HTTP_HEAD_BYTES as u32)
            .max_send_buf_size(HTTP2_SEND_BUFFER);
        let (sender, connection) = builder
            .handshake(io)
            .await
            .map_err(|_| End::UpstreamConnect)?;
        tokio::spawn(async move {
            let _guard = guard;
            until_cut(connection, &control).await;
        });
        host.pool.share(host, sender.clone(), made.clone());
        Ok((Sender::Http2(sender), made))
    } else {
        let (sender, connection) = http1::Builder::new()
            .max_headers(HTTP_HEADERS)
            .max_buf_size(HTTP_HEAD_BYTES)
            .handshake(io)
            .await
            .map_err(|_| End::UpstreamConnect)?;
        tokio::spawn(async move {
            let _guard = guard;
            until_cut(connection, &control).await;
        });
        Ok((Sender::Http1(sender), made))
    }
}

/// Drives a connection; its errors reach whoever waits for a response.
async fn until_cut(connection: impl Future<Output = hyper::Result<()>>, control: &Control) {
    tokio::select! {
        _ = connection => {}
        _ = control.cut_signaled() => {}
    }
}

impl HostPool {
    /// Empty, and of no use until the way behind the host has settled.
    pub(crate) fn settling() -> Self {
        Self(Mutex::new(State {
            settled: Some(Instant::now() + SETTLING),
            ..State::default()
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, http2: bool, generation: &Generation) -> Option<(Sender, Made)> {
        let mut state = self.lock();
        if http2 {
            let shared = state.shared.as_mut()?;
            if shared.sender.is_closed() || !shared.made.generation.is(generation) {
                state.shared = None;
                return None;
            }
            shared.used = Instant::now();
            let (sender, made) = (shared.sender.clone(), shared.made.clone());
            return Some((Sender::Http2(sender), made));
        }
        state.sweep(generation);
        // The one used last is the least likely to be closed by the other side. One that is not
        // ready still has the rest of an earlier exchange to do.
        let ready = state.idle.iter().rposition(|i| i.sender.is_ready())?;
        let idle = state.idle.swap_remove(ready);
        Some((Sender::Http1(idle.sender), idle.made))
    }

    fn put(host: &Arc<Host>, sender: http1::SendRequest<RequestBody>, made: Made) {
        let mut state = host.pool.lock();
        let full = state.idle.len() >= POOL_IDLE_PER_HOST;
        if full || sender.is_closed() || !state.keeps(made.opened) {
            return;
        }
        state.idle.push(Idle {
            sender,
            made,
            since: Instant::now(),
        });
        state.keep_swept(host);
    }

    fn share(&self, host: &Arc<Host>, sender: http2::SendRequest<RequestBody>, made: Made) {
        let mut state = self.lock();
        if !state.keeps(made.opened) {
            return;
        }
        state.shared = Some(Shared {
            sender,
            made,
            used: Instant::now(),
        });
        state.keep_swept(host);
    }

    /// Lets go of all connections, for good. Exchanges that are under way go on.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.idle.clear();
        state.shared = None;
    }
}

impl State {
    /// Whether a connection that was opened then may serve more than one request.
    fn keeps(&self, opened: Instant) -> bool {
        !self.closed && self.settled.is_none_or(|settled| opened >= settled)
    }

    fn sweep(&mut self, generation: &Generation) {
        self.idle
            .retain(|i| !i.sender.is_closed() && i.made.generation.is(generation));
    }

    /// One task for each host closes what was not used for long, while there is something.
    fn keep_swept(&mut self, host: &Arc<Host>) {
        if std::mem::replace(&mut self.sweeping, true) {
            return;
        }
        let host = Arc::downgrade(host);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(POOL_IDLE).await;
                let Some(host) = host.upgrade() else { return };
                let mut state = host.pool.lock();
                let old = |since: Instant| since.elapsed() >= POOL_IDLE;
                state
                    .idle
                    .retain(|i| !i.sender.is_closed() && !old(i.since));
                // Streams that are open keep an HTTP/2 connection alive without this handle.
                if state.shared.as_ref().is_some_and(|s| old(s.used)) {
                    state.shared = None;
                }
                if state.idle.is_empty() && state.shared.is_none() {
                    state.sweeping = false;
                    return;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_while_the_way_settles_is_not_kept() {
        let now = Instant::now();
        let pool = HostPool::settling();
        assert!(!pool.lock().keeps(now));
        assert!(pool.lock().keeps(Instant::now() + SETTLING));
        assert!(HostPool::default().lock().keeps(now));
        pool.close();
        assert!(!pool.lock().keeps(Instant::now() + SETTLING));
    }
}
