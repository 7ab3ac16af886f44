//! What would be, as text.

use std::collections::BTreeMap;
use std::fmt;

use super::WhatIf;
use crate::difference::{OURS, PeerChange};
use crate::summary::Problem;
use crate::text::{Ink, plain};

impl fmt::Display for WhatIf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ink = Ink::of(f);
        let difference = &self.difference;
        if difference.is_empty() {
            writeln!(f, "Nothing changes in what is shared.")?;
        }
        let plus = ink.good("+");
        let minus = ink.bad("-");
        section(f, ink, "Newly exposed:", &plus, &difference.exposed)?;
        section(f, ink, "Hidden:", &minus, &difference.hidden)?;
        section(f, ink, "Newly imported:", &plus, &difference.imported)?;
        section(f, ink, "Dropped:", &minus, &difference.dropped)?;
        peers(f, ink, &difference.peers)?;
        problems(f, ink, "New problems:", &self.new_problems)?;
        problems(f, ink, "Solved problems:", &self.solved_problems)?;
        section(f, ink, "Not known:", "?", &self.unknown)
    }
}

fn section<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    ink: Ink,
    title: &str,
    mark: &str,
    entries: &[T],
) -> fmt::Result {
    if entries.is_empty() {
        return Ok(());
    }
    writeln!(f, "{}", ink.bold(title))?;
    entries
        .iter()
        .try_for_each(|entry| writeln!(f, "  {mark} {}", plain(&entry.to_string())))
}

/// A peer that comes or goes is one entry.
fn peers(f: &mut fmt::Formatter<'_>, ink: Ink, changes: &[PeerChange]) -> fmt::Result {
    if changes.is_empty() {
        return Ok(());
    }
    writeln!(f, "{}", ink.bold("Peers:"))?;
    let mut by_peer: BTreeMap<&str, Vec<&PeerChange>> = BTreeMap::new();
    for change in changes {
        by_peer.entry(&change.peer).or_default().push(change);
    }
    for (peer, changes) in by_peer {
        let comes = changes
            .iter()
            .any(|c| c.what == "shares" && c.before.is_none());
        let goes = changes
            .iter()
            .any(|c| c.what == "shares" && c.after.is_none());
        match (comes, goes) {
            (true, _) => writeln!(f, "  {} {peer} becomes a peer", ink.good("+"))?,
            (_, true) => {
                writeln!(f, "  {} {peer} is no peer any more", ink.bad("-"))?;
                continue;
            }
            _ => writeln!(f, "  {} {peer}", ink.doubtful("~"))?,
        }
        let is_ours = |change: &&PeerChange| OURS.contains(&change.what.as_str());
        let renamed = !comes && changes.iter().any(is_ours);
        for change in changes {
            let side =
                |text: &Option<String>| text.as_deref().map_or_else(|| "nothing".to_owned(), plain);
            let (before, after) = (side(&change.before), side(&change.after));
            let what = &change.what;
            if comes {
                writeln!(f, "      {what}: {after}")?;
            } else {
                writeln!(f, "      {what}: {before}")?;
                writeln!(f, "      {:>width$}  {after}", "->", width = what.len())?;
            }
        }
        if renamed {
            writeln!(
                f,
                "      The peer refuses this mesh until its ServiceMeshPeer for it says so too."
            )?;
        }
    }
    Ok(())
}

fn problems(f: &mut fmt::Formatter<'_>, ink: Ink, title: &str, all: &[Problem]) -> fmt::Result {
    if all.is_empty() {
        return Ok(());
    }
    writeln!(f, "{}", ink.bold(title))?;
    for problem in all {
        writeln!(f, "  ! {} {}", problem.about, ink.doubtful(&problem.reason))?;
        writeln!(f, "      {}", plain(&problem.message))?;
    }
    Ok(())
}
