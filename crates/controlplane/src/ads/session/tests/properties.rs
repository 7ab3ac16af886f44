//! Two clients as the protocol describes them, and what holds whatever they do.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// A client as the protocol describes it, that accepts everything.
#[derive(Default)]
pub(super) struct Client {
    pub(super) has: Held,
    unanswered: Vec<Response>,
}

impl Client {
    pub(super) fn take(&mut self, mode: Mode, response: Response) {
        let has = self.has.entry(response.kind).or_default();
        let full = mode == Mode::StateOfTheWorld
            && matches!(response.kind, TypeUrl::Cluster | TypeUrl::Listener);
        if full {
            has.clear();
        }
        for name in &response.removed {
            has.remove(name);
        }
        for resource in &response.resources {
            has.insert(resource.name.clone(), resource.version);
        }
        self.unanswered.push(response);
    }

    pub(super) fn answer(&mut self, session: &mut Session, n: usize) {
        if self.unanswered.is_empty() {
            return;
        }
        let response = self.unanswered.remove(n % self.unanswered.len());
        match session.mode {
            Mode::Delta => ack(session, &response),
            Mode::StateOfTheWorld => {
                let names = if is_wildcard_by_default(response.kind) {
                    &[][..]
                } else {
                    &NAMES
                };
                ask(session, response.kind, names, &response.nonce).unwrap();
            }
        }
    }

    /// All is said and answered, and it is whole all the time.
    pub(super) fn settle(&mut self, session: &mut Session) {
        let (mode, separate) = (
            session.mode,
            session.kinds.contains_key(&TypeUrl::VirtualHosts),
        );
        loop {
            match session.say() {
                Some(response) => self.take(mode, response),
                None if self.unanswered.is_empty() => break,
                None => self.answer(session, 0),
            }
            assert!(self.is_whole(separate));
        }
    }

    fn is_whole(&self, separate: bool) -> bool {
        is_whole(&self.has, separate)
    }
}

/// What a client has, by kind and name.
type Held = BTreeMap<TypeUrl, BTreeMap<Arc<str>, Version>>;

/// Every listener's cluster is there, and so are the cluster's endpoints, and the virtual hosts of the
/// listener's table if they come one by one.
fn is_whole(held: &Held, separate: bool) -> bool {
    let has = |kind, name: &Arc<str>| held.get(&kind).is_some_and(|has| has.contains_key(name));
    let listeners = held.get(&TypeUrl::Listener);
    listeners.into_iter().flat_map(BTreeMap::keys).all(|name| {
        let host = host_name(name, "host");
        has(TypeUrl::Cluster, name)
            && has(TypeUrl::Endpoints, name)
            && (!separate || has(TypeUrl::VirtualHosts, &host))
    })
}

pub(super) const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Step {
    Config(Vec<(usize, u64)>),
    Send,
    Answer(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => proptest::collection::vec((0..NAMES.len(), 1..4u64), 0..4).prop_map(Step::Config),
        3 => Just(Step::Send),
        3 => any::<usize>().prop_map(Step::Answer),
    ]
}

proptest! {
    /// Whatever changes and however slowly the client answers: it never has a listener without its
    /// cluster and endpoints, and in the end it has exactly the newest configuration.
    #[test]
    fn a_client_is_always_whole_and_ends_with_the_newest(
        delta in any::<bool>(),
        separate in any::<bool>(),
        response_bytes in prop_oneof![Just(1), Just(usize::MAX)],
        names_a_turn in prop_oneof![Just(1), Just(usize::MAX)],
        steps in proptest::collection::vec(any_step(), 1..60),
    ) {
        let separate = delta && separate;
        let kinds = KINDS.into_iter().filter(|kind| separate || *kind != TypeUrl::VirtualHosts);
        let mode = if delta { Mode::Delta } else { Mode::StateOfTheWorld };
        let mut session = mk_session(mode, &[]);
        if delta {
            session.response_bytes = response_bytes;
            session.names_a_turn = names_a_turn;
        }
        let mut newest = mk_config(&[]);
        let mut client = Client::default();
        for kind in kinds.clone() {
            let names = asked_for(kind, &NAMES);
            match mode {
                Mode::Delta => subscribe(&mut session, kind, names),
                Mode::StateOfTheWorld => {
                    ask(&mut session, kind, names, "");
                }
            }
        }
        for step in steps {
            match step {
                Step::Config(services) => {
                    let services: Vec<_> =
                        services.into_iter().map(|(n, s)| (NAMES[n], s)).collect();
                    newest = mk_config(&services);
                    session.set_config(newest.clone());
                }
                Step::Send => {
                    if let Some(response) = session.say() {
                        client.take(mode, response);
                    }
                }
                Step::Answer(n) => client.answer(&mut session, n),
            }
            prop_assert!(client.is_whole(separate));
        }
        client.settle(&mut session);
        prop_assert!(session.is_synced());
        for kind in kinds {
            if mode == Mode::StateOfTheWorld && !is_wildcard_by_default(kind) {
                // Here the client drops what nothing refers to by itself.
                continue;
            }
            let expected: BTreeMap<_, _> = names(&newest, kind)
                .into_iter()
                .map(|name| {
                    let version = match kind {
                        TypeUrl::Routes if separate => {
                            Encoder::separate_routes(&newest, &name).unwrap().version
                        }
                        _ => version(&newest, kind, &name),
                    };
                    (name, version)
                })
                .collect();
            let has = client.has.remove(&kind).unwrap_or_default();
            prop_assert_eq!(has, expected);
        }
    }
}

/// A client as the protocol describes it that refuses, comes back, and asks for endpoints as its clusters
/// come and go.
#[derive(Default)]
struct Moody {
    has: Held,
    /// Clusters that wait for endpoints since they were taken.
    warming: BTreeSet<Arc<str>>,
    wanted: BTreeSet<Arc<str>>,
    flight: VecDeque<Response>,
    back: VecDeque<(TypeUrl, DeltaSubscription, Reply)>,
    ever_refused: bool,
    dynamic: bool,
    separate: bool,
    /// As Envoy, it answers for clusters when these have their endpoints.
    patient: bool,
    held: Vec<(TypeUrl, DeltaSubscription, Reply)>,
}

impl Moody {
    fn kinds(&self) -> impl Iterator<Item = TypeUrl> + use<> {
        let separate = self.separate;
        [
            TypeUrl::Cluster,
            TypeUrl::Listener,
            TypeUrl::VirtualHosts,
            TypeUrl::Trust,
            TypeUrl::Endpoints,
            TypeUrl::Routes,
        ]
        .into_iter()
        .filter(move |kind| separate || *kind != TypeUrl::VirtualHosts)
    }

    fn begin(&mut self) {
        // The endpoints that a cluster waited for are not said again to who comes back with them.
        self.warming.clear();
        self.flight.clear();
        self.back.clear();
        self.held.clear();
        for kind in self.kinds() {
            let subscribe: Vec<String> = match kind {
                TypeUrl::Endpoints if self.dynamic => {
                    self.wanted.iter().map(ToString::to_string).collect()
                }
                _ => asked_for(kind, &NAMES)
                    .iter()
                    .map(|n| n.to_string())
                    .collect(),
            };
            if subscribe.is_empty() && kind == TypeUrl::Endpoints {
                continue;
            }
            let initial_versions = self
                .has
                .get(&kind)
                .into_iter()
                .flatten()
                .map(|(n, v)| (n.to_string(), v.to_string()))
                .collect();
            self.back.push_back((
                kind,
                DeltaSubscription {
                    subscribe,
                    initial_versions,
                    ..DeltaSubscription::default()
                },
                Reply::default(),
            ));
        }
    }

    fn take(&mut self, refuse: bool) {
        let Some(response) = self.flight.pop_front() else {
            return;
        };
        let kind = response.kind;
        let has = self.has.entry(kind).or_default();
        let (mut sub, mut unsub) = (Vec::new(), Vec::new());
        for name in &response.removed {
            has.remove(name);
            if kind == TypeUrl::Cluster {
                self.warming.remove(name);
                if self.dynamic && self.wanted.remove(name) {
                    unsub.push(name.clone());
                }
            }
            if kind == TypeUrl::Endpoints {
                self.warming.remove(name);
            }
        }
        let refuse = refuse && !response.resources.is_empty();
        self.ever_refused |= refuse;
        if !refuse {
            for resource in &response.resources {
                let name = &resource.name;
                if kind == TypeUrl::Endpoints && self.dynamic && !self.wanted.contains(name) {
                    continue;
                }
                let before = has.insert(name.clone(), resource.version);
                if kind == TypeUrl::Cluster && before != Some(resource.version) {
                    self.warming.insert(name.clone());
                    if self.dynamic && self.wanted.insert(name.clone()) {
                        sub.push(name.clone());
                    }
                }
                if kind == TypeUrl::Endpoints {
                    self.warming.remove(name);
                }
            }
        }
        for name in &unsub {
            self.has.entry(TypeUrl::Endpoints).or_default().remove(name);
        }
        let text = |names: Vec<Arc<str>>| names.iter().map(ToString::to_string).collect();
        let ack = (
            kind,
            DeltaSubscription::default(),
            Reply {
                nonce: response.nonce,
                error: refuse.then(|| "no".to_owned()),
            },
        );
        let follow = (!sub.is_empty() || !unsub.is_empty()).then(|| {
            (
                TypeUrl::Endpoints,
                DeltaSubscription {
                    subscribe: text(sub),
                    unsubscribe: text(unsub),
                    ..DeltaSubscription::default()
                },
                Reply::default(),
            )
        });
        // What follows is asked for before the answer, as by Envoy and by our own proxy.
        self.back.extend(follow);
        if self.patient && kind == TypeUrl::Cluster {
            self.held.push(ack);
        } else {
            self.back.push_back(ack);
        }
        if self.warming.is_empty() {
            self.back.extend(self.held.drain(..));
        }
    }

    fn hear(&mut self, session: &mut Session) {
        if let Some((kind, request, reply)) = self.back.pop_front() {
            // The first request of a kind without names would be all.
            if request.subscribe.is_empty()
                && !request.unsubscribe.is_empty()
                && !session.kinds.contains_key(&kind)
            {
                return;
            }
            session.delta(kind, request, reply).unwrap();
        }
    }

    fn is_whole(&self) -> bool {
        self.ever_refused || is_whole(&self.has, self.separate)
    }

    /// Nothing, or what it has otherwise than the configuration.
    fn differs(&self, config: &ProxyConfig) -> Option<String> {
        for kind in self.kinds() {
            let expected: BTreeMap<_, _> = names(config, kind)
                .into_iter()
                .map(|name| {
                    let version = match kind {
                        TypeUrl::Routes if self.separate => {
                            Encoder::separate_routes(config, &name).unwrap().version
                        }
                        _ => version(config, kind, &name),
                    };
                    (name, version)
                })
                .collect();
            let has = self.has.get(&kind).cloned().unwrap_or_default();
            if has != expected {
                return Some(format!("{kind:?}: has {has:?}, expected {expected:?}"));
            }
        }
        None
    }
}

#[derive(Debug, Clone)]
enum Mood {
    Config(Vec<(usize, u64)>),
    Send,
    Take,
    Refuse,
    Hear,
    Reconnect { known: bool },
}

fn any_mood() -> impl Strategy<Value = Mood> {
    prop_oneof![
        4 => proptest::collection::vec((0..NAMES.len(), 1..4u64), 0..4).prop_map(Mood::Config),
        12 => Just(Mood::Send),
        12 => Just(Mood::Take),
        5 => Just(Mood::Refuse),
        16 => Just(Mood::Hear),
        1 => any::<bool>().prop_map(|known| Mood::Reconnect { known }),
    ]
}

proptest! {
    /// Whatever a client refuses and whenever it comes back: it is whole, it is never taken for one that has
    /// accepted what it has not, and neither end waits for the other for ever.
    #[test]
    fn a_client_that_refuses_and_comes_back_is_whole_and_is_known_as_it_is(
        separate in any::<bool>(),
        dynamic in any::<bool>(),
        patient in any::<bool>(),
        refusals in any::<bool>(),
        response_bytes in prop_oneof![Just(1), Just(400), Just(usize::MAX)],
        names_a_turn in prop_oneof![Just(1), Just(2), Just(usize::MAX)],
        steps in proptest::collection::vec(any_mood(), 1..100),
    ) {
        let fresh = || {
            let mut session = Session::new(Mode::Delta, Arc::default());
            session.response_bytes = response_bytes;
            session.names_a_turn = names_a_turn;
            session
        };
        let mut session = fresh();
        let mut newest = mk_config(&[]);
        session.set_config(newest.clone());
        let mut client = Moody { separate, dynamic, patient, ..Moody::default() };
        client.begin();
        for step in steps {
            match step {
                Mood::Config(services) => {
                    let services: Vec<_> =
                        services.into_iter().map(|(n, s)| (NAMES[n], s)).collect();
                    newest = mk_config(&services);
                    session.set_config(newest.clone());
                }
                Mood::Send => match session.say() {
                    Some(response) => client.flight.push_back(response),
                    None if session.is_synced() => {
                        let differs = client.differs(&newest);
                        prop_assert!(differs.is_none(), "synced: {}", differs.unwrap());
                    }
                    None => {}
                },
                Mood::Take => client.take(false),
                Mood::Refuse => client.take(refusals),
                Mood::Hear => client.hear(&mut session),
                Mood::Reconnect { known } => {
                    session = fresh();
                    if known {
                        session.set_config(newest.clone());
                    }
                    client.begin();
                }
            }
            prop_assert!(client.is_whole());
        }
        if session.config.is_none() {
            session.set_config(newest.clone());
        }
        // What was refused is said again with the next change of everything.
        for last in [&[("a", 7), ("b", 7), ("c", 7), ("d", 7)][..], &[("b", 8), ("c", 8)]] {
            let mut settle = || -> Result<(), TestCaseError> { loop {
                if let Some(response) = session.say() {
                    client.flight.push_back(response);
                } else if !client.flight.is_empty() {
                    client.take(false);
                } else if !client.back.is_empty() {
                    client.hear(&mut session);
                } else {
                    return Ok(());
                }
                prop_assert!(client.is_whole());
            }};
            settle()?;
            if !client.ever_refused {
                prop_assert!(client.held.is_empty(), "neither end says anything: {:?}", client.warming);
            }
            if !client.ever_refused {
                prop_assert!(session.is_synced());
                prop_assert_eq!(client.differs(&newest), None);
            }
            if !client.ever_refused || last[0].1 == 8 {
                prop_assert!(client.warming.is_empty(), "waits for ever: {:?}", client.warming);
            }
            newest = mk_config(last);
            session.set_config(newest.clone());
        }
    }
}
