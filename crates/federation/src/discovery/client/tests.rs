//! A client with a clock, and how it follows lists and events.

use super::*;
use crate::discovery::checksum::{ListHash, Variant};
use crate::discovery::extension::{Health, announces};
use crate::discovery::fixtures;
use crate::discovery::message::{
    Action as EventAction, Service, ServiceList, ServicePort, WatchEvent,
};
use crate::discovery::server::{Answer, Exports, Server, ServerSettings, Take, WatchId};
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

    /// The head of the answer comes.
    fn list_opened(&mut self) {
        let id = self.list.unwrap();
        let actions = self.client.list_opened(id, self.extended, self.now());
        assert_eq!(self.note(actions), [""; 0]);
    }

    fn listed(&mut self, document: &[u8]) -> Vec<&'static str> {
        self.list_opened();
        self.list_comes(document)
    }

    /// All of the answer but its head comes.
    fn list_comes(&mut self, document: &[u8]) -> Vec<&'static str> {
        let id = self.list.unwrap();
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

mod extended;
mod histories;
mod lists;
mod missed;
mod trouble;
mod ways;
