//! What would be shared if some objects were others.

use meshfed_federation::whatif::{Hypothesis, WhatIf};
use meshfed_federation::world::ObjectKey;
use serde_json::{Value, json};

use crate::lab::{Lab, moved_to, red_and_green, root_of};

const GROUP: &str = "federation.maistra.io";

fn suppose(lab: &Lab, changes: &[(&str, Value)]) -> WhatIf {
    let mut hypothesis = Hypothesis::new(&lab.world);
    for (group, object) in changes {
        let text = |path: &str| object["metadata"][path].as_str().unwrap_or_default();
        let key = ObjectKey::new(text("namespace"), text("name"));
        let kind = object["kind"].as_str().unwrap();
        let matters = hypothesis.put(group, kind, key, object.clone()).unwrap();
        assert!(matters, "{kind}");
    }
    hypothesis.judge()
}

fn exports(rules: Value) -> Value {
    json!({
        "kind": "ExportedServiceSet",
        "metadata": {"name": "green-mesh", "namespace": "red-mesh-system"},
        "spec": {"exportRules": rules},
    })
}

#[test]
fn a_rule_more_exposes_what_it_picks() {
    let (red, _) = red_and_green();
    let set = exports(json!([
        {"type": "NameSelector", "nameSelector": {"name": "ratings"}},
        {"type": "NameSelector", "nameSelector": {"namespace": "red-mesh-bookinfo"}},
    ]));
    insta::assert_snapshot!(suppose(&red, &[(GROUP, set)]));
}

#[test]
fn what_changes_nothing_says_so() {
    let (red, _) = red_and_green();
    let key = ObjectKey::new("red-mesh-system", "green-mesh");
    let same = serde_json::to_value(&*red.world.resources.exports[&key]).unwrap();
    let said = suppose(&red, &[(GROUP, same)]);
    assert_eq!(said, WhatIf::default());
    assert_eq!(said.to_string(), "Nothing changes in what is shared.\n");
}

#[test]
fn a_broken_rule_hides_and_is_a_new_problem() {
    let (red, _) = red_and_green();
    let set = exports(json!([{"type": "NameSelectr", "nameSelector": {"name": "ratings"}}]));
    insta::assert_snapshot!(suppose(&red, &[(GROUP, set)]));
}

#[test]
fn another_identity_of_a_peer_is_a_change_of_who_sees_it() {
    let (red, _) = red_and_green();
    let key = ObjectKey::new("red-mesh-system", "green-mesh");
    let mut peer = serde_json::to_value(&*red.world.resources.peers[&key]).unwrap();
    peer["spec"]["security"]["clientID"] = json!("green-mesh.local/ns/a/sa/b");
    insta::assert_snapshot!(suppose(&red, &[(GROUP, peer)]));
}

#[test]
fn another_trust_domain_of_ours_is_something_that_peers_must_be_told() {
    let (red, _) = red_and_green();
    let said = suppose(&red, &[("maistra.io", moved_to("red2.local", &red))]);
    assert!(said.is_notable());
    assert_eq!(
        said.to_string(),
        "Peers:
  ~ green-mesh
      our clientID: red-mesh.local/ns/red-mesh-system/sa/egress-green-mesh-service-account
                ->  red2.local/ns/red-mesh-system/sa/egress-green-mesh-service-account
      our trust domain: red-mesh.local
                    ->  red2.local
      The peer refuses this mesh until its ServiceMeshPeer for it says so too.
"
    );
    let json = serde_json::to_value(&said).unwrap();
    assert_eq!(
        json["peers"][1],
        json!({"peer": "green-mesh", "what": "our trust domain",
            "before": "red-mesh.local", "after": "red2.local"})
    );
}

/// All that makes a new peer, from nothing.
fn new_peer() -> Vec<(&'static str, Value)> {
    vec![
        (
            "maistra.io",
            json!({
                "kind": "ServiceMeshControlPlane",
                "metadata": {"name": "red-mesh", "namespace": "red-mesh-system"},
                "spec": {
                    "gateways": {"additionalIngress": {"in": {}}, "additionalEgress": {"out": {}}},
                    "security": {"trust": {"domain": "red-mesh.local"}},
                },
            }),
        ),
        (
            "maistra.io",
            json!({
                "kind": "ServiceMeshMemberRoll",
                "metadata": {"name": "default", "namespace": "red-mesh-system"},
                "spec": {"members": ["shop"]},
            }),
        ),
        (
            "",
            json!({"kind": "Namespace", "metadata": {"name": "shop"}}),
        ),
        (
            "",
            json!({
                "kind": "Service",
                "metadata": {"name": "till", "namespace": "shop"},
                "spec": {"ports": [{"port": 80}, {"port": 443, "name": "https"}]},
            }),
        ),
        (
            "",
            json!({
                "kind": "ConfigMap",
                "metadata": {"name": "green-root", "namespace": "red-mesh-system"},
                "data": {"root-cert.pem": root_of("green")},
            }),
        ),
        (
            GROUP,
            json!({
                "kind": "ServiceMeshPeer",
                "metadata": {"name": "green-mesh", "namespace": "red-mesh-system"},
                "spec": {
                    "remote": {"addresses": ["127.64.2.10"]},
                    "gateways": {"ingress": {"name": "in"}, "egress": {"name": "out"}},
                    "security": {
                        "trustDomain": "green-mesh.local",
                        "clientID": "green-mesh.local/ns/green-mesh-system/sa/out",
                        "certificateChain": {"kind": "ConfigMap", "name": "green-root"},
                    },
                },
            }),
        ),
        (
            GROUP,
            exports(json!([{"type": "NameSelector", "nameSelector": {"namespace": "shop"}}])),
        ),
        (
            GROUP,
            json!({
                "kind": "ImportedServiceSet",
                "metadata": {"name": "green-mesh", "namespace": "red-mesh-system"},
                "spec": {"importRules": []},
            }),
        ),
    ]
}

#[test]
fn a_whole_mesh_that_is_not_there_yet_is_judged_as_if_it_ran() {
    insta::assert_snapshot!(suppose(&Lab::empty("red"), &new_peer()));
}

#[test]
fn taking_away_is_the_reverse() {
    let (red, _) = red_and_green();
    let mut hypothesis = Hypothesis::new(&red.world);
    let key = ObjectKey::new("red-mesh-system", "green-mesh");
    assert!(hypothesis.remove(GROUP, "ServiceMeshPeer", &key));
    assert!(!hypothesis.remove(GROUP, "ServiceMeshPeer", &key));
    insta::assert_snapshot!(hypothesis.judge());
}

#[test]
fn a_namespace_takes_what_is_in_it_along() {
    let (red, _) = red_and_green();
    let mut hypothesis = Hypothesis::new(&red.world);
    let home = ObjectKey::new("", "red-mesh-bookinfo");
    assert!(hypothesis.remove("", "Namespace", &home));
    let said = hypothesis.judge();
    assert_eq!(said.difference.hidden.len(), 2, "{said}");
    assert!(said.difference.exposed.is_empty());
}

#[test]
fn a_gateway_that_goes_hides_what_is_exported_by_it() {
    let (red, _) = red_and_green();
    let key = ObjectKey::new("red-mesh-system", "red-mesh");
    let mut smcp = serde_json::to_value(&*red.world.resources.control_planes[&key]).unwrap();
    let ingress = smcp["spec"]["gateways"]["additionalIngress"]
        .as_object_mut()
        .unwrap();
    ingress.remove("ingress-green-mesh").unwrap();
    let said = suppose(&red, &[("maistra.io", smcp)]);
    assert_eq!(said.difference.hidden.len(), 2, "{said}");
    let problem = said
        .new_problems
        .iter()
        .find(|p| p.about == "servicemeshpeer/green-mesh");
    assert_eq!(problem.unwrap().reason, "GatewayMissing");
}

#[test]
fn an_import_rule_less_drops_what_it_picked() {
    let (_, green) = red_and_green();
    let set = json!({
        "kind": "ImportedServiceSet",
        "metadata": {"name": "red-mesh", "namespace": "green-mesh-system"},
        "spec": {"importRules": [{"type": "NameSelector", "nameSelector": {"name": "reviews"}}]},
    });
    insta::assert_snapshot!(suppose(&green, &[(GROUP, set)]));
}

#[test]
fn a_change_a_new_problem_and_what_is_not_known_are_worth_a_look_and_a_problem_solved_is_not() {
    let (red, _) = red_and_green();
    let notable = |object: Value| suppose(&red, &[(GROUP, object)]).is_notable();
    let import = |peer: &str| {
        json!({
            "kind": "ImportedServiceSet",
            "metadata": {"name": peer, "namespace": "red-mesh-system"},
            "spec": {"importRules": []},
        })
    };
    let mut nobodys = exports(json!([]));
    nobodys["metadata"]["name"] = json!("nobody");
    let said = suppose(&red, &[(GROUP, nobodys.clone())]);
    assert!(
        said.difference.is_empty() && said.unknown.is_empty(),
        "{said}"
    );
    assert!(!said.new_problems.is_empty() && said.is_notable(), "{said}");

    let (mut unheard, _) = red_and_green();
    unheard.world.observed.peers = Default::default();
    let said = suppose(&unheard, &[(GROUP, import("green-mesh"))]);
    assert!(
        said.difference.is_empty() && said.new_problems.is_empty(),
        "{said}"
    );
    assert!(!said.unknown.is_empty() && said.is_notable(), "{said}");

    assert!(notable(exports(json!([]))), "two are hidden");
    let (mut broken, _) = red_and_green();
    let key = ObjectKey::new("red-mesh-system", "nobody");
    broken.world.resources.exports.insert(
        key.clone(),
        std::sync::Arc::new(serde_json::from_value(nobodys).unwrap()),
    );
    let mut hypothesis = Hypothesis::new(&broken.world);
    assert!(hypothesis.remove(GROUP, "ExportedServiceSet", &key));
    let said = hypothesis.judge();
    assert!(
        !said.solved_problems.is_empty() && !said.is_notable(),
        "{said}"
    );
}

#[test]
fn objects_need_a_namespace_that_exists_when_their_turn_comes() {
    let (red, _) = red_and_green();
    let mut hypothesis = Hypothesis::new(&red.world);
    let till = ObjectKey::new("shop", "till");
    assert!(!hypothesis.has_home(&till));
    let mut shop = json!({"kind": "Namespace", "metadata": {"name": "shop"}});
    let key = ObjectKey::new("", "shop");
    assert!(hypothesis.has_home(&key), "namespaces are in none");
    hypothesis
        .put("", "Namespace", key.clone(), shop.clone())
        .unwrap();
    assert!(hypothesis.has_home(&till));
    shop["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    hypothesis.put("", "Namespace", key, shop).unwrap();
    assert!(!hypothesis.has_home(&till));
}
