//! Reading what we need from certificates. Everything here is given untrusted bytes.

use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::{IdError, SpiffeId};

/// The longest certificate that is looked at, in bytes.
pub const MAX_CERTIFICATE_LEN: usize = 16 * 1024;

/// Why a peer's certificate gives no SPIFFE identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerIdError {
    #[error("there is no certificate")]
    NoCertificate,
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("the certificate has no URI name, so it is no SPIFFE certificate")]
    NoUri,
    #[error("the certificate has {0} URI names; a SPIFFE certificate has exactly one")]
    SeveralUris(usize),
    #[error("the certificate's URI name is no SPIFFE identity")]
    NotSpiffe(#[source] IdError),
}

/// What a peer's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    pub id: SpiffeId,
    /// A connection should not outlive this.
    pub not_after: SystemTime,
}

/// Reads the first certificate of a chain. Nothing is verified here: use it on chains that a
/// handshake has accepted.
pub fn peer_certificate(certs: &[CertificateDer<'_>]) -> Result<PeerCertificate, PeerIdError> {
    let leaf = certs.first().ok_or(PeerIdError::NoCertificate)?;
    let leaf = parse(leaf).ok_or(PeerIdError::Unreadable)?;
    Ok(PeerCertificate {
        id: spiffe_id(&leaf)?,
        not_after: system_time(leaf.validity().not_after),
    })
}

/// The SPIFFE identity in the first certificate of a chain, as [`peer_certificate`].
pub fn peer_id(certs: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerIdError> {
    peer_certificate(certs).map(|peer| peer.id)
}

/// A certificate without trailing bytes, of at most [`MAX_CERTIFICATE_LEN`].
pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    if der.len() > MAX_CERTIFICATE_LEN {
        return None;
    }
    match X509Certificate::from_der(der.as_ref()) {
        Ok(([], cert)) => Some(cert),
        _ => None,
    }
}

pub(crate) fn spiffe_id(cert: &X509Certificate<'_>) -> Result<SpiffeId, PeerIdError> {
    let names = cert
        .subject_alternative_name()
        .map_err(|_| PeerIdError::Unreadable)?
        .ok_or(PeerIdError::NoUri)?;
    let uris: Vec<&str> = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris.as_slice() {
        [] => Err(PeerIdError::NoUri),
        // In a certificate the scheme is part of the name, unlike in what people write.
        [uri] if !uri.starts_with("spiffe://") => {
            Err(PeerIdError::NotSpiffe(IdError::without_scheme(uri)))
        }
        [uri] => uri.parse().map_err(PeerIdError::NotSpiffe),
        several => Err(PeerIdError::SeveralUris(several.len())),
    }
}

/// Whether a certificate may sign others: basic constraints say CA, and the key usage, where there
/// is one, includes signing certificates.
pub(crate) fn is_ca(cert: &X509Certificate<'_>) -> bool {
    let constraints = matches!(cert.basic_constraints(), Ok(Some(c)) if c.value.ca);
    let usage = match cert.key_usage() {
        Ok(Some(usage)) => usage.value.key_cert_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    constraints && usage
}

/// How many authorities may stand between this one and a leaf; `None` is any number.
pub(crate) fn path_len(der: &CertificateDer<'_>) -> Option<usize> {
    let cert = parse(der)?;
    let constraints = cert.basic_constraints().ok()??;
    usize::try_from(constraints.value.path_len_constraint?).ok()
}

/// Whether the key usage of an end certificate allows TLS and nothing that belongs to a CA
/// (X.509-SVID, section 4.3).
pub(crate) fn may_authenticate(cert: &X509Certificate<'_>) -> bool {
    match cert.key_usage() {
        Ok(Some(usage)) => {
            let usage = usage.value;
            usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign()
        }
        Ok(None) => true,
        Err(_) => false,
    }
}

pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let moment = if seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    };
    moment.unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(crate) fn from_unix(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(time.as_secs()))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(crate) fn to_unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

/// A moment as people read it, in UTC to the second.
pub(crate) fn shown(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(t) => t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_) => "a time outside the years -9999 to 9999".to_string(),
    }
}

/// The certificates of a PEM text; other sections are passed over. `None`: the PEM is damaged.
pub(crate) fn pem_certificates(text: &str) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .ok()
}

pub(crate) fn to_pem(cert: &CertificateDer<'_>) -> String {
    pem::encode_config(
        &pem::Pem::new("CERTIFICATE", cert.as_ref()),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}
