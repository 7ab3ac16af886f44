//! What differs between two versions of a map.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::node::Node;

/// The key, the value before, and the value after. At least one of the values is there.
pub type Change<'m, K, V> = (&'m K, Option<&'m V>, Option<&'m V>);

/// The changes from one version of a map to another, by key. Nodes that both have are not looked into.
pub struct Changes<'m, K, V> {
    old: Ahead<'m, K, V>,
    new: Ahead<'m, K, V>,
}

/// What is still to be seen of one version, the next on top.
struct Ahead<'m, K, V>(Vec<Part<'m, K, V>>);

enum Part<'m, K, V> {
    /// With its height; leaves have none.
    Node(usize, &'m Arc<Node<K, V>>),
    Entries(&'m [(K, V)]),
}

impl<'m, K, V> Changes<'m, K, V> {
    pub(crate) fn between(old: &'m Arc<Node<K, V>>, new: &'m Arc<Node<K, V>>) -> Self {
        let ahead = |root| Ahead(vec![Part::Node(height(root), root)]);
        Self {
            old: ahead(old),
            new: ahead(new),
        }
    }
}

fn height<K, V>(mut node: &Arc<Node<K, V>>) -> usize {
    let mut height = 0;
    while let Node::Branch(children) = &**node
        && let Some(child) = children.first()
    {
        node = &child.node;
        height += 1;
    }
    height
}

impl<'m, K, V> Ahead<'m, K, V> {
    /// The height of the node on top; `None` for entries.
    fn height(&self) -> Option<usize> {
        match self.0.last()? {
            Part::Node(height, _) => Some(*height),
            Part::Entries(_) => None,
        }
    }

    /// Puts what is in the node on top in its place.
    fn open(&mut self) {
        if let Some(Part::Node(height, node)) = self.0.pop_if(|part| matches!(part, Part::Node(..)))
        {
            match &**node {
                Node::Leaf(entries) => self.0.push(Part::Entries(entries)),
                Node::Branch(children) => {
                    let nodes = children.iter().rev();
                    self.0
                        .extend(nodes.map(|child| Part::Node(height - 1, &child.node)));
                }
            }
        }
    }

    fn entries(&mut self) -> Option<&mut &'m [(K, V)]> {
        match self.0.last_mut()? {
            Part::Entries(entries) => Some(entries),
            Part::Node(..) => None,
        }
    }

    fn peek(&self) -> Option<&'m (K, V)> {
        match self.0.last()? {
            Part::Entries(entries) => entries.first(),
            Part::Node(..) => None,
        }
    }

    fn next(&mut self) -> Option<&'m (K, V)> {
        let (first, rest) = self.entries()?.split_first()?;
        *self.entries()? = rest;
        Some(first)
    }

    fn drop_seen(&mut self) {
        while matches!(self.0.last(), Some(Part::Entries([]))) {
            self.0.pop();
        }
    }
}

impl<'m, K: Ord, V: PartialEq> Iterator for Changes<'m, K, V> {
    type Item = Change<'m, K, V>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.old.drop_seen();
            self.new.drop_seen();
            if let (Some(Part::Node(_, old)), Some(Part::Node(_, new))) =
                (self.old.0.last(), self.new.0.last())
                && Arc::ptr_eq(old, new)
            {
                self.old.0.pop();
                self.new.0.pop();
                continue;
            }
            // The higher one is opened until both are at entries, so that shared nodes meet.
            match (self.old.height(), self.new.height()) {
                (None, None) => {}
                (old, new) => {
                    if old >= new {
                        self.old.open();
                    }
                    if new >= old {
                        self.new.open();
                    }
                    continue;
                }
            }
            let (old, new) = (self.old.peek(), self.new.peek());
            let order = match (old, new) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            let old = order.is_le().then(|| self.old.next()).flatten();
            let new = order.is_ge().then(|| self.new.next()).flatten();
            match (old, new) {
                (Some((_, old)), Some((_, new))) if old == new => {}
                (Some((key, old)), Some((_, new))) => return Some((key, Some(old), Some(new))),
                (Some((key, old)), None) => return Some((key, Some(old), None)),
                (None, Some((key, new))) => return Some((key, None, Some(new))),
                (None, None) => return None,
            }
        }
    }
}
