//! Finds the rules that may match a service, by its namespace and name.

use std::collections::{BTreeSet, HashMap};

use super::pattern::Pattern;
use crate::names::Label;

/// For each namespace and name that some rule fixes, the rules that fix it or leave it open, in
/// order. The first of them that matches is the first of all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index(Level<Here>);

/// The rules for the services of one namespace.
pub(super) type Here = Level<Vec<usize>>;

/// What is there for labels that rules fix, and for all others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Level<T> {
    fixed: HashMap<Label, T>,
    open: T,
}

impl<T> Level<T> {
    fn get(&self, label: &Label) -> &T {
        self.fixed.get(label).unwrap_or(&self.open)
    }

    /// `make` makes what is there for a label, or for those that no rule fixes.
    fn new(patterns: &[&Pattern], make: impl Fn(Option<&Label>) -> T) -> Self {
        let fixed: BTreeSet<&Label> = patterns.iter().filter_map(|p| p.fixed()).collect();
        Self {
            fixed: fixed
                .into_iter()
                .map(|label| (label.clone(), make(Some(label))))
                .collect(),
            open: make(None),
        }
    }
}

impl Index {
    /// The patterns for namespace and name of each rule, in the order of the rules.
    pub fn new(rules: &[(&Pattern, &Pattern)]) -> Self {
        let may_match = |pattern: &Pattern, label: Option<&Label>| match pattern.fixed() {
            None => true,
            Some(wanted) => label == Some(wanted),
        };
        let namespaces: Vec<&Pattern> = rules.iter().map(|(namespace, _)| *namespace).collect();
        Self(Level::new(&namespaces, |namespace| {
            let there: Vec<(usize, &Pattern)> = rules
                .iter()
                .enumerate()
                .filter(|(_, (pattern, _))| may_match(pattern, namespace))
                .map(|(rule, (_, name))| (rule, *name))
                .collect();
            let names: Vec<&Pattern> = there.iter().map(|(_, name)| *name).collect();
            Level::new(&names, |name| {
                let matching = there.iter().filter(|(_, pattern)| may_match(pattern, name));
                matching.map(|(rule, _)| *rule).collect()
            })
        }))
    }

    pub fn in_namespace(&self, namespace: &Label) -> &Here {
        self.0.get(namespace)
    }
}

impl Here {
    /// Indices of the rules that may match.
    pub fn rules_for(&self, name: &Label) -> &[usize] {
        self.get(name)
    }

    /// Whether there is no rule for any name.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.fixed.is_empty()
    }
}
