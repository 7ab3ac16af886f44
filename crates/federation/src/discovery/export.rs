//! One exported service, with what is computed from it.

use std::ops::Deref;
use std::sync::OnceLock;

use super::checksum::service_hash;
use super::extension::Health;
use super::message::{EncodedService, Service};

/// A service as one peer gets to see it, and how it fares.
///
/// Hash and JSON are made once, when they are first needed, however many lists and events the
/// service is in.
#[derive(Debug, Clone)]
pub struct Export {
    service: Service,
    health: Health,
    hash: OnceLock<u64>,
    json: OnceLock<Box<[u8]>>,
}

impl PartialEq for Export {
    fn eq(&self, other: &Self) -> bool {
        self.health == other.health && self.service == other.service
    }
}

impl Eq for Export {}

impl Deref for Export {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

impl Export {
    /// `service.health` is not looked at; `health` is sent to peers that announce the extension.
    pub fn new(service: Service, health: Health) -> Self {
        Self {
            service: Service {
                health: None,
                ..service
            },
            health,
            hash: OnceLock::new(),
            json: OnceLock::new(),
        }
    }

    /// Without its health.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// With its health.
    pub fn with_health(&self) -> Service {
        Service {
            health: Some(self.health),
            ..self.service.clone()
        }
    }

    pub fn health(&self) -> Health {
        self.health
    }

    /// Its part in the checksum.
    pub(super) fn hash(&self) -> u64 {
        *self.hash.get_or_init(|| service_hash(&self.service))
    }

    /// Its part in the tag of a list.
    pub(super) fn health_hash(&self) -> u64 {
        self.health.hash(&self.service.hostname)
    }

    pub(super) fn encoded(&self, with_health: bool) -> EncodedService<'_> {
        EncodedService {
            plain: self.json.get_or_init(|| self.service.encode_plain().into()),
            health: with_health.then_some(self.health),
        }
    }
}
