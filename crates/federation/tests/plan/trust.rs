//! Trust is bound to one peer, and a change of it has its effect at once.

use std::time::{Duration, SystemTime};

use meshfed_federation::plan::{Plan, ProxyKey};
use meshfed_federation::world::ObjectKey;
use meshfed_pki::CertificateAuthority;
use meshfed_proxy_config::ProxyConfig;

use crate::lab::{Lab, example, gateway, now, red_and_green, root_of};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn at(years_ago: u32) -> SystemTime {
    SystemTime::from(now()) - years_ago * YEAR
}

fn authority(years_ago: u32) -> CertificateAuthority {
    CertificateAuthority::self_signed("green-mesh.local", at(years_ago)).unwrap()
}

/// A certificate of that authority that is none of an authority.
fn leaf() -> String {
    let identity = authority(0).issue_client("leaf", &[], YEAR, at(0)).unwrap();
    let chain = identity.to_pem().chain;
    let end = "-----END CERTIFICATE-----\n";
    let (first, _) = chain.split_once(end).unwrap();
    format!("{first}{end}")
}

fn ready(plan: &Plan, peer: &str) -> (String, String) {
    let mut statuses = plan.statuses.peers.iter();
    let (_, status) = statuses.find(|(key, _)| key.name == peer).unwrap();
    let ready = &status.conditions[0];
    (
        ready.reason.clone().unwrap(),
        ready.message.clone().unwrap(),
    )
}

fn with_root(pem: &str) -> Plan {
    let (mut red, _) = red_and_green();
    red.root_config_map("green-mesh-ca-root-cert", pem);
    red.plan()
}

/// The roots by which a gateway judges a peer.
fn roots_at(plan: &Plan, proxy: &str, peer: &str) -> String {
    let config = gateway(plan, proxy);
    let bundle = &config.trust[format!("peer/{peer}").as_str()];
    bundle.domains.values().map(|pem| pem.to_string()).collect()
}

/// red-mesh, with blue-mesh as a second peer on gateways of its own.
fn red_with_two() -> Lab {
    let (mut red, _) = red_and_green();
    red.apply(&example("red-mesh/40-peer-blue-mesh.yaml"));
    red.apply(&example("red-mesh/41-export-to-blue-mesh.yaml"));
    red
}

/// Whether a gateway is told the same: it is sent the bundles that it uses, and no others.
fn is_same(a: &Plan, b: &Plan, proxy: &str) -> bool {
    let key = ProxyKey::Gateway(proxy.to_owned());
    let [a, b] = [&a.proxies[&key], &b.proxies[&key]].map(|config| {
        let mut config = ProxyConfig::clone(config);
        let users = format!("{:?} {:?}", config.listeners, config.clusters);
        let used = |name: &str| users.contains(&format!("{name:?}"));
        config.trust = config
            .trust
            .iter()
            .filter(|(name, _)| used(name))
            .map(|(name, bundle)| (name.clone(), bundle.clone()))
            .collect();
        config
    });
    a == b
}

#[test]
fn a_certificate_that_is_no_authority_closes_the_peer() {
    let (reason, said) = ready(&with_root(&leaf()), "green-mesh");
    assert_eq!(reason, "InvalidRootCertificate");
    assert!(said.contains("is not a CA certificate"), "{said}");
}

#[test]
fn one_bad_certificate_among_good_ones_closes_the_peer_and_is_named() {
    let good = root_of("green");
    for bad in [leaf(), good.replace("MII", "AAA")] {
        let plan = with_root(&format!("{good}{bad}"));
        let (reason, said) = ready(&plan, "green-mesh");
        assert_eq!(reason, "InvalidRootCertificate");
        assert!(said.contains("certificate 2 of the bundle"), "{said}");
        assert!(!plan.exports.contains_key("green-mesh"));
    }
}

#[test]
fn old_and_new_root_vouch_together_while_a_peer_rotates() {
    let both = format!("{}{}", root_of("green"), authority(0).root_pem());
    let plan = with_root(&both);
    assert_eq!(ready(&plan, "green-mesh").0, "Connected");
    for proxy in ["ingress-green-mesh", "egress-green-mesh"] {
        assert_eq!(roots_at(&plan, proxy, "green-mesh"), both);
    }
}

#[test]
fn a_root_that_has_expired_takes_none_with_it_that_is_good() {
    let expired = authority(30);
    let pem = format!("{}{}", expired.root_pem(), root_of("green"));
    assert_eq!(ready(&with_root(&pem), "green-mesh").0, "Connected");
    let (reason, _) = ready(&with_root(expired.root_pem()), "green-mesh");
    assert_eq!(reason, "RootCertificateNotValid");
}

#[test]
fn a_root_may_vouch_for_several_peers_each_in_its_own_domain() {
    let mut red = red_with_two();
    red.root_config_map("blue-mesh-ca-root-cert", &root_of("green"));
    let plan = red.plan();
    for peer in ["green-mesh", "blue-mesh"] {
        assert!(plan.exports.contains_key(peer));
        let config = gateway(&plan, &format!("ingress-{peer}"));
        let bundle = &config.trust[format!("peer/{peer}").as_str()];
        let domains: Vec<String> = bundle.domains.keys().map(ToString::to_string).collect();
        assert_eq!(domains, [format!("{peer}.local")]);
    }
}

#[test]
fn nobody_has_the_identity_of_another_peer() {
    let mut red = red_with_two();
    let green = &red.world.resources.peers[&ObjectKey::new("red-mesh-system", "green-mesh")];
    let id = green.spec.security.client_id.clone();
    red.edit_peer("blue-mesh", |p| p.spec.security.client_id = id);
    let plan = red.plan();
    assert_eq!(ready(&plan, "green-mesh").0, "Connected");
    assert_eq!(ready(&plan, "blue-mesh").0, "ClientIDOutsideTrustDomain");
    assert!(!plan.exports.contains_key("blue-mesh"));
}

#[test]
fn a_domain_that_the_older_peer_gives_up_is_free_for_the_younger() {
    let mut red = red_with_two();
    red.edit_peer("blue-mesh", |p| {
        p.spec.security.trust_domain = Some("green-mesh.local".into());
        p.spec.security.client_id = Some("green-mesh.local/ns/a/sa/b".into());
    });
    assert_eq!(ready(&red.plan(), "blue-mesh").0, "TrustDomainTaken");
    red.edit_peer("green-mesh", |p| {
        p.spec.security.trust_domain = Some("other.local".into());
        p.spec.security.client_id = Some("other.local/ns/a/sa/b".into());
    });
    let plan = red.plan();
    assert!(plan.exports.contains_key("blue-mesh"));
    assert!(plan.exports.contains_key("green-mesh"));
}

#[test]
fn roots_of_peers_never_reach_a_workload() {
    let red = red_with_two();
    let plan = red.plan();
    let sidecars = plan
        .proxies
        .iter()
        .filter(|(key, _)| matches!(key, ProxyKey::Sidecar(_)));
    let mut seen = 0;
    for (proxy, config) in sidecars {
        seen += 1;
        for (name, bundle) in config.trust.iter() {
            assert!(!name.starts_with("peer/"), "{proxy:?} {name}");
            let domains: Vec<&str> = bundle.domains.keys().map(|d| d.as_str()).collect();
            assert_eq!(domains, ["red-mesh.local"], "{proxy:?} {name}");
            for pem in bundle.domains.values() {
                assert_eq!(**pem, *root_of("red"), "{proxy:?} {name}");
            }
        }
    }
    assert_eq!(seen, 2);
}

#[test]
fn a_change_of_trust_reaches_the_gateways_of_that_peer_and_no_other_proxy() {
    type Edit = fn(&mut Lab);
    let changes: [(&str, bool, bool, Edit); 4] = [
        ("clientID", true, false, |red| {
            red.edit_peer("green-mesh", |p| {
                p.spec.security.client_id = Some("green-mesh.local/ns/x/sa/y".into());
            });
        }),
        ("trust domain", true, true, |red| {
            red.edit_peer("green-mesh", |p| {
                p.spec.security.trust_domain = Some("new.local".into());
                p.spec.security.client_id = Some("new.local/ns/x/sa/y".into());
            });
        }),
        ("root", true, true, |red| {
            red.root_config_map("green-mesh-ca-root-cert", authority(0).root_pem());
        }),
        ("addresses", false, true, |red| {
            red.edit_peer("green-mesh", |p| {
                p.spec.remote.addresses = vec!["127.64.9.9".into()];
            });
        }),
    ];
    for (what, ingress, egress, edit) in changes {
        let mut red = red_with_two();
        let before = red.plan();
        edit(&mut red);
        let after = red.plan();
        assert!(after.exports.contains_key("green-mesh"), "{what}");
        assert_eq!(before.exports, after.exports, "{what}");
        for (proxy, changes) in [
            ("ingress-green-mesh", ingress),
            ("egress-green-mesh", egress),
            ("ingress-blue-mesh", false),
            ("egress-blue-mesh", false),
        ] {
            assert_eq!(is_same(&before, &after, proxy), !changes, "{what} {proxy}");
        }
    }
}
