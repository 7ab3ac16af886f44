//! What a client names: what it asks for, what it says it has, and how much of it is kept.

use super::*;

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
