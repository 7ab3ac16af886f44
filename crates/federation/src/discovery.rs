//! The discovery protocol between two control planes.
//!
//! A mesh tells each peer what it exports to it: a list on request (`services`) and then changes as
//! they happen (`watch`). Every answer carries a checksum of the whole list, so that both sides
//! know whether they still mean the same.

pub mod checksum;
pub mod message;
