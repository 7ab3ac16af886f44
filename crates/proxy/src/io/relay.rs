//! Copies bytes both ways between a client and an endpoint.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::buffer::Lent;
use crate::cut::{Control, Cut};

/// Bytes that went from the client and to it.
#[derive(Default)]
pub(crate) struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Traffic {
    pub(crate) fn add_received(&self, n: u64) {
        self.received.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn add_sent(&self, n: u64) {
        self.sent.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// How a relayed connection ended.
#[derive(Debug)]
pub(crate) enum RelayEnd {
    /// Both sides said that they are done.
    Complete,
    Idle,
    Cut(Cut),
    Client,
    Endpoint,
}

impl RelayEnd {
    /// One side failed in the middle of something.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self, Self::Client | Self::Endpoint)
    }
}

/// Copies until both directions have ended, an error occurs, nothing moves for the idle timeout,
/// or the connection is cut. The end of one direction is passed on and the other goes on.
pub(crate) struct Relay<'a, A, B> {
    client: A,
    endpoint: B,
    up: Direction,
    down: Direction,
    control: &'a Control,
    traffic: &'a Traffic,
    idle: Option<IdleTimer>,
}

struct IdleTimer {
    limit: Duration,
    last: Instant,
    sleep: Pin<Box<Sleep>>,
}

#[derive(Default)]
struct Direction {
    buffer: Lent,
    state: State,
    unflushed: bool,
}

#[derive(Default, PartialEq)]
enum State {
    #[default]
    Copying,
    ShuttingDown,
    Done,
}

/// Which side of a direction failed.
enum Failed {
    Reader,
    Writer,
}

impl<'a, A, B> Relay<'a, A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    /// A zero `idle` means no limit.
    pub(crate) fn new(
        client: A,
        endpoint: B,
        idle: Duration,
        control: &'a Control,
        traffic: &'a Traffic,
    ) -> Self {
        let idle = (!idle.is_zero()).then(|| IdleTimer {
            limit: idle,
            last: Instant::now(),
            sleep: Box::pin(tokio::time::sleep(idle)),
        });
        Self {
            client,
            endpoint,
            up: Direction::default(),
            down: Direction::default(),
            control,
            traffic,
            idle,
        }
    }
}

impl<A, B> Future for Relay<'_, A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    type Output = RelayEnd;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RelayEnd> {
        let this = self.get_mut();
        if let Poll::Ready(cut) = this.control.poll_cut(cx) {
            return Poll::Ready(RelayEnd::Cut(cut));
        }
        let traffic = this.traffic;
        let mut moved = false;
        let up = this
            .up
            .poll(cx, &mut this.client, &mut this.endpoint, &mut |n| {
                moved = true;
                traffic.add_received(n);
            });
        match up {
            Poll::Ready(Err(Failed::Reader)) => return Poll::Ready(RelayEnd::Client),
            Poll::Ready(Err(Failed::Writer)) => return Poll::Ready(RelayEnd::Endpoint),
            _ => {}
        }
        let down = this
            .down
            .poll(cx, &mut this.endpoint, &mut this.client, &mut |n| {
                moved = true;
                traffic.add_sent(n);
            });
        match down {
            Poll::Ready(Err(Failed::Reader)) => return Poll::Ready(RelayEnd::Endpoint),
            Poll::Ready(Err(Failed::Writer)) => return Poll::Ready(RelayEnd::Client),
            _ => {}
        }
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(RelayEnd::Complete);
        }
        if let Some(idle) = &mut this.idle
            && idle.expired(cx, moved)
        {
            return Poll::Ready(RelayEnd::Idle);
        }
        Poll::Pending
    }
}

impl IdleTimer {
    /// Notes the movement, and moves the timer only when it fires, not for every packet.
    fn expired(&mut self, cx: &mut Context<'_>, moved: bool) -> bool {
        if moved {
            self.last = Instant::now();
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            let deadline = self.last + self.limit;
            if deadline <= Instant::now() {
                return true;
            }
            self.sleep.as_mut().reset(deadline);
        }
        false
    }
}

impl Direction {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        count: &mut impl FnMut(u64),
    ) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.state {
                State::Copying => {
                    while !self.buffer.is_empty() {
                        let n = ready!(Pin::new(&mut *writer).poll_write(cx, self.buffer.bytes()))
                            .map_err(|_| Failed::Writer)?;
                        if n == 0 {
                            return Poll::Ready(Err(Failed::Writer));
                        }
                        count(n as u64);
                        self.unflushed = true;
                        self.buffer.consume(n);
                    }
                    let mut space = ReadBuf::new(self.buffer.space());
                    let polled = Pin::new(&mut *reader).poll_read(cx, &mut space);
                    let n = space.filled().len();
                    self.buffer.filled(n);
                    match polled {
                        Poll::Ready(Ok(())) if n == 0 => self.state = State::ShuttingDown,
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(_)) => return Poll::Ready(Err(Failed::Reader)),
                        Poll::Pending => {
                            if self.unflushed {
                                ready!(Pin::new(&mut *writer).poll_flush(cx))
                                    .map_err(|_| Failed::Writer)?;
                                self.unflushed = false;
                            }
                            return Poll::Pending;
                        }
                    }
                }
                State::ShuttingDown => {
                    match ready!(Pin::new(&mut *writer).poll_shutdown(cx)) {
                        // The other side has closed already: nothing is left to be told.
                        Err(e) if e.kind() != io::ErrorKind::NotConnected => {
                            return Poll::Ready(Err(Failed::Writer));
                        }
                        _ => self.state = State::Done,
                    }
                }
                State::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_and_are_counted_and_one_end_may_close_first() {
        let (mut client, client_side) = duplex(1000);
        let (mut endpoint, endpoint_side) = duplex(1000);
        let relay = tokio::spawn(async move {
            let (control, traffic) = (Control::default(), Traffic::default());
            let end = Relay::new(
                client_side,
                endpoint_side,
                Duration::ZERO,
                &control,
                &traffic,
            )
            .await;
            (end, traffic.received(), traffic.sent())
        });
        let sent = vec![7u8; 300_000];
        let expect = sent.clone();
        let upstream = tokio::spawn(async move {
            let mut got = Vec::new();
            endpoint.read_to_end(&mut got).await.unwrap();
            endpoint
                .write_all(b"after the end of the request")
                .await
                .unwrap();
            got
        });
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "after the end of the request");
        assert!(upstream.await.unwrap() == expect);
        let (end, received, sent) = relay.await.unwrap();
        assert!(matches!(end, RelayEnd::Complete), "{end:?}");
        assert_eq!((received, sent), (300_000, 28));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_bytes_now_and_then_is_not_idle_and_then_it_is() {
        let (mut client, client_side) = duplex(1000);
        let (mut endpoint, endpoint_side) = duplex(1000);
        let began = Instant::now();
        let relay = tokio::spawn(async move {
            let (control, traffic) = (Control::default(), Traffic::default());
            Relay::new(
                client_side,
                endpoint_side,
                Duration::from_secs(10),
                &control,
                &traffic,
            )
            .await
        });
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(8)).await;
            client.write_all(b"x").await.unwrap();
            endpoint.read_u8().await.unwrap();
        }
        let end = relay.await.unwrap();
        assert!(matches!(end, RelayEnd::Idle), "{end:?}");
        assert_eq!(began.elapsed().as_secs(), 50);
    }

    #[tokio::test]
    async fn a_cut_ends_the_relay_at_once() {
        let (_client, client_side) = duplex(10);
        let (_endpoint, endpoint_side) = duplex(10);
        let control = Control::new();
        let relay = {
            let control = control.clone();
            tokio::spawn(async move {
                let traffic = Traffic::default();
                Relay::new(
                    client_side,
                    endpoint_side,
                    Duration::ZERO,
                    &control,
                    &traffic,
                )
                .await
            })
        };
        tokio::task::yield_now().await;
        control.cut(Cut::TrustRemoved);
        let end = relay.await.unwrap();
        assert!(matches!(end, RelayEnd::Cut(Cut::TrustRemoved)), "{end:?}");
    }
}
