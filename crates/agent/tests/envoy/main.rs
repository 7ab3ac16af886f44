//! A stock Envoy with an agent beside it does what our configuration means, against honest and
//! against forged clients.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test fails"
)]

#[path = "../common/mod.rs"]
mod common;

#[path = "../../../xds/tests/common/ads.rs"]
#[allow(clippy::unwrap_used, dead_code, reason = "shared with other tests")]
mod ads;

mod bench;
mod requests;
mod tunnels;
