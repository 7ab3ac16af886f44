//! The services of this mesh with their endpoints, as every proxy may be told of them.

use std::collections::btree_map::Range;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::iter::Peekable;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use meshfed_ordmap::OrdMap;
use meshfed_proxy_config::{
    Endpoint, Endpoints, Locality, LocalityEndpoints, joined, outbound_cluster, sni,
};
use smol_str::SmolStr;

use super::parallel::{SHARE, each};
use crate::discovery::export::ShownPort;
use crate::discovery::extension::Health;
use crate::names::{Label, ServiceKey};
use crate::protocol::Protocol;
use crate::world::{ObjectKey, Resources, TLS_MODE_ISTIO, TLS_MODE_LABEL, in_namespace};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A service that proxies can be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalService {
    pub key: ServiceKey,
    /// `<name>.<namespace>.svc.<cluster domain>`.
    pub host: Arc<str>,
    /// Never empty.
    pub ports: Vec<LocalPort>,
    /// The same ports, as peers are told of them.
    pub shown: Arc<[ShownPort]>,
    /// What peers are told of how it fares.
    pub health: Health,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPort {
    pub number: u16,
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
    slices: Slices,
    /// How many Pods with mutual TLS have an address.
    mutual_tls: HashMap<IpAddr, usize>,
    /// Who has an endpoint there: mostly one, and perhaps others.
    by_address: HashMap<IpAddr, (ServiceKey, Vec<ServiceKey>)>,
}

/// By the Service that they belong to, and by their own name.
type Slices = BTreeMap<(ServiceKey, SmolStr), Arc<EndpointSlice>>;

impl Services {
    pub fn all(&self) -> &OrdMap<ServiceKey, Arc<LocalService>> {
        &self.all
    }

    /// Returns the services that may be others than before, in their order.
    pub fn follow(
        &mut self,
        resources: &Resources,
        members: &BTreeSet<String>,
        cluster_domain: &str,
    ) -> Vec<Touched> {
        let before = std::mem::replace(&mut self.resources, resources.clone());
        let mut keys = Keys::default();
        let services = before.services.changes(&resources.services);
        let changed = services.filter_map(|(key, _, new)| Some((keys.of(key)?, new)));
        let mut changed: Vec<(ServiceKey, Option<&Arc<Service>>)> = changed.collect();
        let mut others = self.follow_slices(&before, resources);
        for (_, old, new) in before.pods.changes(&resources.pods) {
            let (old, new) = (old.and_then(tls_address), new.and_then(tls_address));
            if old != new {
                self.count_pod(old, -1, &mut others);
                self.count_pod(new, 1, &mut others);
            }
        }
        if self.members != *members {
            // Services that are new are among the others already.
            for namespace in self.members.symmetric_difference(members) {
                let there = in_namespace(&before.services, namespace);
                others.extend(there.filter_map(|(key, _)| keys.of(key)));
            }
            self.members = members.clone();
        }
        // They come in sorted runs, so that this is a merge.
        others.sort();
        others.dedup();
        let mut at = changed.iter().peekable();
        others.retain(|key| {
            while at.next_if(|(changed, _)| changed < key).is_some() {}
            at.peek().is_none_or(|(changed, _)| changed != key)
        });
        if !others.is_empty() {
            changed.extend(others.into_iter().map(|key| {
                let object = resources.services.get(&object_key(&key));
                (key, object)
            }));
            changed.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        self.judge_all(&changed, cluster_domain)
    }

    /// Returns the services that they belong or belonged to.
    fn follow_slices(&mut self, before: &Resources, now: &Resources) -> Vec<ServiceKey> {
        let changed: Vec<_> = before
            .endpoint_slices
            .changes(&now.endpoint_slices)
            .collect();
        let shares = changed.chunks(SHARE).collect();
        let owners = each(shares, changed.len(), |share| {
            let mut keys = Keys::default();
            let mut owners = Vec::with_capacity(share.len());
            for (key, old, new) in share {
                let name = SmolStr::new(&key.name);
                let mut owner = |slice: &Option<&Arc<EndpointSlice>>| keys.of_slice(key, (*slice)?);
                owners.push((name, owner(old), owner(new), new.cloned()));
            }
            owners
        });
        let mut touched = Vec::with_capacity(changed.len());
        let mut came = Vec::with_capacity(changed.len());
        for (name, old, new, slice) in owners.into_iter().flatten() {
            if let Some(service) = old {
                let id = (service, name.clone());
                self.slices.remove(&id);
                touched.push(id.0);
            }
            if let Some((service, slice)) = new.zip(slice) {
                touched.push(service.clone());
                came.push(((service, name), slice));
            }
        }
        if self.slices.is_empty() {
            self.slices = came.into_iter().collect();
        } else {
            self.slices.extend(came);
        }
        touched
    }

    /// Touches the services that have an endpoint where the last such Pod went or the first came.
    fn count_pod(&mut self, address: Option<IpAddr>, by: isize, touched: &mut Vec<ServiceKey>) {
        let Some(address) = address else { return };
        let count = self.mutual_tls.entry(address).or_default();
        *count = count.saturating_add_signed(by);
        if *count == 0 {
            self.mutual_tls.remove(&address);
        }
        if let Some((first, others)) = self.by_address.get(&address) {
            touched.push(first.clone());
            touched.extend_from_slice(others);
        }
    }

    fn judge_all(
        &mut self,
        changed: &[(ServiceKey, Option<&Arc<Service>>)],
        cluster_domain: &str,
    ) -> Vec<Touched> {
        let shares = changed.chunks(SHARE).collect();
        let judged = each(shares, changed.len(), |share| {
            self.judge_some(share, cluster_domain)
        });
        let mut touched: Vec<Touched> = Vec::with_capacity(changed.len());
        let mut made = Vec::with_capacity(changed.len());
        if self.by_address.is_empty() {
            self.by_address.reserve(changed.len());
        }
        for mut one in judged.into_iter().flatten() {
            let (key, new) = (&one.key, one.now.as_mut().map(|(_, new)| new));
            match (self.all.get(key), new) {
                (Some(old), Some(new)) if old == new => *new = old.clone(),
                (old, new) => {
                    for address in old.into_iter().flat_map(|old| old.addresses()) {
                        leave(&mut self.by_address, address, key);
                    }
                    match new {
                        Some(new) => {
                            for address in new.addresses() {
                                come(&mut self.by_address, address, key);
                            }
                            made.push((key.clone(), new.clone()));
                        }
                        None => {
                            self.all.remove(key);
                        }
                    }
                }
            }
            touched.push(one);
        }
        self.all.extend_all(made);
        touched
    }

    /// Neighbours in the order of the services.
    fn judge_some(
        &self,
        changed: &[(ServiceKey, Option<&Arc<Service>>)],
        cluster_domain: &str,
    ) -> Vec<Touched> {
        let Some((first, _)) = changed.first() else {
            return Vec::new();
        };
        let mut slices_of = SlicesOf::from(&self.slices, first);
        let judged = changed.iter().map(|(key, object)| {
            let object = object.filter(|_| self.members.contains(key.namespace.as_str()));
            let now = object.and_then(|object| {
                let local = self.judge(key, object, slices_of.next(key), cluster_domain)?;
                Some((object.clone(), Arc::new(local)))
            });
            Touched {
                key: key.clone(),
                now,
            }
        });
        judged.collect()
    }

    fn judge(
        &self,
        key: &ServiceKey,
        service: &Service,
        slices: &[&EndpointSlice],
        cluster_domain: &str,
    ) -> Option<LocalService> {
        let ServiceKey { namespace, name } = key;
        let host = joined(&[
            name.as_str(),
            ".",
            namespace.as_str(),
            ".svc.",
            cluster_domain,
        ]);
        let (ports, shown) = ports(service, &host, slices, &self.mutual_tls);
        (!ports.is_empty()).then(|| LocalService {
            key: key.clone(),
            host,
            ports,
            shown: shown.into(),
            health: health(slices),
        })
    }
}

/// Finds the slices of one service after the other, in the order of the services: the next ones are
/// mostly a step away.
struct SlicesOf<'s> {
    all: &'s Slices,
    ahead: Peekable<Range<'s, (ServiceKey, SmolStr), Arc<EndpointSlice>>>,
    found: Vec<&'s EndpointSlice>,
}

impl<'s> SlicesOf<'s> {
    /// Steps that are taken before it is searched instead.
    const STEPS: usize = 4;

    fn from(all: &'s Slices, first: &ServiceKey) -> Self {
        Self {
            all,
            ahead: Self::search(all, first),
            found: Vec::new(),
        }
    }

    fn search(
        all: &'s Slices,
        key: &ServiceKey,
    ) -> Peekable<Range<'s, (ServiceKey, SmolStr), Arc<EndpointSlice>>> {
        all.range((key.clone(), SmolStr::default())..).peekable()
    }

    fn next(&mut self, key: &ServiceKey) -> &[&'s EndpointSlice] {
        self.found.clear();
        let mut steps = 0;
        while self.ahead.next_if(|((of, _), _)| of < key).is_some() {
            steps += 1;
            if steps == Self::STEPS {
                self.ahead = Self::search(self.all, key);
            }
        }
        while let Some((_, slice)) = self.ahead.next_if(|((of, _), _)| of == key) {
            self.found.push(slice);
        }
        &self.found
    }
}

fn come(
    all: &mut HashMap<IpAddr, (ServiceKey, Vec<ServiceKey>)>,
    address: IpAddr,
    key: &ServiceKey,
) {
    match all.entry(address) {
        Entry::Vacant(free) => {
            free.insert((key.clone(), Vec::new()));
        }
        Entry::Occupied(mut there) => there.get_mut().1.push(key.clone()),
    }
}

fn leave(
    all: &mut HashMap<IpAddr, (ServiceKey, Vec<ServiceKey>)>,
    address: IpAddr,
    key: &ServiceKey,
) {
    let Entry::Occupied(mut there) = all.entry(address) else {
        return;
    };
    let (first, others) = there.get_mut();
    others.retain(|other| other != key);
    if first == key {
        match others.pop() {
            Some(other) => *first = other,
            None => {
                there.remove();
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
    pub key: ServiceKey,
    /// If it is among the services: what it is made of, and what was made.
    pub now: Option<(Arc<Service>, Arc<LocalService>)>,
}

/// Makes keys of the names of objects. Neighbours share their namespace.
#[derive(Debug, Default)]
struct Keys {
    namespace: Option<(String, Option<Label>)>,
}

impl Keys {
    /// `None` for names that are no labels.
    fn key(&mut self, namespace: &str, name: &str) -> Option<ServiceKey> {
        let namespace = match &self.namespace {
            Some((last, label)) if last == namespace => label.clone(),
            _ => {
                let label: Option<Label> = namespace.parse().ok();
                self.namespace = Some((namespace.to_owned(), label.clone()));
                label
            }
        };
        Some(ServiceKey {
            namespace: namespace?,
            name: name.parse().ok()?,
        })
    }

    fn of(&mut self, key: &ObjectKey) -> Option<ServiceKey> {
        self.key(&key.namespace, &key.name)
    }

    /// The Service that a slice belongs to.
    fn of_slice(&mut self, key: &ObjectKey, slice: &EndpointSlice) -> Option<ServiceKey> {
        let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
        self.key(&key.namespace, name)
    }
}

fn object_key(key: &ServiceKey) -> ObjectKey {
    ObjectKey::new(key.namespace.as_str(), key.name.as_str())
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

/// The address of a Pod whose traffic is mutual TLS.
fn tls_address(pod: &Arc<Pod>) -> Option<IpAddr> {
    let address = pod.status.as_ref()?.pod_ip.as_deref()?;
    has_mutual_tls(pod).then(|| address.parse().ok())?
}

/// The ports that carry TCP, and what peers are told of them.
fn ports(
    service: &Service,
    host: &str,
    slices: &[&EndpointSlice],
    mutual_tls: &HashMap<IpAddr, usize>,
) -> (Vec<LocalPort>, Vec<ShownPort>) {
    let spec = service.spec.as_ref();
    let spec = spec.filter(|spec| spec.type_.as_deref() != Some("ExternalName"));
    let tcp = |p: &&ServicePort| p.protocol.as_deref().unwrap_or("TCP") == "TCP";
    let all = spec
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    all.iter()
        .filter(tcp)
        .filter_map(|port| {
            let number = u16::try_from(port.port).ok().filter(|n| *n > 0)?;
            let name = port.name.as_deref().unwrap_or_default();
            let app_protocol = port.app_protocol.as_deref();
            let shown = ShownPort {
                name: name.into(),
                number,
                protocol: Protocol::of_service_port(None, app_protocol, Some(name), port.port),
            };
            let local = LocalPort {
                endpoints: Arc::new(Endpoints {
                    name: outbound_cluster(number, host),
                    localities: localities(name, slices, mutual_tls),
                }),
                sni: sni(number, host),
                number,
            };
            Some((local, shown))
        })
        .unzip()
}

/// Endpoints are counted by address, whatever their ports.
fn health(slices: &[&EndpointSlice]) -> Health {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let mut addresses: Vec<(&str, bool)> = Vec::new();
    let mut staying = false;
    for endpoint in endpoints {
        let conditions = endpoint.conditions.as_ref();
        let ready = is_ready(endpoint);
        addresses.extend(endpoint.addresses.iter().map(|at| (at.as_str(), ready)));
        staying |= conditions.and_then(|c| c.terminating) != Some(true);
    }
    addresses.sort_unstable();
    let (mut capacity, mut ready_endpoints) = (0, 0);
    for same in addresses.chunk_by(|(a, _), (b, _)| a == b) {
        capacity += 1;
        ready_endpoints += u32::from(same.iter().any(|(_, ready)| *ready));
    }
    Health {
        draining: capacity > 0 && !staying,
        ready_endpoints,
        capacity,
    }
}

/// Absent means ready, says the API.
fn is_ready(endpoint: &discovery::v1::Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false)
}

/// The ready endpoints of one port, sorted, without repeats.
fn localities(
    port_name: &str,
    slices: &[&EndpointSlice],
    mutual_tls: &HashMap<IpAddr, usize>,
) -> Vec<LocalityEndpoints> {
    let mut endpoints = Vec::new();
    for slice in slices {
        let number = slice
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref().unwrap_or_default() == port_name)
            .and_then(|p| p.port)
            .and_then(|p| u16::try_from(p).ok());
        let Some(number) = number else { continue };
        let ready = slice.endpoints.iter().filter(|endpoint| is_ready(endpoint));
        let addresses = ready.flat_map(|endpoint| &endpoint.addresses);
        let ips = addresses.filter_map(|address| address.parse().ok());
        endpoints.extend(ips.map(|ip: IpAddr| Endpoint {
            mesh_tls: mutual_tls.contains_key(&ip),
            ..Endpoint::new(SocketAddr::new(ip, number))
        }));
    }
    if endpoints.is_empty() {
        return Vec::new();
    }
    endpoints.sort_unstable_by_key(|endpoint| endpoint.address);
    endpoints.dedup_by_key(|endpoint| endpoint.address);
    vec![LocalityEndpoints {
        locality: Locality::default(),
        priority: 0,
        endpoints,
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
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
