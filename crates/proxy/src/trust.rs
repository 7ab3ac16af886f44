//! Trust bundles in use, and whether a peer that was accepted once would be accepted now.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::SystemTime;

use meshfed_pki::{SpiffeId, TrustError, TrustStore};
use meshfed_proxy_config::TrustBundle;
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};

use crate::limits::CHAIN_BYTES;

/// A bundle with its parsed roots. TLS configurations that were made from it are recognised by
/// the pointer of the store.
pub(crate) struct Trust {
    pub(crate) bundle: Arc<TrustBundle>,
    pub(crate) store: Arc<TrustStore>,
}

impl Trust {
    pub(crate) fn parse(bundle: Arc<TrustBundle>) -> Result<Self, TrustError> {
        let store = Arc::new(TrustStore::parse(&bundle.domains)?);
        Ok(Self { bundle, store })
    }
}

/// What a peer showed in its handshake.
pub(crate) struct Proof {
    pub(crate) id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    at: SystemTime,
    role: Role,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Client,
    Server,
}

impl Proof {
    /// Of a handshake that has just succeeded. The error says what is wrong with the chain.
    pub(crate) fn new(
        chain: Option<&[CertificateDer<'static>]>,
        role: Role,
    ) -> Result<Self, &'static str> {
        let chain = chain.unwrap_or_default();
        if chain.iter().map(|c| c.len()).sum::<usize>() > CHAIN_BYTES {
            return Err("chain_too_long");
        }
        Ok(Self {
            id: meshfed_pki::peer_id(chain).map_err(|_| "not_spiffe")?,
            chain: chain.to_vec(),
            at: SystemTime::now(),
            role,
        })
    }

    /// Whether the roots of the peer's domain vouch for it. Times are judged as of the handshake: a
    /// certificate that ran out since then does not end a connection, a withdrawn root does.
    pub(crate) fn holds(&self, trust: &TrustStore) -> bool {
        let Some(found) = trust.roots(self.id.trust_domain()) else {
            return false;
        };
        let mut roots = RootCertStore::empty();
        for root in found.iter().filter(|root| root.is_valid_at(self.at)) {
            if roots.add(root.der.clone()).is_err() {
                return false;
            }
        }
        let Some((leaf, intermediates)) = self.chain.split_first() else {
            return false;
        };
        let Ok(since) = self.at.duration_since(SystemTime::UNIX_EPOCH) else {
            return false;
        };
        let at = UnixTime::since_unix_epoch(since);
        let provider = meshfed_pki::provider();
        match self.role {
            Role::Client => WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .is_ok_and(|v| v.verify_client_cert(leaf, intermediates, at).is_ok()),
            Role::Server => ParsedCertificate::try_from(leaf).is_ok_and(|leaf| {
                verify_server_cert_signed_by_trust_anchor(
                    &leaf,
                    &roots,
                    intermediates,
                    at,
                    provider.signature_verification_algorithms.all,
                )
                .is_ok()
            }),
        }
    }
}

/// Judges many proofs. Peers are few and their connections many, so each certificate is verified
/// once for each store.
#[derive(Default)]
pub(crate) struct Judge(HashMap<Case, bool>);

/// A certificate before a store; held, so that no other store can come to lie at its address.
struct Case {
    trust: Arc<TrustStore>,
    proof: Arc<Proof>,
}

impl PartialEq for Case {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.trust, &other.trust)
            && self.proof.role == other.proof.role
            && self.proof.chain == other.proof.chain
    }
}

impl Eq for Case {}

impl Hash for Case {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.trust).hash(state);
        self.proof.role.hash(state);
        self.proof.chain.hash(state);
    }
}

impl Judge {
    pub(crate) fn holds(&mut self, proof: &Arc<Proof>, trust: &Arc<TrustStore>) -> bool {
        let case = Case {
            trust: trust.clone(),
            proof: proof.clone(),
        };
        *self.0.entry(case).or_insert_with(|| proof.holds(trust))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_would_cost_too_much_to_keep_is_refused() {
        let certificate = |len| CertificateDer::from(vec![0; len]);
        let refusal = |chain: &[CertificateDer<'static>]| {
            let proof = Proof::new(Some(chain), Role::Client);
            proof.err().unwrap()
        };
        let whole = [certificate(CHAIN_BYTES / 2), certificate(CHAIN_BYTES / 2)];
        assert_eq!(refusal(&whole), "not_spiffe");
        let more = [certificate(CHAIN_BYTES), certificate(1)];
        assert_eq!(refusal(&more), "chain_too_long");
        assert_eq!(Proof::new(None, Role::Server).err(), Some("not_spiffe"));
    }
}
