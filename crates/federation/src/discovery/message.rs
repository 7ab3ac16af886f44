//! The messages, as they are on the wire.
//!
//! Texts in here are what was sent, not yet judged: [`remote`](super::remote) turns entries into
//! names that may be used. Writing gives the bytes that Go's `encoding/json` gives; reading ignores
//! unknown keys and takes `null` for an empty list or text, as Go does, within [`Limits`].

mod decode;
mod encode;
mod stream;

pub(super) use encode::{EncodedService, encode_event, encode_list};

pub use decode::{DecodeError, decode_list};
pub use stream::EventDecoder;

use super::checksum::{ListHash, Variant};
use super::extension::Health;

/// What a peer may send at most. Exceeding one is an error of the peer; nothing of it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one list document. Default 64 MiB.
    pub list_bytes: usize,
    /// Services in one list. Default 10,000.
    pub services: usize,
    /// Bytes of one watch event. Default 1 MiB.
    pub event_bytes: usize,
    /// Ports of one service. Default 1024, more than anybody's: a service beyond it costs its mesh the whole list.
    pub ports: usize,
    /// Service accounts of one service. Default 128.
    pub accounts: usize,
    /// Bytes of one text. Default 2048, the longest SPIFFE id.
    pub text_bytes: usize,
}

/// A list may have so many ports for each service that it may have. Every proxy of ours gets something
/// for each imported port, so their number counts as that of the services does.
const PORTS_FOR_A_SERVICE: usize = 4;

impl Limits {
    /// Ports of all services of a list together; one service may always have all of its own.
    pub fn list_ports(&self) -> usize {
        let all = self.services.saturating_mul(PORTS_FOR_A_SERVICE);
        all.max(self.ports)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            list_bytes: 64 << 20,
            services: 10_000,
            event_bytes: 1 << 20,
            ports: 1024,
            accounts: 128,
            text_bytes: 2048,
        }
    }
}

/// The answer to `services`: everything that is exported to the asking peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceList {
    pub checksum: u64,
    /// Sorted by host name when sent by us.
    pub services: Vec<Service>,
}

impl ServiceList {
    /// A list with its checksum, in the order in which it is sent.
    pub fn new(mut services: Vec<Service>) -> Self {
        services.sort_by(|a, b| a.hostname.cmp(&b.hostname));
        Self {
            checksum: ListHash::of(&services).checksum(Variant::Current),
            services,
        }
    }

    /// The document that is sent: compact JSON without a newline at its end, with the health of
    /// those services that have one.
    pub fn encode(&self) -> Vec<u8> {
        encode::list(self)
    }
}

/// A list as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedList {
    pub list: ServiceList,
    /// Computed over what was received, also over the older message's extra field.
    pub hash: ListHash,
}

/// One exported service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Exported name and namespace, after aliasing.
    pub name: String,
    pub namespace: String,
    /// The name in the SNI of its traffic.
    pub hostname: String,
    pub ports: Vec<ServicePort>,
    /// SPIFFE URIs that the exporter's ingress presents.
    pub accounts: Vec<String>,
    /// Only between meshes that announce it, and no part of the checksum.
    pub health: Option<Health>,
}

impl Service {
    /// Without the health.
    pub(super) fn plain(&self) -> Plain<'_> {
        Plain {
            name: &self.name,
            namespace: &self.namespace,
            hostname: &self.hostname,
            ports: self
                .ports
                .iter()
                .map(|port| PlainPort {
                    name: &port.name,
                    port: port.port,
                    protocol: &port.protocol,
                })
                .collect(),
            accounts: &self.accounts,
        }
    }
}

/// What every version of the protocol says of a service, wherever it is kept: the health is not in it.
pub(super) struct Plain<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub hostname: &'a str,
    pub ports: Vec<PlainPort<'a>>,
    pub accounts: &'a [String],
}

pub(super) struct PlainPort<'a> {
    pub name: &'a str,
    pub port: i64,
    pub protocol: &'a str,
}

impl Plain<'_> {
    /// The object that stands in a list and in an event.
    pub fn encode(&self) -> Vec<u8> {
        encode::plain(self)
    }

    pub fn to_message(&self) -> Service {
        let port = |port: &PlainPort<'_>| ServicePort {
            name: port.name.to_owned(),
            port: port.port,
            protocol: port.protocol.to_owned(),
        };
        Service {
            name: self.name.to_owned(),
            namespace: self.namespace.to_owned(),
            hostname: self.hostname.to_owned(),
            ports: self.ports.iter().map(port).collect(),
            accounts: self.accounts.to_vec(),
            health: None,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    /// The service's port, not the workload's.
    pub port: i64,
    /// A protocol name of Istio, such as `HTTP`.
    pub protocol: String,
}

/// What happened to a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Add,
    Update,
    Delete,
    /// Anything else, which a reader ignores.
    Other(String),
}

impl Action {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Add => "add",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Other(text) => text,
        }
    }
}

/// One event of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEvent {
    pub action: Action,
    /// The whole service, also for a delete. `None`: the reader shall ask for the list.
    pub service: Option<Service>,
    /// Of the whole list after the event.
    pub checksum: u64,
}

impl WatchEvent {
    /// The bytes that are sent: compact JSON and CRLF, with the service's health if it has one.
    pub fn encode(&self) -> Vec<u8> {
        encode::event(self)
    }
}

#[cfg(test)]
mod tests;
