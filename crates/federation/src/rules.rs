//! Which services a rule set picks, under which name, and why.
//!
//! Rules are tried in order and the first that matches decides. A rule that cannot be read ends
//! its set: what the rules before it pick stays, nothing after it is picked, since nobody can say
//! what the unreadable one would have kept back or renamed.

mod export;
mod import;
mod index;
mod pattern;

pub use export::{ExportDecision, ExportRules};
pub use import::{ImportDecision, ImportRules};
pub use pattern::{LabelRequirement, Miss};

use crate::names::NameError;

/// A rule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {fault}")]
pub struct RuleError {
    /// Path of the field in its resource, such as `spec.exportRules[0].type`.
    pub path: String,
    pub fault: RuleFault,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleFault {
    #[error("{given:?} is no type of these rules; use {known}")]
    UnknownType { given: String, known: &'static str },
    #[error("is missing")]
    Missing,
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("{0:?} is no operator of a label selector; use In, NotIn, Exists or DoesNotExist")]
    UnknownOperator(String),
    #[error("In and NotIn need values, Exists and DoesNotExist take none")]
    OperatorValues,
    #[error(
        "{0:?} is no key of a label: 1 to 63 of A-Z, a-z, 0-9, '-', '_' and '.', a letter or digit at both \
         ends, after a DNS domain and '/' if it has one"
    )]
    LabelKey(String),
    #[error(
        "{0:?} is no value of a label: up to 63 of A-Z, a-z, 0-9, '-', '_' and '.', a letter or digit at \
         both ends"
    )]
    LabelValue(String),
    #[error(
        "importAsLocal needs an alias with a fixed namespace, so that the peer cannot choose the namespace in this mesh"
    )]
    LocalWithoutNamespace,
    #[error("{0:?} would give a peer's services the names of this mesh's own")]
    ReservedSuffix(String),
    #[error("a zone needs a region, and a subzone needs a zone")]
    Locality,
    #[error("{0:?} has a '/', which stands between region, zone and subzone")]
    LocalityPart(String),
}

impl RuleFault {
    fn at(self, path: impl Into<String>) -> RuleError {
        RuleError {
            path: path.into(),
            fault: self,
        }
    }
}

/// One rule that was tried and did not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried<'r> {
    /// Index in the resource's list.
    pub rule: usize,
    pub miss: Miss<'r>,
}

/// A decision with everything that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained<'r, D> {
    pub decision: D,
    /// The rules before the one that decided, in order.
    pub tried: Vec<Tried<'r>>,
}

#[cfg(test)]
mod tests;
