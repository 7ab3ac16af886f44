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

    fn charge(&mut self, entry: &Entry) {
        let bytes = serde_json::to_string(entry).map_or(0, |line| line.len());
        self.bytes -= i64::try_from(bytes).unwrap_or(i64::MAX);
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
    /// A line that this peer alone has caused, if it may have another.
    pub fn admit(&mut self, peer: &str, mut entry: Entry) -> Option<Entry> {
        let now = entry.time;
        let budget = self.0.entry(peer.to_owned());
        let budget = budget.or_insert_with(|| Budget::new(now));
        budget.refill(now);
        if budget.bytes <= 0 {
            budget.suppressed += 1;
            return None;
        }
        entry.suppressed = std::mem::take(&mut budget.suppressed);
        budget.charge(&entry);
        Some(entry)
    }

    /// A line for each peer of which lines were not written since the one before. Forgets who has done
    /// nothing lately.
    pub fn suppressed(&mut self, now: Timestamp) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.0.retain(|peer, budget| {
            budget.refill(now);
            if budget.suppressed > 0 {
                let entry = Entry {
                    by_peers: vec![peer.clone()],
                    suppressed: std::mem::take(&mut budget.suppressed),
                    ..Entry::new(now, "Suppressed")
                };
                budget.charge(&entry);
                entries.push(entry);
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

    fn line(peer: &str, millis: i64) -> Entry {
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
            by_peers: vec![peer.to_owned()],
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
        let (mut bytes, mut told) = (0, 0);
        let end = 600_000;
        let all: Vec<i64> = (0..=end).step_by(100).collect();
        for millis in &all {
            let written = budgets.admit("red", line("red", *millis));
            assert!(millis % 60_000 != 0 || budgets.admit("blue", line("blue", *millis)).is_some());
            let now_and_then = (millis % 60_000 == 0).then(|| budgets.suppressed(at(*millis)));
            for entry in written
                .into_iter()
                .chain(now_and_then.into_iter().flatten())
            {
                bytes += serde_json::to_string(&entry).unwrap().len() as i64;
                told += i64::from(entry.event == "SharingChanged") + entry.suppressed as i64;
            }
        }
        let longest = serde_json::to_string(&line("red", 0)).unwrap().len() as i64 + 100;
        let most = AT_ONCE + PER_SECOND * end / 1000 + longest;
        assert!(bytes <= most && bytes > most / 2, "{bytes} of {most}");
        // Every line is written or counted.
        assert_eq!(told, all.len() as i64);
        assert!(budgets.suppressed(at(10 * end)).is_empty());
        assert!(budgets.0.is_empty(), "nothing is kept of who is quiet");
    }

    #[test]
    fn what_was_not_written_is_counted_in_a_line_of_its_own_or_in_the_next_one() {
        let mut budgets = Budgets::default();
        while budgets.admit("red", line("red", 0)).is_some() {}
        for _ in 0..4 {
            assert!(budgets.admit("red", line("red", 10)).is_none());
        }
        let told = budgets.suppressed(at(60_000));
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].event, told[0].suppressed), ("Suppressed", 5));
        assert!(budgets.suppressed(at(60_000)).is_empty());
        while budgets.admit("red", line("red", 60_000)).is_some() {}
        let next = budgets.admit("red", line("red", 120_000)).unwrap();
        assert_eq!(next.suppressed, 1);
    }
}
