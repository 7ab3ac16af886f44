//! EndpointSlices of Services with a selector, from the Pods that our sidecars registered.
//!
//! Slices that a person wrote by hand, or for Services without a selector, are left alone.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Label that says whose the slice is.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Our value of [`MANAGED_BY`].
pub const MANAGER: &str = "endpointslice-controller.meshfed.io";
/// Label with the name of the slice's Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The slice that this Service should have, or `None` if it selects nothing itself.
pub fn desired<'a>(
    service: &Service,
    pods: impl Iterator<Item = &'a Pod>,
) -> Option<EndpointSlice> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|s| !s.is_empty())?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let name = service.metadata.name.as_deref()?;
    let mut matching: Vec<&Pod> = pods.filter(|pod| selects(selector, service, pod)).collect();
    matching.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let ports = spec.ports.as_deref().unwrap_or_default();
    Some(EndpointSlice {
        metadata: ObjectMeta {
            name: Some(slice_name(name)),
            namespace: service.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([
                (MANAGED_BY.to_owned(), MANAGER.to_owned()),
                (SERVICE_NAME.to_owned(), name.to_owned()),
            ])),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Service".to_owned(),
                name: name.to_owned(),
                uid: service.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".to_owned(),
        endpoints: matching.iter().filter_map(|pod| endpoint(pod)).collect(),
        ports: Some(
            ports
                .iter()
                .filter_map(|port| slice_port(port, &matching))
                .collect(),
        ),
    })
}

/// The name of the slice that we keep for a Service.
pub fn slice_name(service: &str) -> String {
    format!("{service}-mesh")
}

fn selects(selector: &BTreeMap<String, String>, service: &Service, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    pod.metadata.namespace == service.metadata.namespace
        && selector
            .iter()
            .all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
}

fn endpoint(pod: &Pod) -> Option<Endpoint> {
    let status = pod.status.as_ref()?;
    let address = status.pod_ip.clone()?;
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    Some(Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready && !terminating),
            serving: Some(ready),
            terminating: Some(terminating),
        }),
        node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}

/// A port that is named in the Service is looked up in the containers; one that no pod has is left
/// out, as in Kubernetes.
fn slice_port(port: &ServicePort, pods: &[&Pod]) -> Option<EndpointPort> {
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => pods.iter().find_map(|pod| named_port(pod, name))?,
    };
    Some(EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(number),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    })
}

fn named_port(pod: &Pod, name: &str) -> Option<i32> {
    pod.spec
        .as_ref()?
        .containers
        .iter()
        .flat_map(|c| c.ports.iter().flatten())
        .find(|p| p.name.as_deref() == Some(name))
        .map(|p| p.container_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mk_service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "ratings", "namespace": "bookinfo", "uid": "u1"},
            "spec": spec,
        }))
        .unwrap()
    }

    fn mk_pod(name: &str, app: &str, ip: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "bookinfo", "labels": {"app": app}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 9080}]}]},
            "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn pods_that_match_the_selector_become_endpoints_with_their_readiness() {
        let service = mk_service(json!({
            "selector": {"app": "ratings"},
            "ports": [{"name": "http", "port": 9080, "targetPort": "web"}],
        }));
        let pods = [
            mk_pod("b", "ratings", "127.64.1.201", "False"),
            mk_pod("a", "ratings", "127.64.1.200", "True"),
            mk_pod("c", "reviews", "127.64.1.202", "True"),
        ];
        let slice = desired(&service, pods.iter()).unwrap();
        let seen: Vec<(&str, Option<bool>)> = slice
            .endpoints
            .iter()
            .map(|e| {
                (
                    e.addresses[0].as_str(),
                    e.conditions.as_ref().unwrap().ready,
                )
            })
            .collect();
        assert_eq!(
            seen,
            [("127.64.1.200", Some(true)), ("127.64.1.201", Some(false))]
        );
        assert_eq!(slice.ports.unwrap()[0].port, Some(9080));
    }

    #[test]
    fn a_service_without_selector_is_left_to_hand_written_slices() {
        let service = mk_service(json!({"ports": [{"port": 80}]}));
        assert!(desired(&service, std::iter::empty()).is_none());
    }
}
