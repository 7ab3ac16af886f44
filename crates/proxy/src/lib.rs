//! The data plane of a mesh: gateways and sidecars.
//!
//! ```text
//!  ADS --> xds client --Change--> Engine --swaps--> Tables, listeners' chains
//!                                                        ^ read, never waited for
//!  client --> listener --> TLS: who is it? --> chain: may it? --+--> tcp:  SNI or fixed cluster
//!                                                               +--> http: route --> cluster
//!                                                                      cluster --> endpoint
//! ```
//!
//! A connection reaches an upstream only after its client has proved who it is and was allowed.
//! Every connection, and on HTTP listeners every request, ends with one line in the access log and
//! one count under its reason.

mod cluster;
mod cut;
mod dns;
mod end;
mod engine;
mod http;
mod io;
mod limits;
mod listener;
mod metrics;
mod node;
mod probe;
mod proxy;
mod random;
mod record;
mod shards;
mod trust;
mod xds;

pub use cluster::ClusterError;
pub use end::End;
pub use engine::{ChainsError, Change, Engine, EngineOptions, Rejection, RejectionCause};
pub use http::RouteError;
pub use limits::ConnectionLimits;
pub use listener::BindError;
pub use metrics::Metrics;
pub use node::{Node, NodeKind, READY, WorkloadPort};
pub use probe::Probe;
pub use proxy::{Proxy, ProxyHandle, ProxyOptions};
