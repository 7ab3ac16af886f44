//! Trust bundles in use, and whether a peer that was accepted once would be accepted now.

use std::sync::Arc;
use std::time::SystemTime;

use meshfed_pki::{SpiffeId, TrustError, TrustStore};
use meshfed_proxy_config::TrustBundle;
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};

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

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

impl Proof {
    /// Of a handshake that has just succeeded; `None` without a certificate with one SPIFFE id.
    pub(crate) fn new(chain: Option<&[CertificateDer<'static>]>, role: Role) -> Option<Self> {
        let chain = chain?;
        Some(Self {
            id: meshfed_pki::peer_id(chain).ok()?,
            chain: chain.to_vec(),
            at: SystemTime::now(),
            role,
        })
    }

    pub(crate) fn same_certificate(&self, other: &Self) -> bool {
        self.role == other.role && self.chain == other.chain
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
pub(crate) struct Judge(Vec<(Arc<TrustStore>, Arc<Proof>, bool)>);

impl Judge {
    pub(crate) fn holds(&mut self, proof: &Arc<Proof>, trust: &Arc<TrustStore>) -> bool {
        let known = self
            .0
            .iter()
            .find(|(t, p, _)| Arc::ptr_eq(t, trust) && p.same_certificate(proof));
        if let Some((_, _, verdict)) = known {
            return *verdict;
        }
        let verdict = proof.holds(trust);
        self.0.push((trust.clone(), proof.clone(), verdict));
        verdict
    }
}
