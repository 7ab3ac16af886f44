//! The nodes of the tree.

use std::borrow::Borrow;
use std::sync::Arc;

/// Most entries of a leaf, and children of a branch. A change copies one node of each level.
pub(crate) const MAX: usize = 32;
/// Fewest, but for the root. A node that is smaller joins a neighbour.
pub(crate) const MIN: usize = MAX / 4;

#[derive(Clone)]
pub(crate) enum Node<K, V> {
    /// Sorted. Empty only if it is the root.
    Leaf(Vec<(K, V)>),
    /// All of the same height; the root has at least two.
    Branch(Vec<Child<K, V>>),
}

pub(crate) struct Child<K, V> {
    /// No key in the node is smaller, and all keys of nodes before it are. The first child of a branch is
    /// never judged by it.
    pub first: K,
    pub node: Arc<Node<K, V>>,
}

impl<K: Clone, V> Clone for Child<K, V> {
    fn clone(&self) -> Self {
        Self {
            first: self.first.clone(),
            node: self.node.clone(),
        }
    }
}

/// What became of a node that an entry was put into.
enum Inserted<K, V> {
    /// With the value that was there.
    Fits(Option<V>),
    /// There is one entry more, and this is now to the right of the node.
    Split(Child<K, V>),
}

/// Index of the child in which a key is, or would be.
pub(crate) fn child_of<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized>(
    children: &[Child<K, V>],
    key: &Q,
) -> usize {
    let after_first = children.get(1..).unwrap_or_default();
    after_first.partition_point(|child| child.first.borrow() <= key)
}

pub(crate) fn position<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized>(
    entries: &[(K, V)],
    key: &Q,
) -> Result<usize, usize> {
    entries.binary_search_by(|(there, _)| there.borrow().cmp(key))
}

impl<K, V> Node<K, V> {
    fn size(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Branch(children) => children.len(),
        }
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&(K, V)>
    where
        K: Ord + Borrow<Q>,
    {
        let mut node = self;
        loop {
            match node {
                Self::Leaf(entries) => return entries.get(position(entries, key).ok()?),
                Self::Branch(children) => node = &children.get(child_of(children, key))?.node,
            }
        }
    }
}

impl<K: Ord + Clone, V: Clone> Node<K, V> {
    /// A node of our own. A copy has room for one more, as mostly one is put into it.
    fn own(this: &mut Arc<Self>) -> &mut Self {
        if Arc::get_mut(this).is_none() {
            fn roomy<T: Clone>(all: &[T]) -> Vec<T> {
                let mut copy = Vec::with_capacity(all.len() + 1);
                copy.extend_from_slice(all);
                copy
            }
            *this = Arc::new(match &**this {
                Self::Leaf(entries) => Self::Leaf(roomy(entries)),
                Self::Branch(children) => Self::Branch(roomy(children)),
            });
        }
        Arc::make_mut(this)
    }

    pub fn insert_at_root(root: &mut Arc<Self>, key: K, value: V) -> Option<V> {
        match Self::insert(root, key, value) {
            Inserted::Fits(before) => before,
            Inserted::Split(right) => {
                let first = right.first.clone();
                let node = root.clone();
                *root = Arc::new(Self::Branch(vec![Child { first, node }, right]));
                None
            }
        }
    }

    fn insert(this: &mut Arc<Self>, key: K, value: V) -> Inserted<K, V> {
        let node = Self::own(this);
        match node {
            Self::Leaf(entries) => match position(entries, &key) {
                Ok(at) => {
                    let there = entries.get_mut(at);
                    Inserted::Fits(there.map(|(_, there)| std::mem::replace(there, value)))
                }
                Err(at) => {
                    entries.insert(at, (key, value));
                    node.split()
                }
            },
            Self::Branch(children) => {
                let at = child_of(children, &key);
                let Some(inside) = children.get_mut(at) else {
                    return Inserted::Fits(None);
                };
                match Self::insert(&mut inside.node, key, value) {
                    Inserted::Fits(before) => Inserted::Fits(before),
                    Inserted::Split(right) => {
                        children.insert(at + 1, right);
                        node.split()
                    }
                }
            }
        }
    }

    /// Takes the right half out of a node that is too large.
    fn split(&mut self) -> Inserted<K, V> {
        let (first, node) = match self {
            Self::Leaf(entries) => {
                let right = split(entries);
                let first = right.first().map(|(key, _)| key.clone());
                (first, Self::Leaf(right))
            }
            Self::Branch(children) => {
                let right = split(children);
                let first = right.first().map(|child| child.first.clone());
                (first, Self::Branch(right))
            }
        };
        first.map_or(Inserted::Fits(None), |first| {
            let node = Arc::new(node);
            Inserted::Split(Child { first, node })
        })
    }

    pub fn remove_at_root<Q: Ord + ?Sized>(root: &mut Arc<Self>, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        root.get(key)?;
        let removed = Self::remove(root, key);
        while let Self::Branch(children) = &**root
            && let [only] = children.as_slice()
        {
            let only = only.node.clone();
            *root = only;
        }
        removed
    }

    /// Of a key that is there.
    fn remove<Q: Ord + ?Sized>(this: &mut Arc<Self>, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        match Self::own(this) {
            Self::Leaf(entries) => {
                let at = position(entries, key).ok()?;
                Some(entries.remove(at).1)
            }
            Self::Branch(children) => {
                let at = child_of(children, key);
                let inside = children.get_mut(at)?;
                let removed = Self::remove(&mut inside.node, key);
                if inside.node.size() < MIN {
                    join(children, at);
                }
                removed
            }
        }
    }

    pub fn get_mut<'m, Q: Ord + ?Sized>(this: &'m mut Arc<Self>, key: &Q) -> Option<&'m mut V>
    where
        K: Borrow<Q>,
    {
        match Self::own(this) {
            Self::Leaf(entries) => {
                let at = position(entries, key).ok()?;
                entries.get_mut(at).map(|(_, value)| value)
            }
            Self::Branch(children) => {
                let at = child_of(children, key);
                Self::get_mut(&mut children.get_mut(at)?.node, key)
            }
        }
    }

    /// Moves everything from a node that comes after this one, of the same height.
    fn append(&mut self, first: K, next: Self) {
        match (self, next) {
            (Self::Leaf(entries), Self::Leaf(next)) => entries.extend(next),
            (Self::Branch(children), Self::Branch(mut next)) => {
                // It is the first no longer, so that it will be judged by its key.
                if let Some(child) = next.first_mut() {
                    child.first = first;
                }
                children.extend(next);
            }
            (Self::Leaf(_), Self::Branch(_)) | (Self::Branch(_), Self::Leaf(_)) => {
                debug_assert!(false, "neighbours have one height");
            }
        }
    }
}

/// The right half of what is too large, else nothing.
fn split<T>(all: &mut Vec<T>) -> Vec<T> {
    let half = if all.len() > MAX {
        all.len() / 2
    } else {
        all.len()
    };
    all.split_off(half)
}

/// Joins the child with a neighbour. If that is too much for one node, they share it evenly.
fn join<K: Ord + Clone, V: Clone>(children: &mut Vec<Child<K, V>>, at: usize) {
    let left = at.saturating_sub(1);
    if left + 1 == children.len() {
        return;
    }
    let right = children.remove(left + 1);
    let Some(child) = children.get_mut(left) else {
        return;
    };
    let joined = Node::own(&mut child.node);
    joined.append(right.first, Arc::unwrap_or_clone(right.node));
    if let Inserted::Split(right) = joined.split() {
        children.insert(left + 1, right);
    }
}
