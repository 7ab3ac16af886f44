use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use meshfed_federation::discovery::extension::Health;
use meshfed_federation::discovery::message::{Limits, Service};
use meshfed_federation::discovery::remote::RemoteService;

use super::*;

struct Scene {
    storing: Storing,
    dir: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("peers");
        let cache = PeerCache::open(dir.clone()).unwrap();
        Self {
            storing: Storing::new(peer(), cache),
            dir,
            _temporary: temporary,
        }
    }

    /// Until nothing is due.
    async fn settle(&mut self) {
        while self.storing.due.is_some() || self.storing.writing.is_some() {
            self.storing.step().await;
        }
    }

    /// A file is replaced by another one when it is written.
    fn file(&self) -> u64 {
        let path = self.dir.join(format!("{}.json", peer()));
        std::fs::metadata(path).unwrap().ino()
    }

    fn kept(&self) -> RemoteState {
        self.storing.cache.load().remove(&peer()).unwrap()
    }
}

fn peer() -> PeerName {
    "red-mesh".parse().unwrap()
}

fn service(name: &str, accounts: &[&str], ready: u32) -> RemoteService {
    let wire = Service {
        name: name.into(),
        namespace: "a".into(),
        hostname: format!("{name}.a.svc.here-exports.local"),
        accounts: accounts.iter().map(|&a| a.to_owned()).collect(),
        health: Some(Health {
            ready_endpoints: ready,
            capacity: 3,
            draining: false,
        }),
        ..Service::default()
    };
    RemoteService::check(wire).unwrap()
}

fn state(services: impl IntoIterator<Item = RemoteService>, seconds: i64) -> Arc<RemoteState> {
    let mut all = RemoteServices::default();
    for service in services {
        all.put(service, &Limits::default()).unwrap();
    }
    let contact = Timestamp::from_second(1_600_000_000 + seconds).unwrap();
    Arc::new(RemoteState::kept(Arc::new(all), Some(contact), None))
}

#[tokio::test(start_paused = true)]
async fn how_services_fare_and_who_was_just_heard_are_no_reason_to_write() {
    let mut scene = Scene::new();
    let first = state([service("x", &["one"], 1)], 0);
    scene.storing.changed(&first);
    scene.settle().await;
    let file = scene.file();
    for i in 2..5 {
        let fares = state([service("x", &["one"], i)], i.into());
        scene.storing.changed(&fares);
        scene.settle().await;
    }
    assert_eq!(scene.file(), file);
    assert_eq!(scene.kept().last_contact, first.last_contact);

    // Only the time of the last contact is noted.
    let later = state([service("x", &["one"], 9)], 30);
    scene.storing.changed(&later);
    scene.settle().await;
    assert_eq!(scene.file(), file);
    assert_eq!(scene.kept().last_contact, later.last_contact);
}

#[tokio::test(start_paused = true)]
async fn lists_with_the_same_checksum_are_told_apart() {
    let mut scene = Scene::new();
    let one = state([service("x", &["one", "one"], 1)], 0);
    let other = state([service("x", &["other", "other"], 1)], 1);
    assert_eq!(one.services.tag().checksum, other.services.tag().checksum);
    for state in [one, other] {
        scene.storing.changed(&state);
        scene.settle().await;
        let kept = scene.kept().services;
        assert_eq!(kept.to_list(), state.services.to_lasting_list());
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_list_is_written_as_often_as_its_bytes_allow() {
    let mut scene = Scene::new();
    let accounts: Vec<String> = (0..100)
        .map(|i| format!("{i}{}", "x".repeat(2000)))
        .collect();
    let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
    let long = |last: &str, seconds| {
        let services = (0..20).map(|i| service(&format!("s{i}"), &accounts, 1));
        state(services.chain([service("last", &[last], 1)]), seconds)
    };
    scene.storing.changed(&long("a", 0));
    scene.storing.step().await;
    scene.storing.step().await;
    let (file, start) = (scene.file(), Instant::now());
    // A change every second.
    let mut seconds = 0;
    while scene.file() == file {
        seconds += 1;
        scene
            .storing
            .changed(&long(&format!("b{seconds}"), seconds));
        let _nothing_due = tokio::time::timeout(PAUSE, scene.storing.step()).await;
    }
    let waited = start.elapsed();
    let expected = Duration::from_secs(3)..Duration::from_secs(6);
    assert!(expected.contains(&waited), "4 MB after {waited:?}");
    scene.settle().await;
    scene.storing.changed(&state([], 100));
    scene.settle().await;
    assert!(scene.kept().services.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_is_tried_again_and_counts_as_none() {
    let mut scene = Scene::new();
    scene.storing.changed(&state([service("x", &[], 1)], 0));
    scene.settle().await;
    let away = scene.dir.with_extension("away");
    std::fs::rename(&scene.dir, &away).unwrap();
    let newest = state([service("y", &[], 1)], 60);
    scene.storing.changed(&newest);
    while scene.storing.stored.is_some() {
        scene.storing.step().await;
    }
    std::fs::rename(&away, &scene.dir).unwrap();
    assert_eq!(scene.kept().last_contact, state([], 0).last_contact);
    scene.settle().await;
    let kept = scene.kept();
    assert_eq!(kept.last_contact, newest.last_contact);
    assert_eq!(kept.services.to_list(), newest.services.to_lasting_list());
}

#[tokio::test(start_paused = true)]
async fn at_the_end_the_newest_list_is_on_disk_whatever_is_being_written() {
    let mut scene = Scene::new();
    scene.storing.changed(&state([service("x", &[], 1)], 0));
    scene.storing.step().await;
    assert!(scene.storing.writing.is_some());
    let newest = state([service("y", &[], 1)], 1);
    scene.storing.changed(&newest);
    scene.storing.finish().await;
    let kept = scene.kept();
    assert_eq!(kept.services.to_list(), newest.services.to_lasting_list());
}

#[tokio::test(start_paused = true)]
async fn when_the_contact_was_lost_is_noted_until_there_is_one_again() {
    let mut scene = Scene::new();
    let connected = state([service("x", &["one"], 1)], 0);
    let mut lost = RemoteState::clone(&connected);
    lost.watch.last_disconnect = connected.last_contact;
    let mut again = lost.clone();
    again.watch.connected = true;
    scene.storing.changed(&connected);
    scene.settle().await;
    let file = scene.file();
    for (state, noted) in [(lost, connected.last_contact), (again, None)] {
        scene.storing.changed(&Arc::new(state));
        scene.settle().await;
        assert_eq!(scene.kept().lost_at(), noted);
        assert_eq!(scene.file(), file, "the list is not written for it");
    }
}
