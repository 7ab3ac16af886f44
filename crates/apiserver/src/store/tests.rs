use std::sync::Mutex;

use proptest::prelude::*;
use serde_json::json;

use super::*;

const NAMESPACES: KindId = KindId(0);
const THINGS: KindId = KindId(1);

fn mk_store(dir: &Path) -> Store {
    let kind = |path: &str| StoreKind {
        path: path.to_owned(),
        ..StoreKind::default()
    };
    Store::open(
        dir,
        vec![kind("/namespaces"), kind("g/things")],
        NAMESPACES,
        Observers {
            before: Box::new(|_| {}),
            after: Box::new(|_| {}),
        },
    )
    .unwrap()
}

fn mk_put(kind: KindId, namespace: &str, name: &str, expect: Expect, n: u32) -> Write {
    let mut metadata = json!({"name": name, "uid": format_uid(u128::from(n) + 1)});
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    let value = json!({"metadata": metadata, "n": n});
    Write {
        kind,
        key: key(namespace, name),
        expect,
        change: Change::Put(Box::new(
            Stored::from_value(&value, &StoreKind::default()).unwrap(),
        )),
        into_namespace: !namespace.is_empty(),
        by: None,
    }
}

fn mk_delete(kind: KindId, key: &Key, revision: u64) -> Write {
    Write {
        kind,
        key: key.clone(),
        expect: Expect::Revision(revision),
        change: Change::Delete,
        into_namespace: false,
        by: None,
    }
}

#[test]
fn a_write_is_refused_unless_the_state_is_the_expected_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = mk_store(dir.path());
    let put = |expect| store.write_blocking(mk_put(THINGS, "ns", "a", expect, 1));
    assert_eq!(put(Expect::Absent).unwrap_err(), WriteError::NoNamespace);
    store
        .write_blocking(mk_put(NAMESPACES, "", "ns", Expect::Absent, 9))
        .unwrap();
    assert_eq!(put(Expect::Revision(1)).unwrap_err(), WriteError::Missing);
    let first = put(Expect::Absent).unwrap();
    assert_eq!(put(Expect::Absent).unwrap_err(), WriteError::Exists);
    put(Expect::Revision(first.revision)).unwrap();
    assert_eq!(
        put(Expect::Revision(first.revision)).unwrap_err(),
        WriteError::Changed
    );
}

#[test]
fn a_namespace_is_removed_only_when_it_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let store = mk_store(dir.path());
    let namespace = store
        .write_blocking(mk_put(NAMESPACES, "", "ns", Expect::Absent, 9))
        .unwrap();
    let thing = store
        .write_blocking(mk_put(THINGS, "ns", "a", Expect::Absent, 1))
        .unwrap();
    let remove = || {
        store.write_blocking(Write {
            change: Change::DeleteEmptyNamespace,
            ..mk_delete(NAMESPACES, &namespace.key, namespace.revision)
        })
    };
    assert_eq!(remove().unwrap_err(), WriteError::NamespaceInUse);
    store
        .write_blocking(mk_delete(THINGS, &thing.key, thing.revision))
        .unwrap();
    remove().unwrap();
}

#[test]
fn history_that_was_dropped_is_said_to_be_too_old() {
    let dir = tempfile::tempdir().unwrap();
    let store = mk_store(dir.path());
    let mut last = store
        .write_blocking(mk_put(NAMESPACES, "", "a", Expect::Absent, 1))
        .unwrap();
    let first = last.revision;
    // Large objects, so that few fit.
    let filler = "x".repeat(512 * 1024);
    for _ in 0..40 {
        let value = json!({"metadata": {"name": "a", "uid": format_uid(2)}, "f": filler});
        last = store
            .write_blocking(Write {
                kind: NAMESPACES,
                key: last.key.clone(),
                expect: Expect::Revision(last.revision),
                change: Change::Put(Box::new(
                    Stored::from_value(&value, &StoreKind::default()).unwrap(),
                )),
                into_namespace: false,
                by: None,
            })
            .unwrap();
    }
    let cache = store.read();
    let kind = cache.kind(NAMESPACES);
    assert!(kind.events_after(first, 1000).is_err());
    assert!(kind.at(first, "").is_err());
    assert_eq!(kind.events_after(last.revision - 1, 1000).unwrap().len(), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u32),
    Delete(u8),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..6_u8, any::<u32>()).prop_map(|(name, n)| Step::Put(name, n)),
        3 => (0..6_u8).prop_map(Step::Delete),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

fn listed(store: &Store) -> Vec<(Key, u64, Value)> {
    let cache = store.read();
    let objects = cache.kind(NAMESPACES).in_namespace("");
    objects
        .map(|object| (object.key.clone(), object.revision, object.to_value()))
        .collect()
}

use serde_json::Value;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn events_replayed_over_a_list_give_the_final_list_and_undone_the_old_one(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = mk_store(dir.path());
        let mut snapshot = (store.read().revision, listed(&store));
        for step in &steps {
            match step {
                Step::Reopen => {
                    let before = listed(&store);
                    drop(store);
                    store = mk_store(dir.path());
                    prop_assert_eq!(&before, &listed(&store));
                    snapshot = (store.read().revision, before);
                }
                Step::Put(name, n) => {
                    let name = format!("n{name}");
                    let current = store.read().get(NAMESPACES, &key("", &name)).map(|o| o.revision);
                    let expect = current.map_or(Expect::Absent, Expect::Revision);
                    store.write_blocking(mk_put(NAMESPACES, "", &name, expect, *n)).unwrap();
                }
                Step::Delete(name) => {
                    let key = key("", &format!("n{name}"));
                    let current = store.read().get(NAMESPACES, &key).map(|o| o.revision);
                    if let Some(revision) = current {
                        store.write_blocking(mk_delete(NAMESPACES, &key, revision)).unwrap();
                    }
                }
            }
        }
        let (revision, old) = snapshot;
        let mut replayed: std::collections::BTreeMap<Key, (u64, Value)> =
            old.iter().map(|(k, r, v)| (k.clone(), (*r, v.clone()))).collect();
        let cache = store.read();
        let events = cache.kind(NAMESPACES).events_after(revision, usize::MAX).unwrap();
        for event in &events {
            let object = &event.object;
            if event.deleted {
                prop_assert!(replayed.remove(&object.key).is_some());
            } else {
                let before = replayed.insert(object.key.clone(), (object.revision, object.to_value()));
                prop_assert_eq!(before.is_some(), event.previous.is_some());
            }
        }
        let undone = cache.kind(NAMESPACES).at(revision, "").unwrap();
        drop(cache);
        let replayed: Vec<_> = replayed.into_iter().map(|(k, (r, v))| (k, r, v)).collect();
        prop_assert_eq!(replayed, listed(&store));
        let undone: Vec<_> =
            undone.iter().map(|o| (o.key.clone(), o.revision, o.to_value())).collect();
        prop_assert_eq!(undone, old);
    }
}

#[test]
fn writes_that_queue_together_are_all_answered_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = mk_store(dir.path());
    let revisions = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (store, revisions) = (&store, &revisions);
            scope.spawn(move || {
                for n in 0..20 {
                    let name = format!("t{thread}-{n}");
                    let put = mk_put(NAMESPACES, "", &name, Expect::Absent, thread * 100 + n);
                    let stored = store.write_blocking(put).unwrap();
                    // It is visible to whoever was told that it is done.
                    assert!(store.read().get(NAMESPACES, &stored.key).is_some());
                    revisions.lock().unwrap().push(stored.revision);
                }
            });
        }
    });
    let mut revisions = revisions.into_inner().unwrap();
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=160).collect::<Vec<_>>());
}
