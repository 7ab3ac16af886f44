//! Load on a target, and what it took.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::JoinSet;

use super::workload::{BULK, SMALL, Target};

/// Of one tick in `/proc/<pid>/stat`: Linux shows 100 a second to programs, whatever it uses itself.
const TICK: Duration = Duration::from_millis(10);

/// What some load took; rounds add up.
#[derive(Debug, Default)]
pub struct Measured {
    /// Requests, connections or bytes a second, of each round.
    rates: Vec<f64>,
    latencies: Vec<Duration>,
    /// Requests, connections or bytes.
    count: u64,
    /// Of the processes that were watched.
    cpu: Duration,
}

impl Measured {
    /// The median of the rounds.
    pub fn rate(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// In milliseconds; `share` is below 1.
    pub fn latency(&mut self, share: f64) -> f64 {
        self.latencies.sort_unstable();
        let rank = (self.latencies.len() as f64 * share) as usize;
        let latency = self.latencies.get(rank);
        latency.map_or(f64::NAN, |l| l.as_secs_f64() * 1e3)
    }

    /// Microseconds of processor time of the watched processes for one request, connection or byte.
    pub fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.count as f64
    }

    fn add(&mut self, round: Round, elapsed: Duration, cpu: Duration) {
        self.rates.push(round.count as f64 / elapsed.as_secs_f64());
        self.latencies.extend(round.latencies);
        self.count += round.count;
        self.cpu += cpu;
    }
}

/// What one worker, or all in one round, did.
#[derive(Debug, Default)]
struct Round {
    latencies: Vec<Duration>,
    count: u64,
}

/// Requests, one after the other on each of so many connections.
pub async fn requests(
    target: &Target,
    connections: usize,
    time: Duration,
    watched: &[u32],
    into: &mut Measured,
) -> anyhow::Result<()> {
    let mut open = Vec::new();
    for _ in 0..connections {
        let mut connection = target.open().await?;
        connection.get(SMALL).await?;
        open.push(connection);
    }
    let end = Instant::now() + time;
    let work = open.into_iter().map(|mut connection| async move {
        let mut round = Round::default();
        while Instant::now() < end {
            let began = Instant::now();
            connection.get(SMALL).await?;
            round.latencies.push(began.elapsed());
            round.count += 1;
        }
        Ok(round)
    });
    measure(work, watched, into).await
}

/// New connections with one request each; so many, or as many as fit into `time`. The number is
/// limited because a port rests for a minute after its connection.
pub async fn new_connections(
    target: &Target,
    workers: usize,
    number: usize,
    time: Duration,
    watched: &[u32],
    into: &mut Measured,
) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    let left = Arc::new(AtomicUsize::new(number));
    let work = (0..workers).map(|_| {
        let (target, left) = (target.clone(), left.clone());
        async move {
            let mut round = Round::default();
            let take = |n: usize| n.checked_sub(1);
            while Instant::now() < end
                && left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                    .is_ok()
            {
                let began = Instant::now();
                target.call_once().await?;
                round.latencies.push(began.elapsed());
                round.count += 1;
            }
            Ok(round)
        }
    });
    measure(work, watched, into).await
}

/// Large bodies, one after the other on each of so many connections.
pub async fn bulk(
    target: &Target,
    connections: usize,
    time: Duration,
    watched: &[u32],
    into: &mut Measured,
) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    let work = (0..connections).map(|_| {
        let target = target.clone();
        async move {
            let mut connection = target.open().await?;
            let mut round = Round::default();
            while Instant::now() < end {
                round.count += connection.get(BULK).await?;
            }
            Ok(round)
        }
    });
    measure(work, watched, into).await
}

/// Runs the workers together; the round takes from the start of all to the end of the last.
async fn measure<W>(
    work: impl Iterator<Item = W>,
    watched: &[u32],
    into: &mut Measured,
) -> anyhow::Result<()>
where
    W: Future<Output = anyhow::Result<Round>> + Send + 'static,
{
    let cpu_before = cpu(watched)?;
    let began = Instant::now();
    let mut workers: JoinSet<_> = work.collect();
    let mut all = Round::default();
    while let Some(round) = workers.join_next().await {
        let round = round??;
        all.latencies.extend(round.latencies);
        all.count += round.count;
    }
    let elapsed = began.elapsed();
    into.add(all, elapsed, cpu(watched)?.saturating_sub(cpu_before));
    Ok(())
}

/// Processor time that these processes have used, in the program and in the kernel.
fn cpu(processes: &[u32]) -> anyhow::Result<Duration> {
    let mut ticks = 0;
    for process in processes {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name, in parentheses, may hold anything. After it come state, 10 others, then both.
        let (_, fields) = stat.rsplit_once(')').context("a stat without a name")?;
        for field in fields.split_whitespace().skip(11).take(2) {
            ticks += field.parse::<u32>()?;
        }
    }
    Ok(TICK * ticks)
}
