//! Who wrote what to the API lately, as its server told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::Resource;
use meshfed_federation::world::{ObjectKey, Resources};

/// Kinds that decide what is shared. ConfigMaps count in the system namespace only.
pub(super) const KINDS: [&str; 9] = [
    "ServiceMeshControlPlane",
    "ServiceMeshMemberRoll",
    "ServiceMeshMember",
    "ServiceMeshPeer",
    "ExportedServiceSet",
    "ImportedServiceSet",
    "ConfigMap",
    "Service",
    "Namespace",
];
/// Writes of each kind that are remembered, so that a flood of one kind leaves the others alone.
const REMEMBERED: usize = 4096;
/// For this long; a removal in phases may end some time after the write that asked for it.
const MEMORY: Duration = Duration::from_secs(600);
/// A write that is older is seen, or never will be.
const SEEN_AFTER: Duration = Duration::from_secs(2);

/// A write to the API by somebody, as its server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub user: String,
    pub groups: Vec<String>,
    /// `create`, `update`, `patch` or `delete`.
    pub verb: String,
    pub kind: String,
    pub object: ObjectKey,
    /// Of the object; another one of this name has another.
    pub uid: String,
    /// The revision that the write made.
    pub revision: u64,
}

/// The writes of the last minutes. Copies are the same book.
#[derive(Debug, Clone)]
pub struct Writes {
    system_namespace: Arc<str>,
    book: Arc<Mutex<Book>>,
}

#[derive(Debug, Default)]
struct Book {
    kinds: BTreeMap<&'static str, Page>,
    /// Forgotten for want of room, and when that happened last.
    lost: Option<(Instant, u64)>,
}

#[derive(Debug, Default)]
struct Page {
    objects: BTreeMap<ObjectKey, VecDeque<(Instant, Write)>>,
    /// Oldest first.
    order: VecDeque<(Instant, ObjectKey)>,
}

impl Writes {
    pub fn new(system_namespace: &str) -> Self {
        Self {
            system_namespace: system_namespace.into(),
            book: Arc::default(),
        }
    }

    /// Remembers a write. Never waits.
    pub fn tell(&self, write: Write) {
        self.tell_at(write, Instant::now());
    }

    fn tell_at(&self, write: Write, now: Instant) {
        let Some(kind) = KINDS.into_iter().find(|kind| *kind == write.kind) else {
            return;
        };
        if kind == "ConfigMap" && *write.object.namespace != *self.system_namespace {
            return;
        }
        self.with(|book| {
            let page = book.kinds.entry(kind).or_default();
            page.forget(|at| now.duration_since(at) > MEMORY);
            if page.order.len() >= REMEMBERED {
                page.forget_first();
                let before = book
                    .lost
                    .filter(|(at, _)| now.duration_since(*at) <= MEMORY);
                book.lost = Some((now, before.map_or(0, |(_, lost)| lost) + 1));
            }
            let page = book.kinds.entry(kind).or_default();
            page.order.push_back((now, write.object.clone()));
            let of_object = page.objects.entry(write.object.clone()).or_default();
            of_object.push_back((now, write));
        });
    }

    /// How many writes of the last minutes were too many to remember.
    pub(super) fn lost(&self) -> u64 {
        let now = Instant::now();
        let lost = self.with(|book| book.lost);
        lost.filter(|(at, _)| now.duration_since(*at) <= MEMORY)
            .map_or(0, |(_, lost)| lost)
    }

    /// The writes to an object that `counts` takes, oldest first.
    pub(super) fn of(
        &self,
        kind: &str,
        object: &ObjectKey,
        counts: impl Fn(&Write) -> bool,
    ) -> Vec<Write> {
        self.with(|book| {
            let page = book.kinds.get(kind);
            let writes = page.and_then(|page| page.objects.get(object));
            let writes = writes.into_iter().flatten().map(|(_, write)| write);
            writes.filter(|write| counts(write)).cloned().collect()
        })
    }

    /// Whether the last writes of the last two seconds have arrived in what was observed.
    pub fn are_in(&self, resources: &Resources) -> bool {
        let now = Instant::now();
        self.with(|book| {
            book.kinds.iter().all(|(kind, page)| {
                let mut last = page.objects.values().filter_map(VecDeque::back);
                last.all(|(at, write)| {
                    now.duration_since(*at) > SEEN_AFTER
                        || is_in(write, found(kind, &write.object, resources))
                })
            })
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Book) -> T) -> T {
        // Consistent enough at each step: the worst is a write that is forgotten.
        act(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Page {
    fn forget(&mut self, is_old: impl Fn(Instant) -> bool) {
        while self.order.front().is_some_and(|(at, _)| is_old(*at)) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some((_, object)) = self.order.pop_front() else {
            return;
        };
        if let Some(writes) = self.objects.get_mut(&object) {
            writes.pop_front();
            if writes.is_empty() {
                self.objects.remove(&object);
            }
        }
    }
}

/// One version of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Version {
    pub uid: String,
    pub revision: u64,
    /// It is being deleted.
    pub going: bool,
}

impl Version {
    pub fn of(object: &impl Resource) -> Self {
        let meta = object.meta();
        let revision = meta.resource_version.as_deref();
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            revision: revision
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
            going: meta.deletion_timestamp.is_some(),
        }
    }
}

fn is_in(write: &Write, found: Option<Version>) -> bool {
    match found {
        Some(found) => found.revision >= write.revision,
        None => write.verb == "delete",
    }
}

fn found(kind: &str, key: &ObjectKey, resources: &Resources) -> Option<Version> {
    macro_rules! find {
        ($($kind:literal: $field:ident),+) => {
            match kind {
                $($kind => resources.$field.get(key).map(|object| Version::of(object.as_ref())),)+
                _ => None,
            }
        };
    }
    find!(
        "ServiceMeshControlPlane": control_planes,
        "ServiceMeshMemberRoll": member_rolls,
        "ServiceMeshMember": members,
        "ServiceMeshPeer": peers,
        "ExportedServiceSet": exports,
        "ImportedServiceSet": imports,
        "ConfigMap": config_maps,
        "Service": services,
        "Namespace": namespaces
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;

    use super::*;

    fn write(kind: &str, name: &str, revision: u64) -> Write {
        Write {
            user: "anna".to_owned(),
            groups: Vec::new(),
            verb: "patch".to_owned(),
            kind: kind.to_owned(),
            object: ObjectKey::new("system", name),
            uid: name.to_owned(),
            revision,
        }
    }

    #[test]
    fn a_flood_of_one_kind_leaves_the_writes_of_others_alone_and_is_counted() {
        let writes = Writes::new("system");
        writes.tell(write("ExportedServiceSet", "green-mesh", 1));
        for n in 0..10_000 {
            writes.tell(write("Secret", "a", n));
            writes.tell(Write {
                object: ObjectKey::new("default", "a"),
                ..write("ConfigMap", "a", n)
            });
        }
        assert_eq!(writes.lost(), 0);
        let of = |kind: &str, name: &str| {
            let key = ObjectKey::new("system", name);
            let all = writes.of(kind, &key, |_| true);
            all.iter().map(|write| write.revision).collect::<Vec<_>>()
        };
        for n in 0..REMEMBERED as u64 + 3 {
            writes.tell(write("Service", &(n % 2).to_string(), n));
        }
        assert_eq!(writes.lost(), 3);
        assert_eq!(of("ExportedServiceSet", "green-mesh"), [1]);
        assert_eq!(of("Service", "0").first(), Some(&4));
        assert_eq!(of("Service", "1").first(), Some(&3));
        assert_eq!(of("Secret", "a"), [0; 0]);
        assert_eq!(of("ConfigMap", "a"), [0; 0]);
    }

    #[test]
    fn the_last_writes_are_waited_for() {
        let with = |uid: &str, revision: u64| {
            let service = serde_json::json!({"metadata": {"namespace": "system", "name": "a",
                "uid": uid, "resourceVersion": revision.to_string()}});
            let mut resources = Resources::default();
            let service: Service = serde_json::from_value(service).unwrap();
            let key = ObjectKey::new("system", "a");
            resources.services.insert(key, Arc::new(service));
            resources
        };
        let writes = Writes::new("system");
        let none = Resources::default();
        assert!(writes.are_in(&none));
        let old = Instant::now().checked_sub(Duration::from_secs(3)).unwrap();
        writes.tell_at(write("Service", "never-seen", 6), old);
        // However long this test stands still, these are new.
        let new = Instant::now() + Duration::from_secs(60);
        writes.tell_at(write("Service", "a", 7), new);
        assert!(!writes.are_in(&none));
        assert!(!writes.are_in(&with("a", 6)));
        assert!(writes.are_in(&with("a", 7)));
        let delete = Write {
            verb: "delete".to_owned(),
            ..write("Service", "a", 8)
        };
        writes.tell_at(delete, new);
        assert!(!writes.are_in(&with("a", 7)));
        assert!(writes.are_in(&none));
        assert!(writes.are_in(&with("another", 9)));
    }

    #[test]
    fn what_is_old_makes_room_without_being_counted() {
        let writes = Writes::new("system");
        let began = Instant::now();
        for n in 0..REMEMBERED as u64 {
            writes.tell_at(write("Service", "old", n), began);
        }
        let later = began + MEMORY + Duration::from_secs(1);
        writes.tell_at(write("Service", "new", 9999), later);
        assert_eq!(writes.lost(), 0);
        let key = |name| ObjectKey::new("system", name);
        assert!(writes.of("Service", &key("old"), |_| true).is_empty());
        assert_eq!(writes.of("Service", &key("new"), |_| true).len(), 1);
    }
}
