//! The roles that are proxies: `meshfed gateway`, `meshfed sidecar`, and the gateways of
//! `meshfed up`. All join over the same gRPC.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use meshfed_agent::IdentityMetrics;
use meshfed_api::control_plane::AppliedCluster;
use meshfed_controlplane::registration::{APP_KEY, OUTBOUND_KEY};
use meshfed_proxy::{ConnectionLimits, Node, NodeKind, Probe, Proxy, ProxyHandle, ProxyOptions};
use meshfed_runtime::{AccessLog, AccessLogMetrics, Admin, Drain, Metrics, Readiness};
use tokio::task::JoinSet;
use tracing::info;

use crate::cli::{GatewayOptions, Logging, SidecarOptions};
use crate::join::{Join, Joined, init_logging};

/// Connections have this long to finish when their proxy is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// The name of a cluster that has none, as in Istio.
const DEFAULT_CLUSTER: &str = "Kubernetes";

/// What proxies of one process count, registered once.
#[derive(Clone)]
pub struct ProxyMetrics {
    proxy: meshfed_proxy::Metrics,
    identity: IdentityMetrics,
    log: AccessLogMetrics,
}

impl ProxyMetrics {
    pub fn new(metrics: &Metrics, log: AccessLogMetrics) -> Self {
        Self {
            proxy: metrics.register(meshfed_proxy::Metrics::new),
            identity: metrics.register(IdentityMetrics::new),
            log,
        }
    }
}

/// A federation gateway.
#[derive(Debug, Clone)]
pub struct Gateway {
    pub join: Join,
    /// Name and network of the cluster, which the gateway says of itself.
    pub cluster: AppliedCluster,
    pub name: String,
    pub namespace: String,
    pub log_dir: PathBuf,
    /// Instead of those of the system.
    pub name_servers: Vec<SocketAddr>,
}

/// The proxy of one workload.
#[derive(Debug, Clone)]
pub struct Sidecar {
    pub join: Join,
    pub name: String,
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
    /// The workload's address in its mesh.
    pub address: IpAddr,
    /// Where the workload calls others.
    pub outbound: SocketAddr,
    /// Where the workload itself listens.
    pub app: Option<SocketAddr>,
    pub log_dir: PathBuf,
}

/// A running proxy.
pub struct Running(ProxyHandle);

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running")
            .field("ready", &self.0.is_ready())
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// Joins the mesh and starts the gateway; it is configured in the background.
    pub async fn start(self, metrics: &ProxyMetrics) -> anyhow::Result<Running> {
        let joined = self.join.join().await?;
        let node = Node {
            kind: NodeKind::Gateway,
            name: self.name.clone(),
            namespace: self.namespace,
            service_account: joined.service_account.clone(),
            addresses: vec![Ipv4Addr::LOCALHOST.into()],
            labels: [("app".to_owned(), self.name.clone())].into(),
            ports: Vec::new(),
            cluster_id: match self.cluster.name.is_empty() {
                true => DEFAULT_CLUSTER.to_owned(),
                false => self.cluster.name,
            },
            network: self.cluster.network,
            metadata: BTreeMap::new(),
        };
        let log = AccessLog::open(&self.log_dir, &self.name, &metrics.log)?;
        start(joined, node, log, metrics, self.name_servers, None)
    }
}

impl Sidecar {
    /// Joins the mesh and starts the sidecar; it is ready when its first configuration is in
    /// force.
    pub async fn start(self, metrics: &ProxyMetrics) -> anyhow::Result<Running> {
        let joined = self.join.join().await?;
        let mut metadata = BTreeMap::from([(OUTBOUND_KEY.to_owned(), self.outbound.to_string())]);
        if let Some(app) = self.app {
            metadata.insert(APP_KEY.to_owned(), app.to_string());
        }
        let node = Node {
            kind: NodeKind::Sidecar,
            name: self.name.clone(),
            namespace: self.namespace,
            service_account: joined.service_account.clone(),
            addresses: vec![self.address],
            labels: self.labels,
            ports: Vec::new(),
            cluster_id: DEFAULT_CLUSTER.to_owned(),
            network: String::new(),
            metadata,
        };
        let log = AccessLog::open(&self.log_dir, &self.name, &metrics.log)?;
        let probe = self.app.map(|app| Probe::Tcp(vec![app]));
        start(joined, node, log, metrics, Vec::new(), probe)
    }
}

fn start(
    joined: Joined,
    node: Node,
    access_log: AccessLog,
    metrics: &ProxyMetrics,
    name_servers: Vec<SocketAddr>,
    probe: Option<Probe>,
) -> anyhow::Result<Running> {
    let handle = Proxy::start(ProxyOptions {
        node,
        control_plane: meshfed_agent::ControlPlane::new(joined.control_plane)?,
        token: joined.token,
        access_log,
        metrics: metrics.proxy.clone(),
        identity_metrics: metrics.identity.clone(),
        limits: ConnectionLimits::default(),
        name_servers,
        drain: DRAIN,
        probe,
    })
    .context("cannot start the proxy")?;
    Ok(Running(handle))
}

impl Running {
    /// Resolves when the first configuration is in force.
    pub async fn ready(&self) {
        self.0.ready().await;
    }

    /// Stops accepting, lets connections finish, and ends.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}

/// `meshfed gateway`.
pub fn gateway(options: GatewayOptions, logging: &Logging) -> anyhow::Result<ExitCode> {
    let gateway = Gateway {
        join: Join::from_options(&options.join)?,
        cluster: AppliedCluster::default(),
        name: options.name.clone(),
        namespace: options.namespace,
        log_dir: options.log_dir,
        name_servers: options.dns_server,
    };
    alone(options.name, options.admin, logging, async |metrics| {
        gateway.start(metrics).await
    })
}

/// `meshfed sidecar`.
pub fn sidecar(options: SidecarOptions, logging: &Logging) -> anyhow::Result<ExitCode> {
    let labels = options.labels.iter().map(|label| {
        let (key, value) = label
            .split_once('=')
            .with_context(|| format!("the label {label:?} is not of the form KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    });
    let sidecar = Sidecar {
        join: Join::from_options(&options.join)?,
        name: options.name.clone(),
        namespace: options.namespace,
        labels: labels.collect::<anyhow::Result<_>>()?,
        address: options.address,
        outbound: SocketAddr::new(options.address, options.outbound_port),
        app: options.app,
        log_dir: options.log_dir,
    };
    alone(options.name, options.admin, logging, async |metrics| {
        sidecar.start(metrics).await
    })
}

/// Runs one proxy as the whole of a process.
fn alone(
    name: String,
    admin: Option<SocketAddr>,
    logging: &Logging,
    start: impl AsyncFnOnce(&ProxyMetrics) -> anyhow::Result<Running>,
) -> anyhow::Result<ExitCode> {
    let log = init_logging(logging, "info")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut stop = meshfed_runtime::shutdown_signal()?;
        let metrics = Metrics::new();
        let proxy_metrics = ProxyMetrics::new(&metrics, metrics.register(AccessLogMetrics::new));
        let readiness = Readiness::new();
        let configured = readiness.guard("first configuration");
        let (drain, watch) = Drain::new();
        let mut tasks = JoinSet::new();
        if let Some(address) = admin {
            let admin = Admin {
                readiness,
                metrics,
                log: Some(log),
                config_dump: None,
            };
            let admin = admin.bind(address).await?;
            tasks.spawn(admin.serve(watch));
        }
        let running = tokio::select! {
            running = start(&proxy_metrics) => running?,
            _ = stop.recv() => return Ok(ExitCode::SUCCESS),
        };
        let running = Arc::new(running);
        let waiting = {
            let running = running.clone();
            tokio::spawn(async move {
                running.ready().await;
                info!(proxy = name, "configured and listening");
                drop(configured);
            })
        };
        stop.recv().await;
        waiting.abort();
        let _ended = waiting.await;
        if let Some(running) = Arc::into_inner(running) {
            running.stop().await;
        }
        drain.drain(DRAIN).await;
        tasks.shutdown().await;
        Ok(ExitCode::SUCCESS)
    })
}
