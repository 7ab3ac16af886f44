//! The control plane: observe, plan, apply.
//!
//! ```text
//! API --watch--> observe --> hub (World) --plan()--> Outcome --+--> apply     (objects, statuses)
//!                             ^                                +--> proxies   (over ADS)
//!                             |                                +--> discovery (peers)
//!                             +---- Seen: gateways, peers, own roots <---------+
//! ```
//!
//! All decisions are in `meshfed-federation`; this crate is the shell around it.

pub mod ads;
pub mod apply;
pub mod ca_service;
pub mod control_plane;
pub mod discovery;
pub mod endpoints;
pub mod grpc;
pub mod hub;
pub mod identity;
pub mod journal;
pub mod observe;
pub mod proxies;
pub mod registration;
mod safekeeping;
pub mod subnet;
#[cfg(test)]
mod test_world;
