//! Reading messages within [`Limits`], without trust in the sender.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::{Action, Limits, ReceivedList, Service, ServiceList, ServicePort, WatchEvent};
use crate::discovery::checksum::ListHash;
use crate::discovery::extension::Health;
use crate::names::clip;

/// Why a message of a peer was not taken. The peer is at fault in each case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the peer's list is longer than {limit} bytes")]
    ListTooLong { limit: usize },
    #[error("the peer's list has more than {limit} services")]
    TooManyServices { limit: usize },
    #[error("an event of the peer's watch is longer than {limit} bytes")]
    EventTooLong { limit: usize },
    #[error("an event of the peer's watch is nested deeper than {limit} levels")]
    EventTooDeep { limit: usize },
    #[error("the peer's watch holds something that is no JSON object: it begins with {:?}", char::from(*.0))]
    NotAnObject(u8),
    /// Not JSON, a value of another type than the protocol's, or more than the limits allow.
    #[error("the peer's message cannot be read: {0}")]
    Malformed(String),
}

impl From<serde_json::Error> for DecodeError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(clip(&error.to_string()))
    }
}

/// Reads the answer to `services`.
pub fn decode_list(document: &[u8], limits: &Limits) -> Result<ReceivedList, DecodeError> {
    if document.len() > limits.list_bytes {
        return Err(DecodeError::ListTooLong {
            limit: limits.list_bytes,
        });
    }
    let limit = limits.services;
    decode(document, Object::<ReceivedList>::new(limits)).map_err(|error| match error {
        DecodeError::Malformed(text) if text.starts_with(&too_many(limit, SERVICES)) => {
            DecodeError::TooManyServices { limit }
        }
        other => other,
    })
}

/// Reads one event of a watch.
pub(super) fn decode_event(object: &[u8], limits: &Limits) -> Result<WatchEvent, DecodeError> {
    decode(object, Object::<WatchEvent>::new(limits))
}

fn decode<'de, S: DeserializeSeed<'de>>(json: &'de [u8], seed: S) -> Result<S::Value, DecodeError> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// A message type that is read key by key. Of a repeated key the last one counts.
trait Message: Sized {
    const EXPECTED: &'static str;
    fn read<'de, A: MapAccess<'de>>(map: A, limits: &Limits) -> Result<Self, A::Error>;
}

struct Object<'l, T> {
    limits: &'l Limits,
    message: PhantomData<T>,
}

impl<'l, T> Object<'l, T> {
    fn new(limits: &'l Limits) -> Self {
        Self {
            limits,
            message: PhantomData,
        }
    }
}

impl<T> Clone for Object<'_, T> {
    fn clone(&self) -> Self {
        Self::new(self.limits)
    }
}

impl<'de, T: Message> DeserializeSeed<'de> for Object<'_, T> {
    type Value = T;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<T, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de, T: Message> Visitor<'de> for Object<'_, T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::read(map, self.limits)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Key {
    Checksum,
    Services,
    NetworkGatewayEndpoints,
    Name,
    Namespace,
    Hostname,
    ServicePorts,
    ServiceAccounts,
    Port,
    Protocol,
    Action,
    Service,
    MeshfedHealth,
    ReadyEndpoints,
    Capacity,
    Draining,
    #[serde(other)]
    Unknown,
}

impl Message for ReceivedList {
    const EXPECTED: &'static str = "a list of services";

    fn read<'de, A: MapAccess<'de>>(mut map: A, limits: &Limits) -> Result<Self, A::Error> {
        let mut list = ServiceList::default();
        let mut endpoints = Vec::new();
        while let Some(key) = map.next_key()? {
            match key {
                Key::Checksum => list.checksum = map.next_value::<Option<u64>>()?.unwrap_or(0),
                Key::Services => {
                    let element = Object::<Service>::new(limits);
                    let services = List::new(element, limits.services, SERVICES);
                    list.services = map.next_value_seed(services)?;
                }
                Key::NetworkGatewayEndpoints => {
                    let element = Object::<GatewayEndpoint>::new(limits);
                    let all = List::new(element, limits.services, "gateway endpoints in a list");
                    endpoints = map.next_value_seed(all)?;
                }
                _ => ignore(&mut map)?,
            }
        }
        let mut hash = ListHash::of(&list.services);
        for endpoint in endpoints {
            hash.toggle_gateway_endpoint(endpoint.port, &endpoint.hostname);
        }
        Ok(Self { list, hash })
    }
}

/// An entry of the older message's `networkGatewayEndpoints`; only its hash is of use.
#[derive(Default)]
struct GatewayEndpoint {
    port: i64,
    hostname: String,
}

impl Message for GatewayEndpoint {
    const EXPECTED: &'static str = "a gateway endpoint";

    fn read<'de, A: MapAccess<'de>>(mut map: A, limits: &Limits) -> Result<Self, A::Error> {
        let mut endpoint = Self::default();
        while let Some(key) = map.next_key()? {
            match key {
                Key::Port => endpoint.port = map.next_value::<Option<i64>>()?.unwrap_or(0),
                Key::Hostname => endpoint.hostname = map.next_value_seed(Text(limits))?,
                _ => ignore(&mut map)?,
            }
        }
        Ok(endpoint)
    }
}

impl Message for Service {
    const EXPECTED: &'static str = "a service";

    fn read<'de, A: MapAccess<'de>>(mut map: A, limits: &Limits) -> Result<Self, A::Error> {
        let mut service = Self::default();
        while let Some(key) = map.next_key()? {
            match key {
                Key::Name => service.name = map.next_value_seed(Text(limits))?,
                Key::Namespace => service.namespace = map.next_value_seed(Text(limits))?,
                Key::Hostname => service.hostname = map.next_value_seed(Text(limits))?,
                Key::ServicePorts => {
                    let element = Object::<ServicePort>::new(limits);
                    let ports = List::new(element, limits.ports, "ports of a service");
                    service.ports = map.next_value_seed(ports)?;
                }
                Key::ServiceAccounts => {
                    let accounts =
                        List::new(Text(limits), limits.accounts, "accounts of a service");
                    service.accounts = map.next_value_seed(accounts)?;
                }
                Key::MeshfedHealth => {
                    service.health = map.next_value_seed(Nullable(Object::new(limits)))?;
                }
                _ => ignore(&mut map)?,
            }
        }
        Ok(service)
    }
}

impl Message for Health {
    const EXPECTED: &'static str = "the health of a service";

    fn read<'de, A: MapAccess<'de>>(mut map: A, _: &Limits) -> Result<Self, A::Error> {
        let mut health = Self::default();
        while let Some(key) = map.next_key()? {
            match key {
                Key::ReadyEndpoints => health.ready_endpoints = map.next_value()?,
                Key::Capacity => health.capacity = map.next_value()?,
                Key::Draining => health.draining = map.next_value()?,
                _ => ignore(&mut map)?,
            }
        }
        Ok(health)
    }
}

impl Message for ServicePort {
    const EXPECTED: &'static str = "a service port";

    fn read<'de, A: MapAccess<'de>>(mut map: A, limits: &Limits) -> Result<Self, A::Error> {
        let mut port = Self::default();
        while let Some(key) = map.next_key()? {
            match key {
                Key::Name => port.name = map.next_value_seed(Text(limits))?,
                Key::Port => port.port = map.next_value::<Option<i64>>()?.unwrap_or(0),
                Key::Protocol => port.protocol = map.next_value_seed(Text(limits))?,
                _ => ignore(&mut map)?,
            }
        }
        Ok(port)
    }
}

impl Message for WatchEvent {
    const EXPECTED: &'static str = "a watch event";

    fn read<'de, A: MapAccess<'de>>(mut map: A, limits: &Limits) -> Result<Self, A::Error> {
        let mut event = Self {
            action: Action::Other(String::new()),
            service: None,
            checksum: 0,
        };
        while let Some(key) = map.next_key()? {
            match key {
                Key::Action => {
                    event.action = match map.next_value_seed(Text(limits))?.as_str() {
                        "add" => Action::Add,
                        "update" => Action::Update,
                        "delete" => Action::Delete,
                        other => Action::Other(other.to_owned()),
                    };
                }
                Key::Service => {
                    event.service = map.next_value_seed(Nullable(Object::new(limits)))?
                }
                Key::Checksum => event.checksum = map.next_value::<Option<u64>>()?.unwrap_or(0),
                _ => ignore(&mut map)?,
            }
        }
        Ok(event)
    }
}

fn ignore<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(drop)
}

/// A text of bounded length; `null` is the empty one.
#[derive(Clone, Copy)]
struct Text<'l>(&'l Limits);

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<String, D::Error> {
        d.deserialize_any(self)
    }
}

impl Visitor<'_> for Text<'_> {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        let limit = self.0.text_bytes;
        if text.len() > limit {
            return Err(E::custom(format_args!("a text longer than {limit} bytes")));
        }
        Ok(text.to_owned())
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<String, E> {
        Ok(String::new())
    }
}

const SERVICES: &str = "services in a list";

fn too_many(limit: usize, what: &str) -> String {
    format!("more than {limit} {what}")
}

/// A list of bounded length; `null` is the empty one.
struct List<S> {
    element: S,
    limit: usize,
    what: &'static str,
}

impl<S> List<S> {
    fn new(element: S, limit: usize, what: &'static str) -> Self {
        Self {
            element,
            limit,
            what,
        }
    }
}

impl<'de, S: DeserializeSeed<'de> + Clone> DeserializeSeed<'de> for List<S> {
    type Value = Vec<S::Value>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de, S: DeserializeSeed<'de> + Clone> Visitor<'de> for List<S> {
    type Value = Vec<S::Value>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.what)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(value) = seq.next_element_seed(self.element.clone())? {
            if all.len() == self.limit {
                return Err(A::Error::custom(too_many(self.limit, self.what)));
            }
            all.push(value);
        }
        Ok(all)
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }
}

struct Nullable<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Nullable<S> {
    type Value = Option<S::Value>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_option(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for Nullable<S> {
    type Value = Option<S::Value>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or null")
    }
    fn visit_none<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        self.0.deserialize(d).map(Some)
    }
}
