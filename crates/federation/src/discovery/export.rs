//! One exported service, with what is computed from it.

use std::sync::{Arc, OnceLock};

use smol_str::SmolStr;

use super::checksum::plain_hash;
use super::extension::Health;
use super::message::{EncodedService, Plain, PlainPort, Service};
use crate::names::{ExportedHost, ServiceKey};
use crate::protocol::Protocol;

/// What one peer gets to see of a service. Texts and ports are shared with whoever else has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Exported name and namespace, after aliasing.
    pub key: ServiceKey,
    pub host: ExportedHost,
    pub ports: Arc<[ShownPort]>,
    /// What the ingress gateway presents.
    pub accounts: Arc<[String]>,
}

/// A port as peers are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownPort {
    pub name: SmolStr,
    pub number: u16,
    pub protocol: Protocol,
}

/// A service as one peer gets to see it, and how it fares.
///
/// Hash and JSON are made once, when they are first needed, however many lists and events the
/// service is in.
#[derive(Debug, Clone)]
pub struct Export {
    shown: Shown,
    health: Health,
    hash: OnceLock<u64>,
    json: OnceLock<Box<[u8]>>,
}

impl PartialEq for Export {
    fn eq(&self, other: &Self) -> bool {
        self.health == other.health && self.shown == other.shown
    }
}

impl Eq for Export {}

impl Export {
    /// `health` is sent to peers that announce the extension.
    pub fn new(shown: Shown, health: Health) -> Self {
        Self {
            shown,
            health,
            hash: OnceLock::new(),
            json: OnceLock::new(),
        }
    }

    pub fn shown(&self) -> &Shown {
        &self.shown
    }

    pub fn health(&self) -> Health {
        self.health
    }

    /// The message of it, with its health.
    pub fn to_message(&self) -> Service {
        Service {
            health: Some(self.health),
            ..self.plain().to_message()
        }
    }

    fn plain(&self) -> Plain<'_> {
        let Shown {
            key,
            host,
            ports,
            accounts,
        } = &self.shown;
        Plain {
            name: key.name.as_str(),
            namespace: key.namespace.as_str(),
            hostname: host.as_str(),
            ports: ports
                .iter()
                .map(|port| PlainPort {
                    name: &port.name,
                    port: port.number.into(),
                    protocol: port.protocol.as_str(),
                })
                .collect(),
            accounts,
        }
    }

    /// Its part in the checksum.
    pub(super) fn hash(&self) -> u64 {
        *self.hash.get_or_init(|| plain_hash(&self.plain()))
    }

    /// Its part in the tag of a list.
    pub(super) fn health_hash(&self) -> u64 {
        self.health.hash(self.shown.host.as_str())
    }

    pub(super) fn encoded(&self, with_health: bool) -> EncodedService<'_> {
        EncodedService {
            plain: self.json.get_or_init(|| self.plain().encode().into()),
            health: with_health.then_some(self.health),
        }
    }
}
