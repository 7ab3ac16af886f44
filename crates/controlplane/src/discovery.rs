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
pub use server::{DiscoveryServer, ServeError};

#[cfg(test)]
mod tests;
