//! What a rule compares a service with, and what it renames it to.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use meshfed_api::selector;

use super::{RuleError, RuleFault};
use crate::names::{Label, ServiceKey};

/// The labels of a service.
pub(super) type Labels = BTreeMap<String, String>;

/// Matches one label, or any where the rule says nothing or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pattern {
    Any,
    Exactly(Label),
}

impl Pattern {
    /// The only label that it matches.
    pub(super) fn fixed(&self) -> Option<&Label> {
        match self {
            Self::Any => None,
            Self::Exactly(label) => Some(label),
        }
    }

    pub(super) fn parse(text: Option<&str>, path: &str) -> Result<Self, RuleError> {
        Ok(match fixed(text, path)? {
            Some(label) => Self::Exactly(label),
            None => Self::Any,
        })
    }
}

/// The name and namespace that take the place of a service's own, where given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Alias {
    pub namespace: Option<Label>,
    pub name: Option<Label>,
}

impl Alias {
    pub fn apply(&self, key: &ServiceKey) -> ServiceKey {
        ServiceKey {
            namespace: self.namespace.as_ref().unwrap_or(&key.namespace).clone(),
            name: self.name.as_ref().unwrap_or(&key.name).clone(),
        }
    }

    fn parse(alias: Option<&selector::ServiceKey>, path: &str) -> Result<Self, RuleError> {
        let Some(alias) = alias else {
            return Ok(Self::default());
        };
        Ok(Self {
            namespace: fixed(alias.namespace.as_deref(), &format!("{path}.namespace"))?,
            name: fixed(alias.name.as_deref(), &format!("{path}.name"))?,
        })
    }
}

/// The label that is written, or `None` where missing, empty and `*` leave it open.
fn fixed(text: Option<&str>, path: &str) -> Result<Option<Label>, RuleError> {
    match text {
        None | Some("" | "*") => Ok(None),
        Some(text) => match text.parse() {
            Ok(label) => Ok(Some(label)),
            Err(error) => Err(RuleFault::from(error).at(path)),
        },
    }
}

/// Why a rule does not match a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss<'r> {
    Namespace { wanted: &'r Label },
    Name { wanted: &'r Label },
    Label(&'r LabelRequirement),
}

impl fmt::Display for Miss<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace { wanted } => write!(f, "its namespace is not {wanted}"),
            Self::Name { wanted } => write!(f, "its name is not {wanted}"),
            Self::Label(requirement) => write!(f, "its labels do not satisfy {requirement}"),
        }
    }
}

/// A selector by namespace and name, with the alias of what it selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ByName {
    pub namespace: Pattern,
    pub name: Pattern,
    pub alias: Alias,
}

impl ByName {
    pub fn parse(from: &selector::NameSelector, path: &str) -> Result<Self, RuleError> {
        Ok(Self {
            namespace: Pattern::parse(from.namespace.as_deref(), &format!("{path}.namespace"))?,
            name: Pattern::parse(from.name.as_deref(), &format!("{path}.name"))?,
            alias: Alias::parse(from.alias.as_ref(), &format!("{path}.alias"))?,
        })
    }

    pub fn check(&self, key: &ServiceKey) -> Result<(), Miss<'_>> {
        check_namespace(&self.namespace, key)?;
        match &self.name {
            Pattern::Exactly(wanted) if *wanted != key.name => Err(Miss::Name { wanted }),
            _ => Ok(()),
        }
    }
}

/// A selector by labels, with the aliases of what it selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ByLabels {
    pub namespace: Pattern,
    requirements: Vec<LabelRequirement>,
    aliases: Vec<ByName>,
}

impl ByLabels {
    pub fn parse(from: &selector::ServiceLabelSelector, path: &str) -> Result<Self, RuleError> {
        let aliases = from.aliases.iter().enumerate();
        let labels_path = format!("{path}.selector");
        // Without it the rule would share everything; who wants that writes `{}`.
        let labels = from.selector.as_ref();
        let labels = labels.ok_or_else(|| RuleFault::Missing.at(&labels_path))?;
        Ok(Self {
            namespace: Pattern::parse(from.namespace.as_deref(), &format!("{path}.namespace"))?,
            requirements: LabelRequirement::parse_all(labels, &labels_path)?,
            aliases: aliases
                .map(|(i, alias)| ByName::parse(alias, &format!("{path}.aliases[{i}]")))
                .collect::<Result<_, _>>()?,
        })
    }

    pub fn check(&self, key: &ServiceKey, labels: &Labels) -> Result<(), Miss<'_>> {
        check_namespace(&self.namespace, key)?;
        match self.requirements.iter().find(|r| !r.holds(labels)) {
            Some(requirement) => Err(Miss::Label(requirement)),
            None => Ok(()),
        }
    }

    /// By the first of the aliases that matches; without one the service keeps its name.
    pub fn rename(&self, key: &ServiceKey) -> ServiceKey {
        match self.aliases.iter().find(|alias| alias.check(key).is_ok()) {
            Some(by_name) => by_name.alias.apply(key),
            None => key.clone(),
        }
    }
}

fn check_namespace<'r>(pattern: &'r Pattern, key: &ServiceKey) -> Result<(), Miss<'r>> {
    match pattern {
        Pattern::Exactly(wanted) if *wanted != key.namespace => Err(Miss::Namespace { wanted }),
        _ => Ok(()),
    }
}

/// One condition of a label selector, with the meaning that Kubernetes gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelRequirement {
    /// The label is there with one of these values.
    In {
        key: String,
        values: Vec<String>,
    },
    /// The label is not there or has none of these values.
    NotIn {
        key: String,
        values: Vec<String>,
    },
    Exists {
        key: String,
    },
    DoesNotExist {
        key: String,
    },
}

impl LabelRequirement {
    pub fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In { key, values } => labels.get(key).is_some_and(|v| values.contains(v)),
            Self::NotIn { key, values } => labels.get(key).is_none_or(|v| !values.contains(v)),
            Self::Exists { key } => labels.contains_key(key),
            Self::DoesNotExist { key } => !labels.contains_key(key),
        }
    }

    fn parse_all(selector: &LabelSelector, path: &str) -> Result<Vec<Self>, RuleError> {
        let mut all: Vec<Self> = selector
            .match_labels
            .iter()
            .flatten()
            .map(|(key, value)| Self::In {
                key: key.clone(),
                values: vec![value.clone()],
            })
            .collect();
        for (i, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let path = format!("{path}.matchExpressions[{i}]");
            let key = expression.key.clone();
            let values = expression.values.clone().unwrap_or_default();
            all.push(match (expression.operator.as_str(), values.is_empty()) {
                ("In", false) => Self::In { key, values },
                ("NotIn", false) => Self::NotIn { key, values },
                ("Exists", true) => Self::Exists { key },
                ("DoesNotExist", true) => Self::DoesNotExist { key },
                ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {
                    return Err(RuleFault::OperatorValues.at(path + ".values"));
                }
                (other, _) => {
                    return Err(RuleFault::UnknownOperator(other.to_owned()).at(path + ".operator"));
                }
            });
        }
        Ok(all)
    }
}

impl fmt::Display for LabelRequirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In { key, values } if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Self::In { key, values } => write!(f, "{key} in ({})", values.join(",")),
            Self::NotIn { key, values } => write!(f, "{key} notin ({})", values.join(",")),
            Self::Exists { key } => f.write_str(key),
            Self::DoesNotExist { key } => write!(f, "!{key}"),
        }
    }
}
