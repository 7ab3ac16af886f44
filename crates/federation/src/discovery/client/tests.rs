use super::*;
use crate::discovery::checksum::{ListHash, Variant};
use crate::discovery::export::{Export, Shown, ShownPort};
use crate::discovery::extension::{Health, announces};
use crate::discovery::message::{
    Action as EventAction, Service, ServiceList, ServicePort, WatchEvent,
};
use crate::discovery::server::{Answer, Exports, Server, ServerSettings, Take, WatchId};
use crate::names::{ExportedHost, ServiceKey};
use crate::protocol::Protocol;
use jiff::Timestamp;

const OPEN: &str = "open watch";
const LIST: &str = "get list";

/// A client with a clock, and its requests by kind.
struct Driver {
    client: Client,
    millis: u64,
    watch: Option<RequestId>,
    list: Option<RequestId>,
    /// The peer announces the extension.
    extended: bool,
    /// The tag that the last request for the list named.
    known: Option<String>,
}

impl Driver {
    fn new() -> Self {
        Self::with(ClientSettings::default())
    }

    fn with(settings: ClientSettings) -> Self {
        Self {
            client: Client::new(settings, 1, RemoteState::default()),
            millis: 0,
            watch: None,
            list: None,
            extended: false,
            known: None,
        }
    }

    fn now(&self) -> Moment {
        let start: Timestamp = "2021-10-05T13:00:00Z".parse().unwrap();
        Moment::after(start, Duration::from_millis(self.millis))
    }

    /// What was asked for, in words.
    fn note(&mut self, actions: Vec<Action>) -> Vec<&'static str> {
        let mut asked = Vec::new();
        for action in actions {
            match action {
                Action::OpenWatch(id) => {
                    self.watch = Some(id);
                    asked.push(OPEN);
                }
                Action::GetList(id) => {
                    self.list = Some(id);
                    self.known = self.header("if-none-match");
                    asked.push(LIST);
                }
                Action::Cancel(_) => asked.push("cancel"),
                Action::Changed { .. } => {}
            }
        }
        asked
    }

    fn after(&mut self, millis: u64) -> Vec<&'static str> {
        self.millis += millis;
        let actions = self.client.tick(self.now());
        self.note(actions)
    }

    /// Lets time pass until something is asked for; returns the milliseconds and what it is.
    fn until_asked(&mut self) -> (u64, Vec<&'static str>) {
        let start = self.millis;
        loop {
            let wake_at = self.client.wake_at();
            assert_ne!(wake_at, Duration::MAX, "nothing will ever be asked for");
            self.millis = self.millis.max(wake_at.as_millis() as u64 + 1);
            let asked = self.after(0);
            if !asked.is_empty() {
                return (self.millis - start, asked);
            }
        }
    }

    fn opened(&mut self) -> Vec<&'static str> {
        let id = self.watch.unwrap();
        let actions = self.client.watch_opened(id, self.extended, self.now());
        self.note(actions)
    }

    fn event(&mut self, event: &WatchEvent) -> Vec<&'static str> {
        self.bytes(&event.encode())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Vec<&'static str> {
        let actions = self
            .client
            .watch_data(self.watch.unwrap(), bytes, self.now());
        self.note(actions)
    }

    fn watch_ends(&mut self, failure: Option<&Failure>) -> Vec<&'static str> {
        let actions = self
            .client
            .watch_closed(self.watch.unwrap(), failure, self.now());
        self.note(actions)
    }

    fn listed(&mut self, document: &[u8]) -> Vec<&'static str> {
        let id = self.list.unwrap();
        let actions = self.client.list_opened(id, self.extended, self.now());
        assert_eq!(self.note(actions), [""; 0]);
        for chunk in document.chunks(100) {
            let actions = self.client.list_data(id, chunk, self.now());
            assert_eq!(self.note(actions), [""; 0]);
        }
        let actions = self.client.list_done(id, None, self.now());
        self.note(actions)
    }

    fn list_fails(&mut self, failure: &Failure) -> Vec<&'static str> {
        let actions = self
            .client
            .list_done(self.list.unwrap(), Some(failure), self.now());
        self.note(actions)
    }

    fn header(&self, name: &str) -> Option<String> {
        let headers = self.client.list_headers();
        headers.into_iter().find(|h| h.0 == name).map(|h| h.1)
    }

    /// Connected to a peer with the extension.
    fn extended_with(names: &[&str]) -> Self {
        let mut driver = Self::new();
        driver.extended = true;
        driver.after(0);
        driver.opened();
        driver.listed(&list(names).encode());
        driver
    }

    fn error(&self) -> Option<&RemoteError> {
        self.client.state().error.as_ref()
    }

    fn connected_with(names: &[&str]) -> Self {
        let mut driver = Self::new();
        driver.after(0);
        driver.opened();
        driver.listed(&list(names).encode());
        assert_eq!(driver.names(), names);
        driver
    }

    fn names(&self) -> Vec<&str> {
        let services = self.client.state().services.iter();
        services.map(|s| s.key.name.as_str()).collect()
    }
}

fn service(name: &str) -> Service {
    Service {
        name: name.into(),
        namespace: "a".into(),
        hostname: format!("{name}.a.svc.green-exports.local"),
        ports: vec![ServicePort {
            name: "http".into(),
            port: 80,
            protocol: "HTTP".into(),
        }],
        accounts: Vec::new(),
        health: None,
    }
}

fn list(names: &[&str]) -> ServiceList {
    ServiceList::new(names.iter().map(|name| service(name)).collect())
}

/// An event after which the list is `then`.
fn event(action: EventAction, name: &str, then: &[&str]) -> WatchEvent {
    WatchEvent {
        action,
        service: Some(service(name)),
        checksum: list(then).checksum,
    }
}

fn unavailable() -> Failure {
    Failure::Status(503, "Service Unavailable".into())
}

fn bad_request() -> Failure {
    Failure::Status(400, "Bad Request".into())
}

fn refused() -> Failure {
    Failure::Transport("connection refused".into())
}

#[test]
fn the_list_is_asked_for_only_after_the_watch_is_open_and_then_every_60_s() {
    let mut driver = Driver::new();
    assert_eq!(driver.after(0), [OPEN]);
    assert_eq!(driver.after(5000), [""; 0]);
    assert_eq!(driver.opened(), [LIST]);
    assert_eq!(driver.listed(&list(&["x"]).encode()), [""; 0]);
    let state = driver.client.state();
    assert!(state.watch.connected && state.list_checksum_agrees);
    assert_eq!(state.last_full_sync, Some(driver.now().wall));
    assert_eq!(driver.names(), ["x"]);
    assert_eq!(driver.after(59_999), [""; 0]);
    assert_eq!(driver.after(1), [LIST]);
}

#[test]
fn events_change_the_list_without_asking_for_it() {
    let mut driver = Driver::connected_with(&["x"]);
    let changes = [
        event(EventAction::Add, "y", &["x", "y"]),
        event(EventAction::Update, "y", &["x", "y"]),
        event(EventAction::Delete, "x", &["y"]),
    ];
    for change in &changes {
        assert_eq!(driver.event(change), [""; 0]);
    }
    assert_eq!(driver.names(), ["y"]);
    assert_eq!(
        driver.client.state().watch.last_event,
        Some(driver.now().wall)
    );
}

#[test]
fn a_checksum_that_differs_asks_for_the_list_but_not_in_a_tight_loop() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(2000);
    let wrong = event(EventAction::Add, "y", &["x", "y", "z"]);
    assert_eq!(driver.event(&wrong), [LIST]);
    assert_eq!(driver.names(), ["x", "y"]);
    assert_eq!(driver.listed(&list(&["x", "y", "z"]).encode()), [""; 0]);
    assert_eq!(driver.names(), ["x", "y", "z"]);
    let wrong = event(EventAction::Add, "w", &["x"]);
    assert_eq!(driver.event(&wrong), [""; 0]);
    assert_eq!(driver.until_asked(), (1001, vec![LIST]));
}

#[test]
fn an_event_without_a_service_asks_for_the_list() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(2000);
    assert_eq!(driver.bytes(b"{\"checksum\":0}\r\n"), [LIST]);
}

#[test]
fn an_unknown_action_is_ignored() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(2000);
    let unknown = event(EventAction::Other("drain".into()), "x", &[]);
    assert_eq!(driver.event(&unknown), [""; 0]);
    assert_eq!(driver.names(), ["x"]);
}

#[test]
fn the_older_form_of_the_checksum_is_no_mismatch() {
    let mut driver = Driver::new();
    driver.after(0);
    driver.opened();
    let older =
        |names: &[&str]| ListHash::of(&list(names).services).checksum(Variant::GatewayEndpoints);
    let first = ServiceList {
        checksum: older(&["x"]),
        ..list(&["x"])
    };
    driver.listed(&first.encode());
    assert!(driver.client.state().list_checksum_agrees);
    driver.after(2000);
    let add = WatchEvent {
        checksum: older(&["x", "y"]),
        ..event(EventAction::Add, "y", &[])
    };
    assert_eq!(driver.event(&add), [""; 0]);
    assert_eq!(driver.names(), ["x", "y"]);
}

#[test]
fn an_event_that_overtakes_a_list_is_not_lost() {
    let mut driver = Driver::connected_with(&["x"]);
    assert_eq!(driver.after(60_000), [LIST]);
    driver.event(&event(EventAction::Add, "y", &["x", "y"]));
    driver.event(&event(EventAction::Delete, "x", &["y"]));
    assert_eq!(driver.listed(&list(&["x"]).encode()), [""; 0]);
    assert_eq!(driver.names(), ["y"]);
}

#[test]
fn an_event_that_a_list_already_has_is_not_applied_again() {
    let mut driver = Driver::connected_with(&["x"]);
    assert_eq!(driver.after(60_000), [LIST]);
    driver.event(&event(EventAction::Add, "y", &["x", "y"]));
    driver.event(&event(EventAction::Delete, "y", &["x"]));
    driver.event(&event(EventAction::Add, "z", &["x", "z"]));
    assert_eq!(driver.listed(&list(&["x"]).encode()), [""; 0]);
    assert_eq!(driver.names(), ["x", "z"]);
}

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
fn a_bad_event_keeps_what_was_good() {
    let mut driver = Driver::connected_with(&["x"]);
    let mut bad = event(EventAction::Add, "y", &["x", "y"]);
    bad.service.as_mut().unwrap().hostname = "x.a.svc.cluster.local".into();
    driver.event(&bad);
    assert!(matches!(
        driver.client.state().error,
        Some(RemoteError::Refused(_))
    ));
    assert_eq!(driver.names(), ["x"]);
    assert_eq!(driver.bytes(b"garbage"), ["cancel"]);
    assert!(!driver.client.state().watch.connected);
    assert_eq!(driver.names(), ["x"]);
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
    let kept = RemoteState::kept(services.clone(), contact);
    let client = Client::new(ClientSettings::default(), 1, kept);
    assert_eq!(client.state().services, services);
    assert_eq!(client.state().last_contact, contact);
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
fn endless_events_cut_the_watch_for_a_resync_period_and_are_said_until_they_stop() {
    let mut driver = Driver::connected_with(&["x"]);
    let flood = |driver: &mut Driver| {
        let same = event(EventAction::Update, "x", &["x"]).encode().repeat(100);
        let cut = (0..10_000).find(|_| driver.bytes(&same).contains(&"cancel"));
        cut.expect("it is cut")
    };
    let first = flood(&mut driver);
    assert!(
        first >= 300,
        "a change of the whole list is no flood: {first}"
    );
    let error = |driver: &Driver| driver.client.state().watch.error.clone();
    assert_eq!(error(&driver), Some(RemoteError::TooManyEvents));
    assert!(!driver.client.state().watch.connected);
    assert_eq!(driver.names(), ["x"]);
    let start = driver.millis;
    let listed = |driver: &mut Driver, mut asked: Vec<&'static str>| {
        while asked.contains(&LIST) {
            asked = driver.listed(&list(&["x"]).encode());
        }
    };
    let reopened = |driver: &mut Driver| loop {
        let (_, asked) = driver.until_asked();
        let open = asked.contains(&OPEN);
        listed(driver, asked);
        if open {
            let asked = driver.opened();
            return listed(driver, asked);
        }
    };
    reopened(&mut driver);
    assert!(driver.millis - start >= 59_000);
    flood(&mut driver);
    reopened(&mut driver);
    driver.after(50_000);
    assert_eq!(error(&driver), Some(RemoteError::TooManyEvents));
    driver.after(11_000);
    assert_eq!(error(&driver), None);
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
    let id = driver.list.unwrap();
    driver.after(5000);
    let document = list(&["x"]).encode();
    driver.client.list_data(id, &document, driver.now());
    driver.client.list_done(id, None, driver.now());
    driver.event(&event(EventAction::Add, "w", &["y"]));
    assert_eq!(driver.until_asked(), (20_001, vec![LIST]));
}

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

#[test]
fn events_are_for_name_and_namespace_and_for_what_is_not_known_too() {
    let mut driver = Driver::connected_with(&["x"]);
    driver.after(2000);
    let mut elsewhere = service("x");
    elsewhere.namespace = "b".into();
    elsewhere.hostname = "x.b.svc.green-exports.local".into();
    let delete = WatchEvent {
        action: EventAction::Delete,
        service: Some(elsewhere),
        checksum: list(&["x"]).checksum,
    };
    assert_eq!(
        driver.event(&delete),
        [""; 0],
        "the list is as the peer says"
    );
    assert_eq!(driver.names(), ["x"]);
    let update = event(EventAction::Update, "y", &["x", "y"]);
    assert_eq!(driver.event(&update), [""; 0]);
    assert_eq!(driver.names(), ["x", "y"]);
    assert_eq!(
        driver.event(&event(EventAction::Add, "y", &["x", "y"])),
        [""; 0]
    );
}

mod histories;
mod missed;
mod trouble;
