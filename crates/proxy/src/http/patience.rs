//! How long a client may be silent or slow between requests.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::HttpConnection;
use crate::io::Stream;
use crate::limits::{HTTP_HEAD_TIMEOUT, HTTP_IDLE};

/// How often a connection is looked at. A limit is exceeded by at most this.
const TICK: Duration = Duration::from_secs(5);

/// When the head of a request, of which no request has come yet, began to arrive.
pub(super) struct Head {
    epoch: Instant,
    /// Milliseconds since `epoch`, plus one; 0: nothing has arrived.
    began: AtomicU64,
}

impl Head {
    pub(super) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            began: AtomicU64::new(0),
        }
    }

    /// What has arrived has become a request, or was the body of one.
    pub(super) fn forget(&self) {
        self.began.store(0, Ordering::Relaxed);
    }

    fn arrived(&self) {
        if self.began.load(Ordering::Relaxed) == 0 {
            let now = self.epoch.elapsed().as_millis() as u64 + 1;
            self.began.store(now, Ordering::Relaxed);
        }
    }

    fn is_slow(&self) -> bool {
        let began = self.began.load(Ordering::Relaxed).checked_sub(1);
        began
            .is_some_and(|ms| self.epoch.elapsed() >= Duration::from_millis(ms) + HTTP_HEAD_TIMEOUT)
    }
}

/// A client's stream that tells when bytes arrive.
pub(super) struct Watched {
    stream: Stream,
    connection: Arc<HttpConnection>,
}

impl Watched {
    pub(super) fn new(stream: Stream, connection: Arc<HttpConnection>) -> Self {
        Self { stream, connection }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            this.connection.head.arrived();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What is thought of a connection's silence.
pub(super) enum Verdict {
    Fine,
    /// No request for too long.
    Idle,
    /// A request has begun to arrive and does not get on.
    SlowHead,
}

/// Looks at a connection now and then.
pub(super) struct Patience<'a> {
    connection: &'a HttpConnection,
    tick: Pin<Box<Sleep>>,
    requests: u64,
    idle_since: Instant,
}

impl<'a> Patience<'a> {
    pub(super) fn new(connection: &'a HttpConnection) -> Self {
        Self {
            connection,
            tick: Box::pin(tokio::time::sleep(TICK)),
            requests: 0,
            idle_since: Instant::now(),
        }
    }

    /// Ready at each tick.
    pub(super) fn poll_verdict(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        ready!(self.tick.as_mut().poll(cx));
        let now = Instant::now();
        self.tick.as_mut().reset(now + TICK);
        let requests = self.connection.requests.load(Ordering::Relaxed);
        if requests != self.requests || self.connection.active.load(Ordering::Relaxed) > 0 {
            self.requests = requests;
            self.idle_since = now;
            return Poll::Ready(Verdict::Fine);
        }
        // In HTTP/2, bytes come between requests as well; heads are bounded by its codec.
        if !self.connection.http2.load(Ordering::Relaxed) && self.connection.head.is_slow() {
            return Poll::Ready(Verdict::SlowHead);
        }
        let limit = match requests {
            0 => HTTP_HEAD_TIMEOUT,
            _ => HTTP_IDLE,
        };
        Poll::Ready(if now - self.idle_since >= limit {
            Verdict::Idle
        } else {
            Verdict::Fine
        })
    }
}
