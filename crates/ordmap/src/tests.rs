use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use crate::OrdMap;
use crate::node::{MAX, MIN, Node};

/// Checks the shape of the tree and returns its height.
fn check(node: &Node<u16, u32>, is_root: bool, from: Option<u16>, below: Option<u16>) -> usize {
    let in_bounds = |key: u16| {
        assert!(from.is_none_or(|from| from <= key), "{key} is too far left");
        assert!(
            below.is_none_or(|below| key < below),
            "{key} is too far right"
        );
    };
    match node {
        Node::Leaf(entries) => {
            assert!(entries.len() <= MAX && (is_root || entries.len() >= MIN));
            assert!(entries.is_sorted_by(|(a, _), (b, _)| a < b));
            entries.iter().for_each(|(key, _)| in_bounds(*key));
            0
        }
        Node::Branch(children) => {
            let least = if is_root { 2 } else { MIN };
            assert!((least..=MAX).contains(&children.len()));
            let heights = children.iter().enumerate().map(|(at, child)| {
                let from = if at == 0 { from } else { Some(child.first) };
                let next = children.get(at + 1).map(|next| next.first);
                check(&child.node, false, from, next.or(below))
            });
            let heights: Vec<usize> = heights.collect();
            assert!(heights.iter().all(|height| *height == heights[0]));
            heights[0] + 1
        }
    }
}

fn assert_same(map: &OrdMap<u16, u32>, model: &BTreeMap<u16, u32>) {
    check(&map.root, true, None, None);
    assert_eq!(map.len(), model.len());
    assert_eq!(map.is_empty(), model.is_empty());
    assert!(map.iter().eq(model.iter()));
    assert!(map.keys().eq(model.keys()));
    assert!(map.values().eq(model.values()));
    for key in (0..=KEYS).step_by(7) {
        assert_eq!(map.get(&key), model.get(&key));
        assert_eq!(map.contains_key(&key), model.contains_key(&key));
        assert!(map.range_from(&key).eq(model.range(key..)));
    }
}

fn changes(old: &OrdMap<u16, u32>, new: &OrdMap<u16, u32>) -> Vec<(u16, Option<u32>, Option<u32>)> {
    let changes = old.changes(new);
    changes
        .map(|(key, old, new)| (*key, old.copied(), new.copied()))
        .collect()
}

fn changes_of_models(
    old: &BTreeMap<u16, u32>,
    new: &BTreeMap<u16, u32>,
) -> Vec<(u16, Option<u32>, Option<u32>)> {
    let all: BTreeMap<u16, ()> = old.keys().chain(new.keys()).map(|key| (*key, ())).collect();
    let both = all
        .into_keys()
        .map(|key| (key, old.get(&key).copied(), new.get(&key).copied()));
    both.filter(|(_, old, new)| old != new).collect()
}

const KEYS: u16 = 3000;

#[derive(Debug, Clone)]
enum Step {
    Insert(u16, u32),
    Remove(u16),
    /// A stretch of keys goes.
    Clear(u16, u16),
    Change(u16, u32),
    Extend(Vec<(u16, u32)>),
    /// To which the versions after it are compared.
    Keep,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..KEYS;
    let value = || 0..4_u32;
    prop_oneof![
        8 => (key(), value()).prop_map(|(key, value)| Step::Insert(key, value)),
        8 => key().prop_map(Step::Remove),
        2 => (key(), 0..KEYS / 2).prop_map(|(key, len)| Step::Clear(key, len)),
        4 => (key(), value()).prop_map(|(key, value)| Step::Change(key, value)),
        2 => prop::collection::vec((key(), value()), 0..40).prop_map(Step::Extend),
        1 => prop::collection::vec((key(), value()), 0..3000).prop_map(Step::Extend),
        4 => Just(Step::Keep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    /// Every version stays what it was, and says what differs from any other.
    #[test]
    fn a_map_is_a_map(
        first in prop::collection::vec((0..KEYS, 0..4_u32), 0..4000),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut map: OrdMap<u16, u32> = first.iter().copied().collect();
        let mut model: BTreeMap<u16, u32> = first.into_iter().collect();
        let mut kept = vec![(map.clone(), model.clone())];
        for step in steps {
            match step {
                Step::Insert(key, value) => {
                    prop_assert_eq!(map.insert(key, value), model.insert(key, value));
                }
                Step::Remove(key) => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                Step::Clear(from, len) => {
                    for key in from..from + len {
                        prop_assert_eq!(map.remove(&key), model.remove(&key));
                    }
                }
                Step::Change(key, value) => {
                    let (here, there) = (map.get_mut(&key), model.get_mut(&key));
                    prop_assert_eq!(here.as_deref(), there.as_deref());
                    if let (Some(here), Some(there)) = (here, there) {
                        (*here, *there) = (value, value);
                    }
                }
                Step::Extend(entries) => {
                    map.extend(entries.iter().copied());
                    model.extend(entries);
                }
                Step::Keep => kept.push((map.clone(), model.clone())),
            }
        }
        assert_same(&map, &model);
        for (other, its_model) in &kept {
            assert_same(other, its_model);
            prop_assert_eq!(changes(other, &map), changes_of_models(its_model, &model));
            prop_assert_eq!(changes(&map, other), changes_of_models(&model, its_model));
            prop_assert_eq!(*other == map, *its_model == model);
        }
    }
}

#[test]
fn entries_one_by_one_in_order_and_away_again() {
    let mut map = OrdMap::new();
    let mut model = BTreeMap::new();
    for key in 0..KEYS {
        map.insert(key, 0);
        model.insert(key, 0);
    }
    assert_same(&map, &model);
    for key in (0..KEYS).rev().filter(|key| key % 64 != 0) {
        map.remove(&key);
        model.remove(&key);
    }
    assert_same(&map, &model);
}

/// Counts how often values are compared.
#[derive(Debug, Clone)]
struct Counted(Arc<std::sync::atomic::AtomicUsize>);

impl PartialEq for Counted {
    fn eq(&self, _: &Self) -> bool {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        true
    }
}

#[test]
fn nothing_more_is_no_new_version() {
    for keys in [0, KEYS] {
        let old: OrdMap<u16, u32> = (0..keys).map(|key| (key, 0)).collect();
        let mut new = old.clone();
        new.extend_all(Vec::new());
        assert!(new.ptr_eq(&old));
    }
}

#[test]
fn what_versions_share_is_not_looked_at() {
    let compared = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = || Counted(compared.clone());
    let old: OrdMap<u16, Counted> = (0..KEYS).map(|key| (key * 2, counted())).collect();
    let mut new = old.clone();
    assert!(old.ptr_eq(&new));
    assert!(new.remove(&1).is_none() && new.get_mut(&1).is_none());
    assert!(old.ptr_eq(&new), "nothing was there to change");
    new.insert(1001, counted());
    new.remove(&2000);
    new.get_mut(&4000);
    assert!(!old.ptr_eq(&new));
    assert_eq!(old.changes(&new).count(), 2);
    let compared = compared.load(std::sync::atomic::Ordering::Relaxed);
    assert!(compared <= 4 * MAX, "{compared} of {} compared", old.len());
}
