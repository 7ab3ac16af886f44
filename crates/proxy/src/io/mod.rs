//! Moving bytes.

mod buffer;
mod prefetch;
mod relay;
mod stream;

pub(crate) use prefetch::Prefetch;
pub(crate) use relay::{Relay, RelayEnd, Traffic};
pub(crate) use stream::{Stream, prepare};
