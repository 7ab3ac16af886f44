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
fn a_host_whose_weight_goes_down_keeps_its_health_and_no_connections() {
    let weighted = |weight: u32| {
        let mut endpoints = endpoints(&[(0, &[1, 2])]);
        endpoints.localities[0].endpoints[0].weight = weight;
        endpoints
    };
    let policy = policy(50);
    let first = Hosts::new(&weighted(5), &Hosts::default());
    let (changed, other) = (find(&first, 1), find(&first, 2));
    for _ in 0..3 {
        first.failed(&changed, Some(&policy));
    }
    let more = Hosts::new(&weighted(9), &first);
    assert!(Arc::ptr_eq(&find(&more, 1), &changed));
    let less = Hosts::new(&weighted(5), &more);
    let renewed = find(&less, 1);
    assert!(!Arc::ptr_eq(&renewed, &changed));
    assert!(renewed.is_ejected());
    assert!(Arc::ptr_eq(&find(&less, 2), &other));
}
