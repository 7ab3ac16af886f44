//! A whole proxy: identity, configuration, traffic, and an orderly end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::IdentityCell;
use meshfed_runtime::AccessLog;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::{Engine, EngineOptions};
use crate::limits::ConnectionLimits;
use crate::metrics::Metrics;
use crate::node::Node;
use crate::probe::{self, Probe};
use crate::xds::{Client, ControlPlane, ControlPlaneError, Status};

/// What a proxy is started with.
pub struct ProxyOptions {
    pub node: Node,
    pub control_plane: ControlPlane,
    /// The proxy's own certificate, kept fresh by whoever owns it. Until there is one, nothing is
    /// configured.
    pub identity: Arc<IdentityCell>,
    pub access_log: AccessLog,
    pub metrics: Metrics,
    pub limits: ConnectionLimits,
    /// How long connections may go on after their listener has gone or the proxy was told to stop.
    pub drain: Duration,
    /// How a sidecar asks its application whether it is ready. `None`: it is not asked, and
    /// nothing is said about it.
    pub probe: Option<Probe>,
}

/// A proxy, to be started.
pub struct Proxy;

/// A running proxy. Dropping it ends it without ceremony; see [`stop`](Self::stop).
pub struct ProxyHandle {
    status: watch::Receiver<Status>,
    stop: CancellationToken,
    client: AbortOnDropHandle<Engine>,
    drain: Duration,
    _probe: Option<AbortOnDropHandle<()>>,
}

impl Proxy {
    /// Starts a proxy in this tokio runtime. It connects in the background, for as long as it
    /// takes; only settings that can never work are an error.
    pub fn start(options: ProxyOptions) -> Result<ProxyHandle, ControlPlaneError> {
        let (ready, ready_watch) = watch::channel(options.probe.as_ref().map(|_| false));
        let (status_sender, status) = watch::channel(Status::default());
        let stop = CancellationToken::new();
        let engine = Engine::new(EngineOptions {
            proxy: options.node.name.clone(),
            identity: options.identity.clone(),
            access_log: options.access_log,
            metrics: options.metrics,
            limits: options.limits,
            drain: options.drain,
        });
        let client = Client::new(
            &options.control_plane,
            options.identity,
            options.node,
            ready_watch,
            status_sender,
        )?;
        // Without a probe, what is told never changes.
        let probe = options
            .probe
            .map(|p| AbortOnDropHandle::new(tokio::spawn(probe::watch(p, ready))));
        let client = tokio::spawn(client.run(engine, stop.clone()));
        Ok(ProxyHandle {
            status,
            stop,
            client: AbortOnDropHandle::new(client),
            drain: options.drain,
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
