//! What a peer exports, checked.

use std::sync::Arc;

use meshfed_ordmap::OrdMap;
use meshfed_pki::SpiffeId;

use super::checksum::{ListHash, Variant, service_hash};
use super::extension::{Health, ListTag};
use super::message::{Limits, ReceivedList, Service, ServiceList, ServicePort};
use crate::names::{ExportedHost, NameError, ServiceKey, clip};
use crate::protocol::Protocol;

/// Why an entry of a peer's list, and with it the whole list, is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteFault {
    #[error("the peer's entry {namespace:?}/{name:?} is refused: {error}")]
    Name {
        namespace: String,
        name: String,
        error: NameError,
    },
    #[error("the peer's service {0} has the port {1}, which is not between 1 and 65535")]
    Port(ServiceKey, i64),
    #[error("the peer lists {0} more than once")]
    Duplicate(ServiceKey),
    #[error("the peer's names end differently: some with {0}.local, some with {1}.local")]
    TwoSuffixes(String, String),
    #[error("the peer announces more than {limit} services")]
    TooMany { limit: usize },
    #[error("the services that the peer announces have more than {limit} ports")]
    TooManyPorts { limit: usize },
    #[error("what the peer announces takes more than {limit} bytes")]
    TooLarge { limit: usize },
}

/// One service of a peer. Two are equal if they mean the same: a repeated account, or accounts in
/// another order, make no other service. Services of one list share what they have in common, which
/// is most of it.
#[derive(Debug, Clone)]
pub struct RemoteService {
    /// The name and namespace that the peer gave it.
    pub key: ServiceKey,
    /// Its name in the SNI towards the peer, and in statuses.
    pub host: ExportedHost,
    pub ports: Arc<[RemotePort]>,
    /// What its ingress presents, sorted, each once.
    pub accounts: Arc<[SpiffeId]>,
    /// How many of the accounts are no SPIFFE ids, each once.
    pub unreadable_accounts: usize,
    /// How it fares there, if the peer tells.
    pub health: Option<Health>,
    said: Arc<Said>,
    /// Of what was sent, with every repetition.
    hash: u64,
    size: usize,
}

/// What was sent, where the checked form does not keep all of it; the accounts are sorted and each
/// once.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    ports: Vec<ServicePort>,
    accounts: Vec<String>,
}

impl PartialEq for RemoteService {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
            && self.host == other.host
            && self.said == other.said
            && self.health == other.health
    }
}

impl Eq for RemoteService {}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemotePort {
    pub name: String,
    pub number: u16,
    pub protocol: Protocol,
}

impl RemoteService {
    pub fn check(mut wire: Service) -> Result<Self, RemoteFault> {
        let hash = service_hash(&wire);
        wire.accounts.sort();
        wire.accounts.dedup();
        let refused = |error| RemoteFault::Name {
            namespace: clip(&wire.namespace),
            name: clip(&wire.name),
            error,
        };
        let key = ServiceKey::parse(&wire.namespace, &wire.name).map_err(refused)?;
        let host = ExportedHost::from_peer(&wire.hostname, &key).map_err(refused)?;
        let mut ports = Vec::with_capacity(wire.ports.len());
        for port in &wire.ports {
            let number = u16::try_from(port.port).ok().filter(|number| *number > 0);
            ports.push(RemotePort {
                name: port.name.clone(),
                number: number.ok_or_else(|| RemoteFault::Port(key.clone(), port.port))?,
                protocol: Protocol::parse(&port.protocol),
            });
        }
        let mut accounts: Vec<SpiffeId> = wire
            .accounts
            .iter()
            .filter_map(|a| a.parse().ok())
            .collect();
        let unreadable_accounts = wire.accounts.len() - accounts.len();
        accounts.sort();
        accounts.dedup();
        Ok(Self {
            key,
            host,
            ports: ports.into(),
            accounts: accounts.into(),
            unreadable_accounts,
            health: wire.health,
            hash,
            size: json_size(&wire),
            said: Arc::new(Said {
                ports: wire.ports,
                accounts: wire.accounts,
            }),
        })
    }

    /// Takes over what is equal in another service.
    fn share(&mut self, other: &Self) {
        if self.key.namespace == other.key.namespace {
            self.key.namespace = other.key.namespace.clone();
        }
        if self.said == other.said {
            self.ports = other.ports.clone();
            self.accounts = other.accounts.clone();
            self.said = other.said.clone();
        }
    }

    /// As it was sent, but for the order and repetition of its accounts.
    fn to_wire(&self) -> Service {
        Service {
            name: self.key.name.to_string(),
            namespace: self.key.namespace.to_string(),
            hostname: self.host.to_string(),
            ports: self.said.ports.clone(),
            accounts: self.said.accounts.clone(),
            health: self.health,
        }
    }

    /// Its ports that carry TCP, which can be imported.
    pub fn tcp_ports(&self) -> impl Iterator<Item = u16> {
        let tcp = self
            .ports
            .iter()
            .filter(|port| port.protocol != Protocol::Udp);
        tcp.map(|port| port.number)
    }

    fn with_health(&self, health: Option<Health>) -> Self {
        let mut service = self.clone();
        service.health = health;
        service
    }

    fn health_hash(&self) -> u64 {
        self.health.map_or(0, |h| h.hash(self.host.as_str()))
    }
}

/// How many bytes of JSON it takes at least, with the comma after it; without its health. So a
/// document that is not too long holds nothing that is.
fn json_size(wire: &Service) -> usize {
    let text = |key: &str, text: &str| match text.len() {
        0 => 0,
        length => key.len() + length + 6,
    };
    let port = |port: &ServicePort| {
        let digits = port.port.checked_ilog10().unwrap_or(0) as usize + 1;
        2 + text("name", &port.name) + "\"port\":".len() + digits + text("protocol", &port.protocol)
    };
    let list = |key: &str, elements: usize| match elements {
        0 => 0,
        elements => key.len() + 5 + elements,
    };
    let ports = wire.ports.iter().map(port).sum();
    let accounts = wire.accounts.iter().map(|a| a.len() + 3).sum();
    2 + text("name", &wire.name)
        + text("namespace", &wire.namespace)
        + text("hostname", &wire.hostname)
        + list("servicePorts", ports)
        + list("serviceAccounts", accounts)
}

/// All services of a peer, with the checksum of the list that they make.
///
/// A copy shares the entries. Two are equal if their services are; the checksums may differ then, as
/// they are of what was sent.
#[derive(Debug, Clone, Default)]
pub struct RemoteServices {
    services: OrdMap<ServiceKey, Arc<RemoteService>>,
    hash: ListHash,
    health_hash: u64,
    /// Of all services.
    ports: usize,
    size: usize,
}

impl PartialEq for RemoteServices {
    fn eq(&self, other: &Self) -> bool {
        self.services.ptr_eq(&other.services) || self.services == other.services
    }
}

impl Eq for RemoteServices {}

impl RemoteServices {
    /// # Errors
    /// One entry that is refused refuses the list.
    pub fn check(received: ReceivedList, limits: &Limits) -> Result<Self, RemoteFault> {
        let mut all = Self::default();
        for service in received.list.services {
            let service = RemoteService::check(service)?;
            if all.services.contains_key(&service.key) {
                return Err(RemoteFault::Duplicate(service.key));
            }
            all.put(service, limits)?;
        }
        all.hash = received.hash;
        Ok(all)
    }

    /// Adds a service or replaces the one of the same name. False if the one that was there means
    /// the same.
    pub fn put(
        &mut self,
        mut service: RemoteService,
        limits: &Limits,
    ) -> Result<bool, RemoteFault> {
        let old = self.services.get(&service.key);
        let same = old.is_some_and(|old| **old == service);
        if same && old.is_some_and(|old| old.hash == service.hash) {
            return Ok(false);
        }
        if let Some(other) = self.other_than(&service.key) {
            service.share(other);
            let (had, has) = (other.host.exports_label(), service.host.exports_label());
            if had != has {
                return Err(RemoteFault::TwoSuffixes(had.to_owned(), has.to_owned()));
            }
        }
        if old.is_none() && self.services.len() >= limits.services {
            let limit = limits.services;
            return Err(RemoteFault::TooMany { limit });
        }
        let ports = self.ports + service.ports.len() - old.map_or(0, |old| old.ports.len());
        let limit = limits.list_ports();
        if ports > limit {
            return Err(RemoteFault::TooManyPorts { limit });
        }
        let size = self.size + service.size - old.map_or(0, |old| old.size);
        if size > limits.list_bytes {
            let limit = limits.list_bytes;
            return Err(RemoteFault::TooLarge { limit });
        }
        self.ports = ports;
        self.size = size;
        self.hash
            .toggle(old.map_or(0, |old| old.hash) ^ service.hash);
        self.health_hash ^= old.map_or(0, |old| old.health_hash()) ^ service.health_hash();
        self.services.insert(service.key.clone(), Arc::new(service));
        Ok(!same)
    }

    /// The first other service.
    fn other_than(&self, key: &ServiceKey) -> Option<&Arc<RemoteService>> {
        self.services.values().find(|s| s.key != *key)
    }

    /// Takes over the entries of `known` that are the same, so that both lists hold them once and
    /// what differs is found by pointer.
    pub fn keep(&mut self, known: &Self) {
        for (key, service) in &known.services {
            if let Some(mine) = self.services.get_mut(key)
                && mine.hash == service.hash
                && mine == service
            {
                *mine = service.clone();
            }
        }
    }

    /// Takes what a service of this name, as the peer wrote it, fares like. False if there is none
    /// or if that is known.
    pub fn set_health(&mut self, namespace: &str, name: &str, health: Option<Health>) -> bool {
        let Ok(key) = ServiceKey::parse(namespace, name) else {
            return false;
        };
        let Some(old) = self.services.get(&key).filter(|s| s.health != health) else {
            return false;
        };
        let service = old.with_health(health);
        self.health_hash ^= old.health_hash() ^ service.health_hash();
        self.services.insert(key, Arc::new(service));
        true
    }

    /// Removes the service of this name, as the peer wrote it. False if there is none.
    pub fn remove(&mut self, namespace: &str, name: &str) -> bool {
        let removed = ServiceKey::parse(namespace, name)
            .ok()
            .and_then(|key| self.services.remove(&key));
        if let Some(removed) = &removed {
            self.hash.toggle(removed.hash);
            self.health_hash ^= removed.health_hash();
            self.ports -= removed.ports.len();
            self.size -= removed.size;
        }
        removed.is_some()
    }

    /// Whether both were sent with the same checksum, whatever they mean.
    pub fn same_hash(&self, other: &Self) -> bool {
        self.hash == other.hash
    }

    /// Whether `checksum` is the one of this list, in the current or the older form.
    pub fn agrees_with(&self, checksum: u64) -> bool {
        self.hash.variant_of(checksum).is_some()
    }

    /// Names this list towards a peer that has the extension.
    pub fn tag(&self) -> ListTag {
        ListTag {
            checksum: self.hash.checksum(Variant::Current),
            health: self.health_hash,
        }
    }

    /// Whether the peer tells of some service how it fares.
    pub fn has_health(&self) -> bool {
        self.services.values().any(|s| s.health.is_some())
    }

    /// The same list without word of how the services fare.
    pub fn without_health(&self) -> Self {
        let plain = |service: &Arc<RemoteService>| Arc::new(service.with_health(None));
        Self {
            services: (self.services.iter())
                .map(|(key, service)| (key.clone(), plain(service)))
                .collect(),
            health_hash: 0,
            ..*self
        }
    }

    pub fn get(&self, key: &ServiceKey) -> Option<&Arc<RemoteService>> {
        self.services.get(key)
    }

    /// By namespace and name.
    pub fn by_key(&self) -> &OrdMap<ServiceKey, Arc<RemoteService>> {
        &self.services
    }

    /// In the order of namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<RemoteService>> {
        self.services.values()
    }

    pub fn len(&self) -> usize {
        self.services.len()
    }

    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// The list as a document of the protocol, with how the services fare and each account once; to
    /// be read back with [`decode_list`](super::message::decode_list).
    pub fn to_list(&self) -> ServiceList {
        ServiceList::new(self.iter().map(|service| service.to_wire()).collect())
    }

    /// The same without how the services fare, which is soon out of date.
    pub fn to_lasting_list(&self) -> ServiceList {
        let plain = |service: &Arc<RemoteService>| Service {
            health: None,
            ..service.to_wire()
        };
        ServiceList::new(self.iter().map(plain).collect())
    }

    /// Whether [`to_lasting_list`](Self::to_lasting_list) is the same of both. Costs as much as differs
    /// between a list and what was made of it.
    pub fn lasts_as(&self, other: &Self) -> bool {
        let mut differing = self.services.changes(&other.services);
        differing.all(|(_, old, new)| {
            old.zip(new).is_some_and(|(old, new)| {
                // Not by their hashes: some lists of accounts that differ have the same.
                (&old.host, &old.said) == (&new.host, &new.said)
            })
        })
    }
}

#[cfg(test)]
mod tests;
