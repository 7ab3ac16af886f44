//! `plan()` from the outside: worlds made of manifests in, plans out.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a fixture that is not as it should be fails the test"
)]

mod advice;
mod bundle;
mod crowded;
mod data_plane;
mod difference;
mod documents;
mod explain;
mod gateways;
mod histories;
mod lab;
mod meshes;
mod names;
mod news;
mod observations;
mod peers;
mod properties;
mod random;
mod reach;
mod removal;
mod replicas;
mod sizes;
mod snapshots;
mod staleness;
mod statuses;
mod summary;
mod trace;
mod trust;
mod whatif;
mod withdrawal;
