//! How long a plan takes: 10 peers, 10,000 services in total, 20 rules a peer.
#![expect(
    clippy::unwrap_used,
    reason = "a bench that cannot build its world has nothing to measure"
)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use meshfed_federation::plan::plan;
use meshfed_federation::world::{MeshSettings, ObjectKey, Observed, Resources, Shared, World};
use serde_json::{Value, json};

const PEERS: usize = 10;
const SERVICES: usize = 10_000;
const RULES: usize = 20;
const ROOTS: [&str; 3] = [
    include_str!("../tests/data/roots/red.pem"),
    include_str!("../tests/data/roots/green.pem"),
    include_str!("../tests/data/roots/blue.pem"),
];

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

fn benches(c: &mut Criterion) {
    let world = world();
    let first = plan(&world);
    assert_eq!(
        first.exports.values().map(|e| e.len()).sum::<usize>(),
        SERVICES
    );
    c.bench_function("plan, 10 peers, 10,000 services, 20 rules a peer", |b| {
        b.iter(|| plan(black_box(&world)));
    });
    c.bench_function("the same, sharing with the plan before", |b| {
        b.iter(|| {
            let mut next = plan(black_box(&world));
            next.share_with(&first);
            next
        });
    });
}

criterion_group!(all, benches);
criterion_main!(all);
