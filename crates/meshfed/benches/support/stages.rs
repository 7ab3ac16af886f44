//! The stages of a full sync, by the times in the importing mesh's own log.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use serde::Deserialize;

/// What a mesh must log for it.
pub const LOGGING: [&str; 4] = [
    "--log-format",
    "json",
    "--log-level",
    "info,meshfed_controlplane=debug,meshfed_proxy=debug",
];

/// What is told of, with the message that tells it, and which of them.
const STAGES: [(&str, &str, Which); 10] = [
    ("planned, with the peer", PLANNED, Which::First),
    ("its way is in the gateway", CONFIRMED, Which::First),
    (
        "watching it",
        "watching the exports of the peer",
        Which::First,
    ),
    (
        "asking for the list",
        "asking the peer for its list",
        Which::First,
    ),
    (
        "list received",
        "the list of the peer has arrived",
        Which::First,
    ),
    ("decoded and validated", READ, Which::First),
    ("planned, with the list", PLANNED, Which::AfterList),
    (
        "first of it at the gateway",
        "configuration received",
        Which::FirstLarge,
    ),
    (
        "last of it at the gateway",
        "configuration received",
        Which::LastLarge,
    ),
    ("all of it confirmed", CONFIRMED, Which::Last),
];
const PLANNED: &str = "planned";
const READ: &str = "the list of the peer was read";
const CONFIRMED: &str = "all of the configuration is confirmed";
/// Responses of fewer resources are not those of the list.
const LARGE: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    First,
    Last,
    /// The first one after the list was read.
    AfterList,
    /// With many resources.
    FirstLarge,
    LastLarge,
}

#[derive(Debug, Deserialize)]
struct Line {
    timestamp: Timestamp,
    message: Option<String>,
    #[serde(default)]
    resources: usize,
}

/// The log of a mesh from a moment on.
pub struct Log {
    path: PathBuf,
    /// Bytes that were there before.
    from: usize,
    began: Timestamp,
}

impl Log {
    pub fn begin(path: &Path) -> anyhow::Result<Self> {
        let from = fs::metadata(path)?.len();
        Ok(Self {
            path: path.to_owned(),
            from: usize::try_from(from)?,
            began: Timestamp::now(),
        })
    }

    /// How long after the beginning each stage was reached.
    pub fn stages(&self) -> anyhow::Result<Vec<(&'static str, Option<Duration>)>> {
        let text = fs::read_to_string(&self.path)?;
        let new = text.get(self.from..).context("the log was cut")?;
        let lines: Vec<Line> = new
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let at = |message: &str, which: Which| {
            let large = matches!(which, Which::FirstLarge | Which::LastLarge);
            let is = |line: &Line, message: &str| line.message.as_deref() == Some(message);
            let skipped = match which {
                Which::AfterList => lines.iter().position(|line| is(line, READ))?,
                _ => 0,
            };
            let mut found = lines
                .iter()
                .skip(skipped)
                .filter(|line| is(line, message) && (!large || line.resources >= LARGE));
            let line = match which {
                Which::First | Which::FirstLarge | Which::AfterList => found.next(),
                Which::Last | Which::LastLarge => found.next_back(),
            }?;
            line.timestamp.duration_since(self.began).try_into().ok()
        };
        Ok(STAGES
            .iter()
            .map(|(name, message, which)| (*name, at(message, *which)))
            .collect())
    }
}
