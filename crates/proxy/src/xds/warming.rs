//! What clusters and listeners refer to, and which of them still wait for it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use meshfed_proxy_config::{Cluster, Discovery, HttpRoutes, Listener, Network};
use meshfed_xds::TypeUrl;

use crate::engine::Change;

/// A resource by kind and name.
pub(super) type Name = (TypeUrl, Arc<str>);

/// What a cluster or listener refers to: a few names, sorted, each once.
type References = Box<[Name]>;

/// Clusters and listeners with their references. What one refers to is fetched by name; a new
/// version is used when all of that has arrived, and until then the old one stays.
///
/// There may be tens of thousands of clusters, so equal names share their text.
#[derive(Default)]
pub(super) struct Warming {
    entries: HashMap<Name, Entry>,
    users: HashMap<Name, HashSet<Name>>,
    /// What has arrived, or is known not to exist.
    arrived: HashSet<Name>,
    /// What stays wanted although nothing refers to it.
    held: BTreeSet<Name>,
    /// How many entries wait.
    pending: usize,
}

#[derive(Default)]
struct Entry {
    active: References,
    pending: Option<Box<(Change, References)>>,
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
        let needs: References = references(&change)
            .into_iter()
            .map(|name| self.known(name))
            .collect();
        let entry = self.entries.entry(owner.clone()).or_default();
        let before = entry.linked();
        let waiting = entry.pending.replace(Box::new((change, needs)));
        self.pending += usize::from(waiting.is_none());
        let after = entry.linked();
        self.relink(owner, &before, &after, wants);
    }

    /// The name with the text that others use already.
    fn known(&self, name: Name) -> Name {
        let known = self.users.get_key_value(&name);
        known.map_or(name, |(known, _)| known.clone())
    }

    /// Forgets a cluster or listener.
    pub(super) fn remove(&mut self, owner: &Name, wants: &mut Wants) {
        if let Some(entry) = self.entries.remove(owner) {
            self.pending -= usize::from(entry.pending.is_some());
            self.relink(owner, &entry.linked(), &[], wants);
        }
    }

    /// The owner's new version if all that it needs is there.
    pub(super) fn complete(&mut self, owner: &Name, wants: &mut Wants) -> Option<Change> {
        let entry = self.entries.get_mut(owner)?;
        let (_, needs) = &**entry.pending.as_ref()?;
        if !needs.iter().all(|name| self.arrived.contains(name)) {
            return None;
        }
        let before = entry.linked();
        let (change, needs) = *entry.pending.take()?;
        self.pending -= 1;
        entry.active = needs;
        let after = entry.linked();
        self.relink(owner, &before, &after, wants);
        Some(change)
    }

    pub(super) fn is_wanted(&self, name: &Name) -> bool {
        self.users.contains_key(name)
    }

    /// All names of a kind that are wanted.
    pub(super) fn wanted(&self, kind: TypeUrl) -> impl Iterator<Item = &Arc<str>> {
        self.users
            .keys()
            .filter(move |(k, _)| *k == kind)
            .map(|(_, name)| name)
    }

    /// Notes that a reference is there, or known not to exist; gives those who may wait for it.
    pub(super) fn arrived(&mut self, name: &Name) -> Vec<Name> {
        if !self.arrived.contains(name) {
            let name = self.known(name.clone());
            self.arrived.insert(name);
        }
        if self.pending == 0 {
            return Vec::new();
        }
        let users = self.users.get(name).into_iter().flatten();
        // Clusters first, as listeners lead to them.
        let mut users: Vec<Name> = users.cloned().collect();
        users.sort_unstable();
        users
    }

    /// Whether nothing waits.
    pub(super) fn is_complete(&self) -> bool {
        self.pending == 0
    }

    /// What is waited for, for people who wonder.
    pub(super) fn missing(&self) -> BTreeSet<&Name> {
        let pending = self.entries.values().filter_map(|e| e.pending.as_deref());
        pending
            .flat_map(|(_, needs)| needs)
            .filter(|n| !self.arrived.contains(*n))
            .collect()
    }

    fn relink(&mut self, owner: &Name, before: &[Name], after: &[Name], wants: &mut Wants) {
        for name in after.iter().filter(|name| !before.contains(name)) {
            let users = self.users.entry(name.clone()).or_default();
            if users.is_empty() && !wants.unsubscribe.remove(name) {
                wants.subscribe.insert(name.clone());
            }
            users.insert(owner.clone());
        }
        for name in before.iter().filter(|name| !after.contains(name)) {
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
            let itself = [name.clone()];
            self.relink(&name, &itself, &[], wants);
        }
    }

    /// Drops what is known of a reference that nobody wants any more.
    pub(super) fn forget(&mut self, name: &Name) {
        self.arrived.remove(name);
    }
}

impl Entry {
    /// What the version in use and the one that waits refer to.
    fn linked(&self) -> Vec<Name> {
        let pending = self.pending.iter().flat_map(|pending| &pending.1);
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
        names.insert((TypeUrl::Endpoints, service.clone()));
    }
    if let Some(tls) = &cluster.tls {
        names.insert((TypeUrl::Trust, tls.trust.clone()));
    }
    names
}

fn of_listener(listener: &Listener) -> BTreeSet<Name> {
    let mut names = BTreeSet::new();
    for chain in &listener.chains {
        if let Some(tls) = &chain.tls {
            names.insert((TypeUrl::Trust, tls.trust.as_str().into()));
        }
        if let Network::Http(http) = &chain.network
            && let HttpRoutes::Rds(table) = &http.routes
        {
            names.insert((TypeUrl::Routes, table.as_str().into()));
        }
    }
    names
}
