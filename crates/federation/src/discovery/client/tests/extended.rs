//! What two meshes of ours tell each other beyond the reference.

use super::*;

#[test]
fn the_extension_is_announced_and_used_with_those_who_announce_it() {
    let mut driver = Driver::connected_with(&["x"]);
    assert!(announces(driver.header("meshfed-discovery").as_deref()));
    assert_eq!(driver.header("meshfed-report"), None);
    assert_eq!(driver.header("if-none-match"), None);
    driver = Driver::extended_with(&["x"]);
    let tag = driver.client.state().services.tag().to_string();
    assert_eq!(driver.header("if-none-match"), Some(tag));
    assert!(
        driver
            .header("meshfed-report")
            .unwrap()
            .contains("\"imported\":0")
    );
    driver.watch_ends(Some(&refused()));
    driver.extended = false;
    driver.until_asked();
    driver.opened();
    assert_eq!(driver.header("meshfed-report"), None);
}

#[test]
fn the_list_that_we_have_need_not_be_sent_again() {
    let mut driver = Driver::extended_with(&["x"]);
    driver.event(&event(EventAction::Add, "y", &["x", "y"]));
    assert_eq!(driver.after(60_000), [LIST]);
    let tag = driver.client.state().services.tag().to_string();
    assert_eq!(driver.known, Some(tag));
    driver.event(&event(EventAction::Delete, "x", &["y"]));
    driver.list_fails(&Failure::Status(304, "Not Modified".into()));
    assert_eq!(driver.names(), ["y"]);
    assert_eq!(
        driver.client.state().last_full_sync,
        Some(driver.now().wall)
    );
    assert_eq!(driver.after(59_999), [""; 0]);
    assert_eq!(driver.after(1), [LIST]);
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(60_000);
    let synced = driver.client.state().last_full_sync;
    driver.list_fails(&Failure::Status(304, "Not Modified".into()));
    assert_eq!(
        driver.client.state().last_full_sync,
        synced,
        "we asked for no such answer"
    );
}

#[test]
fn an_answer_that_the_list_is_still_the_same_says_that_its_checksum_is_right() {
    let mut driver = Driver::new();
    driver.extended = true;
    driver.after(0);
    // A list that we kept, or the empty one.
    assert_eq!(driver.opened(), [LIST]);
    assert!(driver.known.is_some());
    assert!(!driver.client.state().list_checksum_agrees);
    driver.list_fails(&Failure::Status(304, "Not Modified".into()));
    let state = driver.client.state();
    assert_eq!(state.last_full_sync, Some(driver.now().wall));
    assert!(state.list_checksum_agrees);
}

#[test]
fn health_counts_from_those_alone_who_announce_the_extension() {
    let mut fares = event(EventAction::Update, "x", &["x"]);
    fares.service.as_mut().unwrap().health = Some(Health::default());
    let health = |driver: &Driver| {
        let services = &driver.client.state().services;
        services.iter().next().unwrap().health
    };
    let mut driver = Driver::connected_with(&["x"]);
    assert_eq!(driver.event(&fares), [""; 0]);
    assert_eq!(health(&driver), None);
    let mut told = list(&["x"]);
    told.services[0].health = Some(Health::default());
    driver.after(60_000);
    driver.listed(&told.encode());
    assert_eq!(health(&driver), None);

    let mut driver = Driver::extended_with(&["x"]);
    assert_eq!(driver.event(&fares), [""; 0], "the checksum is the same");
    assert_eq!(health(&driver), Some(Health::default()));
    driver.watch_ends(Some(&refused()));
    driver.extended = false;
    driver.until_asked();
    driver.opened();
    assert_eq!(health(&driver), None, "nobody keeps it up to date");
}

#[test]
fn a_report_goes_out_soon_after_what_is_imported_changed_and_once_a_second() {
    let imported = |count| {
        Arc::new(Imported {
            count,
            services: Vec::new(),
        })
    };
    let mut driver = Driver::extended_with(&["x"]);
    for count in 1..5 {
        driver.client.set_imported(&imported(count), driver.now());
    }
    assert_eq!(driver.until_asked(), (1001, vec![LIST]));
    assert!(
        driver
            .header("meshfed-report")
            .unwrap()
            .contains("\"imported\":4")
    );
    driver.client.set_imported(&imported(5), driver.now());
    driver.list_fails(&Failure::Status(304, String::new()));
    assert_eq!(driver.until_asked(), (1001, vec![LIST]));
    let mut driver = Driver::connected_with(&["x"]);
    driver.client.set_imported(&imported(1), driver.now());
    assert!(
        driver.until_asked().0 >= 59_000,
        "a peer without it is not told"
    );
}
