//! What all verbs share: the store, the kinds, the clock, and the making of errors.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use aws_lc_rs::rand;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{Semaphore, watch};

use crate::{
    error::{ApiError, Subject},
    registry::{Registry, ResourceType, Version},
    store::{Key, Store, Stored, Uid, WriteError, key},
    token::TokenSigner,
};

/// Tells the time; tests turn it.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// A JSON document that another part of the program makes when it is asked for. `None` while there is
/// none yet.
pub type Document = Arc<dyn Fn() -> Option<Bytes> + Send + Sync>;

/// A document that only administrators may read, at a path like that of a collection:
/// `/apis/<group>/<version>/<plural>`. No client lists or watches it, so discovery does not name it.
#[derive(Clone)]
pub struct View {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub document: Document,
}

/// Watches that may be open at a time.
pub const MOST_WATCHES: usize = 2048;

/// The largest object that is stored, in bytes of JSON.
const LARGEST_OBJECT: usize = 3 * 1024 * 1024;

/// A write by somebody outside of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteReport {
    /// As authenticated.
    pub user: String,
    pub groups: Vec<String>,
    /// `create`, `update`, `patch` or `delete`.
    pub verb: &'static str,
    pub kind: String,
    /// Empty for what has none.
    pub namespace: String,
    pub name: String,
    /// Of the object that was written; another one of this name has another.
    pub uid: String,
    /// The resource version that the write made.
    pub revision: u64,
}

/// Hears of writes. The thread that writes calls it, so it must not block.
pub type Reporter = Box<dyn Fn(WriteReport) + Send + Sync>;

pub struct Api {
    pub registry: Registry,
    pub store: Store,
    pub clock: Clock,
    pub signer: TokenSigner,
    pub watches: Arc<Semaphore>,
    /// Set once, when the part that makes the document runs.
    pub view: OnceLock<View>,
    /// Set once, when somebody wants to hear of writes.
    pub reports: Arc<OnceLock<Reporter>>,
    /// Set when the server is to end; watches end then.
    pub ending: watch::Sender<bool>,
}

impl Api {
    pub fn now(&self) -> SystemTime {
        (self.clock)()
    }

    pub fn timestamp(&self) -> Timestamp {
        Timestamp::try_from(self.now()).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// RFC 3339 with seconds, as metadata has times.
    pub fn time_text(&self) -> String {
        rfc3339(self.timestamp())
    }
}

pub fn rfc3339(time: Timestamp) -> String {
    let time = Timestamp::from_second(time.as_second()).unwrap_or(time);
    time.to_string()
}

/// One resource, or all of a kind, as a request names it.
#[derive(Debug, Clone)]
pub struct Target {
    pub ty: Arc<ResourceType>,
    /// Index in `ty.versions`.
    pub version: usize,
    /// Empty: all namespaces, or a kind without.
    pub namespace: String,
    /// Empty for collections.
    pub name: String,
}

impl Target {
    pub fn version(&self) -> &Version {
        &self.ty.versions[self.version]
    }

    pub fn key(&self) -> Key {
        key(&self.namespace, &self.name)
    }

    /// For errors about the resource.
    pub fn subject(&self) -> Subject {
        Subject::new(&self.ty.group, &self.ty.plural, &self.name)
    }

    /// For errors about the object's content.
    pub fn kind_subject(&self) -> Subject {
        Subject::new(&self.ty.group, &self.ty.kind, &self.name)
    }

    pub fn named(&self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self.clone()
        }
    }

    /// The error that a refused write is for the client.
    pub fn write_error(&self, error: WriteError) -> ApiError {
        match error {
            WriteError::Exists => ApiError::already_exists(self.subject()),
            WriteError::Missing => ApiError::not_found(self.subject()),
            WriteError::Changed => ApiError::modified(self.subject()),
            WriteError::NoNamespace => {
                ApiError::not_found(Subject::new("", "namespaces", &self.namespace))
            }
            WriteError::NamespaceEnding => ApiError::forbidden(
                self.subject(),
                format_args!(
                    "unable to create new content in namespace {} because it is being terminated",
                    self.namespace
                ),
            ),
            WriteError::NamespaceInUse => {
                ApiError::conflict(self.subject(), "the namespace still has content")
            }
            WriteError::Disk(_) => ApiError::internal(error.to_string()),
            WriteError::Closed => ApiError::unavailable("the server is ending"),
        }
    }

    /// A stored object as this target's version has it, whole.
    pub fn value(&self, stored: &Stored) -> Value {
        let version = self.version();
        let mut value = version.read_stored(stored.to_value());
        if let Some(object) = value.as_object_mut() {
            object.insert("apiVersion".to_owned(), version.api_version.as_str().into());
            object.insert("kind".to_owned(), self.ty.kind.as_str().into());
        }
        value
    }

    /// The form in which an object of this target's version is stored.
    pub fn to_stored(&self, value: Value) -> Result<Stored, ApiError> {
        let value = self.version().to_storage(value);
        let stored = Stored::from_value(&value, &self.ty.stored_as)
            .ok_or_else(|| ApiError::bad_request("the object has no metadata"))?;
        if stored.tail.len() > LARGEST_OBJECT {
            return Err(ApiError::too_large(LARGEST_OBJECT));
        }
        Ok(stored)
    }
}

/// A random version 4 UUID.
pub fn random_uid() -> Uid {
    let mut bytes = [0; 16];
    fill_random(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Uid::from_be_bytes(bytes)
}

/// Five letters and digits that make no words.
pub fn random_suffix() -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = [0; 5];
    fill_random(&mut bytes);
    bytes
        .iter()
        .map(|b| char::from(LETTERS[usize::from(*b) % LETTERS.len()]))
        .collect()
}

/// A random part of a duration, to spread what happens at the same time.
pub fn random_part(of: Duration) -> Duration {
    let mut bytes = [0; 2];
    fill_random(&mut bytes);
    of * u32::from(u16::from_be_bytes(bytes)) / 65536
}

fn fill_random(bytes: &mut [u8]) {
    // Failing would mean that the system has no random numbers at all; the UUIDs are then those of zeros,
    // and the second object is refused by nothing but its uid, so say it.
    if rand::fill(bytes).is_err() {
        tracing::error!("the system gives no random numbers");
    }
}
