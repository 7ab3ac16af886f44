//! Which roots may vouch for which trust domain.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, TrustAnchor};

use crate::verify::{Allowed, PeerRole, SpiffeVerifier};
use crate::{TrustDomain, x509};

/// Roots of one trust domain, at most.
pub const MAX_ROOTS: usize = 32;
/// The longest PEM bundle that is read, in bytes.
pub const MAX_BUNDLE_LEN: usize = 512 * 1024;

/// Why a PEM text is not a trust bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error("the bundle is empty")]
    Empty,
    #[error("the bundle is not PEM with at least one CERTIFICATE section")]
    NotPem,
    #[error("the bundle is longer than {MAX_BUNDLE_LEN} bytes")]
    TooLong,
    #[error("the bundle has {0} certificates, more than {MAX_ROOTS}")]
    TooMany(usize),
    #[error("certificate {0} of the bundle cannot be read")]
    Unreadable(usize),
    #[error("certificate {number} of the bundle ({subject}) is not a CA certificate")]
    NotACa { number: usize, subject: String },
    #[error("the roots of trust domain {domain} cannot be used")]
    Domain {
        domain: TrustDomain,
        #[source]
        cause: Box<TrustError>,
    },
}

/// A CA certificate that is trusted as it stands.
#[derive(Debug, Clone)]
pub struct RootCert {
    pub der: CertificateDer<'static>,
    /// The subject's distinguished name as text.
    pub subject: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub(crate) anchor: TrustAnchor<'static>,
}

impl RootCert {
    /// Path building does not look at the life of a trust anchor; we do, as Envoy does.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// SHA-256 of the certificate, as hexadecimal digits, for people who compare.
    pub fn fingerprint(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.der);
        digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// The roots by trust domain. Immutable: a change of trust makes a new store and new TLS
/// configurations.
#[derive(Debug, Clone, Default)]
pub struct TrustStore {
    domains: BTreeMap<TrustDomain, Vec<RootCert>>,
}

impl TrustStore {
    /// Reads one PEM bundle for each trust domain. Expired roots are kept and never match.
    pub fn parse(bundles: &BTreeMap<TrustDomain, impl AsRef<str>>) -> Result<Self, TrustError> {
        let domains = bundles
            .iter()
            .map(|(domain, pem)| match Self::parse_roots(pem.as_ref()) {
                Ok(roots) => Ok((domain.clone(), roots)),
                Err(cause) => Err(TrustError::Domain {
                    domain: domain.clone(),
                    cause: Box::new(cause),
                }),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { domains })
    }

    /// The store of a single trust domain.
    pub fn single(domain: TrustDomain, pem: &str) -> Result<Self, TrustError> {
        Self::parse(&BTreeMap::from([(domain, pem)]))
    }

    /// Reads one PEM bundle: one to [`MAX_ROOTS`] CA certificates. Sections of other kinds are
    /// passed over. Whether a root has expired is left to the caller.
    pub fn parse_roots(pem: &str) -> Result<Vec<RootCert>, TrustError> {
        if pem.len() > MAX_BUNDLE_LEN {
            return Err(TrustError::TooLong);
        }
        if pem.trim().is_empty() {
            return Err(TrustError::Empty);
        }
        let certs = x509::pem_certificates(pem).ok_or(TrustError::NotPem)?;
        if certs.is_empty() {
            return Err(TrustError::NotPem);
        }
        if certs.len() > MAX_ROOTS {
            return Err(TrustError::TooMany(certs.len()));
        }
        certs
            .into_iter()
            .enumerate()
            .map(|(index, der)| root(index + 1, der))
            .collect()
    }

    /// The roots by which this server, whose certificate comes first, proves itself. Each root counts alone.
    pub fn vouching_for(&self, server: &[CertificateDer<'_>], now: SystemTime) -> Self {
        let Some((leaf, intermediates)) = server.split_first() else {
            return Self::default();
        };
        let now = x509::to_unix(now);
        let vouches = |domain: &TrustDomain, root: &RootCert| {
            let domains = BTreeMap::from([(domain.clone(), vec![root.clone()])]);
            let verifier = SpiffeVerifier::new(Arc::new(Self { domains }), Allowed::Bundle);
            let verified = verifier.verify(leaf, intermediates, PeerRole::Server, now);
            verified.is_ok()
        };
        let domains = self.domains.iter().map(|(domain, roots)| {
            let roots = roots.iter().filter(|root| vouches(domain, root));
            (domain.clone(), roots.cloned().collect())
        });
        Self {
            domains: domains.collect(),
        }
    }

    pub fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.domains.keys()
    }

    /// The roots of a domain; `None` if it is not trusted at all.
    pub fn roots(&self, domain: &TrustDomain) -> Option<&[RootCert]> {
        self.domains.get(domain).map(Vec::as_slice)
    }
}

fn root(number: usize, der: CertificateDer<'static>) -> Result<RootCert, TrustError> {
    let (subject, not_before, not_after) = {
        let cert = x509::parse(&der).ok_or(TrustError::Unreadable(number))?;
        let subject = cert.subject().to_string();
        if !x509::is_ca(&cert) {
            return Err(TrustError::NotACa { number, subject });
        }
        let validity = cert.validity();
        (
            subject,
            x509::system_time(validity.not_before),
            x509::system_time(validity.not_after),
        )
    };
    let anchor = webpki::anchor_from_trusted_cert(&der)
        .map_err(|_| TrustError::Unreadable(number))?
        .to_owned();
    Ok(RootCert {
        der,
        subject,
        not_before,
        not_after,
        anchor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{HOUR, mk_ca};

    #[test]
    fn a_bundle_of_several_roots_is_read_with_their_names_and_times() {
        let (old, new) = (mk_ca("old"), mk_ca("new"));
        let pem = old.root_pem().to_string() + "# a comment between\n" + new.root_pem();
        let roots = TrustStore::parse_roots(&pem).unwrap();
        let subjects: Vec<_> = roots.iter().map(|r| r.subject.as_str()).collect();
        assert_eq!(subjects, ["O=old", "O=new"]);
        assert_eq!(roots[0].not_after, old.not_after());
        assert!(!roots[0].is_valid_at(old.not_after() + HOUR));
    }

    #[test]
    fn what_is_no_bundle_is_refused_with_its_reason() {
        let refused = |pem: &str| TrustStore::parse_roots(pem).unwrap_err();
        let ca = mk_ca("red");
        let identity = ca
            .issue_client("admin", &[], HOUR, SystemTime::now())
            .unwrap()
            .to_pem();
        assert_eq!(refused(" \n"), TrustError::Empty);
        assert_eq!(refused("hello"), TrustError::NotPem);
        assert_eq!(refused(&identity.key), TrustError::NotPem);
        assert_eq!(
            refused(&ca.root_pem().replace("-----END", "-----")),
            TrustError::NotPem
        );
        assert_eq!(
            refused(&ca.root_pem().repeat(MAX_ROOTS + 1)),
            TrustError::TooMany(MAX_ROOTS + 1)
        );
        assert_eq!(
            refused(&"x".repeat(MAX_BUNDLE_LEN + 1)),
            TrustError::TooLong
        );
        let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(
            refused(&(ca.root_pem().to_string() + damaged)),
            TrustError::Unreadable(2)
        );
        assert!(matches!(
            refused(&identity.chain),
            TrustError::NotACa { number: 1, .. }
        ));
    }

    #[test]
    fn a_refused_bundle_names_its_trust_domain() {
        let domain: TrustDomain = "green-mesh.local".parse().unwrap();
        let refused = TrustStore::single(domain.clone(), "").unwrap_err();
        assert_eq!(
            refused,
            TrustError::Domain {
                domain,
                cause: Box::new(TrustError::Empty)
            }
        );
    }
}
