//! Several instances of the control plane write the same statuses, and do not fight.

use std::sync::Arc;

use jiff::SignedDuration;
use meshfed_api::peer::{DiscoveryStatus, ServiceMeshPeerStatus};
use meshfed_federation::plan::{has_others, is_heard, plan, resigned};
use meshfed_federation::world::{ObjectKey, Observed, World};

use crate::lab::{now, red_and_green, store};

/// Two instances of green-mesh, each with what it sees; one API.
struct Replicas {
    worlds: [World; 2],
}

impl Replicas {
    fn new(seen: [Observed; 2]) -> Self {
        let (_, green) = red_and_green();
        let mut worlds = [green.world.clone(), green.world];
        for (world, (suffix, seen)) in worlds.iter_mut().zip(["a", "b"].into_iter().zip(seen)) {
            world.mesh.instance_suffix = suffix.to_owned();
            world.observed = seen;
        }
        Self { worlds }
    }

    /// One instance plans and writes; both read it. True if something was written.
    fn turn(&mut self, instance: usize) -> bool {
        let wanted = plan(&self.worlds[instance]).statuses;
        let mut wrote = false;
        for world in &mut self.worlds {
            wrote |= store(world, &wanted);
        }
        wrote
    }

    /// Turns until nobody writes any more.
    fn settle(&mut self) -> usize {
        for turn in 0..20 {
            let wrote = [0, 1].map(|instance| self.turn(instance));
            if wrote == [false, false] {
                return turn;
            }
        }
        panic!("they fight");
    }

    fn wait(&mut self, time: SignedDuration) {
        for world in &mut self.worlds {
            world.now += time;
        }
    }

    fn status(&self) -> ServiceMeshPeerStatus {
        let peers = &self.worlds[0].resources.peers;
        let peer = &peers[&ObjectKey::new("green-mesh-system", "red-mesh")];
        peer.status.clone().unwrap()
    }

    fn reason(&self) -> String {
        self.status().conditions[0].reason.clone().unwrap()
    }
}

/// What an instance may see: everything, no peer, a peer that is away, no gateways, nothing.
fn views() -> Vec<Observed> {
    let (_, green) = red_and_green();
    let all = green.world.observed;
    let mut no_peer = all.clone();
    no_peer.peers = Default::default();
    let mut away = all.clone();
    let state = Arc::make_mut(away.peers.get_mut("red-mesh").unwrap());
    Arc::make_mut(&mut state.remote).watch.connected = false;
    state.watchers.clear();
    let mut one_way = all.clone();
    let state = Arc::make_mut(one_way.peers.get_mut("red-mesh").unwrap());
    state.watchers.clear();
    let mut no_gateways = all.clone();
    no_gateways.gateways = Default::default();
    let nothing = Observed {
        own_roots: all.own_roots.clone(),
        ..Observed::default()
    };
    vec![all, no_peer, away, one_way, no_gateways, nothing]
}

#[test]
fn instances_with_different_views_come_to_one_status_and_leave_it() {
    for first in views() {
        for second in views() {
            let mut replicas = Replicas::new([first.clone(), second.clone()]);
            assert!(replicas.settle() <= 4);
            let DiscoveryStatus { active, inactive } = replicas.status().discovery_status;
            let mut pods: Vec<String> = active
                .iter()
                .chain(&inactive)
                .map(|p| p.pod.clone())
                .collect();
            pods.sort();
            assert_eq!(pods, ["istiod-green-mesh-a", "istiod-green-mesh-b"]);
        }
    }
}

#[test]
fn a_peer_that_one_instance_is_connected_to_is_connected() {
    let views = views();
    for other in &views {
        for pair in [[&views[0], other], [other, &views[0]]] {
            let mut replicas = Replicas::new(pair.map(Observed::clone));
            replicas.settle();
            assert_eq!(replicas.reason(), "Connected");
            let sets = &replicas.worlds[0].resources.imports;
            let set = sets.values().next().unwrap().status.clone().unwrap();
            assert_eq!(set.imported_services.len(), 2, "the one that knows says it");
        }
    }
}

#[test]
fn an_instance_that_is_gone_is_forgotten_and_another_takes_over() {
    let views = views();
    let mut replicas = Replicas::new([views[0].clone(), views[2].clone()]);
    replicas.settle();
    // The first one stops; the second goes on alone.
    replicas.wait(SignedDuration::from_mins(5));
    replicas.turn(1);
    let status = replicas.status();
    assert_eq!(status.discovery_status.active[0].pod, "istiod-green-mesh-a");
    replicas.wait(SignedDuration::from_mins(10));
    replicas.turn(1);
    assert!(!replicas.turn(1));
    let status = replicas.status();
    assert!(status.discovery_status.active.is_empty());
    assert_eq!(status.discovery_status.inactive.len(), 1);
    assert_eq!(replicas.reason(), "NotConnected");
}

#[test]
fn an_instance_that_is_gone_does_not_live_on_in_a_time_that_lies_ahead() {
    let views = views();
    let mut replicas = Replicas::new([views[0].clone(), views[2].clone()]);
    // The clock of the first one was ahead when it stopped.
    let ahead = SignedDuration::from_hours(2);
    for at in [ahead, -ahead] {
        let world = &mut replicas.worlds[0];
        world.now += at;
        let state = Arc::make_mut(world.observed.peers.get_mut("red-mesh").unwrap());
        let remote = Arc::make_mut(&mut state.remote);
        let watch = &mut remote.watch;
        let times = [
            &mut remote.last_contact,
            &mut remote.last_full_sync,
            &mut watch.last_connected,
            &mut watch.last_event,
        ];
        for time in times.into_iter().flatten() {
            *time += at;
        }
        for watcher in &mut state.watchers {
            let times = [
                &mut watcher.last_connected,
                &mut watcher.last_disconnect,
                &mut watcher.last_event,
                &mut watcher.last_full_sync,
            ];
            for time in times.into_iter().flatten() {
                *time += at;
            }
        }
        if at == ahead {
            replicas.turn(0);
        }
    }
    replicas.turn(1);
    assert!(!replicas.turn(1));
    assert_eq!(replicas.reason(), "NotConnected", "the second one says it");
    assert!(replicas.status().discovery_status.active.is_empty());
}

#[test]
fn entries_of_instances_that_were_long_away_go_and_their_number_is_bounded() {
    let views = views();
    let mut replicas = Replicas::new([views[0].clone(), views[0].clone()]);
    let inactive: Vec<_> = (0..100)
        .map(|n| {
            let at = now() - SignedDuration::from_hours(1) - SignedDuration::from_secs(n);
            let old = now() - SignedDuration::from_hours(30);
            serde_json::json!({
                "pod": format!("istiod-green-mesh-old-{n}"),
                "watch": {"connected": false,
                    "lastDisconnect": if n < 50 { at } else { old }.to_string()},
            })
        })
        .collect();
    let key = ObjectKey::new("green-mesh-system", "red-mesh");
    for world in &mut replicas.worlds {
        let peer = Arc::make_mut(world.resources.peers.get_mut(&key).unwrap());
        let status = serde_json::json!({"discoveryStatus": {"inactive": inactive}});
        peer.status = Some(serde_json::from_value(status).unwrap());
    }
    replicas.settle();
    let status = replicas.status().discovery_status;
    assert_eq!(status.active.len(), 2);
    assert_eq!(status.inactive.len(), 14);
    let all: Vec<&str> = status.inactive.iter().map(|p| p.pod.as_str()).collect();
    assert!(all.contains(&"istiod-green-mesh-old-0"));
}

#[test]
fn an_instance_whose_control_plane_is_gone_still_is_the_one_that_it_was() {
    let (_, green) = red_and_green();
    let mut world = green.world;
    let statuses = plan(&world).statuses;
    store(&mut world, &statuses);
    world.resources.control_planes.clear();
    let statuses = plan(&world).statuses;
    store(&mut world, &statuses);
    let peers = &world.resources.peers;
    let peer = &peers[&ObjectKey::new("green-mesh-system", "red-mesh")];
    let status = peer.status.as_ref().unwrap();
    assert_eq!(
        status.conditions[0].reason.as_deref(),
        Some("NoControlPlane")
    );
    let DiscoveryStatus { active, inactive } = &status.discovery_status;
    let pods: Vec<&str> = active.iter().chain(inactive).map(|e| &*e.pod).collect();
    assert_eq!(pods, ["istiod-b65457658-9wq5j"]);
}

#[test]
fn an_instance_that_stops_leaves_the_status_to_another_and_one_that_is_alone_keeps_its_own() {
    let views = views();
    let mut replicas = Replicas::new([views[0].clone(), views[2].clone()]);
    replicas.settle();
    assert_eq!(replicas.reason(), "Connected");
    // The one that led stops.
    let left = resigned(&replicas.status().discovery_status, "a").unwrap();
    let all = left.active.iter().chain(&left.inactive);
    let pods: Vec<&str> = all.map(|entry| entry.pod.as_str()).collect();
    assert_eq!(pods, ["istiod-green-mesh-b"]);
    assert_eq!(resigned(&left, "a"), None, "there is nothing to change");
    assert_eq!(resigned(&left, "b"), None, "nobody would go on");
    let key = ObjectKey::new("green-mesh-system", "red-mesh");
    for world in &mut replicas.worlds {
        let peer = Arc::make_mut(world.resources.peers.get_mut(&key).unwrap());
        peer.status.as_mut().unwrap().discovery_status = left.clone();
    }
    replicas.turn(1);
    assert!(!replicas.turn(1));
    assert_eq!(replicas.reason(), "NotConnected", "the other one says it");
}

#[test]
fn statuses_tell_which_instances_hear_from_peers() {
    let views = views();
    // The second one sees nothing.
    let mut replicas = Replicas::new([views[0].clone(), views[5].clone()]);
    replicas.settle();
    let seen = |replicas: &Replicas| {
        let World { resources, now, .. } = &replicas.worlds[1];
        let heard = ["a", "b", "c"].map(|suffix| is_heard(resources, suffix, *now));
        let others = ["a", "b"].map(|suffix| has_others(resources, suffix, *now));
        (heard, others)
    };
    assert_eq!(seen(&replicas), ([true, false, false], [false, true]));
    replicas.wait(SignedDuration::from_mins(10));
    assert_eq!(seen(&replicas), ([false; 3], [false; 2]));
}
