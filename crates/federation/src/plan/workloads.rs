//! The workloads behind sidecars, from the Pods that stand for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::sidecar::Workload;
use crate::world::{
    APP_ANNOTATION, OUTBOUND_ANNOTATION, ObjectKey, Resources, Shared, in_namespace,
};

/// The Pods of members that a sidecar registered. Follows the world at a cost that is proportional
/// to what changed in it.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    all: BTreeMap<ObjectKey, Workload>,
    /// Up to where the world was followed.
    pods: Shared<ObjectKey, Pod>,
    services: Shared<ObjectKey, Service>,
    members: BTreeSet<String>,
}

impl Workloads {
    pub fn all(&self) -> &BTreeMap<ObjectKey, Workload> {
        &self.all
    }

    /// Returns what may be another than before.
    pub fn follow(
        &mut self,
        resources: &Resources,
        members: &BTreeSet<String>,
    ) -> BTreeSet<ObjectKey> {
        let mut touched = BTreeSet::new();
        let mut namespaces: BTreeSet<&String> =
            self.members.symmetric_difference(members).collect();
        for (key, old, new) in self.services.changes(&resources.services) {
            let targets = |service: &Arc<Service>| {
                let spec = service.spec.as_ref()?;
                Some((spec.selector.clone()?, spec.ports.clone()))
            };
            if old.and_then(targets) != new.and_then(targets) {
                namespaces.insert(&key.namespace);
            }
        }
        for namespace in namespaces {
            let there = in_namespace(&resources.pods, namespace);
            touched.extend(there.map(|(key, _)| key.clone()));
        }
        let pods = self.pods.changes(&resources.pods);
        touched.extend(pods.map(|(key, _, _)| key.clone()));
        touched.retain(|key| {
            let pod = resources.pods.get(key);
            let pod = pod.filter(|_| members.contains(&key.namespace));
            let made = pod.and_then(|pod| {
                let services = in_namespace(&resources.services, &key.namespace);
                let services: Vec<&Service> = services.map(|(_, service)| &**service).collect();
                workload(&key.namespace, pod, &services)
            });
            let is_new = made.as_ref() != self.all.get(key);
            match made {
                Some(made) => self.all.insert(key.clone(), made),
                None => self.all.remove(key),
            };
            is_new
        });
        self.pods = resources.pods.clone();
        self.services = resources.services.clone();
        if self.members != *members {
            self.members = members.clone();
        }
        touched
    }
}

fn workload(namespace: &str, pod: &Pod, services: &[&Service]) -> Option<Workload> {
    let address = |annotation: &str| -> Option<SocketAddr> {
        let annotations = pod.metadata.annotations.as_ref()?;
        annotations.get(annotation)?.parse().ok()
    };
    let (outbound, app) = (address(OUTBOUND_ANNOTATION), address(APP_ANNOTATION));
    if outbound.is_none() && app.is_none() {
        return None;
    }
    Some(Workload {
        namespace: namespace.to_owned(),
        ip: pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()?,
        outbound,
        app,
        inbound_ports: services
            .iter()
            .filter(|service| selects(service, pod))
            .flat_map(|service| target_ports(service, pod))
            .collect(),
    })
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    let labels = pod.metadata.labels.as_ref();
    selector.is_some_and(|selector| {
        !selector.is_empty()
            && selector
                .iter()
                .all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
    })
}

fn target_ports<'a>(service: &'a Service, pod: &'a Pod) -> impl Iterator<Item = u16> + 'a {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref());
    let tcp = ports
        .unwrap_or_default()
        .iter()
        .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    tcp.filter_map(|port| {
        let number = match &port.target_port {
            None | Some(IntOrString::Int(0)) => port.port,
            Some(IntOrString::Int(number)) => *number,
            Some(IntOrString::String(name)) => container_port(pod, name)?,
        };
        u16::try_from(number).ok().filter(|number| *number > 0)
    })
}

fn container_port(pod: &Pod, name: &str) -> Option<i32> {
    let containers = &pod.spec.as_ref()?.containers;
    containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten())
        .find(|port| port.name.as_deref() == Some(name))
        .map(|port| port.container_port)
}
