//! Time as a value.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// By how much two clocks may differ, or one that is read in two places. A time that lies further
/// ahead was told by a clock that was wrong.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(10);

/// Whether `at` may have been told by a clock that is right.
pub fn is_credible(at: Timestamp, now: Timestamp) -> bool {
    at.duration_since(now) <= CLOCK_SKEW
}

/// A point in time as the shell saw it when it called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic, from any fixed start. Intervals are measured with it.
    pub elapsed: Duration,
    /// The wall clock, for statuses.
    pub wall: Timestamp,
}

impl Moment {
    /// From the start of monotonic time and a wall clock at that start; for tests and replays.
    pub fn after(start: Timestamp, elapsed: Duration) -> Self {
        let wall = start.checked_add(elapsed).unwrap_or(Timestamp::MAX);
        Self { elapsed, wall }
    }
}
