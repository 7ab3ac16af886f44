//! How long to wait before the watch is opened again.

use std::time::Duration;

/// The first delays on a new way, doubled each time: it leads through gateways that are only just told
/// of it.
const SOON: Duration = Duration::from_millis(20);
const SOON_TRIES: u32 = 4;
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);
const FACTOR: f64 = 1.5;
/// Each delay is spread over this part of itself to both sides.
const SPREAD: f64 = 0.5;

/// Exponential backoff with jitter from a seed.
#[derive(Debug)]
pub(super) struct Backoff {
    interval: Duration,
    /// How many of the first delays are left.
    soon: u32,
    random: u64,
}

impl Backoff {
    pub fn new(seed: u64) -> Self {
        Self {
            interval: FIRST,
            soon: SOON_TRIES,
            random: seed,
        }
    }

    pub fn next_delay(&mut self) -> Duration {
        let spread = 1.0 - SPREAD + 2.0 * SPREAD * self.uniform();
        if self.soon > 0 {
            let delay = SOON * 2_u32.pow(SOON_TRIES - self.soon);
            self.soon -= 1;
            return delay.mul_f64(spread);
        }
        let delay = self.interval.mul_f64(spread);
        self.interval = self.interval.mul_f64(FACTOR).min(LONGEST);
        delay
    }

    /// The way is a good one.
    pub fn reset(&mut self) {
        self.interval = FIRST;
        self.soon = 0;
    }

    /// The way leads to the peer.
    pub fn arrived(&mut self) {
        self.soon = 0;
    }

    /// The way is a new one.
    pub fn begin(&mut self) {
        self.interval = FIRST;
        self.soon = SOON_TRIES;
    }

    /// From 0 to 1, by splitmix64: a counter and a mix of its bits. Good enough to keep peers from
    /// dialling in step.
    fn uniform(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_with_jitter_on_both_sides_and_start_anew_after_a_reset() {
        let mut backoff = Backoff::new(7);
        let soon: Duration = (0..4).map(|_| backoff.next_delay()).sum();
        assert!((150..=450).contains(&soon.as_millis()), "{soon:?}");
        let mut middle = 0.5_f64;
        let (mut below, mut above) = (0, 0);
        for _ in 0..40 {
            let delay = backoff.next_delay().as_secs_f64();
            assert!(delay >= middle * 0.5 && delay <= middle * 1.5, "{delay}");
            if delay < middle {
                below += 1
            } else {
                above += 1
            }
            middle = (middle * 1.5).min(60.0);
        }
        assert!(below > 5 && above > 5);
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(750));
        assert_ne!(Backoff::new(1).next_delay(), Backoff::new(2).next_delay());
    }
}
