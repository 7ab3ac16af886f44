//! The rules of a set, one by one.

use meshfed_api::exported::ExportRule;
use meshfed_api::imported::ImportRule;
use meshfed_api::selector::{LABEL_SELECTOR, NameSelector, ServiceKey, ServiceLabelSelector};
use serde::Serialize;

use crate::rules::{RuleError, Tried};

/// One rule and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    /// Path of the rule in its set: `spec.exportRules[0]`.
    pub field: String,
    /// What it selects, in short.
    pub selects: String,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "outcome", content = "why")]
pub enum Outcome {
    /// It is the first that matches.
    Decides,
    /// It does not match, for this reason.
    Misses(String),
    /// It cannot be read, and with it everything after it.
    Broken(String),
    /// A rule before it decided, or is broken.
    NotReached,
}

/// What became of the rules: those before the one that decided were tried.
pub(super) fn trials(
    selects: impl Iterator<Item = String>,
    list: &str,
    tried: &[Tried<'_>],
    decided: Option<usize>,
    broken: Option<&RuleError>,
) -> Vec<Trial> {
    let reached = decided.unwrap_or(tried.len());
    selects
        .enumerate()
        .map(|(index, selects)| {
            let miss = tried.iter().find(|tried| tried.rule == index);
            let outcome = match (miss, broken) {
                _ if decided == Some(index) => Outcome::Decides,
                (Some(tried), _) => Outcome::Misses(tried.miss.to_string()),
                (None, Some(error)) if decided.is_none() && index == reached => {
                    Outcome::Broken(error.to_string())
                }
                _ => Outcome::NotReached,
            };
            Trial {
                field: format!("{list}[{index}]"),
                selects,
                outcome,
            }
        })
        .collect()
}

pub(super) fn export_rule(rule: &ExportRule) -> String {
    match (&rule.label_selector, &rule.name_selector) {
        (Some(labels), _) if rule.type_ == LABEL_SELECTOR => by_labels(labels),
        (_, Some(name)) => by_name(name),
        _ => format!("{} without a selector", rule.type_),
    }
}

pub(super) fn import_rule(rule: &ImportRule) -> String {
    let mut text = match &rule.name_selector {
        Some(name) => by_name(name),
        None => format!("{} without a nameSelector", rule.type_),
    };
    if rule.import_as_local == Some(true) {
        text.push_str(", as a local service");
    } else if let Some(suffix) = rule.domain_suffix.as_deref().filter(|s| !s.is_empty()) {
        text.push_str(&format!(", under {suffix}"));
    }
    text
}

fn by_name(selector: &NameSelector) -> String {
    let mut text = pair(selector.namespace.as_deref(), selector.name.as_deref());
    if let Some(ServiceKey { namespace, name }) = &selector.alias {
        let alias = pair(namespace.as_deref(), name.as_deref());
        text.push_str(&format!(" as {alias}"));
    }
    text
}

fn by_labels(selector: &ServiceLabelSelector) -> String {
    let labels = selector.selector.clone().unwrap_or_default();
    let mut wanted: Vec<String> = labels
        .match_labels
        .iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let expressions = labels.match_expressions.iter().flatten();
    wanted.extend(expressions.map(|e| {
        let values = e.values.as_deref().unwrap_or_default();
        match values {
            [] => format!("{} {}", e.key, e.operator),
            some => format!("{} {} ({})", e.key, e.operator, some.join(",")),
        }
    }));
    let labels = if wanted.is_empty() {
        "any labels".to_owned()
    } else {
        wanted.join(", ")
    };
    let mut text = format!(
        "{} with {labels}",
        pair(selector.namespace.as_deref(), None)
    );
    for alias in &selector.aliases {
        text.push_str(&format!("; {}", by_name(alias)));
    }
    text
}

/// `namespace/name`, with `*` where nothing is said.
fn pair(namespace: Option<&str>, name: Option<&str>) -> String {
    let or_any = |text: Option<&str>| text.filter(|t| !t.is_empty()).unwrap_or("*").to_owned();
    format!("{}/{}", or_any(namespace), or_any(name))
}
