//! The variant that says everything each time.

use super::*;

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
