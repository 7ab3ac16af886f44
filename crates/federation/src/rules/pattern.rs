//! What a rule compares a service with, and what it renames it to.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use meshfed_api::selector;

use super::{RuleError, RuleFault};
use crate::names::{Label, MAX_HOST_LEN, MAX_LABEL_LEN, ServiceKey, clip};

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
        let mut all = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            check_key(key, &format!("{path}.matchLabels"))?;
            check_value(value, &format!("{path}.matchLabels.{}", clip(key)))?;
            all.push(Self::In {
                key: key.clone(),
                values: vec![value.clone()],
            });
        }
        for (i, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let path = format!("{path}.matchExpressions[{i}]");
            let key = expression.key.clone();
            check_key(&key, &format!("{path}.key"))?;
            let values = expression.values.clone().unwrap_or_default();
            for (i, value) in values.iter().enumerate() {
                check_value(value, &format!("{path}.values[{i}]"))?;
            }
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

/// No service has a label with another key, so who selects by it means something else.
fn check_key(key: &str, path: &str) -> Result<(), RuleError> {
    let (is_prefixed, name) = match key.split_once('/') {
        Some((prefix, name)) => (is_key_domain(prefix), name),
        None => (true, key),
    };
    if is_prefixed && !name.is_empty() && is_label_value(name) {
        return Ok(());
    }
    Err(RuleFault::LabelKey(clip(key)).at(path))
}

/// Its labels may be as long as it may be itself.
fn is_key_domain(text: &str) -> bool {
    let is_alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_end = |end: Option<&u8>| end.is_some_and(is_alphanumeric);
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.iter().all(|b| is_alphanumeric(b) || *b == b'-')
            && is_end(bytes.first())
            && is_end(bytes.last())
    };
    text.len() <= MAX_HOST_LEN && text.split('.').all(is_label)
}

fn check_value(value: &str, path: &str) -> Result<(), RuleError> {
    if is_label_value(value) {
        return Ok(());
    }
    Err(RuleFault::LabelValue(clip(value)).at(path))
}

/// As Kubernetes has it; also what stands behind the domain of a key, if it is not empty.
fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_end = |end: Option<&u8>| end.is_none_or(u8::is_ascii_alphanumeric);
    bytes.len() <= MAX_LABEL_LEN
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && is_end(bytes.first())
        && is_end(bytes.last())
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
