//! A client and a server of discovery with a hostile other end. The input is a script: its parts end
//! with a byte 0, and the first byte of each says what happens.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use meshfed_federation::discovery::client::{
    Action, Client, ClientSettings, Failure, Imported, RemoteState, RequestId,
};
use meshfed_federation::discovery::export::{Export, Shown};
use meshfed_federation::discovery::extension::{Health, Report};
use meshfed_federation::discovery::message::{EventDecoder, Limits, decode_list};
use meshfed_federation::discovery::remote::RemoteServices;
use meshfed_federation::discovery::server::{
    Answer, Exports, Server, ServerSettings, Take, WatchId, source_of,
};
use meshfed_federation::moment::Moment;
use meshfed_federation::names::{ExportedHost, ServiceKey};

/// What a script does next, and with what.
fn steps(script: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let parts = script.split(|byte| *byte == 0);
    parts.filter_map(|part| part.split_first().map(|(step, with)| (*step, with)))
}

/// A clock that goes on by steps.
struct Clock {
    elapsed: Duration,
    wall: Timestamp,
}

impl Clock {
    fn new() -> Self {
        Self {
            elapsed: Duration::ZERO,
            wall: Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1_000_000),
        }
    }

    fn now(&self) -> Moment {
        Moment {
            elapsed: self.elapsed,
            wall: self.wall,
        }
    }

    fn to(&mut self, elapsed: Duration) {
        let step = elapsed.saturating_sub(self.elapsed);
        self.elapsed += step;
        self.wall += step;
    }

    /// From a millisecond to some minutes.
    fn pass(&mut self, with: &[u8]) {
        let of = with.first().map_or(10, |byte| u64::from(*byte));
        self.to(self.elapsed + Duration::from_millis(of * of * 5 + 1));
    }
}

/// The client, and what it has asked for.
struct Asking {
    client: Client,
    clock: Clock,
    watch: Option<RequestId>,
    list: Option<RequestId>,
    last: Option<RequestId>,
    /// What was told last.
    told: Arc<RemoteServices>,
    lists: u64,
    /// What may have made it ask for a list at once.
    causes: u64,
}

impl Asking {
    /// Takes the client's actions and holds them against what it may do.
    fn check(&mut self, actions: Vec<Action>) {
        let mut tells = false;
        for action in actions {
            match action {
                Action::OpenWatch(id) => {
                    assert!(self.watch.is_none() && self.last < Some(id));
                    (self.watch, self.last) = (Some(id), Some(id));
                    self.causes += 1;
                }
                Action::GetList(id) => {
                    assert!(self.list.is_none() && self.last < Some(id));
                    (self.list, self.last) = (Some(id), Some(id));
                    self.lists += 1;
                }
                Action::Cancel(id) => {
                    assert!(Some(id) == self.watch || Some(id) == self.list);
                    self.watch = self.watch.filter(|watch| *watch != id);
                    self.list = self.list.filter(|list| *list != id);
                }
                Action::Changed { services } => tells |= services,
            }
        }
        let state = self.client.state();
        assert!(
            tells || state.services == self.told,
            "a change was not told"
        );
        self.told = state.services.clone();
        assert!(state.services.len() <= Limits::default().services);
        assert!(state.extended || !state.services.has_health());
        assert!(state.last_contact.is_none_or(|at| at <= self.clock.wall));
        let headers = self.client.list_headers();
        assert!(headers.iter().all(|(_, value)| value.is_ascii()));
        let seconds = self.clock.elapsed.as_secs();
        assert!(self.lists <= seconds + self.causes + 2, "lists without end");
    }

    fn tick(&mut self) {
        let actions = self.client.tick(self.clock.now());
        self.check(actions);
    }

    /// Does what is due; then there is something to wait for, and it is not now.
    fn rest(&mut self) {
        let rests = (0..5).any(|_| {
            self.tick();
            self.client.wake_at() > self.clock.elapsed
        });
        assert!(rests && self.client.wake_at() < Duration::MAX);
    }

    fn list_ends(&mut self, failure: Option<Failure>) {
        if let Some(id) = self.list.take() {
            let now = self.clock.now();
            let actions = self.client.list_done(id, failure.as_ref(), now);
            self.check(actions);
        }
    }

    fn watch_ends(&mut self, failure: Option<Failure>) {
        if let Some(id) = self.watch.take() {
            let now = self.clock.now();
            let actions = self.client.watch_closed(id, failure.as_ref(), now);
            self.check(actions);
        }
    }

    fn step(&mut self, step: u8, with: &[u8]) {
        let now = self.clock.now();
        let status = |code| Failure::Status(code, String::from_utf8_lossy(with).into_owned());
        let cause = || Failure::Transport(String::from_utf8_lossy(with).into_owned());
        let actions = match (step, self.watch, self.list) {
            (b'o' | b'O', Some(id), _) => self.client.watch_opened(id, step == b'O', now),
            (b'e', Some(id), _) => self.client.watch_data(id, with, now),
            (b'h' | b'H', _, Some(id)) => self.client.list_opened(id, step == b'H', now),
            (b'd', _, Some(id)) => self.client.list_data(id, with, now),
            (b'l', _, Some(id)) => {
                let actions = self.client.list_data(id, with, now);
                self.check(actions);
                return self.list_ends(None);
            }
            (b'm', ..) => return self.list_ends(Some(status(304))),
            (b'u', ..) => return self.list_ends(Some(status(400))),
            (b'n', ..) => return self.list_ends(Some(status(503))),
            (b'b', ..) => return self.list_ends(Some(cause())),
            (b'w', ..) => return self.watch_ends(None),
            (b'W', ..) => return self.watch_ends(Some(cause())),
            (b'U', ..) => return self.watch_ends(Some(status(400))),
            (b'c', ..) => self.client.peer_called(now),
            (b'i', ..) => {
                let count = with.len() as u32;
                let services = Vec::new();
                self.client
                    .set_imported(&Arc::new(Imported { count, services }), now)
            }
            (b's', ..) => {
                self.causes += 1;
                let hold_empty = Duration::from_secs(with.len() as u64);
                let settings = ClientSettings {
                    hold_empty,
                    ..ClientSettings::default()
                };
                self.client.set_settings(settings, now)
            }
            (b'r', ..) => {
                self.causes += 1;
                self.client.restart(now)
            }
            (b'z', ..) => {
                self.clock.wall -= SignedDuration::from_mins(10);
                return self.tick();
            }
            (b't', ..) => {
                self.clock.pass(with);
                return;
            }
            (b'T', ..) => {
                self.clock.to(self.client.wake_at());
                return;
            }
            _ => return,
        };
        self.check(actions);
    }
}

/// The client with a peer that does what the script says.
pub fn client(script: &[u8]) {
    let client = Client::new(ClientSettings::default(), 1, RemoteState::default());
    let mut asking = Asking {
        told: client.state().services.clone(),
        client,
        clock: Clock::new(),
        watch: None,
        list: None,
        last: None,
        lists: 0,
        causes: 0,
    };
    asking.rest();
    for (step, with) in steps(script) {
        asking.step(step, with);
        asking.rest();
    }
}

fn exports(of: &[u8]) -> Arc<Exports> {
    let export = |byte: &u8| {
        let key = ServiceKey::parse("a", &format!("s{}", byte % 8)).expect("it is a name");
        let shown = Shown {
            host: ExportedHost::ours(&key, &"b".parse().expect("it is a name")),
            key: key.clone(),
            ports: Arc::default(),
            accounts: [format!("spiffe://b.local/ns/b/sa/{}", byte / 8 % 2)].into(),
        };
        let health = Health {
            ready_endpoints: u32::from(byte / 16),
            ..Health::default()
        };
        (key, Arc::new(Export::new(shown, health)))
    };
    Arc::new(of.iter().map(export).collect())
}

/// The server with a peer that asks what the script says.
pub fn server(script: &[u8]) {
    let limits = Limits::default();
    let gateway = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut server = Server::new(ServerSettings::default());
    let mut clock = Clock::new();
    let mut current = exports(&[]);
    let mut source = source_of(None, gateway);
    let mut watches: BTreeMap<WatchId, bool> = BTreeMap::new();
    for (step, with) in steps(script) {
        let now = clock.now();
        let text = std::str::from_utf8(with).ok();
        match step {
            b'f' => {
                source = source_of(text, gateway);
                source.parse::<IpAddr>().expect("it is an address");
            }
            b'l' | b'L' => {
                let tag = server.tag().to_string();
                match server.list(&source, text, now) {
                    Answer::NotModified(_) => assert_eq!(text, Some(tag.as_str())),
                    Answer::List(document) => {
                        assert_eq!(document.tag().to_string(), tag);
                        let received = decode_list(&document.body(step == b'L'), &limits);
                        let received = received.expect("what we write can be read");
                        let services = RemoteServices::check(received, &limits);
                        let services = services.expect("and is taken");
                        assert!(services.iter().map(|s| &s.key).eq(current.keys()));
                        assert!(services.agrees_with(server.tag().checksum));
                    }
                }
            }
            b'r' => {
                if let Ok(report) = Report::decode(with) {
                    server.report(&source, report, now);
                }
            }
            b'w' | b'W' => {
                let (id, evicted) = server.open_watch(&source, step == b'W', now);
                assert!(watches.insert(id, step == b'W').is_none());
                if let Some(id) = evicted {
                    assert!(watches.remove(&id).is_some() && server.take(id) == Take::Closed);
                }
            }
            b'c' => {
                if let Some((id, _)) = watches.pop_first() {
                    server.close_watch(id, now);
                    assert_eq!(server.take(id), Take::Closed);
                }
            }
            b'e' => {
                current = exports(with);
                for id in server.set_exports(&current, now) {
                    assert!(watches.contains_key(&id));
                }
            }
            b'x' => {
                for (id, extended) in &watches {
                    while let Take::Event(bytes) = server.take(*id) {
                        let mut events = Vec::new();
                        let read = EventDecoder::new(limits).push(&bytes, &mut events);
                        assert!(read.is_ok() && events.len() == 1);
                        let service = events.pop().and_then(|event| event.service);
                        let service = service.expect("every event has its service");
                        assert_eq!(service.health.is_some(), *extended);
                    }
                }
            }
            _ => clock.pass(with),
        }
        let sources = server.sources(clock.now());
        assert!(sources.len() <= 32 && watches.len() <= ServerSettings::default().watches);
    }
}
