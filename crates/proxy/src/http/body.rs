//! Bodies on their way through, neither buffered nor delayed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::task::AtomicWaker;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::Busy;
use crate::cluster::Lease;
use crate::end::End;
use crate::io::Traffic;
use crate::record::Record;

/// The body broke off.
#[derive(Debug, thiserror::Error)]
#[error("the message was broken off: {}", .0.label())]
pub(crate) struct Broken(End);

/// When something last moved in an exchange, and when its request had ended.
pub(crate) struct Activity {
    epoch: Instant,
    last: AtomicU64,
    /// Milliseconds since `epoch`, plus one; 0: the request has not ended.
    request_end: AtomicU64,
    request_failed: AtomicBool,
    waker: AtomicWaker,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            epoch: Instant::now(),
            last: AtomicU64::new(0),
            request_end: AtomicU64::new(0),
            request_failed: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        })
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    fn touch(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    fn request_ended(&self) {
        let _ = self.request_end.compare_exchange(
            0,
            self.now() + 1,
            Ordering::Release,
            Ordering::Relaxed,
        );
        self.waker.wake();
    }

    /// The client broke off its request.
    pub(super) fn request_failed(&self) -> bool {
        self.request_failed.load(Ordering::Relaxed)
    }
}

/// A client's request body on its way to the upstream.
pub(crate) struct RequestBody {
    inner: Incoming,
    traffic: Arc<Traffic>,
    activity: Arc<Activity>,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, traffic: Arc<Traffic>, activity: Arc<Activity>) -> Self {
        if inner.is_end_stream() {
            activity.request_ended();
        }
        Self {
            inner,
            traffic,
            activity,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.activity.touch();
                if let Some(data) = frame.data_ref() {
                    self.traffic.add_received(data.len() as u64);
                }
                if self.inner.is_end_stream() {
                    self.activity.request_ended();
                }
            }
            Poll::Ready(Some(Err(_))) => {
                self.activity.request_failed.store(true, Ordering::Relaxed);
            }
            Poll::Ready(None) => self.activity.request_ended(),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        // The upstream may answer without reading it to its end.
        self.activity.request_ended();
    }
}

/// The times that an exchange may take.
pub(super) struct Limits {
    activity: Arc<Activity>,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
    response: Option<Duration>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Limits {
    /// Zero means no limit.
    pub(super) fn new(activity: Arc<Activity>, idle: Duration, response: Duration) -> Self {
        Self {
            idle: (!idle.is_zero()).then(|| (idle, Box::pin(tokio::time::sleep(idle)))),
            response: (!response.is_zero()).then_some(response),
            deadline: None,
            activity,
        }
    }

    /// Ready with the reason when a limit has passed.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let activity = &*self.activity;
        if let Some(limit) = self.response {
            if self.deadline.is_none() {
                activity.waker.register(cx.waker());
                if let Some(end) = activity.request_end.load(Ordering::Acquire).checked_sub(1) {
                    let at = activity.epoch + Duration::from_millis(end) + limit;
                    self.deadline = Some(Box::pin(tokio::time::sleep_until(at)));
                }
            }
            if let Some(deadline) = &mut self.deadline
                && deadline.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(End::ResponseTimeout);
            }
        }
        if let Some((limit, sleep)) = &mut self.idle {
            while sleep.as_mut().poll(cx).is_ready() {
                let last = Duration::from_millis(activity.last.load(Ordering::Relaxed));
                let at = activity.epoch + last + *limit;
                if at <= Instant::now() {
                    return Poll::Ready(End::Idle);
                }
                sleep.as_mut().reset(at);
            }
        }
        Poll::Pending
    }
}

/// What is sent to the client.
pub(crate) enum ProxyBody {
    /// Made here.
    Local(Option<Bytes>),
    Upstream(Box<Streaming>),
}

/// A response body from the upstream, with everything that ends with it.
pub(crate) struct Streaming {
    inner: Incoming,
    limits: Limits,
    lease: Option<Lease>,
    record: Option<Record>,
    _busy: Busy,
}

impl ProxyBody {
    pub(super) fn upstream(
        inner: Incoming,
        limits: Limits,
        lease: Lease,
        record: Record,
        busy: Busy,
    ) -> Self {
        let mut streaming = Streaming {
            inner,
            limits,
            lease: Some(lease),
            record: Some(record),
            _busy: busy,
        };
        if streaming.inner.is_end_stream() {
            streaming.complete();
        }
        Self::Upstream(Box::new(streaming))
    }
}

impl Streaming {
    fn complete(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.finish();
        }
        self.end(End::Complete);
    }

    fn end(&mut self, end: End) {
        if let Some(record) = self.record.take() {
            record.finish(end);
        }
    }

    fn fail(&mut self, end: End) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.end(end);
        Poll::Ready(Some(Err(Broken(end))))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.limits.activity.touch();
                if let (Some(data), Some(record)) = (frame.data_ref(), &self.record) {
                    record.traffic.add_sent(data.len() as u64);
                }
                // The server does not ask again when it knows that nothing follows.
                if self.inner.is_end_stream() {
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => {
                let cut = self.lease.as_ref().and_then(Lease::cut_reason);
                let end = match cut {
                    Some(cut) => cut,
                    None if self.limits.activity.request_failed() => End::DownstreamReset,
                    None => End::UpstreamReset,
                };
                self.fail(end)
            }
            Poll::Pending => match self.limits.poll_expired(cx) {
                Poll::Ready(end) => self.fail(end),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Local(text) => Poll::Ready(text.take().map(|t| Ok(Frame::data(t)))),
            Self::Upstream(streaming) => streaming.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(text) => text.is_none(),
            Self::Upstream(streaming) => streaming.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Self::Upstream(streaming) => streaming.inner.size_hint(),
        }
    }
}
