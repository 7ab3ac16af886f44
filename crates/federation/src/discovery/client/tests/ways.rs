//! When the watch is opened again, and a way that falls silent.

use super::*;

#[test]
fn a_watch_that_fails_is_opened_again_later_and_later() {
    let mut driver = Driver::new();
    driver.after(0);
    let soon = [20.0, 40.0, 80.0, 160.0];
    let later = (0..7).map(|attempt| 500.0 * 1.5_f64.powi(attempt));
    for expected in soon.into_iter().chain(later) {
        driver.watch_ends(Some(&unavailable()));
        let status = driver.client.state().watch.last_disconnect_status.clone();
        assert_eq!(status.unwrap(), "503 Service Unavailable");
        let (waited, asked) = driver.until_asked();
        assert_eq!(asked, [OPEN]);
        let range = (expected * 0.5) as u64..=(expected * 1.5) as u64 + 1;
        assert!(range.contains(&waited), "{waited} not in {range:?}");
    }
    assert_eq!(driver.client.state().watch.last_disconnect, None);
    driver.opened();
    driver.after(1000);
    driver.watch_ends(Some(&refused()));
    assert!(driver.client.state().watch.last_disconnect.is_some());
    let waited = driver.client.wake_at() - driver.now().elapsed;
    assert!(waited <= Duration::from_millis(751));
}

#[test]
fn a_watch_that_ends_cleanly_is_reopened_at_once_unless_it_was_short() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(1000);
    assert_eq!(driver.watch_ends(None), [OPEN]);
    assert!(!driver.client.state().watch.connected);
    driver.opened();
    assert_eq!(driver.watch_ends(None), [""; 0]);
    let (waited, _) = driver.until_asked();
    assert!(waited >= 250, "{waited}");
}

#[test]
fn a_watch_without_an_answer_is_given_up() {
    let mut driver = Driver::new();
    driver.after(0);
    assert_eq!(driver.after(10_000), ["cancel"]);
    assert_eq!(driver.until_asked().1, [OPEN]);
}

#[test]
fn a_restart_dials_at_once_and_keeps_the_services() {
    let mut driver = Driver::connected_with(&["x"]);
    let old = driver.watch.unwrap();
    let actions = driver.client.restart(driver.now());
    assert_eq!(driver.note(actions), ["cancel", OPEN]);
    assert_eq!(driver.names(), ["x"]);
    driver.client.watch_data(old, b"garbage", driver.now());
    assert_eq!(driver.opened(), [LIST]);
}

#[test]
fn what_is_kept_on_disk_is_there_before_the_peer_is() {
    let connected = Driver::connected_with(&["x"]);
    let services = connected.client.state().services.clone();
    let contact = Some("2021-10-05T12:00:00Z".parse().unwrap());
    let kept = RemoteState::kept(services.clone(), contact, None);
    let client = Client::new(ClientSettings::default(), 1, kept);
    assert_eq!(client.state().services, services);
    assert_eq!(client.state().last_contact, contact);
    // The contact of then is lost with the first attempt that fails.
    let mut driver = Driver::new();
    driver.client = client;
    driver.after(0);
    assert_eq!(driver.client.state().lost_at(), None);
    driver.watch_ends(Some(&unavailable()));
    let lost = driver.client.state().lost_at();
    assert_eq!(lost, Some(driver.now().wall));
    driver.until_asked();
    driver.watch_ends(Some(&unavailable()));
    assert_eq!(driver.client.state().lost_at(), lost);
    driver.until_asked();
    driver.opened();
    assert_eq!(driver.client.state().lost_at(), None);
}

#[test]
fn a_way_that_fell_silent_is_noticed_by_the_next_list_and_tried_anew() {
    let mut driver = Driver::connected_with(&["x"]);
    assert_eq!(driver.after(60_000), [LIST]);
    assert_eq!(driver.after(14_999), [""; 0]);
    assert!(driver.client.state().watch.connected);
    // The list and the watch.
    assert_eq!(driver.after(1), ["cancel", "cancel"]);
    let watch = &driver.client.state().watch;
    assert!(!watch.connected);
    let status = watch.last_disconnect_status.as_deref().unwrap();
    assert!(status.contains("silent"), "{status}");
    assert_eq!(driver.error(), None);
    assert_eq!(driver.names(), ["x"]);
    let (waited, asked) = driver.until_asked();
    assert_eq!(asked, [OPEN]);
    assert!(waited <= 751, "{waited}");
    assert_eq!(driver.opened(), [LIST]);
    driver.listed(&list(&["x"]).encode());

    // Whoever says something on the watch is there.
    assert_eq!(driver.after(60_000), [LIST]);
    driver.after(10_000);
    driver.event(&event(EventAction::Add, "y", &["x", "y"]));
    assert_eq!(driver.after(5_000), ["cancel"]);
    assert!(driver.client.state().watch.connected);
    assert!(matches!(driver.error(), Some(RemoteError::NoList(_))));
}

#[test]
fn a_gateway_that_reaches_nobody_for_long_is_believed() {
    let mut driver = Driver::connected_with(&["x"]);
    assert_eq!(driver.after(60_000), [LIST]);
    let start = driver.millis;
    loop {
        let asked = driver.list_fails(&unavailable());
        assert_eq!(driver.names(), ["x"]);
        if asked == ["cancel"] {
            break;
        }
        assert!(driver.client.state().watch.connected);
        assert_eq!(driver.until_asked().1, [LIST]);
    }
    assert!(!driver.client.state().watch.connected);
    assert!((10_000..12_000).contains(&(driver.millis - start)));
}

#[test]
fn a_peer_that_calls_is_called_back_at_once_but_not_in_a_loop() {
    let mut driver = Driver::connected_with(&["x"]);
    let called = |driver: &mut Driver| {
        let actions = driver.client.peer_called(driver.now());
        driver.note(actions)
    };
    // It was away for so long that the next attempt is far off.
    for _ in 0..20 {
        driver.watch_ends(Some(&refused()));
        driver.until_asked();
    }
    driver.watch_ends(Some(&refused()));
    driver.after(1_000);
    assert_eq!(called(&mut driver), [OPEN]);
    driver.watch_ends(Some(&refused()));
    for _ in 0..10 {
        assert_eq!(called(&mut driver), [""; 0]);
    }
    assert_eq!(driver.until_asked(), (1_001, vec![OPEN]));
    assert_eq!(driver.opened(), [LIST]);
    driver.listed(&list(&["x"]).encode());
    assert_eq!(called(&mut driver), [""; 0]);

    // Not one whose watch was cut for what came through it.
    driver.bytes(b"]]]");
    driver.after(5_000);
    assert_eq!(called(&mut driver), [""; 0]);
    let (waited, asked) = driver.until_asked();
    assert!(
        waited > 50_000 && asked.contains(&OPEN),
        "{waited} {asked:?}"
    );
}

#[test]
fn contact_is_an_event_or_an_answer_that_could_be_read() {
    let mut driver = Driver::connected_with(&["x"]);
    let contact = |driver: &Driver| driver.client.state().last_contact.unwrap();
    assert_eq!(contact(&driver), driver.now().wall);
    driver.after(60_000);
    let before = contact(&driver);
    driver.listed(b"<html>");
    assert_eq!(contact(&driver), before);
    driver.event(&event(EventAction::Update, "x", &["x"]));
    assert_eq!(contact(&driver), driver.now().wall);
    driver.after(60_000);
    driver.listed(&list(&[]).encode());
    assert_eq!(
        contact(&driver),
        driver.now().wall,
        "empty and held, but an answer"
    );
}
