//! What stands in the way.

use serde::Serialize;

/// Something in the way, and how to change it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Obstacle {
    /// A word in CamelCase for machines.
    pub reason: String,
    pub message: String,
    /// What to do about it.
    pub remedy: String,
    /// A command that does it, or that leads on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

impl Obstacle {
    pub(super) fn new(
        reason: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            reason: reason.into(),
            message: message.into(),
            remedy: remedy.into(),
            command: None,
        }
    }

    pub(super) fn command(mut self, command: impl Into<String>) -> Self {
        self.command = Some(command.into());
        self
    }
}
