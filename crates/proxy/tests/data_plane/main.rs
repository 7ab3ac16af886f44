//! The data plane with real sockets, real certificates and forged ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail as tests do"
)]

mod changes;
mod control_plane;
mod dns;
mod http;
mod ingress;
mod removal;
mod shared;
mod support;
mod upstream;
