use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::discovery::export::Shown;
use crate::discovery::extension::Health;
use crate::discovery::fixtures;
use crate::discovery::message::{EventDecoder, Limits, WatchEvent, decode_list};
use crate::discovery::remote::{RemoteService, RemoteServices};

fn at(seconds: u64) -> Moment {
    let start: Timestamp = "2021-10-05T13:00:00Z".parse().unwrap();
    Moment::after(start, Duration::from_secs(seconds))
}

fn export(name: &str, port: u16) -> (ServiceKey, Arc<Export>) {
    fares(name, port, 1)
}

fn fares(name: &str, port: u16, ready: u32) -> (ServiceKey, Arc<Export>) {
    fixtures::export(name, port, health(ready))
}

fn health(ready_endpoints: u32) -> Health {
    Health {
        ready_endpoints,
        capacity: 3,
        draining: false,
    }
}

fn body(server: &mut Server, extended: bool, now: Moment) -> Arc<[u8]> {
    match server.list("10.0.0.1", None, now) {
        Answer::List(document) => document.body(extended),
        Answer::NotModified(tag) => panic!("nobody named {tag}"),
    }
}

fn exports(of: &[(&str, u16)]) -> Arc<Exports> {
    Arc::new(of.iter().map(|(name, port)| export(name, *port)).collect())
}

fn drain(server: &mut Server, id: WatchId) -> Vec<WatchEvent> {
    let mut decoder = EventDecoder::new(Limits::default());
    let mut events = Vec::new();
    while let Take::Event(bytes) = server.take(id) {
        decoder.push(&bytes, &mut events).unwrap();
    }
    events
}

fn briefly(events: &[WatchEvent]) -> Vec<String> {
    let name = |e: &WatchEvent| e.service.as_ref().unwrap().name.clone();
    events
        .iter()
        .map(|e| format!("{} {}", e.action.as_str(), name(e)))
        .collect()
}

#[test]
fn a_watch_has_no_initial_event_and_then_every_change() {
    let mut server = Server::new(ServerSettings::default());
    server.set_exports(&exports(&[("x", 1), ("y", 1)]), at(0));
    let (watch, _) = server.open_watch("10.0.0.1", false, at(1));
    assert_eq!(server.take(watch), Take::Nothing);
    let woken = server.set_exports(&exports(&[("y", 2), ("z", 1)]), at(2));
    assert_eq!(woken, [watch]);
    let events = drain(&mut server, watch);
    assert_eq!(briefly(&events), ["delete x", "update y", "add z"]);
    assert_eq!(events[2].checksum, server.tag().checksum);
    assert_eq!(events[0].service.as_ref().unwrap().ports[0].port, 1);
}

#[test]
fn a_watch_that_opens_during_a_removal_hears_what_is_gone() {
    let gone = exports(&[("x", 1), ("y", 1)]);
    let mut server = Server::new(ServerSettings::default());
    for extended in [false, true] {
        let (watch, _) = server.open_watch("10.0.0.1", extended, at(1));
        server.tell_gone(watch, &gone);
        assert!(!server.has_told_all_removals());
        let events = drain(&mut server, watch);
        assert_eq!(briefly(&events), ["delete x", "delete y"]);
        let mut half = Server::new(ServerSettings::default());
        half.set_exports(&exports(&[("y", 1)]), at(0));
        assert_eq!(events[0].checksum, half.tag().checksum);
        assert_eq!(events[1].checksum, server.tag().checksum);
        assert!(server.has_told_all_removals());
    }
    let nothing = Server::new(ServerSettings::default()).tag();
    assert_eq!(server.tag(), nothing, "the list is empty all the time");
}

#[test]
fn what_is_gone_is_encoded_once_however_many_watches_open() {
    let mut server = Server::new(ServerSettings::default());
    let mut told = |gone: &Exports, extended| {
        let (watch, _) = server.open_watch("10.0.0.1", extended, at(1));
        server.tell_gone(watch, gone);
        match server.take(watch) {
            Take::Event(event) => event,
            other => panic!("{other:?}"),
        }
    };
    let gone = exports(&[("x", 1), ("y", 1)]);
    for extended in [false, true] {
        let first = told(&gone, extended);
        assert!(Arc::ptr_eq(&first, &told(&gone, extended)));
        assert!(!Arc::ptr_eq(&first, &told(&gone, !extended)));
        let fewer = told(&exports(&[("y", 1)]), extended);
        assert_ne!(first, fewer);
    }
}

#[test]
fn a_new_alias_is_a_delete_and_an_add() {
    let mut server = Server::new(ServerSettings::default());
    server.set_exports(&exports(&[("b", 1)]), at(0));
    let (watch, _) = server.open_watch("10.0.0.1", false, at(1));
    server.set_exports(&exports(&[("a", 1)]), at(2));
    assert_eq!(briefly(&drain(&mut server, watch)), ["delete b", "add a"]);
}

#[test]
fn nothing_is_sent_when_nothing_changed() {
    let mut server = Server::new(ServerSettings::default());
    server.set_exports(&exports(&[("x", 1)]), at(0));
    server.open_watch("10.0.0.1", false, at(1));
    assert!(server.set_exports(&exports(&[("x", 1)]), at(2)).is_empty());
}

#[test]
fn the_list_is_the_current_one_sorted_by_host() {
    let mut server = Server::new(ServerSettings::default());
    let empty = body(&mut server, false, at(0));
    assert_eq!(&*empty, b"{\"checksum\":3035108133973235477}");
    server.set_exports(&exports(&[("y", 1), ("x", 1)]), at(1));
    let received = decode_list(&body(&mut server, false, at(2)), &Limits::default()).unwrap();
    let hosts: Vec<&str> = received
        .list
        .services
        .iter()
        .map(|s| &*s.hostname)
        .collect();
    assert_eq!(
        hosts,
        ["x.a.svc.green-exports.local", "y.a.svc.green-exports.local"]
    );
    assert_eq!(received.list.checksum, server.tag().checksum);
}

#[test]
fn a_watch_that_does_not_read_is_cut_off_and_holds_up_nobody() {
    let settings = ServerSettings {
        queue_bytes: 1000,
        ..ServerSettings::default()
    };
    let mut server = Server::new(settings);
    let (stuck, _) = server.open_watch("10.0.0.1", false, at(0));
    let (reading, _) = server.open_watch("10.0.0.2", false, at(0));
    for port in 1..20 {
        server.set_exports(&exports(&[("x", port)]), at(1));
        assert_eq!(drain(&mut server, reading).len(), 1);
    }
    assert_eq!(server.take(stuck), Take::Closed);
    let statuses = server.sources(at(1));
    assert!(!statuses[0].connected);
    assert!(statuses[1].connected);
}

#[test]
fn the_oldest_watch_makes_room_for_a_new_one() {
    let settings = ServerSettings {
        watches: 2,
        ..ServerSettings::default()
    };
    let mut server = Server::new(settings);
    let (first, evicted) = server.open_watch("10.0.0.1", false, at(0));
    assert_eq!(evicted, None);
    let (second, _) = server.open_watch("10.0.0.1", false, at(0));
    let (_, evicted) = server.open_watch("10.0.0.1", false, at(0));
    assert_eq!(evicted, Some(first));
    assert_eq!(server.take(first), Take::Closed);
    assert_eq!(server.take(second), Take::Nothing);
}

#[test]
fn a_change_of_everything_cuts_off_nobody_who_reads() {
    let settings = ServerSettings {
        queue_bytes: 1000,
        ..ServerSettings::default()
    };
    let mut server = Server::new(settings);
    let (reading, _) = server.open_watch("10.0.0.1", false, at(0));
    let all = |port| -> Arc<Exports> {
        let services = (0..100).map(|i| export(&format!("s{i}"), port));
        Arc::new(services.collect())
    };
    for port in 1..5 {
        server.set_exports(&all(port), at(1));
        assert_eq!(drain(&mut server, reading).len(), 100);
    }
    server.set_exports(&all(8), at(1));
    server.set_exports(&all(9), at(1));
    assert_eq!(server.take(reading), Take::Closed);
}

#[test]
fn how_a_service_fares_is_told_to_those_alone_who_announce_the_extension() {
    let mut server = Server::new(ServerSettings::default());
    server.set_exports(&Exports::from_iter([fares("x", 1, 2)]), at(0));
    let (plain, _) = server.open_watch("10.0.0.1", false, at(1));
    let (extended, _) = server.open_watch("10.0.0.2", true, at(1));
    let before = server.tag();
    let woken = server.set_exports(&Exports::from_iter([fares("x", 1, 0)]), at(2));
    assert_eq!(woken, [extended]);
    assert_eq!(server.take(plain), Take::Nothing);
    let events = drain(&mut server, extended);
    assert_eq!(briefly(&events), ["update x"]);
    assert_eq!(events[0].checksum, before.checksum, "it is no part of it");
    assert_eq!(events[0].service.as_ref().unwrap().health, Some(health(0)));
    assert_ne!(server.tag(), before);

    server.set_exports(&Exports::from_iter([fares("x", 2, 0)]), at(3));
    let Take::Event(bytes) = server.take(plain) else {
        panic!("a new port is news for everyone");
    };
    assert!(!String::from_utf8_lossy(&bytes).contains("meshfed"));
    let list = |server: &mut Server, extended| {
        String::from_utf8_lossy(&body(server, extended, at(4))).into_owned()
    };
    let without = list(&mut server, false);
    assert!(!without.contains("meshfed"));
    let health = r#","meshfedHealth":{"readyEndpoints":0,"capacity":3,"draining":false}}"#;
    let with = list(&mut server, true);
    assert_eq!(with.replace(health, "}"), without);
    assert_ne!(with, without);
}

#[test]
fn who_names_the_list_that_it_has_gets_no_other() {
    let mut server = Server::new(ServerSettings::default());
    server.set_exports(&Exports::from_iter([fares("x", 1, 2)]), at(0));
    let known = server.tag().to_string();
    let answer = server.list("10.0.0.1", Some(&known), at(1));
    assert!(matches!(answer, Answer::NotModified(tag) if tag.to_string() == known));
    assert_eq!(server.sources(at(1))[0].last_full_sync, Some(at(1).wall));
    server.set_exports(&Exports::from_iter([fares("x", 1, 3)]), at(2));
    let answer = server.list("10.0.0.1", Some(&known), at(3));
    assert!(matches!(answer, Answer::List(_)));
}

#[test]
fn a_burst_of_requests_makes_the_document_once() {
    let mut server = Server::new(ServerSettings::default());
    server.set_exports(&exports(&[("x", 1)]), at(0));
    let first = body(&mut server, false, at(1));
    assert!(Arc::ptr_eq(&first, &body(&mut server, false, at(2))));
}

#[test]
fn a_new_ingress_identity_is_told_and_the_same_one_again_is_not() {
    let mut server = Server::new(ServerSettings::default());
    let (key, export) = export("x", 1);
    let list = |account: &str| -> Arc<Exports> {
        let shown = Shown {
            accounts: [account.to_owned()].into(),
            ..export.shown().clone()
        };
        let export = Export::new(shown, health(1));
        Arc::new(Exports::from_iter([(key.clone(), Arc::new(export))]))
    };
    server.set_exports(&list("spiffe://red.local/ns/a/sa/b"), at(0));
    let (watch, _) = server.open_watch("10.0.0.1", false, at(0));
    // In the reference's hash two equal accounts cancel; ours are unique, so this is a change.
    let other = list("spiffe://red.local/ns/a/sa/c");
    server.set_exports(&other, at(1));
    assert_eq!(briefly(&drain(&mut server, watch)), ["update x"]);
    let same = list("spiffe://red.local/ns/a/sa/c");
    assert!(server.set_exports(&same, at(2)).is_empty());
}

#[test]
fn a_report_is_shown_with_its_source() {
    let mut server = Server::new(ServerSettings::default());
    let report = Report {
        imported: 3,
        ..Report::default()
    };
    server.report("10.0.0.1", report.clone(), at(0));
    assert_eq!(server.sources(at(1))[0].report, Some(report));
}

#[test]
fn a_source_is_shown_until_it_has_been_away_for_five_minutes() {
    let mut server = Server::new(ServerSettings::default());
    let (watch, _) = server.open_watch("10.128.2.149", false, at(0));
    server.list("10.128.2.149", None, at(1));
    let now = at(1000);
    let status = &server.sources(now)[0];
    assert!(status.connected);
    assert_eq!(status.source, "10.128.2.149");
    assert_eq!(status.last_connected, Some(at(0).wall));
    assert_eq!(status.last_full_sync, Some(at(1).wall));
    assert_eq!(server.next_forgotten(), None);
    server.close_watch(watch, now);
    assert_eq!(server.sources(now)[0].last_disconnect, Some(now.wall));
    assert_eq!(server.next_forgotten(), Some(Duration::from_secs(1300)));
    assert!(!server.sources(at(1300))[0].connected);
    assert!(server.sources(at(1301)).is_empty());
}

#[test]
fn a_peer_cannot_fill_our_memory_with_sources() {
    let mut server = Server::new(ServerSettings::default());
    let (_kept, _) = server.open_watch("10.0.0.1", false, at(0));
    for i in 0..1000 {
        server.list(&format!("10.1.{}.{}", i / 250, i % 250), None, at(1));
    }
    let statuses = server.sources(at(1));
    assert_eq!(statuses.len(), 32);
    assert!(
        statuses
            .iter()
            .any(|s| s.source == "10.0.0.1" && s.connected)
    );
}

#[test]
fn the_source_is_the_first_forwarded_address_else_that_of_the_connection() {
    let connection: IpAddr = "127.0.0.9".parse().unwrap();
    let of = |header| source_of(header, connection);
    assert_eq!(of(Some(" 10.0.0.1 , 10.0.0.2")), "10.0.0.1");
    assert_eq!(of(Some("")), "127.0.0.9");
    assert_eq!(of(Some("<script>")), "127.0.0.9");
    assert_eq!(of(None), "127.0.0.9");
}

proptest! {
    #[test]
    fn whoever_applies_the_events_has_the_list(
        steps in proptest::collection::vec(proptest::collection::btree_map(0..5usize, 1..4u16, 0..5), 1..10)
    ) {
        let mut server = Server::new(ServerSettings::default());
        let (watch, _) = server.open_watch("10.0.0.1", false, at(0));
        let mut copy = RemoteServices::default();
        for step in steps {
            let now: Exports = step
                .iter()
                .map(|(which, port)| export(["v", "w", "x", "y", "z"][*which], *port))
                .collect();
            server.set_exports(&Arc::new(now), at(1));
            for event in drain(&mut server, watch) {
                let service = event.service.unwrap();
                if event.action == Action::Delete {
                    copy.remove(&service.namespace, &service.name);
                } else {
                    copy.put(RemoteService::check(service).unwrap(), &Limits::default()).unwrap();
                }
                prop_assert!(copy.agrees_with(event.checksum));
            }
            let list = decode_list(&body(&mut server, false, at(1)), &Limits::default()).unwrap();
            prop_assert_eq!(&RemoteServices::check(list, &Limits::default()).unwrap(), &copy);
        }
    }
}
