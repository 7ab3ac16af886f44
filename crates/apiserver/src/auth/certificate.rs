//! Which client certificates make an administrator.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::MASTERS;

/// An administrator, as the certificate of a connection proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminCertificate {
    pub common_name: String,
    not_before: i64,
    not_after: i64,
}

impl AdminCertificate {
    /// A connection may outlive the certificate; its rights must not.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        let now = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        i64::try_from(now).is_ok_and(|now| (self.not_before..=self.not_after).contains(&now))
    }
}

/// Reads the certificates of a connection, leaf first, whose chain to the mesh's root the TLS layer
/// has verified. The leaf must be made for this: organisation `system:masters`, a common name, the
/// client-authentication purpose, and no subject alternative name at all. Workload certificates come
/// from the same CA and always carry one.
pub fn admin_from_certificates(chain: &[CertificateDer<'_>]) -> Option<AdminCertificate> {
    let (rest, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    if !rest.is_empty() || leaf.is_ca() {
        return None;
    }
    let subject = leaf.subject();
    let is_master = subject
        .iter_organization()
        .any(|organization| organization.as_str() == Ok(MASTERS));
    let purpose = leaf.extended_key_usage().ok()??;
    // An unreadable extension is as bad as one that is there.
    let named = leaf.subject_alternative_name().ok()?.is_some();
    let common_name = subject.iter_common_name().next()?.as_str().ok()?;
    if !is_master || !purpose.value.client_auth || named || common_name.is_empty() {
        return None;
    }
    Some(AdminCertificate {
        common_name: common_name.to_owned(),
        not_before: leaf.validity().not_before.timestamp(),
        not_after: leaf.validity().not_after.timestamp(),
    })
}
