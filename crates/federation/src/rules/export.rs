//! The rules of an ExportedServiceSet.

use meshfed_api::ExportedServiceSetSpec;
use meshfed_api::exported::ExportRule;
use meshfed_api::selector::{LABEL_SELECTOR, NAME_SELECTOR};

use super::index::{Here, Index};
use super::pattern::{ByLabels, ByName, Labels, Pattern};
use super::{Explained, Miss, RuleError, RuleFault, Tried};
use crate::names::{Label, ServiceKey, clip};

/// The rules of one set, as far as they can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportRules {
    rules: Vec<Selector>,
    index: Index,
    broken: Option<RuleError>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Selector {
    Name(ByName),
    Labels(ByLabels),
}

/// What the rules say about one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportDecision {
    /// Exported under this name and namespace.
    Exported { rule: usize, exported: ServiceKey },
    /// No rule matches.
    NoRule,
    /// No rule matches before the one that cannot be read.
    Broken { rule: usize },
}

impl ExportRules {
    pub fn parse(spec: &ExportedServiceSetSpec) -> Self {
        let mut rules = Vec::with_capacity(spec.export_rules.len());
        let mut broken = None;
        for (i, rule) in spec.export_rules.iter().enumerate() {
            match Selector::parse(rule, &format!("spec.exportRules[{i}]")) {
                Ok(selector) => rules.push(selector),
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        let patterns: Vec<_> = rules.iter().map(Selector::patterns).collect();
        Self {
            index: Index::new(&patterns),
            rules,
            broken,
        }
    }

    /// What is wrong with the first rule that cannot be read.
    pub fn broken(&self) -> Option<&RuleError> {
        self.broken.as_ref()
    }

    pub fn decide(&self, key: &ServiceKey, labels: &Labels) -> ExportDecision {
        let here = self.in_namespace(&key.namespace);
        match here.pick(key, labels) {
            Some((rule, exported)) => ExportDecision::Exported { rule, exported },
            None => self.none(),
        }
    }

    /// The rules that may match services of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &Label) -> InNamespace<'_> {
        InNamespace {
            rules: &self.rules,
            here: self.index.in_namespace(namespace),
        }
    }

    /// When no rule matches.
    fn none(&self) -> ExportDecision {
        match self.broken {
            Some(_) => ExportDecision::Broken {
                rule: self.rules.len(),
            },
            None => ExportDecision::NoRule,
        }
    }

    pub fn explain(&self, key: &ServiceKey, labels: &Labels) -> Explained<'_, ExportDecision> {
        let mut tried = Vec::new();
        let decision = self.decide_noting(key, labels, |miss| tried.push(miss));
        Explained { decision, tried }
    }

    fn decide_noting<'r>(
        &'r self,
        key: &ServiceKey,
        labels: &Labels,
        mut missed: impl FnMut(Tried<'r>),
    ) -> ExportDecision {
        for (rule, selector) in self.rules.iter().enumerate() {
            match selector.check(key, labels) {
                Ok(()) => {
                    let exported = selector.rename(key);
                    return ExportDecision::Exported { rule, exported };
                }
                Err(miss) => missed(Tried { rule, miss }),
            }
        }
        self.none()
    }
}

/// The rules of a set, for the services of one namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InNamespace<'r> {
    rules: &'r [Selector],
    here: &'r Here,
}

impl InNamespace<'_> {
    /// Whether no service there is picked, whatever its name and labels.
    pub fn is_empty(&self) -> bool {
        self.here.is_empty()
    }

    /// The index of the rule that picks a service, and the name that it gives it.
    pub fn pick(&self, key: &ServiceKey, labels: &Labels) -> Option<(usize, ServiceKey)> {
        let mut candidates = self.here.rules_for(&key.name).iter();
        candidates.find_map(|rule| {
            let selector = self.rules.get(*rule)?;
            selector.check(key, labels).ok()?;
            Some((*rule, selector.rename(key)))
        })
    }
}

impl Selector {
    fn parse(rule: &ExportRule, path: &str) -> Result<Self, RuleError> {
        match rule.type_.as_str() {
            NAME_SELECTOR => {
                let path = format!("{path}.nameSelector");
                let selector = rule.name_selector.as_ref();
                let selector = selector.ok_or_else(|| RuleFault::Missing.at(&path))?;
                ByName::parse(selector, &path).map(Self::Name)
            }
            LABEL_SELECTOR => {
                let path = format!("{path}.labelSelector");
                let selector = rule.label_selector.as_ref();
                let selector = selector.ok_or_else(|| RuleFault::Missing.at(&path))?;
                ByLabels::parse(selector, &path).map(Self::Labels)
            }
            other => {
                let fault = RuleFault::UnknownType {
                    given: clip(other),
                    known: "NameSelector or LabelSelector",
                };
                Err(fault.at(format!("{path}.type")))
            }
        }
    }

    /// For namespace and name.
    fn patterns(&self) -> (&Pattern, &Pattern) {
        match self {
            Self::Name(by_name) => (&by_name.namespace, &by_name.name),
            Self::Labels(by_labels) => (&by_labels.namespace, &Pattern::Any),
        }
    }

    fn check(&self, key: &ServiceKey, labels: &Labels) -> Result<(), Miss<'_>> {
        match self {
            Self::Name(by_name) => by_name.check(key),
            Self::Labels(by_labels) => by_labels.check(key, labels),
        }
    }

    fn rename(&self, key: &ServiceKey) -> ServiceKey {
        match self {
            Self::Name(by_name) => by_name.alias.apply(key),
            Self::Labels(by_labels) => by_labels.rename(key),
        }
    }
}
