//! The services of this mesh with their endpoints, as every proxy may be told of them.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use imbl::OrdMap;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use meshfed_proxy_config::{
    Endpoint, Endpoints, Locality, LocalityEndpoints, outbound_cluster, sni, text,
};

use super::changes::changes;
use crate::discovery::extension::Health;
use crate::names::ServiceKey;
use crate::world::{ObjectKey, Resources, TLS_MODE_ISTIO, TLS_MODE_LABEL, in_namespace};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A service that proxies can be sent to.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalService {
    pub key: ServiceKey,
    /// `<name>.<namespace>.svc.<cluster domain>`.
    pub host: Arc<str>,
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
    /// The name in the SNI inside the mesh.
    pub sni: Arc<str>,
    /// Ready endpoints, under the name `outbound|<port>||<host>`.
    pub endpoints: Arc<Endpoints>,
}

/// The services of the members that have a TCP port; others and ExternalName ones are not ours to
/// route. Follows the world at a cost that is proportional to what changed in it.
#[derive(Debug, Default)]
pub(super) struct Services {
    all: OrdMap<ServiceKey, Arc<LocalService>>,
    /// Up to where the world was followed.
    resources: Resources,
    members: BTreeSet<String>,
    /// By namespace and name of the Service. Their order does not matter.
    slices: HashMap<ObjectKey, Vec<Arc<EndpointSlice>>>,
    /// How many Pods with mutual TLS have an address.
    mutual_tls: HashMap<IpAddr, usize>,
    /// Who has an endpoint there.
    by_address: HashMap<IpAddr, Vec<ServiceKey>>,
}

impl Services {
    pub fn all(&self) -> &OrdMap<ServiceKey, Arc<LocalService>> {
        &self.all
    }

    /// Returns the objects whose services may be others than before, in their order.
    pub fn follow(
        &mut self,
        resources: &Resources,
        members: &BTreeSet<String>,
        cluster_domain: &str,
    ) -> Vec<Touched> {
        let before = std::mem::replace(&mut self.resources, resources.clone());
        if before.services.is_empty() {
            self.slices.reserve(resources.endpoint_slices.len());
            self.by_address.reserve(resources.services.len());
        }
        let services = changes(&before.services, &resources.services);
        let mut touched: Vec<ObjectKey> = services.map(|(key, ..)| key.clone()).collect();
        for (key, old, new) in changes(&before.endpoint_slices, &resources.endpoint_slices) {
            if let Some((service, old)) = old.and_then(|old| Some((service_of(key, old)?, old))) {
                self.forget_slice(&service, old);
                touched.push(service);
            }
            if let Some((service, new)) = new.and_then(|new| Some((service_of(key, new)?, new))) {
                self.slices
                    .entry(service.clone())
                    .or_default()
                    .push(new.clone());
                touched.push(service);
            }
        }
        for (_, old, new) in changes(&before.pods, &resources.pods) {
            let (old, new) = (old.and_then(tls_address), new.and_then(tls_address));
            if old != new {
                self.count_pod(old, -1, &mut touched);
                self.count_pod(new, 1, &mut touched);
            }
        }
        if self.members != *members {
            // Services that are new are among the others already.
            for namespace in self.members.symmetric_difference(members) {
                let there = in_namespace(&before.services, namespace);
                touched.extend(there.map(|(key, _)| key.clone()));
            }
            self.members = members.clone();
        }
        // They come in sorted runs, so that this is a merge.
        touched.sort();
        touched.dedup();
        let touched = Touched::all(touched);
        for touched in &touched {
            self.judge(touched, cluster_domain);
        }
        touched
    }

    fn forget_slice(&mut self, service: &ObjectKey, slice: &Arc<EndpointSlice>) {
        if let Some(slices) = self.slices.get_mut(service) {
            // By name: a list made again has equal objects that are others.
            slices.retain(|there| there.metadata.name != slice.metadata.name);
            if slices.is_empty() {
                self.slices.remove(service);
            }
        }
    }

    /// Touches the services that have an endpoint where the last such Pod went or the first came.
    fn count_pod(&mut self, address: Option<IpAddr>, by: isize, touched: &mut Vec<ObjectKey>) {
        let Some(address) = address else { return };
        let count = self.mutual_tls.entry(address).or_default();
        *count = count.saturating_add_signed(by);
        if *count == 0 {
            self.mutual_tls.remove(&address);
        }
        let there = self.by_address.get(&address).into_iter().flatten();
        touched.extend(there.map(|key| ObjectKey::new(key.namespace.as_str(), key.name.as_str())));
    }

    fn judge(&mut self, Touched { object, key }: &Touched, cluster_domain: &str) {
        let is_member = self.members.contains(&object.namespace);
        let service = self.resources.services.get(object).filter(|_| is_member);
        let made = service.and_then(|service| {
            let ServiceKey { namespace, name } = key;
            let host = text(format_args!("{name}.{namespace}.svc.{cluster_domain}"));
            let slices = self.slices.get(object).map_or(&[][..], Vec::as_slice);
            let ports = ports(service, &host, slices, &self.mutual_tls);
            (!ports.is_empty()).then(|| LocalService {
                key: key.clone(),
                host,
                ports,
                health: health(slices),
            })
        });
        let old = self.all.get(key);
        if old.map(AsRef::as_ref) == made.as_ref() {
            return;
        }
        for address in old.into_iter().flat_map(|old| old.addresses()) {
            if let Some(there) = self.by_address.get_mut(&address) {
                there.retain(|other| other != key);
                if there.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
        match made {
            Some(made) => {
                for address in made.addresses() {
                    self.by_address
                        .entry(address)
                        .or_default()
                        .push(key.clone());
                }
                self.all.insert(key.clone(), Arc::new(made));
            }
            None => {
                self.all.remove(key);
            }
        }
    }
}

/// One service, whether its namespace is a member or not. For a single question: it looks at all
/// resources.
pub(crate) fn service(
    resources: &Resources,
    key: &ServiceKey,
    cluster_domain: &str,
) -> Option<Arc<LocalService>> {
    let home = BTreeSet::from([key.namespace.to_string()]);
    let mut services = Services::default();
    services.follow(resources, &home, cluster_domain);
    services.all.get(key).cloned()
}

/// A Service that may be another than before.
#[derive(Debug)]
pub(super) struct Touched {
    pub object: ObjectKey,
    pub key: ServiceKey,
}

impl Touched {
    /// Without those whose names are no labels. Neighbours share their namespace.
    fn all(objects: Vec<ObjectKey>) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::with_capacity(objects.len());
        for object in objects {
            let namespace = match all.last() {
                Some(last) if last.object.namespace == object.namespace => {
                    Ok(last.key.namespace.clone())
                }
                _ => object.namespace.parse(),
            };
            if let (Ok(namespace), Ok(name)) = (namespace, object.name.parse()) {
                let key = ServiceKey { namespace, name };
                all.push(Self { object, key });
            }
        }
        all
    }
}

impl LocalService {
    /// Where its endpoints are, each once.
    fn addresses(&self) -> Vec<IpAddr> {
        let localities = self.ports.iter().flat_map(|p| &p.endpoints.localities);
        let endpoints = localities.flat_map(|l| &l.endpoints);
        let mut all: Vec<IpAddr> = endpoints.map(|e| e.address.ip()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Whether traffic to this Pod is mutual TLS.
pub fn has_mutual_tls(pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels
        .and_then(|l| l.get(TLS_MODE_LABEL))
        .map(String::as_str)
        == Some(TLS_MODE_ISTIO)
}

/// The Service that a slice belongs to.
fn service_of(key: &ObjectKey, slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(ObjectKey::new(key.namespace.as_str(), name.as_str()))
}

/// The address of a Pod whose traffic is mutual TLS.
fn tls_address(pod: &Arc<Pod>) -> Option<IpAddr> {
    let address = pod.status.as_ref()?.pod_ip.as_deref()?;
    has_mutual_tls(pod).then(|| address.parse().ok())?
}

fn ports(
    service: &Service,
    host: &str,
    slices: &[Arc<EndpointSlice>],
    mutual_tls: &HashMap<IpAddr, usize>,
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
                sni: sni(number, host),
                number,
                name,
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

/// Endpoints are counted by address, whatever their ports.
fn health(slices: &[Arc<EndpointSlice>]) -> Health {
    let (mut all, mut ready) = (Vec::new(), Vec::new());
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
    let count = |mut addresses: Vec<&str>| {
        addresses.sort_unstable();
        addresses.dedup();
        u32::try_from(addresses.len()).unwrap_or(u32::MAX)
    };
    Health {
        draining: !all.is_empty() && !staying,
        ready_endpoints: count(ready),
        capacity: count(all),
    }
}

/// The ready endpoints of one port, sorted, without repeats.
fn localities(
    port_name: &str,
    slices: &[Arc<EndpointSlice>],
    mutual_tls: &HashMap<IpAddr, usize>,
) -> Vec<LocalityEndpoints> {
    let mut addresses = Vec::new();
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
    addresses.sort_unstable();
    addresses.dedup();
    vec![LocalityEndpoints {
        locality: Locality::default(),
        priority: 0,
        endpoints: addresses
            .into_iter()
            .map(|address| Endpoint {
                mesh_tls: mutual_tls.contains_key(&address.ip()),
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

    fn services(
        resources: &Resources,
        members: &BTreeSet<String>,
    ) -> OrdMap<ServiceKey, Arc<LocalService>> {
        let mut services = Services::default();
        services.follow(resources, members, "cluster.local");
        services.all
    }

    #[test]
    fn a_service_has_its_ready_endpoints_on_their_target_port() {
        let namespaces = BTreeSet::from(["bookinfo".to_owned()]);
        let all = services(&mk_resources(), &namespaces);
        let service = all.values().next().unwrap();
        assert_eq!(&*service.host, "ratings.bookinfo.svc.cluster.local");
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
        assert!(services(&mk_resources(), &BTreeSet::new()).is_empty());
    }
}
