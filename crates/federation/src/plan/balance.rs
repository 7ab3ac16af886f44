//! How requests are spread over this mesh and others.

use std::net::SocketAddr;
use std::sync::Arc;

use meshfed_proxy_config::{Endpoint, Locality, LocalityEndpoints, MAX_WEIGHT};

use crate::discovery::extension::Health;
use crate::names::PeerName;

/// A way into another mesh for one destination.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Way {
    /// Our egress gateway for the peer, port 15443.
    pub egress: SocketAddr,
    /// The peer, where others behind the same gateway may serve the same name.
    pub shared_by: Option<PeerName>,
    pub locality: Locality,
    /// How the service fares there, if the peer tells.
    pub health: Option<Health>,
}

/// How much of the traffic goes to each of several meshes; 0 is nothing. One without ready
/// endpoints gets none, and neither does one in which the service drains while there is another
/// place, here (`local`) or in another mesh. Otherwise each gets its share by its ready endpoints.
pub(super) fn weights(local: bool, all: &[Option<Health>]) -> Vec<u32> {
    let is_open = |health: &Option<Health>, alternative| {
        health.is_none_or(|health| health.takes_requests(alternative))
    };
    let each = all.iter().enumerate().map(|(i, health)| {
        let mut others = all.iter().enumerate().filter(|(other, _)| *other != i);
        let alternative = local || others.any(|(_, other)| is_open(other, true));
        if !is_open(health, alternative) {
            return 0;
        }
        let ready = health.map_or(1, |health| health.ready_endpoints);
        ready.clamp(1, MAX_WEIGHT)
    });
    each.collect()
}

/// Adds to the endpoints of this mesh the ways to others, by their [`weights`]. If nothing is left,
/// callers are told at once that there is nobody. Peers behind one gateway are one endpoint, in the
/// locality of the first; the gateway spreads what it gets, and the endpoint says who of them takes requests.
pub(super) fn add_ways(localities: &mut Vec<LocalityEndpoints>, ways: &[Way]) {
    let local = localities.iter().any(|l| !l.endpoints.is_empty());
    let healths: Vec<_> = ways.iter().map(|way| way.health).collect();
    let mut all: Vec<(&Way, u32, Vec<Arc<str>>)> = Vec::with_capacity(ways.len());
    for (way, weight) in ways.iter().zip(weights(local, &healths)) {
        if weight == 0 {
            continue;
        }
        let peer = way.shared_by.as_ref().map(|peer| peer.as_str().into());
        match all
            .iter_mut()
            .find(|(there, ..)| there.egress == way.egress)
        {
            Some((_, there, behind)) => {
                *there = MAX_WEIGHT.min(*there + weight);
                behind.extend(peer);
            }
            None => all.push((way, weight, peer.into_iter().collect())),
        }
    }
    let alone = !local && ways.len() == 1;
    for (way, weight, behind) in all {
        let endpoint = Endpoint {
            // Who has no other way need not be told of each change.
            weight: if alone { 1 } else { weight },
            behind,
            ..Endpoint::new(way.egress)
        };
        match localities.iter_mut().find(|l| l.locality == way.locality) {
            Some(there) => there.endpoints.push(endpoint),
            None => localities.push(LocalityEndpoints {
                locality: way.locality.clone(),
                priority: 0,
                endpoints: vec![endpoint],
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(last: u8, ready: Option<(u32, bool)>) -> Way {
        Way {
            egress: ([127, 64, 1, last], 15443).into(),
            shared_by: None,
            locality: Locality::default(),
            health: ready.map(|(ready_endpoints, draining)| Health {
                ready_endpoints,
                capacity: 9,
                draining,
            }),
        }
    }

    /// Last number of the address and weight of each endpoint.
    fn spread(local: &[u8], ways: &[Way]) -> Vec<(u8, u32)> {
        let endpoint = |last: &u8| Endpoint::new(([127, 64, 1, *last], 80).into());
        let mut localities = Vec::new();
        if !local.is_empty() {
            localities.push(LocalityEndpoints {
                locality: Locality::default(),
                priority: 0,
                endpoints: local.iter().map(endpoint).collect(),
            });
        }
        add_ways(&mut localities, ways);
        let endpoints = localities.iter().flat_map(|l| &l.endpoints);
        let last = |e: &Endpoint| match e.address {
            SocketAddr::V4(address) => address.ip().octets()[3],
            SocketAddr::V6(_) => 0,
        };
        endpoints.map(|e| (last(e), e.weight)).collect()
    }

    #[test]
    fn a_mesh_without_ready_endpoints_gets_nothing_even_if_nobody_is_left() {
        assert_eq!(spread(&[], &[way(1, Some((0, false)))]), []);
        assert_eq!(spread(&[9], &[way(1, Some((0, false)))]), [(9, 1)]);
        let both = [way(1, Some((0, false))), way(2, None)];
        assert_eq!(spread(&[], &both), [(2, 1)]);
    }

    #[test]
    fn a_mesh_in_which_the_service_drains_gets_nothing_while_there_is_another_place() {
        let draining = way(1, Some((3, true)));
        assert_eq!(spread(&[], std::slice::from_ref(&draining)), [(1, 1)]);
        assert_eq!(spread(&[9], std::slice::from_ref(&draining)), [(9, 1)]);
        assert_eq!(spread(&[], &[draining.clone(), way(2, None)]), [(2, 1)]);
        let away = way(2, Some((0, false)));
        assert_eq!(spread(&[], &[draining.clone(), away]), [(1, 3)]);
        let too = way(2, Some((2, true)));
        assert_eq!(spread(&[], &[draining, too]), [(1, 3), (2, 2)]);
    }

    #[test]
    fn each_mesh_gets_its_share_by_its_ready_endpoints() {
        let ways = [way(1, Some((5, false))), way(2, None)];
        assert_eq!(spread(&[8, 9], &ways), [(8, 1), (9, 1), (1, 5), (2, 1)]);
        let most = way(1, Some((u32::MAX, false)));
        assert_eq!(spread(&[9], &[most]), [(9, 1), (1, MAX_WEIGHT)]);
    }

    #[test]
    fn peers_behind_one_gateway_are_one_endpoint_with_the_weight_of_those_that_take_requests() {
        let (five, four) = (way(1, Some((5, false))), way(1, Some((4, false))));
        assert_eq!(spread(&[], &[five.clone(), four.clone()]), [(1, 9)]);
        assert_eq!(spread(&[9], &[five.clone(), four]), [(9, 1), (1, 9)]);
        let other = way(2, Some((2, false)));
        let draining = way(1, Some((3, true)));
        let all = [draining.clone(), other, five.clone()];
        assert_eq!(spread(&[], &all), [(2, 2), (1, 5)]);
        let away = way(1, Some((0, false)));
        assert_eq!(spread(&[], &[draining, away.clone()]), [(1, 3)]);
        assert_eq!(spread(&[], &[five.clone(), away]), [(1, 5)]);
        assert_eq!(spread(&[], &[five]), [(1, 1)]);
        let most = way(1, Some((u32::MAX, false)));
        assert_eq!(
            spread(&[9], &[most.clone(), most]),
            [(9, 1), (1, MAX_WEIGHT)]
        );
    }

    #[test]
    fn an_endpoint_says_who_of_those_behind_it_takes_requests() {
        let of = |peer: &str, last: u8, ready: u32| Way {
            shared_by: Some(peer.parse().unwrap()),
            ..way(last, Some((ready, false)))
        };
        let behind = |ways: &[Way]| {
            let mut localities = Vec::new();
            add_ways(&mut localities, ways);
            let endpoints = localities.iter().flat_map(|l| &l.endpoints);
            endpoints.map(|e| e.behind.join(" ")).collect::<Vec<_>>()
        };
        let all = [of("blue", 1, 4), of("red", 1, 5), of("teal", 2, 1)];
        assert_eq!(behind(&all), ["blue red", "teal"]);
        // Together as many as before.
        let others = [of("blue", 1, 0), of("red", 1, 9), of("teal", 2, 1)];
        assert_eq!(behind(&others), ["red", "teal"]);
        assert_eq!(behind(&[of("blue", 1, 4)]), ["blue"]);
        assert_eq!(behind(&[way(1, None)]), [""]);
    }
}
