//! An administrator hears of what changed, once, and of nothing else.

use meshfed_federation::difference::Sharing;
use meshfed_federation::discovery::message::ServiceList;
use meshfed_federation::news::{News, news};
use meshfed_federation::world::GatewayState;
use serde_json::json;

use crate::lab::{Lab, going, red_and_green};

/// Kind, reason, whether it is a warning, and the message.
type Heard = (String, String, bool, String);

fn between(before: &Lab, after: &Lab) -> Vec<Heard> {
    let (old, new) = (before.plan(), after.plan());
    let shared = Sharing::of(&after.world, &new).since(&Sharing::of(&before.world, &old));
    let all = news((&before.world, &old), (&after.world, &new), &shared);
    let heard = |n: News| {
        assert_eq!(n.about.key.namespace, after.system());
        (n.about.kind.into_owned(), n.reason, n.warning, n.message)
    };
    all.into_iter().map(heard).collect()
}

fn copy(lab: &Lab) -> Lab {
    let mut other = Lab::empty("red");
    other.world = lab.world.clone();
    other
}

fn brief(heard: &[Heard]) -> Vec<(&str, &str, bool)> {
    let brief = heard.iter().map(|h| (h.0.as_str(), h.1.as_str(), h.2));
    brief.collect()
}

#[test]
fn nothing_new_is_no_news() {
    let (red, _) = red_and_green();
    assert_eq!(between(&red, &red), []);
}

#[test]
fn a_peer_that_comes_and_goes_is_news_each_time() {
    let (red, _) = red_and_green();
    let mut away = copy(&red);
    away.edit_remote("green-mesh", |r| r.watch.connected = false);
    let heard = between(&red, &away);
    assert_eq!(brief(&heard), [("ServiceMeshPeer", "NotConnected", true)]);
    assert!(heard[0].3.contains("503 Service Unavailable"), "{heard:?}");
    let heard = between(&away, &red);
    assert_eq!(brief(&heard), [("ServiceMeshPeer", "Connected", false)]);
}

#[test]
fn a_peer_that_is_refused_is_a_warning_that_says_why() {
    let (red, _) = red_and_green();
    let mut refused = copy(&red);
    refused.edit_peer("green-mesh", |p| p.spec.security.client_id = None);
    let heard = between(&red, &refused);
    let of_peer: Vec<&Heard> = heard.iter().filter(|h| h.0 == "ServiceMeshPeer").collect();
    assert_eq!(of_peer.len(), 1);
    assert_eq!(
        (of_peer[0].1.as_str(), of_peer[0].2),
        ("ClientIDUnset", true)
    );
    assert!(of_peer[0].3.contains("spec.security.clientID"));
    // What was exported to it is hidden, and its set says so as well.
    let reasons: Vec<&str> = heard.iter().map(|h| h.1.as_str()).collect();
    assert!(reasons.contains(&"ServicesHidden"), "{reasons:?}");
}

#[test]
fn services_are_counted_and_the_first_are_named() {
    let (red, _) = red_and_green();
    let mut more = copy(&red);
    for n in 0..100 {
        more.service("red-mesh-bookinfo", &format!("s{n:02}"), json!({}));
    }
    more.apply_json(json!({
        "kind": "ExportedServiceSet",
        "metadata": {"name": "green-mesh", "namespace": "red-mesh-system"},
        "spec": {"exportRules": [{"type": "NameSelector", "nameSelector": {}}]},
    }));
    let heard = between(&red, &more);
    let exposed: Vec<&Heard> = heard.iter().filter(|h| h.1 == "ServicesExposed").collect();
    assert_eq!(exposed.len(), 1);
    let (kind, _, warning, message) = exposed[0];
    assert_eq!((kind.as_str(), *warning), ("ExportedServiceSet", false));
    assert!(message.starts_with("10"), "{message}");
    assert!(message.contains("red-mesh-bookinfo/details, "), "{message}");
    assert!(message.ends_with(" more"), "{message}");
    assert!(message.len() < 1024);
}

#[test]
fn what_a_peer_offers_is_news_when_it_is_imported() {
    let (_, mut green) = red_and_green();
    let mut before = Lab::empty("green");
    before.world = green.world.clone();
    green.hears("red-mesh", &ServiceList::new(Vec::new()));
    let heard = between(&before, &green);
    assert_eq!(
        brief(&heard),
        [("ImportedServiceSet", "ServicesDropped", false)]
    );
    assert_eq!(
        heard[0].3,
        "1 service is no longer imported from red-mesh: ratings.bookinfo.svc.red-mesh-imports.local"
    );
    let heard = between(&green, &before);
    assert_eq!(
        brief(&heard),
        [("ImportedServiceSet", "ServicesImported", false)]
    );
}

#[test]
fn gateways_that_fail_and_recover_are_news() {
    let (red, _) = red_and_green();
    let mut failing = copy(&red);
    let state = GatewayState {
        ready: true,
        refused: Some("no".into()),
    };
    let gateways = &mut failing.world.observed.gateways;
    gateways.insert("egress-green-mesh".into(), state.into());
    let heard = between(&red, &failing);
    assert_eq!(
        brief(&heard),
        [
            ("ServiceMeshControlPlane", "GatewayFailed", true),
            ("ServiceMeshControlPlane", "ComponentsNotReady", true)
        ]
    );
    let heard = between(&failing, &red);
    assert_eq!(
        brief(&heard),
        [
            ("ServiceMeshControlPlane", "GatewayReady", false),
            ("ServiceMeshControlPlane", "ComponentsReady", false)
        ]
    );
}

#[test]
fn a_peer_that_is_just_created_is_no_warning_while_it_connects() {
    let (red, _) = red_and_green();
    let mut before = copy(&red);
    let key = meshfed_federation::world::ObjectKey::new("red-mesh-system", "green-mesh");
    before.delete(|r| &mut r.peers, &key);
    before.delete(|r| &mut r.exports, &key);
    let mut after = copy(&red);
    after.world.observed.peers = Default::default();
    let heard = between(&before, &after);
    assert!(heard.iter().all(|h| !h.2), "{heard:?}");
}

#[test]
fn each_step_of_a_removal_is_news_and_no_warning() {
    let (red, _) = red_and_green();
    let mut leaving = copy(&red);
    leaving.edit_peer("green-mesh", |p| going(&mut p.metadata));
    let heard = between(&red, &leaving);
    assert!(
        brief(&heard).contains(&("ServiceMeshPeer", "WithdrawingExports", false)),
        "{heard:?}"
    );
}
