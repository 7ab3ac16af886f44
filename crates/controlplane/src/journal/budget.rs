//! How much of the audit log a peer may fill: what it exports it can change a thousand times a second, for ever.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::authors::Entry;

/// Bytes that a peer may cause at once.
const AT_ONCE: i64 = 4 << 20;
/// Bytes that it may cause in a second for ever: a handful of services that come or go.
const PER_SECOND: i64 = 4096;

/// What each peer may still write. Those that have done nothing lately are not in it.
#[derive(Debug, Default)]
pub(super) struct Budgets(BTreeMap<String, Budget>);

#[derive(Debug)]
struct Budget {
    /// Below zero: the last line was longer than what was left.
    bytes: i64,
    at: Timestamp,
    /// Lines that were not written since the last one that was.
    suppressed: u64,
}

impl Budget {
    fn new(at: Timestamp) -> Self {
        Self {
            bytes: AT_ONCE,
            at,
            suppressed: 0,
        }
    }

    fn refill(&mut self, now: Timestamp) {
        let seconds = now.duration_since(self.at).as_secs();
        if seconds > 0 {
            self.bytes = (self.bytes + seconds.saturating_mul(PER_SECOND)).min(AT_ONCE);
        }
        // Parts of a second count the next time; a clock that was set back starts anew.
        if seconds != 0 {
            self.at = now;
        }
    }
}

impl Budgets {
    /// A line that peers alone have caused, if one of them may have another.
    pub fn admit(&mut self, mut entry: Entry) -> Option<Entry> {
        let now = entry.time;
        let mut may = false;
        for peer in &entry.by_peers {
            let budget = self.0.entry(peer.clone());
            let budget = budget.or_insert_with(|| Budget::new(now));
            budget.refill(now);
            may |= budget.bytes > 0;
        }
        let bytes = match may {
            true => serde_json::to_string(&entry).map_or(0, |line| line.len()),
            false => 0,
        };
        for peer in &entry.by_peers {
            let Some(budget) = self.0.get_mut(peer) else {
                continue;
            };
            if may {
                budget.bytes -= i64::try_from(bytes).unwrap_or(i64::MAX);
                entry.suppressed += std::mem::take(&mut budget.suppressed);
            } else {
                budget.suppressed += 1;
            }
        }
        may.then_some(entry)
    }

    /// A line for each peer of which lines were not written, and that has gone quiet since.
    pub fn suppressed(&mut self, now: Timestamp) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.0.retain(|peer, budget| {
            budget.refill(now);
            if budget.suppressed > 0 {
                entries.push(Entry {
                    by_peers: vec![peer.clone()],
                    suppressed: std::mem::take(&mut budget.suppressed),
                    ..Entry::new(now, "Suppressed")
                });
            }
            budget.bytes < AT_ONCE
        });
        entries
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use meshfed_federation::difference::Difference;

    use super::*;

    fn line(peers: &[&str], millis: i64) -> Entry {
        let imported: Vec<_> = (0..10)
            .map(|n| {
                serde_json::json!({
                    "peer": "red", "exportedName": format!("s{n}.a.svc.green-exports.local"),
                    "hostname": format!("s{n}.a.svc.red-imports.local"), "ports": [80],
                })
            })
            .collect();
        let difference: Difference =
            serde_json::from_value(serde_json::json!({ "imported": imported })).unwrap();
        Entry {
            by_peers: peers.iter().map(|&peer| peer.to_owned()).collect(),
            difference: Some(difference),
            ..Entry::new(at(millis), "SharingChanged")
        }
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_millis(millis)
    }

    #[test]
    fn a_peer_that_flaps_without_end_writes_a_bounded_number_of_bytes_and_hides_no_other() {
        let mut budgets = Budgets::default();
        let (mut written, mut suppressed) = (0, 0);
        let (end, one) = (600_000, line(&["red"], 0));
        let all: Vec<i64> = (0..end).step_by(20).collect();
        for millis in &all {
            let entry = Entry {
                time: at(*millis),
                ..one.clone()
            };
            if let Some(entry) = budgets.admit(entry) {
                written += 1;
                suppressed += entry.suppressed;
            }
        }
        let length = serde_json::to_string(&one).unwrap().len() as i64;
        assert!(written * length <= AT_ONCE + PER_SECOND * end / 1000 + length);
        // Another one alone, and in a state that both have made.
        assert!(budgets.admit(line(&["blue"], end)).is_some());
        let both = budgets.admit(line(&["blue", "red"], end)).unwrap();
        // Every line is written or counted.
        suppressed += both.suppressed;
        assert_eq!(written + suppressed as i64, all.len() as i64);
        assert!(budgets.suppressed(at(10 * end)).is_empty());
        assert!(budgets.0.is_empty(), "nothing is kept of who is quiet");
    }

    #[test]
    fn what_was_not_written_is_counted_when_the_peer_is_quiet() {
        let mut budgets = Budgets::default();
        while budgets.admit(line(&["red"], 0)).is_some() {}
        for _ in 0..4 {
            assert!(budgets.admit(line(&["red"], 10)).is_none());
        }
        let told = budgets.suppressed(at(60_000));
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].event, told[0].suppressed), ("Suppressed", 5));
        assert!(budgets.admit(line(&["red"], 60_000)).is_some());
        assert!(budgets.suppressed(at(60_000)).is_empty());
    }
}
