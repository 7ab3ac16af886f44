//! Numbers for load balancing and jitter. Not for secrets.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

thread_local! {
    static STATE: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish());
}

/// The next number of this thread's splitmix64 sequence, seeded from the process's hash keys.
pub(crate) fn next() -> u64 {
    STATE.with(|state| {
        let mut z = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(z);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// An index below `len`, which must not be zero.
pub(crate) fn below(len: usize) -> usize {
    below_u64(len as u64) as usize
}

/// A number below `end`, which must not be zero.
pub(crate) fn below_u64(end: u64) -> u64 {
    // The high half of a product spreads better than a remainder, and needs no division.
    ((u128::from(next()) * u128::from(end)) >> 64) as u64
}

/// Between half of `base` and all of it.
pub(crate) fn jittered(base: Duration) -> Duration {
    let thousandths = 500 + below(501) as u32;
    base * thousandths / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_stays_below_the_length_and_reaches_every_place() {
        let mut seen = [false; 7];
        for _ in 0..1000 {
            seen[below(7)] = true;
        }
        assert!(seen.iter().all(|s| *s));
    }

    #[test]
    fn jitter_stays_between_half_and_whole() {
        for _ in 0..1000 {
            let wait = jittered(Duration::from_secs(1));
            assert!(wait >= Duration::from_millis(500) && wait <= Duration::from_secs(1));
        }
    }
}
