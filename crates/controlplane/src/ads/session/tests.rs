use std::time::Duration;

use meshfed_proxy_config::{
    Cluster, DEFAULT_DRAIN, Discovery, Endpoints, FilterChain, Listener, Network, ProxyConfig,
    RouteTable, Tcp, TcpTarget, TrustBundle, UpstreamProtocol, VirtualHost, host_name,
};
use meshfed_xds::encode;

use super::super::encoder::names;
use super::*;
use properties::{Client, NAMES};

mod properties;

const KINDS: [TypeUrl; 6] = TypeUrl::ADS_ORDER;

/// A configuration with one listener, cluster, endpoints and route table for each name; `seconds` is a
/// detail of the cluster that can change.
fn mk_config(services: &[(&str, u64)]) -> Arc<ProxyConfig> {
    let mut config = ProxyConfig::default();
    for (name, seconds) in services {
        let name: Arc<str> = (*name).into();
        config
            .listeners
            .insert(name.clone(), Arc::new(mk_listener(&name)));
        config
            .clusters
            .insert(name.clone(), Arc::new(mk_cluster(&name, *seconds)));
        config.endpoints.insert(
            name.clone(),
            Arc::new(Endpoints {
                name: name.clone(),
                localities: Vec::new(),
            }),
        );
        let table = RouteTable::new(&*name, [mk_host(&name, "host", &name)]);
        config.routes.insert(name.clone(), Arc::new(table));
        config.trust.insert(name, Arc::new(TrustBundle::default()));
    }
    Arc::new(config)
}

fn version(config: &ProxyConfig, kind: TypeUrl, name: &str) -> Version {
    let encoded = Encoder::default().encode(config, kind, name);
    encoded.unwrap().version
}

fn mk_cluster(name: &str, seconds: u64) -> Cluster {
    Cluster {
        name: name.into(),
        discovery: Discovery::Eds(name.into()),
        connect_timeout: Duration::from_secs(seconds),
        tls: None,
        protocol: UpstreamProtocol::Http1,
        outlier: None,
        drain: DEFAULT_DRAIN,
    }
}

fn mk_host(table: &str, host: &str, domain: &str) -> VirtualHost {
    VirtualHost {
        name: host_name(table, host),
        domains: vec![domain.to_owned()],
        routes: Vec::new(),
    }
}

fn mk_listener(name: &str) -> Listener {
    Listener {
        name: name.to_string(),
        address: "127.0.0.1:15443".parse().unwrap(),
        chains: vec![FilterChain {
            name: name.to_string(),
            server_names: Vec::new(),
            tls: None,
            drain: DEFAULT_DRAIN,
            network: Network::Tcp(Tcp {
                target: TcpTarget::Cluster(name.to_string()),
                allow: None,
                idle_timeout: Duration::from_secs(1),
            }),
        }],
        handshake_timeout: Duration::from_secs(1),
    }
}

fn mk_session(mode: Mode, services: &[(&str, u64)]) -> Session {
    let mut session = Session::new(mode, Arc::default());
    session.set_config(mk_config(services));
    session
}

impl Session {
    /// The next response, after any pauses.
    fn say(&mut self) -> Option<Response> {
        loop {
            match self.next() {
                Next::Say(response) => return Some(response),
                Next::Pause => {}
                Next::Wait => return None,
            }
        }
    }
}

fn names_of(response: &Response) -> Vec<&str> {
    response.resources.iter().map(|r| &*r.name).collect()
}

fn removed_of(response: &Response) -> Vec<&str> {
    response.removed.iter().map(|n| &**n).collect()
}

fn subscribe(session: &mut Session, kind: TypeUrl, names: &[&str]) {
    let request = DeltaSubscription {
        subscribe: names.iter().map(|n| n.to_string()).collect(),
        ..DeltaSubscription::default()
    };
    let answer = session.delta(kind, request, Reply::default()).unwrap();
    assert_eq!(answer, None);
}

/// What a client asks for that wants all of a kind.
fn asked_for<'n>(kind: TypeUrl, names: &'n [&'n str]) -> &'n [&'n str] {
    match kind {
        TypeUrl::Cluster | TypeUrl::Listener => &[],
        TypeUrl::VirtualHosts => &[WILDCARD],
        TypeUrl::Trust | TypeUrl::Endpoints | TypeUrl::Routes => names,
    }
}

fn answer(session: &mut Session, response: &Response, error: Option<&str>) -> Option<Answer> {
    let reply = Reply {
        nonce: response.nonce.clone(),
        error: error.map(str::to_string),
    };
    session
        .delta(response.kind, DeltaSubscription::default(), reply)
        .unwrap()
}

fn ack(session: &mut Session, response: &Response) {
    let answer = answer(session, response, None).unwrap();
    assert_eq!(answer.refused, None);
    assert_eq!(answer.version, response.version);
}

/// Takes and accepts everything; gives the order of kinds.
fn settle(session: &mut Session) -> Vec<TypeUrl> {
    let mut order = Vec::new();
    while let Some(response) = session.say() {
        order.push(response.kind);
        ack(session, &response);
    }
    order
}

/// A client that subscribed to everything of these services and has it.
fn mk_settled(services: &[(&str, u64)]) -> Session {
    let mut session = mk_session(Mode::Delta, services);
    let names: Vec<&str> = services.iter().map(|(name, _)| *name).collect();
    for kind in KINDS {
        subscribe(&mut session, kind, asked_for(kind, &names));
    }
    settle(&mut session);
    assert!(session.is_synced());
    session
}

#[test]
fn nothing_is_said_before_there_is_a_configuration() {
    let mut session = Session::new(Mode::Delta, Arc::default());
    subscribe(&mut session, TypeUrl::Cluster, &[]);
    assert!(session.say().is_none());
    session.set_config(mk_config(&[]));
    let first = session.say().unwrap();
    assert_eq!((first.kind, names_of(&first)), (TypeUrl::Cluster, vec![]));
    assert!(session.say().is_none());
}

#[test]
fn listeners_wait_until_clusters_and_their_endpoints_are_accepted() {
    let mut session = mk_session(Mode::Delta, &[("a", 1)]);
    subscribe(&mut session, TypeUrl::Cluster, &[]);
    subscribe(&mut session, TypeUrl::Listener, &[]);
    let clusters = session.say().unwrap();
    assert_eq!(clusters.kind, TypeUrl::Cluster);
    assert!(session.say().is_none());

    // Envoy answers for the cluster only when it is warm, so endpoints do not wait for that.
    subscribe(&mut session, TypeUrl::Endpoints, &["a"]);
    let endpoints = session.say().unwrap();
    assert_eq!(endpoints.kind, TypeUrl::Endpoints);
    ack(&mut session, &endpoints);
    assert!(session.say().is_none());
    ack(&mut session, &clusters);

    let listeners = session.say().unwrap();
    assert_eq!(listeners.kind, TypeUrl::Listener);
    assert!(!session.is_synced());
    ack(&mut session, &listeners);
    assert!(session.say().is_none());
    assert!(session.is_synced());
}

#[test]
fn what_is_gone_goes_after_what_referred_to_it() {
    let mut session = mk_settled(&[("a", 1), ("b", 1)]);
    session.set_config(mk_config(&[("b", 1), ("c", 1)]));
    subscribe(&mut session, TypeUrl::Endpoints, &["c"]);

    let trust = session.say().unwrap();
    assert_eq!(
        (trust.kind, removed_of(&trust)),
        (TypeUrl::Trust, vec!["a"])
    );
    ack(&mut session, &trust);
    let clusters = session.say().unwrap();
    assert_eq!(
        (clusters.kind, names_of(&clusters)),
        (TypeUrl::Cluster, vec!["c"])
    );
    assert!(clusters.removed.is_empty());
    ack(&mut session, &clusters);
    let endpoints = session.say().unwrap();
    assert_eq!(names_of(&endpoints), ["c"]);
    ack(&mut session, &endpoints);
    let hosts = session.say().unwrap();
    assert_eq!(names_of(&hosts), ["c/host"]);
    assert!(hosts.removed.is_empty());
    assert!(session.say().is_none());
    ack(&mut session, &hosts);
    let listeners = session.say().unwrap();
    assert_eq!(
        (names_of(&listeners), removed_of(&listeners)),
        (vec!["c"], vec!["a"])
    );
    assert!(session.say().is_none());
    ack(&mut session, &listeners);

    for kind in REMOVALS {
        let gone = session.say().unwrap();
        let name = match kind {
            TypeUrl::VirtualHosts => "a/host",
            _ => "a",
        };
        assert_eq!((gone.kind, removed_of(&gone)), (kind, vec![name]));
        assert!(gone.resources.is_empty());
        ack(&mut session, &gone);
    }
    assert!(session.say().is_none());
}

#[test]
fn of_a_table_whose_hosts_come_one_by_one_only_those_are_sent_that_change() {
    let mk_config = |domains: &[(&str, &str)]| {
        let hosts = domains
            .iter()
            .map(|(host, domain)| mk_host("t", host, domain));
        let mut config = ProxyConfig::default();
        config
            .routes
            .insert("t".into(), Arc::new(RouteTable::new("t", hosts)));
        Arc::new(config)
    };
    let first = mk_config(&[("a", "1"), ("b", "2"), ("c", "3")]);
    let mut session = Session::new(Mode::Delta, Arc::default());
    session.set_config(first.clone());
    subscribe(&mut session, TypeUrl::VirtualHosts, &[WILDCARD]);
    subscribe(&mut session, TypeUrl::Routes, &["t"]);
    let hosts = session.say().unwrap();
    assert_eq!(names_of(&hosts), ["t/a", "t/b", "t/c"]);
    assert!(session.say().is_none(), "the table waits for its hosts");
    ack(&mut session, &hosts);
    let table = session.say().unwrap();
    assert_eq!(table.resources[0].resource, encode::separate_routes("t"));
    ack(&mut session, &table);

    session.set_config(mk_config(&[("a", "1"), ("b", "4"), ("d", "3")]));
    let hosts = session.say().unwrap();
    assert_eq!(names_of(&hosts), ["t/b", "t/d"]);
    ack(&mut session, &hosts);
    let gone = session.say().unwrap();
    assert_eq!(
        (gone.kind, removed_of(&gone)),
        (TypeUrl::VirtualHosts, vec!["t/c"])
    );
    ack(&mut session, &gone);
    assert!(session.say().is_none(), "the table is what it was");

    // After a restart of the control plane it says what it has.
    let mut session = Session::new(Mode::Delta, Arc::default());
    session.set_config(first.clone());
    let versions = hosts.resources.iter().chain(&table.resources);
    let mut versions: HashMap<String, String> = versions
        .map(|resource| (resource.name.to_string(), resource.version.to_string()))
        .collect();
    let a = version(&first, TypeUrl::VirtualHosts, "t/a");
    versions.insert("t/a".to_owned(), a.to_string());
    for (kind, name) in [(TypeUrl::VirtualHosts, WILDCARD), (TypeUrl::Routes, "t")] {
        let request = DeltaSubscription {
            subscribe: vec![name.to_owned()],
            initial_versions: versions.clone(),
            ..DeltaSubscription::default()
        };
        session.delta(kind, request, Reply::default()).unwrap();
        if kind == TypeUrl::VirtualHosts {
            versions.retain(|name, _| name == "t");
        }
    }
    let hosts = session.say().unwrap();
    assert_eq!(names_of(&hosts), ["t/b", "t/c"]);
    ack(&mut session, &hosts);
    let gone = session.say().unwrap();
    assert_eq!(removed_of(&gone), ["t", "t/d"]);
}

#[test]
fn a_client_that_does_not_ask_for_virtual_hosts_gets_whole_tables() {
    for mode in [Mode::Delta, Mode::StateOfTheWorld] {
        let mut session = mk_session(mode, &[("a", 1)]);
        match mode {
            Mode::Delta => subscribe(&mut session, TypeUrl::Routes, &["a"]),
            Mode::StateOfTheWorld => {
                ask(&mut session, TypeUrl::Routes, &["a"], "");
            }
        }
        let table = session.say().unwrap();
        let whole = mk_config(&[("a", 1)]).routes["a"].clone();
        assert_eq!(table.resources[0].resource, encode::routes(&whole));
    }
}

#[test]
fn trust_that_is_gone_does_not_wait_for_the_rest_of_a_large_change() {
    let mut session = mk_settled(&[("a", 1), ("b", 1)]);
    session.response_bytes = 1;
    session.set_config(mk_config(&[("a", 2), ("b", 2)]));
    let first = session.say().unwrap();
    assert_eq!(
        (first.kind, names_of(&first)),
        (TypeUrl::Cluster, vec!["a"])
    );
    // The peer is closed while the pieces of another change are on their way.
    let mut closed = ProxyConfig::clone(&mk_config(&[("a", 2), ("b", 2)]));
    closed.trust.remove("b");
    session.set_config(Arc::new(closed));
    let trust = session.say().unwrap();
    assert_eq!(
        (trust.kind, removed_of(&trust)),
        (TypeUrl::Trust, vec!["b"])
    );
    ack(&mut session, &trust);
    ack(&mut session, &first);
    settle(&mut session);
    assert!(session.is_synced());
}

#[test]
fn only_what_changed_is_sent() {
    let mut session = mk_settled(&[("a", 1), ("b", 1)]);
    session.set_config(mk_config(&[("a", 2), ("b", 1)]));
    let changed = session.say().unwrap();
    assert_eq!(
        (changed.kind, names_of(&changed)),
        (TypeUrl::Cluster, vec!["a"])
    );
    // Envoy warms a changed cluster anew, and so waits for its endpoints again.
    let again = session.say().unwrap();
    assert_eq!(
        (again.kind, names_of(&again)),
        (TypeUrl::Endpoints, vec!["a"])
    );
    ack(&mut session, &changed);
    ack(&mut session, &again);
    assert!(session.say().is_none());
}

#[test]
fn endpoints_follow_a_cluster_that_has_changed_while_the_client_was_away() {
    let config = mk_config(&[("a", 2), ("b", 1)]);
    let versions = |kind: TypeUrl| -> HashMap<String, String> {
        let versions = names(&config, kind).into_iter();
        versions
            .map(|name| (name.to_string(), version(&config, kind, &name).to_string()))
            .collect()
    };
    let mut session = Session::new(Mode::Delta, Arc::default());
    session.set_config(config.clone());
    let mut clusters = versions(TypeUrl::Cluster);
    clusters.insert("a".to_string(), "old".to_string());
    let mut first = |kind, subscribe: &[&str], initial_versions| {
        let request = DeltaSubscription {
            subscribe: subscribe.iter().map(|n| n.to_string()).collect(),
            initial_versions,
            ..DeltaSubscription::default()
        };
        session.delta(kind, request, Reply::default()).unwrap();
        session.say().unwrap()
    };
    let sent = first(TypeUrl::Cluster, &[], clusters);
    assert_eq!(names_of(&sent), ["a"]);
    let sent = first(
        TypeUrl::Endpoints,
        &["a", "b"],
        versions(TypeUrl::Endpoints),
    );
    assert_eq!(names_of(&sent), ["a"]);
}

#[test]
fn a_slow_client_skips_what_was_replaced_meanwhile() {
    let mut session = mk_settled(&[("a", 1)]);
    session.set_config(mk_config(&[("a", 2)]));
    let second = session.say().unwrap();
    session.set_config(mk_config(&[("a", 3)]));
    session.set_config(mk_config(&[("a", 4)]));
    let endpoints = session.say().unwrap();
    assert_eq!(endpoints.kind, TypeUrl::Endpoints);
    assert!(session.say().is_none());
    ack(&mut session, &second);
    let newest = session.say().unwrap();
    let expected = mk_config(&[("a", 4)]);
    assert_eq!(
        newest.resources[0].version,
        version(&expected, TypeUrl::Cluster, "a")
    );
}

#[test]
fn a_client_that_comes_back_gets_the_difference_only() {
    let config = mk_config(&[("a", 1), ("b", 2), ("c", 1)]);
    let version = |name| version(&config, TypeUrl::Cluster, name).to_string();
    let mut session = Session::new(Mode::Delta, Arc::default());
    session.set_config(config.clone());
    let request = DeltaSubscription {
        initial_versions: HashMap::from([
            ("a".to_string(), version("a")),
            ("b".to_string(), "of another control plane".to_string()),
            ("gone".to_string(), version("c")),
        ]),
        ..DeltaSubscription::default()
    };
    session
        .delta(TypeUrl::Cluster, request, Reply::default())
        .unwrap();
    let response = session.say().unwrap();
    assert_eq!(names_of(&response), ["b", "c"]);
    ack(&mut session, &response);
    let response = session.say().unwrap();
    assert_eq!(removed_of(&response), ["gone"]);
}

#[test]
fn a_refused_change_is_not_sent_again_until_it_changes() {
    let mut session = mk_settled(&[("a", 1)]);
    session.set_config(mk_config(&[("a", 2)]));
    let refused = session.say().unwrap();
    let told = answer(&mut session, &refused, Some("bad cluster")).unwrap();
    assert_eq!(told.refused.as_deref(), Some("bad cluster"));
    assert_eq!(told.kind, TypeUrl::Cluster);
    assert_eq!(settle(&mut session), [TypeUrl::Endpoints]);
    assert!(!session.is_synced());

    session.set_config(mk_config(&[("a", 1)]));
    let back = session.say().unwrap();
    assert_eq!(names_of(&back), ["a"]);
    ack(&mut session, &back);
    settle(&mut session);
    assert!(session.is_synced());
}

#[test]
fn what_was_refused_is_said_again_with_the_next_change_until_it_is_accepted_or_gone() {
    let mut session = mk_settled(&[("a", 1), ("b", 1)]);
    session.set_config(mk_config(&[("a", 2), ("b", 1)]));
    let first = session.say().unwrap();
    answer(&mut session, &first, Some("not this one"));
    settle(&mut session);
    session.set_config(mk_config(&[("a", 2), ("b", 2)]));
    let second = session.say().unwrap();
    assert_eq!(names_of(&second), ["a", "b"]);
    answer(&mut session, &second, Some("still not a"));
    settle(&mut session);
    assert!(!session.is_synced());

    session.set_config(mk_config(&[("a", 2), ("b", 3)]));
    settle(&mut session);
    assert!(session.is_synced(), "it takes both now");
    session.set_config(mk_config(&[("a", 2), ("b", 4)]));
    let third = session.say().unwrap();
    assert_eq!(names_of(&third), ["b"]);
    answer(&mut session, &third, Some("not b"));
    settle(&mut session);
    session.set_config(mk_config(&[("a", 2)]));
    settle(&mut session);
    assert!(session.is_synced(), "it is gone");
}

#[test]
fn a_large_configuration_comes_piece_by_piece_and_listeners_wait_for_its_end() {
    let mut session = mk_session(Mode::Delta, &[("a", 1), ("b", 1), ("c", 1)]);
    session.response_bytes = 1;
    for kind in [TypeUrl::Cluster, TypeUrl::Listener] {
        subscribe(&mut session, kind, &[]);
    }
    for name in ["a", "b", "c"] {
        let response = session.say().unwrap();
        assert_eq!(
            (response.kind, names_of(&response)),
            (TypeUrl::Cluster, vec![name])
        );
        assert!(session.say().is_none());
        ack(&mut session, &response);
    }
    assert_eq!(session.say().unwrap().kind, TypeUrl::Listener);
}

#[test]
fn what_was_refused_of_a_large_configuration_counts_until_its_end_or_a_change() {
    let mut session = mk_session(Mode::Delta, &[("a", 1), ("b", 1)]);
    session.response_bytes = 1;
    for kind in [TypeUrl::Cluster, TypeUrl::Listener] {
        subscribe(&mut session, kind, &[]);
    }
    let first = session.say().unwrap();
    answer(&mut session, &first, Some("no"));
    settle(&mut session);
    assert!(!session.is_synced());
    session.set_config(mk_config(&[("a", 2), ("b", 1)]));
    settle(&mut session);
    assert!(session.is_synced());
}

#[test]
fn a_refusal_is_clipped_and_stale_nonces_mean_nothing() {
    let mut session = mk_session(Mode::Delta, &[("a", 1)]);
    subscribe(&mut session, TypeUrl::Cluster, &[]);
    let response = session.say().unwrap();
    let stale = Response {
        nonce: "ff".to_string(),
        ..session_copy(&response)
    };
    assert_eq!(answer(&mut session, &stale, Some("x")), None);
    let long = "x".repeat(10 * MAX_MESSAGE);
    let told = answer(&mut session, &response, Some(&long)).unwrap();
    assert_eq!(told.refused.unwrap().len(), MAX_MESSAGE);
    assert_eq!(answer(&mut session, &response, None), None);
}

fn session_copy(response: &Response) -> Response {
    Response {
        kind: response.kind,
        nonce: response.nonce.clone(),
        version: response.version,
        resources: response.resources.clone(),
        removed: response.removed.clone(),
    }
}

#[test]
fn a_name_that_does_not_exist_is_told_at_once_and_sent_when_it_does() {
    let mut session = mk_session(Mode::Delta, &[("a", 1)]);
    subscribe(&mut session, TypeUrl::Cluster, &[]);
    let clusters = session.say().unwrap();
    subscribe(&mut session, TypeUrl::Endpoints, &["b"]);
    // Not held up by the unanswered clusters, which in Envoy wait for this.
    let absent = session.say().unwrap();
    assert_eq!(
        (absent.kind, removed_of(&absent)),
        (TypeUrl::Endpoints, vec!["b"])
    );
    ack(&mut session, &absent);
    ack(&mut session, &clusters);
    assert!(session.say().is_none());

    session.set_config(mk_config(&[("a", 1), ("b", 1)]));
    assert_eq!(settle(&mut session), [TypeUrl::Cluster, TypeUrl::Endpoints]);
}

#[test]
fn asking_again_for_a_resource_sends_it_again_and_unsubscribing_ends_it() {
    let mut session = mk_settled(&[("a", 1), ("b", 1)]);
    subscribe(&mut session, TypeUrl::Endpoints, &["a"]);
    let again = session.say().unwrap();
    assert_eq!(names_of(&again), ["a"]);
    ack(&mut session, &again);

    let request = DeltaSubscription {
        unsubscribe: vec!["a".to_string()],
        ..DeltaSubscription::default()
    };
    session
        .delta(TypeUrl::Endpoints, request, Reply::default())
        .unwrap();
    session.set_config(mk_config(&[]));
    while let Some(response) = session.say() {
        if response.kind == TypeUrl::Endpoints {
            assert_eq!(removed_of(&response), ["b"]);
        }
        ack(&mut session, &response);
    }
}

#[test]
fn a_wildcard_can_be_said_and_taken_back() {
    let mut session = mk_session(Mode::Delta, &[("a", 1), ("b", 1)]);
    subscribe(&mut session, TypeUrl::Endpoints, &["*", "b"]);
    let all = session.say().unwrap();
    assert_eq!(names_of(&all), ["a", "b"]);
    ack(&mut session, &all);
    let request = DeltaSubscription {
        unsubscribe: vec!["*".to_string()],
        ..DeltaSubscription::default()
    };
    session
        .delta(TypeUrl::Endpoints, request, Reply::default())
        .unwrap();
    session.set_config(mk_config(&[]));
    let gone = session.say().unwrap();
    assert_eq!(removed_of(&gone), ["b"]);
}

#[test]
fn a_client_cannot_grow_our_memory() {
    let mut session = mk_session(Mode::Delta, &[]);
    let many = |count: usize| (0..count).map(|n| n.to_string()).collect();
    let mut ask = |subscribe| {
        let request = DeltaSubscription {
            subscribe,
            ..DeltaSubscription::default()
        };
        session.delta(TypeUrl::Endpoints, request, Reply::default())
    };
    assert!(ask(many(MAX_UNKNOWN)).is_ok());
    assert_eq!(ask(vec!["more".to_owned()]), Err(LimitError::TooManyNames));
    assert_eq!(
        ask(vec!["x".repeat(MAX_NAME_LEN + 1)]),
        Err(LimitError::NameTooLong)
    );
    let mut session = mk_session(Mode::StateOfTheWorld, &[]);
    let long = |n: usize| format!("{n:0MAX_NAME_LEN$}");
    let names = (0..=MAX_UNKNOWN_BYTES / MAX_NAME_LEN).map(long).collect();
    let asked = session.state_of_the_world(TypeUrl::Routes, names, Reply::default());
    assert_eq!(asked, Err(LimitError::TooManyNames));
    let come_back = |session: &mut Session, versions| {
        let request = DeltaSubscription {
            initial_versions: (0..versions)
                .map(|n| (n.to_string(), String::new()))
                .collect(),
            ..DeltaSubscription::default()
        };
        session.delta(TypeUrl::Cluster, request, Reply::default())
    };
    let mut session = mk_session(Mode::Delta, &[]);
    let back = come_back(&mut session, MAX_UNKNOWN + 1);
    assert_eq!(back, Err(LimitError::TooManyUnknown));
}

#[test]
fn a_proxy_comes_back_in_several_requests_when_most_of_what_it_had_is_gone() {
    let mut session = Session::new(Mode::Delta, Arc::default());
    session.set_config(mk_many(10));
    let names: Vec<String> = (0..60_000).map(|n| n.to_string()).collect();
    for piece in names.chunks(20_000) {
        let request = DeltaSubscription {
            subscribe: piece.to_vec(),
            ..DeltaSubscription::default()
        };
        let asked = session.delta(TypeUrl::Endpoints, request, Reply::default());
        assert_eq!(asked, Ok(None));
    }
}

/// A configuration with so many clusters and their endpoints.
fn mk_many(count: usize) -> Arc<ProxyConfig> {
    mk_named((0..count).map(|n| n.to_string()))
}

fn mk_named(names: impl Iterator<Item = String>) -> Arc<ProxyConfig> {
    let mut config = ProxyConfig::default();
    for name in names {
        let name: Arc<str> = name.into();
        let cluster = Arc::new(mk_cluster(&name, 1));
        config.clusters.insert(name.clone(), cluster);
        let endpoints = Endpoints {
            name: name.clone(),
            localities: Vec::new(),
        };
        config.endpoints.insert(name, Arc::new(endpoints));
    }
    Arc::new(config)
}

#[test]
fn names_that_exist_may_be_as_many_as_there_are_also_in_the_moment_in_which_they_go() {
    let many = MAX_UNKNOWN_BYTES / MAX_NAME_LEN + MAX_NAMES;
    for mode in [Mode::Delta, Mode::StateOfTheWorld] {
        let mut session = Session::new(mode, Arc::default());
        (session.response_bytes, session.names_a_turn) = (usize::MAX, usize::MAX);
        let names = |to: usize| (0..to).map(|n| format!("{n:0MAX_NAME_LEN$}"));
        session.set_config(mk_named(names(many)));
        let ask = |session: &mut Session, subscribe: Vec<String>, reply: Reply| match mode {
            Mode::Delta => {
                let request = DeltaSubscription {
                    subscribe,
                    ..DeltaSubscription::default()
                };
                session.delta(TypeUrl::Endpoints, request, reply)
            }
            Mode::StateOfTheWorld => {
                session.state_of_the_world(TypeUrl::Endpoints, subscribe, reply)
            }
        };
        let all = names(many).collect();
        assert_eq!(ask(&mut session, all, Reply::default()), Ok(None));
        let sent = session.say().unwrap();
        session.set_config(mk_many(0));
        let reply = Reply {
            nonce: sent.nonce,
            error: None,
        };
        let more = match mode {
            Mode::Delta => vec!["more".to_owned()],
            Mode::StateOfTheWorld => names(many + 1).collect(),
        };
        let answer = ask(&mut session, more, reply).unwrap();
        assert_eq!(answer.unwrap().refused, None);
    }
}

#[test]
fn a_proxy_with_forty_thousand_clusters_comes_back_to_a_control_plane_that_has_restarted() {
    const MANY: usize = 40_000;
    let before = mk_many(MANY);
    let versions = [TypeUrl::Cluster, TypeUrl::Endpoints].map(|kind| {
        let names = names(&before, kind).into_iter();
        let versions =
            names.map(|name| (name.to_string(), version(&before, kind, &name).to_string()));
        (kind, versions.collect::<HashMap<_, _>>())
    });
    // What was there is still there, is gone meanwhile, or is not known yet.
    for now in [Some(before.clone()), Some(mk_many(0)), None] {
        let mut session = Session::new(Mode::Delta, Arc::default());
        if let Some(now) = &now {
            session.set_config(now.clone());
        }
        for (kind, initial_versions) in versions.clone() {
            let request = DeltaSubscription {
                subscribe: match kind {
                    TypeUrl::Cluster => Vec::new(),
                    _ => initial_versions.keys().cloned().collect(),
                },
                initial_versions,
                ..DeltaSubscription::default()
            };
            let came = session.delta(kind, request, Reply::default());
            assert_eq!(came, Ok(None));
        }
        let now = now.unwrap_or_else(|| before.clone());
        session.set_config(now.clone());
        let (mut removed, mut pauses) = (0, 0);
        loop {
            match session.next() {
                Next::Say(response) => {
                    assert_eq!(names_of(&response), Vec::<&str>::new());
                    removed += response.removed.len();
                    ack(&mut session, &response);
                }
                Next::Pause => pauses += 1,
                Next::Wait => break,
            }
        }
        let there = count(&now, TypeUrl::Cluster);
        assert_eq!(removed, 2 * (MANY - there));
        // Others have had their turn while all that is the same was looked at.
        assert!(pauses >= 2 * (there / NAMES_A_TURN), "{pauses}");
    }
}

#[test]
fn what_is_open_is_asked_for_or_there() {
    let mut session = mk_session(Mode::Delta, &[("a", 1)]);
    subscribe(&mut session, TypeUrl::Cluster, &[]);
    session.say().unwrap();
    for n in 0..100 {
        let passing = n.to_string();
        session.set_config(mk_config(&[("a", 1), (&passing, 1)]));
        let request = DeltaSubscription {
            subscribe: vec![passing.clone()],
            unsubscribe: vec![passing],
            ..DeltaSubscription::default()
        };
        session
            .delta(TypeUrl::Endpoints, request, Reply::default())
            .unwrap();
        let foreign = format!("foreign-{n}");
        let request = DeltaSubscription {
            subscribe: vec![foreign.clone()],
            unsubscribe: vec![foreign],
            ..DeltaSubscription::default()
        };
        session
            .delta(TypeUrl::Cluster, request, Reply::default())
            .unwrap();
    }
    assert_eq!(session.kinds[&TypeUrl::Cluster].open.len(), 1);
    assert!(session.kinds[&TypeUrl::Endpoints].open.is_empty());
}

#[test]
fn endpoints_that_were_due_again_and_are_gone_go_after_what_refers_to_them() {
    let mut session = mk_session(Mode::Delta, &[("d", 2)]);
    session.response_bytes = 1;
    let mut client = Client::default();
    for kind in KINDS {
        if kind != TypeUrl::VirtualHosts {
            subscribe(&mut session, kind, asked_for(kind, &NAMES));
        }
    }
    client.settle(&mut session);
    // Both clusters were sent, of their endpoints those of `a` only: those of `d` are due again.
    session.set_config(mk_config(&[("a", 1), ("d", 1)]));
    while !session.rewarm.contains_key("d") {
        client.take(Mode::Delta, session.say().unwrap());
        client.answer(&mut session, 0);
    }
    let endpoints = session.say().unwrap();
    assert_eq!(endpoints.kind, TypeUrl::Endpoints);
    assert_eq!(names_of(&endpoints), ["a"]);
    client.take(Mode::Delta, endpoints);
    session.set_config(mk_config(&[]));
    client.settle(&mut session);
    assert!(client.has.values().all(BTreeMap::is_empty));
}

fn ask(session: &mut Session, kind: TypeUrl, names: &[&str], nonce: &str) -> Option<Answer> {
    let reply = Reply {
        nonce: nonce.to_string(),
        error: None,
    };
    let names = names.iter().map(|n| n.to_string()).collect();
    session.state_of_the_world(kind, names, reply).unwrap()
}

#[test]
fn state_of_the_world_says_everything_and_lets_clusters_go_last() {
    let mut session = mk_session(Mode::StateOfTheWorld, &[("a", 1), ("b", 1)]);
    ask(&mut session, TypeUrl::Cluster, &[], "");
    let clusters = session.say().unwrap();
    assert_eq!(names_of(&clusters), ["a", "b"]);
    ask(&mut session, TypeUrl::Cluster, &[], &clusters.nonce).unwrap();
    ask(&mut session, TypeUrl::Listener, &[], "");
    let listeners = session.say().unwrap();
    assert_eq!(names_of(&listeners), ["a", "b"]);
    ask(&mut session, TypeUrl::Listener, &[], &listeners.nonce).unwrap();
    assert!(session.say().is_none());
    assert!(session.is_synced());

    session.set_config(mk_config(&[("b", 1), ("c", 1)]));
    let clusters = session.say().unwrap();
    assert_eq!(names_of(&clusters), ["a", "b", "c"]);
    ask(&mut session, TypeUrl::Cluster, &[], &clusters.nonce).unwrap();
    let listeners = session.say().unwrap();
    assert_eq!(names_of(&listeners), ["b", "c"]);
    ask(&mut session, TypeUrl::Listener, &[], &listeners.nonce).unwrap();
    let clusters = session.say().unwrap();
    assert_eq!(
        (clusters.kind, names_of(&clusters)),
        (TypeUrl::Cluster, vec!["b", "c"])
    );
    ask(&mut session, TypeUrl::Cluster, &[], &clusters.nonce).unwrap();
    assert!(session.say().is_none());
}

#[test]
fn state_of_the_world_follows_names_and_ignores_stale_nonces() {
    let mut session = mk_session(Mode::StateOfTheWorld, &[("a", 1), ("b", 1)]);
    ask(&mut session, TypeUrl::Endpoints, &["a"], "");
    let first = session.say().unwrap();
    assert_eq!(names_of(&first), ["a"]);
    // It asked for more before it saw our response: said again with the newer nonce.
    assert_eq!(ask(&mut session, TypeUrl::Endpoints, &["a", "b"], ""), None);
    assert!(session.say().is_none());
    ask(&mut session, TypeUrl::Endpoints, &["a", "b"], &first.nonce).unwrap();
    let second = session.say().unwrap();
    assert_eq!(names_of(&second), ["a", "b"]);
    ask(&mut session, TypeUrl::Endpoints, &["a", "b"], &second.nonce).unwrap();
    assert!(session.say().is_none());

    // With the nonce of what it has accepted, fewer names are no reason to answer.
    assert_eq!(
        ask(&mut session, TypeUrl::Endpoints, &["b"], &second.nonce),
        None
    );
    assert!(session.say().is_none());
    session.set_config(mk_config(&[("a", 9), ("b", 1)]));
    assert!(session.say().is_none());
}

#[test]
fn endpoints_that_are_due_again_stay_due_when_they_go_and_come_back() {
    let mut session = mk_session(Mode::Delta, &[("b", 1)]);
    for kind in KINDS {
        if kind != TypeUrl::VirtualHosts {
            subscribe(&mut session, kind, asked_for(kind, &NAMES));
        }
    }
    settle(&mut session);
    let next = |session: &mut Session, kind, names: &[&str]| {
        let response = loop {
            let response = session.say().unwrap();
            if response.kind != TypeUrl::Trust {
                break response;
            }
            ack(session, &response);
        };
        assert_eq!((response.kind, names_of(&response)), (kind, names.to_vec()));
        response
    };
    session.set_config(mk_config(&[("a", 1), ("b", 1)]));
    let clusters = next(&mut session, TypeUrl::Cluster, &["a"]);
    ack(&mut session, &clusters);
    let unanswered = next(&mut session, TypeUrl::Endpoints, &["a"]);
    // The endpoints of `b` are due again, and wait for an answer.
    session.set_config(mk_config(&[("a", 1), ("b", 2)]));
    let clusters = next(&mut session, TypeUrl::Cluster, &["b"]);
    ack(&mut session, &clusters);
    session.set_config(mk_config(&[("a", 1)]));
    ack(&mut session, &unanswered);
    // Before anything of `b` went but its listener.
    let mut said = false;
    while let Some(response) = session.say() {
        said |= response.kind == TypeUrl::Endpoints && names_of(&response) == ["b"];
        ack(&mut session, &response);
        if response.kind == TypeUrl::Listener {
            session.set_config(mk_config(&[("a", 1), ("b", 2)]));
        }
    }
    assert!(said, "they were due again");
    assert!(session.is_synced());
}

#[test]
fn a_client_that_waits_for_endpoints_gets_them_also_when_they_are_gone_meanwhile() {
    let mut session = mk_settled(&[("b", 1)]);
    subscribe(&mut session, TypeUrl::Endpoints, &["a"]);
    settle(&mut session);
    let mut config = ProxyConfig::clone(&mk_config(&[("b", 1)]));
    config.endpoints.extend(
        ProxyConfig::clone(&mk_config(&[("a", 1)]))
            .endpoints
            .iter()
            .map(|(n, e)| (n.clone(), e.clone())),
    );
    session.set_config(config.clone().into());
    let unanswered = session.say().unwrap();
    assert_eq!(
        (unanswered.kind, names_of(&unanswered)),
        (TypeUrl::Endpoints, vec!["a"])
    );
    config
        .clusters
        .insert("b".into(), Arc::new(mk_cluster("b", 2)));
    session.set_config(config.clone().into());
    let cluster = session.say().unwrap();
    assert_eq!(
        (cluster.kind, names_of(&cluster)),
        (TypeUrl::Cluster, vec!["b"])
    );
    // Envoy does not answer before it has the endpoints of `b` anew, but they are gone now.
    session.set_config(mk_config(&[]));
    ack(&mut session, &unanswered);
    let trust = session.say().unwrap();
    assert_eq!(
        (trust.kind, removed_of(&trust)),
        (TypeUrl::Trust, vec!["b"])
    );
    ack(&mut session, &trust);
    let endpoints = session.say().expect("it waits for us, and we for it");
    assert_eq!(
        (endpoints.kind, names_of(&endpoints)),
        (TypeUrl::Endpoints, vec!["b"])
    );
    ack(&mut session, &endpoints);
    ack(&mut session, &cluster);
    settle(&mut session);
    assert!(session.is_synced());
    assert!(session.kinds.values().all(|s| s.sent.resources.is_empty()));
}

#[test]
fn what_was_refused_is_not_forgotten_when_something_else_is_taken_away() {
    let mut session = mk_settled(&[("a", 1), ("b", 1)]);
    session.set_config(mk_config(&[("a", 2)]));
    let trust = session.say().unwrap();
    assert_eq!(
        (trust.kind, removed_of(&trust)),
        (TypeUrl::Trust, vec!["b"])
    );
    ack(&mut session, &trust);
    let changed = session.say().unwrap();
    assert_eq!(
        (changed.kind, names_of(&changed)),
        (TypeUrl::Cluster, vec!["a"])
    );
    answer(&mut session, &changed, Some("no")).unwrap();
    settle(&mut session);
    assert!(!session.is_synced(), "it goes by the old cluster");
    session.set_config(mk_config(&[("a", 3)]));
    settle(&mut session);
    assert!(session.is_synced());
}
