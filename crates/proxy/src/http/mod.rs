//! HTTP/1.1 and HTTP/2 on listeners that route by request.

mod body;
mod forward;
mod headers;
mod routing;
mod tunnel;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;

pub(crate) use body::RequestBody;
pub use routing::RouteError;
pub(crate) use routing::RouteIndex;

use crate::cut::{Control, Cut};
use crate::end::End;
use crate::engine::{Chain, Tables};
use crate::io::Stream;
use crate::limits::{
    HTTP_HEAD_BYTES, HTTP_HEAD_TIMEOUT, HTTP_HEADERS, HTTP_IDLE, HTTP2_CONNECTION_WINDOW,
    HTTP2_SEND_BUFFER, HTTP2_STREAM_WINDOW, HTTP2_STREAMS,
};
use crate::listener::{Admission, Shared, Subject};
use crate::record::{Record, Seed};

/// A client's connection, as its requests see it.
pub(crate) struct HttpConnection {
    pub(crate) tables: Arc<Tables>,
    pub(crate) listener: Arc<Shared>,
    pub(crate) chain: Arc<Chain>,
    pub(crate) subject: Subject,
    pub(crate) seed: Seed,
    pub(crate) control: Arc<Control>,
    /// Held as long as the connection or a tunnel through it is open.
    pub(crate) _admission: Admission,
    active: AtomicUsize,
    requests: AtomicU64,
}

/// Marks a connection as busy with a request until it is dropped.
pub(crate) struct Busy(Arc<HttpConnection>);

impl Busy {
    fn cut_reason(&self) -> Option<Cut> {
        self.0.control.cut_reason()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl HttpConnection {
    pub(crate) fn new(
        tables: Arc<Tables>,
        listener: Arc<Shared>,
        subject: Subject,
        seed: Seed,
        control: Arc<Control>,
        admission: Admission,
    ) -> Arc<Self> {
        Arc::new(Self {
            tables,
            listener,
            chain: subject.chain.clone(),
            subject,
            seed,
            control,
            _admission: admission,
            active: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
        })
    }

    /// Marks the connection as busy with one more request.
    fn busy(self: &Arc<Self>) -> Busy {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }
}

/// Serves the requests of a connection until it ends, and then gives the connection's own record
/// its end if there was no request to tell it.
pub(crate) async fn serve(connection: Arc<HttpConnection>, stream: Stream, record: Record) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP_HEAD_TIMEOUT)
        .max_headers(HTTP_HEADERS)
        .max_buf_size(HTTP_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_header_list_size(HTTP_HEAD_BYTES as u32)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .max_send_buf_size(HTTP2_SEND_BUFFER)
        .keep_alive_interval(crate::limits::KEEPALIVE_IDLE)
        .keep_alive_timeout(crate::limits::KEEPALIVE_INTERVAL);
    let service = {
        let connection = connection.clone();
        service_fn(move |request| {
            let connection = connection.clone();
            async move { Ok::<_, Infallible>(Box::pin(forward::answer(connection, request)).await) }
        })
    };
    let mut http = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let mut idle = pin!(tokio::time::sleep(HTTP_HEAD_TIMEOUT));
    let (mut draining, mut counted) = (false, 0);
    let end = std::future::poll_fn(|cx| {
        if let Poll::Ready(cut) = connection.control.poll_cut(cx) {
            return Poll::Ready(End::from(cut));
        }
        if !draining && connection.control.poll_drain(cx).is_ready() {
            draining = true;
            http.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(served) = http.as_mut().poll(cx) {
            return Poll::Ready(match served {
                Ok(()) => End::ClientLeft,
                Err(_) => End::BadRequest,
            });
        }
        while idle.as_mut().poll(cx).is_ready() {
            let requests = connection.requests.load(Ordering::Relaxed);
            let quiet = requests == counted && connection.active.load(Ordering::Relaxed) == 0;
            if quiet && !draining {
                draining = true;
                http.as_mut().graceful_shutdown();
                cx.waker().wake_by_ref();
            } else if quiet {
                return Poll::Ready(End::Idle);
            }
            counted = requests;
            let wait = if draining {
                HTTP_HEAD_TIMEOUT
            } else {
                HTTP_IDLE
            };
            idle.as_mut().reset(tokio::time::Instant::now() + wait);
        }
        Poll::Pending
    })
    .await;
    if connection.requests.load(Ordering::Relaxed) == 0 {
        record.finish(end);
    } else {
        record.forget();
    }
}
