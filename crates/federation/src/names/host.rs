//! Host names of services and of discovery, as each end knows them.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use meshfed_proxy_config::joined;

use super::label::is_label;
use super::{DomainSuffix, Label, MAX_SNI_HOST_LEN, NameError, PeerName, ServiceKey, clip};

/// `<name>.<ns>.svc.<peer>-exports.local`: a service as the exporting mesh's ingress knows it.
///
/// `<peer>` is what the exporting mesh calls the importing one, so an importer cannot predict it
/// and takes it from the list that it was sent.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExportedHost(Arc<str>);

impl ExportedHost {
    /// The name under which we export a service to `peer`.
    pub fn ours(key: &ServiceKey, peer: &PeerName) -> Self {
        Self(joined(&[
            key.name.as_str(),
            ".",
            key.namespace.as_str(),
            ".svc.",
            peer.as_str(),
            "-exports.local",
        ]))
    }

    /// What all names exported to `peer` end with: `svc.<peer>-exports.local`.
    pub fn suffix_for(peer: &PeerName) -> String {
        format!("svc.{peer}-exports.local")
    }

    /// Checks a name that a peer sent: it must repeat the entry's own name and namespace and have
    /// exactly one label before `-exports.local`.
    pub fn from_peer(host: &str, key: &ServiceKey) -> Result<Self, NameError> {
        let label = host
            .strip_prefix(key.name.as_str())
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(|rest| rest.strip_prefix(key.namespace.as_str()))
            .and_then(|rest| rest.strip_prefix(".svc."))
            .and_then(|rest| rest.strip_suffix(".local"))
            .filter(|label| is_label(label));
        match label {
            Some(label) if label.len() > "-exports".len() && label.ends_with("-exports") => {
                Ok(Self(host.into()))
            }
            _ => Err(NameError::NotAnExportedHost {
                host: clip(host),
                name: key.name.clone(),
                namespace: key.namespace.clone(),
            }),
        }
    }

    /// The name as a shared text.
    pub fn shared(&self) -> &Arc<str> {
        &self.0
    }

    /// The label before `.local`: `<peer>-exports`. It is the same for all names of one list.
    pub fn exports_label(&self) -> &str {
        self.0.rsplit('.').nth(1).unwrap_or_default()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `<name>.<ns>.svc.<peer>.remote`: the hidden name of a peer's service at our own egress.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RemoteHost(Arc<str>);

impl RemoteHost {
    /// `key` is the exported name and namespace.
    pub fn new(key: &ServiceKey, peer: &PeerName) -> Self {
        let (name, namespace) = (key.name.as_str(), key.namespace.as_str());
        Self(joined(&[
            name,
            ".",
            namespace,
            ".svc.",
            peer.as_str(),
            ".remote",
        ]))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `<name>.<ns>.<suffix>`: the name under which our workloads call an imported service. It is made
/// from our own rules alone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImportedHost(Arc<str>);

impl ImportedHost {
    /// # Errors
    /// [`NameError::HostTooLong`] if the name would fit into no SNI.
    pub fn new(key: &ServiceKey, suffix: &DomainSuffix) -> Result<Self, NameError> {
        let host = format!("{}.{}.{suffix}", key.name, key.namespace);
        if host.len() > MAX_SNI_HOST_LEN {
            return Err(NameError::HostTooLong(clip(&host)));
        }
        Ok(Self(host.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ImportedHost {
    /// What follows name and namespace.
    pub fn suffix(&self) -> &str {
        self.0.splitn(3, '.').nth(2).unwrap_or_default()
    }
}

/// `discovery.<system-ns>.svc.<peer>.local`: the authority and the SNI of our discovery requests to
/// a peer. Nobody but our own egress reads it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiscoveryHost(Arc<str>);

impl DiscoveryHost {
    pub fn new(system_namespace: &Label, peer: &PeerName) -> Self {
        Self(format!("discovery.{system_namespace}.svc.{peer}.local").into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_traits {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )+};
}
text_traits!(ExportedHost, RemoteHost, ImportedHost, DiscoveryHost);
