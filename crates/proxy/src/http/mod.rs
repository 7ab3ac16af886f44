//! HTTP/1.1 and HTTP/2 on listeners that route by request.

mod body;
mod forward;
mod headers;
mod patience;
mod routing;
mod tunnel;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;

use ::http::Version;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;

pub(crate) use body::RequestBody;
use patience::{Head, Patience, Verdict, Watched};
pub use routing::RouteError;
pub(crate) use routing::RouteIndex;

use crate::cut::Control;
use crate::end::End;
use crate::engine::{Chain, Tables};
use crate::io::Stream;
use crate::limits::{
    HTTP_HEAD_BYTES, HTTP_HEADERS, HTTP2_CONNECTION_WINDOW, HTTP2_PING, HTTP2_PING_TIMEOUT,
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
    head: Head,
    http2: AtomicBool,
}

/// Marks a connection as busy with a request until it is dropped.
pub(crate) struct Busy(Arc<HttpConnection>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.head.forget();
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
            head: Head::new(),
            http2: AtomicBool::new(false),
        })
    }

    /// Marks the connection as busy with one more request.
    fn busy(self: &Arc<Self>, version: Version) -> Busy {
        self.http2
            .store(version == Version::HTTP_2, Ordering::Relaxed);
        self.active.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.head.forget();
        Busy(self.clone())
    }
}

/// Serves the requests of a connection until it ends, and then gives the connection's own record
/// its end if there was no request to tell it.
pub(crate) async fn serve(connection: Arc<HttpConnection>, stream: Stream, record: Record) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // hyper's own limit would also end connections that rest between requests.
        .header_read_timeout(None)
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
        .keep_alive_interval(HTTP2_PING)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT);
    let service = {
        let connection = connection.clone();
        service_fn(move |request| {
            let connection = connection.clone();
            async move { Ok::<_, Infallible>(Box::pin(forward::answer(connection, request)).await) }
        })
    };
    let stream = TokioIo::new(Watched::new(stream, connection.clone()));
    let mut http = pin!(builder.serve_connection_with_upgrades(stream, service));
    let mut patience = Patience::new(&connection);
    let mut draining = false;
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
        while let Poll::Ready(verdict) = patience.poll_verdict(cx) {
            match verdict {
                Verdict::Fine => {}
                Verdict::SlowHead => return Poll::Ready(End::BadRequest),
                Verdict::Idle if draining => return Poll::Ready(End::Idle),
                Verdict::Idle => {
                    draining = true;
                    http.as_mut().graceful_shutdown();
                    cx.waker().wake_by_ref();
                }
            }
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
