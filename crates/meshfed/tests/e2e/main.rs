//! The program as its users meet it: the demo, the README, the command line, restarts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what does not hold in a test is its failure"
)]

mod authority;
mod bad_input;
mod blue;
mod cli;
mod contact;
mod control_plane;
mod demo;
mod dns;
mod drain;
mod envoy;
mod federation;
mod forwarder;
mod health;
mod hostile;
mod hostile_peer;
mod lists;
mod mesh;
mod moves;
mod names;
mod neighbours;
mod notice;
mod program;
mod readiness;
mod removal;
mod replicas;
mod restart;
mod shared_name;
mod tools;
mod trust_domain;
mod walk;
