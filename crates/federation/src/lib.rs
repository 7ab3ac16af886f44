//! The pure core of meshfed: no I/O, no clock, no randomness of its own.
//!
//! * [`names`]: every name that crosses a border between meshes, parsed once into a checked type.
//! * [`rules`]: which services a rule set exports or imports, under which name, and why.
//! * [`discovery`]: the protocol between two control planes as state machines: bytes and ticks in,
//!   actions out.

pub mod discovery;
pub mod moment;
pub mod names;
pub mod plan;
pub mod protocol;
pub mod rules;
pub mod world;
