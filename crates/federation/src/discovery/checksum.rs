//! The checksum that travels with every list and event.
//!
//! It is the value that the reference's Go library (hashstructure, its second format, lists taken
//! as sets) computes over the message types: 64-bit FNV-1 over each text, mixed field by field with
//! the names of the Go types and fields. Elements of a list are joined by xor: order does not
//! matter, and two equal elements cancel.

use super::message::{Plain, PlainPort, Service};

const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// Which fields the list message has that the checksum covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Version 2.3 and later. Ours.
    Current,
    /// Versions 2.1 and 2.2: one more field, `networkGatewayEndpoints`, hashed even when empty.
    GatewayEndpoints,
}

/// The checksum of a list of services, kept up to date element by element.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListHash {
    elements: u64,
    gateway_endpoints: u64,
}

impl ListHash {
    pub fn of<'a>(services: impl IntoIterator<Item = &'a Service>) -> Self {
        let mut hash = Self::default();
        for service in services {
            hash.toggle(service_hash(service));
        }
        hash
    }

    /// Adds an element, or takes it away if it is there: the two are the same.
    pub fn toggle(&mut self, service_hash: u64) {
        self.elements ^= service_hash;
    }

    /// Adds an entry of the older message's `networkGatewayEndpoints`.
    pub(super) fn toggle_gateway_endpoint(&mut self, port: i64, hostname: &str) {
        self.gateway_endpoints ^= Struct::new("ServiceEndpoint")
            .field("Port", fnv(&port.to_le_bytes()))
            .field("Hostname", text(hostname))
            .0;
    }

    pub fn checksum(self, variant: Variant) -> u64 {
        let mut list = Struct::new("ServiceListMessage");
        if variant == Variant::GatewayEndpoints {
            list = list.field("NetworkGatewayEndpoints", finish(self.gateway_endpoints));
        }
        list.field("Services", finish(self.elements)).0
    }

    /// The variant under which `checksum` is this list's, if any.
    pub fn variant_of(self, checksum: u64) -> Option<Variant> {
        [Variant::Current, Variant::GatewayEndpoints]
            .into_iter()
            .find(|variant| self.checksum(*variant) == checksum)
    }
}

/// The hash of one service, an element of [`ListHash`].
pub fn service_hash(service: &Service) -> u64 {
    plain_hash(&service.plain())
}

pub(super) fn plain_hash(service: &Plain<'_>) -> u64 {
    let key = Struct::new("ServiceKey")
        .field("Name", text(service.name))
        .field("Namespace", text(service.namespace))
        .field("Hostname", text(service.hostname));
    Struct::new("ServiceMessage")
        .field("ServiceKey", key.0)
        .field("ServicePorts", set(service.ports.iter().map(port_hash)))
        .field(
            "ServiceAccounts",
            set(service.accounts.iter().map(|account| text(account))),
        )
        .0
}

/// The hash of a ServiceMeshPeer's `spec.remote`, with the values as they are written there: a port
/// that is not set counts as 0. It is the `remote` header of discovery requests.
pub fn remote_hash<'a>(
    addresses: impl IntoIterator<Item = &'a str>,
    discovery_port: i32,
    service_port: i32,
) -> u64 {
    Struct::new("ServiceMeshPeerRemote")
        .field("Addresses", set(addresses.into_iter().map(text)))
        .field("DiscoveryPort", fnv(&discovery_port.to_le_bytes()))
        .field("ServicePort", fnv(&service_port.to_le_bytes()))
        .0
}

fn port_hash(port: &PlainPort<'_>) -> u64 {
    Struct::new("ServicePort")
        .field("Name", text(port.name))
        .field("Port", fnv(&port.port.to_le_bytes()))
        .field("Protocol", text(port.protocol))
        .0
}

/// A Go struct: its type's name, then every field in the order of declaration.
struct Struct(u64);

impl Struct {
    fn new(type_name: &str) -> Self {
        Self(text(type_name))
    }

    fn field(self, name: &str, value: u64) -> Self {
        Self(finish(self.0 ^ pair(text(name), value)))
    }
}

fn set(elements: impl Iterator<Item = u64>) -> u64 {
    elements.fold(0, |all, element| all ^ element)
}

pub(super) fn text(text: &str) -> u64 {
    fnv(text.as_bytes())
}

fn pair(a: u64, b: u64) -> u64 {
    fnv_more(fnv(&a.to_le_bytes()), &b.to_le_bytes())
}

fn finish(a: u64) -> u64 {
    fnv(&a.to_le_bytes())
}

/// FNV-1: multiply, then xor.
fn fnv(bytes: &[u8]) -> u64 {
    fnv_more(OFFSET_BASIS, bytes)
}

fn fnv_more(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| {
        hash.wrapping_mul(PRIME) ^ u64::from(*byte)
    })
}

#[cfg(test)]
mod tests;
