//! Connections to the control plane.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use meshfed_pki::{
    ClientTls, IdentityCell, ServerIds, SpiffeId, TlsConfigError, TrustError, TrustStore,
    client_config,
};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// How long a connection may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is asked this often whether it is alive, and given up after
/// [`PING_TIMEOUT`]: streams to the control plane are silent for hours.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the mesh's own root comes from.
#[derive(Debug, Clone)]
pub enum RootSource {
    /// PEM text.
    Pem(Arc<str>),
    /// A PEM file, read for each connection, so that a root can be replaced.
    File(PathBuf),
}

/// Where the control plane is and by what it is known.
#[derive(Debug, Clone)]
pub struct ControlPlaneOptions {
    /// Host name or IP address.
    pub host: String,
    pub port: u16,
    pub root: RootSource,
    /// The identity that the control plane must prove.
    pub server: SpiffeId,
}

/// A way to the control plane of the own mesh.
#[derive(Clone)]
pub struct ControlPlane {
    options: Arc<ControlPlaneOptions>,
    name: ServerName<'static>,
    uri: Uri,
}

/// Why the control plane cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0:?} is neither a host name nor an IP address")]
    BadHost(String),
    #[error("cannot read the root certificate {}", path.display())]
    ReadRoot {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the root certificate of the mesh cannot be used")]
    Root(#[source] TrustError),
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
    #[error("cannot connect to the control plane at {host}:{port}")]
    Connect {
        host: String,
        port: u16,
        #[source]
        source: tonic::transport::Error,
    },
}

impl ControlPlane {
    pub fn new(options: ControlPlaneOptions) -> Result<Self, ConnectError> {
        let bad = || ConnectError::BadHost(options.host.clone());
        let name = ServerName::try_from(options.host.clone()).map_err(|_| bad())?;
        // Only an `:authority` for gRPC; where to connect is our own business.
        let authority = match &name {
            ServerName::IpAddress(rustls_pki_types::IpAddr::V6(_)) => {
                format!("[{}]:{}", options.host, options.port)
            }
            _ => format!("{}:{}", options.host, options.port),
        };
        let uri = Uri::builder()
            .scheme("http")
            .authority(authority)
            .path_and_query("/")
            .build()
            .map_err(|_| bad())?;
        Ok(Self {
            options: Arc::new(options),
            name,
            uri,
        })
    }

    pub fn options(&self) -> &ControlPlaneOptions {
        &self.options
    }

    /// Opens a connection that presents what `identity` holds, if anything. A channel that loses
    /// its connection opens the next one by itself, with the identity and root of that moment.
    pub async fn connect(&self, identity: Arc<IdentityCell>) -> Result<Channel, ConnectError> {
        let this = self.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let (this, identity) = (this.clone(), identity.clone());
            async move { this.open(identity).await.map(TokioIo::new) }
        });
        Endpoint::from(self.uri.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|source| ConnectError::Connect {
                host: self.options.host.clone(),
                port: self.options.port,
                source,
            })
    }

    async fn open(&self, identity: Arc<IdentityCell>) -> io::Result<TlsStream<TcpStream>> {
        let config = client_config(ClientTls {
            identity,
            trust: Arc::new(self.trust().await.map_err(io::Error::other)?),
            server: ServerIds::OneOf(vec![self.options.server.clone()]),
            alpn: vec!["h2".to_string()],
        })
        .map_err(io::Error::other)?;
        let stream = TcpStream::connect((self.options.host.as_str(), self.options.port)).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config)
            .connect(self.name.clone(), stream)
            .await
    }

    async fn trust(&self) -> Result<TrustStore, ConnectError> {
        let domain = self.options.server.trust_domain().clone();
        TrustStore::single(domain, &self.read_root().await?).map_err(ConnectError::Root)
    }

    /// The mesh's root as it is now, if it can be used.
    pub async fn root_pem(&self) -> Result<Arc<str>, ConnectError> {
        let pem = self.read_root().await?;
        TrustStore::parse_roots(&pem).map_err(ConnectError::Root)?;
        Ok(pem)
    }

    async fn read_root(&self) -> Result<Arc<str>, ConnectError> {
        match &self.options.root {
            RootSource::Pem(pem) => Ok(pem.clone()),
            RootSource::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(pem) => Ok(pem.into()),
                Err(source) => Err(ConnectError::ReadRoot {
                    path: path.clone(),
                    source,
                }),
            },
        }
    }
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ControlPlane").field(&self.options).finish()
    }
}
