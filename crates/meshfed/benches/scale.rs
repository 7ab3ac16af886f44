//! Ten thousand services of one mesh in another one: how long a whole list takes, how long one
//! change among them, and how much memory they need.
//!
//! `cargo bench -p meshfed --bench scale`; see docs/benchmarks.md.

mod support {
    pub mod federation;
    pub mod process;
    pub mod propagation;
    pub mod report;
    pub mod stages;
    pub mod workload;
}

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use meshfed_api::ServiceMeshPeer;
use support::federation::{Federation, Gateways, NAMESPACE, apply, within};
use support::process::{memory, peak_memory};
use support::propagation::{EXPORT, IMPORT, Rounds, service, until};
use support::report::{bench, percentiles};
use support::stages::{LOGGING, Log};
use support::workload::{Workload, serve, write_endpoint};
use tokio::time::sleep;

/// The whole run ends within this, whatever happens.
const LIMIT: Duration = Duration::from_secs(900);
/// With those of the examples they stay below 10,000, which is as many as a list may have.
const DEFAULT_SERVICES: usize = 9_900;
const ROUNDS: usize = 50;
const SYNCS: usize = 5;
/// After a sync, so that what is still under way is in the log and statuses are written.
const SETTLED: Duration = Duration::from_secs(2);
/// Requests to the API at a time, while the services are made.
const WRITERS: usize = 16;

fn main() -> anyhow::Result<ExitCode> {
    bench("MESHFED_BENCH_SCALE_SERVICES", DEFAULT_SERVICES, LIMIT, run)
}

async fn run(count: usize) -> anyhow::Result<()> {
    let backend = serve(None).await?;
    let federation = Federation::start(Gateways::InMesh, &LOGGING).await?;
    let (red, green) = (&federation.red, &federation.green);
    apply(&red.client, EXPORT).await?;
    apply(&green.client, IMPORT).await?;
    let client = Workload::join(green).await?;
    let rounds = Rounds::new(&federation, &client, backend, ROUNDS).await?;
    let empty = memory(green.process.id())?;
    fill(&red.client, count, backend).await?;
    let last = rounds.target(&name(count.saturating_sub(1)))?;
    until(&last, true).await?;
    println!(
        "{count} services of red-mesh in green-mesh, which has {:.1} MiB in memory, {empty:.1} MiB before",
        memory(green.process.id())?
    );

    let peers: Api<ServiceMeshPeer> = Api::namespaced(green.client.clone(), &green.system());
    let mut syncs = Vec::new();
    let mut stages: BTreeMap<usize, (&str, Vec<Duration>)> = BTreeMap::new();
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
        let log = Log::begin(&green.log)?;
        let began = Instant::now();
        peers.create(&PostParams::default(), &peer).await?;
        syncs.push(until(&last, true).await?.duration_since(began));
        sleep(SETTLED).await;
        for (index, (stage, at)) in log.stages()?.into_iter().enumerate() {
            let (_, times) = stages.entry(index).or_insert((stage, Vec::new()));
            times.extend(at);
        }
    }
    for (stage, times) in stages.into_values() {
        println!("  {stage:<32}{}", percentiles(times));
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
        "green-mesh, all of it: {used:.1} MiB in memory, of which {:.1} MiB for the imports; {:.1} MiB at its most",
        used - empty,
        peak_memory(green.process.id())?
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
