//! What a client has refused, and for how long that counts.

use super::*;

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
fn what_was_refused_is_said_again_to_who_asks_for_it_and_counts_no_more_once_accepted() {
    let mut session = mk_session(Mode::Delta, &[("a", 1), ("b", 1)]);
    subscribe(&mut session, TypeUrl::Listener, &[]);
    let first = session.say().unwrap();
    answer(&mut session, &first, Some("the address of a is in use"));
    assert!(session.say().is_none());
    for error in [Some("it still is"), None] {
        subscribe(&mut session, TypeUrl::Listener, &["a"]);
        let again = session.say().unwrap();
        assert_eq!(names_of(&again), ["a", "b"]);
        answer(&mut session, &again, error);
        assert!(session.say().is_none());
        assert_eq!(session.kinds[&TypeUrl::Listener].refuses(), error.is_some());
    }
    // It is among all of them again.
    let request = DeltaSubscription {
        unsubscribe: vec!["a".to_string()],
        ..DeltaSubscription::default()
    };
    session
        .delta(TypeUrl::Listener, request, Reply::default())
        .unwrap();
    assert!(session.say().is_none());
    session.set_config(mk_config(&[("b", 1)]));
    assert_eq!(removed_of(&session.say().unwrap()), ["a"]);
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
