//! Identities and certificates of a mesh, and the TLS that is built on them.
//!
//! Every peer is known by one SPIFFE identity in its certificate, and the trust domain of that
//! identity chooses the roots that may vouch for it. There is no other way to be trusted, for
//! neither end of a connection.
//!
//! ```text
//! CertificateAuthority --issues--> Identity --set--> IdentityCell --+
//!                                                                   +--> server_config, client_config
//! PEM bundles of each trust domain --parse--> TrustStore -----------+          |
//!                                                          refused: HandshakeRefusal
//! ```
//!
//! ```
//! use std::sync::Arc;
//! use std::time::{Duration, SystemTime};
//! use meshfed_pki::*;
//!
//! let now = SystemTime::now();
//! let ca = CertificateAuthority::self_signed("red-mesh.local", now)?;
//! let id: SpiffeId = "spiffe://red-mesh.local/ns/bookinfo/sa/ratings".parse()?;
//!
//! // The workload makes its key; the authority signs it.
//! let key = KeyPair::generate()?;
//! let issued = ca.sign_workload(&new_csr(&key, &id)?, &id, Duration::from_secs(3600), now)?;
//! let identity = Identity::from_pem(&issued.to_pem(), &key.to_pkcs8_pem())?;
//! assert_eq!(identity.id.as_ref(), Some(&id));
//!
//! let trust = TrustStore::single(id.trust_domain().clone(), ca.root_pem())?;
//! let config = server_config(ServerTls {
//!     identity: Arc::new(IdentityCell::new(Some(identity))),
//!     trust: Arc::new(trust),
//!     client_ids: Vec::new(),
//!     alpn: vec!["h2".to_string()],
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod ca;
#[cfg(test)]
mod fixtures;
pub mod id;
mod identity;
mod key;
mod refusal;
mod tls;
mod trust;
mod verify;
mod x509;

pub use ca::{
    CaError, CaPem, CertificateAuthority, IssueError, IssuedChain, MAX_CA_CHAIN, MAX_CSR_LEN,
};
pub use id::{IdError, SpiffeId, TrustDomain};
pub use identity::{Identity, IdentityCell, IdentityError, IdentityPem, MAX_IDENTITY_CHAIN};
pub use key::{CsrError, KeyError, KeyPair, new_csr};
pub use refusal::HandshakeRefusal;
pub use tls::{
    ClientTls, ServerConfigs, ServerIds, ServerTls, TlsConfigError, alpn_for, client_config,
    provider, server_config, server_config_optional_client,
};
pub use trust::{MAX_BUNDLE_LEN, MAX_ROOTS, RootCert, TrustError, TrustStore};
pub use verify::MAX_PEER_CHAIN;
pub use x509::{MAX_CERTIFICATE_LEN, PeerCertificate, PeerIdError, peer_certificate, peer_id};
