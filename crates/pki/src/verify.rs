//! The SPIFFE verification of a peer, the same for both ends of TLS.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};

use crate::refusal::HandshakeRefusal;
use crate::trust::TrustStore;
use crate::x509::{self, MAX_CERTIFICATE_LEN, PeerIdError};
use crate::{SpiffeId, TrustDomain, provider};

/// Certificates that a peer may send, at most.
pub const MAX_PEER_CHAIN: usize = 10;

/// Which proven identities are let through.
#[derive(Debug, Clone)]
pub(crate) enum Allowed {
    /// Every identity of a trust domain in the store.
    Bundle,
    OneOf(BTreeSet<SpiffeId>),
    Domain(TrustDomain),
}

impl Allowed {
    fn domain(&self, domain: &TrustDomain) -> bool {
        match self {
            Self::Bundle => true,
            Self::OneOf(ids) => ids.iter().any(|id| id.trust_domain() == domain),
            Self::Domain(only) => only == domain,
        }
    }

    fn id(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Bundle => true,
            Self::OneOf(ids) => ids.contains(id),
            Self::Domain(only) => only == id.trust_domain(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum PeerRole {
    Client,
    Server,
}

/// Accepts a peer by its SPIFFE identity and nothing else; host names play no part.
#[derive(Debug)]
pub(crate) struct SpiffeVerifier {
    pub trust: Arc<TrustStore>,
    pub allowed: Allowed,
    /// Whether a client must present a certificate.
    pub mandatory: bool,
    pub algorithms: WebPkiSupportedAlgorithms,
}

impl SpiffeVerifier {
    pub fn new(trust: Arc<TrustStore>, allowed: Allowed) -> Self {
        Self {
            trust,
            allowed,
            mandatory: true,
            algorithms: provider().signature_verification_algorithms,
        }
    }

    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: PeerRole,
        now: UnixTime,
    ) -> Result<SpiffeId, HandshakeRefusal> {
        let too_long = |cert: &CertificateDer<'_>| cert.len() > MAX_CERTIFICATE_LEN;
        if intermediates.len() >= MAX_PEER_CHAIN
            || too_long(leaf)
            || intermediates.iter().any(too_long)
        {
            return Err(HandshakeRefusal::TooLarge);
        }

        let parsed = x509::parse(leaf).ok_or_else(unreadable)?;
        let id = x509::spiffe_id(&parsed).map_err(|e| match e {
            PeerIdError::Unreadable => unreadable(),
            other => HandshakeRefusal::NotSpiffe(other),
        })?;

        // The trust domain chooses the roots; no other root is looked at.
        let roots = match self.trust.roots(id.trust_domain()) {
            Some(roots) if self.allowed.domain(id.trust_domain()) => roots,
            _ => return Err(HandshakeRefusal::WrongTrustDomain { id }),
        };
        let time = x509::from_unix(now);
        let anchors: Vec<_> = roots
            .iter()
            .filter(|root| root.is_valid_at(time))
            .map(|root| root.anchor.clone())
            .collect();
        if anchors.is_empty() {
            return Err(HandshakeRefusal::RootExpired { id });
        }

        let usage = match role {
            PeerRole::Client => KeyUsage::client_auth(),
            PeerRole::Server => KeyUsage::server_auth(),
        };
        EndEntityCert::try_from(leaf)
            .and_then(|cert| {
                cert.verify_for_usage(
                    self.algorithms.all,
                    &anchors,
                    intermediates,
                    now,
                    usage,
                    None,
                    None,
                )
                .map(drop)
            })
            .map_err(|e| chain_refusal(e, &id))?;
        if !x509::may_authenticate(&parsed) {
            return Err(HandshakeRefusal::WrongUsage { id });
        }

        if !self.allowed.id(&id) {
            return Err(HandshakeRefusal::WrongIdentity { id });
        }
        Ok(id)
    }
}

fn unreadable() -> HandshakeRefusal {
    HandshakeRefusal::BadCertificate("it is not readable X.509".to_string())
}

fn chain_refusal(error: webpki::Error, id: &SpiffeId) -> HandshakeRefusal {
    use webpki::Error;
    let id = id.clone();
    match error {
        Error::CertExpired { not_after, .. } => HandshakeRefusal::Expired {
            id,
            not_after: x509::from_unix(not_after),
        },
        Error::CertNotValidYet { not_before, .. } => HandshakeRefusal::NotYetValid {
            id,
            not_before: x509::from_unix(not_before),
        },
        // A signature that does not fit comes from another CA of the same name.
        Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => {
            HandshakeRefusal::UnknownCa { id }
        }
        Error::RequiredEkuNotFoundContext(_) | Error::CaUsedAsEndEntity => {
            HandshakeRefusal::WrongUsage { id }
        }
        other => HandshakeRefusal::BadCertificate(other.to_string()),
    }
}

impl ClientCertVerifier for SpiffeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// None: a client has one certificate, and strangers need not learn whom we trust.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, PeerRole::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, PeerRole::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
