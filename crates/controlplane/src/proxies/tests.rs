use jiff::Timestamp;
use meshfed_api::ServiceMeshPeer;
use meshfed_federation::plan::{Plan, plan};
use meshfed_federation::world::{Observed, Resources, World};
use meshfed_xds::TypeUrl;
use serde_json::json;

use super::*;
use crate::ads::{Nodes, Version};
use crate::hub::{Ends, Hub};
use crate::test_world::mesh;

/// A mesh whose only peer is being deleted, with nobody left to tell.
fn world() -> World {
    let now = Timestamp::now();
    let peer: ServiceMeshPeer = serde_json::from_value(json!({
        "apiVersion": "federation.maistra.io/v1",
        "kind": "ServiceMeshPeer",
        "metadata": {"name": "green-mesh", "namespace": "system", "uid": "u1",
            "deletionTimestamp": now.to_string()},
        "spec": {},
    }))
    .unwrap();
    let mut resources = Resources::default();
    let key = ObjectKey::new("system", "green-mesh");
    resources.peers.insert(key, Arc::new(peer));
    World {
        now,
        mesh: mesh(now),
        resources,
        observed: Observed::default(),
    }
}

/// The plan, with a gateway and a sidecar.
fn planner(world: &World) -> Plan {
    let mut plan = plan(world);
    let config = Arc::new(ProxyConfig::default());
    for key in [gateway(), sidecar()] {
        plan.proxies.insert(key, config.clone());
    }
    plan
}

fn gateway() -> ProxyKey {
    ProxyKey::Gateway("g".to_owned())
}

fn sidecar() -> ProxyKey {
    ProxyKey::Sidecar(ObjectKey::new("shop", "cart"))
}

fn node(nodes: &Nodes, id: &str, name: &str) -> AuthenticatedNode {
    AuthenticatedNode {
        connection: nodes.next_id(),
        identity: id.parse().unwrap(),
        peer: "127.0.0.1:1".parse().unwrap(),
        id: String::new(),
        cluster: String::new(),
        name: Some(name.to_owned()),
        labels: Default::default(),
        addresses: Vec::new(),
        ready: None,
        metadata: Default::default(),
    }
}

#[test]
fn a_peer_has_left_when_every_connected_proxy_has_confirmed_a_configuration_without_it() {
    let (_hub, Ends { seen, .. }) = Hub::new(world());
    let world = world();
    let plan = planner(&world);
    let outcome = Arc::new(Outcome { world, plan });
    let (_out, outcomes) = watch::channel(Some(outcome.clone()));
    let proxies = Proxies::new(outcomes, seen.clone(), "system".to_owned());
    let nodes = Nodes::new();
    let of_gateway = node(&nodes, "cluster.local/ns/system/sa/g-service-account", "g");
    let of_sidecar = node(&nodes, "cluster.local/ns/shop/sa/cart", "cart");
    let configs = [&of_gateway, &of_sidecar].map(|node| proxies.subscribe(node).unwrap());
    let synced = |config: &Configs| Report::Synced(config.borrow().clone().unwrap());
    let left = || {
        let observed = seen.observed();
        let state = observed.peers.get("green-mesh");
        state.and_then(|state| state.farewell.let_go.clone())
    };

    proxies.hand_on(&outcome);
    assert_eq!(left(), None);
    proxies.report(&of_gateway, synced(&configs[0]));
    proxies.report(&of_sidecar, Report::Synced(Arc::new(with_the_peer())));
    assert_eq!(left(), None, "the sidecar goes by an older one");
    proxies.report(&of_sidecar, synced(&configs[1]));
    assert_eq!(left().as_deref(), Some("u1"));
}

#[test]
fn a_sidecar_that_refuses_its_configuration_is_told_of_until_it_accepts_one_or_goes() {
    let (_hub, Ends { seen, .. }) = Hub::new(world());
    let world = world();
    let plan = planner(&world);
    let outcome = Arc::new(Outcome { world, plan });
    let (_out, outcomes) = watch::channel(Some(outcome));
    let proxies = Arc::new(Proxies::new(outcomes, seen.clone(), "system".to_owned()));
    let nodes = Nodes::new();
    let cart = |n: usize| {
        node(
            &nodes,
            "cluster.local/ns/shop/sa/cart",
            &format!("cart-{n}"),
        )
    };
    let carts: Vec<_> = (0..5).map(cart).collect();
    let refuses = || Report::Nacked {
        kind: TypeUrl::Listener,
        version: Version::default(),
        message: "x".repeat(1000),
    };
    let told = || Refusals::clone(&seen.observed().refusals);
    for cart in &carts {
        proxies.subscribe(cart).unwrap();
        proxies.report(cart, refuses());
        proxies.report(cart, refuses());
    }
    let all = told();
    let named: Vec<&String> = all.words.keys().collect();
    assert_eq!(named, ["shop/cart-0", "shop/cart-1", "shop/cart-2"]);
    assert_eq!((all.sidecars, all.words["shop/cart-0"].len()), (5, WORDS));
    proxies.report(&carts[0], Report::Synced(Arc::default()));
    let all = told();
    assert_eq!((all.sidecars, all.words.len()), (4, 3));
    assert!(!all.words.contains_key("shop/cart-0"));
    // All but one go.
    for cart in &carts[..4] {
        proxies.left(cart);
    }
    let all = told();
    assert_eq!((all.sidecars, all.words.len()), (1, 1));
    proxies.report(&carts[4], Report::Synced(Arc::default()));
    assert_eq!(told(), Refusals::default());
}

/// The sidecar's configuration of before.
fn with_the_peer() -> ProxyConfig {
    let mut config = ProxyConfig::default();
    let bundle = meshfed_proxy_config::TrustBundle {
        domains: Default::default(),
    };
    config
        .trust
        .insert("peer/green-mesh".into(), Arc::new(bundle));
    config
}

#[test]
fn a_gateway_is_known_from_when_it_subscribes_until_it_leaves() {
    let (_hub, Ends { seen, .. }) = Hub::new(world());
    let world = world();
    let plan = planner(&world);
    let outcome = Arc::new(Outcome { world, plan });
    let (_out, outcomes) = watch::channel(Some(outcome));
    let proxies = Proxies::new(outcomes, seen.clone(), "system".to_owned());
    let nodes = Nodes::new();
    let gateway = || node(&nodes, "cluster.local/ns/system/sa/g-service-account", "g");
    let ready = || seen.observed().gateways.get("g").map(|s| s.ready);
    let (first, second) = (gateway(), gateway());
    let config = proxies.subscribe(&first).unwrap();
    let synced = || Report::Synced(config.borrow().clone().unwrap());
    proxies.report(&first, synced());
    assert_eq!(ready(), Some(true));
    proxies.subscribe(&second).unwrap();
    proxies.report(&second, synced());
    proxies.left(&first);
    assert_eq!(ready(), Some(true));
    proxies.left(&second);
    assert_eq!(ready(), None);
    assert!(lock(&proxies.followed).confirmed.is_empty());
}
