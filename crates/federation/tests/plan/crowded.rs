//! More names that peers share behind one egress gateway than it spreads.

use meshfed_federation::discovery::message::{Service, ServiceList, ServicePort};
use meshfed_proxy_config::{Listener, Network, TcpTarget};
use meshfed_xds::{MAX_RESOURCE_LEN, decode, encode};
use serde_json::json;

use crate::lab::{Lab, gateway, root_of};
use crate::meshes::{Membership, Meshes};

/// So many services with ten ports each.
fn services(peer: &str, count: usize) -> ServiceList {
    let port = |port| ServicePort {
        name: format!("p{port}"),
        port,
        protocol: "TCP".into(),
    };
    let service = |i| Service {
        name: format!("s{i:03}"),
        namespace: "there".into(),
        hostname: format!("s{i:03}.there.svc.{peer}-exports.local"),
        ports: (1..=10).map(port).collect(),
        accounts: Vec::new(),
        health: None,
    };
    ServiceList::new((0..count).map(service).collect())
}

/// Red, which imports everything of green and blue into the same names, through one egress gateway.
fn red() -> Lab {
    let mut meshes = Meshes::new(&[
        Membership {
            shared_gateways: true,
            ..Membership::of("red", &[(1, "green-mesh"), (2, "blue-mesh")])
        },
        Membership::of("green", &[(0, "red-mesh")]),
        Membership::of("blue", &[(0, "red-mesh")]),
    ]);
    let mut red = meshes.labs.swap_remove(0);
    red.apply_json(json!({
        "kind": "ServiceMeshMemberRoll",
        "metadata": {"name": "default", "namespace": "red-mesh-system"},
        "spec": {"members": ["here"]},
    }));
    for peer in ["green-mesh", "blue-mesh"] {
        red.apply_json(json!({
            "kind": "ImportedServiceSet",
            "metadata": {"name": peer, "namespace": "red-mesh-system"},
            "spec": {"importRules": [{"type": "NameSelector", "importAsLocal": true,
                "nameSelector": {"alias": {"namespace": "here"}}}]},
        }));
    }
    red
}

#[test]
fn the_sets_whose_ports_find_no_place_at_a_shared_gateway_say_so() {
    let mut red = red();
    red.hears("green-mesh", &services("red-mesh", 100));
    red.hears("blue-mesh", &services("red-mesh", 102));
    let ready = |red: &Lab| {
        let plan = red.plan();
        let sets = plan.statuses.imports.values();
        let ready = sets.map(|set| set.conditions[0].clone());
        ready
            .map(|c| (c.reason.unwrap(), c.message.unwrap()))
            .collect::<Vec<_>>()
    };
    let applied = ready(&red);
    assert!(
        applied.iter().all(|(reason, _)| reason == "RulesApplied"),
        "{applied:?}"
    );

    red.hears("green-mesh", &services("red-mesh", 101));
    for (reason, message) in ready(&red) {
        assert_eq!(reason, "TooManyShared");
        assert!(
            message.contains("the gateway egress: 10 of this peer")
                && message.contains("s100.here.svc.cluster.local:1 to blue-mesh"),
            "{message}"
        );
    }
    // It is what the gateway does.
    let egress = gateway(&red.plan(), "egress");
    let chains = egress.listeners.values().flat_map(|l| &l.chains);
    let spread = chains.filter(
        |c| matches!(&c.network, Network::Tcp(tcp) if matches!(tcp.target, TcpTarget::Weighted(_))),
    );
    let mut names: Vec<&str> = spread.map(|c| c.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names.len(), 1000);
    assert!(!names.iter().any(|name| name.contains("s100.")));
}

/// A peer's name, and the domain that it vouches for, as long as they may be.
fn long(i: usize) -> (String, String) {
    (
        format!("peer-{i:02}-{}", "x".repeat(47)),
        format!("peer-{i:02}.local"),
    )
}

/// A mesh that imports the same names, as long as names may be, from so many peers through one gateway.
fn with_peers(peers: usize) -> Lab {
    let mut meshes = Meshes::new(&[Membership {
        shared_gateways: true,
        ..Membership::of("red", &[])
    }]);
    let mut red = meshes.labs.swap_remove(0);
    let system = red.system();
    let ports = json!({"service": {"type": "LoadBalancer", "loadBalancerIP": "127.64.1.10",
        "ports": [{"port": 15443, "name": "tls"}, {"port": 8188, "name": "https-discovery"}]}});
    red.apply_json(json!({
        "kind": "ServiceMeshControlPlane",
        "metadata": {"name": "red-mesh", "namespace": system},
        "spec": {
            "gateways": {"additionalIngress": {"ingress": ports}, "additionalEgress": {"egress": ports}},
            "security": {"trust": {"domain": "red-mesh.local"}},
        },
    }));
    let here = "n".repeat(63);
    red.apply_json(json!({
        "kind": "ServiceMeshMemberRoll",
        "metadata": {"name": "default", "namespace": system},
        "spec": {"members": [here]},
    }));
    let service = |i: usize| {
        let name = format!("s{i:02}{}", "s".repeat(60));
        let port = |port| ServicePort {
            name: format!("p{port}"),
            port,
            protocol: "TCP".into(),
        };
        Service {
            hostname: format!("{name}.{here}.svc.red-mesh-exports.local"),
            name,
            namespace: here.clone(),
            ports: (65_001..=65_100).map(port).collect(),
            ..Service::default()
        }
    };
    let list = ServiceList::new((0..10).map(service).collect());
    for i in 0..peers {
        let (name, domain) = long(i);
        red.root_config_map(&format!("{name}-ca-root-cert"), &root_of("green"));
        red.apply_json(json!({
            "kind": "ServiceMeshPeer",
            "metadata": {"name": name, "namespace": system},
            "spec": {
                "remote": {"addresses": [format!("127.64.9.{i}")]},
                "gateways": {"ingress": {"name": "ingress"}, "egress": {"name": "egress"}},
                "security": {
                    "trustDomain": domain,
                    "clientID": format!("{domain}/ns/there/sa/egress"),
                    "certificateChain": {"kind": "ConfigMap", "name": format!("{name}-ca-root-cert")},
                },
            },
        }));
        red.apply_json(json!({
            "kind": "ImportedServiceSet",
            "metadata": {"name": name, "namespace": system},
            "spec": {"importRules": [{"type": "NameSelector", "importAsLocal": true,
                "nameSelector": {"alias": {"namespace": here}}}]},
        }));
    }
    red.gateways_up();
    for i in 0..peers {
        red.hears(&long(i).0, &list);
    }
    red
}

#[test]
fn a_gateway_takes_the_longest_listener_that_it_can_get() {
    for (peers, expected) in [(10, 1000), (12, 833)] {
        let plan = with_peers(peers).plan();
        let egress = gateway(&plan, "egress");
        let chains = |l: &Listener| l.chains.len();
        let listener = egress.listeners.values().max_by_key(|l| chains(l)).unwrap();
        // And one for all other imports.
        assert_eq!(chains(listener), expected + 1, "{peers} peers");
        let bytes = encode::listener(listener).value;
        assert!(bytes.len() < MAX_RESOURCE_LEN, "{} bytes", bytes.len());
        assert_eq!(decode::listener(&bytes).unwrap(), **listener);
        for status in plan.statuses.imports.values() {
            let reason = status.conditions[0].reason.as_deref();
            let crowded = if expected < 1000 {
                "TooManyShared"
            } else {
                "RulesApplied"
            };
            assert_eq!(reason, Some(crowded));
        }
    }
}
