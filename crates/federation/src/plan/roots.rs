//! The root certificates of a peer, judged before they vouch for anybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use meshfed_api::ROOT_CERT_KEY;
use meshfed_api::peer::CertificateChain;
use meshfed_pki::{RootCert, TrustError, TrustStore};

use crate::names::{PeerName, clip};
use crate::world::{ObjectKey, Shared, World};

/// Why a peer's roots cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootProblem {
    #[error(
        "spec.security.certificateChain names a {0}; only a ConfigMap can hold the peer's root"
    )]
    Kind(String),
    #[error(
        "the ConfigMap {0} with the peer's root certificate does not exist; create it with the key root-cert.pem"
    )]
    Missing(ObjectKey),
    #[error("the ConfigMap {0} has no key root-cert.pem; put the peer's root certificate there")]
    KeyMissing(ObjectKey),
    #[error("root-cert.pem of the ConfigMap {at} cannot be used: {error}")]
    Invalid { at: ObjectKey, error: TrustError },
    #[error(
        "every certificate in root-cert.pem of the ConfigMap {0} has expired or is not valid yet; ask the peer for its current root"
    )]
    NotValidNow(ObjectKey),
}

/// Roots that are good now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Roots {
    pub pem: Arc<str>,
    /// When the next of them begins or ends to be valid.
    pub next_change: Option<Timestamp>,
}

/// The certificates of ConfigMaps, read once for each version of one.
#[derive(Debug, Default)]
pub(super) struct ReadRoots(BTreeMap<ObjectKey, (Arc<ConfigMap>, Read)>);

/// The text, and what it says; nothing if the key is missing.
type Read = Option<(Arc<str>, Result<Arc<[RootCert]>, TrustError>)>;

impl ReadRoots {
    /// Forgets the ConfigMaps that are gone.
    pub fn retain(&mut self, config_maps: &Shared<ObjectKey, ConfigMap>) {
        self.0.retain(|key, _| config_maps.contains_key(key));
    }

    fn of(&mut self, key: &ObjectKey, config_map: &Arc<ConfigMap>) -> Read {
        match self.0.get(key) {
            Some((of, read)) if Arc::ptr_eq(of, config_map) => read.clone(),
            _ => {
                let pem = config_map.data.as_ref().and_then(|d| d.get(ROOT_CERT_KEY));
                let read = pem.map(|pem| {
                    let roots = TrustStore::parse_roots(pem);
                    (pem.as_str().into(), roots.map(Into::into))
                });
                self.0
                    .insert(key.clone(), (config_map.clone(), read.clone()));
                read
            }
        }
    }
}

pub(super) fn roots_of_peer(
    world: &World,
    read: &mut ReadRoots,
    peer: &PeerName,
    chain: Option<&CertificateChain>,
) -> Result<Roots, RootProblem> {
    let kind = chain.and_then(|c| c.kind.as_deref()).unwrap_or_default();
    let group = chain
        .and_then(|c| c.api_group.as_deref())
        .unwrap_or_default();
    if !matches!(kind, "" | "ConfigMap") || !group.is_empty() {
        return Err(RootProblem::Kind(clip(format!("{group} {kind}").trim())));
    }
    let named = chain.and_then(|c| c.name.clone()).filter(|n| !n.is_empty());
    let name = named.unwrap_or_else(|| format!("{peer}-ca-root-cert"));
    let at = ObjectKey::new(world.mesh.system_namespace.clone(), name);
    let Some(config_map) = world.resources.config_maps.get(&at) else {
        return Err(RootProblem::Missing(at));
    };
    let Some((pem, roots)) = read.of(&at, config_map) else {
        return Err(RootProblem::KeyMissing(at));
    };
    let roots = match roots {
        Ok(roots) => roots,
        Err(error) => return Err(RootProblem::Invalid { at, error }),
    };
    let now = SystemTime::from(world.now);
    if !roots.iter().any(|root| root.is_valid_at(now)) {
        return Err(RootProblem::NotValidNow(at));
    }
    let next_change = roots
        .iter()
        .flat_map(|root| [root.not_before, root.not_after])
        // The last second belongs to a certificate's life.
        .map(|time| time + Duration::from_secs(1))
        .filter(|time| *time > now)
        .min()
        .and_then(|time| Timestamp::try_from(time).ok());
    Ok(Roots { pem, next_change })
}
