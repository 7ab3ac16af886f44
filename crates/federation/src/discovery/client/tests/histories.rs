//! Random histories of a client and a server.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Which are exported, and how many of their endpoints are ready.
type Names = BTreeMap<usize, u32>;

fn exports(names: &Names) -> Arc<Exports> {
    let export = |(which, ready): (&usize, &u32)| {
        let name = ["v", "w", "x", "y", "z"][*which];
        let health = Health {
            ready_endpoints: *ready,
            ..Health::default()
        };
        fixtures::export(name, 80, health)
    };
    Arc::new(names.iter().map(export).collect())
}

#[derive(Debug, Clone)]
enum Step {
    Export(Names),
    /// One of those that are exported fares otherwise.
    Fares(usize, u32),
    /// The server makes the list that was asked for.
    MakeList,
    /// The list arrives.
    ListArrives,
    Events(usize),
    WatchBreaks,
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        proptest::collection::btree_map(0..5usize, 0..3u32, 0..5).prop_map(Step::Export),
        (0..5usize, 0..3u32).prop_map(|(which, ready)| Step::Fares(which, ready)),
        Just(Step::MakeList),
        Just(Step::ListArrives),
        (1..4usize).prop_map(Step::Events),
        Just(Step::WatchBreaks),
        (1..3000u64).prop_map(Step::Wait),
        Just(Step::Wait(60_000)),
    ]
}

fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(any_step(), 0..40)
}

/// A client and a server, and what is on its way between them.
struct Two {
    driver: Driver,
    server: Server,
    names: Names,
    current: Arc<Exports>,
    feed: Option<WatchId>,
    /// The last request for the list that was made before the watch was open.
    before: Option<RequestId>,
    /// The answer to the client's request; `None`: that its list is the newest.
    made: Option<(RequestId, Option<Arc<[u8]>>)>,
}

impl Two {
    fn new(extended: bool) -> Self {
        let mut driver = Driver::new();
        driver.extended = extended;
        driver.after(0);
        let mut server = Server::new(ServerSettings::default());
        let names = Names::from([(1, 1), (3, 1)]);
        let current = exports(&names);
        server.set_exports(&current, driver.now());
        Self {
            driver,
            server,
            names,
            current,
            feed: None,
            before: None,
            made: None,
        }
    }

    fn take(&mut self, step: Step) {
        let driver = &mut self.driver;
        if !matches!(driver.client.watch, Watch::Open { .. })
            && let Some(id) = self.feed.take()
        {
            self.server.close_watch(id, driver.now());
        }
        if self.feed.is_none() && matches!(driver.client.watch, Watch::Opening { .. }) {
            let (id, _) = self
                .server
                .open_watch("10.0.0.1", driver.extended, driver.now());
            self.feed = Some(id);
            self.before = driver.list;
            driver.opened();
        }
        match step {
            Step::Export(names) => {
                self.names = names;
                self.current = exports(&self.names);
                self.server.set_exports(&self.current, driver.now());
            }
            Step::Fares(which, ready) => {
                if let Some(health) = self.names.values_mut().nth(which) {
                    *health = ready;
                }
                self.current = exports(&self.names);
                self.server.set_exports(&self.current, driver.now());
            }
            Step::MakeList => {
                if let Some(id) = driver.list {
                    let known = driver.known.as_deref();
                    let answer = match self.server.list("10.0.0.1", known, driver.now()) {
                        Answer::List(document) => Some(document.body(driver.extended)),
                        Answer::NotModified(_) => None,
                    };
                    self.made = Some((id, answer));
                }
            }
            Step::ListArrives => {
                if let Some((id, document)) = self.made.take() {
                    let now = driver.now();
                    let not_modified = Failure::Status(304, String::new());
                    if let Some(document) = &document {
                        let actions = driver.client.list_opened(id, driver.extended, now);
                        driver.note(actions);
                        let actions = driver.client.list_data(id, document, now);
                        driver.note(actions);
                    }
                    let failure = document.is_none().then_some(&not_modified);
                    let actions = driver.client.list_done(id, failure, now);
                    driver.note(actions);
                }
            }
            Step::Events(count) => {
                for _ in 0..count {
                    if let Some(Take::Event(bytes)) = self.feed.map(|id| self.server.take(id)) {
                        driver.bytes(&bytes);
                    }
                }
            }
            Step::WatchBreaks => {
                if let Some(id) = self.feed.take() {
                    self.server.close_watch(id, driver.now());
                    driver.watch_ends(Some(&refused()));
                }
            }
            Step::Wait(millis) => {
                driver.after(millis);
            }
        }
    }

    /// Delivers what is on its way, and what is asked for thereupon: no list that is asked for only
    /// because its time has come.
    fn settle(&mut self) {
        for _ in 0..100 {
            if self.made.is_none() {
                self.take(Step::MakeList);
            }
            self.take(Step::ListArrives);
            self.take(Step::Events(1000));
            let driver = &self.driver;
            let idle = driver
                .client
                .wake_at()
                .saturating_sub(driver.now().elapsed)
                .as_millis() as u64;
            let listed = driver.list != self.before;
            let fine = driver.client.state().watch.connected && driver.error().is_none();
            if fine && listed && idle > 40_000 {
                return;
            }
            self.take(Step::Wait(idle + 1));
        }
        panic!("the client never comes to rest");
    }

    fn agree(&self) -> Result<(), TestCaseError> {
        let keys = self.current.keys();
        let want: Vec<&str> = keys.map(|key| key.name.as_str()).collect();
        prop_assert_eq!(self.driver.names(), want);
        for service in self.driver.client.state().services.iter() {
            let export = &self.current[&service.key];
            let told = self.driver.extended.then(|| export.health());
            prop_assert_eq!(service.health, told);
        }
        prop_assert_eq!(self.driver.error(), None);
        Ok(())
    }
}

proptest! {
    #[test]
    fn whatever_is_lost_or_late_the_client_ends_with_the_servers_list(
        steps in any_steps(),
        extended: bool,
    ) {
        let mut two = Two::new(extended);
        let round = [Step::Wait(100_000), Step::MakeList, Step::ListArrives];
        // Some of them go to a watch that brings nothing, and to what is asked for when it is opened anew.
        let rounds = std::iter::repeat_n(round, 12).flatten();
        for step in steps.into_iter().chain(rounds) {
            two.take(step);
        }
        two.take(Step::Events(1000));
        two.agree()?;
    }

    /// Events and the lists that they make us ask for are enough.
    #[test]
    fn a_client_that_has_got_everything_and_asks_for_nothing_has_the_servers_list(
        steps in any_steps(),
        extended: bool,
    ) {
        let mut two = Two::new(extended);
        for step in steps {
            two.take(step);
        }
        two.settle();
        two.agree()?;
    }
}

#[derive(Debug, Clone)]
enum Trouble {
    Usual(Step),
    /// The peer's control plane begins anew, with these exports.
    ServerRestarts(Names),
    /// The list that is asked for is answered with this code.
    ListFails(u16),
    /// The way to the peer is another one.
    NewWay,
    /// The peer's control plane is of another version from now on.
    Extends(bool),
    Settings {
        hold: u64,
        resync: u64,
    },
    Called,
}

fn any_trouble() -> impl Strategy<Value = Trouble> {
    let names = || proptest::collection::btree_map(0..5usize, 0..3u32, 0..5);
    prop_oneof![
        12 => any_step().prop_map(Trouble::Usual),
        1 => names().prop_map(Trouble::ServerRestarts),
        1 => prop_oneof![Just(400u16), Just(503)].prop_map(Trouble::ListFails),
        1 => Just(Trouble::NewWay),
        1 => any::<bool>().prop_map(Trouble::Extends),
        1 => (0..60u64, 1..100u64).prop_map(|(hold, resync)| Trouble::Settings { hold, resync }),
        1 => Just(Trouble::Called),
    ]
}

impl Two {
    fn suffer(&mut self, trouble: Trouble, stable: bool) {
        let keep = |mut names: Names| {
            if stable {
                names.entry(1).or_insert(1);
            }
            names
        };
        match trouble {
            Trouble::Usual(Step::Export(names)) => self.take(Step::Export(keep(names))),
            Trouble::Usual(step) => self.take(step),
            Trouble::ServerRestarts(names) => {
                self.take(Step::WatchBreaks);
                self.made = None;
                if let Some(id) = self.driver.list.take() {
                    let now = self.driver.now();
                    let failure = refused();
                    let actions = self.driver.client.list_done(id, Some(&failure), now);
                    self.driver.note(actions);
                }
                self.server = Server::new(ServerSettings::default());
                self.take(Step::Export(keep(names)));
            }
            Trouble::ListFails(code) => {
                let code = if stable { 503 } else { code };
                if let Some(id) = self.driver.list {
                    self.made = None;
                    let now = self.driver.now();
                    let failure = Failure::Status(code, String::new());
                    let actions = self.driver.client.list_done(id, Some(&failure), now);
                    self.driver.note(actions);
                }
            }
            Trouble::NewWay => {
                let now = self.driver.now();
                let actions = self.driver.client.restart(now);
                self.driver.note(actions);
                self.made = None;
            }
            Trouble::Extends(extended) => {
                self.take(Step::WatchBreaks);
                self.made = None;
                self.driver.extended = extended;
            }
            Trouble::Settings { hold, resync } => {
                let settings = ClientSettings {
                    hold_empty: Duration::from_secs(hold),
                    resync: Duration::from_secs(resync),
                    ..ClientSettings::default()
                };
                let now = self.driver.now();
                let actions = self.driver.client.set_settings(settings, now);
                self.driver.note(actions);
            }
            Trouble::Called => {
                let now = self.driver.now();
                let actions = self.driver.client.peer_called(now);
                self.driver.note(actions);
            }
        }
    }
}

proptest! {
    /// Whatever else goes wrong: in the end it has the list, and what is exported all along is never lost
    /// unless the peer says 400.
    #[test]
    fn whatever_happens_the_client_ends_with_the_list_and_never_loses_what_stays(
        troubles in proptest::collection::vec(any_trouble(), 0..60),
        extended: bool,
        stable: bool,
    ) {
        let mut two = Two::new(extended);
        let mut had = false;
        // With `stable`, one service is exported all along.
        for trouble in troubles {
            two.suffer(trouble, stable);
            let has = two.driver.names().contains(&"w");
            prop_assert!(has || !had || !stable, "lost");
            had |= has;
        }
        let round = [Step::Wait(100_000), Step::MakeList, Step::ListArrives];
        for step in std::iter::repeat_n(round, 14).flatten() {
            two.take(step);
            let has = two.driver.names().contains(&"w");
            prop_assert!(has || !had || !stable, "lost");
            had |= has;
        }
        two.take(Step::Events(1000));
        two.agree()?;
    }
}
