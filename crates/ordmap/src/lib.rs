//! A sorted map whose versions share what did not change.
//!
//! It is a B+ tree behind shared pointers. A copy costs one pointer; a change copies the path to its
//! entry; what differs between two versions is found without looking at what they share. Sorted
//! entries become a map at the cost of moving them, which the maps of libraries do not offer: a plan
//! from nothing fills maps with tens of thousands of entries.

mod build;
mod changes;
mod iter;
mod node;

use std::borrow::Borrow;
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

pub use changes::{Change, Changes};
pub use iter::{Iter, Keys, Values};
#[cfg(test)]
mod tests;

use node::Node;

/// A sorted map. See the crate's documentation.
pub struct OrdMap<K, V> {
    root: Arc<Node<K, V>>,
    len: usize,
}

impl<K, V> OrdMap<K, V> {
    pub fn new() -> Self {
        Self {
            root: Arc::new(Node::Leaf(Vec::new())),
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether both are the same version. If not, they may still be equal.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.root, &other.root)
    }

    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// All entries, by key.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter::all(&self.root)
    }

    pub fn keys(&self) -> Keys<'_, K, V> {
        Keys(self.iter())
    }

    pub fn values(&self) -> Values<'_, K, V> {
        Values(self.iter())
    }
}

impl<K: Ord, V> OrdMap<K, V> {
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.get_key_value(key).map(|(_, value)| value)
    }

    /// With the key as the map has it.
    pub fn get_key_value<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        self.root.get(key).map(|(key, value)| (key, value))
    }

    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// The entries whose key is this one or a larger one.
    pub fn range_from<Q: Ord + ?Sized>(&self, first: &Q) -> Iter<'_, K, V>
    where
        K: Borrow<Q>,
    {
        Iter::from(&self.root, first)
    }

    /// What differs between this version and a newer one, by key. Costs what they do not share.
    pub fn changes<'m>(&'m self, new: &'m Self) -> Changes<'m, K, V>
    where
        V: PartialEq,
    {
        Changes::between(&self.root, &new.root)
    }
}

impl<K: Ord + Clone, V: Clone> OrdMap<K, V> {
    /// Returns the value that the key had before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let before = Node::insert_at_root(&mut self.root, key, value);
        self.len += usize::from(before.is_none());
        before
    }

    /// Returns the value that the key had. Without one, nothing is copied.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let removed = Node::remove_at_root(&mut self.root, key)?;
        self.len -= 1;
        Some(removed)
    }

    /// To change a value in place. Without one, nothing is copied.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.contains_key(key)
            .then(|| Node::get_mut(&mut self.root, key))?
    }
}

impl<K, V> Clone for OrdMap<K, V> {
    fn clone(&self) -> Self {
        Self {
            root: self.root.clone(),
            len: self.len,
        }
    }
}

impl<K, V> Default for OrdMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord, V: PartialEq> PartialEq for OrdMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.changes(other).next().is_none()
    }
}

impl<K: Ord, V: Eq> Eq for OrdMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for OrdMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// # Panics
///
/// Without an entry of this key, as the maps of the standard library do.
impl<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized> Index<&Q> for OrdMap<K, V> {
    type Output = V;

    #[expect(clippy::expect_used, reason = "that is what an index says")]
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("an entry of this key")
    }
}

impl<'m, K, V> IntoIterator for &'m OrdMap<K, V> {
    type Item = (&'m K, &'m V);
    type IntoIter = Iter<'m, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
