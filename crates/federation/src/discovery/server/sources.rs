//! Who asks: one status entry per address that a peer's control plane comes from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use crate::discovery::extension::Report;
use crate::moment::Moment;

/// Entries for one peer. Addresses beyond it are not shown; a peer names them as it likes.
const MAX_SOURCES: usize = 32;

/// The address to show for a request: the first of `X-Forwarded-For`, which the peer's egress wrote,
/// else where the connection comes from.
pub fn source_of(forwarded_for: Option<&str>, peer_address: IpAddr) -> String {
    forwarded_for
        .and_then(|list| list.split(',').next())
        .and_then(|first| first.trim().parse::<IpAddr>().ok())
        .unwrap_or(peer_address)
        .to_string()
}

/// One entry of `discoveryStatus.*.remotes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceStatus {
    pub source: String,
    pub connected: bool,
    pub last_connected: Option<Timestamp>,
    pub last_disconnect: Option<Timestamp>,
    pub last_event: Option<Timestamp>,
    pub last_full_sync: Option<Timestamp>,
    /// What it last said of what it imported, if it has the extension.
    pub report: Option<Report>,
}

#[derive(Debug)]
pub(super) struct Sources {
    entries: BTreeMap<String, Entry>,
    /// How long an entry without a watch is shown.
    kept: Duration,
}

#[derive(Debug, Default)]
struct Entry {
    watches: usize,
    /// Of the monotonic clock, when it was last connected or last asked.
    last_seen: Duration,
    last_connected: Option<Timestamp>,
    last_disconnect: Option<Timestamp>,
    last_event: Option<Timestamp>,
    last_full_sync: Option<Timestamp>,
    report: Option<Report>,
}

impl Sources {
    pub fn new(kept: Duration) -> Self {
        Self {
            entries: BTreeMap::new(),
            kept,
        }
    }

    pub fn connected(&mut self, source: &str, now: Moment) {
        if let Some(entry) = self.entry(source, now) {
            entry.watches += 1;
            entry.last_connected = Some(now.wall);
        }
    }

    pub fn disconnected(&mut self, source: &str, now: Moment) {
        if let Some(entry) = self.entries.get_mut(source) {
            entry.watches = entry.watches.saturating_sub(1);
            entry.last_seen = now.elapsed;
            entry.last_disconnect = Some(now.wall);
        }
    }

    pub fn event(&mut self, source: &str, now: Moment) {
        if let Some(entry) = self.entries.get_mut(source) {
            entry.last_event = Some(now.wall);
        }
    }

    pub fn full_sync(&mut self, source: &str, now: Moment) {
        if let Some(entry) = self.entry(source, now) {
            entry.last_full_sync = Some(now.wall);
        }
    }

    pub fn report(&mut self, source: &str, report: Report, now: Moment) {
        if let Some(entry) = self.entry(source, now) {
            entry.report = Some(report);
        }
    }

    pub fn statuses(&mut self, now: Moment) -> Vec<SourceStatus> {
        self.drop_old(now);
        let entries = self.entries.iter();
        entries
            .map(|(source, entry)| SourceStatus {
                source: source.clone(),
                connected: entry.watches > 0,
                last_connected: entry.last_connected,
                last_disconnect: entry.last_disconnect,
                last_event: entry.last_event,
                last_full_sync: entry.last_full_sync,
                report: entry.report.clone(),
            })
            .collect()
    }

    /// After this time of the monotonic clock an entry is shown no more; `None` while all have watches.
    pub fn next_forgotten(&self) -> Option<Duration> {
        let idle = self.entries.values().filter(|e| e.watches == 0);
        idle.map(|e| e.last_seen + self.kept).min()
    }

    fn drop_old(&mut self, now: Moment) {
        let kept = self.kept;
        self.entries
            .retain(|_, e| e.watches > 0 || now.elapsed.saturating_sub(e.last_seen) <= kept);
    }

    fn entry(&mut self, source: &str, now: Moment) -> Option<&mut Entry> {
        if !self.entries.contains_key(source) && self.entries.len() >= MAX_SOURCES {
            self.drop_old(now);
            if self.entries.len() >= MAX_SOURCES {
                let idle = self.entries.iter().filter(|(_, e)| e.watches == 0);
                let longest_idle = idle.min_by_key(|(_, e)| e.last_seen)?.0.clone();
                self.entries.remove(&longest_idle);
            }
        }
        let entry = self.entries.entry(source.to_owned()).or_default();
        entry.last_seen = now.elapsed;
        Some(entry)
    }
}
