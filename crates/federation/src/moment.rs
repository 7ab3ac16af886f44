//! Time as a value.

use std::time::Duration;

use jiff::Timestamp;

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
