//! Identities and certificates.
pub mod id;
pub use id::{IdError, SpiffeId, TrustDomain};
