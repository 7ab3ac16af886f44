use meshfed_proxy_config::{Endpoint, Locality, LocalityEndpoints};

use super::*;

fn endpoints(groups: &[(u32, &[u16])]) -> Endpoints {
    let localities = groups.iter().map(|(priority, ports)| LocalityEndpoints {
        locality: Locality::default(),
        priority: *priority,
        endpoints: ports
            .iter()
            .map(|port| Endpoint::new(SocketAddr::from(([127, 0, 0, 1], *port))))
            .collect(),
    });
    Endpoints {
        name: "e".into(),
        localities: localities.collect(),
    }
}

fn hosts(groups: &[(u32, &[u16])]) -> Hosts {
    Hosts::new(&endpoints(groups), &Hosts::default())
}

fn port(load: &Load) -> u16 {
    load.host().address.port()
}

fn policy(percent: u32) -> OutlierDetection {
    OutlierDetection {
        consecutive_failures: 3,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(30),
        max_ejection_percent: percent,
    }
}

fn find(hosts: &Hosts, port: u16) -> Arc<Host> {
    let found = hosts.all().find(|h| h.address.port() == port);
    found.unwrap().clone()
}

#[test]
fn load_spreads_over_all_and_the_busier_of_two_is_spared() {
    let hosts = hosts(&[(0, &[1, 2, 3, 4])]);
    let held: Vec<Load> = (0..400).map(|_| hosts.pick(&[]).unwrap()).collect();
    for host in hosts.all() {
        let active = host.active.load(Ordering::Relaxed);
        assert!((90..=110).contains(&active), "{active}");
    }
    drop(held);
    assert!(hosts.all().all(|h| h.active.load(Ordering::Relaxed) == 0));
}

#[test]
fn a_lower_priority_is_taken_only_when_the_higher_has_nobody_left() {
    let hosts = hosts(&[(7, &[3]), (0, &[1]), (0, &[2])]);
    let mut tried = Vec::new();
    for _ in 0..2 {
        let load = hosts.pick(&tried).unwrap();
        assert!(port(&load) < 3);
        tried.push(load.host().clone());
    }
    let load = hosts.pick(&tried).unwrap();
    assert_eq!(port(&load), 3);
    tried.push(load.host().clone());
    assert!(hosts.pick(&tried).is_none());
}

#[test]
fn a_host_that_fails_in_a_row_is_left_out_and_one_success_between_saves_it() {
    let hosts = hosts(&[(0, &[1, 2])]);
    let bad = find(&hosts, 1);
    for _ in 0..2 {
        hosts.failed(&bad, Some(&policy(50)));
    }
    bad.succeeded();
    hosts.failed(&bad, Some(&policy(50)));
    assert!(!bad.is_ejected());
    for _ in 0..2 {
        hosts.failed(&bad, Some(&policy(50)));
    }
    assert!(bad.is_ejected());
    for _ in 0..100 {
        assert_eq!(port(&hosts.pick(&[]).unwrap()), 2);
    }
}

#[test]
fn no_more_than_the_allowed_part_is_left_out_but_always_one() {
    let of_four = hosts(&[(0, &[1, 2, 3, 4])]);
    for port in 1..=4 {
        for _ in 0..3 {
            of_four.failed(&find(&of_four, port), Some(&policy(50)));
        }
    }
    assert_eq!(of_four.all().filter(|h| h.is_ejected()).count(), 2);
    let alone = hosts(&[(0, &[1])]);
    for _ in 0..3 {
        alone.failed(&find(&alone, 1), Some(&policy(10)));
    }
    assert!(find(&alone, 1).is_ejected());
    // A doubtful one is better than none.
    assert!(alone.pick(&[]).is_some());
}

#[test]
fn without_a_policy_failures_mean_nothing() {
    let hosts = hosts(&[(0, &[1, 2])]);
    for _ in 0..100 {
        hosts.failed(&find(&hosts, 1), None);
    }
    assert!(!find(&hosts, 1).is_ejected());
}

#[test]
fn what_is_known_of_a_host_outlives_a_change_of_the_others() {
    let before = hosts(&[(0, &[1, 2])]);
    let held = before.pick(&[]).unwrap();
    let after = Hosts::new(&endpoints(&[(0, &[2, 3]), (1, &[1])]), &before);
    assert!(Arc::ptr_eq(held.host(), &find(&after, port(&held))));
    assert_eq!(after.all().count(), 3);
}

#[test]
fn a_gateway_behind_which_somebody_is_no_more_keeps_its_health_and_no_connections() {
    let served_by = |behind: &[&str], weight: u32| {
        let mut endpoints = endpoints(&[(0, &[1, 2])]);
        let gateway = &mut endpoints.localities[0].endpoints[0];
        gateway.behind = behind.iter().map(|&name| name.into()).collect();
        gateway.weight = weight;
        endpoints
    };
    let policy = policy(50);
    let first = Hosts::new(&served_by(&["red"], 5), &Hosts::default());
    let (gateway, other) = (find(&first, 1), find(&first, 2));
    for _ in 0..3 {
        first.failed(&gateway, Some(&policy));
    }
    let both = Hosts::new(&served_by(&["blue", "red"], 9), &first);
    let fewer = Hosts::new(&served_by(&["blue", "red"], 2), &both);
    assert!(Arc::ptr_eq(&find(&fewer, 1), &gateway));
    // As many as before, in another place.
    let one = Hosts::new(&served_by(&["blue"], 2), &fewer);
    let renewed = find(&one, 1);
    assert!(!Arc::ptr_eq(&renewed, &gateway));
    assert!(renewed.is_ejected());
    let none = Hosts::new(&served_by(&[], 2), &one);
    assert!(!Arc::ptr_eq(&find(&none, 1), &renewed));
    assert!(Arc::ptr_eq(&find(&none, 2), &other));
}
