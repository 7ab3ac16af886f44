//! The rules of an ExportedServiceSet.

use meshfed_api::ExportedServiceSetSpec;
use meshfed_api::exported::ExportRule;
use meshfed_api::selector::{LABEL_SELECTOR, NAME_SELECTOR};

use super::pattern::{ByLabels, ByName, Labels};
use super::{Explained, Miss, RuleError, RuleFault, Tried};
use crate::names::{ServiceKey, clip};

/// The rules of one set, as far as they can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportRules {
    rules: Vec<Selector>,
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
        for (i, rule) in spec.export_rules.iter().enumerate() {
            match Selector::parse(rule, &format!("spec.exportRules[{i}]")) {
                Ok(selector) => rules.push(selector),
                Err(error) => {
                    return Self {
                        rules,
                        broken: Some(error),
                    };
                }
            }
        }
        Self {
            rules,
            broken: None,
        }
    }

    /// What is wrong with the first rule that cannot be read.
    pub fn broken(&self) -> Option<&RuleError> {
        self.broken.as_ref()
    }

    pub fn decide(&self, key: &ServiceKey, labels: &Labels) -> ExportDecision {
        self.decide_noting(key, labels, |_| {})
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
        match self.broken {
            Some(_) => ExportDecision::Broken {
                rule: self.rules.len(),
            },
            None => ExportDecision::NoRule,
        }
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
