use proptest::prelude::*;

use super::*;
use crate::discovery::message::{Limits, ServicePort, decode_list};

fn wire(namespace: &str, name: &str, label: &str) -> Service {
    Service {
        name: name.into(),
        namespace: namespace.into(),
        hostname: format!("{name}.{namespace}.svc.{label}.local"),
        ports: vec![ServicePort {
            name: "http".into(),
            port: 9080,
            protocol: "HTTP".into(),
        }],
        accounts: vec!["spiffe://red.local/ns/red/sa/ingress".into()],
        health: None,
    }
}

fn check(services: Vec<Service>) -> Result<RemoteServices, RemoteFault> {
    let document = ServiceList::new(services).encode();
    RemoteServices::check(
        decode_list(&document, &Limits::default()).unwrap(),
        &Limits::default(),
    )
}

#[test]
fn a_good_list_is_taken_and_written_again_as_it_was() {
    let list = ServiceList::new(vec![
        wire("b", "y", "green-exports"),
        wire("a", "x", "green-exports"),
    ]);
    let services = check(list.services.clone()).unwrap();
    assert!(services.agrees_with(list.checksum));
    assert_eq!(services.to_list(), list);
    let x = services.iter().next().unwrap();
    assert_eq!(x.key.to_string(), "a/x");
    assert_eq!(x.accounts.len(), 1);
    assert_eq!(x.ports[0].number, 9080);
}

#[test]
fn what_services_and_lists_have_in_common_is_held_once() {
    let list = |name: &str| {
        check(vec![
            wire("a", "x", "green-exports"),
            wire("b", name, "green-exports"),
        ])
        .unwrap()
    };
    let known = list("y");
    let [x, y] = [0, 1].map(|n| known.iter().nth(n).unwrap());
    assert!(Arc::ptr_eq(&x.accounts, &y.accounts) && Arc::ptr_eq(&x.said, &y.said));
    let mut newer = list("z");
    newer.keep(&known);
    assert_eq!(newer, list("z"));
    assert!(Arc::ptr_eq(x, newer.iter().next().unwrap()));
}

#[test]
fn one_bad_entry_refuses_the_list() {
    let good = || wire("a", "x", "green-exports");
    let with = |change: fn(&mut Service)| {
        let mut bad = wire("b", "y", "green-exports");
        change(&mut bad);
        check(vec![good(), bad]).unwrap_err()
    };
    assert!(matches!(
        with(|s| s.name = "Y".into()),
        RemoteFault::Name { .. }
    ));
    assert!(matches!(
        with(|s| s.namespace.clear()),
        RemoteFault::Name { .. }
    ));
    assert!(matches!(
        with(|s| s.hostname = "kubernetes.default.svc.cluster.local".into()),
        RemoteFault::Name { .. }
    ));
    assert!(matches!(
        with(|s| s.ports[0].port = 0),
        RemoteFault::Port(_, 0)
    ));
    assert!(matches!(
        with(|s| s.ports[0].port = 65536),
        RemoteFault::Port(_, 65536)
    ));
    assert!(matches!(
        with(|s| s.hostname = "y.b.svc.blue-exports.local".into()),
        RemoteFault::TwoSuffixes(..)
    ));
    assert!(matches!(
        check(vec![good(), good()]).unwrap_err(),
        RemoteFault::Duplicate(_)
    ));
}

#[test]
fn an_account_that_is_no_spiffe_id_is_counted() {
    let mut service = wire("a", "x", "green-exports");
    service.accounts = vec!["".into(), "spiffe://red.local/ns/a/sa/b".into(), "x".into()];
    let service = RemoteService::check(service).unwrap();
    assert_eq!(service.accounts.len(), 1);
    assert_eq!(service.unreadable_accounts, 2);
}

#[test]
fn accounts_that_repeat_or_change_places_make_no_other_service_but_another_checksum() {
    let one = wire("a", "x", "green-exports");
    let mut twice = one.clone();
    twice.accounts.push(one.accounts[0].clone());
    let mut services = check(vec![one.clone()]).unwrap();
    let before = services.clone();
    let repeated = RemoteService::check(twice.clone()).unwrap();
    assert_eq!(repeated.accounts.len(), 1);
    assert_eq!(services.put(repeated, &Limits::default()), Ok(false));
    assert_eq!(services, before);
    assert!(services.agrees_with(ServiceList::new(vec![twice]).checksum));
    assert!(!services.same_hash(&before));
    assert_eq!(services.to_list(), ServiceList::new(vec![one.clone()]));

    let other = "spiffe://red.local/ns/red/sa/another".to_owned();
    let mut two = one.clone();
    two.accounts.push(other.clone());
    let mut turned = one;
    turned.accounts.insert(0, other);
    let two = RemoteService::check(two).unwrap();
    assert_eq!(services.put(two, &Limits::default()), Ok(true));
    let turned = RemoteService::check(turned).unwrap();
    assert_eq!(services.put(turned, &Limits::default()), Ok(false));
    assert!(services.remove("a", "x"));
    assert!(services.agrees_with(ServiceList::new(Vec::new()).checksum));
}

#[test]
fn health_alone_can_be_set() {
    let mut services = check(vec![wire("a", "x", "green-exports")]).unwrap();
    let plain = services.clone();
    let none = Some(Health::default());
    assert!(services.set_health("a", "x", none));
    assert!(!services.set_health("a", "x", none));
    assert!(!services.set_health("a", "y", none) && !services.set_health("", "x", none));
    assert_ne!(services, plain);
    assert!(services.same_hash(&plain) && services.tag() != plain.tag());
    assert!(services.set_health("a", "x", None));
    assert_eq!((&services, services.tag()), (&plain, plain.tag()));
}

#[test]
fn a_list_that_grows_by_events_is_limited_too() {
    let limits = Limits {
        services: 2,
        list_bytes: 600,
        ..Limits::default()
    };
    let mut services = RemoteServices::default();
    let entry = |name: &str| RemoteService::check(wire("a", name, "green-exports")).unwrap();
    assert_eq!(services.put(entry("x"), &limits), Ok(true));
    assert_eq!(services.put(entry("x"), &limits), Ok(false));
    let mut large = wire("a", "y", "green-exports");
    large.accounts = vec!["x".repeat(500)];
    let large = RemoteService::check(large).unwrap();
    assert_eq!(
        services.put(large, &limits),
        Err(RemoteFault::TooLarge { limit: 600 })
    );
    assert_eq!(services.put(entry("y"), &limits), Ok(true));
    assert_eq!(
        services.put(entry("z"), &limits),
        Err(RemoteFault::TooMany { limit: 2 })
    );
    assert!(services.remove("a", "y"));
    assert!(!services.remove("a", "y"));
    assert_eq!(services.put(entry("z"), &limits), Ok(true));
}

#[test]
fn the_ports_of_a_list_are_limited_in_total_by_events_too() {
    let limits = Limits {
        services: 2,
        ports: 7,
        ..Limits::default()
    };
    assert_eq!(limits.list_ports(), 8);
    let entry = |name: &str, ports: usize| {
        let mut wire = wire("a", name, "green-exports");
        wire.ports = vec![wire.ports[0].clone(); ports];
        RemoteService::check(wire).unwrap()
    };
    let mut services = RemoteServices::default();
    assert_eq!(services.put(entry("x", 7), &limits), Ok(true));
    let full = Err(RemoteFault::TooManyPorts { limit: 8 });
    assert_eq!(services.put(entry("y", 2), &limits), full);
    assert_eq!(services.put(entry("y", 1), &limits), Ok(true));
    assert_eq!(services.put(entry("y", 2), &limits), full);
    assert_eq!(services.put(entry("x", 6), &limits), Ok(true));
    assert_eq!(services.put(entry("y", 2), &limits), Ok(true));
    assert!(services.remove("a", "x"));
    assert_eq!(services.put(entry("z", 6), &limits), Ok(true));
    let few = Limits {
        services: 1,
        ..Limits::default()
    };
    assert_eq!(few.list_ports(), few.ports, "one service may have them all");
}

fn any_wire() -> impl Strategy<Value = Service> {
    let port = ("[a-z]{0,9}", 1..65536i64, "(|TCP|HTTP|UnsupportedProtocol)");
    let port = port.prop_map(|(name, port, protocol)| ServicePort {
        name,
        port,
        protocol,
    });
    let ports = proptest::collection::vec(port, 0..4);
    let accounts = proptest::collection::vec("[a-z:/<é]{0,30}", 0..4);
    ("[a-z]{1,9}", "[a-z]{1,9}", ports, accounts).prop_map(|(name, namespace, ports, accounts)| {
        Service {
            ports,
            accounts,
            ..wire(&namespace, &name, "e")
        }
    })
}

proptest! {
    #[test]
    fn a_document_that_is_not_too_long_holds_no_list_that_is(
        services in proptest::collection::btree_map("[a-z]{1,5}", any_wire(), 0..5),
    ) {
        let services = services.into_values().collect();
        let document = ServiceList::new(services).encode();
        let unescaped = String::from_utf8(document).unwrap().replace("\\u003c", "<");
        let limits = Limits { list_bytes: unescaped.len(), ..Limits::default() };
        let received = decode_list(unescaped.as_bytes(), &limits).unwrap();
        let taken = RemoteServices::check(received, &limits);
        prop_assert!(!matches!(taken, Err(RemoteFault::TooLarge { .. })), "{unescaped}");
    }

    #[test]
    fn the_checksum_follows_every_change(changes in proptest::collection::vec((any::<bool>(), 0..4usize, 1..4i64), 0..30)) {
        let mut services = RemoteServices::default();
        for (put, which, port) in changes {
            let mut service = wire("a", ["w", "x", "y", "z"][which], "green-exports");
            service.ports[0].port = port;
            if put {
                services.put(RemoteService::check(service).unwrap(), &Limits::default()).unwrap();
            } else {
                services.remove(&service.namespace, &service.name);
            }
            let list = services.to_list();
            prop_assert!(services.agrees_with(list.checksum));
            prop_assert_eq!(&check(list.services).unwrap(), &services);
        }
    }
}
