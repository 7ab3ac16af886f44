//! A TLS configuration that suits the API.

use std::sync::Arc;

use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier},
};

/// Why a configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsConfigError {
    #[error("cannot verify clients with these roots: {0}")]
    Roots(#[from] VerifierBuilderError),
    #[error("the TLS versions are not usable: {0}")]
    Versions(#[from] rustls::Error),
}

/// TLS 1.3 and 1.2, `h2` and `http/1.1`; a client certificate is verified against `client_roots`
/// if one is sent.
pub fn tls_config(
    provider: Arc<CryptoProvider>,
    identity: Arc<dyn ResolvesServerCert>,
    client_roots: RootCertStore,
) -> Result<Arc<ServerConfig>, TlsConfigError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(client_roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(identity);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would bring a certificate that was verified long ago.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}
