//! SPIFFE identities, parsed once at the edge.
//!
//! Source: the SPIFFE ID and X509-SVID specifications, and Istio's form
//! `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest SPIFFE id that is accepted, in bytes (SPIFFE ID specification, section 2.3).
pub const MAX_SPIFFE_ID_LEN: usize = 2048;
/// Longest trust domain name, in bytes (SPIFFE ID specification, section 2.3).
pub const MAX_TRUST_DOMAIN_LEN: usize = 255;

/// Why a text is not a trust domain or a SPIFFE id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    #[error(
        "the trust domain {0:?} has a character outside a-z, 0-9, '.', '-' and '_', or more than 255 bytes"
    )]
    BadTrustDomain(String),
    #[error("the identity {0:?} is longer than 2048 bytes")]
    TooLong(String),
    #[error(
        "the identity {0:?} is not of the form [spiffe://]<trust domain>/ns/<namespace>/sa/<service account>"
    )]
    BadId(String),
}

impl IdError {
    /// For a URI that is no SPIFFE id because its scheme is another.
    pub(crate) fn without_scheme(text: &str) -> Self {
        Self::BadId(clip(text))
    }
}

/// A SPIFFE trust domain name, such as `red-mesh.local`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `spiffe://<trust domain>`, the form in which it stands in a URI SAN.
    pub fn uri(&self) -> String {
        format!("spiffe://{}", self.0)
    }

    /// The identity of a service account of this domain.
    pub fn service_account(
        &self,
        namespace: &str,
        service_account: &str,
    ) -> Result<SpiffeId, IdError> {
        format!("spiffe://{self}/ns/{namespace}/sa/{service_account}").parse()
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(s: &str) -> Result<Self, IdError> {
        if s.is_empty() {
            return Err(IdError::EmptyTrustDomain);
        }
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if s.len() > MAX_TRUST_DOMAIN_LEN || !s.bytes().all(allowed) {
            return Err(IdError::BadTrustDomain(clip(s)));
        }
        Ok(Self(s.into()))
    }
}

/// An identity: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// `Display` gives the full URI. Parsing accepts it with and without `spiffe://`, as
/// `clientID` of a ServiceMeshPeer is written without.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// The full URI, with `spiffe://`.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn namespace(&self) -> &str {
        self.path_segment(1)
    }

    pub fn service_account(&self) -> &str {
        self.path_segment(3)
    }

    /// The identity without its scheme, as `clientID` and Istio's principals are written.
    pub fn without_scheme(&self) -> &str {
        self.uri.strip_prefix("spiffe://").unwrap_or(&self.uri)
    }

    fn path_segment(&self, n: usize) -> &str {
        self.without_scheme().split('/').nth(n + 1).unwrap_or("")
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(s: &str) -> Result<Self, IdError> {
        if s.len() > MAX_SPIFFE_ID_LEN {
            return Err(IdError::TooLong(clip(s)));
        }
        let bare = s.strip_prefix("spiffe://").unwrap_or(s);
        let parts: Vec<&str> = bare.split('/').collect();
        let [domain, "ns", namespace, "sa", account] = parts.as_slice() else {
            return Err(IdError::BadId(clip(s)));
        };
        let trust_domain: TrustDomain = domain.parse()?;
        let segment = |t: &str| {
            !t.is_empty()
                && t != "."
                && t != ".."
                && t.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        if !segment(namespace) || !segment(account) {
            return Err(IdError::BadId(clip(s)));
        }
        Ok(Self {
            uri: format!("spiffe://{bare}").into(),
            trust_domain,
        })
    }
}

/// Error messages repeat what was given, but never at a length that the sender chose.
fn clip(s: &str) -> String {
    s.chars().take(120).collect()
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}
impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.uri)
    }
}
impl TryFrom<String> for SpiffeId {
    type Error = IdError;
    fn try_from(s: String) -> Result<Self, IdError> {
        s.parse()
    }
}
impl From<SpiffeId> for String {
    fn from(v: SpiffeId) -> String {
        v.to_string()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}
impl TryFrom<String> for TrustDomain {
    type Error = IdError;
    fn try_from(s: String) -> Result<Self, IdError> {
        s.parse()
    }
}
impl From<TrustDomain> for String {
    fn from(v: TrustDomain) -> String {
        v.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_with_and_without_its_scheme() {
        let with: SpiffeId = "spiffe://red-mesh.local/ns/red-mesh-system/sa/ingress"
            .parse()
            .unwrap();
        let without: SpiffeId = "red-mesh.local/ns/red-mesh-system/sa/ingress"
            .parse()
            .unwrap();
        assert_eq!(with, without);
        assert_eq!(with.namespace(), "red-mesh-system");
        assert_eq!(with.service_account(), "ingress");
        assert_eq!(with.trust_domain().as_str(), "red-mesh.local");
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        for bad in [
            "",
            "spiffe://",
            "spiffe://a/ns/b/sa/",
            "spiffe://a/ns/b/sa/c/d",
            "spiffe://A/ns/b/sa/c",
            "spiffe:///ns/b/sa/c",
            "a/ns/../sa/c",
            "a/ns/b;URI=x/sa/c",
            "http://a/ns/b/sa/c",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }
}
