//! Maps from many entries at once.

use std::sync::Arc;

use crate::OrdMap;
use crate::node::{Child, MAX, Node};

/// Entries of a new node: it has room for some more.
const FILL: usize = MAX * 3 / 4;
/// Where more than this share of the entries is new, the map is built anew.
const FEW: usize = 8;

impl<K: Ord + Clone, V: Clone> OrdMap<K, V> {
    /// Puts entries in, in place of those that have the same key; of several with one key the last one.
    pub fn extend_all(&mut self, mut new: Vec<(K, V)>) {
        if new.is_empty() {
            return;
        }
        if new.len() < self.len.div_ceil(FEW) {
            for (key, value) in new {
                self.insert(key, value);
            }
            return;
        }
        if !new.is_sorted_by(|(a, _), (b, _)| a < b) {
            new.sort_by(|(a, _), (b, _)| a.cmp(b));
            new.dedup_by(|later, kept| {
                let same = later.0 == kept.0;
                if same {
                    std::mem::swap(later, kept);
                }
                same
            });
        }
        let all = if self.is_empty() {
            new
        } else {
            merge(self, new)
        };
        self.len = all.len();
        self.root = Arc::new(of_sorted(all));
    }
}

fn merge<K: Ord + Clone, V: Clone>(old: &OrdMap<K, V>, new: Vec<(K, V)>) -> Vec<(K, V)> {
    let mut all = Vec::with_capacity(old.len + new.len());
    let mut old = old.iter().peekable();
    for (key, value) in new {
        while let Some((key, value)) = old.next_if(|(there, _)| **there < key) {
            all.push((key.clone(), value.clone()));
        }
        old.next_if(|(there, _)| **there == key);
        all.push((key, value));
    }
    all.extend(old.map(|(key, value)| (key.clone(), value.clone())));
    all
}

fn of_sorted<K: Clone, V>(entries: Vec<(K, V)>) -> Node<K, V> {
    if entries.len() <= FILL {
        return Node::Leaf(entries);
    }
    let mut level = parents(entries, |entries| {
        let first = entries.first().map(|(key, _)| key.clone());
        (first, Node::Leaf(entries))
    });
    while level.len() > FILL {
        level = parents(level, |children| {
            let first = children.first().map(|child| child.first.clone());
            (first, Node::Branch(children))
        });
    }
    Node::Branch(level)
}

/// Nodes that share out all of these evenly.
fn parents<T, K, V>(
    all: Vec<T>,
    node: impl Fn(Vec<T>) -> (Option<K>, Node<K, V>),
) -> Vec<Child<K, V>> {
    let (len, count) = (all.len(), all.len().div_ceil(FILL));
    let mut all = all.into_iter();
    let parts = (0..count).map(|n| (n + 1) * len / count - n * len / count);
    let nodes = parts.map(|size| node(all.by_ref().take(size).collect()));
    let children = nodes.filter_map(|(first, node)| {
        let node = Arc::new(node);
        Some(Child {
            first: first?,
            node,
        })
    });
    children.collect()
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for OrdMap<K, V> {
    /// Of several entries with one key the last one counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        map.extend_all(entries.into_iter().collect());
        map
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for OrdMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        self.extend_all(entries.into_iter().collect());
    }
}
