//! A certificate with its key, and the cell in which the current one is kept.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use crate::key::{KeyError, KeyPair};
use crate::trust::TrustStore;
use crate::verify::{Allowed, PeerRole, SpiffeVerifier};
use crate::x509::{self, PeerIdError};
use crate::{SpiffeId, provider};

/// Certificates of an identity's chain, at most.
pub const MAX_IDENTITY_CHAIN: usize = 10;

/// Why a certificate and a key do not make an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate chain holds no readable PEM certificate")]
    NoCertificate,
    #[error("the certificate chain has more than {MAX_IDENTITY_CHAIN} certificates")]
    ChainTooLong,
    #[error("a certificate of the chain cannot be read")]
    Unreadable,
    #[error("the certificate's URI name is not one SPIFFE identity")]
    Id(#[source] PeerIdError),
    #[error("the private key cannot be used")]
    Key(#[source] KeyError),
    #[error("the private key is of a kind that TLS cannot use")]
    KeyKind(#[source] rustls::Error),
    #[error("the private key is not the key of the certificate")]
    KeyMismatch,
}

/// An identity as PEM texts; the key is wiped from memory when dropped.
pub struct IdentityPem {
    /// Leaf first.
    pub chain: String,
    pub key: Zeroizing<String>,
}

impl fmt::Debug for IdentityPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityPem")
            .field("chain", &self.chain)
            .field("key", &"redacted")
            .finish()
    }
}

/// A certificate chain (leaf first, without the root) with the key of its leaf. Whether anybody
/// trusts it is not known here.
#[derive(Clone)]
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Arc<KeyPair>,
    /// The SPIFFE id in the leaf, if it has a URI name at all.
    pub id: Option<SpiffeId>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("not_before", &x509::shown(self.not_before))
            .field("not_after", &x509::shown(self.not_after))
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Refuses a key that is not the leaf's, and a leaf with a URI name that is not one SPIFFE id.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: KeyPair) -> Result<Self, IdentityError> {
        if chain.len() > MAX_IDENTITY_CHAIN {
            return Err(IdentityError::ChainTooLong);
        }
        if chain.iter().any(|cert| x509::parse(cert).is_none()) {
            return Err(IdentityError::Unreadable);
        }
        let (id, not_before, not_after) = {
            let leaf = chain.first().ok_or(IdentityError::NoCertificate)?;
            let leaf = x509::parse(leaf).ok_or(IdentityError::Unreadable)?;
            let id = match x509::spiffe_id(&leaf) {
                Ok(id) => Some(id),
                Err(PeerIdError::NoUri) => None,
                Err(e) => return Err(IdentityError::Id(e)),
            };
            let validity = leaf.validity();
            (
                id,
                x509::system_time(validity.not_before),
                x509::system_time(validity.not_after),
            )
        };
        let signing = provider()
            .key_provider
            .load_private_key(key.pkcs8().clone_key())
            .map_err(IdentityError::KeyKind)?;
        let certified = CertifiedKey::new(chain.clone(), signing);
        certified
            .keys_match()
            .map_err(|_| IdentityError::KeyMismatch)?;
        Ok(Self {
            chain,
            key: Arc::new(key),
            id,
            not_before,
            not_after,
            certified: Arc::new(certified),
        })
    }

    /// Reads a PEM chain, leaf first, and the PEM key of the leaf.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let chain = x509::pem_certificates(chain_pem).ok_or(IdentityError::NoCertificate)?;
        let key = KeyPair::from_pem(key_pem).map_err(IdentityError::Key)?;
        Self::new(chain, key)
    }

    pub fn to_pem(&self) -> IdentityPem {
        IdentityPem {
            chain: self.chain.iter().map(x509::to_pem).collect(),
            key: self.key.to_pkcs8_pem(),
        }
    }

    /// When to ask for the next certificate: after 70 % to 80 % of the life of this one, never
    /// before `now`. The spread comes from the certificate's own random bits, so every call gives
    /// the same moment and a fleet that started together does not renew together.
    pub fn renew_at(&self, now: SystemTime) -> SystemTime {
        let life = self
            .not_after
            .duration_since(self.not_before)
            .unwrap_or(Duration::ZERO);
        let spread = self
            .chain
            .first()
            .and_then(|leaf| leaf.last_chunk::<2>())
            .map_or(0, |end| u32::from(u16::from_be_bytes(*end)));
        let jitter = life / 10 * spread / u32::from(u16::MAX);
        let at = self.not_before + life / 10 * 8 - jitter;
        at.max(now)
    }

    /// Whether who has this trust accepts it as a client's at this time. One without a SPIFFE id is accepted by
    /// nobody.
    pub fn is_accepted_by(&self, trust: Arc<TrustStore>, now: SystemTime) -> bool {
        let Some((leaf, intermediates)) = self.chain.split_first() else {
            return false;
        };
        let verifier = SpiffeVerifier::new(trust, Allowed::Bundle);
        let verified = verifier.verify(leaf, intermediates, PeerRole::Client, x509::to_unix(now));
        verified.is_ok()
    }

    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

/// The identity in use, shared by every TLS configuration that presents it and read anew at each
/// handshake, so that a rotation needs no new configuration and cuts no connection.
#[derive(Default)]
pub struct IdentityCell(ArcSwapOption<Identity>);

impl IdentityCell {
    pub fn new(identity: Option<Identity>) -> Self {
        Self(ArcSwapOption::new(identity.map(Arc::new)))
    }

    /// From now on, handshakes present this identity.
    pub fn set(&self, identity: Identity) {
        self.0.store(Some(Arc::new(identity)));
    }

    /// What a handshake presents now.
    pub fn get(&self) -> Option<Arc<CertifiedKey>> {
        self.0.load().as_ref().map(|i| i.certified.clone())
    }

    /// The whole identity, with its id and times.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.0.load_full()
    }
}

impl fmt::Debug for IdentityCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IdentityCell")
            .field(&self.identity())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{HOUR, Odd, mk_ca, mk_id, mk_identity};

    const RATINGS: &str = "spiffe://red-mesh.local/ns/bookinfo/sa/ratings";

    #[test]
    fn an_identity_survives_its_pem_form() {
        let identity = mk_identity(&mk_ca("red"), RATINGS);
        let pem = identity.to_pem();
        let again = Identity::from_pem(&pem.chain, &pem.key).unwrap();
        assert_eq!(again.chain, identity.chain);
        assert_eq!(again.id, Some(mk_id(RATINGS)));
        assert_eq!(again.not_after, identity.not_after);
        let secret = pem.key.lines().nth(1).unwrap();
        assert!(!format!("{pem:?} {identity:?}").contains(secret));
    }

    #[test]
    fn a_foreign_key_and_ambiguous_names_are_refused() {
        let ca = mk_ca("red");
        let one = mk_identity(&ca, RATINGS).to_pem();
        let other = mk_identity(&ca, RATINGS).to_pem();
        let refused = Identity::from_pem(&one.chain, &other.key).unwrap_err();
        assert!(matches!(refused, IdentityError::KeyMismatch));
        let refused = Identity::from_pem("", &one.key).unwrap_err();
        assert!(matches!(refused, IdentityError::NoCertificate));
        let refused = Identity::from_pem(&one.chain, "").unwrap_err();
        assert!(matches!(refused, IdentityError::Key(_)));
        let refused = Identity::from_pem(&one.chain.repeat(11), &one.key).unwrap_err();
        assert!(matches!(refused, IdentityError::ChainTooLong));

        let (leaf, key) = Odd::with_uris(&[RATINGS, "spiffe://x/ns/a/sa/b"]).signed_by(&ca);
        let refused = Identity::new(vec![leaf], key).unwrap_err();
        assert!(matches!(
            refused,
            IdentityError::Id(PeerIdError::SeveralUris(2))
        ));
    }

    #[test]
    fn renewal_is_due_well_before_the_end_and_never_in_the_past() {
        let identity = mk_identity(&mk_ca("red"), RATINGS);
        let life = identity
            .not_after
            .duration_since(identity.not_before)
            .unwrap();
        let due = identity.renew_at(identity.not_before);
        let after = due.duration_since(identity.not_before).unwrap();
        assert!(
            after >= life / 100 * 69 && after <= life / 10 * 8,
            "{after:?}"
        );
        assert_eq!(identity.renew_at(identity.not_before), due);
        let late = identity.not_after + HOUR;
        assert_eq!(identity.renew_at(late), late);
    }
}
