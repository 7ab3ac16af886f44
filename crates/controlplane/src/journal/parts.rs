//! Which peer has which part in a difference.

use std::collections::{BTreeMap, BTreeSet};

use meshfed_federation::difference::{Difference, Entry, Usage};

/// A difference with the `peers` that have a part in it, of those that have changed something. If nothing of
/// it `is_ours`, in parts: each peer answers for its own, and for that of others that have lost a name to it or got one from
/// it. What is nobody's stands alone.
pub(super) fn parts(
    difference: Difference,
    peers: &BTreeSet<&str>,
    is_ours: bool,
) -> Vec<(Vec<String>, Difference)> {
    let owner = |usage: &Usage| peers.get(usage.peer.as_str()).copied();
    let all = difference.imported.iter().chain(&difference.dropped);
    let owned = all.filter_map(|entry| Some((&entry.what.hostname, owner(&entry.what)?)));
    if is_ours {
        let named: BTreeSet<&str> = owned.map(|(_, peer)| peer).collect();
        return vec![(named.into_iter().map(str::to_owned).collect(), difference)];
    }
    let causes: BTreeMap<String, &str> = owned.map(|(host, peer)| (host.clone(), peer)).collect();
    let whose = |entry: &Entry<Usage>| {
        let usage = &entry.what;
        owner(usage).or_else(|| causes.get(&usage.hostname).copied())
    };
    let mut parts: BTreeMap<Option<&str>, Difference> = BTreeMap::new();
    for entry in difference.imported {
        let part = parts.entry(whose(&entry)).or_default();
        part.imported.push(entry);
    }
    for entry in difference.dropped {
        let part = parts.entry(whose(&entry)).or_default();
        part.dropped.push(entry);
    }
    let named = |peer: Option<&str>| peer.map(str::to_owned).into_iter().collect();
    parts
        .into_iter()
        .map(|(peer, part)| (named(peer), part))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn usage(peer: &str, name: &str) -> Value {
        let exported = format!("{name}.a.svc.us-exports.local");
        let hostname = format!("{name}.a.mesh.local");
        json!({"peer": peer, "exportedName": exported, "hostname": hostname, "ports": [80]})
    }

    /// Each part as a person reads it.
    fn shown(difference: &Value, peers: &[&str]) -> Vec<String> {
        let difference: Difference = serde_json::from_value(difference.clone()).unwrap();
        let is_ours = !difference.exposed.is_empty();
        let parts = parts(difference, &peers.iter().copied().collect(), is_ours);
        let each = parts.into_iter().map(|(peers, part)| {
            let name = |entry: &Entry<Usage>| {
                let usage = &entry.what;
                let name = usage.hostname.split('.').next().unwrap_or_default();
                format!("{}/{name}", usage.peer)
            };
            let came: Vec<_> = part.imported.iter().map(name).collect();
            let went: Vec<_> = part.dropped.iter().map(name).collect();
            format!(
                "{}: +{} -{}",
                peers.join(","),
                came.join(","),
                went.join(",")
            )
        });
        each.collect()
    }

    #[test]
    fn each_peer_answers_for_its_own_and_for_names_that_change_hands_by_it() {
        let mut difference = json!({
            "imported": [usage("blue", "b"), usage("green", "x"), usage("red", "r")],
            "dropped": [usage("green", "g"), usage("red", "x")],
        });
        let apart = ["blue: +blue/b -", "red: +green/x,red/r -red/x"];
        assert_eq!(shown(&difference, &["blue", "red"])[1..], apart);
        let nobodys = ": + -green/g";
        assert_eq!(shown(&difference, &["blue", "red"])[0], nobodys);
        // Who changed what is used by nobody has no part in it.
        assert_eq!(shown(&difference, &["blue", "red", "teal"]).len(), 3);
        difference["exposed"] = json!([{"peer": "green", "service": "a/b",
            "exportedName": "b.a.svc.green-exports.local", "ports": [80]}]);
        assert_eq!(
            shown(&difference, &["blue", "red", "teal"]),
            ["blue,red: +blue/b,green/x,red/r -green/g,red/x"]
        );
    }
}
