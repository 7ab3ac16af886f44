//! Reads from a socket in large pieces for a reader that asks for small ones.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::buffer::Lent;

/// A socket under TLS. rustls asks for 4 KiB at a time, a quarter of a full record; this asks the
/// kernel for as much as there is, and holds a buffer only while it has bytes.
pub(crate) struct Prefetch {
    socket: TcpStream,
    ahead: Lent,
}

impl Prefetch {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            ahead: Lent::default(),
        }
    }
}

impl AsyncRead for Prefetch {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            let mut space = ReadBuf::new(this.ahead.space());
            let polled = Pin::new(&mut this.socket).poll_read(cx, &mut space);
            let n = space.filled().len();
            this.ahead.filled(n);
            ready!(polled)?;
        }
        let n = out.remaining().min(this.ahead.bytes().len());
        out.put_slice(&this.ahead.bytes()[..n]);
        this.ahead.consume(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefetch {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
