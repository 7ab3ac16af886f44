//! The part of an imported name that our own rules choose.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::label::is_label;
use super::{MAX_SNI_HOST_LEN, NameError, PeerName, clip};

/// What follows `<name>.<namespace>.` in an imported name, such as `svc.red-mesh-imports.local`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainSuffix(Arc<str>);

impl DomainSuffix {
    /// The default for services of this peer: `svc.<peer>-imports.local`.
    pub fn imports_of(peer: &PeerName) -> Self {
        Self(format!("svc.{peer}-imports.local").into())
    }

    /// What follows name and namespace of the cluster's own services: `svc.<cluster domain>`.
    pub fn of_cluster(cluster_domain: &str) -> Self {
        Self(format!("svc.{cluster_domain}").into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DomainSuffix {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if !text.split('.').all(is_label) {
            return Err(NameError::NotADomain(clip(text)));
        }
        if text.len() > MAX_SNI_HOST_LEN {
            return Err(NameError::DomainTooLong(clip(text)));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for DomainSuffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for DomainSuffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}
