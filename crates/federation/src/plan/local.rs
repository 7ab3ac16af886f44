//! The services of this mesh with their endpoints, as every proxy may be told of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use meshfed_proxy_config::{Endpoint, Endpoints, Locality, LocalityEndpoints, outbound_cluster};

use crate::discovery::extension::Health;
use crate::names::ServiceKey;
use crate::world::{Resources, TLS_MODE_ISTIO, TLS_MODE_LABEL};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A service that proxies can be sent to.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalService {
    pub key: ServiceKey,
    /// `<name>.<namespace>.svc.<cluster domain>`.
    pub host: String,
    /// Never empty.
    pub ports: Vec<LocalPort>,
    /// What peers are told of how it fares.
    pub health: Health,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LocalPort {
    pub number: u16,
    pub name: String,
    pub app_protocol: Option<String>,
    /// Ready endpoints, under the name `outbound|<port>||<host>`.
    pub endpoints: Arc<Endpoints>,
}

/// The services of the given namespaces that have a TCP port; others and ExternalName ones are not
/// ours to route.
pub fn services(
    resources: &Resources,
    namespaces: &BTreeSet<String>,
    cluster_domain: &str,
) -> BTreeMap<ServiceKey, Arc<LocalService>> {
    let slices = slices_by_service(resources);
    let mutual_tls = addresses_with_mutual_tls(resources);
    let mut all = BTreeMap::new();
    for (object, service) in resources.services.iter() {
        if !namespaces.contains(&object.namespace) {
            continue;
        }
        let Ok(key) = ServiceKey::parse(&object.namespace, &object.name) else {
            continue;
        };
        let at = (object.namespace.as_str(), object.name.as_str());
        let slices = slices.get(&at).map_or(&[][..], Vec::as_slice);
        let host = format!("{}.{}.svc.{cluster_domain}", key.name, key.namespace);
        let ports = ports(service, &host, slices, &mutual_tls);
        if !ports.is_empty() {
            let service = LocalService {
                key: key.clone(),
                host,
                ports,
                health: health(slices),
            };
            all.insert(key, Arc::new(service));
        }
    }
    all
}

/// Whether traffic to this Pod is mutual TLS.
pub fn has_mutual_tls(pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels
        .and_then(|l| l.get(TLS_MODE_LABEL))
        .map(String::as_str)
        == Some(TLS_MODE_ISTIO)
}

/// By namespace and name of the Service.
fn slices_by_service(resources: &Resources) -> HashMap<(&str, &str), Vec<&EndpointSlice>> {
    let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
    for (key, slice) in resources.endpoint_slices.iter() {
        let labels = slice.metadata.labels.as_ref();
        if let Some(name) = labels.and_then(|l| l.get(SERVICE_NAME_LABEL)) {
            by_service
                .entry((&key.namespace, name))
                .or_default()
                .push(slice);
        }
    }
    by_service
}

fn addresses_with_mutual_tls(resources: &Resources) -> BTreeSet<IpAddr> {
    resources
        .pods
        .values()
        .filter(|pod| has_mutual_tls(pod))
        .filter_map(|pod| pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok())
        .collect()
}

fn ports(
    service: &Service,
    host: &str,
    slices: &[&EndpointSlice],
    mutual_tls: &BTreeSet<IpAddr>,
) -> Vec<LocalPort> {
    let Some(spec) = service.spec.as_ref() else {
        return Vec::new();
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let tcp = |p: &&ServicePort| p.protocol.as_deref().unwrap_or("TCP") == "TCP";
    spec.ports
        .iter()
        .flatten()
        .filter(tcp)
        .filter_map(|port| {
            let number = u16::try_from(port.port).ok().filter(|n| *n > 0)?;
            let name = port.name.clone().unwrap_or_default();
            Some(LocalPort {
                endpoints: Arc::new(Endpoints {
                    name: outbound_cluster(number, host),
                    localities: localities(&name, slices, mutual_tls),
                }),
                number,
                name,
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

/// Endpoints are counted by address, whatever their ports.
fn health(slices: &[&EndpointSlice]) -> Health {
    let mut all = BTreeSet::new();
    let mut ready = BTreeSet::new();
    let mut staying = false;
    for endpoint in slices.iter().flat_map(|slice| &slice.endpoints) {
        let conditions = endpoint.conditions.as_ref();
        let is_ready = conditions.and_then(|c| c.ready) != Some(false);
        let addresses = endpoint.addresses.iter().map(String::as_str);
        if is_ready {
            ready.extend(addresses.clone());
        }
        all.extend(addresses);
        staying |= conditions.and_then(|c| c.terminating) != Some(true);
    }
    let count = |addresses: &BTreeSet<&str>| u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    Health {
        ready_endpoints: count(&ready),
        capacity: count(&all),
        draining: !all.is_empty() && !staying,
    }
}

/// The ready endpoints of one port, sorted, without repeats.
fn localities(
    port_name: &str,
    slices: &[&EndpointSlice],
    mutual_tls: &BTreeSet<IpAddr>,
) -> Vec<LocalityEndpoints> {
    let mut addresses = BTreeSet::new();
    for slice in slices {
        let number = slice
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref().unwrap_or_default() == port_name)
            .and_then(|p| p.port)
            .and_then(|p| u16::try_from(p).ok());
        let Some(number) = number else { continue };
        for endpoint in &slice.endpoints {
            // Absent means ready, says the API.
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready);
            if ready == Some(false) {
                continue;
            }
            let ips = endpoint.addresses.iter().filter_map(|a| a.parse().ok());
            addresses.extend(ips.map(|ip: IpAddr| SocketAddr::new(ip, number)));
        }
    }
    if addresses.is_empty() {
        return Vec::new();
    }
    vec![LocalityEndpoints {
        locality: Locality::default(),
        priority: 0,
        endpoints: addresses
            .into_iter()
            .map(|address| Endpoint {
                mesh_tls: mutual_tls.contains(&address.ip()),
                ..Endpoint::new(address)
            })
            .collect(),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::ObjectKey;
    use serde_json::json;

    fn mk_resources() -> Resources {
        let key = ObjectKey::new("bookinfo", "ratings");
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "ratings", "namespace": "bookinfo"},
            "spec": {"ports": [{"name": "http", "port": 9080}, {"name": "dns", "port": 53, "protocol": "UDP"}]},
        }))
        .unwrap();
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "r", "namespace": "bookinfo", "labels": {SERVICE_NAME_LABEL: "ratings"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8000}],
            "endpoints": [
                {"addresses": ["127.64.1.201"], "conditions": {"ready": true}},
                {"addresses": ["127.64.1.202"], "conditions": {"ready": false}},
                {"addresses": ["127.64.1.200"]},
            ],
        }))
        .unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "bookinfo", "labels": {TLS_MODE_LABEL: "istio"}},
            "status": {"podIP": "127.64.1.200"},
        }))
        .unwrap();
        let mut resources = Resources::default();
        resources.services.insert(key.clone(), Arc::new(service));
        resources
            .endpoint_slices
            .insert(key.clone(), Arc::new(slice));
        resources.pods.insert(key, Arc::new(pod));
        resources
    }

    #[test]
    fn a_service_has_its_ready_endpoints_on_their_target_port() {
        let namespaces = BTreeSet::from(["bookinfo".to_owned()]);
        let all = services(&mk_resources(), &namespaces, "cluster.local");
        let service = all.values().next().unwrap();
        assert_eq!(service.host, "ratings.bookinfo.svc.cluster.local");
        assert_eq!(service.ports.len(), 1, "UDP is not routed");
        let health = Health {
            ready_endpoints: 2,
            capacity: 3,
            draining: false,
        };
        assert_eq!(service.health, health);
        let endpoints = &service.ports[0].endpoints.localities[0].endpoints;
        let seen: Vec<(String, bool)> = endpoints
            .iter()
            .map(|e| (e.address.to_string(), e.mesh_tls))
            .collect();
        assert_eq!(
            seen,
            [
                ("127.64.1.200:8000".to_owned(), true),
                ("127.64.1.201:8000".to_owned(), false)
            ]
        );
    }

    #[test]
    fn a_namespace_that_is_no_member_has_no_services() {
        assert!(services(&mk_resources(), &BTreeSet::new(), "cluster.local").is_empty());
    }
}
