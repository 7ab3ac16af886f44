//! Lists in statuses: what does not fit is counted in a condition. An object of the API is limited to
//! about 1 MiB.

use super::condition::Verdict;

/// Bytes of entries in one status. The rest of the object needs place as well.
const MAX_ENTRIES_LEN: usize = 700 * 1024;
const LISTED: &str = "AllListed";

/// As many entries as the status may hold, and a condition on whether they are all. `length` is about
/// what an entry takes; `what` are they, such as `services`.
pub(super) fn bounded<T>(
    entries: impl Iterator<Item = T>,
    length: impl Fn(&T) -> usize,
    what: &str,
) -> (Vec<T>, Verdict) {
    let mut listed = Vec::new();
    let mut left_out = 0_usize;
    let mut bytes = 0;
    for entry in entries {
        bytes += length(&entry);
        if bytes <= MAX_ENTRIES_LEN {
            listed.push(entry);
        } else {
            left_out += 1;
        }
    }
    let verdict = if left_out == 0 {
        Verdict::holds(LISTED, "Complete", format!("all {what} are listed"))
    } else {
        let message = format!("{left_out} more {what} do not fit into this status");
        Verdict::fails(LISTED, "TooMany", message)
    };
    (listed, verdict)
}

/// The first names, and how many more there are.
pub(super) fn named(mut names: Vec<String>, max: usize, separator: &str) -> String {
    let more = names.len().saturating_sub(max);
    names.truncate(max);
    let mut text = names.join(separator);
    if more > 0 {
        text.push_str(&format!("{separator}and {more} more"));
    }
    text
}
