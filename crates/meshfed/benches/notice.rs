//! How soon one mesh notices what happens to the other: that the last endpoint of a service goes and
//! comes, and that the peer's process is killed and starts again.
//!
//! `cargo bench -p meshfed --bench notice`; see docs/benchmarks.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "it shares the meshes of the end-to-end tests; what fails ends the benchmark"
)]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/e2e/federation.rs"]
mod federation;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/e2e/notice.rs"]
mod notice;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/e2e/program.rs"]
mod program;

mod support {
    pub mod report;
}

use std::process::ExitCode;
use std::time::{Duration, Instant};

use federation::{Federation, IMPORTED};
use notice::{Came, Traffic, ratings_is_ready, says_connected};
use support::report::{bench, percentiles};

/// The whole run ends within this, whatever happens.
const LIMIT: Duration = Duration::from_secs(600);
const DEFAULT_ROUNDS: usize = 20;
/// The most that each may take.
const NOBODY_LEFT: Duration = Duration::from_secs(1);
const RESTART: Duration = Duration::from_secs(2);

fn main() -> anyhow::Result<ExitCode> {
    bench("MESHFED_BENCH_NOTICE_ROUNDS", DEFAULT_ROUNDS, LIMIT, run)
}

async fn run(rounds: usize) -> anyhow::Result<()> {
    let mut federation = Federation::start(&[], &[]).await;
    federation.works().await;
    println!("{rounds} rounds; a caller in green-mesh calls ratings of red-mesh without a pause");
    endpoints(&federation, rounds).await;
    restarts(&mut federation, rounds).await;
    Ok(())
}

fn print(what: &str, times: Vec<Duration>, target: Duration) {
    let late = times.iter().filter(|time| **time > target).count();
    println!("{what:44} {}  above {target:?}: {late}", percentiles(times));
}

/// From the write to the API of red-mesh to the end of a call in green-mesh.
async fn endpoints(federation: &Federation, rounds: usize) {
    let traffic = Traffic::default();
    let story = async {
        let (mut went, mut came, mut failed) = (Vec::new(), Vec::new(), 0);
        traffic.more(50, Instant::now()).await;
        for _ in 0..rounds {
            let began = Instant::now();
            ratings_is_ready(&federation.red, false).await;
            let told = traffic.first(&Came::NobodyThere, began).await;
            went.push(told - began);
            let all = traffic.since(began);
            let broken = |came: &Came| matches!(came, Came::Failed(_));
            failed += all.iter().filter(|(_, came)| broken(came)).count();
            let began = Instant::now();
            ratings_is_ready(&federation.red, true).await;
            came.push(traffic.first(&Came::Answered, began).await - began);
        }
        print(
            "the last endpoint went: told by the sidecar",
            went,
            NOBODY_LEFT,
        );
        print("it is back: answered", came, NOBODY_LEFT);
        println!("calls that were sent and failed: {failed}");
    };
    tokio::select! {
        () = traffic.run(federation, IMPORTED) => {}
        () = story => {}
    }
}

/// From `kill -9` of red-mesh, and from when its API serves again, to the status in green-mesh.
async fn restarts(federation: &mut Federation, rounds: usize) {
    let (mut went, mut came) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let began = Instant::now();
        federation.red.kill();
        went.push(says_connected(&federation.green, false, began).await);
        federation.red.start_again().await;
        let began = Instant::now();
        came.push(says_connected(&federation.green, true, began).await);
        federation.works().await;
    }
    print("the peer was killed: its status", went, RESTART);
    print("the peer serves again: its status", came, RESTART);
}
