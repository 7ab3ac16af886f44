//! What tests share: tools that are not Rust, a running Envoy, addresses of their own, names,
//! patience, forged certificates, and hostile peers.
//!
//! For tests only. A failure here is a failure of the test that asked, so these functions panic
//! with what was attempted and why it did not work.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test fails"
)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

pub mod dns;
mod envoy;
mod eventually;
pub mod forge;
pub mod hostile;
mod loopback;
pub mod tools;

pub use envoy::Envoy;
pub use eventually::eventually;
pub use loopback::LoopbackNet;
/// A directory that is removed when dropped.
pub use tempfile::TempDir;

/// A new empty directory for its owner only, removed when dropped.
pub fn temp_dir() -> TempDir {
    tempfile::Builder::new()
        .prefix("meshfed-test-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .expect("a temporary directory can be made")
}
