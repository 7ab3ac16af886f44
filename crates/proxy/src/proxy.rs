//! A whole proxy: identity, configuration, traffic, and an orderly end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use meshfed_agent::{CaClient, ControlPlane, IdentityKeeper, IdentityMetrics, TokenSource};
use meshfed_pki::IdError;
use meshfed_runtime::{AccessLog, Drain};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::{Engine, EngineOptions};
use crate::limits::ConnectionLimits;
use crate::metrics::Metrics;
use crate::node::Node;
use crate::probe::{self, Probe};
use crate::xds::{Client, Status};

/// What a proxy is started with.
pub struct ProxyOptions {
    /// Its namespace and service account are those of the token.
    pub node: Node,
    /// Where certificates and configuration come from.
    pub control_plane: ControlPlane,
    /// Buys the certificate.
    pub token: TokenSource,
    pub access_log: AccessLog,
    pub metrics: Metrics,
    pub identity_metrics: IdentityMetrics,
    pub limits: ConnectionLimits,
    /// Name servers to ask for the names in the configuration; none: those of the system.
    pub name_servers: Vec<SocketAddr>,
    /// How long connections may go on after the proxy was told to stop.
    pub drain: Duration,
    /// How a sidecar asks its application whether it is ready. `None`: it is not asked, and
    /// nothing is said about it.
    pub probe: Option<Probe>,
}

/// A running proxy. Dropping it ends it without ceremony; see [`stop`](Self::stop).
pub struct ProxyHandle {
    status: watch::Receiver<Status>,
    stop: CancellationToken,
    client: AbortOnDropHandle<Engine>,
    drain: Duration,
    _keeper: Drain,
    _probe: Option<AbortOnDropHandle<()>>,
}

/// A proxy, to be started.
pub struct Proxy;

impl Proxy {
    /// Starts a proxy in this tokio runtime. It gets its certificate and connects in the
    /// background, for as long as it takes; an error is only a node that can have no identity.
    pub fn start(options: ProxyOptions) -> Result<ProxyHandle, IdError> {
        let node = options.node;
        let domain = options.control_plane.options().server.trust_domain();
        let id = domain.service_account(&node.namespace, &node.service_account)?;
        let ca = CaClient::new(options.control_plane.clone(), options.token, id);
        let keeper = IdentityKeeper::new(ca, options.identity_metrics);
        let (app_ready, app_ready_watch) = watch::channel(options.probe.as_ref().map(|_| false));
        let (status_sender, status) = watch::channel(Status::default());
        let engine = Engine::new(EngineOptions {
            proxy: node.name.clone(),
            identity: keeper.cell(),
            access_log: options.access_log,
            metrics: options.metrics,
            limits: options.limits,
            name_servers: options.name_servers,
        });
        let client = Client {
            control_plane: options.control_plane,
            identity: keeper.cell(),
            identities: keeper.changes(),
            node,
            app_ready: app_ready_watch,
            status: status_sender,
        };
        let (keeper_drain, keeper_watch) = Drain::new();
        tokio::spawn(keeper.run(keeper_watch));
        // Without a probe the sender goes, and what is told never changes.
        let probe = options
            .probe
            .map(|p| AbortOnDropHandle::new(tokio::spawn(probe::watch(p, app_ready))));
        let stop = CancellationToken::new();
        let client = tokio::spawn(client.run(engine, stop.clone()));
        Ok(ProxyHandle {
            status,
            stop,
            client: AbortOnDropHandle::new(client),
            drain: options.drain,
            _keeper: keeper_drain,
            _probe: probe,
        })
    }
}

impl ProxyHandle {
    /// Resolves when the first configuration is in force, with all that it refers to. Never, if
    /// the proxy ends before.
    pub async fn ready(&self) {
        let mut status = self.status.clone();
        if status.wait_for(|s| s.ready).await.is_err() {
            std::future::pending().await
        }
    }

    /// Whether a first configuration is in force.
    pub fn is_ready(&self) -> bool {
        self.status.borrow().ready
    }

    /// What is waited for until [`ready`](Self::ready), for people who wonder.
    pub fn missing(&self) -> String {
        let status = self.status.borrow();
        match (status.connected, status.ready) {
            (_, true) => String::new(),
            (false, _) => "a connection to the control plane".to_owned(),
            (true, _) => status.missing.clone(),
        }
    }

    /// Whether there is a stream to the control plane now.
    pub fn is_connected(&self) -> bool {
        self.status.borrow().connected
    }

    /// The addresses that are listened on now, by listener.
    pub fn bound(&self) -> BTreeMap<String, SocketAddr> {
        self.status.borrow().bound.clone()
    }

    /// Resolves if the proxy ended without being asked to.
    pub async fn failed(&mut self) {
        // An error tells of a panic, which has been reported where it happened.
        let _ = (&mut self.client).await;
    }

    /// Says goodbye to the control plane, stops accepting, lets connections finish, and cuts what
    /// is left at the deadline.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Ok(engine) = self.client.await {
            engine.stop(self.drain).await;
        }
    }
}
