//! Conditions that turn only when their status does.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshfed_api::Condition;

use super::time;

pub(super) const READY: &str = "Ready";

/// What a condition says now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Verdict {
    pub fn holds(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(type_, "True", reason, message)
    }

    pub fn fails(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(type_, "False", reason, message)
    }

    /// What only somebody else can know.
    pub fn unknown(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(type_, "Unknown", reason, message)
    }

    fn new(
        type_: &'static str,
        status: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            type_,
            status,
            reason,
            message: message.into(),
        }
    }
}

/// The conditions that an object should have: ours, then those of others as they are.
pub(super) fn conditions(
    present: Option<&[Condition]>,
    verdicts: impl IntoIterator<Item = Verdict>,
    metadata: &ObjectMeta,
    now: Timestamp,
) -> Vec<Condition> {
    let present = present.unwrap_or_default();
    let mut all: Vec<Condition> = verdicts
        .into_iter()
        .map(|verdict| {
            let before = present.iter().find(|c| c.type_ == verdict.type_);
            let turned = before
                .filter(|before| before.status == verdict.status)
                .and_then(|before| before.last_transition_time.clone());
            Condition {
                type_: verdict.type_.to_owned(),
                status: verdict.status.to_owned(),
                reason: Some(verdict.reason.to_owned()),
                message: Some(verdict.message),
                last_transition_time: Some(turned.unwrap_or_else(|| time(now))),
                observed_generation: metadata.generation,
            }
        })
        .collect();
    let of_others: Vec<Condition> = present
        .iter()
        .filter(|c| all.iter().all(|ours| ours.type_ != c.type_))
        .cloned()
        .collect();
    all.extend(of_others);
    all
}
