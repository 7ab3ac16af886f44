//! Ten thousand services of one mesh in another one: how long a whole list takes, how long one
//! change among them, and how much memory they need.
//!
//! `cargo bench -p meshfed --bench scale`; see docs/benchmarks.md.

mod support {
    pub mod federation;
    pub mod process;
    pub mod propagation;
    pub mod workload;
}

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use meshfed_api::ServiceMeshPeer;
use support::federation::{Federation, Gateways, NAMESPACE, apply, within};
use support::process::memory;
use support::propagation::{EXPORT, IMPORT, Rounds, percentiles, service, until};
use support::workload::{Workload, serve, write_endpoint};

/// The whole run ends within this, whatever happens.
const LIMIT: Duration = Duration::from_secs(900);
/// With those of the examples they stay below 10,000, which is as many as a list may have.
const DEFAULT_SERVICES: usize = 9_900;
const ROUNDS: usize = 50;
const SYNCS: usize = 5;
/// Requests to the API at a time, while the services are made.
const WRITERS: usize = 16;

fn main() -> anyhow::Result<ExitCode> {
    // Under `cargo test` there is nothing to measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(ExitCode::SUCCESS);
    }
    let services = match std::env::var("MESHFED_BENCH_SCALE_SERVICES") {
        Ok(text) => text
            .parse()
            .context("the number of services makes no sense")?,
        Err(_) => DEFAULT_SERVICES,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut stop = meshfed_runtime::shutdown_signal()?;
        tokio::select! {
            done = tokio::time::timeout(LIMIT, run(services)) => {
                done.context("the benchmark did not end in time")?.map(|()| ExitCode::SUCCESS)
            }
            _ = stop.recv() => Ok(ExitCode::FAILURE),
        }
    })
}

async fn run(count: usize) -> anyhow::Result<()> {
    let backend = serve(None).await?;
    let federation = Federation::start(Gateways::InMesh).await?;
    let (red, green) = (&federation.red, &federation.green);
    apply(&red.client, EXPORT).await?;
    apply(&green.client, IMPORT).await?;
    let client = Workload::join(green).await?;
    let rounds = Rounds::new(&federation, &client, backend, ROUNDS).await?;
    let empty = memory(green.process.id())?;
    fill(&red.client, count, backend).await?;
    let last = rounds.target(&name(count.saturating_sub(1)))?;
    until(&last, true).await?;
    println!("{count} services of red-mesh in green-mesh");

    let peers: Api<ServiceMeshPeer> = Api::namespaced(green.client.clone(), &green.system());
    let mut syncs = Vec::new();
    for _ in 0..SYNCS {
        let mut peer = peers.get("red-mesh").await?;
        let uid = peer.metadata.uid.clone().unwrap_or_default();
        peers.delete("red-mesh", &DeleteParams::default()).await?;
        let gone = await_condition(peers.clone(), "red-mesh", conditions::is_deleted(&uid));
        within(gone).await??;
        until(&last, false).await?;
        peer.metadata = kube::core::ObjectMeta {
            name: peer.metadata.name.take(),
            ..Default::default()
        };
        peer.status = None;
        let began = Instant::now();
        peers.create(&PostParams::default(), &peer).await?;
        syncs.push(until(&last, true).await?.duration_since(began));
    }
    println!(
        "a new peer, until the last of its services is callable: {}",
        percentiles(syncs)
    );

    let (appeared, disappeared) = rounds.run().await?;
    println!(
        "one more service, until it is callable:   {}",
        percentiles(appeared)
    );
    println!(
        "one removed, until it is not callable:    {}",
        percentiles(disappeared)
    );
    let used = memory(green.process.id())?;
    println!(
        "green-mesh, all of it: {used:.1} MiB in memory, of which {:.1} MiB for the imports",
        used - empty
    );
    println!(
        "red-mesh, with its API server: {:.1} MiB",
        memory(red.process.id())?
    );
    Ok(())
}

fn name(index: usize) -> String {
    format!("service-{index}")
}

/// Makes the services, each with an endpoint.
async fn fill(red: &Client, count: usize, backend: SocketAddr) -> anyhow::Result<()> {
    let api: Api<Service> = Api::namespaced(red.clone(), NAMESPACE);
    let began = Instant::now();
    futures::stream::iter(0..count)
        .map(|index| {
            let api = api.clone();
            async move {
                let name = name(index);
                api.create(&PostParams::default(), &service(&name)?).await?;
                write_endpoint(red, &name, backend).await
            }
        })
        .buffer_unordered(WRITERS)
        .try_collect::<()>()
        .await?;
    println!("{} objects written in {:.1?}", 2 * count, began.elapsed());
    Ok(())
}
