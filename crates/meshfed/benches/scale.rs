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

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use meshfed_api::ServiceMeshPeer;
use support::federation::{Federation, Gateways, Mesh, NAMESPACE, apply, within};
use support::process::{Process, memory, peak_memory};
use support::propagation::{EXPORT, IMPORT, Rounds, Times, service, until};
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
/// The last byte of the sidecar's address.
const WORKLOAD: u8 = 200;
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

    let (egress, _) = rounds.run().await?;
    print("at the egress gateway", egress);
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

    let rounds = rounds.with_sidecar(SocketAddr::new(green.net.address(WORKLOAD), 15001));
    let began = Instant::now();
    let mut sidecar = sidecar(green).await?;
    let last = rounds.by_sidecar(&name(count.saturating_sub(1)));
    let ready = until(&last.context("there is a sidecar")?, true).await?;
    sidecar.check()?;
    println!(
        "a sidecar with all of it, from its start until the last is callable: {:.0} ms",
        ready.duration_since(began).as_secs_f64() * 1000.0
    );
    let (egress, through) = rounds.run().await?;
    print("at the egress gateway", egress);
    print("through a sidecar", through);
    for (what, process) in [("the sidecar", &sidecar), ("green-mesh", &green.process)] {
        let (used, most) = (memory(process.id())?, peak_memory(process.id())?);
        println!("{what}: {used:.1} MiB in memory, {most:.1} MiB at its most");
    }
    Ok(())
}

fn print(way: &str, times: Times) {
    for (what, times) in [
        ("one more service, until it is callable", times.appeared),
        ("one removed, until it is not callable", times.disappeared),
    ] {
        println!("{what} {way}: {}", percentiles(times));
    }
}

/// One of green-mesh's, in a process of its own.
async fn sidecar(green: &Mesh) -> anyhow::Result<Process> {
    let token = green.dir.join("sidecar.token");
    std::fs::write(&token, green.token("bookinfo", "client").await?)?;
    let address = green.net.address(WORKLOAD).to_string();
    Process::meshfed(&green.dir.join("sidecar.log"), |command| {
        let url = format!("https://{}", green.control_plane());
        command.args(["sidecar", "--control-plane", &url, "--ca"]);
        command.arg(green.root_cert());
        command.arg("--token-file").arg(token);
        command.args(["--name", "client", "--namespace", "bookinfo"]);
        command.args(["--address", &address, "--log-dir"]);
        command.arg(green.dir.join("logs"));
    })
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
