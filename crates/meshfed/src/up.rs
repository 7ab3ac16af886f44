//! `meshfed up`: one mesh in one process.

mod data_dir;
mod gateways;
mod tokens;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bytes::Bytes;
use kube::Client;
use meshfed_apiserver::{ApiServer, Kubeconfig, View};
use meshfed_controlplane::apply::Outcomes;
use meshfed_controlplane::control_plane::{ControlPlane, ensure_namespace};
use meshfed_controlplane::discovery::PeerCache;
use meshfed_controlplane::identity::{OwnIdentity, authority};
use meshfed_controlplane::journal::{AuditLog, Write, Writes};
use meshfed_controlplane::subnet::Subnet;
use meshfed_federation::observations::{Observations, PATH};
use meshfed_federation::world::ObjectKey;
use meshfed_pki::IdentityCell;
use meshfed_runtime::{AccessLog, AccessLogMetrics, Admin, Drain, Metrics, Readiness};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::info;

use self::data_dir::DataDir;
use self::gateways::Gateways;
use self::tokens::Tokens;
use crate::cli::{Logging, Up};
use crate::join::{Join, init_logging};
use crate::proxies::ProxyMetrics;

const API_PORT: u16 = 6443;
const GRPC_PORT: u16 = 15012;
const DISCOVERY_PORT: u16 = 8188;
const ADMIN_PORT: u16 = 15014;
/// Life of the administrator's certificate; a new one is issued at every start.
const ADMIN_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// What is under way has this long to finish when the mesh is stopped.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs the mesh until it is told to stop.
///
/// # Errors
///
/// Something that the mesh needs is not there or not usable; nothing is left half-done.
pub fn run(up: Up, logging: &Logging) -> anyhow::Result<ExitCode> {
    let log = init_logging(logging, "info")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(up, log))
}

async fn serve(up: Up, log: meshfed_runtime::LogHandle) -> anyhow::Result<ExitCode> {
    let mut stop = meshfed_runtime::shutdown_signal()?;
    let dir = DataDir::open(&up.data_dir)?;
    dir.check_resources()?;
    let bound = Bound::bind(&up, &dir).await?;
    let subnet = bound.subnet;
    let metrics = Metrics::new();
    let log_metrics = metrics.register(AccessLogMetrics::new);
    let readiness = Readiness::new();
    let admin = Admin {
        readiness: readiness.clone(),
        metrics: metrics.clone(),
        log: Some(log),
        config_dump: None,
    };
    let admin = admin.bind(bound.admin).await?;
    let api = {
        let options = meshfed_apiserver::Options::new(dir.path(), meshfed_api::crds());
        tokio::task::spawn_blocking(move || ApiServer::open(options)).await??
    };
    dir.keep_subnet(subnet)?;
    let client = Client::new(api.service(), "default");
    ensure_namespace(&client, &up.namespace).await?;
    let authority = authority(&client, &up.namespace, &up.name).await?;
    let root = authority.root_pem().to_owned();
    let identity = Arc::new(OwnIdentity::new(
        authority,
        server_names(&up),
        vec![subnet.control_plane().into(), Ipv4Addr::LOCALHOST.into()],
    )?);
    let server_url = format!(
        "https://{}",
        SocketAddr::from((subnet.control_plane(), API_PORT))
    );
    write_access(&up, &dir, &identity, &root, &server_url)?;

    let (drain, watch) = Drain::new();
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    // The API is closed first, so that the audit log can be complete.
    let (api_drain, api_watch) = Drain::new();
    let mut api_task: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let writes = writes(&api, &up.namespace);
    {
        let api = api.clone();
        let tls = api_tls(&identity.cell, &root)?;
        api_task.spawn(async move {
            let stopping = async move { api_watch.signaled().await };
            api.serve_https(bound.api, tls, stopping)
                .await
                .context("the API server ended")
        });
    }
    {
        let watch = watch.clone();
        tasks.spawn(async move { admin.serve(watch).await.context("the admin server ended") });
    }
    let mut control_plane = ControlPlane {
        client: client.clone(),
        namespace: up.namespace.clone(),
        subnet,
        node_address: up
            .node_address
            .map_or(IpAddr::V4(subnet.node()), IpAddr::V4),
        instance_suffix: dir.instance()?,
        identity: identity.clone(),
        grpc: bound.grpc,
        discovery: bound.discovery,
        tokens: Tokens::new(&api, &client),
        peer_lists: PeerCache::open(dir.peers()).context("cannot keep the lists of peers")?,
        audit_log: AuditLog::open(&dir.audit())?,
        writes: Some(writes),
        access_log: AccessLog::open(&dir.logs(), &format!("istiod-{}", up.name), &log_metrics)?,
        metrics: metrics.clone(),
        drain: watch.clone(),
    }
    .start()?;
    api.serve_view(observations(&control_plane.outcomes, &identity));
    let gateways = Gateways {
        client: client.clone(),
        namespace: up.namespace.clone(),
        external: up.external_gateways.iter().cloned().collect(),
        join: Join {
            control_plane: SocketAddr::from((subnet.control_plane(), GRPC_PORT)),
            ca: dir.root_cert(),
            token_file: dir.tokens(),
        },
        logs: dir.logs(),
        name_servers: up.name_servers.clone(),
        metrics: ProxyMetrics::new(&metrics, log_metrics),
        outcomes: control_plane.outcomes.clone(),
        drain: watch.clone(),
    };
    tasks.spawn(gateways.run());

    println!(
        "{}: the API is at {server_url}, export KUBECONFIG={}",
        up.name,
        dir.kubeconfig().display()
    );
    info!(mesh = up.name, %subnet, "the mesh is up");
    let ended = tokio::select! {
        _ = stop.recv() => Ok(()),
        () = stdin_ends(), if up.until_stdin_ends => Ok(()),
        () = control_plane.ended() => Err(anyhow::anyhow!("a part of the control plane ended")),
        Some(ended) = tasks.join_next() => Err(why(ended)),
        Some(ended) = api_task.join_next() => Err(why(ended)),
    };
    info!(mesh = up.name, "stopping");
    api_drain.signal();
    api_task.join_next().await;
    // Registrations stay as they are, or every workload would be taken out of its services.
    control_plane.stop().await;
    api.end_watches();
    drain.drain(DRAIN).await;
    tasks.shutdown().await;
    ended.map(|()| ExitCode::SUCCESS)
}

/// Why a part that ended did.
fn why(ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow::anyhow!("a part of the mesh ended"),
        Ok(Err(error)) => error,
        Err(panic) => panic.into(),
    }
}

/// What tools are told beside the resources.
fn observations(outcomes: &Outcomes, identity: &Arc<OwnIdentity>) -> View {
    let (outcomes, identity) = (outcomes.clone(), identity.clone());
    let [group, version, plural] = PATH;
    View {
        group,
        version,
        plural,
        document: Arc::new(move || {
            let outcome = outcomes.borrow().clone()?;
            let issuer = identity.authority.load().certificate_pem().to_owned();
            let document = Observations::of(&outcome.world, Some(issuer));
            document.encode().ok().map(Bytes::from)
        }),
    }
}

/// The sockets of the control plane. They are bound before anything is written.
struct Bound {
    subnet: Subnet,
    api: TcpListener,
    grpc: TcpListener,
    discovery: TcpListener,
    admin: SocketAddr,
}

impl Bound {
    /// On the subnet that was asked for, else the one of the last time, else one that is free.
    /// Whoever holds the API's port holds the subnet.
    async fn bind(up: &Up, dir: &DataDir) -> anyhow::Result<Self> {
        // A gateway elsewhere may have it.
        if let Some(node) = up.node_address.filter(|_| up.external_gateways.is_empty()) {
            let listened = TcpListener::bind((node, 0)).await;
            listened.with_context(|| {
                format!(
                    "--node-address {node} cannot be listened on for node ports; it must be an \
                     address of this machine"
                )
            })?;
        }
        if let Some(subnet) = up.subnet.or(dir.subnet()?) {
            return Self::on(subnet, up).await;
        }
        for n in 0..256 {
            let subnet = Subnet::candidate(&up.name, n);
            if let Ok(bound) = Self::on(subnet, up).await {
                return Ok(bound);
            }
        }
        anyhow::bail!("no free /24 of 127.0.0.0/8 was found; name one with --subnet")
    }

    async fn on(subnet: Subnet, up: &Up) -> anyhow::Result<Self> {
        let address = subnet.control_plane();
        let bind = async |port: u16, what: &str| {
            let at = SocketAddr::from((address, port));
            TcpListener::bind(at).await.with_context(|| {
                format!("cannot listen on {at} for {what}; is another mesh on {subnet}?")
            })
        };
        Ok(Self {
            subnet,
            api: bind(API_PORT, "the API").await?,
            grpc: bind(GRPC_PORT, "proxies").await?,
            discovery: bind(DISCOVERY_PORT, "discovery").await?,
            admin: up
                .admin
                .unwrap_or_else(|| SocketAddr::from((address, ADMIN_PORT))),
        })
    }
}

/// Writes to the API by others, for the audit log. Told from before the first of them.
fn writes(api: &ApiServer, namespace: &str) -> Writes {
    let writes = Writes::new(namespace);
    let book = writes.clone();
    api.report_writes(move |report| {
        book.tell(Write {
            user: report.user,
            groups: report.groups,
            verb: report.verb.to_owned(),
            kind: report.kind,
            object: ObjectKey::new(report.namespace, report.name),
            uid: report.uid,
            revision: report.revision,
        });
    });
    writes
}

fn server_names(up: &Up) -> Vec<String> {
    let istiod = format!("istiod-{}.{}.svc", up.name, up.namespace);
    [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        &istiod,
        &format!("{istiod}.cluster.local"),
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Writes what others need to find the mesh: its root, and the administrator's credentials.
fn write_access(
    up: &Up,
    dir: &DataDir,
    identity: &OwnIdentity,
    root: &str,
    server: &str,
) -> anyhow::Result<()> {
    let admin = identity.authority.load().issue_client(
        "kubernetes-admin",
        &["system:masters".to_owned()],
        ADMIN_TTL,
        SystemTime::now(),
    )?;
    let pem = admin.to_pem();
    let text = meshfed_apiserver::kubeconfig(&Kubeconfig {
        server,
        ca_pem: root,
        certificate_pem: &pem.chain,
        key_pem: &pem.key,
        context: &up.name,
        namespace: &up.namespace,
    });
    meshfed_runtime::write_public(&dir.root_cert(), root.as_bytes())
        .with_context(|| format!("cannot write {}", dir.root_cert().display()))?;
    meshfed_runtime::write_private(&dir.kubeconfig(), text.as_bytes())
        .with_context(|| format!("cannot write {}", dir.kubeconfig().display()))
}

fn api_tls(cell: &Arc<IdentityCell>, root: &str) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(root.as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = meshfed_pki::provider();
    let resolver = Arc::new(Resolver(cell.clone()));
    Ok(meshfed_apiserver::tls_config(provider, resolver, roots)?)
}

/// The control plane's certificate as it is at each handshake.
#[derive(Debug)]
struct Resolver(Arc<IdentityCell>);

impl rustls::server::ResolvesServerCert for Resolver {
    fn resolve(
        &self,
        _hello: rustls::server::ClientHello<'_>,
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        self.0.get()
    }
}

/// Resolves when standard input ends or breaks: whoever started us is gone.
async fn stdin_ends() {
    let mut stdin = tokio::io::stdin();
    let mut ignored = [0; 256];
    while matches!(stdin.read(&mut ignored).await, Ok(n) if n > 0) {}
}
