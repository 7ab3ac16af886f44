//! `meshfed agent`: beside a stock Envoy that stands in for a gateway.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use meshfed_agent::{Agent, EnvoyOptions, IdentityMetrics};
use meshfed_runtime::{Drain, Metrics};
use meshfed_xds::bootstrap::NodeOptions;
use tracing::info;

use crate::cli::{AgentOptions, Logging};
use crate::join::{Join, init_logging};

const DRAIN: Duration = Duration::from_secs(5);
/// As many as our own proxies take.
const MAX_CONNECTIONS: u64 = 65_536;

/// Writes the bootstrap file and serves certificates until it is told to stop.
///
/// # Errors
///
/// A file or the directory cannot be used, or the control plane does not prove itself.
pub fn run(options: AgentOptions, logging: &Logging) -> anyhow::Result<ExitCode> {
    let _log = init_logging(logging, "info")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: AgentOptions) -> anyhow::Result<ExitCode> {
    let mut stop = meshfed_runtime::shutdown_signal()?;
    let join = Join::from_options(&options.join)?;
    let joined = tokio::select! {
        joined = join.join() => joined?,
        _ = stop.recv() => return Ok(ExitCode::SUCCESS),
    };
    let AgentOptions {
        name, namespace, ..
    } = options;
    let id = joined
        .control_plane
        .server
        .trust_domain()
        .service_account(&namespace, &joined.service_account)
        .with_context(|| format!("the namespace {namespace:?} is none"))?;
    let mut agent = Agent::bind(meshfed_agent::AgentOptions {
        control_plane: joined.control_plane,
        id,
        token: joined.token,
        dir: options.dir.clone(),
        metrics: Metrics::new().register(IdentityMetrics::new),
    })
    .await?;
    let bootstrap = options.dir.join("envoy.json");
    let envoy = EnvoyOptions {
        node: NodeOptions {
            id: format!("router~127.0.0.1~{name}.{namespace}~{namespace}.svc.cluster.local"),
            cluster: format!("{name}.{namespace}"),
            metadata: [("NAME".to_owned(), name.into())].into_iter().collect(),
        },
        admin: options.envoy_admin,
        max_connections: MAX_CONNECTIONS,
    };
    agent.write_bootstrap(&bootstrap, envoy)?;
    info!(bootstrap = %bootstrap.display(), "start the Envoy with envoy -c");
    let (drain, watch) = Drain::new();
    let mut serving = std::pin::pin!(agent.run(watch));
    tokio::select! {
        ended = &mut serving => ended?,
        _ = stop.recv() => {
            drain.signal();
            serving.await?;
        }
    }
    drain.drain(DRAIN).await;
    Ok(ExitCode::SUCCESS)
}
