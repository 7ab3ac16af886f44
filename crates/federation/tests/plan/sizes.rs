//! What the largest meshes make of single resources: every one of them must be taken by the proxies.

use meshfed_federation::discovery::message::{Service, ServiceList, ServicePort};
use meshfed_proxy_config::{ProxyConfig, RouteAction, VirtualHost};
use meshfed_xds::{decode, encode};
use serde_json::json;

use crate::lab::{Lab, red_and_green, sidecar};

const SERVICES: usize = 10_000;

/// A mesh with a workload behind a sidecar that may call what is imported from red.
fn green() -> Lab {
    red_and_green().1
}

/// Services of red under names of usual length.
fn list() -> ServiceList {
    let service = |i: usize| {
        let (name, namespace) = (format!("checkout-service-{i:05}"), "online-shop".to_owned());
        Service {
            hostname: format!("{name}.{namespace}.svc.green-mesh-exports.local"),
            name,
            namespace,
            ports: vec![ServicePort {
                name: "http".into(),
                port: 9080,
                protocol: "HTTP".into(),
            }],
            ..Service::default()
        }
    };
    ServiceList::new((0..SERVICES).map(service).collect())
}

/// The bytes of the sidecar's virtual hosts, each of which its proxy takes as it was meant.
fn hosts_len(config: &ProxyConfig) -> usize {
    let hosts = config.routes["http-proxy"].hosts.values();
    let lengths = hosts.map(|host| {
        let bytes = encode::virtual_host(host).value;
        assert_eq!(decode::virtual_host(&bytes).unwrap(), **host);
        bytes.len()
    });
    lengths.sum()
}

fn client(green: &Lab) -> std::sync::Arc<ProxyConfig> {
    sidecar(&green.plan(), "bookinfo", "client-v1")
}

fn removed(host: &VirtualHost) -> usize {
    let routes = host.routes.iter().map(|route| match &route.action {
        RouteAction::Forward { remove_headers, .. } => remove_headers.len(),
        RouteAction::Respond { .. } => 0,
    });
    routes.sum()
}

#[test]
fn a_sidecar_takes_the_routes_of_ten_thousand_imports() {
    let mut green = green();
    green.apply_json(json!({
        "kind": "ImportedServiceSet",
        "metadata": {"name": "red-mesh", "namespace": green.system()},
        "spec": {"importRules": [{"type": "NameSelector", "nameSelector": {}}]},
    }));
    let before = hosts_len(&client(&green));
    green.hears("red-mesh", &list());
    let config = client(&green);
    let hosts = &config.routes["http-proxy"].hosts;
    assert!(hosts.len() >= SERVICES, "{}", hosts.len());
    let imported = hosts.values().find(|h| h.name.contains("imports.local"));
    assert_eq!(removed(imported.unwrap()), 11, "each header once");
    let each = (hosts_len(&config) - before) / SERVICES;
    assert!(each < 800, "{each} bytes for an imported port");
}

#[test]
fn sidecars_of_all_namespaces_share_what_they_may_call_outside_of_their_own() {
    let mut green = green();
    green.namespace("shop");
    green.apply_json(json!({
        "kind": "ServiceMeshMemberRoll",
        "metadata": {"name": "default", "namespace": green.system()},
        "spec": {"members": ["bookinfo", "shop"]},
    }));
    green.service("shop", "cart", json!({}));
    green.workload("shop", "cart", 40);
    let plan = green.plan();
    let hosts = |namespace, pod| {
        sidecar(&plan, namespace, pod).routes["http-proxy"]
            .hosts
            .clone()
    };
    let (here, there) = (hosts("bookinfo", "client-v1"), hosts("shop", "cart-v1"));
    assert_eq!(here.len(), there.len());
    let own = |name: &str| name.contains(".bookinfo.svc.") || name.contains(".shop.svc.");
    for (name, host) in here.iter().filter(|(name, _)| !own(name)) {
        assert!(std::sync::Arc::ptr_eq(host, &there[name]), "{name}");
    }
    let cart = "http-proxy/cart.shop.svc.cluster.local:9080";
    assert!(!here[cart].domains.contains(&"cart:9080".to_owned()));
    assert!(there[cart].domains.contains(&"cart:9080".to_owned()));
}

#[test]
fn a_sidecar_takes_the_routes_of_ten_thousand_services_of_its_own_mesh() {
    let mut green = green();
    for i in 0..SERVICES {
        green.service("bookinfo", &format!("checkout-service-{i:05}"), json!({}));
    }
    let config = client(&green);
    let hosts = config.routes["http-proxy"].hosts.len();
    assert!(hosts >= SERVICES);
    assert!(hosts_len(&config) / hosts < 800);
}
