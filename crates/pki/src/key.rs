//! Key pairs and certificate signing requests.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, RsaKeyPair,
};
use rcgen::{CertificateParams, DistinguishedName, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::SpiffeId;

/// Why a private key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the text holds no PEM private key (PRIVATE KEY, EC PRIVATE KEY or RSA PRIVATE KEY)")]
    NotPem,
    #[error("the private key is damaged, encrypted or of a kind that is not supported")]
    Unsupported,
    #[error("no key could be made")]
    Generate(#[source] rcgen::Error),
}

/// Why a certificate signing request could not be made.
#[derive(Debug, thiserror::Error)]
#[error("no certificate signing request could be made for {id}")]
pub struct CsrError {
    id: SpiffeId,
    #[source]
    cause: rcgen::Error,
}

/// A private key with its public half: P-256 if made here; P-256, P-384, P-521, Ed25519 or RSA if
/// read. Kept as PKCS#8, wiped from memory when dropped, never shown.
pub struct KeyPair(rcgen::KeyPair);

impl KeyPair {
    /// A new P-256 key.
    pub fn generate() -> Result<Self, KeyError> {
        rcgen::KeyPair::generate()
            .map(Self)
            .map_err(KeyError::Generate)
    }

    /// Reads the first private key of a PEM text: PKCS#8, SEC 1 or PKCS#1, not encrypted.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let mut der =
            PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| KeyError::NotPem)?;
        let key = match &der {
            PrivateKeyDer::Pkcs8(pkcs8) => from_pkcs8(pkcs8.secret_pkcs8_der()),
            PrivateKeyDer::Sec1(sec1) => sec1_to_pkcs8(sec1.secret_sec1_der())
                .ok_or(KeyError::Unsupported)
                .and_then(|pkcs8| from_pkcs8(&pkcs8)),
            PrivateKeyDer::Pkcs1(pkcs1) => pkcs1_to_pkcs8(pkcs1.secret_pkcs1_der())
                .ok_or(KeyError::Unsupported)
                .and_then(|pkcs8| from_pkcs8(&pkcs8)),
            _ => Err(KeyError::Unsupported),
        };
        der.zeroize();
        key
    }

    /// The key as PKCS#8 PEM (`PRIVATE KEY`). The text is wiped when dropped.
    pub fn to_pkcs8_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    pub(crate) fn pkcs8(&self) -> PrivateKeyDer<'_> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialized_der()))
    }

    pub(crate) fn signer(&self) -> &rcgen::KeyPair {
        &self.0
    }
}

impl Drop for KeyPair {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(redacted)")
    }
}

/// A certificate signing request (PKCS#10, PEM) for `key` that names `id` as its only URI SAN.
pub fn new_csr(key: &KeyPair, id: &SpiffeId) -> Result<String, CsrError> {
    let failed = |cause| CsrError {
        id: id.clone(),
        cause,
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(failed)?)];
    let request = params.serialize_request(&key.0).map_err(failed)?;
    request.pem().map_err(failed)
}

fn from_pkcs8(der: &[u8]) -> Result<KeyPair, KeyError> {
    rcgen::KeyPair::try_from(&PrivatePkcs8KeyDer::from(der))
        .map(KeyPair)
        .map_err(|_| KeyError::Unsupported)
}

fn sec1_to_pkcs8(der: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let curves: [&'static EcdsaSigningAlgorithm; 3] = [
        &ECDSA_P256_SHA256_ASN1_SIGNING,
        &ECDSA_P384_SHA384_ASN1_SIGNING,
        &ECDSA_P521_SHA512_ASN1_SIGNING,
    ];
    let key = curves
        .into_iter()
        .find_map(|curve| EcdsaKeyPair::from_private_key_der(curve, der).ok())?;
    let pkcs8 = key.to_pkcs8v1().ok()?;
    Some(Zeroizing::new(pkcs8.as_ref().to_vec()))
}

fn pkcs1_to_pkcs8(der: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let key = RsaKeyPair::from_der(der).ok()?;
    let pkcs8: Pkcs8V1Der<'static> = key.as_der().ok()?;
    Some(Zeroizing::new(pkcs8.as_ref().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown() {
        let key = KeyPair::generate().unwrap();
        assert_eq!(format!("{key:?}"), "KeyPair(redacted)");
    }

    #[test]
    fn a_key_survives_its_pem_form() {
        let key = KeyPair::generate().unwrap();
        let again = KeyPair::from_pem(&key.to_pkcs8_pem()).unwrap();
        assert_eq!(
            key.signer().public_key_raw(),
            again.signer().public_key_raw()
        );
    }

    #[test]
    fn the_older_forms_that_openssl_writes_are_read_and_kept_as_pkcs8() {
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let sec1: aws_lc_rs::encoding::EcPrivateKeyRfc5915Der<'static> =
            ec.private_key().as_der().unwrap();
        let parameters =
            "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        let ec_pem =
            parameters.to_string() + &pem::encode(&pem::Pem::new("EC PRIVATE KEY", sec1.as_ref()));

        let rsa = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let pkcs8: Pkcs8V1Der<'static> = rsa.as_der().unwrap();
        // The PKCS#8 wrapping of a 2048 bit RSA key is 26 bytes long; PKCS#1 follows.
        let rsa_pem = pem::encode(&pem::Pem::new("RSA PRIVATE KEY", &pkcs8.as_ref()[26..]));

        for text in [ec_pem, rsa_pem] {
            let key = KeyPair::from_pem(&text).unwrap();
            let kept = key.to_pkcs8_pem();
            assert!(kept.starts_with("-----BEGIN PRIVATE KEY-----"));
            let again = KeyPair::from_pem(&kept).unwrap();
            assert_eq!(
                key.signer().public_key_raw(),
                again.signer().public_key_raw()
            );
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert!(matches!(KeyPair::from_pem(""), Err(KeyError::NotPem)));
        assert!(matches!(KeyPair::from_pem("hello"), Err(KeyError::NotPem)));
        let damaged = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(matches!(
            KeyPair::from_pem(damaged),
            Err(KeyError::Unsupported)
        ));
    }
}
