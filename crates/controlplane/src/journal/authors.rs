//! Whose doing a change is: writes to the API as its server authenticated them, else what an object
//! says of its last writer, and peers whose lists changed.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use kube::Resource;
use meshfed_api::{
    ExportedServiceSet, ImportedServiceSet, ServiceMeshControlPlane, ServiceMeshMember,
    ServiceMeshMemberRoll, ServiceMeshPeer,
};
use meshfed_federation::difference::{Difference, Sharing};
use meshfed_federation::world::{ObjectKey, Shared, World};
use serde::Serialize;

/// Writes that are remembered until what follows from them is seen.
const REMEMBERED: usize = 4096;
/// For this long.
const MEMORY: Duration = Duration::from_secs(60);
/// Authors that one entry names; a flood of writes in a moment is cut.
const MAX_AUTHORS: usize = 100;

/// A write to the API by somebody, as its server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub user: String,
    pub groups: Vec<String>,
    /// `create`, `update`, `patch` or `delete`.
    pub verb: String,
    pub kind: String,
    pub object: ObjectKey,
    /// The revision that the write made.
    pub revision: u64,
}

/// The writes of the last minute.
pub(super) struct Writes {
    incoming: BoxStream<'static, Write>,
    known: VecDeque<(Instant, Write)>,
}

impl Writes {
    pub fn new(incoming: BoxStream<'static, Write>) -> Self {
        Self {
            incoming,
            known: VecDeque::new(),
        }
    }

    pub fn take_all(&mut self) {
        while let Some(Some(write)) = self.incoming.next().now_or_never() {
            self.known.push_back((Instant::now(), write));
        }
    }

    pub fn forget_old(&mut self) {
        let is_old = |(at, _): &(Instant, Write)| at.elapsed() > MEMORY;
        while self.known.len() > REMEMBERED || self.known.front().is_some_and(is_old) {
            self.known.pop_front();
        }
    }

    /// What made this object what it is now: writes after `from`, up to `to` or to its end.
    fn of<'w>(&'w self, change: &'w Changed) -> impl Iterator<Item = &'w Write> {
        let writes = self.known.iter().map(|(_, write)| write);
        writes.filter(move |write| {
            write.kind == change.kind
                && write.object == change.object
                && write.revision > change.from
                && (write.verb == "delete" || write.revision <= change.to.unwrap_or(u64::MAX))
        })
    }
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub time: Timestamp,
    pub event: &'static str,
    /// Writes to the API that led to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<Author>,
    /// Peers that changed what they export.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_peers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub totals: Option<Totals>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
}

/// How much was shared when the control plane began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Totals {
    pub exposed: usize,
    pub imported: usize,
}

/// Who wrote what.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Author {
    /// As the API server authenticated them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Who the object itself says wrote it last, where the API server does not tell us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manager: Option<String>,
    pub verb: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

/// The first line after a start: changes before it are not seen by this process.
pub(super) fn started(world: &World, sharing: &Sharing) -> Entry {
    Entry {
        time: world.now,
        event: "Started",
        by: Vec::new(),
        by_peers: Vec::new(),
        totals: Some(Totals {
            exposed: sharing.exposed().count(),
            imported: sharing.imported().count(),
        }),
        difference: None,
    }
}

/// What changed between two worlds, and by whom.
pub(super) fn entry(
    before: &World,
    after: &World,
    writes: &Writes,
    difference: Difference,
) -> Entry {
    let mut by = Vec::new();
    for change in changes(before, after, &difference) {
        let mut known = writes.of(&change).peekable();
        if known.peek().is_none() {
            by.extend(change.by_itself());
        }
        by.extend(known.map(Author::of_write));
    }
    by.truncate(MAX_AUTHORS);
    let list = |world: &World, peer: &str| {
        let state = world.observed.peers.get(peer);
        state.map(|state| state.remote.services.clone())
    };
    let by_peers = after.observed.peers.keys().filter(|peer| {
        let (old, new) = (list(before, peer), list(after, peer));
        match (old, new) {
            (Some(old), Some(new)) => !Arc::ptr_eq(&old, &new) && old != new,
            (old, new) => old.or(new).is_some_and(|list| list.iter().next().is_some()),
        }
    });
    Entry {
        time: after.now,
        event: "SharingChanged",
        by,
        by_peers: by_peers.cloned().collect(),
        totals: None,
        difference: Some(difference),
    }
}

/// An object of the API that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Changed {
    kind: &'static str,
    object: ObjectKey,
    /// Its revision before; 0 if it was not there.
    from: u64,
    /// `None`: it is gone.
    to: Option<u64>,
    /// The field manager that wrote last.
    manager: Option<String>,
}

impl Changed {
    fn by_itself(&self) -> Option<Author> {
        let verb = match (self.from, self.to) {
            (_, None) => "delete",
            (0, _) => "create",
            _ => "update",
        };
        // A change without a word of who made it is ours: the garbage collector's, or a status.
        let manager = self.manager.clone()?;
        Some(Author {
            manager: Some(manager),
            verb: verb.to_owned(),
            kind: self.kind.to_owned(),
            namespace: self.object.namespace.clone(),
            name: self.object.name.clone(),
            resource_version: self.to.map(|revision| revision.to_string()),
            ..Author::default()
        })
    }
}

impl Author {
    fn of_write(write: &Write) -> Self {
        Self {
            user: Some(write.user.clone()),
            groups: write.groups.clone(),
            manager: None,
            verb: write.verb.clone(),
            kind: write.kind.clone(),
            namespace: write.object.namespace.clone(),
            name: write.object.name.clone(),
            resource_version: Some(write.revision.to_string()),
        }
    }
}

/// Every changed object that has a say in what is shared. Of services and namespaces only those that
/// the difference is about.
fn changes(before: &World, after: &World, difference: &Difference) -> Vec<Changed> {
    let (old, new) = (&before.resources, &after.resources);
    let mut all = Vec::new();
    macro_rules! whole {
        ($($field:ident: $kind:ident),+) => {$(
            all.extend(changed::<$kind>(stringify!($kind), &old.$field, &new.$field, |_| true));
        )+};
    }
    whole!(
        control_planes: ServiceMeshControlPlane,
        member_rolls: ServiceMeshMemberRoll,
        members: ServiceMeshMember,
        peers: ServiceMeshPeer,
        exports: ExportedServiceSet,
        imports: ImportedServiceSet
    );
    all.extend(changed(
        "ConfigMap",
        &old.config_maps,
        &new.config_maps,
        |key| key.namespace == after.mesh.system_namespace,
    ));
    let exposures = difference.exposed.iter().chain(&difference.hidden);
    let services: BTreeSet<&str> = exposures.map(|entry| entry.what.service.as_str()).collect();
    let namespaces: BTreeSet<&str> = services
        .iter()
        .filter_map(|service| Some(service.split_once('/')?.0))
        .collect();
    all.extend(changed("Service", &old.services, &new.services, |key| {
        services.contains(key.to_string().as_str())
    }));
    all.extend(changed(
        "Namespace",
        &old.namespaces,
        &new.namespaces,
        |key| namespaces.contains(key.name.as_str()),
    ));
    all
}

fn changed<K: Resource>(
    kind: &'static str,
    before: &Shared<ObjectKey, K>,
    after: &Shared<ObjectKey, K>,
    counts: impl Fn(&ObjectKey) -> bool,
) -> Vec<Changed> {
    if before.ptr_eq(after) {
        return Vec::new();
    }
    let revision = |object: &Arc<K>| {
        let text = object.meta().resource_version.as_deref();
        text.and_then(|text| text.parse().ok()).unwrap_or(0_u64)
    };
    let mut all = Vec::new();
    for (key, object) in after.iter().filter(|(key, _)| counts(key)) {
        let known = before.get(key);
        if known.is_some_and(|known| Arc::ptr_eq(known, object)) {
            continue;
        }
        let (from, to) = (known.map_or(0, revision), revision(object));
        if from == to {
            continue;
        }
        all.push(Changed {
            kind,
            object: key.clone(),
            from,
            to: Some(to),
            manager: last_manager(object.as_ref()),
        });
    }
    for (key, object) in before.iter().filter(|(key, _)| counts(key)) {
        if !after.contains_key(key) {
            all.push(Changed {
                kind,
                object: key.clone(),
                from: revision(object),
                to: None,
                manager: None,
            });
        }
    }
    all
}

/// The field manager that wrote last, other than to the status.
fn last_manager(object: &impl Resource) -> Option<String> {
    let entries = object.meta().managed_fields.iter().flatten();
    let of_spec = entries.filter(|entry| entry.subresource.as_deref().unwrap_or("").is_empty());
    let last = of_spec.max_by_key(|entry| entry.time.as_ref().map(|time| time.0))?;
    last.manager.clone()
}

#[cfg(test)]
mod tests;
