//! The agent beside a stock Envoy.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::{Identity, IdentityCell, SpiffeId};
use meshfed_runtime::{DrainWatch, write_private};
use meshfed_xds::bootstrap::{self, BootstrapOptions, NodeOptions, ServerName};
use meshfed_xds::proto::secret_discovery_service_server::SecretDiscoveryServiceServer;
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::{debug, info, warn};

use crate::ca_client::CaClient;
use crate::control_plane::{ConnectError, ControlPlane, ControlPlaneOptions};
use crate::keeper::{IdentityKeeper, IdentityMetrics};
use crate::sds::Sds;
use crate::secrets::Secrets;
use crate::socket::{Socket, SocketError};
use crate::token::TokenSource;

/// The socket's name in the agent's directory.
const SOCKET: &str = "sds.sock";
/// How often the file with the mesh's root is looked at.
const ROOT_INTERVAL: Duration = Duration::from_secs(5);
/// Longest request that is read, in bytes.
const MAX_REQUEST_LEN: usize = 64 * 1024;

/// What an agent must know.
#[derive(Debug)]
pub struct AgentOptions {
    pub control_plane: ControlPlaneOptions,
    /// Who the token's ServiceAccount is.
    pub id: SpiffeId,
    pub token: TokenSource,
    /// Where the socket is made. Made with mode 0700 if it is not there, and refused if others may
    /// enter it.
    pub dir: PathBuf,
    pub metrics: IdentityMetrics,
}

/// What the Envoy's bootstrap says beyond what the agent knows.
#[derive(Debug, Clone)]
pub struct EnvoyOptions {
    pub node: NodeOptions,
    /// Envoy's admin page; a loopback address.
    pub admin: SocketAddr,
    /// More connections from clients than this are closed at once.
    pub max_connections: u64,
}

/// An agent whose socket is bound.
pub struct Agent {
    control_plane: ControlPlane,
    keeper: IdentityKeeper,
    socket: Socket,
    listener: UnixListener,
    secrets: watch::Sender<Secrets>,
    written: Option<(PathBuf, EnvoyOptions)>,
}

/// Why an agent cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    ControlPlane(#[from] ConnectError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot write the bootstrap file {}", path.display())]
    Bootstrap {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot go on serving {}", path.display())]
    Serve {
        path: PathBuf,
        #[source]
        source: tonic::transport::Error,
    },
}

impl Agent {
    /// Binds the socket. A root that cannot be used is an error now, not a puzzle later.
    pub async fn bind(options: AgentOptions) -> Result<Self, AgentError> {
        let control_plane = ControlPlane::new(options.control_plane)?;
        let mut secrets = Secrets::default();
        secrets.set_root(&control_plane.root_pem().await?);
        let (socket, listener) = Socket::bind(options.dir.join(SOCKET)).await?;
        let client = CaClient::new(control_plane.clone(), options.token, options.id);
        Ok(Self {
            control_plane,
            keeper: IdentityKeeper::new(client, options.metrics),
            socket,
            listener,
            secrets: watch::Sender::new(secrets),
            written: None,
        })
    }

    /// Where SDS is served.
    pub fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// The identity in use; empty until the first certificate is there.
    pub fn identity(&self) -> Arc<IdentityCell> {
        self.keeper.cell()
    }

    /// The bootstrap for the Envoy beside this agent.
    pub fn bootstrap(&self, envoy: EnvoyOptions) -> Value {
        bootstrap_of(&self.control_plane, self.socket.path(), envoy)
    }

    /// Writes [`bootstrap`](Self::bootstrap) to a file (mode 0600) for `envoy -c`, and again while the agent
    /// runs, when the control plane is in another trust domain. An Envoy reads it at its start only.
    pub fn write_bootstrap(&mut self, path: &Path, envoy: EnvoyOptions) -> Result<(), AgentError> {
        write_file(path, &self.bootstrap(envoy.clone()))?;
        self.written = Some((path.to_path_buf(), envoy));
        Ok(())
    }

    /// Keeps the certificate and serves it until the drain is signalled.
    pub async fn run(self, drain: DrainWatch) -> Result<(), AgentError> {
        let Self {
            control_plane,
            keeper,
            socket,
            listener,
            secrets,
            written,
        } = self;
        info!(socket = %socket.path().display(), "serving certificates");
        let sds = Sds {
            secrets: secrets.subscribe(),
            drain: drain.clone(),
        };
        let service =
            SecretDiscoveryServiceServer::new(sds).max_decoding_message_size(MAX_REQUEST_LEN);
        let serve = Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), drain.signaled());
        let changes = keeper.changes();
        tokio::select! {
            served = serve => served.map_err(|source| AgentError::Serve {
                path: socket.path().to_path_buf(),
                source,
            }),
            () = keeper.run(drain.clone()) => Ok(()),
            () = pass_on(changes, &secrets) => Ok(()),
            () = follow_root(&control_plane, &secrets) => Ok(()),
            () = follow_server(&control_plane, socket.path(), written) => Ok(()),
        }
    }
}

/// Ends only with the keeper.
async fn pass_on(
    mut changes: watch::Receiver<Option<Arc<Identity>>>,
    secrets: &watch::Sender<Secrets>,
) {
    while changes.changed().await.is_ok() {
        let identity = changes.borrow_and_update().clone();
        if let Some(identity) = identity {
            secrets.send_modify(|s| s.set_identity(&identity));
        }
    }
}

/// Never ends. Nobody here has a lasting connection to the control plane that would end when its trust
/// domain changes, so it is asked.
async fn follow_root(control_plane: &ControlPlane, secrets: &watch::Sender<Secrets>) {
    let mut ticks = interval(ROOT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        read_root(control_plane, secrets).await;
        // Renewals tell of a control plane that is away.
        if let Err(error) = control_plane.follow().await {
            debug!(%error, "it is not known whether the trust domain is the same");
        }
    }
}

/// Never ends.
async fn follow_server(
    control_plane: &ControlPlane,
    socket: &Path,
    written: Option<(PathBuf, EnvoyOptions)>,
) {
    let mut servers = control_plane.server_changes();
    if let Some((path, envoy)) = written {
        // The sender is the control plane's own.
        while servers.changed().await.is_ok() {
            let server = servers.borrow_and_update().clone();
            let bootstrap = bootstrap_of(control_plane, socket, envoy.clone());
            match write_file(&path, &bootstrap) {
                Ok(()) => warn!(
                    bootstrap = %path.display(),
                    "start the Envoy anew: it reads only at its start that the control plane is {server}"
                ),
                Err(error) => warn!("the control plane is {server} now, and {error}"),
            }
        }
    }
    std::future::pending().await
}

fn bootstrap_of(control_plane: &ControlPlane, socket: &Path, envoy: EnvoyOptions) -> Value {
    let to = control_plane.options();
    bootstrap::envoy(&BootstrapOptions {
        node: envoy.node,
        control_plane: (to.host.clone(), to.port),
        server: ServerName::Id(control_plane.server()),
        sds_socket: socket.to_string_lossy().into_owned(),
        admin: envoy.admin,
        max_connections: envoy.max_connections,
    })
}

fn write_file(path: &Path, bootstrap: &Value) -> Result<(), AgentError> {
    let text = format!("{bootstrap:#}\n");
    write_private(path, text.as_bytes()).map_err(|source| AgentError::Bootstrap {
        path: path.to_path_buf(),
        source,
    })
}

async fn read_root(control_plane: &ControlPlane, secrets: &watch::Sender<Secrets>) {
    match control_plane.root_pem().await {
        // Only a change of the content makes a new version, and only that is sent.
        Ok(pem) => secrets.send_modify(|s| s.set_root(&pem)),
        Err(e) => warn!("the root stays as it was: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use meshfed_testkit::{forge::Forge, temp_dir};
    use meshfed_xds::ROOT_SECRET;

    use super::*;
    use crate::control_plane::RootSource;

    #[tokio::test(flavor = "current_thread")]
    async fn a_root_that_cannot_be_used_does_not_replace_one_that_can() {
        let dir = temp_dir();
        let file = dir.path().join("root-cert.pem");
        let server = "spiffe://red-mesh.local/ns/red-mesh-system/sa/istiod";
        let control_plane = ControlPlane::new(ControlPlaneOptions {
            host: "127.0.0.1".to_string(),
            port: 15012,
            root: RootSource::File(file.clone()),
            server: server.parse().unwrap(),
        })
        .unwrap();
        let secrets = watch::Sender::new(Secrets::default());
        let version = || secrets.borrow().get(ROOT_SECRET).map(|s| s.version.clone());

        std::fs::write(&file, Forge::new("red").root_pem()).unwrap();
        read_root(&control_plane, &secrets).await;
        let good = version();
        assert!(good.is_some());
        for broken in ["", "not a certificate"] {
            std::fs::write(&file, broken).unwrap();
            read_root(&control_plane, &secrets).await;
            assert_eq!(version(), good);
        }
        std::fs::write(&file, Forge::new("red").root_pem()).unwrap();
        read_root(&control_plane, &secrets).await;
        assert_ne!(version(), good);
    }
}
