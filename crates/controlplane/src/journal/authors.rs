//! The lines of the audit log, and whose doing each is: writes to the API as its server authenticated
//! them, else what an object says of its last writer, and peers whose lists changed.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kube::Resource;
use meshfed_api::{
    ExportedServiceSet, ImportedServiceSet, ServiceMeshControlPlane, ServiceMeshMember,
    ServiceMeshMemberRoll, ServiceMeshPeer,
};
use meshfed_federation::difference::{Difference, Sharing, by_peers, root_config_map};
use meshfed_federation::world::{ObjectKey, Shared, World};
use serde::Serialize;

use super::backlog::Step;
use super::parts::parts;
use super::writes::{Version, Write, Writes};
use crate::hub::Outcome;

/// Authors that one entry names; a flood of writes in a moment is cut.
const MAX_AUTHORS: usize = 100;
/// Entries of `imported` and `dropped` of a line that a peer has a part in; more are counted. What is exposed
/// and hidden is always whole: that peers cannot change.
const MAX_IMPORTS: usize = 1000;
/// What follows from a write without being part of it, such as a gateway that goes, comes within this.
const FOLLOWS_WITHIN: SignedDuration = SignedDuration::from_secs(5);

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub time: Timestamp,
    pub event: &'static str,
    /// Writes to the API that are part of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<Author>,
    /// Peers that changed what they export, or were lost or heard again, and whose services are in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_peers: Vec<String>,
    /// Writes of the seconds before that may have led to it, where none is part of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub follows: Vec<Author>,
    /// Writes that were too many to remember; `by` may lack some.
    #[serde(skip_serializing_if = "is_zero")]
    pub writes_lost: u64,
    /// States before this one that were not looked at.
    #[serde(skip_serializing_if = "is_zero")]
    pub states_merged: u64,
    /// Lines before this one that these peers alone had caused, and that were not written because there were
    /// too many.
    #[serde(skip_serializing_if = "is_zero")]
    pub suppressed: u64,
    /// Entries of `imported` and `dropped` that are not listed, because a peer made too many.
    #[serde(skip_serializing_if = "is_zero")]
    pub not_listed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub totals: Option<Totals>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Entry {
    pub(super) fn new(time: Timestamp, event: &'static str) -> Self {
        Self {
            time,
            event,
            by: Vec::new(),
            by_peers: Vec::new(),
            follows: Vec::new(),
            writes_lost: 0,
            states_merged: 0,
            suppressed: 0,
            not_listed: 0,
            totals: None,
            difference: None,
        }
    }

    /// The peer that alone has a part in it.
    pub(super) fn peer_alone(&self) -> Option<&str> {
        match &*self.by_peers {
            [peer] if self.by.is_empty() && !self.difference.iter().any(is_ours) => Some(peer),
            _ => None,
        }
    }

    /// Keeps a peer from making it as long as it likes.
    fn cut(&mut self) {
        let Some(difference) = (self.difference.as_mut()).filter(|_| !self.by_peers.is_empty())
        else {
            return;
        };
        for all in [&mut difference.imported, &mut difference.dropped] {
            self.not_listed += all.len().saturating_sub(MAX_IMPORTS) as u64;
            all.truncate(MAX_IMPORTS);
        }
    }
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

/// Makes the lines, outcome by outcome.
#[derive(Debug)]
pub(super) struct Scribe {
    /// `None`: nobody tells who writes, so the objects are asked.
    writes: Option<Writes>,
    before: Option<(Arc<Outcome>, Sharing)>,
    recent: Recent,
    /// Outcomes that were merged since the last line.
    merged: u64,
}

impl Scribe {
    pub fn new(writes: Option<Writes>) -> Self {
        Self {
            writes,
            before: None,
            recent: Recent::default(),
            merged: 0,
        }
    }

    /// The lines about an outcome: none if it is not worth one; one for each of several peers that have changed
    /// something while nobody else has.
    pub fn entries(&mut self, step: &Step) -> Vec<Entry> {
        let Outcome { world, plan } = step.outcome.as_ref();
        self.merged += step.merged;
        let Some((known, shared)) = &self.before else {
            let sharing = Sharing::of(world, plan);
            let totals = Totals {
                exposed: sharing.exposed().count(),
                imported: sharing.imported().count(),
            };
            self.before = Some((step.outcome.clone(), sharing));
            // Changes before it are not seen by this process.
            self.merged = 0;
            return vec![Entry {
                totals: Some(totals),
                ..Entry::new(world.now, "Started")
            }];
        };
        let sharing = shared.then((&known.world, &known.plan), world, plan);
        let difference = sharing.since(shared);
        let by = authors(&known.world, world, self.writes.as_ref(), &difference);
        let mut entries = Vec::new();
        if !difference.is_empty() {
            let peers = by_peers(&known.world, world).collect();
            let is_ours = !by.is_empty() || is_ours(&difference);
            let template = Entry {
                by: by.clone(),
                writes_lost: self.writes.as_ref().map_or(0, Writes::lost),
                states_merged: std::mem::take(&mut self.merged),
                ..Entry::new(world.now, "SharingChanged")
            };
            for (by_peers, difference) in parts(difference, &peers, is_ours) {
                let follows = if by.is_empty() && by_peers.is_empty() {
                    self.recent.at(world.now)
                } else {
                    Vec::new()
                };
                let mut entry = Entry {
                    by_peers,
                    follows,
                    difference: Some(difference),
                    ..template.clone()
                };
                entry.cut();
                entries.push(entry);
            }
        }
        // A deletion takes steps.
        let may_follow = |author: &Author| entries.is_empty() || author.verb == "delete";
        self.recent
            .add(world.now, by.into_iter().filter(may_follow));
        self.before = Some((step.outcome.clone(), sharing));
        entries
    }
}

/// Whether something is in it that no peer can change.
fn is_ours(difference: &Difference) -> bool {
    let Difference {
        exposed, hidden, ..
    } = difference;
    !(exposed.is_empty() && hidden.is_empty() && difference.peers.is_empty())
}

/// Whose writes were seen lately, and may have consequences yet.
#[derive(Debug, Default)]
struct Recent(VecDeque<(Timestamp, Author)>);

impl Recent {
    fn at(&mut self, now: Timestamp) -> Vec<Author> {
        let is_old = |at: Timestamp| now.duration_since(at).abs() > FOLLOWS_WITHIN;
        while self.0.front().is_some_and(|(at, _)| is_old(*at)) {
            self.0.pop_front();
        }
        self.0.iter().map(|(_, author)| author.clone()).collect()
    }

    fn add(&mut self, now: Timestamp, authors: impl Iterator<Item = Author>) {
        self.0.extend(authors.map(|author| (now, author)));
        while self.0.len() > MAX_AUTHORS {
            self.0.pop_front();
        }
    }
}

/// Who wrote what differs between two worlds and has a say in what is shared.
fn authors(
    before: &World,
    after: &World,
    writes: Option<&Writes>,
    difference: &Difference,
) -> Vec<Author> {
    let mut by = Vec::new();
    for change in changes(before, after, difference) {
        match writes {
            Some(writes) => {
                let made = writes.of(change.kind, &change.object, |write| change.is_by(write));
                by.extend(made.iter().map(Author::of_write));
            }
            None => by.extend(change.by_itself()),
        }
        if by.len() >= MAX_AUTHORS {
            by.truncate(MAX_AUTHORS);
            break;
        }
    }
    by
}

/// An object of the API that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Changed {
    kind: &'static str,
    object: ObjectKey,
    before: Option<Version>,
    after: Option<Version>,
    /// Who wrote last, other than to the status, if that was between the two.
    manager: Option<String>,
}

impl Changed {
    /// Whether a write made the one of the other. Writes to an object that had this name earlier did
    /// not; whoever asked for a deletion that came in steps made its last step too.
    fn is_by(&self, write: &Write) -> bool {
        let (before, after) = (self.before.as_ref(), self.after.as_ref());
        let of = |version: &&Version| version.uid == write.uid;
        match (before.filter(of), after.filter(of)) {
            (Some(old), Some(new)) => (old.revision + 1..=new.revision).contains(&write.revision),
            (None, Some(new)) => write.revision <= new.revision,
            (Some(old), None) => {
                write.revision > old.revision || old.going && write.verb == "delete"
            }
            (None, None) => false,
        }
    }

    /// What the object itself says. Of a deletion it says nothing but that it was asked for.
    fn by_itself(&self) -> Option<Author> {
        let was_going = self.before.as_ref().is_some_and(|old| old.going);
        let verb = match (&self.before, &self.after) {
            (_, None) => "delete",
            (_, Some(new)) if new.going && !was_going => "delete",
            (None, Some(_)) => "create",
            (Some(old), Some(new)) if old.uid != new.uid => "create",
            (Some(_), Some(_)) => "update",
        };
        let manager = self.manager.clone().filter(|_| verb != "delete");
        // A change without a word of who made it is ours: a status, or the end of a deletion.
        if manager.is_none() && verb != "delete" {
            return None;
        }
        Some(Author {
            manager,
            verb: verb.to_owned(),
            kind: self.kind.to_owned(),
            namespace: self.object.namespace.clone(),
            name: self.object.name.clone(),
            resource_version: self.after.as_ref().map(|new| new.revision.to_string()),
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
    let peers = old.peers.iter().chain(&new.peers);
    let roots: BTreeSet<ObjectKey> = peers
        .map(|(key, peer)| root_config_map(key, peer))
        .collect();
    all.extend(changed(
        "ConfigMap",
        &old.config_maps,
        &new.config_maps,
        |key| roots.contains(key),
    ));
    let exposures = difference.exposed.iter().chain(&difference.hidden);
    let services: BTreeSet<&str> = exposures.map(|entry| entry.what.service.as_str()).collect();
    let namespaces: BTreeSet<&str> = services
        .iter()
        .filter_map(|service| Some(service.split_once('/')?.0))
        .collect();
    if !services.is_empty() {
        all.extend(changed("Service", &old.services, &new.services, |key| {
            services.contains(key.to_string().as_str())
        }));
        all.extend(changed(
            "Namespace",
            &old.namespaces,
            &new.namespaces,
            |key| namespaces.contains(key.name.as_str()),
        ));
    }
    all
}

/// What differs between two states of a kind, at the cost of that.
fn changed<K: Resource + PartialEq>(
    kind: &'static str,
    before: &Shared<ObjectKey, K>,
    after: &Shared<ObjectKey, K>,
    counts: impl Fn(&ObjectKey) -> bool,
) -> Vec<Changed> {
    let changes = before.changes(after).filter(|(key, _, _)| counts(key));
    changes
        .map(|(key, old, new)| {
            let version = |object: &Arc<K>| Version::of(object.as_ref());
            let (was, is) = (
                old.and_then(|old| last_write(old.as_ref())),
                new.and_then(|new| last_write(new.as_ref())),
            );
            Changed {
                kind,
                object: key.clone(),
                before: old.map(version),
                after: new.map(version),
                manager: is.filter(|is| was.as_ref() != Some(is)).map(|is| is.1),
            }
        })
        .collect()
}

/// When and by which field manager an object was written last, other than to the status.
fn last_write(object: &impl Resource) -> Option<(Option<Timestamp>, String)> {
    let entries = object.meta().managed_fields.iter().flatten();
    let of_spec = entries.filter(|entry| entry.subresource.as_deref().unwrap_or("").is_empty());
    let of_spec = of_spec.map(|entry| (entry.time.as_ref().map(|time| time.0), entry));
    let (time, last) = of_spec.max_by_key(|(time, _)| *time)?;
    Some((time, last.manager.clone()?))
}

#[cfg(test)]
mod tests;
