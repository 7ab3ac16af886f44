//! A stream that gives up an end which does not read, or has nothing to say.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Fails when nothing can be written for a time although something waits to be, and when the first bytes
/// do not come in time.
pub(super) struct Stalling<S> {
    inner: S,
    patience: Duration,
    /// Runs while a write waits.
    timer: Option<Pin<Box<Sleep>>>,
    greeting: Option<Greeting>,
}

/// What the other end begins with.
struct Greeting {
    /// Bytes that have not come yet.
    missing: usize,
    timer: Pin<Box<Sleep>>,
}

impl<S> Stalling<S> {
    pub fn new(inner: S, patience: Duration) -> Self {
        Self {
            inner,
            patience,
            timer: None,
            greeting: None,
        }
    }

    /// The other end is to send this many bytes within this time from now on.
    pub fn greeted(self, bytes: usize, within: Duration) -> Self {
        let greeting = Greeting {
            missing: bytes,
            timer: Box::pin(tokio::time::sleep(within)),
        };
        Self {
            greeting: Some(greeting),
            ..self
        }
    }

    fn judge<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.timer = None;
            return written;
        }
        let until = Instant::now() + self.patience;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        match timer.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the other end does not read",
            ))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        let Some(greeting) = &mut self.greeting else {
            return read;
        };
        greeting.missing = (greeting.missing).saturating_sub(buffer.filled().len() - before);
        if greeting.missing == 0 {
            self.greeting = None;
        } else if greeting.timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the other end says nothing",
            )));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        self.judge(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(context);
        self.judge(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_is_served_and_who_stops_is_given_up() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut ours = Stalling::new(ours, Duration::from_secs(30));
        let slow = async {
            let mut got = [0; 8];
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                theirs.read_exact(&mut got).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(ours.write_all(&[7; 80]), slow);
        written.unwrap();
        let start = Instant::now();
        let error = ours.write_all(&[7; 80]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_greet_in_time_is_given_up_and_who_does_may_be_silent() {
        let within = Duration::from_secs(10);
        let streams = || {
            let (ours, theirs) = tokio::io::duplex(64);
            (
                Stalling::new(ours, Duration::MAX).greeted(8, within),
                theirs,
            )
        };
        let mut got = [0; 8];
        let (mut ours, mut theirs) = streams();
        theirs.write_all(b"shor").await.unwrap();
        let start = Instant::now();
        let error = ours.read_exact(&mut got).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), within);

        let (mut ours, mut theirs) = streams();
        theirs.write_all(b"long enough").await.unwrap();
        ours.read_exact(&mut got).await.unwrap();
        let later = async {
            tokio::time::sleep(within * 10).await;
            theirs.write_all(b"later").await.unwrap();
        };
        let (read, ()) = tokio::join!(ours.read_exact(&mut got), later);
        read.unwrap();
    }
}
