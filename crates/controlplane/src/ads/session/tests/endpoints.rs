//! Endpoints that are due again as their cluster was sent.

use super::*;

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
