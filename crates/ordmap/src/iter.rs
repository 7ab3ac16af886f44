//! Going through a map in its order.

use std::borrow::Borrow;
use std::slice;

use crate::node::{Child, Node, child_of, position};

/// The entries of a map from some key on, by key.
pub struct Iter<'m, K, V> {
    /// What is still to be seen of the branches above, the outermost first.
    branches: Vec<slice::Iter<'m, Child<K, V>>>,
    leaf: slice::Iter<'m, (K, V)>,
}

impl<'m, K, V> Iter<'m, K, V> {
    pub(crate) fn all(root: &'m Node<K, V>) -> Self {
        let mut all = Self {
            branches: Vec::new(),
            leaf: [].iter(),
        };
        all.descend(root);
        all
    }

    pub(crate) fn from<Q: Ord + ?Sized>(root: &'m Node<K, V>, first: &Q) -> Self
    where
        K: Ord + Borrow<Q>,
    {
        let mut branches = Vec::new();
        let mut node = root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    let (Ok(at) | Err(at)) = position(entries, first);
                    let leaf = entries.get(at..).unwrap_or_default().iter();
                    return Self { branches, leaf };
                }
                Node::Branch(children) => {
                    let from = children.get(child_of(children, first)..);
                    let mut rest = from.unwrap_or_default().iter();
                    let Some(child) = rest.next() else {
                        let leaf = [].iter();
                        return Self { branches, leaf };
                    };
                    branches.push(rest);
                    node = &child.node;
                }
            }
        }
    }

    fn descend(&mut self, mut node: &'m Node<K, V>) {
        loop {
            match node {
                Node::Leaf(entries) => {
                    self.leaf = entries.iter();
                    return;
                }
                Node::Branch(children) => {
                    let mut rest = children.iter();
                    let Some(child) = rest.next() else { return };
                    self.branches.push(rest);
                    node = &child.node;
                }
            }
        }
    }
}

impl<'m, K, V> Iterator for Iter<'m, K, V> {
    type Item = (&'m K, &'m V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            let next = self.branches.last_mut()?.next();
            match next {
                Some(child) => self.descend(&child.node),
                None => {
                    self.branches.pop();
                }
            }
        }
    }
}

impl<K, V> Clone for Iter<'_, K, V> {
    fn clone(&self) -> Self {
        Self {
            branches: self.branches.clone(),
            leaf: self.leaf.clone(),
        }
    }
}

/// The keys of a map, in their order.
pub struct Keys<'m, K, V>(pub(crate) Iter<'m, K, V>);

impl<'m, K, V> Iterator for Keys<'m, K, V> {
    type Item = &'m K;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, _)| key)
    }
}

/// The values of a map, in the order of their keys.
pub struct Values<'m, K, V>(pub(crate) Iter<'m, K, V>);

impl<'m, K, V> Iterator for Values<'m, K, V> {
    type Item = &'m V;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(_, value)| value)
    }
}
