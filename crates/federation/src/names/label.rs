//! Labels, and the names that are made of labels only.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use smol_str::SmolStr;

use super::{MAX_LABEL_LEN, NameError, clip};

/// Longest name of a peer, in bytes: `<peer>-exports` and `<peer>-imports` are DNS labels.
pub const MAX_PEER_NAME_LEN: usize = MAX_LABEL_LEN - "-exports".len();

/// A DNS-1123 label: 1 to 63 of `a-z`, `0-9` and `-`, with a letter or digit at both ends.
/// Names of namespaces and services are labels. Short ones need no allocation and are compared where
/// they stand; copies of long ones share their text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label(SmolStr);

impl Label {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if is_label(text) {
            Ok(Self(text.into()))
        } else {
            Err(NameError::NotALabel(clip(text)))
        }
    }
}

pub(super) fn is_label(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= MAX_LABEL_LEN
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
}

/// The name of a ServiceMeshPeer: what *this* mesh calls the other one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerName(Label);

impl PeerName {
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for PeerName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let label: Label = text.parse()?;
        if text.len() > MAX_PEER_NAME_LEN {
            return Err(NameError::PeerNameTooLong(clip(text)));
        }
        Ok(Self(label))
    }
}

/// Which service: its namespace and its name. Displayed `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    pub namespace: Label,
    pub name: Label,
}

impl ServiceKey {
    pub fn parse(namespace: &str, name: &str) -> Result<Self, NameError> {
        Ok(Self {
            namespace: namespace.parse()?,
            name: name.parse()?,
        })
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}
impl Borrow<str> for Label {
    fn borrow(&self) -> &str {
        &self.0
    }
}
impl PartialEq<str> for Label {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Debug for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl Borrow<str> for PeerName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}
