//! The mesh's certificate authority: its own root, or one that is given.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use zeroize::Zeroize;

use crate::identity::{Identity, IdentityError};
use crate::key::{KeyError, KeyPair};
use crate::trust::{RootCert, TrustError, TrustStore};
use crate::{SpiffeId, provider, x509};

/// The longest certificate signing request that is read, in bytes of PEM.
pub const MAX_CSR_LEN: usize = 16 * 1024;
/// Certificates of `cert-chain.pem`, at most.
pub const MAX_CA_CHAIN: usize = 8;

/// Life of a root that we make ourselves.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// New certificates are valid from this much earlier, for peers whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(2 * 60);
/// Smallest RSA modulus that is signed, in bits.
const MIN_RSA_BITS: usize = 2048;

/// Why a certificate authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("root-cert.pem of the certificate authority cannot be used")]
    Root(#[source] TrustError),
    #[error("every root in root-cert.pem has expired, the last one at {}", x509::shown(*.not_after))]
    RootExpired { not_after: SystemTime },
    #[error("ca-cert.pem holds no readable PEM certificate")]
    NoCertificate,
    #[error(
        "ca-cert.pem is not a CA certificate (basic constraints CA, key usage certificate signing)"
    )]
    NotACa,
    #[error("ca-cert.pem has expired at {}", x509::shown(*.not_after))]
    Expired { not_after: SystemTime },
    #[error("ca-key.pem cannot be used")]
    Key(#[source] KeyError),
    #[error("ca-key.pem is not the key of ca-cert.pem")]
    KeyMismatch,
    #[error("cert-chain.pem is damaged or longer than {MAX_CA_CHAIN} certificates")]
    Chain,
    #[error("ca-cert.pem with cert-chain.pem does not lead to a root in root-cert.pem: {reason}")]
    ChainBroken { reason: String },
    #[error("the certificate authority could not be made")]
    Make(#[source] rcgen::Error),
}

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("the certificate signing request is longer than {MAX_CSR_LEN} bytes")]
    CsrTooLong,
    #[error("the certificate signing request is not a PEM encoded PKCS#10 request")]
    CsrUnreadable,
    #[error("the certificate signing request is not signed by its own key")]
    CsrSignature,
    #[error(
        "the certificate signing request has a key that is not signed: use P-256, P-384, P-521, Ed25519 or RSA of at least {MIN_RSA_BITS} bits"
    )]
    CsrKey,
    #[error("the certificate authority itself has expired at {}", x509::shown(*.not_after))]
    CaExpired { not_after: SystemTime },
    #[error("{0:?} cannot stand in a certificate")]
    Name(String),
    #[error("no key could be made")]
    Key(#[source] KeyError),
    #[error("the certificate could not be signed")]
    Sign(#[source] rcgen::Error),
    #[error("the new certificate could not be used")]
    Identity(#[source] IdentityError),
}

/// The four keys of Secret `cacerts`, as PEM texts.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CaPem {
    /// `root-cert.pem`: one or more roots.
    pub root_cert: String,
    /// `ca-cert.pem`: the certificate that signs.
    pub ca_cert: String,
    /// `ca-key.pem`; wiped from memory when dropped.
    pub ca_key: String,
    /// `cert-chain.pem`: from the signing certificate up, with or without it and the root. May be
    /// empty if the root signs.
    pub cert_chain: String,
}

impl Drop for CaPem {
    fn drop(&mut self) {
        self.ca_key.zeroize();
    }
}

impl fmt::Debug for CaPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaPem")
            .field("root_cert", &self.root_cert)
            .field("ca_cert", &self.ca_cert)
            .field("ca_key", &"redacted")
            .field("cert_chain", &self.cert_chain)
            .finish()
    }
}

/// A freshly signed certificate with what leads to the root.
#[derive(Debug, Clone)]
pub struct IssuedChain {
    /// One PEM certificate each: the leaf, then the intermediates. The root is not part of it.
    pub certificates: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl IssuedChain {
    /// The whole chain as one PEM text, leaf first.
    pub fn to_pem(&self) -> String {
        self.certificates.concat()
    }
}

/// Signs for one mesh. Cheap to share behind an `Arc`; signing takes `&self`.
pub struct CertificateAuthority {
    issuer: Issuer<'static, Signer>,
    pem: CaPem,
    /// What follows a leaf on the wire: the signing certificate and its issuers, without roots.
    intermediates: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
}

struct Signer(KeyPair);

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.signer().der_bytes()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        PublicKeyData::algorithm(self.0.signer())
    }
}

impl rcgen::SigningKey for Signer {
    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.signer().sign(msg)
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("pem", &self.pem)
            .finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// A new root with a P-256 key, valid for ten years.
    pub fn self_signed(organization: &str, now: SystemTime) -> Result<Self, CaError> {
        let key = KeyPair::generate().map_err(CaError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + ROOT_LIFE).into();
        params.serial_number = Some(serial());
        let cert = params.self_signed(key.signer()).map_err(CaError::Make)?;
        let root = x509::to_pem(cert.der());
        let pem = CaPem {
            root_cert: root.clone(),
            ca_cert: root,
            ca_key: key.to_pkcs8_pem().to_string(),
            cert_chain: String::new(),
        };
        Self::from_pem_at(&pem, now)
    }

    /// Reads Secret `cacerts` and checks that what it signs will be accepted: the key belongs to
    /// the certificate, the chain reaches a root, and nothing on the way has expired.
    pub fn from_pem(pem: &CaPem) -> Result<Self, CaError> {
        Self::from_pem_at(pem, SystemTime::now())
    }

    /// [`from_pem`](Self::from_pem) as of another moment.
    pub fn from_pem_at(pem: &CaPem, now: SystemTime) -> Result<Self, CaError> {
        let roots = TrustStore::parse_roots(&pem.root_cert).map_err(CaError::Root)?;
        let last = roots.iter().map(|r| r.not_after).max();
        if let Some(not_after) = last.filter(|t| *t < now) {
            return Err(CaError::RootExpired { not_after });
        }

        let certs = x509::pem_certificates(&pem.ca_cert).ok_or(CaError::NoCertificate)?;
        let ca_cert = certs.into_iter().next().ok_or(CaError::NoCertificate)?;
        let key = KeyPair::from_pem(&pem.ca_key).map_err(CaError::Key)?;
        let not_after = {
            let parsed = x509::parse(&ca_cert).ok_or(CaError::NoCertificate)?;
            if !x509::is_ca(&parsed) {
                return Err(CaError::NotACa);
            }
            if parsed.public_key().raw != key.signer().subject_public_key_info() {
                return Err(CaError::KeyMismatch);
            }
            x509::system_time(parsed.validity().not_after)
        };
        if not_after < now {
            return Err(CaError::Expired { not_after });
        }

        let chain = x509::pem_certificates(&pem.cert_chain).ok_or(CaError::Chain)?;
        if chain.len() > MAX_CA_CHAIN {
            return Err(CaError::Chain);
        }
        let is_root = |cert: &CertificateDer<'_>| roots.iter().any(|root| root.der == *cert);
        let mut intermediates = Vec::new();
        for cert in std::iter::once(ca_cert.clone()).chain(chain) {
            if !is_root(&cert) && !intermediates.contains(&cert) {
                intermediates.push(cert);
            }
        }

        let issuer = Issuer::from_ca_cert_der(&ca_cert, Signer(key)).map_err(CaError::Make)?;
        let authority = Self {
            issuer,
            pem: pem.clone(),
            intermediates,
            not_after,
        };
        authority.prove(&roots, now)?;
        Ok(authority)
    }

    /// The four keys of Secret `cacerts`.
    pub fn to_pem(&self) -> CaPem {
        self.pem.clone()
    }

    /// The roots, as peers need them: one or more PEM certificates.
    pub fn root_pem(&self) -> &str {
        &self.pem.root_cert
    }

    /// The certificate that signs.
    pub fn certificate_pem(&self) -> &str {
        &self.pem.ca_cert
    }

    /// When the signing certificate expires. Nothing that it signs lives longer.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Signs a workload's key for `id`, for both ends of TLS. The request only proves that the
    /// sender has the key; every name in it is ignored. `ttl` is cut at the authority's own end.
    pub fn sign_workload(
        &self,
        csr_pem: &str,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<IssuedChain, IssueError> {
        let key = csr_key(csr_pem)?;
        let params = workload_params(id)?;
        let (leaf, not_before, not_after) = self.sign(params, &key, ttl, now)?;
        let certificates = std::iter::once(&leaf)
            .chain(&self.intermediates)
            .map(x509::to_pem)
            .collect();
        Ok(IssuedChain {
            certificates,
            not_before,
            not_after,
        })
    }

    /// A server's certificate with a new key: DNS names, addresses and, for our own proxies to
    /// recognize it, a SPIFFE id. With an id it can also be used as a client.
    pub fn issue_server(
        &self,
        dns: &[String],
        ips: &[IpAddr],
        spiffe: Option<&SpiffeId>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Identity, IssueError> {
        let mut params = match spiffe {
            Some(id) => workload_params(id)?,
            None => leaf_params(&[ExtendedKeyUsagePurpose::ServerAuth]),
        };
        for name in dns {
            let san = name
                .as_str()
                .try_into()
                .map_err(|_| IssueError::Name(name.clone()))?;
            params.subject_alt_names.push(SanType::DnsName(san));
        }
        params
            .subject_alt_names
            .extend(ips.iter().copied().map(SanType::IpAddress));
        self.issue(params, ttl, now)
    }

    /// A client's certificate with a new key, in the form that Kubernetes reads: the user is the
    /// common name, its groups are the organizations.
    pub fn issue_client(
        &self,
        common_name: &str,
        organizations: &[String],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Identity, IssueError> {
        let mut params = leaf_params(&[ExtendedKeyUsagePurpose::ClientAuth]);
        let subject = &mut params.distinguished_name;
        for organization in organizations {
            subject.push(DnType::OrganizationName, organization.as_str());
        }
        subject.push(DnType::CommonName, common_name);
        self.issue(params, ttl, now)
    }

    fn issue(
        &self,
        params: CertificateParams,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Identity, IssueError> {
        let key = KeyPair::generate().map_err(IssueError::Key)?;
        let (leaf, _, _) = self.sign(params, key.signer(), ttl, now)?;
        let chain = std::iter::once(leaf)
            .chain(self.intermediates.iter().cloned())
            .collect();
        Identity::new(chain, key).map_err(IssueError::Identity)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(CertificateDer<'static>, SystemTime, SystemTime), IssueError> {
        if self.not_after <= now {
            return Err(IssueError::CaExpired {
                not_after: self.not_after,
            });
        }
        let not_before = whole_seconds(now - CLOCK_SKEW);
        let not_after = now
            .checked_add(ttl)
            .map_or(self.not_after, |end| end.min(self.not_after));
        let not_after = whole_seconds(not_after);
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.serial_number = Some(serial());
        params.use_authority_key_identifier_extension = true;
        let cert = params
            .signed_by(key, &self.issuer)
            .map_err(IssueError::Sign)?;
        Ok((cert.into(), not_before, not_after))
    }

    /// Signs a throw-away leaf and verifies it as a peer would. This finds every way in which a
    /// given chain can be unusable: order, gaps, path length, names, signatures.
    fn prove(&self, roots: &[RootCert], now: SystemTime) -> Result<(), CaError> {
        let broken = |reason: &dyn fmt::Display| CaError::ChainBroken {
            reason: reason.to_string(),
        };
        let probe = KeyPair::generate().map_err(CaError::Key)?;
        let mut params = leaf_params(&[ExtendedKeyUsagePurpose::ServerAuth]);
        // Not empty, so that the certificate needs no alternative name.
        params
            .distinguished_name
            .push(DnType::CommonName, "meshfed probe");
        let (leaf, _, _) = self
            .sign(params, probe.signer(), CLOCK_SKEW, now)
            .map_err(|e| broken(&e))?;
        let leaf = EndEntityCert::try_from(&leaf).map_err(|e| broken(&e))?;
        let anchors: Vec<_> = roots
            .iter()
            .filter(|root| root.is_valid_at(now))
            .map(|root| root.anchor.clone())
            .collect();
        let path = leaf
            .verify_for_usage(
                provider().signature_verification_algorithms.all,
                &anchors,
                &self.intermediates,
                x509::to_unix(now),
                KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(|e| broken(&e))?;
        // The path length of the root itself binds other implementations, though not webpki.
        let depth = path.intermediate_certificates().count();
        let too_deep = roots
            .iter()
            .filter(|root| root.anchor == *path.anchor())
            .any(|root| x509::path_len(&root.der).is_some_and(|most| depth > most));
        if too_deep {
            return Err(broken(&"the root allows fewer authorities below it"));
        }
        Ok(())
    }
}

fn leaf_params(usages: &[ExtendedKeyUsagePurpose]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = usages.to_vec();
    params
}

fn workload_params(id: &SpiffeId) -> Result<CertificateParams, IssueError> {
    let mut params = leaf_params(&[
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ]);
    let uri = id
        .as_str()
        .try_into()
        .map_err(|_| IssueError::Name(id.to_string()))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    Ok(params)
}

/// The public key of a request, after its signature has shown that the sender has the private one.
fn csr_key(csr_pem: &str) -> Result<SubjectPublicKeyInfo, IssueError> {
    if csr_pem.len() > MAX_CSR_LEN {
        return Err(IssueError::CsrTooLong);
    }
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
        .map_err(|_| IssueError::CsrUnreadable)?;
    let (rest, csr) =
        X509CertificationRequest::from_der(der.as_ref()).map_err(|_| IssueError::CsrUnreadable)?;
    if !rest.is_empty() {
        return Err(IssueError::CsrUnreadable);
    }
    let spki = &csr.certification_request_info.subject_pki;
    if let Ok(PublicKey::RSA(rsa)) = spki.parsed()
        && rsa.key_size() < MIN_RSA_BITS
    {
        return Err(IssueError::CsrKey);
    }
    let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| IssueError::CsrKey)?;
    csr.verify_signature()
        .map_err(|_| IssueError::CsrSignature)?;
    Ok(key)
}

/// 16 random bytes, positive and without a leading zero (RFC 5280, 4.1.2.2).
fn serial() -> SerialNumber {
    let mut bytes = [0u8; 16];
    // aws-lc reseeds from the operating system and aborts rather than fail; a constant serial
    // would do no harm to us, who never look certificates up by it.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// Certificates hold whole seconds; what we report must be what they say.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[cfg(test)]
mod tests;
