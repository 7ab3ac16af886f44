//! Drain: stop accepting, finish what runs, be forced after a deadline.
//!
//! The owner of a part holds the [`Drain`]; everything that runs for it holds a [`DrainWatch`],
//! and a [`DrainGuard`] for as long as it has work that should be finished.
//!
//! ```text
//! running --signal--> draining --last guard dropped--> finished
//!                         \-----deadline--------------> forced
//! ```

use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How long forced work may take to notice and to drop its guards.
const FORCED_GRACE: Duration = Duration::from_secs(1);

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainEnd {
    /// All work was finished within the deadline.
    Finished,
    /// The deadline passed with this many guards still held.
    Forced { unfinished: usize },
}

/// The owner's end. Dropping it without [`drain`](Self::drain) signals and forces at once, so that
/// nothing outlives an owner that failed.
#[derive(Debug)]
pub struct Drain {
    watch: DrainWatch,
    _signal_on_drop: DropGuard,
    _force_on_drop: DropGuard,
}

/// The worker's end; cheap to clone.
#[derive(Debug, Clone)]
pub struct DrainWatch {
    signaled: CancellationToken,
    forced: CancellationToken,
    /// Our own tracker first, then those of the drains that this one is nested in.
    trackers: Vec<TaskTracker>,
}

/// Held while there is work that a drain should wait for.
#[derive(Debug)]
pub struct DrainGuard {
    _tokens: Vec<TaskTrackerToken>,
}

impl Drain {
    /// A drain of its own.
    pub fn new() -> (Self, DrainWatch) {
        Self::with(
            CancellationToken::new(),
            CancellationToken::new(),
            Vec::new(),
        )
    }

    fn with(
        signaled: CancellationToken,
        forced: CancellationToken,
        outer: Vec<TaskTracker>,
    ) -> (Self, DrainWatch) {
        let mut trackers = vec![TaskTracker::new()];
        trackers.extend(outer);
        let watch = DrainWatch {
            signaled,
            forced,
            trackers,
        };
        let drain = Self {
            _signal_on_drop: watch.signaled.clone().drop_guard(),
            _force_on_drop: watch.forced.clone().drop_guard(),
            watch: watch.clone(),
        };
        (drain, watch)
    }

    pub fn watch(&self) -> DrainWatch {
        self.watch.clone()
    }

    /// Tells the workers to stop accepting, without waiting for them.
    pub fn signal(&self) {
        self.watch.signaled.cancel();
    }

    /// Signals, waits until every guard is dropped, and after `deadline` forces what is left.
    pub async fn drain(self, deadline: Duration) -> DrainEnd {
        self.signal();
        let own = self.watch.own();
        own.close();
        if tokio::time::timeout(deadline, own.wait()).await.is_ok() {
            return DrainEnd::Finished;
        }
        let unfinished = own.len();
        self.watch.forced.cancel();
        // Whether or not they end within the grace, the answer is the same.
        let _ = tokio::time::timeout(FORCED_GRACE, own.wait()).await;
        DrainEnd::Forced { unfinished }
    }
}

impl DrainWatch {
    /// Resolves when the drain begins.
    pub async fn signaled(&self) {
        self.signaled.cancelled().await;
    }

    /// Resolves when the deadline has passed: drop everything.
    pub async fn forced(&self) {
        self.forced.cancelled().await;
    }

    pub fn is_signaled(&self) -> bool {
        self.signaled.is_cancelled()
    }

    /// A drain waits for this guard. Guards may be taken after the signal as well, by work that
    /// had been accepted before it.
    pub fn guard(&self) -> DrainGuard {
        DrainGuard {
            _tokens: self.trackers.iter().map(TaskTracker::token).collect(),
        }
    }

    /// A drain for a part that can be ended alone, and that ends with the whole: the outer signal
    /// and force reach it, and its guards hold the outer drain as well.
    pub fn nested(&self) -> (Drain, DrainWatch) {
        Drain::with(
            self.signaled.child_token(),
            self.forced.child_token(),
            self.trackers.clone(),
        )
    }

    /// Runs work to its end, unless the drain is forced first (`None`). A guard is held meanwhile.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let _guard = self.guard();
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.forced() => None,
        }
    }

    fn own(&self) -> TaskTracker {
        self.trackers.first().cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_the_last_guard() {
        let (drain, watch) = Drain::new();
        let worker = watch.clone();
        let work = tokio::spawn(async move {
            let _guard = worker.guard();
            worker.signaled().await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        });
        while watch.own().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!watch.is_signaled());
        assert_eq!(drain.drain(SOON).await, DrainEnd::Finished);
        assert!(work.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_in_time_is_forced() {
        let (drain, watch) = Drain::new();
        let guard = watch.guard();
        let worker = watch.clone();
        let work = tokio::spawn(async move {
            worker.forced().await;
            drop(guard);
        });
        assert_eq!(drain.drain(SOON).await, DrainEnd::Forced { unfinished: 1 });
        work.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_is_drained_alone_and_the_whole_waits_for_its_parts() {
        let (outer, watch) = Drain::new();
        let (inner, inner_watch) = watch.nested();
        assert_eq!(inner.drain(SOON).await, DrainEnd::Finished);
        assert!(inner_watch.is_signaled());
        assert!(!watch.is_signaled());

        let (_other, other_watch) = watch.nested();
        let guard = other_watch.guard();
        let held = tokio::spawn(async move {
            other_watch.signaled().await;
            drop(guard);
        });
        assert_eq!(outer.drain(SOON).await, DrainEnd::Finished);
        held.await.unwrap();
    }

    #[tokio::test]
    async fn an_owner_that_fails_ends_its_workers() {
        let (drain, watch) = Drain::new();
        drop(drain);
        watch.signaled().await;
        watch.forced().await;
    }

    #[tokio::test]
    async fn work_that_is_run_ends_by_itself_or_by_force() {
        let (drain, watch) = Drain::new();
        assert_eq!(watch.run(async { 1 }).await, Some(1));
        drop(drain);
        assert_eq!(watch.run(std::future::pending::<()>()).await, None);
    }
}
