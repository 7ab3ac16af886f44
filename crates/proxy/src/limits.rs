//! Bounds on what clients, upstreams and the control plane can make the proxy hold.

use std::time::Duration;

/// Connections that a proxy and one of its listeners hold at most. What is over is refused at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Downstream connections of the whole proxy.
    pub total: usize,
    /// Downstream connections of each listener.
    pub per_listener: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            total: 65_536,
            per_listener: 32_768,
        }
    }
}

/// Connections that wait in the kernel to be accepted.
pub(crate) const ACCEPT_BACKLOG: i32 = 1024;
/// How long the accept loop rests when the process has no file descriptor or memory left.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Endpoints that are tried for one connection before the client is told that it failed.
pub(crate) const CONNECT_ATTEMPTS: usize = 3;

/// Bytes of the certificates that a peer shows. They are kept as long as the connection, to be
/// judged again when the trust changes.
pub(crate) const CHAIN_BYTES: usize = 16 * 1024;

/// Bytes of a copy buffer. A TLS record holds 16 KiB, so a full buffer is a few whole records.
pub(crate) const COPY_BUFFER: usize = 64 * 1024;
/// Buffers that a thread keeps for the next connection.
pub(crate) const KEPT_BUFFERS: usize = 16;

/// Bytes of an HTTP request's or response's head.
pub(crate) const HTTP_HEAD_BYTES: usize = meshfed_xds::MAX_REQUEST_HEADERS_KIB as usize * 1024;
/// Header fields of an HTTP/1.1 message.
pub(crate) const HTTP_HEADERS: usize = 100;
/// From the first byte of a request to the end of its head.
pub(crate) const HTTP_HEAD_TIMEOUT: Duration = meshfed_xds::REQUEST_HEADERS_TIMEOUT;
/// Concurrent HTTP/2 streams of one downstream connection.
pub(crate) const HTTP2_STREAMS: u32 = 256;
/// Flow-control windows of HTTP/2, the most that a stream and a connection can make us buffer.
pub(crate) const HTTP2_STREAM_WINDOW: u32 = 256 * 1024;
pub(crate) const HTTP2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// A client on HTTP/2 is asked for a sign of life this often, and has this time for it.
pub(crate) const HTTP2_PING: Duration = Duration::from_secs(60);
pub(crate) const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes that an HTTP/2 stream may have waiting for the other side's window.
pub(crate) const HTTP2_SEND_BUFFER: usize = 256 * 1024;
/// A downstream HTTP connection without a request for this long is closed.
pub(crate) const HTTP_IDLE: Duration = Duration::from_secs(3600);
/// An upstream HTTP connection without a request for this long is closed.
pub(crate) const POOL_IDLE: Duration = Duration::from_secs(60);
/// Idle HTTP/1.1 connections that are kept for one endpoint.
pub(crate) const POOL_IDLE_PER_HOST: usize = 64;

/// An answer of DNS counts for its TTL, but for no shorter and no longer than this.
pub(crate) const DNS_SHORTEST: Duration = Duration::from_secs(1);
pub(crate) const DNS_LONGEST: Duration = Duration::from_secs(300);
/// How long an answer with a TTL of zero, or from the hosts file, counts.
pub(crate) const DNS_WITHOUT_TTL: Duration = Duration::from_secs(5);
/// After a failure, doubled with each one.
pub(crate) const DNS_RETRY: Duration = Duration::from_secs(1);
pub(crate) const DNS_LAST_RETRY: Duration = Duration::from_secs(10);
/// Addresses that are taken from the answer for one name, and for one cluster.
pub(crate) const DNS_ADDRESSES: usize = 256;
