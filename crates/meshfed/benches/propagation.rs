//! How long it takes until a new Service of one mesh can be called from the other, and until a
//! removed one cannot.
//!
//! `cargo bench -p meshfed --bench propagation`; see docs/benchmarks.md.

mod support {
    pub mod federation;
    pub mod process;
    pub mod propagation;
    pub mod report;
    pub mod workload;
}

use std::process::ExitCode;
use std::time::Duration;

use support::federation::{Federation, Gateways, apply};
use support::process::memory;
use support::propagation::{EXPORT, IMPORT, Rounds, until};
use support::report::{bench, percentiles};
use support::workload::{Workload, serve, write_endpoint};

/// The whole run ends within this, whatever happens.
const LIMIT: Duration = Duration::from_secs(600);
const DEFAULT_ROUNDS: usize = 50;
/// The most that either may take.
const TARGET: Duration = Duration::from_millis(500);

fn main() -> anyhow::Result<ExitCode> {
    bench(
        "MESHFED_BENCH_PROPAGATION_ROUNDS",
        DEFAULT_ROUNDS,
        LIMIT,
        run,
    )
}

async fn run(rounds: usize) -> anyhow::Result<()> {
    let backend = serve(None).await?;
    let federation = Federation::start(Gateways::InMesh, &[]).await?;
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
    let (times, _) = rounds.run().await?;
    println!(
        "{} rounds, from the request to the API; at most {TARGET:?} is wanted",
        times.appeared.len()
    );
    let both = [
        ("callable", times.appeared),
        ("not callable", times.disappeared),
    ];
    for (what, times) in both {
        let late = times.iter().filter(|time| **time > TARGET).count();
        println!("{what:14} {}  late {late}", percentiles(times));
    }
    Ok(())
}
