//! Who gets which name.

use meshfed_federation::discovery::message::{Service, ServiceList, ServicePort};
use meshfed_federation::plan::Plan;
use meshfed_federation::world::ObjectKey;
use meshfed_proxy_config::{ServerIds, sni};
use serde_json::json;

use crate::lab::{Lab, gateway, red_and_green, sidecar};

fn offer(namespace: &str, name: &str, accounts: &[&str]) -> Service {
    Service {
        name: name.into(),
        namespace: namespace.into(),
        hostname: format!("{name}.{namespace}.svc.guess-exports.local"),
        ports: vec![
            ServicePort {
                name: "http".into(),
                port: 9080,
                protocol: "HTTP".into(),
            },
            ServicePort {
                name: "tcp".into(),
                port: 9090,
                protocol: "TCP".into(),
            },
            ServicePort {
                name: "dns".into(),
                port: 53,
                protocol: "UDP".into(),
            },
        ],
        accounts: accounts.iter().map(|a| (*a).to_owned()).collect(),
        health: None,
    }
}

fn import_all(lab: &mut Lab, peer: &str, selector: serde_json::Value) {
    let namespace = lab.system();
    lab.apply_json(json!({
        "kind": "ImportedServiceSet",
        "metadata": {"name": peer, "namespace": namespace},
        "spec": {"importRules": [selector]},
    }));
}

/// Host and problem reported for the only imported set.
fn ready(plan: &Plan, peer: &str) -> (Vec<String>, String) {
    let mut sets = plan.statuses.imports.iter();
    let (_, status) = sets.find(|(key, _)| key.name == peer).unwrap();
    let hosts = status.imported_services.iter();
    (
        hosts
            .map(|s| s.local_service.hostname.clone())
            .filter(|h| !h.is_empty())
            .collect(),
        status.conditions[0].message.clone().unwrap(),
    )
}

#[test]
fn each_mesh_may_call_the_other_what_it_likes() {
    let mut red = Lab::of_examples("red");
    let mut green = Lab::of_examples("green");
    // Red calls green "partner"; green calls red "red-mesh".
    let key = ObjectKey::new("red-mesh-system", "green-mesh");
    let mut peer = red.world.resources.peers[&key].as_ref().clone();
    red.delete(|r| &mut r.peers, &key);
    peer.metadata.name = Some("partner".into());
    let mut document = serde_json::to_value(&peer).unwrap();
    document["kind"] = json!("ServiceMeshPeer");
    red.apply_json(document);
    let mut set = serde_json::to_value(red.world.resources.exports[&key].as_ref()).unwrap();
    set["kind"] = json!("ExportedServiceSet");
    set["metadata"]["name"] = json!("partner");
    red.apply_json(set);
    green.hears("red-mesh", &red.exports_to("partner"));
    green.workload("bookinfo", "client", 30);
    let plan = green.plan();
    let egress = gateway(&plan, "egress-red-mesh");
    let imported = sni(9080, "red-ratings.bookinfo.svc.red-mesh.remote");
    let tls = egress.clusters[&imported].tls.as_ref().unwrap();
    let exported = sni(9080, "red-ratings.bookinfo.svc.partner-exports.local");
    assert_eq!(tls.sni.as_ref(), Some(&exported));
    let ingress = gateway(&red.plan(), "ingress-green-mesh");
    assert!(ingress.clusters.contains_key(&exported));
}

#[test]
fn every_tcp_port_of_an_import_is_reached() {
    let (_, mut green) = red_and_green();
    import_all(
        &mut green,
        "red-mesh",
        json!({"type": "NameSelector", "nameSelector": {}}),
    );
    green.hears("red-mesh", &ServiceList::new(vec![offer("a", "b", &[])]));
    let plan = green.plan();
    let egress = gateway(&plan, "egress-red-mesh");
    let host = "b.a.svc.red-mesh-imports.local";
    let hidden = "b.a.svc.red-mesh.remote";
    assert!(egress.clusters.contains_key(&sni(9080, hidden)));
    assert!(egress.clusters.contains_key(&sni(9090, hidden)));
    assert!(!egress.clusters.contains_key(&sni(53, hidden)));
    // The bare host is accepted, for the first port.
    let bare = &egress.clusters[host];
    let first = &egress.clusters[&sni(9080, hidden)];
    assert_eq!(bare.tls, first.tls);
    let routes = &sidecar(&plan, "bookinfo", "client-v1").routes["http-proxy"];
    let domains: Vec<&String> = routes.hosts.values().flat_map(|h| &h.domains).collect();
    assert!(domains.iter().any(|d| **d == format!("{host}:9090")));
}

#[test]
fn servers_are_those_of_the_peers_own_trust_domain() {
    let ours = "spiffe://red-mesh.local/ns/x/sa/y";
    let cases = [
        (vec![], Some(1)),
        (vec![ours, "spiffe://evil.local/ns/x/sa/y"], Some(1)),
        (vec!["spiffe://evil.local/ns/x/sa/y"], None),
        (vec!["", "nonsense"], None),
    ];
    for (accounts, imported) in cases {
        let (_, mut green) = red_and_green();
        import_all(
            &mut green,
            "red-mesh",
            json!({"type": "NameSelector", "nameSelector": {}}),
        );
        green.hears(
            "red-mesh",
            &ServiceList::new(vec![offer("a", "b", &accounts)]),
        );
        let plan = green.plan();
        let egress = gateway(&plan, "egress-red-mesh");
        let cluster = egress.clusters.get(&sni(9080, "b.a.svc.red-mesh.remote"));
        let servers = cluster.map(|c| c.tls.as_ref().unwrap().server.clone());
        match (imported, servers) {
            (Some(_), Some(ServerIds::AnyOf(domain))) => {
                assert!(accounts.is_empty() && domain.as_str() == "red-mesh.local");
            }
            (Some(count), Some(ServerIds::OneOf(ids))) => {
                assert_eq!(ids.len(), count);
                assert_eq!(ids[0].as_str(), ours);
            }
            (None, None) => {
                let (hosts, message) = ready(&plan, "red-mesh");
                assert!(
                    hosts.is_empty() && message.contains("trust domain"),
                    "{message}"
                );
            }
            other => panic!("{accounts:?}: {other:?}"),
        }
    }
}

#[test]
fn of_two_services_exported_under_one_name_the_older_wins() {
    let mut red = Lab::of_examples("red");
    red.namespace("a");
    red.service("a", "first", json!({}));
    red.service("a", "second", json!({}));
    red.apply_json(json!({
        "kind": "ServiceMeshMemberRoll",
        "metadata": {"name": "default", "namespace": "red-mesh-system"},
        "spec": {"members": ["a"]},
    }));
    red.apply_json(json!({
        "kind": "ExportedServiceSet",
        "metadata": {"name": "green-mesh", "namespace": "red-mesh-system"},
        "spec": {"exportRules": [
            {"type": "NameSelector", "nameSelector": {"alias": {"name": "same"}}}
        ]},
    }));
    let plan = red.plan();
    let status = plan.statuses.exports.values().next().unwrap();
    assert_eq!(status.exported_services.len(), 1);
    assert_eq!(status.exported_services[0].local_service.name, "first");
    let ready = &status.conditions[0];
    assert_eq!(ready.reason.as_deref(), Some("NameTaken"));
    assert!(
        ready
            .message
            .as_ref()
            .unwrap()
            .starts_with("a/second is not exported")
    );
}

#[test]
fn of_two_imports_with_one_name_the_one_of_the_older_peer_wins() {
    let (_, mut green) = red_and_green();
    green.apply(&crate::lab::example("green-mesh/40-peer-blue-mesh.yaml"));
    let rule =
        json!({"type": "NameSelector", "domainSuffix": "shared.example", "nameSelector": {}});
    import_all(&mut green, "red-mesh", rule.clone());
    import_all(&mut green, "blue-mesh", rule);
    green.hears("red-mesh", &ServiceList::new(vec![offer("a", "b", &[])]));
    green.hears("blue-mesh", &ServiceList::new(vec![offer("a", "b", &[])]));
    let plan = green.plan();
    assert_eq!(ready(&plan, "red-mesh").0, ["b.a.shared.example"]);
    let (hosts, message) = ready(&plan, "blue-mesh");
    assert!(hosts.is_empty());
    assert_eq!(
        message,
        "a/b: b.a.shared.example is already the name of a/b of red-mesh; give one of them an alias"
    );
}

#[test]
fn imports_as_local_join_the_local_service_with_their_locality() {
    let (_, mut green) = red_and_green();
    green.service("bookinfo", "b", json!({}));
    green.workload("bookinfo", "b", 40);
    green.apply_json(json!({
        "kind": "ImportedServiceSet",
        "metadata": {"name": "red-mesh", "namespace": "green-mesh-system"},
        "spec": {
            "importRules": [{"type": "NameSelector", "importAsLocal": true,
                "nameSelector": {"alias": {"namespace": "bookinfo"}}}],
            "locality": {"region": "us-west"},
        },
    }));
    green.hears("red-mesh", &ServiceList::new(vec![offer("a", "b", &[])]));
    let plan = green.plan();
    assert_eq!(ready(&plan, "red-mesh").0, ["b.bookinfo.svc.cluster.local"]);
    let config = sidecar(&plan, "bookinfo", "client-v1");
    let joined = &config.endpoints["outbound|9080||b.bookinfo.svc.cluster.local"].localities;
    let regions: Vec<&str> = joined.iter().map(|l| l.locality.region.as_str()).collect();
    assert_eq!(regions, ["", "us-west"]);
    let egress = gateway(&plan, "egress-red-mesh");
    for name in ["b.bookinfo.svc.cluster.local", "b.a.svc.red-mesh.remote"] {
        assert!(egress.clusters.contains_key(&sni(9080, name)), "{name}");
    }
}

#[test]
fn a_peer_cannot_join_services_of_the_control_plane() {
    let (_, mut green) = red_and_green();
    let rule = json!({"type": "NameSelector", "importAsLocal": true,
        "nameSelector": {"alias": {"namespace": "green-mesh-system"}}});
    import_all(&mut green, "red-mesh", rule);
    green.hears(
        "red-mesh",
        &ServiceList::new(vec![offer("a", "istiod-green-mesh", &[])]),
    );
    let (hosts, message) = ready(&green.plan(), "red-mesh");
    assert!(hosts.is_empty());
    assert!(
        message.contains("namespace of the control plane"),
        "{message}"
    );
}

#[test]
fn what_must_not_be_exported_is_not() {
    let mut red = Lab::of_examples("red");
    red.apply_json(json!({
        "kind": "ServiceMeshMemberRoll",
        "metadata": {"name": "default", "namespace": "red-mesh-system"},
        "spec": {"members": ["*", "red-mesh-system"]},
    }));
    red.apply_json(json!({
        "kind": "ExportedServiceSet",
        "metadata": {"name": "green-mesh", "namespace": "red-mesh-system"},
        "spec": {"exportRules": [{"type": "NameSelector", "nameSelector": {}}]},
    }));
    red.namespace("a");
    red.namespace("kube-system");
    red.service("kube-system", "kube-dns", json!({}));
    let service = |name: &str, metadata: serde_json::Value, spec: serde_json::Value| {
        let mut metadata = metadata;
        metadata["name"] = json!(name);
        metadata["namespace"] = json!("a");
        json!({"kind": "Service", "metadata": metadata, "spec": spec})
    };
    let ports = json!({"ports": [{"port": 80}]});
    let annotated = |value: &str| json!({"annotations": {"networking.istio.io/exportTo": value}});
    for document in [
        service("plain", json!({}), ports.clone()),
        service("to-all", annotated("*"), ports.clone()),
        service("to-us", annotated("x, red-mesh-system"), ports.clone()),
        service("unsaid", annotated(""), ports.clone()),
        service("hidden", annotated("."), ports.clone()),
        service("nearly", annotated(","), ports.clone()),
        service("nobody", annotated("~"), ports.clone()),
        service("elsewhere", annotated("x"), ports.clone()),
        service(
            "labelled",
            json!({"labels": {"networking.istio.io/exportTo": "."}}),
            ports.clone(),
        ),
        service(
            "by-both",
            json!({"labels": {"networking.istio.io/exportTo": "red-mesh-system"},
                "annotations": {"networking.istio.io/exportTo": "*"}}),
            ports.clone(),
        ),
        service(
            "by-one",
            json!({"labels": {"networking.istio.io/exportTo": "elsewhere"},
                "annotations": {"networking.istio.io/exportTo": "*"}}),
            ports,
        ),
        service(
            "external",
            json!({}),
            json!({"type": "ExternalName", "externalName": "example.com", "ports": [{"port": 80}]}),
        ),
        service(
            "udp",
            json!({}),
            json!({"ports": [{"port": 53, "protocol": "UDP"}]}),
        ),
    ] {
        red.apply_json(document);
    }
    let exported: Vec<String> = red
        .exports_to("green-mesh")
        .services
        .into_iter()
        .filter(|s| s.namespace != "red-mesh-bookinfo")
        .map(|s| s.name)
        .collect();
    assert_eq!(exported, ["by-both", "plain", "to-all", "to-us", "unsaid"]);
}
