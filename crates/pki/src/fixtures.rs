//! What the tests of this crate share.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::CertificateDer;

use crate::*;

pub const HOUR: Duration = Duration::from_secs(3600);

pub fn mk_id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

pub fn mk_ca(organization: &str) -> CertificateAuthority {
    CertificateAuthority::self_signed(organization, SystemTime::now()).unwrap()
}

/// A workload's identity of one hour.
pub fn mk_identity(ca: &CertificateAuthority, id: &str) -> Identity {
    let id = mk_id(id);
    let key = KeyPair::generate().unwrap();
    let csr = new_csr(&key, &id).unwrap();
    let issued = ca
        .sign_workload(&csr, &id, HOUR, SystemTime::now())
        .unwrap();
    Identity::from_pem(&issued.to_pem(), &key.to_pkcs8_pem()).unwrap()
}

pub fn mk_cell(identity: Identity) -> Arc<IdentityCell> {
    Arc::new(IdentityCell::new(Some(identity)))
}

pub fn mk_trust(bundles: &[(&str, &CertificateAuthority)]) -> Arc<TrustStore> {
    let bundles = bundles
        .iter()
        .map(|(domain, ca)| (domain.parse().unwrap(), ca.root_pem().to_string()))
        .collect();
    Arc::new(TrustStore::parse(&bundles).unwrap())
}

/// A certificate that no authority of ours would issue.
pub struct Odd {
    pub uris: Vec<String>,
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    pub key_usages: Vec<KeyUsagePurpose>,
    pub is_ca: IsCa,
}

impl Odd {
    pub fn with_uris(uris: &[&str]) -> Self {
        Self {
            uris: uris.iter().map(|u| u.to_string()).collect(),
            usages: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            key_usages: vec![KeyUsagePurpose::DigitalSignature],
            is_ca: IsCa::ExplicitNoCa,
        }
    }

    pub fn signed_by(&self, ca: &CertificateAuthority) -> (CertificateDer<'static>, KeyPair) {
        let pem = ca.to_pem();
        let ca_key = rcgen::KeyPair::from_pem(&pem.ca_key).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&pem.ca_cert, ca_key).unwrap();
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = self
            .uris
            .iter()
            .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()))
            .collect();
        params.is_ca = self.is_ca;
        params.key_usages = self.key_usages.clone();
        params.extended_key_usages = self.usages.clone();
        params.not_before = (now - HOUR).into();
        params.not_after = (now + HOUR).into();
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(key.signer(), &issuer).unwrap();
        (cert.into(), key)
    }
}
