//! Connections that may go on for a while although what carried them is gone.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use meshfed_pki::TrustStore;

use super::chains::Chain;
use crate::cluster::{Cluster, Users};
use crate::cut::{Cut, CutSet, Verdict};
use crate::listener::Subject;
use crate::trust::{Judge, Proof};

/// Them, by the trust bundle that vouches for their other end: they end at once when it does so no
/// more.
#[derive(Default)]
pub(super) struct Leaving(HashMap<String, Vec<Group>>);

/// Kept alive by its members.
enum Group {
    Clients(Weak<CutSet<Subject>>),
    Endpoints(Weak<Users>),
}

impl Group {
    fn has_members(&self) -> bool {
        match self {
            Self::Clients(members) => members.upgrade().is_some_and(|set| set.len() > 0),
            Self::Endpoints(users) => users.upgrade().is_some_and(|set| set.len() > 0),
        }
    }
}

impl Leaving {
    /// Takes the connections of a filter chain that is gone.
    pub(super) fn chain(&mut self, chain: &Chain) {
        if let Some(tls) = &chain.config.tls {
            let group = Group::Clients(Arc::downgrade(&chain.members));
            self.put(&tls.trust, group);
        }
    }

    /// Takes the connections of a cluster that is gone.
    pub(super) fn cluster(&mut self, cluster: &Cluster) {
        if let Some(tls) = &cluster.config.tls {
            let group = Group::Endpoints(Arc::downgrade(&cluster.users));
            self.put(&tls.trust, group);
        }
    }

    fn put(&mut self, trust: &str, group: Group) {
        if !group.has_members() {
            return;
        }
        let groups = self.0.entry(trust.to_owned()).or_default();
        // Only when it would grow, so that many that go at once cost little.
        if groups.len() == groups.capacity() {
            groups.retain(Group::has_members);
        }
        groups.push(group);
    }

    /// Whether somebody still goes on by this bundle.
    pub(super) fn use_trust(&self, name: &str) -> bool {
        let groups = self.0.get(name);
        groups.is_some_and(|groups| groups.iter().any(Group::has_members))
    }

    /// Cuts those that the bundle does not vouch for; all without one.
    pub(super) fn judge(&mut self, name: &str, trust: Option<&Arc<TrustStore>>, judge: &mut Judge) {
        let mut verdict = |proof: Option<&Arc<Proof>>| match (proof, trust) {
            (None, _) => Verdict::Keep,
            (Some(proof), Some(trust)) if judge.holds(proof, trust) => Verdict::Keep,
            _ => Verdict::Cut(Cut::TrustRemoved),
        };
        for group in self.0.get(name).into_iter().flatten() {
            match group {
                Group::Clients(members) => {
                    if let Some(members) = members.upgrade() {
                        members.sweep(|subject| verdict(subject.proof.as_ref()));
                    }
                }
                Group::Endpoints(users) => {
                    if let Some(users) = users.upgrade() {
                        users.sweep(|proof| verdict(proof.as_ref()));
                    }
                }
            }
        }
        if trust.is_none() {
            self.0.remove(name);
        }
    }
}
