//! Lists that differ from what the events said.

use super::*;

fn watch_error(driver: &Driver) -> Option<&RemoteError> {
    driver.client.state().watch.error.as_ref()
}

#[test]
fn a_watch_that_is_open_and_tells_nothing_of_a_change_is_opened_anew_and_it_is_said() {
    let mut driver = Driver::connected_with(&["x"]);
    assert_eq!(driver.after(60_000), [LIST]);
    driver.listed(&list(&["x", "y"]).encode());
    assert_eq!(driver.names(), ["x", "y"], "the list is right in any case");
    assert_eq!(driver.until_asked(), (10_001, vec!["cancel"]));
    assert!(!driver.client.state().watch.connected);
    assert_eq!(watch_error(&driver), Some(&RemoteError::SilentWatch));
    let (waited, asked) = driver.until_asked();
    assert_eq!(asked, [OPEN]);
    assert!(waited <= 751, "{waited}");
    assert_eq!(driver.opened(), [LIST]);
    driver.listed(&list(&["x", "y"]).encode());
    assert_eq!(driver.after(60_000), [LIST]);
    driver.listed(&list(&["x", "y"]).encode());
    assert_eq!(watch_error(&driver), Some(&RemoteError::SilentWatch));
    assert_eq!(driver.after(60_000), [LIST], "the watch stays open");
    assert_eq!(watch_error(&driver), None, "it did not come again");
}

#[test]
fn an_event_some_time_after_the_list_that_has_its_change_is_no_fault() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(60_000);
    driver.listed(&list(&["x", "y"]).encode());
    assert_eq!(driver.after(9_999), [""; 0]);
    driver.event(&event(EventAction::Add, "y", &["x", "y"]));
    assert_eq!(driver.after(50_001), [LIST]);
    driver.listed(&list(&["x", "y"]).encode());
    assert_eq!(driver.after(59_000), [""; 0]);
    assert_eq!(watch_error(&driver), None);
}

#[test]
fn a_list_that_events_or_a_new_watch_asked_for_may_differ() {
    let stays_open = |mut driver: Driver| {
        assert_eq!(driver.after(59_000), [""; 0]);
        assert_eq!(watch_error(&driver), None);
    };
    let mut asked_for = Driver::connected_with(&["x"]);
    asked_for.after(2000);
    assert_eq!(asked_for.bytes(b"{\"checksum\":0}\r\n"), [LIST]);
    asked_for.after(100);
    asked_for.listed(&list(&["x", "y"]).encode());
    stays_open(asked_for);

    let mut reopened = Driver::connected_with(&["x"]);
    reopened.after(2000);
    assert_eq!(reopened.watch_ends(None), [OPEN]);
    assert_eq!(reopened.opened(), [LIST]);
    reopened.listed(&list(&["x", "y"]).encode());
    stays_open(reopened);

    // Asked for before the watch was open, and so not the last word.
    let mut before = Driver::connected_with(&["x"]);
    before.after(60_000);
    assert_eq!(before.watch_ends(None), [OPEN]);
    before.opened();
    assert_eq!(before.listed(&list(&["x"]).encode()), [LIST]);
    before.listed(&list(&["x", "y"]).encode());
    stays_open(before);
}

/// The reference leaves the accounts out of the checksum in pairs, and sends no event for those.
#[test]
fn a_difference_that_no_checksum_shows_needs_no_event() {
    let with = |accounts: &[&str]| {
        let mut x = service("x");
        x.accounts = accounts.iter().map(ToString::to_string).collect();
        ServiceList::new(vec![x]).encode()
    };
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(60_000);
    let twice = |id: &str| with(&[id, id]);
    driver.listed(&twice("spiffe://green-mesh/ns/a/sa/b"));
    assert_eq!(driver.after(59_000), [""; 0]);
    assert_eq!(watch_error(&driver), None);
}

#[test]
fn what_a_peer_withdraws_after_its_restart_is_believed_at_once() {
    let mut driver = Driver::connected_with(&["x", "y"]);
    driver.after(2000);
    driver.watch_ends(None);
    driver.opened();
    driver.event(&event(EventAction::Delete, "x", &["y"]));
    driver.event(&event(EventAction::Delete, "y", &[]));
    assert_eq!(driver.names(), [""; 0]);
    driver.listed(&list(&[]).encode());
    assert_eq!(driver.error(), None);

    // The list may be faster.
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(2000);
    driver.watch_ends(None);
    driver.opened();
    driver.listed(&list(&[]).encode());
    assert_eq!(driver.error(), Some(&RemoteError::SuddenlyEmpty));
    driver.event(&event(EventAction::Delete, "x", &[]));
    assert_eq!(driver.names(), [""; 0]);
    assert_eq!(driver.error(), None);
}
