//! A rate limit for each key, in bounded memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A key may do this many at once, as when all replicas of a workload start together.
const BURST: u32 = 100;
/// And then one in this time.
const REFILL: Duration = Duration::from_secs(1);
/// Keys that are remembered; one that is forgotten has its full burst again.
const MAX_KEYS: usize = 4096;

/// Token buckets by key. What a bucket lacks is kept as a time: it is full again at `full_at`.
#[derive(Debug)]
pub(super) struct RateLimit<K> {
    full_at: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash + Clone> RateLimit<K> {
    pub(super) fn new() -> Self {
        Self {
            full_at: Mutex::new(HashMap::new()),
        }
    }

    /// Takes one for this key if there is one.
    pub(super) fn allow(&self, key: &K) -> bool {
        let now = Instant::now();
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if full_at.len() >= MAX_KEYS && !full_at.contains_key(key) {
            full_at.retain(|_, at| *at > now);
            if full_at.len() >= MAX_KEYS {
                full_at.clear();
            }
        }
        let at = full_at.entry(key.clone()).or_insert(now);
        let next = (*at).max(now) + REFILL;
        let allowed = next.duration_since(now) <= REFILL * BURST;
        if allowed {
            *at = next;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_has_a_burst_and_then_one_in_a_second() {
        let limit = RateLimit::new();
        for _ in 0..BURST {
            assert!(limit.allow(&"a"));
        }
        assert!(!limit.allow(&"a"));
        assert!(limit.allow(&"b"));
        tokio::time::advance(REFILL).await;
        assert!(limit.allow(&"a"));
        assert!(!limit.allow(&"a"));
    }

    #[tokio::test(start_paused = true)]
    async fn many_keys_do_not_grow_the_memory() {
        let limit = RateLimit::new();
        for key in 0..3 * MAX_KEYS {
            assert!(limit.allow(&key));
        }
        assert!(limit.full_at.lock().unwrap().len() <= MAX_KEYS);
    }
}
