//! Asking a control plane who it is, before that is known.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::SpiffeId;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Why it is not known who the control plane is.
#[derive(Debug, thiserror::Error)]
pub enum FirstContactError {
    #[error("the root certificate of the mesh is no PEM text with a certificate")]
    Root(#[source] Option<rustls_pki_types::pem::Error>),
    #[error("the root certificate of the mesh cannot be used")]
    Tls(#[source] rustls::Error),
    /// Waiting does not help.
    #[error("the control plane does not prove itself by the root")]
    Untrusted(#[source] io::Error),
    #[error("there is no connection to the control plane")]
    Connect(#[source] io::Error),
}

/// Trusts what the root vouches for, by name or address: who may have which of them in a certificate is
/// up to the mesh's own authority, which gives workloads none.
pub fn first_contact_tls(root_pem: &str) -> Result<Arc<ClientConfig>, FirstContactError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(root_pem.as_bytes()) {
        let certificate = certificate.map_err(|e| FirstContactError::Root(Some(e)))?;
        roots.add(certificate).map_err(FirstContactError::Tls)?;
    }
    if roots.is_empty() {
        return Err(FirstContactError::Root(None));
    }
    let mut config = ClientConfig::builder_with_provider(meshfed_pki::provider())
        .with_safe_default_protocol_versions()
        .map_err(FirstContactError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// The SPIFFE id in the control plane's certificate; `None` if it has none yet. Nothing is sent to it.
pub async fn first_contact(
    at: impl ToSocketAddrs,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
) -> Result<Option<SpiffeId>, FirstContactError> {
    let handshake = async {
        let stream = TcpStream::connect(at).await?;
        TlsConnector::from(tls).connect(name, stream).await
    };
    let shaken = tokio::time::timeout(TIMEOUT, handshake).await;
    let stream = shaken
        .unwrap_or_else(|elapsed| Err(elapsed.into()))
        .map_err(|error| match is_untrusted(&error) {
            true => FirstContactError::Untrusted(error),
            false => FirstContactError::Connect(error),
        })?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    Ok(meshfed_pki::peer_id(certificates).ok())
}

fn is_untrusted(error: &io::Error) -> bool {
    let inner = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}
