//! More names that peers share behind one egress gateway than it spreads.

use meshfed_federation::discovery::message::{Service, ServiceList, ServicePort};
use meshfed_proxy_config::{Network, TcpTarget};
use serde_json::json;

use crate::lab::{Lab, gateway};
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
