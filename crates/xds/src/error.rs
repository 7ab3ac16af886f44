//! Why a resource was refused.

use meshfed_pki::IdError;

use crate::TypeUrl;
use crate::wire::clip;

/// A resource that is outside the subset. The resource is refused as a whole; others of the same
/// response are not concerned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{} {resource:?}: {}{reason}", kind.label(), prefix(field))]
pub struct DecodeError {
    pub kind: TypeUrl,
    /// The name that the resource gives itself, clipped; empty if it could not be read, until
    /// [`sent_as`](Self::sent_as) says under which it came.
    pub resource: String,
    /// Path of the field inside the resource, in Envoy's names, such as
    /// `filter_chains[0].filters[1].typed_config.idle_timeout`. Empty: the resource as a whole.
    pub field: String,
    pub reason: Reason,
}

impl DecodeError {
    /// Names a resource that could not be read by what it was sent as.
    pub fn sent_as(mut self, name: &str) -> Self {
        if self.resource.is_empty() {
            self.resource = clip(name);
        }
        self
    }
}

fn prefix(field: &str) -> String {
    if field.is_empty() {
        String::new()
    } else {
        format!("{field}: ")
    }
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Reason {
    #[error("not a message of its type: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A field that this version does not know, or bytes that no ordinary encoder writes. Nothing
    /// that could carry a meaning is skipped.
    #[error("has fields that are unknown here")]
    UnknownFields,
    #[error("larger than {max} bytes")]
    TooLarge { max: usize },
    #[error("of type {0:?}, which is not supported here")]
    WrongType(String),
    /// Set, or set to another value, where the subset knows only one.
    #[error("has a value that is not supported here")]
    Unsupported,
    #[error("missing")]
    Missing,
    #[error("out of range")]
    OutOfRange,
    #[error("not an IP address")]
    BadAddress,
    #[error(transparent)]
    BadIdentity(#[from] IdError),
    #[error("not a name that can be matched here: {0:?}")]
    BadName(String),
    #[error("occurs twice: {0:?}")]
    Duplicate(String),
}
