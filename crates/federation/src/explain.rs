//! Why a service is shared, or the first thing that stands in the way and how to change it.

mod export;
mod facts;
mod import;
mod obstacle;
mod rules;
mod show;

use serde::Serialize;

pub use self::export::explain_export;
pub use self::import::explain_import;
pub use self::obstacle::Obstacle;
pub use self::rules::{Outcome, Trial};

/// Which way a service is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    Export,
    Import,
}

/// The answer about one service and one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub direction: Direction,
    /// `<namespace>/<name>`, for an export in this mesh, for an import as the peer exports it.
    pub service: String,
    /// The ServiceMeshPeer's name here.
    pub peer: String,
    /// The plan exports or imports it. A request may still fail: see `obstacle`.
    pub shared: bool,
    /// The first thing that stands in the way of a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<Obstacle>,
    /// The set whose rules were tried, if there is one: `<namespace>/<name>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    pub rules: Vec<Trial>,
    /// Under which names it is known, and where.
    pub names: Vec<Name>,
    /// Where a request passes, in order. Empty for what is not shared.
    pub path: Vec<Hop>,
}

/// A name of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Name {
    pub known_at: String,
    pub name: String,
}

/// One stage of a request's path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// Who has the request.
    pub at: String,
    /// What it does with it, a line each.
    pub does: Vec<String>,
}

impl Explanation {
    fn new(direction: Direction, service: impl ToString, peer: impl ToString) -> Self {
        Self {
            direction,
            service: service.to_string(),
            peer: peer.to_string(),
            shared: false,
            obstacle: None,
            set: None,
            rules: Vec::new(),
            names: Vec::new(),
            path: Vec::new(),
        }
    }

    fn known_at(&mut self, known_at: impl Into<String>, name: impl ToString) {
        self.names.push(Name {
            known_at: known_at.into(),
            name: name.to_string(),
        });
    }

    fn hop(&mut self, at: impl Into<String>, does: Vec<String>) {
        let at = at.into();
        self.path.push(Hop { at, does });
    }
}
