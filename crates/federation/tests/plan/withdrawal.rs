//! Removing something takes exactly what followed from it.

use meshfed_federation::plan::{Plan, Planner};
use meshfed_federation::world::ObjectKey;

use crate::lab::{going, red_and_green};

fn hosts(plan: &Plan, peer: &str) -> Vec<String> {
    plan.exports[peer]
        .values()
        .map(|s| s.shown().host.to_string())
        .collect()
}

#[test]
fn a_service_that_goes_or_is_going_is_withdrawn() {
    let (mut red, _) = red_and_green();
    let key = ObjectKey::new("red-mesh-bookinfo", "ratings");
    let services = &mut red.world.resources.services;
    going(&mut std::sync::Arc::make_mut(services.get_mut(&key).unwrap()).metadata);
    let left = ["reviews.red-mesh-bookinfo.svc.green-mesh-exports.local"];
    assert_eq!(hosts(&red.plan(), "green-mesh"), left);
    red.delete(|r| &mut r.services, &key);
    assert_eq!(hosts(&red.plan(), "green-mesh"), left);
}

#[test]
fn a_namespace_that_is_going_is_no_member() {
    let (mut red, _) = red_and_green();
    let key = ObjectKey::new("", "red-mesh-bookinfo");
    let all = &mut red.world.resources.namespaces;
    going(&mut std::sync::Arc::make_mut(all.get_mut(&key).unwrap()).metadata);
    let plan = red.plan();
    assert!(plan.members.is_empty());
    assert!(hosts(&plan, "green-mesh").is_empty());
}

#[test]
fn a_peer_without_an_export_set_gets_an_empty_list() {
    let (mut red, _) = red_and_green();
    red.delete(
        |r| &mut r.exports,
        &ObjectKey::new("red-mesh-system", "green-mesh"),
    );
    assert!(hosts(&red.plan(), "green-mesh").is_empty());
}

#[test]
fn a_peer_that_is_being_deleted_can_still_hear_that_nothing_is_exported() {
    let (mut red, mut green) = red_and_green();
    red.edit_peer("green-mesh", |p| going(&mut p.metadata));
    let plan = red.plan();
    assert!(hosts(&plan, "green-mesh").is_empty());
    assert!(plan.discovery_clients.contains_key("green-mesh"));
    assert!(!plan.discovery.contains_key("green-mesh"));
    green.edit_peer("red-mesh", |p| going(&mut p.metadata));
    let plan = green.plan();
    let text = format!("{:?}", plan.proxies);
    assert!(!text.contains("red-mesh-imports"), "{text}");
}

#[test]
fn two_plans_of_worlds_that_differ_in_one_service_share_the_rest() {
    let (mut red, _) = red_and_green();
    let mut planner = Planner::new();
    let before = planner.plan(&red.world);
    red.workload("red-mesh-bookinfo", "reviews", 99);
    let after = planner.plan(&red.world);
    assert_eq!(after, red.plan());
    let same = |name: &str| {
        let key = meshfed_federation::plan::ProxyKey::Gateway(name.into());
        std::sync::Arc::ptr_eq(&before.proxies[&key], &after.proxies[&key])
    };
    assert!(same("egress-green-mesh"));
    assert!(!same("ingress-green-mesh"));
    assert!(before.exports["green-mesh"].ptr_eq(&after.exports["green-mesh"]));
    let ingress = |plan: &Plan| crate::lab::gateway(plan, "ingress-green-mesh");
    let (old, new) = (ingress(&before), ingress(&after));
    let changed: Vec<&str> = old
        .endpoints
        .keys()
        .filter(|name| !std::sync::Arc::ptr_eq(&old.endpoints[*name], &new.endpoints[*name]))
        .map(AsRef::as_ref)
        .collect();
    assert_eq!(
        changed,
        ["outbound|9080||reviews.red-mesh-bookinfo.svc.cluster.local"]
    );
    assert!(
        old.listeners
            .iter()
            .all(|(name, listener)| { std::sync::Arc::ptr_eq(listener, &new.listeners[name]) })
    );
}
