//! Time for the discovery machines.

use std::time::Instant;

use jiff::Timestamp;
use meshfed_federation::moment::Moment;

/// The wall clock and the monotonic clock, read together.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    pub fn now(&self) -> Moment {
        Moment {
            elapsed: self.0.elapsed(),
            wall: Timestamp::now(),
        }
    }
}
