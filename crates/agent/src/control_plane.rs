//! Connections to the control plane.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use meshfed_pki::{
    ClientTls, HandshakeRefusal, Identity, IdentityCell, ServerIds, SpiffeId, TlsConfigError,
    TrustDomain, TrustError, TrustStore, client_config,
};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tracing::warn;

use crate::first_contact::{FirstContactError, first_contact, first_contact_tls};

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
    /// The identity that the control plane must prove. Its trust domain is the one of the start:
    /// see [`ControlPlane::server`].
    pub server: SpiffeId,
}

/// A way to the control plane of the own mesh.
///
/// The administrator may give the mesh another trust domain while it runs. A control plane that is known by
/// its root and its name, as at first contact, and is the same account of the same namespace, may therefore
/// move to another trust domain, and is followed there. Nothing but the domain may differ.
#[derive(Clone)]
pub struct ControlPlane {
    options: Arc<ControlPlaneOptions>,
    server: Arc<watch::Sender<SpiffeId>>,
    /// As it was read last.
    root: Arc<watch::Sender<Arc<str>>>,
    /// What was shown when it was found to prove itself by another root than that.
    parted: Arc<watch::Sender<Option<Arc<Identity>>>>,
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
    #[error("cannot ask the control plane for its trust domain")]
    FirstContact(#[from] FirstContactError),
    /// The own certificate is of the trust domain before; the next one is on its way.
    #[error(
        "the mesh is now in the trust domain {domain}; waiting for a certificate of that domain"
    )]
    NewTrustDomain { domain: TrustDomain },
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
            server: Arc::new(watch::Sender::new(options.server.clone())),
            root: Arc::default(),
            parted: Arc::default(),
            options: Arc::new(options),
            name,
            uri,
        })
    }

    pub fn options(&self) -> &ControlPlaneOptions {
        &self.options
    }

    /// The identity that the control plane must prove now.
    pub fn server(&self) -> SpiffeId {
        self.server.borrow().clone()
    }

    /// The same, as it changes.
    pub fn server_changes(&self) -> watch::Receiver<SpiffeId> {
        self.server.subscribe()
    }

    /// Tells when another root is found where the mesh's own comes from, which is looked at for each
    /// connection.
    pub(crate) fn root_changes(&self) -> watch::Receiver<Arc<str>> {
        self.root.subscribe()
    }

    /// Tells the certificate with which we came when the control plane proved itself by another root than the
    /// one that vouches for it: it may take it no more, though both roots are known here.
    pub(crate) fn partings(&self) -> watch::Receiver<Option<Arc<Identity>>> {
        self.parted.subscribe()
    }

    /// Whether the control plane would accept this certificate, as far as the mesh's own root tells.
    pub(crate) async fn accepts(&self, identity: &Identity) -> Result<bool, ConnectError> {
        let Some(id) = &identity.id else {
            return Ok(false);
        };
        let root = self.read_root().await?;
        let trust = TrustStore::single(id.trust_domain().clone(), &root);
        let trust = Arc::new(trust.map_err(ConnectError::Root)?);
        Ok(identity.is_accepted_by(trust, SystemTime::now()))
    }

    /// Asks the control plane which trust domain it is in, and follows it there. True if that is
    /// another one than before.
    pub async fn follow(&self) -> Result<bool, ConnectError> {
        let tls = first_contact_tls(&self.read_root().await?)?;
        let at = (self.options.host.as_str(), self.options.port);
        let found = first_contact(at, self.name.clone(), tls).await?;
        let moved = found.filter(|found| has_moved(&self.server(), found));
        Ok(moved.is_some_and(|now| {
            let changed = self.server.send_if_modified(|server| {
                let differs = *server != now;
                *server = now.clone();
                differs
            });
            if changed {
                warn!(server = %now, "the mesh is in another trust domain now");
            }
            changed
        }))
    }

    /// Opens a connection that presents what `identity` holds, if anything. A channel that loses
    /// its connection opens the next one by itself, with the identity and root of that moment. An identity of
    /// another trust domain than the mesh's is not shown.
    pub async fn connect(&self, identity: Arc<IdentityCell>) -> Result<Channel, ConnectError> {
        self.connect_with(identity, false).await
    }

    /// `former`: shows an identity of another trust domain too.
    pub(crate) async fn connect_with(
        &self,
        identity: Arc<IdentityCell>,
        former: bool,
    ) -> Result<Channel, ConnectError> {
        let this = self.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let (this, identity) = (this.clone(), identity.clone());
            async move { this.open(identity, former).await.map(TokioIo::new) }
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

    async fn open(
        &self,
        identity: Arc<IdentityCell>,
        former: bool,
    ) -> io::Result<TlsStream<TcpStream>> {
        let server = self.server();
        let domain = server.trust_domain().clone();
        let own = identity.identity().and_then(|own| own.id.clone());
        if !former && own.is_some_and(|own| *own.trust_domain() != domain) {
            return Err(io::Error::other(ConnectError::NewTrustDomain { domain }));
        }
        let trust = self.read_root().await.map_err(io::Error::other)?;
        let trust = TrustStore::single(domain, &trust).map_err(ConnectError::Root);
        let trust = Arc::new(trust.map_err(io::Error::other)?);
        let shown = identity.identity();
        let config = client_config(ClientTls {
            identity,
            trust: trust.clone(),
            server: ServerIds::OneOf(vec![server.clone()]),
            alpn: vec!["h2".to_string()],
        })
        .map_err(io::Error::other)?;
        let stream = TcpStream::connect((self.options.host.as_str(), self.options.port)).await?;
        stream.set_nodelay(true)?;
        let opened = TlsConnector::from(config)
            .connect(self.name.clone(), stream)
            .await;
        if let Err(error) = &opened
            && let Some(HandshakeRefusal::WrongTrustDomain { id }) = HandshakeRefusal::find(error)
            && has_moved(&server, &id)
        {
            // A claim only; what follows is proven by the root. The caller tries again in any case.
            if let Err(error) = self.follow().await {
                warn!(claimed = %id, "{error}");
            }
        }
        if let (Ok(stream), Some(shown)) = (&opened, shown) {
            let server = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let now = SystemTime::now();
            if !shown.is_accepted_by(Arc::new(trust.vouching_for(server, now)), now) {
                self.parted.send_replace(Some(shown));
            }
        }
        opened
    }

    /// The mesh's root as it is now, if it can be used.
    pub async fn root_pem(&self) -> Result<Arc<str>, ConnectError> {
        let pem = self.read_root().await?;
        TrustStore::parse_roots(&pem).map_err(ConnectError::Root)?;
        Ok(pem)
    }

    async fn read_root(&self) -> Result<Arc<str>, ConnectError> {
        let root: Arc<str> = match &self.options.root {
            RootSource::Pem(pem) => pem.clone(),
            RootSource::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(pem) => pem.into(),
                Err(source) => {
                    return Err(ConnectError::ReadRoot {
                        path: path.clone(),
                        source,
                    });
                }
            },
        };
        self.root.send_if_modified(|last| {
            let differs = *last != root;
            *last = root.clone();
            differs
        });
        Ok(root)
    }
}

/// Whether this is the same control plane in another trust domain.
fn has_moved(server: &SpiffeId, found: &SpiffeId) -> bool {
    server.trust_domain() != found.trust_domain()
        && server.namespace() == found.namespace()
        && server.service_account() == found.service_account()
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ControlPlane").field(&self.options).finish()
    }
}
