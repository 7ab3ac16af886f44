//! The rustls configurations of a mesh. There is one crypto provider and one way to make them.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use crate::identity::IdentityCell;
use crate::trust::TrustStore;
use crate::verify::{Allowed, SpiffeVerifier};
use crate::{SpiffeId, TrustDomain};

/// The crypto of every TLS connection: aws-lc, with X25519MLKEM768 preferred.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .clone()
}

/// The server end: presents `identity`, accepts clients by SPIFFE identity.
pub struct ServerTls {
    pub identity: Arc<IdentityCell>,
    pub trust: Arc<TrustStore>,
    /// Empty: any identity of the trust domains in `trust`.
    pub client_ids: Vec<SpiffeId>,
    /// In order of preference. A client that offers ALPN without any of these is refused by
    /// rustls; see [`ServerConfigs`] for servers that should go on without.
    pub alpn: Vec<String>,
}

/// The client end: presents `identity` if there is one, accepts servers by SPIFFE identity.
pub struct ClientTls {
    pub identity: Arc<IdentityCell>,
    pub trust: Arc<TrustStore>,
    pub server: ServerIds,
    pub alpn: Vec<String>,
}

/// Which servers a client accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerIds {
    OneOf(Vec<SpiffeId>),
    /// Any identity of this trust domain.
    AnyOf(TrustDomain),
}

/// A TLS configuration that rustls refuses; a fault of ours, not of a peer.
#[derive(Debug, thiserror::Error)]
#[error("the TLS configuration cannot be used")]
pub struct TlsConfigError(#[from] rustls::Error);

/// A server that demands a client certificate. TLS 1.3 and 1.2.
///
/// Sessions are never resumed: a resumed session skips the verification of the certificate, and so
/// would outlive a root, an identity or a life that has ended.
pub fn server_config(tls: ServerTls) -> Result<Arc<ServerConfig>, TlsConfigError> {
    build_server(tls, true)
}

/// As [`server_config`], but a client may come without a certificate. One that presents a
/// certificate must still pass the verification.
pub fn server_config_optional_client(tls: ServerTls) -> Result<Arc<ServerConfig>, TlsConfigError> {
    build_server(tls, false)
}

fn build_server(tls: ServerTls, mandatory: bool) -> Result<Arc<ServerConfig>, TlsConfigError> {
    let allowed = if tls.client_ids.is_empty() {
        Allowed::Bundle
    } else {
        Allowed::OneOf(tls.client_ids.into_iter().collect())
    };
    let mut verifier = SpiffeVerifier::new(tls.trust, allowed);
    verifier.mandatory = mandatory;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(Resolver(tls.identity)));
    config.alpn_protocols = tls.alpn.into_iter().map(String::into_bytes).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A client that knows its server by SPIFFE identity. TLS 1.3 and 1.2, no resumption (see
/// [`server_config`]). The server name given to rustls is only sent as SNI.
pub fn client_config(tls: ClientTls) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let allowed = match tls.server {
        ServerIds::OneOf(ids) => Allowed::OneOf(ids.into_iter().collect()),
        ServerIds::AnyOf(domain) => Allowed::Domain(domain),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SpiffeVerifier::new(tls.trust, allowed)))
        .with_client_cert_resolver(Arc::new(Resolver(tls.identity)));
    config.alpn_protocols = tls.alpn.into_iter().map(String::into_bytes).collect();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// One [`ServerConfig`] for each protocol and one without ALPN, made once, so that the protocol
/// can be chosen after the ClientHello has been read (`tokio_rustls::LazyConfigAcceptor`).
///
/// rustls fails a handshake in which both ends have protocols and none in common. With the
/// configuration that [`choose`](Self::choose) gives, such a handshake goes on without ALPN.
#[derive(Clone)]
pub struct ServerConfigs {
    plain: Arc<ServerConfig>,
    by_protocol: Vec<Arc<ServerConfig>>,
    protocols: Vec<String>,
}

impl ServerConfigs {
    /// From a configuration that lists the protocols in order of preference.
    pub fn new(config: &ServerConfig) -> Self {
        let with = |alpn: Vec<Vec<u8>>| {
            let mut variant = config.clone();
            variant.alpn_protocols = alpn;
            Arc::new(variant)
        };
        let offered = &config.alpn_protocols;
        Self {
            plain: with(Vec::new()),
            by_protocol: offered.iter().map(|p| with(vec![p.clone()])).collect(),
            protocols: offered
                .iter()
                .map(|p| String::from_utf8_lossy(p).into_owned())
                .collect(),
        }
    }

    /// The configuration for this client.
    pub fn choose(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        let offers: Vec<&[u8]> = hello.alpn().into_iter().flatten().collect();
        let chosen = alpn_for(&offers, &self.protocols);
        self.by_protocol
            .iter()
            .find(|config| !chosen.is_empty() && config.alpn_protocols == chosen)
            .unwrap_or(&self.plain)
            .clone()
    }
}

impl fmt::Debug for ServerConfigs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerConfigs")
            .field(&self.protocols)
            .finish()
    }
}

/// The first of our protocols that the client offers, alone, or nothing.
pub fn alpn_for(client_offers: &[&[u8]], ours: &[String]) -> Vec<Vec<u8>> {
    ours.iter()
        .map(String::as_bytes)
        .find(|protocol| client_offers.contains(protocol))
        .map(<[u8]>::to_vec)
        .into_iter()
        .collect()
}

/// Presents what the cell holds at the moment of the handshake.
#[derive(Debug)]
struct Resolver(Arc<IdentityCell>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.get()
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.get()
    }

    fn has_certs(&self) -> bool {
        self.0.get().is_some()
    }
}

#[cfg(test)]
mod tests;
