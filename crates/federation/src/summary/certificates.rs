//! The certificates that everything rests on, and how long they last.

use jiff::{SignedDuration, Timestamp};
use meshfed_pki::{RootCert, TrustStore};
use serde::Serialize;

use super::conditions::{Problem, Weight};
use crate::difference::roots_of_peer;
use crate::observations::Seen;
use crate::text::span;
use crate::world::World;

/// Time in which an administrator should hear that a certificate ends.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

/// A certificate that others are judged by.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// `own root`, `issuing CA`, or `root of <peer>`.
    pub what: String,
    pub subject: String,
    /// SHA-256, in hexadecimal digits.
    pub fingerprint: String,
    #[serde(serialize_with = "time")]
    pub not_before: Timestamp,
    #[serde(serialize_with = "time")]
    pub not_after: Timestamp,
    /// Below zero when it has ended.
    pub seconds_left: i64,
}

fn time<S: serde::Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

pub(super) fn all(world: &World, seen: &Seen) -> Vec<Certificate> {
    let mut all = Vec::new();
    let mut add = |what: &str, roots: Vec<RootCert>| {
        all.extend(roots.iter().map(|root| certificate(what, root, world.now)));
    };
    add("own root", read(&world.observed.own_roots));
    if let Some(issuer) = &seen.issuer {
        add("issuing CA", read(issuer));
    }
    let system = &world.mesh.system_namespace;
    for (key, peer) in world
        .resources
        .peers
        .iter()
        .filter(|(key, _)| key.namespace == *system)
    {
        add(
            &format!("root of {}", key.name),
            roots_of_peer(world, key, peer),
        );
    }
    all
}

fn read(pem: &str) -> Vec<RootCert> {
    TrustStore::parse_roots(pem).unwrap_or_default()
}

fn certificate(what: &str, root: &RootCert, now: Timestamp) -> Certificate {
    let at = |time| Timestamp::try_from(time).unwrap_or(Timestamp::MAX);
    let not_after = at(root.not_after);
    Certificate {
        what: what.to_owned(),
        subject: root.subject.clone(),
        fingerprint: root.fingerprint(),
        not_before: at(root.not_before),
        not_after,
        seconds_left: not_after.duration_since(now).as_secs(),
    }
}

impl Certificate {
    /// What its end means, if it is near.
    pub(super) fn problem(&self, now: Timestamp) -> Option<Problem> {
        let left = SignedDuration::from_secs(self.seconds_left);
        let (weight, reason, when) = if self.seconds_left < 0 {
            let when = format!("ended {} ago", span(left));
            (Weight::Fault, "CertificateEnded", when)
        } else if now < self.not_before {
            let when = format!(
                "is not valid for another {}",
                span(self.not_before.duration_since(now))
            );
            (Weight::Fault, "CertificateNotYetValid", when)
        } else if left < SOON {
            let when = format!("ends in {}", span(left));
            (Weight::Warning, "CertificateEnds", when)
        } else {
            return None;
        };
        let what = match self.what.strip_prefix("root of ") {
            Some(peer) => format!("ask {peer} for its next root and add it beside this one"),
            None => {
                "give this mesh its next one, and its peers the root beside this one".to_owned()
            }
        };
        Some(Problem {
            weight,
            about: self.what.clone(),
            reason: reason.to_owned(),
            message: format!("{} {when}; {what}", self.subject),
        })
    }
}
