//! How long a plan takes: 10 peers, 10,000 services in total, 20 rules a peer.
//!
//! `cargo bench -p meshfed-federation --bench plan [-- part of a name]`; see docs/benchmarks.md.
#![expect(
    clippy::unwrap_used,
    reason = "a bench that cannot build its world has nothing to measure"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use meshfed_federation::discovery::client::RemoteState;
use meshfed_federation::discovery::message::{self, Limits, ServiceList, ServicePort, decode_list};
use meshfed_federation::discovery::remote::{RemoteService, RemoteServices};
use meshfed_federation::plan::{Planner, plan};
use meshfed_federation::world::{
    MeshSettings, ObjectKey, Observed, PeerState, Resources, Shared, World,
};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PEERS: usize = 10;
const SERVICES: usize = 10_000;
const RULES: usize = 20;
/// Of plans from nothing, unless `MESHFED_BENCH_PLAN_ROUNDS` says otherwise.
const ROUNDS: usize = 50;
/// Of changes.
const CHANGES: usize = 1000;
const ROOTS: [&str; 3] = [
    include_str!("../tests/data/roots/red.pem"),
    include_str!("../tests/data/roots/green.pem"),
    include_str!("../tests/data/roots/blue.pem"),
];

fn remote_service(i: usize, port: usize) -> message::Service {
    message::Service {
        name: format!("service-{i}"),
        namespace: "far".to_owned(),
        hostname: format!("service-{i}.far.svc.mesh-exports.local"),
        ports: vec![ServicePort {
            name: "http".to_owned(),
            port: port as i64,
            protocol: "HTTP".to_owned(),
        }],
        accounts: Vec::new(),
        health: None,
    }
}

/// The same mesh, which also imports everything that a peer exports.
fn importing(world: &World) -> World {
    let mut world = world.clone();
    let services = (0..SERVICES).map(|i| remote_service(i, 80)).collect();
    let list = ServiceList::new(services);
    let limits = Limits::default();
    let received = decode_list(&list.encode(), &limits).unwrap();
    let state = PeerState {
        remote: Arc::new(RemoteState {
            services: Arc::new(RemoteServices::check(received, &limits).unwrap()),
            ..RemoteState::default()
        }),
        ..PeerState::default()
    };
    world.observed.insert_peer("peer-3", state);
    let rules: Vec<Value> = (1..RULES)
        .map(|rule| {
            let selector =
                json!({"name": format!("service-{rule}"), "alias": {"namespace": "near"}});
            json!({"type": "NameSelector", "nameSelector": selector})
        })
        .chain([json!({"type": "NameSelector", "nameSelector": {}})])
        .collect();
    put(
        &mut world.resources.imports,
        json!({
            "metadata": {"name": "peer-3", "namespace": "system"},
            "spec": {"importRules": rules},
        }),
    );
    world
}

fn put<K: serde::de::DeserializeOwned + Clone>(all: &mut Shared<ObjectKey, K>, document: Value) {
    let metadata = &document["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or_default();
    let key = ObjectKey::new(namespace, metadata["name"].as_str().unwrap());
    let object = serde_json::from_value(document).unwrap();
    all.insert(key, Arc::new(object));
}

/// A mesh that exports each of its services to one peer, by a rule that is on average the tenth.
fn world() -> World {
    let mut resources = Resources::default();
    let r = &mut resources;
    let gateways = |side: &str| -> serde_json::Map<String, Value> {
        let named = (0..PEERS).map(|i| (format!("{side}-{i}"), json!({})));
        named.collect()
    };
    put(
        &mut r.control_planes,
        json!({
            "metadata": {"name": "mesh", "namespace": "system"},
            "spec": {
                "gateways": {
                    "additionalIngress": gateways("ingress"), "additionalEgress": gateways("egress"),
                },
                "security": {"trust": {"domain": "mesh.local"}},
            },
        }),
    );
    put(
        &mut r.member_rolls,
        json!({"metadata": {"name": "default", "namespace": "system"}, "spec": {"members": ["*"]}}),
    );
    for namespace in 0..PEERS * RULES {
        let name = format!("ns-{namespace}");
        put(&mut r.namespaces, json!({"metadata": {"name": name}}));
    }
    for i in 0..SERVICES {
        let (namespace, name) = (
            format!("ns-{}", i % (PEERS * RULES)),
            format!("service-{i}"),
        );
        put(
            &mut r.services,
            json!({
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"ports": [{"name": "http", "port": 80}]},
            }),
        );
        put(
            &mut r.endpoint_slices,
            json!({
                "metadata": {"name": name, "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": 80}],
                "endpoints": [{"addresses": [format!("10.0.{}.{}", i / 250, i % 250)]}],
            }),
        );
    }
    for peer in 0..PEERS {
        let name = format!("peer-{peer}");
        let domain = format!("{name}.local");
        put(
            &mut r.peers,
            json!({
                "metadata": {"name": name, "namespace": "system"},
                "spec": {
                    "remote": {"addresses": ["192.0.2.1"]},
                    "gateways": {
                        "ingress": {"name": format!("ingress-{peer}")},
                        "egress": {"name": format!("egress-{peer}")},
                    },
                    "security": {
                        "trustDomain": domain, "clientID": format!("{domain}/ns/a/sa/b"),
                    },
                },
            }),
        );
        put(
            &mut r.config_maps,
            json!({
                "metadata": {"name": format!("{name}-ca-root-cert"), "namespace": "system"},
                "data": {"root-cert.pem": ROOTS[peer % 3]},
            }),
        );
        let rules: Vec<Value> = (0..RULES)
            .map(|rule| {
                let namespace = format!("ns-{}", peer * RULES + rule);
                json!({"type": "NameSelector", "nameSelector": {"namespace": namespace}})
            })
            .collect();
        put(
            &mut r.exports,
            json!({
                "metadata": {"name": name, "namespace": "system"},
                "spec": {"exportRules": rules},
            }),
        );
        for side in ["ingress", "egress"] {
            let gateway = format!("{side}-{peer}");
            put(
                &mut r.services,
                json!({
                    "metadata": {"name": gateway, "namespace": "system",
                        "labels": {"meshfed.io/gateway": gateway}},
                    "spec": {"clusterIP": format!("10.1.{}.{peer}", side.len())},
                }),
            );
        }
    }
    World {
        now: "2027-01-01T00:00:00Z".parse().unwrap(),
        mesh: MeshSettings {
            system_namespace: "system".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            default_trust_domain: "cluster.local".parse().unwrap(),
            instance_suffix: "0".to_owned(),
            discovery_address: "10.2.0.1:8188".parse().unwrap(),
            node_address: "10.2.0.2".parse().unwrap(),
            started: jiff::Timestamp::UNIX_EPOCH,
        },
        resources,
        observed: Observed {
            own_roots: ROOTS[0].into(),
            ..Observed::default()
        },
    }
}

/// Times of one thing that was done again and again.
#[derive(Default)]
struct Times {
    wall: Vec<Duration>,
    cpu: Vec<Duration>,
}

impl Times {
    fn of<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (started, on_cpu) = (Instant::now(), ProcessTime::now());
        let done = work();
        self.cpu.push(on_cpu.elapsed());
        self.wall.push(started.elapsed());
        done
    }

    fn print(mut self, what: &str) {
        println!("{what}");
        for (clock, times) in [("wall", &mut self.wall), ("CPU", &mut self.cpu)] {
            times.sort();
            let at = |share: f64| {
                let rank = (times.len() - 1) as f64 * share;
                times[rank.round() as usize].as_secs_f64() * 1000.0
            };
            let [min, p50, p90, max] = [0.0, 0.5, 0.9, 1.0].map(at);
            println!("  {clock:4} ms: min {min:7.2}  p50 {p50:7.2}  p90 {p90:7.2}  max {max:7.2}");
        }
    }
}

/// A plan by a planner that knows nothing. Nobody drops a whole plan while the control plane runs, so
/// that has times of its own.
fn from_nothing(what: &str, world: &World) {
    let (mut made, mut dropped) = (Times::default(), Times::default());
    let rounds = std::env::var("MESHFED_BENCH_PLAN_ROUNDS");
    let rounds = rounds.map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    for _ in 0..rounds {
        let mut planner = Planner::new();
        let plan = made.of(|| planner.plan(black_box(world)));
        dropped.of(|| drop((planner, plan)));
    }
    made.print(what);
    dropped.print("  dropping it and all that the planner knows");
}

/// One thing that happens, seen by a planner that knows everything else. The plan before is dropped
/// within the time, as the control plane does.
fn one_change(what: &str, world: &World, mut change: impl FnMut(&mut World, usize)) {
    let mut planner = Planner::new();
    let mut world = world.clone();
    let mut last = planner.plan(&world);
    let mut times = Times::default();
    for n in 1..=CHANGES {
        change(&mut world, n);
        times.of(|| last = planner.plan(black_box(&world)));
    }
    assert_eq!(last, plan(&world));
    times.print(what);
}

fn service_of(n: usize) -> ObjectKey {
    let i = n * 7919 % SERVICES;
    ObjectKey::new(
        format!("ns-{}", i % (PEERS * RULES)),
        format!("service-{i}"),
    )
}

fn main() {
    // Cargo passes `--bench`.
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let wanted = wanted.unwrap_or_default();
    let world = world();
    let first = plan(&world);
    let exported: usize = first.exports.values().map(|e| e.len()).sum();
    assert_eq!(exported, SERVICES);
    let importing = importing(&world);
    let imported = plan(&importing).shares.imports;
    let imported: usize = imported.values().map(|offers| offers.len()).sum();
    assert_eq!(imported, SERVICES);
    for (what, bench) in BENCHES {
        if what.contains(&wanted) {
            bench(what, &world, &importing);
        }
    }
}

/// What is measured, with the world that exports and the one that also imports.
type Bench = fn(&str, &World, &World);

const BENCHES: [(&str, Bench); 6] = [
    (
        "full plan: 10 peers, 10,000 services, 20 rules a peer",
        |what, world, _| from_nothing(what, world),
    ),
    (
        "full plan: the same, and 10,000 imports",
        |what, _, importing| {
            from_nothing(what, importing);
        },
    ),
    ("one Service changes its ports", |what, world, _| {
        one_change(what, world, |world, n| {
            let service = world.resources.services.get_mut(&service_of(n)).unwrap();
            let spec = Arc::make_mut(service).spec.as_mut().unwrap();
            spec.ports.as_mut().unwrap()[0].port = 1000 + (n % 1000) as i32;
        });
    }),
    ("one Service comes or goes", |what, world, _| {
        one_change(what, world, |world, n| {
            let services = &mut world.resources.services;
            let key = ObjectKey::new("ns-7", "new");
            if n % 2 == 0 {
                services.remove(&key);
            } else {
                let one = services.get(&service_of(n)).unwrap().clone();
                services.insert(key, one);
            }
        });
    }),
    ("one EndpointSlice changes an address", |what, world, _| {
        one_change(what, world, |world, n| {
            let slices = &mut world.resources.endpoint_slices;
            let slice = slices.get_mut(&service_of(n)).unwrap();
            Arc::make_mut(slice).endpoints[0].addresses =
                vec![format!("10.9.{}.{}", n / 250 % 250, n % 250)];
        });
    }),
    (
        "one discovery event of a peer with 10,000 services",
        |what, _, importing| {
            one_change(what, importing, |world, n| {
                let states = &mut world.observed.peers;
                let state = Arc::make_mut(states.get_mut("peer-3").unwrap());
                let remote = Arc::make_mut(&mut state.remote);
                let service = remote_service(n % SERVICES, 1000 + n % 1000);
                let services = Arc::make_mut(&mut remote.services);
                services
                    .put(RemoteService::check(service).unwrap(), &Limits::default())
                    .unwrap();
            });
        },
    ),
];
