//! What proxies are told of drain periods, addresses and identities.

use std::collections::BTreeMap;
use std::time::Duration;

use meshfed_proxy_config::{
    Cluster, DEFAULT_DRAIN, Discovery, MAX_DRAIN, ProxyConfig, ServerIds, sni,
};

use crate::lab::{gateway, red_and_green, sidecar};

const IMPORTED: &str = "ratings.bookinfo.svc.red-mesh-imports.local";

fn drain_of(config: &ProxyConfig, named: impl Fn(&str) -> bool) -> Vec<Duration> {
    let clusters = config.clusters.iter();
    let mut all: Vec<_> = clusters
        .filter(|(name, _)| named(name))
        .map(|(_, cluster)| cluster.drain)
        .collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn the_drain_period_of_a_peer_is_that_of_its_exports_and_imports_alone() {
    let (mut red, mut green) = red_and_green();
    let period = |text: &str| {
        let annotations = BTreeMap::from([("meshfed.io/drain-period".into(), text.into())]);
        Some(annotations)
    };
    red.edit_peer("green-mesh", |p| p.metadata.annotations = period("1h"));
    green.edit_peer("red-mesh", |p| p.metadata.annotations = period("2s"));
    let two = Duration::from_secs(2);

    let ingress = gateway(&red.plan(), "ingress-green-mesh");
    let exports = drain_of(&ingress, |name| name.contains("green-mesh-exports"));
    assert_eq!(exports, [MAX_DRAIN]);
    let chains = ingress.listeners.values().flat_map(|l| &l.chains);
    let drains: BTreeMap<_, _> = chains.map(|c| (c.name.as_str(), c.drain)).collect();
    let expected = [
        ("discovery", DEFAULT_DRAIN),
        ("exports-to-green-mesh", MAX_DRAIN),
    ];
    assert_eq!(drains, BTreeMap::from(expected));

    let plan = green.plan();
    let egress = gateway(&plan, "egress-red-mesh");
    let is_import = |name: &str| name.contains("red-mesh-imports") || name.contains(".remote");
    assert_eq!(drain_of(&egress, is_import), [two]);
    let chain = |name: &str| {
        let mut chains = egress.listeners.values().flat_map(|l| &l.chains);
        chains.find(|chain| chain.name == name).unwrap().drain
    };
    assert_eq!((chain("imports"), chain("discovery")), (two, DEFAULT_DRAIN));
    let client = sidecar(&plan, "bookinfo", "client-v1");
    let imports = drain_of(&client, |name| name.contains("red-mesh-imports"));
    assert_eq!(imports, [two]);
    let others = drain_of(&egress, |name| !is_import(name));
    assert_eq!(others, [DEFAULT_DRAIN]);
}

fn import(config: &ProxyConfig) -> &Cluster {
    &config.clusters[&*sni(9080, "red-ratings.bookinfo.svc.red-mesh.remote")]
}

#[test]
fn a_peers_addresses_may_be_several_and_names_and_ips_together() {
    let (_, mut green) = red_and_green();
    let mut remote = |addresses: &[&str]| {
        green.edit_peer("red-mesh", |peer| {
            peer.spec.remote.addresses = addresses.iter().map(|a| (*a).to_owned()).collect();
        });
        gateway(&green.plan(), "egress-red-mesh")
    };
    let ips = remote(&["127.64.1.11", "::1"]);
    let expected = ["127.64.1.11:15443", "[::1]:15443"].map(|a| a.parse().unwrap());
    assert_eq!(import(&ips).discovery, Discovery::Static(expected.into()));
    let mixed = remote(&["127.64.1.11", "ingress.red.example"]);
    let expected = ["127.64.1.11", "ingress.red.example"].map(|a| (a.to_owned(), 15443));
    assert_eq!(import(&mixed).discovery, Discovery::Dns(expected.into()));
    let discovery = &mixed.clusters["discovery/red-mesh"];
    let expected = ["127.64.1.11", "ingress.red.example"].map(|a| (a.to_owned(), 8188));
    assert_eq!(discovery.discovery, Discovery::Dns(expected.into()));
    // One that does not answer is left out, for services and for discovery.
    assert!(import(&mixed).outlier.is_some() && discovery.outlier.is_some());
}

#[test]
fn only_the_egress_gateway_of_the_peer_may_answer_for_its_imports() {
    let (_, green) = red_and_green();
    let client = sidecar(&green.plan(), "bookinfo", "client-v1");
    let import = &client.clusters[&*meshfed_proxy_config::outbound_cluster(9080, IMPORTED)];
    let egress = "green-mesh.local/ns/green-mesh-system/sa/egress-red-mesh-service-account";
    let expected = ServerIds::OneOf(vec![egress.parse().unwrap()]);
    assert_eq!(import.tls.as_ref().unwrap().server, expected);
}
