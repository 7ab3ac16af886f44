use std::time::Duration;

use meshfed_proxy_config::{
    Cluster, DEFAULT_DRAIN, Discovery, Endpoints, FilterChain, Listener, Network, ProxyConfig,
    RouteTable, Tcp, TcpTarget, TrustBundle, UpstreamProtocol, VirtualHost, host_name,
};
use meshfed_xds::encode;

use super::super::encoder::names;
use super::*;
use properties::{Client, NAMES};

mod endpoints;
mod properties;
mod refusals;
mod state_of_the_world;
mod subscriptions;

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

fn ask(session: &mut Session, kind: TypeUrl, names: &[&str], nonce: &str) -> Option<Answer> {
    let reply = Reply {
        nonce: nonce.to_string(),
        error: None,
    };
    let names = names.iter().map(|n| n.to_string()).collect();
    session.state_of_the_world(kind, names, reply).unwrap()
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
