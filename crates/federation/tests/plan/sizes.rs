//! What the largest meshes make of single resources: every one of them must be taken by the proxies.

use meshfed_federation::discovery::message::{Service, ServiceList, ServicePort};
use meshfed_proxy_config::{ProxyConfig, RouteAction, VirtualHost};
use meshfed_xds::{MAX_ROUTES_LEN, decode, encode};
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

/// The bytes of the sidecar's route table, which its proxy takes as it was meant.
fn table_len(config: &ProxyConfig) -> usize {
    let table = &config.routes["http-proxy"];
    let bytes = encode::routes(table).value;
    assert_eq!(decode::routes(&bytes).unwrap(), **table);
    bytes.len()
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
    let before = table_len(&client(&green));
    green.hears("red-mesh", &list());
    let config = client(&green);
    let hosts = &config.routes["http-proxy"].hosts;
    assert!(hosts.len() >= SERVICES, "{}", hosts.len());
    let imported = hosts.values().find(|h| h.name.contains("imports.local"));
    assert_eq!(removed(imported.unwrap()), 11, "each header once");
    let each = (table_len(&config) - before) / SERVICES;
    assert!(each < 800, "{each} bytes for an imported port");
    // All that one peer may list, by the bytes of such names.
    assert!(4 * SERVICES * each < MAX_ROUTES_LEN);
}

#[test]
fn a_sidecar_takes_the_routes_of_ten_thousand_services_of_its_own_mesh() {
    let mut green = green();
    for i in 0..SERVICES {
        green.service("bookinfo", &format!("checkout-service-{i:05}"), json!({}));
    }
    let config = client(&green);
    assert!(config.routes["http-proxy"].hosts.len() >= SERVICES);
    assert!(table_len(&config) < MAX_ROUTES_LEN / 4);
}
