//! How much a peer may send on its watch.

use std::time::Duration;

use crate::discovery::message::Limits;

/// Events a second that go on for ever.
const EVENTS_PER_SECOND: f64 = 1000.0;
/// Bytes a second that go on for ever.
const BYTES_PER_SECOND: f64 = (4 << 20) as f64;

/// Two buckets that fill with time. Their sizes let a peer change its whole list several times at
/// once; what goes beyond for long is a peer that wants to keep us busy.
#[derive(Debug)]
pub(super) struct Allowance {
    events: f64,
    bytes: f64,
    at: Duration,
}

impl Allowance {
    pub fn new(limits: &Limits, now: Duration) -> Self {
        Self {
            events: burst_events(limits),
            bytes: burst_bytes(limits),
            at: now,
        }
    }

    /// True if that was not too much.
    pub fn spend(&mut self, events: usize, bytes: usize, limits: &Limits, now: Duration) -> bool {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = now;
        self.events = (self.events + passed * EVENTS_PER_SECOND).min(burst_events(limits));
        self.bytes = (self.bytes + passed * BYTES_PER_SECOND).min(burst_bytes(limits));
        self.events -= events as f64;
        self.bytes -= bytes as f64;
        self.events >= 0.0 && self.bytes >= 0.0
    }
}

fn burst_events(limits: &Limits) -> f64 {
    (limits.services.max(1000) * 4) as f64
}

fn burst_bytes(limits: &Limits) -> f64 {
    limits.list_bytes.max(limits.event_bytes).saturating_mul(2) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_list_may_change_at_once_but_not_for_ever() {
        let limits = Limits::default();
        let mut allowance = Allowance::new(&limits, Duration::ZERO);
        assert!(allowance.spend(20_000, 20 << 20, &limits, Duration::ZERO));
        let second = |i: u64| Duration::from_secs(i);
        assert!((1..100).all(|i| allowance.spend(900, 1 << 20, &limits, second(i))));
        assert!(!(100..200).all(|i| allowance.spend(5000, 1 << 20, &limits, second(i))));
        assert!(allowance.spend(1, 1, &limits, second(1000)));
        assert!(!(1000..1100).all(|i| allowance.spend(1, 8 << 20, &limits, second(i))));
    }
}
