//! Large steps of a plan, shared out to the processors.
//!
//! A plan from nothing reads tens of thousands of objects that are in no cache. Several threads wait
//! for memory at the same time. What they compute does not depend on how many they are.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;

/// More threads than this would wait for each other.
const MAX_THREADS: usize = 8;
/// Services that one job looks at.
pub(super) const SHARE: usize = 256;

/// Asking costs more than a small plan.
static PROCESSORS: LazyLock<usize> =
    LazyLock::new(|| thread::available_parallelism().map_or(1, NonZero::get));

/// Does all jobs and returns what they give, in their order. `size` says how many services they look
/// at in all: threads are not worth their making for a few.
pub(super) fn each<J: Send, R: Send>(
    jobs: Vec<J>,
    size: usize,
    work: impl Fn(J) -> R + Sync,
) -> Vec<R> {
    let threads = match size > SHARE {
        true => PROCESSORS.min(MAX_THREADS).min(jobs.len()),
        false => 1,
    };
    if threads < 2 {
        return jobs.into_iter().map(work).collect();
    }
    let jobs = Mutex::new(jobs.into_iter().enumerate());
    // A job that panics has given the lock back before.
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
    let some = || {
        let mine = std::iter::from_fn(next);
        mine.map(|(at, job)| (at, work(job))).collect::<Vec<_>>()
    };
    let mut done = thread::scope(|scope| {
        // Where the system gives no more threads, there are fewer.
        let others =
            (1..threads).map_while(|_| thread::Builder::new().spawn_scoped(scope, some).ok());
        let others: Vec<_> = others.collect();
        let mut done = some();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_jobs() {
        for size in [0, SHARE + 1] {
            let jobs: Vec<usize> = (0..1000).collect();
            let doubled = each(jobs, size, |job| job * 2);
            assert_eq!(doubled, (0..1000).map(|n| n * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    #[should_panic(expected = "the third")]
    fn a_panic_in_a_job_is_one_of_the_caller() {
        each(vec![1, 2, 3, 4], SHARE + 1, |job| {
            assert!(job != 3, "the third");
        });
    }
}
