//! Trust, bound and closed: whatever is not beyond doubt connects nothing.

use meshfed_api::ServiceMeshPeer;
use meshfed_api::peer::CertificateChain;
use meshfed_federation::plan::{Plan, ProxyKey};
use meshfed_federation::world::ObjectKey;
use serde_json::{Value, json};

use crate::lab::{Lab, gateway, red_and_green, root_of};

/// Reason of the peer's Ready condition.
fn reason(plan: &Plan, peer: &str) -> String {
    let mut statuses = plan.statuses.peers.iter();
    let (_, status) = statuses.find(|(key, _)| key.name == peer).unwrap();
    let ready = &status.conditions[0];
    assert_eq!(ready.type_, "Ready");
    assert!(!ready.message.as_ref().unwrap().is_empty());
    ready.reason.clone().unwrap()
}

/// Nothing leads to the peer or from it.
fn assert_closed(plan: &Plan, peer: &str) {
    assert!(!plan.exports.contains_key(peer));
    assert!(!plan.discovery.contains_key(peer));
    assert!(!plan.discovery_clients.contains_key(peer));
    for config in plan.proxies.values() {
        let text = format!("{config:?}");
        assert!(!text.contains(&format!("peer/{peer}")), "{text}");
        assert!(!text.contains(&format!("{peer}-exports")), "{text}");
    }
}

#[test]
fn a_good_peer_is_connected() {
    let (red, _) = red_and_green();
    let plan = red.plan();
    assert_eq!(reason(&plan, "green-mesh"), "Connected");
    assert_eq!(
        plan.discovery_clients["green-mesh"].without_scheme(),
        "red-mesh.local/ns/red-mesh-system/sa/ingress-green-mesh-service-account"
    );
    let target = &plan.discovery["green-mesh"];
    assert_eq!(
        target.authority,
        "egress-green-mesh.red-mesh-system.svc.cluster.local:8188"
    );
    assert_eq!(
        target.headers[0],
        (
            "discovery-service".to_owned(),
            "discovery.red-mesh-system.svc.green-mesh.local".to_owned()
        )
    );
    assert_eq!(target.headers[1].0, "remote");
}

#[test]
fn every_doubt_about_a_peer_closes_it_and_is_named() {
    type Edit = fn(&mut ServiceMeshPeer);
    let cases: [(&str, Edit); 15] = [
        ("TrustDomainUnset", |p| p.spec.security.trust_domain = None),
        ("TrustDomainUnset", |p| {
            p.spec.security.trust_domain = Some(String::new())
        }),
        ("InvalidTrustDomain", |p| {
            p.spec.security.trust_domain = Some("A/b".into())
        }),
        ("TrustDomainIsOurs", |p| {
            p.spec.security.trust_domain = Some("red-mesh.local".into());
        }),
        ("ClientIDUnset", |p| p.spec.security.client_id = None),
        ("ClientIDUnset", |p| {
            p.spec.security.client_id = Some(String::new())
        }),
        ("InvalidClientID", |p| {
            p.spec.security.client_id = Some("green-mesh.local".into())
        }),
        ("ClientIDOutsideTrustDomain", |p| {
            p.spec.security.client_id = Some("other.local/ns/a/sa/b".into());
        }),
        ("UnsupportedCertificateChain", |p| {
            p.spec.security.certificate_chain = Some(CertificateChain {
                kind: Some("Secret".into()),
                ..CertificateChain::default()
            });
        }),
        ("RootCertificateMissing", |p| {
            p.spec.security.certificate_chain = Some(CertificateChain {
                name: Some("nowhere".into()),
                ..CertificateChain::default()
            });
        }),
        ("InvalidRemote", |p| p.spec.remote.addresses.clear()),
        ("InvalidRemote", |p| {
            p.spec.remote.addresses = vec!["a b".into()]
        }),
        ("InvalidRemote", |p| {
            p.spec.remote.addresses = vec!["127.77.1.1".into(), "999.1.1.1".into()]
        }),
        ("InvalidRemote", |p| {
            p.spec.remote.discovery_port = Some(65536)
        }),
        ("InvalidRemote", |p| p.spec.remote.service_port = Some(-1)),
    ];
    for (expected, edit) in cases {
        let (mut red, _) = red_and_green();
        red.edit_peer("green-mesh", edit);
        let plan = red.plan();
        assert_eq!(reason(&plan, "green-mesh"), expected);
        assert_closed(&plan, "green-mesh");
        let set = plan.statuses.exports.values().next().unwrap();
        assert!(set.exported_services.is_empty());
        assert_eq!(
            set.conditions[0].reason.as_deref(),
            Some("PeerNotConnected")
        );
    }
}

#[test]
fn a_root_that_cannot_vouch_closes_the_peer() {
    let not_a_ca = root_of("green").replace("BEGIN CERTIFICATE", "BEGIN RUBBISH");
    for (expected, pem) in [
        ("InvalidRootCertificate", ""),
        ("InvalidRootCertificate", "no certificate"),
        ("InvalidRootCertificate", not_a_ca.as_str()),
    ] {
        let (mut red, _) = red_and_green();
        red.root_config_map("green-mesh-ca-root-cert", pem);
        let plan = red.plan();
        assert_eq!(reason(&plan, "green-mesh"), expected);
        assert_closed(&plan, "green-mesh");
    }
    let (mut red, _) = red_and_green();
    red.apply_json(json!({
        "kind": "ConfigMap",
        "metadata": {"name": "green-mesh-ca-root-cert", "namespace": "red-mesh-system"},
    }));
    assert_eq!(
        reason(&red.plan(), "green-mesh"),
        "RootCertificateKeyMissing"
    );
}

#[test]
fn an_expired_root_closes_the_peer_at_the_time_that_the_plan_announced() {
    let (mut red, _) = red_and_green();
    red.world.observed.peers = Default::default();
    let announced = red.plan().wake_at.unwrap();
    red.world.now = announced - jiff::SignedDuration::from_secs(1);
    assert_ne!(reason(&red.plan(), "green-mesh"), "RootCertificateNotValid");
    red.world.now = announced;
    let plan = red.plan();
    assert_eq!(reason(&plan, "green-mesh"), "RootCertificateNotValid");
    assert_closed(&plan, "green-mesh");
}

/// The peer as a manifest.
fn green_mesh(red: &Lab) -> Value {
    let key = ObjectKey::new("red-mesh-system", "green-mesh");
    let mut manifest = serde_json::to_value(&*red.world.resources.peers[&key]).unwrap();
    manifest["kind"] = json!("ServiceMeshPeer");
    manifest
}

#[test]
fn a_peer_outside_of_the_system_namespace_is_not_connected() {
    let (mut red, _) = red_and_green();
    let mut peer = green_mesh(&red);
    red.delete(
        |r| &mut r.peers,
        &ObjectKey::new("red-mesh-system", "green-mesh"),
    );
    peer["metadata"]["namespace"] = json!("red-mesh-bookinfo");
    red.apply_json(peer);
    let plan = red.plan();
    assert_eq!(reason(&plan, "green-mesh"), "NotInSystemNamespace");
    assert_closed(&plan, "green-mesh");
    let set = plan.statuses.exports.values().next().unwrap();
    assert_eq!(set.conditions[0].reason.as_deref(), Some("NoPeer"));
}

#[test]
fn a_trust_domain_belongs_to_the_oldest_peer_that_claims_it() {
    let (mut red, _) = red_and_green();
    let mut second = green_mesh(&red);
    second["metadata"]["name"] = json!("a-second");
    second["metadata"]["creationTimestamp"] = json!(null);
    red.root_config_map("a-second-ca-root-cert", &root_of("blue"));
    red.apply_json(second);
    let plan = red.plan();
    assert_eq!(reason(&plan, "green-mesh"), "Connected");
    assert_eq!(reason(&plan, "a-second"), "TrustDomainTaken");
    assert_closed(&plan, "a-second");
}

#[test]
fn a_missing_gateway_closes_its_direction() {
    let (mut red, _) = red_and_green();
    red.edit_peer("green-mesh", |p| {
        p.spec.gateways.ingress.name = "nowhere".into()
    });
    let plan = red.plan();
    assert_eq!(reason(&plan, "green-mesh"), "GatewayMissing");
    assert!(!plan.exports.contains_key("green-mesh"));
    assert!(!plan.discovery_clients.contains_key("green-mesh"));
    assert!(plan.discovery.contains_key("green-mesh"));

    let (_, mut green) = red_and_green();
    green.edit_peer("red-mesh", |p| {
        p.spec.gateways.egress.name = "ingress-red-mesh".into()
    });
    let plan = green.plan();
    assert_eq!(reason(&plan, "red-mesh"), "GatewayMissing");
    assert!(!plan.discovery.contains_key("red-mesh"));
    assert!(plan.exports.contains_key("red-mesh"));
    let set = plan.statuses.imports.values().next().unwrap();
    assert!(set.imported_services.is_empty());
    assert_eq!(set.conditions[0].reason.as_deref(), Some("GatewayMissing"));
}

/// Gateways ask for the bundles that they use, by name; all gateways may, as one that a peer was
/// moved away from still judges its connections.
#[test]
fn roots_of_peers_are_used_by_the_gateways_that_serve_them_and_offered_to_no_workload() {
    let (red, green) = red_and_green();
    for (lab, peer) in [(&red, "green"), (&green, "red")] {
        let plan = lab.plan();
        let root = root_of(peer);
        for (proxy, config) in &plan.proxies {
            let bundles = config.trust.iter();
            let of_peer = bundles
                .filter(|(_, bundle)| bundle.domains.values().any(|pem| **pem == *root))
                .map(|(name, _)| format!("{name:?}"))
                .collect::<Vec<_>>();
            let is_gateway = matches!(proxy, ProxyKey::Gateway(_));
            assert_eq!(!of_peer.is_empty(), is_gateway, "{proxy:?}");
            let users = format!("{:?} {:?}", config.listeners, config.clusters);
            let serves = format!("{proxy:?}").contains(&format!("gress-{peer}-mesh"));
            let uses = of_peer.iter().any(|name| users.contains(name));
            assert_eq!(uses, serves, "{proxy:?}");
        }
    }
}

#[test]
fn one_gateway_pair_serves_several_peers() {
    let (mut red, _) = red_and_green();
    red.apply(&crate::lab::example("red-mesh/40-peer-blue-mesh.yaml"));
    red.apply(&crate::lab::example("red-mesh/41-export-to-blue-mesh.yaml"));
    red.edit_peer("blue-mesh", |p| {
        p.spec.gateways.ingress.name = "ingress-green-mesh".into();
        p.spec.gateways.egress.name = "egress-green-mesh".into();
    });
    let plan = red.plan();
    let ingress = gateway(&plan, "ingress-green-mesh");
    let chains = &ingress.listeners["127.64.1.10_15443"].chains;
    let names: Vec<&str> = chains.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["exports-to-blue-mesh", "exports-to-green-mesh"]);
    let of = |peer: &str, suffix: &str| {
        let name = format!("outbound_.9080_._.ratings.{suffix}.svc.{peer}-exports.local");
        ingress.clusters.contains_key(name.as_str())
    };
    assert!(of("blue-mesh", "red-mesh-bookinfo"));
    assert!(!of("green-mesh", "red-mesh-bookinfo"));
    assert_ne!(
        plan.discovery["blue-mesh"].headers,
        plan.discovery["green-mesh"].headers
    );
}

#[test]
fn without_a_control_plane_nothing_is_connected() {
    let (mut red, _) = red_and_green();
    red.delete(
        |r| &mut r.control_planes,
        &ObjectKey::new("red-mesh-system", "red-mesh"),
    );
    let plan = red.plan();
    assert_eq!(reason(&plan, "green-mesh"), "NoControlPlane");
    assert_closed(&plan, "green-mesh");
    assert!(plan.gateways.is_empty());
    assert!(Lab::empty("red").plan().gateways.is_empty());
}
