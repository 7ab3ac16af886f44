//! Lists that fail, are late, are bad or are empty.

use super::*;

#[test]
fn a_list_that_fails_is_asked_for_again_after_a_second() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(60_000);
    assert_eq!(driver.list_fails(&unavailable()), [""; 0]);
    assert_eq!(driver.after(999), [""; 0]);
    assert_eq!(driver.after(1), [LIST]);
    assert_eq!(driver.names(), ["x"]);
}

#[test]
fn a_slow_list_is_given_up() {
    let mut driver = Driver::connected_with(&["x"]);
    assert_eq!(driver.after(60_000), [LIST]);
    let slow = driver.list.unwrap();
    driver
        .client
        .list_data(slow, b"{\"checksum\"", driver.now());
    assert_eq!(driver.after(60_000), ["cancel"]);
    assert_eq!(driver.after(1000), [LIST]);
    driver.client.list_data(slow, b":1}", driver.now());
    driver.client.list_done(slow, None, driver.now());
    assert_eq!(driver.names(), ["x"]);
}

#[test]
fn a_lasting_400_withdraws_everything() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(60_000);
    let start = driver.millis;
    while !driver.client.state().withdrawn {
        assert_eq!(driver.names(), ["x"]);
        driver.list_fails(&bad_request());
        if !driver.client.state().withdrawn {
            assert_eq!(driver.until_asked().1, [LIST]);
        }
        assert!(driver.millis - start < 12_000);
    }
    assert!(driver.millis - start >= 10_000);
    assert_eq!(driver.names(), [""; 0]);
    assert_eq!(driver.until_asked(), (60_000 + 1, vec![LIST]));
    driver.listed(&list(&["y"]).encode());
    assert!(!driver.client.state().withdrawn);
    assert_eq!(driver.names(), ["y"]);
}

#[test]
fn a_peer_that_is_away_or_fails_now_and_then_withdraws_nothing() {
    for failures in [[refused(), refused()], [bad_request(), unavailable()]] {
        let mut driver = Driver::connected_with(&["x"]);
        driver.after(60_000);
        for i in 0..100 {
            driver.list_fails(&failures[i % 2]);
            driver.until_asked();
        }
        assert_eq!(driver.names(), ["x"]);
        assert!(!driver.client.state().withdrawn);
    }
}

#[test]
fn a_400_on_the_watch_makes_us_ask_whether_anything_is_exported() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(5000);
    driver.watch_ends(Some(&refused()));
    driver.until_asked();
    assert_eq!(driver.watch_ends(Some(&bad_request())), [LIST]);
}

#[test]
fn a_bad_list_keeps_the_last_good_one_and_says_why() {
    let hostile = ServiceList::new(vec![Service {
        hostname: "kubernetes.default.svc.cluster.local".into(),
        ..service("x")
    }]);
    for bad in [&b"<html>"[..], &hostile.encode()] {
        let mut driver = Driver::connected_with(&["x"]);
        driver.after(60_000);
        assert_eq!(driver.listed(bad), [""; 0]);
        assert!(driver.client.state().error.is_some());
        assert_eq!(driver.names(), ["x"]);
        assert_eq!(driver.until_asked(), (60_001, vec![LIST]));
        driver.listed(&list(&["y"]).encode());
        assert_eq!(driver.client.state().error, None);
        assert_eq!(driver.names(), ["y"]);
    }
}

#[test]
fn a_list_without_an_end_is_cut() {
    let settings = ClientSettings {
        limits: Limits {
            list_bytes: 1000,
            ..Limits::default()
        },
        ..ClientSettings::default()
    };
    let mut driver = Driver::with(settings);
    driver.after(0);
    driver.opened();
    let id = driver.list.unwrap();
    let cut = (0..20).any(|_| {
        let actions = driver.client.list_data(id, &[b' '; 100], driver.now());
        driver.note(actions) == ["cancel"]
    });
    assert!(cut);
    assert_eq!(
        driver.client.state().error,
        Some(RemoteError::Unreadable(DecodeError::ListTooLong {
            limit: 1000
        }))
    );
}

#[test]
fn a_suddenly_empty_list_is_believed_only_after_it_stayed_empty() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(60_000);
    driver.listed(&list(&[]).encode());
    assert_eq!(driver.names(), ["x"]);
    assert_eq!(
        driver.client.state().error,
        Some(RemoteError::SuddenlyEmpty)
    );
    assert_eq!(driver.until_asked(), (30_001, vec![LIST]));
    driver.listed(&list(&[]).encode());
    assert_eq!(driver.names(), [""; 0]);
    assert_eq!(driver.client.state().error, None);
}

#[test]
fn an_empty_list_is_believed_at_once_when_events_announced_it() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.event(&event(EventAction::Delete, "x", &[]));
    assert_eq!(driver.names(), [""; 0]);
    driver.after(60_000);
    driver.listed(&list(&[]).encode());
    assert_eq!(driver.client.state().error, None);
}

#[test]
fn a_list_that_drips_is_given_up_and_said_to_be_slow() {
    let mut driver = Driver::connected_with(&["x"]);
    assert_eq!(driver.after(60_000), [LIST]);
    let slow = driver.list.unwrap();
    driver.client.list_data(slow, b"{", driver.now());
    assert_eq!(driver.after(14_999), [""; 0]);
    assert_eq!(driver.after(1), ["cancel"]);
    assert!(matches!(driver.error(), Some(RemoteError::NoList(_))));
    // One byte now and then keeps it from being idle, not from being late.
    assert_eq!(driver.until_asked().1, [LIST]);
    let slow = driver.list.unwrap();
    let start = driver.millis;
    while driver.after(10_000) != ["cancel"] {
        driver.client.list_data(slow, b" ", driver.now());
        assert!(driver.millis - start <= 60_000);
    }
    assert_eq!(driver.names(), ["x"]);
    driver.until_asked();
    driver.listed(&list(&["y"]).encode());
    assert_eq!(driver.error(), None);
}

#[test]
fn the_watch_of_a_peer_that_never_gives_a_list_stays_open_and_it_is_said() {
    let mut driver = Driver::new();
    driver.after(0);
    assert_eq!(driver.opened(), [LIST]);
    for _ in 0..4 {
        assert_eq!(driver.after(15_000), ["cancel"]);
        assert!(driver.client.state().watch.connected);
        assert!(matches!(driver.error(), Some(RemoteError::NoList(_))));
        assert_eq!(driver.after(1_000), [LIST]);
    }
}

#[test]
fn another_resync_period_counts_without_a_restart() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(10_000);
    let shorter = ClientSettings {
        resync: Duration::from_secs(5),
        ..ClientSettings::default()
    };
    let actions = driver.client.set_settings(shorter, driver.now());
    assert_eq!(driver.note(actions), [LIST]);
    driver.listed(&list(&["x"]).encode());
    assert_eq!(driver.until_asked(), (5_001, vec![LIST]));
}

#[test]
fn a_list_that_fails_for_long_is_said_and_asked_for_less_often() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(60_000);
    let start = driver.millis;
    let mut asked = 0;
    let broken = Failure::Status(500, "Internal Server Error".into());
    while driver.millis - start < 600_000 {
        driver.list_fails(&broken);
        assert_eq!(driver.error().is_some(), driver.millis - start >= 10_000);
        driver.until_asked();
        asked += 1;
    }
    assert!((120..140).contains(&asked), "{asked}");
    assert_eq!(driver.names(), ["x"]);
}

#[test]
fn lists_that_events_ask_for_take_a_small_part_of_the_time() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(60_000);
    let id = driver.list.unwrap();
    driver.after(4000);
    driver.client.list_data(id, b"{\"checksum\"", driver.now());
    driver.after(1000);
    driver.list_fails(&refused());
    driver.after(1000);
    driver.listed(&list(&["x"]).encode());
    driver.after(60_000);
    driver.list_opened();
    driver.after(5000);
    driver.list_comes(&list(&["x"]).encode());
    driver.event(&event(EventAction::Add, "w", &["y"]));
    assert_eq!(driver.until_asked(), (20_001, vec![LIST]));
}

#[test]
fn new_limits_count_without_a_new_watch() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(60_000);
    let few = ClientSettings {
        limits: Limits {
            services: 1,
            ..Limits::default()
        },
        ..ClientSettings::default()
    };
    let now = driver.now();
    let actions = driver.client.set_settings(few, now);
    assert_eq!(driver.note(actions), [""; 0]);
    driver.listed(&list(&["x", "y"]).encode());
    assert_eq!(driver.error().unwrap().kind().reason(), "ListTooLarge");
    driver.after(2000);
    let now = driver.now();
    let actions = driver.client.set_settings(ClientSettings::default(), now);
    assert_eq!(driver.note(actions), [LIST]);
    driver.listed(&list(&["x", "y"]).encode());
    assert_eq!(driver.names(), ["x", "y"]);
    assert!(driver.client.state().watch.connected);
}

#[test]
fn a_shorter_hold_counts_for_a_list_that_is_held() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(60_000);
    driver.listed(&list(&[]).encode());
    let now = driver.now();
    let hold_empty = Duration::ZERO;
    let settings = ClientSettings {
        hold_empty,
        ..ClientSettings::default()
    };
    let actions = driver.client.set_settings(settings, now);
    assert_eq!(driver.note(actions), [LIST]);
    driver.listed(&list(&[]).encode());
    assert_eq!(driver.names(), [""; 0]);
}
