//! Getting the configuration: a client of the aggregated discovery service, delta variant.
//!
//! ```text
//! stream: connects, retries, moves messages --> Subscriber: what is wanted, known, warming
//!                                                    |  Change, in force as soon as complete
//!                                                    v
//!                                                 Engine
//! ```

mod stream;
mod subscriber;
mod warming;

pub(crate) use stream::{Client, Status};
