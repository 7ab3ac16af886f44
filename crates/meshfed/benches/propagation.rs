//! How long it takes until a new Service of one mesh can be called from the other, and until a
//! removed one cannot.
//!
//! `cargo bench -p meshfed --bench propagation`; see docs/benchmarks.md.

mod support {
    pub mod federation;
    pub mod process;
    pub mod propagation;
    pub mod workload;
}

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use support::federation::{Federation, Gateways, apply};
use support::process::memory;
use support::propagation::{EXPORT, IMPORT, Rounds, percentiles, until};
use support::workload::{Workload, serve, write_endpoint};

/// The whole run ends within this, whatever happens.
const LIMIT: Duration = Duration::from_secs(600);
const DEFAULT_ROUNDS: usize = 50;
/// The most that either may take.
const TARGET: Duration = Duration::from_millis(500);

fn main() -> anyhow::Result<ExitCode> {
    // Under `cargo test` there is nothing to measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(ExitCode::SUCCESS);
    }
    let rounds = match std::env::var("MESHFED_BENCH_PROPAGATION_ROUNDS") {
        Ok(text) => text
            .parse()
            .context("the number of rounds makes no sense")?,
        Err(_) => DEFAULT_ROUNDS,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut stop = meshfed_runtime::shutdown_signal()?;
        tokio::select! {
            done = tokio::time::timeout(LIMIT, run(rounds)) => {
                done.context("the benchmark did not end in time")?.map(|()| ExitCode::SUCCESS)
            }
            _ = stop.recv() => Ok(ExitCode::FAILURE),
        }
    })
}

async fn run(rounds: usize) -> anyhow::Result<()> {
    let backend = serve(None).await?;
    let federation = Federation::start(Gateways::InMesh).await?;
    let (red, green) = (&federation.red, &federation.green);
    apply(&red.client, EXPORT).await?;
    apply(&green.client, IMPORT).await?;
    write_endpoint(&red.client, "ratings", backend).await?;
    let client = Workload::join(green).await?;
    let rounds = Rounds::new(&federation, &client, backend, rounds).await?;
    until(&rounds.target("ratings")?, true).await?;
    for mesh in [red, green] {
        let used = memory(mesh.process.id())?;
        println!("{}: {used:.1} MiB in memory, federated and idle", mesh.name);
    }
    let (appeared, disappeared) = rounds.run().await?;
    println!(
        "{} rounds, from the request to the API; at most {TARGET:?} is wanted",
        appeared.len()
    );
    for (what, times) in [("callable", appeared), ("not callable", disappeared)] {
        let late = times.iter().filter(|time| **time > TARGET).count();
        println!("{what:14} {}  late {late}", percentiles(times));
    }
    Ok(())
}
