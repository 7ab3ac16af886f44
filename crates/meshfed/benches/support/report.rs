//! How a benchmark runs and what it prints.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

/// A benchmark with one number that the environment may set, ended by `limit` or a signal.
///
/// # Errors
///
/// The number cannot be read, or the benchmark failed or was late.
pub fn bench(
    variable: &str,
    default: usize,
    limit: Duration,
    run: impl AsyncFnOnce(usize) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    // Under `cargo test` there is nothing to measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(ExitCode::SUCCESS);
    }
    let number = match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{variable} is no number"))?,
        Err(_) => default,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut stop = meshfed_runtime::shutdown_signal()?;
        tokio::select! {
            done = tokio::time::timeout(limit, run(number)) => {
                done.context("the benchmark did not end in time")?.map(|()| ExitCode::SUCCESS)
            }
            _ = stop.recv() => Ok(ExitCode::FAILURE),
        }
    })
}

/// One line on a distribution.
pub fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: f64| {
        let rank = (times.len() as f64 * share) as usize;
        let time = times.get(rank.min(times.len().saturating_sub(1)));
        time.map_or(f64::NAN, |t| t.as_secs_f64() * 1e3)
    };
    let [min, p50, p90, p99, max] = [0.0, 0.5, 0.9, 0.99, 1.0].map(at);
    format!("min {min:.0} ms  p50 {p50:.0} ms  p90 {p90:.0} ms  p99 {p99:.0} ms  max {max:.0} ms")
}
