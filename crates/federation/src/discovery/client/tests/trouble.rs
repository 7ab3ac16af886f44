//! Lists and events at once, and peers that make trouble.

use super::*;

fn health(ready_endpoints: u32) -> Option<Health> {
    Some(Health {
        ready_endpoints,
        ..Health::default()
    })
}

/// An update of x that changes nothing but its health.
fn fares(ready_endpoints: u32) -> WatchEvent {
    let mut event = event(EventAction::Update, "x", &["x"]);
    event.service.as_mut().unwrap().health = health(ready_endpoints);
    event
}

fn list_with_health(ready_endpoints: u32) -> Vec<u8> {
    let mut list = list(&["x"]);
    list.services[0].health = health(ready_endpoints);
    list.encode()
}

fn bad_port() -> WatchEvent {
    let mut bad = event(EventAction::Add, "y", &["x", "y"]);
    bad.service.as_mut().unwrap().ports[0].port = 0;
    bad
}

fn not_modified() -> Failure {
    Failure::Status(304, "Not Modified".into())
}

impl Driver {
    fn health(&self) -> Option<Health> {
        let services = &self.client.state().services;
        services.iter().next().unwrap().health
    }

    /// What an event or the end of a list makes of the services, and whether it says so.
    fn tells(&mut self, event: &WatchEvent) -> bool {
        let now = self.now();
        let actions = self
            .client
            .watch_data(self.watch.unwrap(), &event.encode(), now);
        actions.contains(&Action::Changed { services: true })
    }

    /// Until the watch is open again; lists are answered.
    fn until_open(&mut self) -> u64 {
        let start = self.millis;
        loop {
            let (_, mut asked) = self.until_asked();
            let opens = asked.contains(&OPEN);
            if opens {
                asked.extend(self.opened());
            }
            if asked.contains(&LIST) {
                self.listed(&list(&["x"]).encode());
            }
            if opens {
                return self.millis - start;
            }
        }
    }

    /// Until the list is asked for; the watch opens when it wants to.
    fn until_list(&mut self) -> u64 {
        let start = self.millis;
        loop {
            let (_, asked) = self.until_asked();
            let opened = if asked.contains(&OPEN) {
                self.opened()
            } else {
                Vec::new()
            };
            if asked.contains(&LIST) || opened.contains(&LIST) {
                return self.millis - start;
            }
        }
    }
}

#[test]
fn health_that_overtakes_a_list_counts() {
    let mut driver = Driver::new();
    driver.extended = true;
    driver.after(0);
    assert_eq!(driver.opened(), [LIST]);
    driver.event(&fares(0));
    assert_eq!(driver.listed(&list_with_health(1)), [""; 0]);
    assert_eq!(driver.health(), health(0));
    assert!(driver.until_list() > 50_000, "no other list is needed");

    driver.event(&fares(0));
    driver.event(&fares(3));
    driver.listed(&list_with_health(0));
    assert_eq!(driver.health(), health(3), "in the order of the events");
}

#[test]
fn health_of_events_counts_for_what_the_list_has_and_if_it_announces_the_extension() {
    let mut driver = Driver::extended_with(&["x", "y"]);
    driver.after(60_000);
    driver.event(&WatchEvent {
        checksum: list(&["x", "y"]).checksum,
        ..fares(0)
    });
    driver.event(&event(EventAction::Delete, "x", &["y"]));
    driver.listed(&list(&["y"]).encode());
    assert_eq!(driver.names(), ["y"]);
    assert_eq!(driver.health(), None);

    let mut driver = Driver::extended_with(&["x"]);
    driver.after(60_000);
    driver.event(&fares(2));
    driver.event(&event(EventAction::Add, "z", &["x", "z"]));
    driver.extended = false;
    driver.listed(&list(&["x"]).encode());
    assert_eq!(driver.names(), ["x", "z"]);
    assert_eq!(driver.health(), None);
}

#[test]
fn a_peer_that_answers_and_ends_the_watch_at_once_is_asked_later_and_later() {
    for failure in [None, Some(refused())] {
        let mut driver = Driver::connected_with(&["x"]);
        driver.watch_ends(failure.as_ref());
        let mut delays = Vec::new();
        for _ in 0..20 {
            delays.push(driver.until_open());
            driver.after(900);
            driver.watch_ends(failure.as_ref());
        }
        let late: u64 = delays[16..].iter().sum();
        assert!(late / 4 >= 30_000, "{delays:?}");
        // One that lasts makes up for it.
        driver.until_open();
        driver.after(1000);
        driver.watch_ends(Some(&refused()));
        let waits = driver.client.wake_at() - driver.now().elapsed;
        assert!(waits <= Duration::from_millis(750), "{waits:?}");
    }
}

#[test]
fn a_watch_that_ends_again_and_again_gets_no_more_lists_than_its_share() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(60_000);
    let mut listing = 0;
    let start = driver.millis;
    for turn in 0..200 {
        // Each list is another one and takes two seconds; the watch ends after each second.
        driver.list_opened();
        for second in 0..2 {
            driver.after(1000);
            let asked = driver.watch_ends(None);
            assert!(asked.contains(&OPEN), "{turn} {second}: {asked:?}");
            driver.opened();
        }
        listing += 2000;
        driver.list_comes(&list(&[["x", "y"][turn % 2]]).encode());
        let mut asked = Vec::new();
        while !asked.contains(&LIST) {
            assert!(driver.client.wake_at() < Duration::MAX);
            asked = driver.after(1000);
            if !asked.contains(&LIST) {
                asked = driver.watch_ends(None);
                asked.extend(driver.opened());
            }
        }
    }
    let share = listing as f64 / (driver.millis - start) as f64;
    assert!((0.15..=0.21).contains(&share), "{share}");
}

#[test]
fn a_peer_that_stood_still_is_asked_again_soon_for_what_has_changed_since() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(60_000);
    // The list that is on its way is answered when the peer goes on; its watch ends by then.
    driver.after(14_000);
    driver.listed(&list(&["x"]).encode());
    assert_eq!(driver.watch_ends(None), [OPEN]);
    driver.opened();
    let waited = driver.until_list();
    assert!(waited <= 2000, "{waited}");
}

#[test]
fn an_empty_list_that_is_seen_now_and_then_did_not_stay_empty() {
    type Between = fn(&mut Driver);
    let between: [(&str, Between); 3] = [
        ("a failure", |driver| {
            driver.list_fails(&refused());
        }),
        ("a list that is refused", |driver| {
            driver.listed(b"<html>");
        }),
        ("the end of the watch", |driver| {
            driver.list_fails(&unavailable());
            driver.watch_ends(Some(&refused()));
        }),
    ];
    for (what, between) in between {
        let mut driver = Driver::connected_with(&["x"]);
        driver.after(60_000);
        driver.listed(&list(&[]).encode());
        driver.until_list();
        between(&mut driver);
        driver.after(40_000);
        driver.until_list();
        driver.listed(&list(&[]).encode());
        assert_eq!(driver.names(), ["x"], "{what}");
        assert_eq!(driver.error(), Some(&RemoteError::SuddenlyEmpty), "{what}");
        let held = driver.until_list();
        driver.listed(&list(&[]).encode());
        assert_eq!((driver.names(), held), (vec![], 30_001), "{what}");
    }
    // It is the watch that says that the peer was not there, whatever the lists were.
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(60_000);
    driver.listed(&list(&[]).encode());
    driver.after(20_000);
    driver.watch_ends(Some(&refused()));
    driver.until_list();
    driver.listed(&list(&[]).encode());
    assert_eq!(driver.until_list(), 30_001);
    assert_eq!(driver.names(), ["x"]);
}

#[test]
fn the_peer_hears_soon_what_is_wrong_with_its_list() {
    let reported = |driver: &Driver| {
        let report = driver.header("meshfed-report").unwrap();
        Report::decode(report.as_bytes()).unwrap().error
    };
    let mut driver = Driver::extended_with(&["x"]);
    driver.after(60_000);
    driver.listed(b"<html>");
    assert_eq!(driver.until_asked(), (1001, vec![LIST]));
    assert!(reported(&driver).unwrap().contains("cannot be read"));
    driver.listed(b"<html>");
    assert!(driver.until_asked().0 > 50_000, "once for an error");
    driver.listed(&list(&["x"]).encode());
    assert_eq!(driver.until_asked(), (1001, vec![LIST]));
    assert_eq!(reported(&driver), None);
    driver.list_fails(&not_modified());

    driver.listed(&list(&[]).encode());
    driver.after(60_000);
    driver.listed(&list(&[]).encode());
    assert_eq!(driver.until_asked(), (1001, vec![LIST]));
    assert!(reported(&driver).unwrap().contains("suddenly empty"));
    driver.listed(&list(&["x"]).encode());
    driver.until_asked();
    driver.list_fails(&not_modified());

    assert_eq!(driver.bytes(b"garbage"), ["cancel"]);
    assert_eq!(driver.until_asked(), (1001, vec![LIST]));
    assert!(reported(&driver).is_some());
}

#[test]
fn what_events_said_while_the_list_was_confirmed_is_not_forgotten() {
    let mut driver = Driver::extended_with(&["x"]);
    assert_eq!(driver.after(60_000), [LIST]);
    driver.event(&bad_port());
    let refused = driver.error().cloned().unwrap();
    driver.list_fails(&not_modified());
    assert_eq!(driver.error(), Some(&refused));
    assert_eq!(driver.until_asked(), (1001, vec![LIST]));

    let mut driver = Driver::extended_with(&["x"]);
    assert_eq!(driver.after(60_000), [LIST]);
    driver.bytes(b"{\"checksum\":0}\r\n");
    driver.list_fails(&not_modified());
    assert_eq!(driver.until_asked(), (1001, vec![LIST]));

    let mut driver = Driver::extended_with(&["x"]);
    assert_eq!(driver.after(60_000), [LIST]);
    driver.event(&event(EventAction::Add, "y", &["x", "y"]));
    driver.event(&event(EventAction::Delete, "x", &["y"]));
    driver.list_fails(&not_modified());
    assert_eq!(driver.names(), ["y"]);
    assert!(driver.until_asked().0 > 50_000, "nothing was missed");
}

#[test]
fn a_list_that_an_event_needs_is_asked_for_although_the_one_on_its_way_is_none() {
    for bad in [true, false] {
        let mut driver = Driver::connected_with(&["x"]);
        driver.after(60_000);
        driver.event(&event(EventAction::Add, "y", &["x", "y", "z"]));
        if bad {
            driver.listed(b"<html>");
        } else {
            driver.listed(&list(&[]).encode());
        }
        assert_eq!(driver.until_asked(), (1001, vec![LIST]));
    }
}

#[test]
fn an_empty_list_is_believed_when_the_events_come_that_announce_it() {
    let mut driver = Driver::connected_with(&["x", "y"]);
    driver.after(60_000);
    driver.listed(&list(&[]).encode());
    assert_eq!(driver.error(), Some(&RemoteError::SuddenlyEmpty));
    driver.event(&event(EventAction::Delete, "x", &["y"]));
    assert_eq!(driver.error(), Some(&RemoteError::SuddenlyEmpty));
    driver.event(&event(EventAction::Delete, "y", &[]));
    assert_eq!((driver.names(), driver.error()), (vec![], None));
    // The next one that is suddenly empty is held for the whole time again.
    driver.event(&event(EventAction::Add, "x", &["x"]));
    driver.after(29_000);
    driver.until_list();
    driver.listed(&list(&[]).encode());
    assert_eq!(driver.names(), ["x"]);
}

#[test]
fn an_event_that_is_refused_takes_nothing_with_it_however_the_body_is_cut() {
    let then = event(EventAction::Add, "z", &["x", "y", "z"]);
    for together in [true, false] {
        let mut driver = Driver::connected_with(&["x"]);
        if together {
            driver.bytes(&[bad_port().encode(), then.encode()].concat());
        } else {
            driver.event(&bad_port());
            driver.event(&then);
        }
        assert_eq!(driver.names(), ["x", "z"]);
        assert!(matches!(driver.error(), Some(RemoteError::Refused(_))));
    }
}

#[test]
fn a_list_with_a_wrong_checksum_is_taken_and_known_to_be_so() {
    let mut driver = Driver::connected_with(&["x"]);
    let listed = |driver: &mut Driver, checksum| {
        driver.after(60_000);
        let list = ServiceList {
            checksum,
            ..list(&["x", "y"])
        };
        driver.listed(&list.encode());
        assert_eq!((driver.names(), driver.error()), (vec!["x", "y"], None));
        assert_eq!(
            driver.client.state().last_full_sync,
            Some(driver.now().wall)
        );
        driver.client.state().list_checksum_agrees
    };
    assert!(!listed(&mut driver, 7));
    assert!(!listed(&mut driver, 8));
    assert!(listed(&mut driver, list(&["x", "y"]).checksum));
}

#[test]
fn what_changes_nothing_is_not_told_as_a_change_of_the_services() {
    let ids = |ids: &[&str]| -> Vec<String> {
        let id = |id: &&str| format!("spiffe://green.local/ns/g/sa/{id}");
        ids.iter().map(id).collect()
    };
    let with = |accounts: &[&str]| {
        let mut service = service("x");
        service.accounts = ids(accounts);
        WatchEvent {
            action: EventAction::Update,
            checksum: ListHash::of([&service]).checksum(Variant::Current),
            service: Some(service),
        }
    };
    let mut driver = Driver::connected_with(&["x"]);
    assert!(driver.tells(&with(&["a", "b"])));
    let services = driver.client.state().services.clone();
    for same in [&["a", "b"][..], &["b", "a"], &["a", "a", "b"], &["a", "b"]] {
        assert!(!driver.tells(&with(same)), "{same:?}");
        assert_eq!(driver.client.state().services, services);
        assert!(driver.until_asked().0 > 50_000, "{same:?}: no list for it");
        let list = ServiceList::new(vec![with(same).service.unwrap()]);
        let id = driver.list.unwrap();
        driver.client.list_data(id, &list.encode(), driver.now());
        let actions = driver.client.list_done(id, None, driver.now());
        assert!(!actions.contains(&Action::Changed { services: true }));
        assert!(driver.client.state().list_checksum_agrees);
    }
    assert!(driver.tells(&with(&["a"])));
}

#[test]
fn a_contact_is_as_long_ago_as_it_is_when_the_clock_was_ahead() {
    let mut driver = Driver::connected_with(&["x"]);
    let set_back = |driver: &Driver, millis: u64| {
        let now = driver.now();
        Moment {
            elapsed: now.elapsed + Duration::from_millis(millis),
            wall: now.wall - jiff::SignedDuration::from_hours(1),
        }
    };
    let contact = |driver: &Driver| driver.client.state().last_contact.unwrap();
    let later = set_back(&driver, 5000);
    driver.client.tick(later);
    let ago = later.wall.duration_since(contact(&driver));
    assert_eq!(ago, jiff::SignedDuration::from_secs(5));

    let kept = RemoteState::kept(Arc::default(), Some(driver.now().wall), None);
    driver.client = Client::new(ClientSettings::default(), 1, kept);
    let later = set_back(&driver, 0);
    driver.client.tick(later);
    assert_eq!(contact(&driver), later.wall, "it is not known better");
}
