//! The discovery protocol between two control planes.
//!
//! A mesh tells each peer what it exports to it: a list on request (`services`) and then changes as
//! they happen (`watch`). Every answer carries a checksum of the whole list, so that both sides
//! know whether they still mean the same.
//!
//! ```text
//! importing mesh                               exporting mesh
//! client::Client  --GET watch--------------->  server::Server
//!                 --GET services (after 200)->
//!                 <-----------list, checksum--
//!                 <----event, checksum, ...---
//! ```
//!
//! [`client`] and [`server`] are state machines: what happened and when goes in, what to do comes
//! out. [`remote`] is where what a peer says becomes names that may be used. [`extension`] is what two
//! meshes of ours tell each other beyond the reference's messages.

pub mod checksum;
pub mod client;
pub mod export;
pub mod extension;
#[cfg(test)]
mod fixtures;
pub mod message;
pub mod remote;
pub mod server;
