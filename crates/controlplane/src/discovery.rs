//! Discovery between control planes: sockets around the machines of `meshfed-federation`.

mod cache;
mod client;
mod clock;
mod publishing;
mod server;
mod stalling;
mod storing;

pub use cache::PeerCache;
pub use client::DiscoveryClient;
pub use clock::Clock;
use meshfed_xds::{KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, KEEPALIVE_TIME};
pub use server::{DiscoveryServer, ServeError};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// What is sent goes out at once, and a dead connection to a gateway of ours ends within a minute. The
/// gateways see to the rest of the way.
fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests;
