//! What clusters and listeners refer to, and which of them still wait for it.

use std::collections::{BTreeSet, HashMap, HashSet};

use meshfed_proxy_config::{Cluster, Discovery, HttpRoutes, Listener, Network};
use meshfed_xds::TypeUrl;

use crate::engine::Change;

/// A resource by kind and name.
pub(super) type Name = (TypeUrl, String);

/// Clusters and listeners with their references. What one refers to is fetched by name; a new
/// version is used when all of that has arrived, and until then the old one stays.
#[derive(Default)]
pub(super) struct Warming {
    entries: HashMap<Name, Entry>,
    users: HashMap<Name, HashSet<Name>>,
    /// What has arrived, or is known not to exist.
    arrived: HashSet<Name>,
    /// What stays wanted although nothing refers to it.
    held: BTreeSet<Name>,
}

#[derive(Default)]
struct Entry {
    active: BTreeSet<Name>,
    pending: Option<(Change, BTreeSet<Name>)>,
}

/// References that began or ended to be wanted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Wants {
    pub(super) subscribe: BTreeSet<Name>,
    pub(super) unsubscribe: BTreeSet<Name>,
}

impl Warming {
    /// Takes a new version of a cluster or listener, to be used when it is complete.
    pub(super) fn set(&mut self, owner: &Name, change: Change, wants: &mut Wants) {
        let needs = references(&change);
        let entry = self.entries.entry(owner.clone()).or_default();
        let before: BTreeSet<Name> = entry.linked();
        entry.pending = Some((change, needs));
        let after = entry.linked();
        self.relink(owner, &before, &after, wants);
    }

    /// Forgets a cluster or listener.
    pub(super) fn remove(&mut self, owner: &Name, wants: &mut Wants) {
        if let Some(entry) = self.entries.remove(owner) {
            self.relink(owner, &entry.linked(), &BTreeSet::new(), wants);
        }
    }

    /// The owner's new version if all that it needs is there.
    pub(super) fn complete(&mut self, owner: &Name, wants: &mut Wants) -> Option<Change> {
        let entry = self.entries.get_mut(owner)?;
        let (_, needs) = entry.pending.as_ref()?;
        if !needs.iter().all(|name| self.arrived.contains(name)) {
            return None;
        }
        let before = entry.linked();
        let (change, needs) = entry.pending.take()?;
        entry.active = needs;
        let after = entry.linked();
        self.relink(owner, &before, &after, wants);
        Some(change)
    }

    pub(super) fn is_wanted(&self, name: &Name) -> bool {
        self.users.contains_key(name)
    }

    /// All names of a kind that are wanted.
    pub(super) fn wanted(&self, kind: TypeUrl) -> impl Iterator<Item = &String> {
        self.users
            .keys()
            .filter(move |(k, _)| *k == kind)
            .map(|(_, name)| name)
    }

    /// Notes that a reference is there, or known not to exist; gives those who may wait for it.
    pub(super) fn arrived(&mut self, name: &Name) -> Vec<Name> {
        self.arrived.insert(name.clone());
        let users = self.users.get(name).into_iter().flatten();
        // Clusters first, as listeners lead to them.
        let mut users: Vec<Name> = users.cloned().collect();
        users.sort_unstable();
        users
    }

    /// Whether something waits.
    pub(super) fn is_complete(&self) -> bool {
        self.entries.values().all(|e| e.pending.is_none())
    }

    /// What is waited for, for people who wonder.
    pub(super) fn missing(&self) -> BTreeSet<&Name> {
        let pending = self.entries.values().filter_map(|e| e.pending.as_ref());
        pending
            .flat_map(|(_, needs)| needs)
            .filter(|n| !self.arrived.contains(*n))
            .collect()
    }

    fn relink(
        &mut self,
        owner: &Name,
        before: &BTreeSet<Name>,
        after: &BTreeSet<Name>,
        wants: &mut Wants,
    ) {
        for name in after.difference(before) {
            let users = self.users.entry(name.clone()).or_default();
            if users.is_empty() && !wants.unsubscribe.remove(name) {
                wants.subscribe.insert(name.clone());
            }
            users.insert(owner.clone());
        }
        for name in before.difference(after) {
            let Some(users) = self.users.get_mut(name) else {
                continue;
            };
            users.remove(owner);
            if users.is_empty() {
                self.users.remove(name);
                if !wants.subscribe.remove(name) {
                    wants.unsubscribe.insert(name.clone());
                }
            }
        }
    }

    /// Keeps a reference wanted although no cluster or listener has it: it has itself.
    pub(super) fn hold(&mut self, name: &Name) {
        let users = self.users.entry(name.clone()).or_default();
        users.insert(name.clone());
        self.held.insert(name.clone());
    }

    /// Ends that for those of which `is_done` says so.
    pub(super) fn release(&mut self, is_done: impl Fn(&Name) -> bool, wants: &mut Wants) {
        let done: Vec<Name> = self.held.iter().filter(|n| is_done(n)).cloned().collect();
        for name in done {
            self.held.remove(&name);
            let itself = BTreeSet::from([name.clone()]);
            self.relink(&name, &itself, &BTreeSet::new(), wants);
        }
    }

    /// Drops what is known of a reference that nobody wants any more.
    pub(super) fn forget(&mut self, name: &Name) {
        self.arrived.remove(name);
    }
}

impl Entry {
    /// What the version in use and the one that waits refer to.
    fn linked(&self) -> BTreeSet<Name> {
        let pending = self.pending.iter().flat_map(|(_, needs)| needs);
        self.active.iter().chain(pending).cloned().collect()
    }
}

fn references(change: &Change) -> BTreeSet<Name> {
    match change {
        Change::Cluster(cluster) => of_cluster(cluster),
        Change::Listener(listener) => of_listener(listener),
        _ => BTreeSet::new(),
    }
}

fn of_cluster(cluster: &Cluster) -> BTreeSet<Name> {
    let mut names = BTreeSet::new();
    if let Discovery::Eds(service) = &cluster.discovery {
        names.insert((TypeUrl::Endpoints, service.to_string()));
    }
    if let Some(tls) = &cluster.tls {
        names.insert((TypeUrl::Trust, tls.trust.to_string()));
    }
    names
}

fn of_listener(listener: &Listener) -> BTreeSet<Name> {
    let mut names = BTreeSet::new();
    for chain in &listener.chains {
        if let Some(tls) = &chain.tls {
            names.insert((TypeUrl::Trust, tls.trust.clone()));
        }
        if let Network::Http(http) = &chain.network
            && let HttpRoutes::Rds(table) = &http.routes
        {
            names.insert((TypeUrl::Routes, table.clone()));
        }
    }
    names
}
