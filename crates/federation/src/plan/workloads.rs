//! The workloads behind sidecars, from the Pods that stand for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::sidecar::Workload;
use crate::world::{APP_ANNOTATION, OUTBOUND_ANNOTATION, ObjectKey, Resources};

/// Every Pod of the given namespaces that a sidecar registered.
pub(super) fn workloads(
    resources: &Resources,
    namespaces: &BTreeSet<String>,
) -> BTreeMap<ObjectKey, Workload> {
    let mut by_namespace: BTreeMap<&str, Vec<&Service>> = BTreeMap::new();
    for (key, service) in resources.services.iter() {
        by_namespace
            .entry(&key.namespace)
            .or_default()
            .push(service);
    }
    resources
        .pods
        .iter()
        .filter(|(key, _)| namespaces.contains(&key.namespace))
        .filter_map(|(key, pod)| {
            let services = by_namespace.get(key.namespace.as_str());
            let services = services.map_or(&[][..], Vec::as_slice);
            Some((key.clone(), workload(&key.namespace, pod, services)?))
        })
        .collect()
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
