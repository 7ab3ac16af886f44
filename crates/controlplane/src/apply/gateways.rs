//! Keeps the Services and ServiceAccounts of gateways, and gives the Services their addresses.
//!
//! An address stays its Service's for life. On Kubernetes the cluster gives addresses; here we are
//! the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    LoadBalancerIngress, LoadBalancerStatus, Service, ServiceAccount, ServiceSpec, ServiceStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use meshfed_federation::plan::GatewayPlan;
use meshfed_federation::plan::gateways::{NODE_PORTS, is_ours, service_account};
use meshfed_federation::world::{ObjectKey, in_namespace};
use tracing::warn;

use super::{Done, delete, failed, part_of_time, put};
use crate::hub::Outcome;
use crate::subnet::Subnet;

/// Annotation with the keys of labels and annotations that we set, so that those that are no longer
/// asked for can be taken away and those of others stay.
const OURS_ANNOTATION: &str = "meshfed.io/metadata-keys";

/// What [`apply`] goes by.
pub(super) fn inputs(outcome: &Outcome) -> impl PartialEq + use<> {
    let (resources, system) = (
        &outcome.world.resources,
        &outcome.world.mesh.system_namespace,
    );
    let services = in_namespace(&resources.services, system);
    let services: Vec<Arc<Service>> = services.map(|(_, service)| service.clone()).collect();
    let gateways = outcome.plan.gateways.clone();
    (gateways, services, part_of_time(outcome))
}

pub(super) async fn apply(client: &Client, subnet: Subnet, outcome: &Outcome) -> Done {
    let resources = &outcome.world.resources;
    let namespace = &outcome.world.mesh.system_namespace;
    let mut taken = Taken {
        addresses: taken_addresses(outcome),
        node_ports: taken_node_ports(outcome),
    };
    let mut done = Done::Yes;
    for (name, gateway) in &outcome.plan.gateways {
        let key = ObjectKey::new(namespace.clone(), name.clone());
        if gateway.going {
            if gateway.service.metadata.deletion_timestamp.is_none() {
                done = done.and(remove(client, namespace, name).await);
            }
            continue;
        }
        if gateway.kept.is_some() {
            continue;
        }
        done = done.and(ensure_account(client, namespace, gateway).await);
        let present = resources.services.get(&key).map(AsRef::as_ref);
        if present.is_some_and(|service| !is_ours(service)) {
            warn!(service = %key, "a Service with the name of a gateway is there already");
            continue;
        }
        // Somebody deleted it. It is made anew when it is gone.
        if present.is_some_and(|service| service.metadata.deletion_timestamp.is_some()) {
            continue;
        }
        done = done.and(ensure_service(client, subnet, &mut taken, gateway, present).await);
    }
    for (key, service) in in_namespace(&resources.services, namespace) {
        if is_ours(service) && !outcome.plan.gateways.contains_key(&key.name) {
            done = done.and(remove(client, namespace, &key.name).await);
        }
    }
    done
}

/// The Service goes last, as it is what brings us here again.
async fn remove(client: &Client, namespace: &str, name: &str) -> Done {
    let account = service_account(name);
    match delete::<ServiceAccount>(client, namespace, &account).await {
        Done::Yes => delete::<Service>(client, namespace, name).await,
        Done::TryAgain => Done::TryAgain,
    }
}

/// What Services have, so that no two of them get the same.
#[derive(Debug)]
struct Taken {
    addresses: BTreeSet<Ipv4Addr>,
    node_ports: BTreeSet<i32>,
}

fn taken_node_ports(outcome: &Outcome) -> BTreeSet<i32> {
    let asked = outcome.plan.gateways.values().map(|g| &g.service);
    let there = outcome.world.resources.services.values();
    let specs = asked
        .chain(there.map(AsRef::as_ref))
        .filter_map(|s| s.spec.as_ref());
    let ports = specs.flat_map(|spec| spec.ports.iter().flatten());
    ports.filter_map(|port| port.node_port).collect()
}

/// As the cluster would: ports that ask for none get the first that nobody has.
fn give_node_ports(spec: &mut ServiceSpec, taken: &mut BTreeSet<i32>) {
    let without = spec.ports.iter_mut().flatten();
    for port in without.filter(|port| port.node_port.is_none()) {
        port.node_port = NODE_PORTS.into_iter().find(|port| !taken.contains(port));
        taken.extend(port.node_port);
    }
}

fn taken_addresses(outcome: &Outcome) -> BTreeSet<Ipv4Addr> {
    let services = outcome.world.resources.services.values();
    let of_services = services.flat_map(|service| {
        let spec = service.spec.as_ref();
        let cluster_ip = spec.and_then(|s| s.cluster_ip.clone());
        let asked = spec.and_then(|s| s.load_balancer_ip.clone());
        cluster_ip
            .into_iter()
            .chain(asked)
            .chain(balancer_ips(service))
    });
    let asked = outcome.plan.gateways.values().filter_map(|gateway| {
        let spec = gateway.service.spec.as_ref()?;
        spec.load_balancer_ip.clone()
    });
    of_services
        .chain(asked)
        .filter_map(|ip| ip.parse().ok())
        .collect()
}

fn balancer_ips(service: &Service) -> Vec<String> {
    let status = service.status.as_ref();
    let ingress = status
        .and_then(|s| s.load_balancer.as_ref())
        .and_then(|l| l.ingress.as_deref())
        .unwrap_or_default();
    ingress.iter().filter_map(|i| i.ip.clone()).collect()
}

async fn ensure_account(client: &Client, namespace: &str, gateway: &GatewayPlan) -> Done {
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let owners = gateway.service.metadata.owner_references.clone();
    match api.get_opt(&gateway.service_account).await {
        // What is owned by a ServiceMeshControlPlane goes with it, also when another one has taken over.
        Ok(Some(mut account)) if account.metadata.owner_references != owners => {
            account.metadata.owner_references = owners;
            put(client, namespace, &account, true).await
        }
        Ok(Some(_)) => Done::Yes,
        Ok(None) => {
            let account = ServiceAccount {
                metadata: ObjectMeta {
                    name: Some(gateway.service_account.clone()),
                    namespace: Some(namespace.to_owned()),
                    owner_references: owners,
                    ..ObjectMeta::default()
                },
                ..ServiceAccount::default()
            };
            put(client, namespace, &account, false).await
        }
        Err(error) => failed::<ServiceAccount>("read", namespace, &gateway.service_account, &error),
    }
}

async fn ensure_service(
    client: &Client,
    subnet: Subnet,
    taken: &mut Taken,
    gateway: &GatewayPlan,
    present: Option<&Service>,
) -> Done {
    let namespace = gateway.service.metadata.namespace.as_deref().unwrap_or("");
    let mut wanted = merged(&gateway.service, present);
    let Some(spec) = wanted.spec.as_mut() else {
        return Done::Yes;
    };
    let addresses = &mut taken.addresses;
    let balanced = spec.type_.as_deref() == Some("LoadBalancer");
    if !balanced && spec.cluster_ip.is_none() {
        spec.cluster_ip = allocate(
            subnet.free_cluster_ip(addresses),
            addresses,
            &wanted.metadata,
        );
        spec.cluster_ips = spec.cluster_ip.clone().map(|ip| vec![ip]);
    }
    if spec.type_.as_deref() == Some("NodePort") {
        give_node_ports(spec, &mut taken.node_ports);
    }
    let differs = present.is_none_or(|p| {
        p.spec != wanted.spec
            || p.metadata.labels != wanted.metadata.labels
            || p.metadata.annotations != wanted.metadata.annotations
            || p.metadata.owner_references != wanted.metadata.owner_references
    });
    if differs {
        let done = put(client, namespace, &wanted, present.is_some()).await;
        // Its address is given when it comes back through the watch.
        return done;
    }
    let given = present.map(balancer_ips).unwrap_or_default();
    let asked = wanted
        .spec
        .as_ref()
        .and_then(|s| s.load_balancer_ip.clone());
    let wanted_addresses = match (balanced, asked, given.first()) {
        (false, _, _) => Vec::new(),
        (true, Some(asked), _) => vec![asked],
        (true, None, Some(kept)) => vec![kept.clone()],
        (true, None, None) => allocate(
            subnet.free_load_balancer(addresses),
            addresses,
            &wanted.metadata,
        )
        .into_iter()
        .collect(),
    };
    if wanted_addresses == given {
        return Done::Yes;
    }
    wanted.status = Some(ServiceStatus {
        load_balancer: Some(LoadBalancerStatus {
            ingress: Some(
                wanted_addresses
                    .into_iter()
                    .map(|ip| LoadBalancerIngress {
                        ip: Some(ip),
                        ..LoadBalancerIngress::default()
                    })
                    .collect(),
            ),
        }),
        ..ServiceStatus::default()
    });
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    let name = wanted.metadata.name.clone().unwrap_or_default();
    match api
        .replace_status(&name, &PostParams::default(), &wanted)
        .await
    {
        Ok(_) => Done::Yes,
        Err(error) => failed::<Service>("write the address of", namespace, &name, &error),
    }
}

fn allocate(
    free: Option<Ipv4Addr>,
    taken: &mut BTreeSet<Ipv4Addr>,
    of: &ObjectMeta,
) -> Option<String> {
    let Some(address) = free else {
        warn!(service = of.name, "no address is left for this service");
        return None;
    };
    taken.insert(address);
    Some(address.to_string())
}

/// What the gateway's Service shall be: our part as planned, what others added kept.
fn merged(planned: &Service, present: Option<&Service>) -> Service {
    let mut wanted = planned.clone();
    let labels = planned.metadata.labels.clone().unwrap_or_default();
    let annotations = planned.metadata.annotations.clone().unwrap_or_default();
    let ours = [&labels, &annotations].map(|map| map.keys().cloned().collect::<Vec<_>>().join(","));
    let ours = ours.join(";");
    let empty = BTreeMap::new();
    let old = present.map(|p| &p.metadata);
    let old_labels = old.and_then(|m| m.labels.as_ref()).unwrap_or(&empty);
    let old_annotations = old.and_then(|m| m.annotations.as_ref()).unwrap_or(&empty);
    let before = old_annotations
        .get(OURS_ANNOTATION)
        .cloned()
        .unwrap_or_default();
    let (labels_before, annotations_before) = before.split_once(';').unwrap_or(("", ""));
    let mut annotations = with_others(annotations, old_annotations, annotations_before);
    annotations.insert(OURS_ANNOTATION.to_owned(), ours);
    wanted.metadata.annotations = Some(annotations);
    wanted.metadata.labels = Some(with_others(labels, old_labels, labels_before));
    if let Some(others) = old.and_then(|m| m.finalizers.as_ref()) {
        let all = wanted.metadata.finalizers.get_or_insert_default();
        let missing: Vec<String> = others
            .iter()
            .filter(|f| !all.contains(f))
            .cloned()
            .collect();
        all.extend(missing);
    }
    if let (Some(present), Some(spec)) = (present, wanted.spec.as_mut()) {
        wanted.metadata.resource_version = present.metadata.resource_version.clone();
        wanted.metadata.uid = present.metadata.uid.clone();
        wanted.status = present.status.clone();
        if let Some(old) = &present.spec {
            if has_node_ports(spec) {
                keep_node_ports(spec, old);
            }
            spec.cluster_ip = old.cluster_ip.clone();
            spec.cluster_ips = old.cluster_ips.clone();
            // Set by the API server where we leave it open.
            spec.session_affinity = old.session_affinity.clone();
            spec.internal_traffic_policy = old.internal_traffic_policy.clone();
            spec.ip_families = old.ip_families.clone();
            spec.ip_family_policy = old.ip_family_policy.clone();
            spec.external_traffic_policy = old.external_traffic_policy.clone();
            spec.allocate_load_balancer_node_ports = old.allocate_load_balancer_node_ports;
        }
    }
    wanted
}

/// A Service with an address of a load balancer may have node ports too.
fn has_node_ports(spec: &ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
}

/// A port that was given once stays, unless another one asks for its number now. The API server does
/// the same, so without it what we want would never be what is there.
fn keep_node_ports(spec: &mut ServiceSpec, old: &ServiceSpec) {
    let ports = spec.ports.iter().flatten();
    let asked: BTreeSet<i32> = ports.filter_map(|port| port.node_port).collect();
    let without = spec.ports.iter_mut().flatten();
    for port in without.filter(|port| port.node_port.is_none()) {
        let mut before = old.ports.iter().flatten();
        let same = before.find(|old| old.port == port.port);
        let kept = same.and_then(|old| old.node_port);
        port.node_port = kept.filter(|kept| !asked.contains(kept));
    }
}

/// Planned entries, and present ones that we never set.
fn with_others(
    mut planned: BTreeMap<String, String>,
    present: &BTreeMap<String, String>,
    set_before: &str,
) -> BTreeMap<String, String> {
    let set_before: BTreeSet<&str> = set_before.split(',').collect();
    for (key, value) in present {
        if !set_before.contains(key.as_str()) && key != OURS_ANNOTATION {
            planned.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    planned
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mk_service(labels: serde_json::Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "ingress", "namespace": "s", "labels": labels},
            "spec": {"type": "ClusterIP", "ports": [{"port": 15443}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_label_that_is_no_longer_asked_for_goes_and_those_of_others_stay() {
        let first = merged(&mk_service(json!({"a": "1", "b": "2"})), None);
        let mut present = first;
        let labels = present.metadata.labels.as_mut().unwrap();
        labels.insert("theirs".to_owned(), "3".to_owned());
        let second = merged(&mk_service(json!({"a": "1"})), Some(&present));
        let keys: Vec<String> = second.metadata.labels.unwrap().into_keys().collect();
        assert_eq!(keys, ["a", "theirs"]);
    }

    #[test]
    fn node_ports_that_are_not_asked_for_are_given_once_and_stay() {
        let mut planned = mk_service(json!({}));
        let spec = planned.spec.as_mut().unwrap();
        spec.type_ = Some("NodePort".to_owned());
        let mut taken = BTreeSet::from([30000]);
        let mut first = merged(&planned, None);
        give_node_ports(first.spec.as_mut().unwrap(), &mut taken);
        let port = |service: &Service| {
            let spec = service.spec.as_ref().unwrap();
            spec.ports.as_ref().unwrap()[0].node_port
        };
        assert_eq!(port(&first), Some(30001));
        let mut second = merged(&planned, Some(&first));
        give_node_ports(second.spec.as_mut().unwrap(), &mut taken);
        assert_eq!(second.spec, first.spec);
    }

    #[test]
    fn a_gateway_that_had_node_ports_is_as_planned_when_a_load_balancer_is_asked_for() {
        for asked in [json!({}), json!({"nodePort": 30100})] {
            let mut planned = mk_service(json!({}));
            let spec = planned.spec.as_mut().unwrap();
            spec.type_ = Some("NodePort".to_owned());
            let port = &mut spec.ports.as_mut().unwrap()[0];
            port.node_port = asked["nodePort"].as_i64().map(|port| port as i32);
            let mut present = merged(&planned, None);
            give_node_ports(present.spec.as_mut().unwrap(), &mut BTreeSet::new());
            let given = present.spec.as_ref().unwrap().ports.clone();

            planned = mk_service(json!({}));
            planned.spec.as_mut().unwrap().type_ = Some("LoadBalancer".to_owned());
            let wanted = merged(&planned, Some(&present));
            assert_eq!(wanted.spec.as_ref().unwrap().ports, given);
            let again = merged(&planned, Some(&wanted));
            assert_eq!(again.spec, wanted.spec);
        }
    }

    #[test]
    fn a_node_port_that_another_port_asks_for_now_is_not_kept() {
        let ports = |ports: serde_json::Value| -> ServiceSpec {
            serde_json::from_value(json!({"type": "NodePort", "ports": ports})).unwrap()
        };
        let old = ports(json!([{"port": 1, "nodePort": 30001}, {"port": 2, "nodePort": 30002}]));
        let mut spec = ports(json!([{"port": 1}, {"port": 2, "nodePort": 30001}]));
        keep_node_ports(&mut spec, &old);
        let kept = ports(json!([{"port": 1}, {"port": 2, "nodePort": 30001}]));
        assert_eq!(spec, kept);
    }

    #[test]
    fn what_is_as_planned_is_not_written_again() {
        let planned = mk_service(json!({"a": "1"}));
        let first = merged(&planned, None);
        let second = merged(&planned, Some(&first));
        assert_eq!(first.metadata.annotations, second.metadata.annotations);
        assert_eq!(first.metadata.labels, second.metadata.labels);
        assert_eq!(first.spec, second.spec);
    }
}
