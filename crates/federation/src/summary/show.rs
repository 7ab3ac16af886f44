//! The summary as text.

use std::fmt;

use jiff::SignedDuration;

use super::{Peer, Summary, Watch, Weight};
use crate::text::{Ink, ago, plain, span, table};

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ink = Ink::of(f);
        let name = if self.name.is_empty() {
            "no mesh"
        } else {
            &self.name
        };
        writeln!(
            f,
            "{}  trust domain {}, namespace {}, {}",
            ink.bold(name),
            self.trust_domain,
            self.namespace,
            count(self.members.len(), "member namespace", "member namespaces"),
        )?;
        self.problems(f, ink)?;
        self.peers(f, ink)?;
        self.gateways(f, ink)?;
        self.certificates(f, ink)?;
        if !self.unknown.is_empty() {
            writeln!(f, "\n{}", ink.bold("NOT KNOWN"))?;
            for what in &self.unknown {
                writeln!(f, "  {}", plain(what))?;
            }
        }
        Ok(())
    }
}

impl Summary {
    fn problems(&self, f: &mut fmt::Formatter<'_>, ink: Ink) -> fmt::Result {
        if self.problems.is_empty() {
            return writeln!(f, "\n{}", ink.good("No problems."));
        }
        writeln!(f, "\n{}", ink.bold("PROBLEMS"))?;
        for problem in &self.problems {
            let reason = match problem.weight {
                Weight::Fault => ink.bad(&problem.reason),
                Weight::Warning => ink.doubtful(&problem.reason),
            };
            writeln!(f, "  {} {reason}", problem.about)?;
            writeln!(f, "      {}", plain(&problem.message))?;
        }
        Ok(())
    }

    fn peers(&self, f: &mut fmt::Formatter<'_>, ink: Ink) -> fmt::Result {
        if self.peers.is_empty() {
            return writeln!(
                f,
                "\nNo peers. meshfed peer bundle --for NAME makes what a peer applies."
            );
        }
        writeln!(f)?;
        let head = [
            "PEER",
            "READY",
            "WE WATCH IT",
            "LAST SYNC",
            "IT WATCHES US",
            "LAST SYNC",
        ];
        let mut rows = vec![headings(ink, &head, &["EXPORTS", "IMPORTS"])];
        rows.extend(self.peers.iter().map(|peer| self.peer(peer, ink)));
        table(f, &rows)
    }

    fn peer(&self, peer: &Peer, ink: Ink) -> Vec<String> {
        let connected = peer.watchers.iter().filter(|w| w.connected).count();
        let asked = peer.watchers.iter().filter_map(|w| w.last_full_sync).max();
        let state = |good: bool, text: String| if good { ink.good(text) } else { ink.bad(text) };
        let yes_or = |good: bool| if good { "connected" } else { "not connected" }.to_owned();
        let ready = if peer.ready { "yes" } else { &peer.reason };
        let watching = match connected {
            0 | 1 => yes_or(connected == 1),
            many => format!("connected, {many} times"),
        };
        vec![
            peer.name.clone(),
            state(peer.ready, ready.to_owned()),
            state(peer.watch.connected, yes_or(peer.watch.connected)),
            self.last_sync(&peer.watch),
            state(connected > 0, watching),
            ago(self.now, asked),
            match &peer.report {
                Some(report) => format!("{}, {} imported", peer.exports, report.imported),
                None => peer.exports.to_string(),
            },
            format!("{} of {}", peer.imports, peer.offered),
        ]
    }

    /// A control plane that started anew knows when the peer was last heard, and of no sync.
    fn last_sync(&self, watch: &Watch) -> String {
        match (watch.last_full_sync, watch.last_contact) {
            (None, Some(heard)) => format!("heard {}", ago(self.now, Some(heard))),
            (synced, _) => ago(self.now, synced),
        }
    }

    fn gateways(&self, f: &mut fmt::Formatter<'_>, ink: Ink) -> fmt::Result {
        if self.gateways.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        let mut rows = vec![headings(
            ink,
            &["GATEWAY", "KIND", "READY", "SERVICE", "ADDRESS"],
            &[],
        )];
        rows.extend(self.gateways.iter().map(|gateway| {
            vec![
                gateway.name.clone(),
                gateway.kind.to_owned(),
                if gateway.ready {
                    ink.good("yes")
                } else {
                    ink.bad("no")
                },
                gateway.service_type.clone(),
                if gateway.addresses.is_empty() {
                    ink.bad("none yet")
                } else {
                    gateway.addresses.join(", ")
                },
            ]
        }));
        table(f, &rows)
    }

    fn certificates(&self, f: &mut fmt::Formatter<'_>, ink: Ink) -> fmt::Result {
        if self.certificates.is_empty() {
            return Ok(());
        }
        writeln!(f)?;
        let mut rows = vec![headings(
            ink,
            &["CERTIFICATE", "LEFT", "ENDS", "SUBJECT"],
            &[],
        )];
        rows.extend(self.certificates.iter().map(|certificate| {
            let left = span(SignedDuration::from_secs(certificate.seconds_left));
            let left = match certificate.problem(self.now) {
                Some(_) if certificate.seconds_left < 0 => ink.bad(format!("ended {left} ago")),
                Some(_) => ink.doubtful(left),
                None => left,
            };
            vec![
                certificate.what.clone(),
                left,
                certificate.not_after.strftime("%Y-%m-%d").to_string(),
                plain(&certificate.subject),
            ]
        }));
        table(f, &rows)
    }
}

fn headings(ink: Ink, first: &[&str], more: &[&str]) -> Vec<String> {
    first
        .iter()
        .chain(more)
        .map(|text| ink.bold(text))
        .collect()
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}
