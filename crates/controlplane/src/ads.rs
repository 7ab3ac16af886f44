//! ADS: how proxies get their configuration.
//!
//! ```text
//! ConfigSource --watch of Arc<ProxyConfig>--> stream --> Session --> responses, in ADS order
//!                                               |           ^
//! proxy's certificate, Node ----> AuthenticatedNode         requests, ACK, NACK
//!                                               |
//!                                             Nodes: who is connected, for registration
//! ```
//!
//! Each stream is one task with one [`Session`](session::Session), a state machine without I/O. It
//! works out a response only when the transport can take one, from the newest configuration: a
//! client that does not read blocks itself alone and skips what was replaced meanwhile.

mod encoder;
mod node;
mod nodes;
mod service;
mod session;
mod source;
mod stream;

pub use encoder::{Encoded, Encoder, Version};
pub use node::{AuthenticatedNode, ConnectionId, NodeError};
pub use nodes::{NodeSet, Nodes};
pub use service::{AdsMetrics, AdsService, MAX_REQUEST};
pub use source::{ConfigSource, Configs, Refusal, Report};
