//! A map from names to entries that readers use without a lock.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use arc_swap::ArcSwap;

const SHARDS: usize = 1024;

type Shard<V> = HashMap<Arc<str>, Arc<V>>;

/// Entries by name, spread over many immutable maps that are swapped whole.
///
/// A change copies one shard, that is a 1024th of the entries' pointers, so that one changed
/// cluster among ten thousand costs ten pointer copies and touches no other cluster. There is one
/// writer; readers never wait.
pub(crate) struct Shards<V> {
    hasher: RandomState,
    shards: Box<[ArcSwap<Shard<V>>]>,
}

impl<V> Shards<V> {
    pub(crate) fn new() -> Self {
        let empty = Arc::new(Shard::new());
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| ArcSwap::new(empty.clone())).collect(),
        }
    }

    fn shard(&self, name: &str) -> &ArcSwap<Shard<V>> {
        &self.shards[self.hasher.hash_one(name) as usize % SHARDS]
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<V>> {
        self.shard(name).load().get(name).cloned()
    }

    /// Puts an entry in and gives back the one that it replaces. One writer at a time.
    pub(crate) fn insert(&self, name: &Arc<str>, value: Arc<V>) -> Option<Arc<V>> {
        let shard = self.shard(name);
        let mut next = Shard::clone(&shard.load());
        let old = next.insert(name.clone(), value);
        shard.store(Arc::new(next));
        old
    }

    /// Takes an entry out. One writer at a time.
    pub(crate) fn remove(&self, name: &str) -> Option<Arc<V>> {
        let shard = self.shard(name);
        let mut next = Shard::clone(&shard.load());
        let old = next.remove(name)?;
        shard.store(Arc::new(next));
        Some(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_found_until_it_is_removed_and_a_reader_keeps_what_it_holds() {
        let map = Shards::new();
        for n in 0..5000 {
            assert!(map.insert(&format!("c{n}").into(), Arc::new(n)).is_none());
        }
        let held = map.get("c17").unwrap();
        assert_eq!(
            map.insert(&"c17".into(), Arc::new(99)).as_deref(),
            Some(&17)
        );
        assert_eq!(*held, 17);
        assert_eq!(map.get("c17").as_deref(), Some(&99));
        assert_eq!(map.remove("c17").as_deref(), Some(&99));
        assert!(map.get("c17").is_none());
        assert!(map.remove("c17").is_none());
        assert_eq!(map.get("c4999").as_deref(), Some(&4999));
    }
}
