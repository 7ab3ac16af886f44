//! The gateways that a ServiceMeshControlPlane asks for, as Services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use meshfed_api::ServiceMeshControlPlane;
use meshfed_api::control_plane::{Gateway, GatewayPort, GatewayService, SNI_DNAT};
use meshfed_api::peer::{DEFAULT_DISCOVERY_PORT, DEFAULT_SERVICE_PORT};

use super::withdrawal::FINALIZER;
use super::{GatewayKind, GatewayPlan};
use crate::names::{Label, NameError};
use crate::world::GATEWAY_LABEL;

/// Node ports lie in this range (Kubernetes' default, table 2 of the documents).
pub const NODE_PORTS: std::ops::RangeInclusive<i32> = 30000..=32767;
const ACCOUNT_SUFFIX: &str = "-service-account";
const APP_LABEL: &str = "app";
const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
const OWNER_LABEL: &str = "maistra.io/owner";
const OWNER_API_VERSION: &str = "maistra.io/v2";
const OWNER_KIND: &str = "ServiceMeshControlPlane";

/// Why a gateway is not made. Stored before a rule of the schema existed, or beyond what a schema
/// can say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GatewayProblem {
    #[error("its name cannot name a Service: {0}")]
    Name(#[from] NameError),
    #[error("the same name stands in additionalIngress and in additionalEgress")]
    NameTakenTwice,
    #[error("routerMode is {0:?}; a federation gateway has sni-dnat")]
    RouterMode(String),
    #[error("service.type is {0:?}; use ClusterIP, NodePort or LoadBalancer")]
    ServiceType(String),
    #[error("port {0} is missing in service.ports; 15443 and 8188 are both required")]
    MissingPort(u16),
    #[error("port {0} stands twice in service.ports")]
    DuplicatePort(i32),
    #[error("nodePort must be set on both ports, for TLS and for service discovery, or on neither")]
    HalfNodePorts,
    #[error("nodePort {0} is not in the range 30000 to 32767")]
    NodePortRange(i32),
    #[error("loadBalancerIP {0:?} is not an IP address")]
    LoadBalancerIp(String),
}

/// Every enabled gateway by name, or why it is not made.
pub fn desired(
    control_plane: &ServiceMeshControlPlane,
) -> BTreeMap<String, Result<GatewayPlan, GatewayProblem>> {
    let mut all = BTreeMap::new();
    let Some(gateways) = &control_plane.spec.gateways else {
        return all;
    };
    let sides = [
        (GatewayKind::Ingress, &gateways.additional_ingress),
        (GatewayKind::Egress, &gateways.additional_egress),
    ];
    for (kind, named) in sides {
        for (name, gateway) in named.iter().filter(|(_, g)| g.is_enabled()) {
            let made = gateway_plan(control_plane, kind, name, gateway);
            all.entry(name.clone())
                .and_modify(|earlier| *earlier = Err(GatewayProblem::NameTakenTwice))
                .or_insert(made);
        }
    }
    all
}

/// The service account of a gateway: `<gateway>-service-account`.
pub fn service_account(gateway: &str) -> String {
    format!("{gateway}{ACCOUNT_SUFFIX}")
}

/// The gateway that a service account is named after; the inverse of [`service_account`].
pub fn gateway_of(service_account: &str) -> Option<&str> {
    service_account.strip_suffix(ACCOUNT_SUFFIX)
}

/// Whether a Service was made for a gateway. It bears our label, or else its owner shows it: somebody
/// may have taken the label away.
pub fn is_ours(service: &Service) -> bool {
    let metadata = &service.metadata;
    let labels = metadata.labels.as_ref();
    let label = labels.and_then(|labels| labels.get(GATEWAY_LABEL));
    let mut owners = metadata.owner_references.iter().flatten();
    label.is_some() && label == metadata.name.as_ref()
        || owners.any(|owner| {
            owner.controller == Some(true)
                && owner.kind == OWNER_KIND
                && owner.api_version == OWNER_API_VERSION
        })
}

/// Where a gateway listens: one of its addresses, with the ports that are bound there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatewayAddress {
    pub ip: IpAddr,
    /// 15443, or its node port.
    pub service_port: u16,
    /// 8188, or its node port.
    pub discovery_port: u16,
}

/// The addresses of a gateway's Service that are allocated, the one for use inside the mesh first.
pub fn addresses(service: &Service, node_address: IpAddr) -> Vec<GatewayAddress> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let at = |ip| GatewayAddress {
        ip,
        service_port: DEFAULT_SERVICE_PORT,
        discovery_port: DEFAULT_DISCOVERY_PORT,
    };
    let cluster_ip = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok());
    let mut all: Vec<GatewayAddress> = cluster_ip.map(at).into_iter().collect();
    let type_ = spec.type_.as_deref();
    if type_ == Some("LoadBalancer") {
        all.extend(load_balancer_ips(service).map(at));
    }
    let node_port = |number: u16| {
        let mut ports = spec.ports.iter().flatten();
        let port = ports.find(|p| p.port == i32::from(number))?.node_port?;
        u16::try_from(port).ok()
    };
    // As in Kubernetes, the node ports of a load balancer are open too.
    if matches!(type_, Some("NodePort" | "LoadBalancer"))
        && let (Some(service_port), Some(discovery_port)) = (
            node_port(DEFAULT_SERVICE_PORT),
            node_port(DEFAULT_DISCOVERY_PORT),
        )
    {
        all.push(GatewayAddress {
            ip: node_address,
            service_port,
            discovery_port,
        });
    }
    all
}

fn load_balancer_ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    let status = service.status.as_ref();
    let ingress = status
        .and_then(|s| s.load_balancer.as_ref())
        .and_then(|l| l.ingress.as_deref())
        .unwrap_or_default();
    ingress
        .iter()
        .filter_map(|i| i.ip.as_deref().and_then(|ip| ip.parse().ok()))
}

fn gateway_plan(
    control_plane: &ServiceMeshControlPlane,
    kind: GatewayKind,
    name: &str,
    gateway: &Gateway,
) -> Result<GatewayPlan, GatewayProblem> {
    name.parse::<Label>()?;
    if let Some(mode) = gateway.router_mode.as_deref()
        && mode != SNI_DNAT
    {
        return Err(GatewayProblem::RouterMode(mode.to_owned()));
    }
    let empty = GatewayService::default();
    let service = gateway.service.as_ref().unwrap_or(&empty);
    let type_ = service.type_.as_deref().unwrap_or("ClusterIP");
    if !["ClusterIP", "NodePort", "LoadBalancer"].contains(&type_) {
        return Err(GatewayProblem::ServiceType(type_.to_owned()));
    }
    if let Some(ip) = service.load_balancer_ip.as_deref()
        && ip.parse::<IpAddr>().is_err()
    {
        return Err(GatewayProblem::LoadBalancerIp(ip.to_owned()));
    }
    let owner = control_plane.metadata.name.clone().unwrap_or_default();
    let metadata = service.metadata.clone().unwrap_or_default();
    let mut labels = metadata.labels;
    labels.insert(GATEWAY_LABEL.to_owned(), name.to_owned());
    labels.insert(MANAGED_BY_LABEL.to_owned(), "meshfed".to_owned());
    labels.insert(OWNER_LABEL.to_owned(), owner.clone());
    Ok(GatewayPlan {
        kind,
        service_account: service_account(name),
        service: Service {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: control_plane.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: Some(metadata.annotations).filter(|a| !a.is_empty()),
                // Its peers are told before it goes; an egress gateway has nobody to tell.
                finalizers: match kind {
                    GatewayKind::Ingress => Some(vec![FINALIZER.to_owned()]),
                    GatewayKind::Egress => None,
                },
                owner_references: Some(vec![OwnerReference {
                    api_version: OWNER_API_VERSION.to_owned(),
                    kind: OWNER_KIND.to_owned(),
                    name: owner,
                    uid: control_plane.metadata.uid.clone().unwrap_or_default(),
                    controller: Some(true),
                    block_owner_deletion: Some(true),
                }]),
                ..ObjectMeta::default()
            },
            spec: Some(ServiceSpec {
                type_: Some(type_.to_owned()),
                selector: Some(BTreeMap::from([
                    (APP_LABEL.to_owned(), name.to_owned()),
                    (GATEWAY_LABEL.to_owned(), name.to_owned()),
                ])),
                ports: Some(ports(kind, type_, service)?),
                load_balancer_ip: service
                    .load_balancer_ip
                    .clone()
                    .filter(|_| type_ == "LoadBalancer"),
                ..ServiceSpec::default()
            }),
            status: None,
        },
        going: false,
        kept: None,
    })
}

fn ports(
    kind: GatewayKind,
    type_: &str,
    service: &GatewayService,
) -> Result<Vec<ServicePort>, GatewayProblem> {
    let discovery_name = match kind {
        GatewayKind::Ingress => "https-discovery",
        GatewayKind::Egress => "http-discovery",
    };
    let default_name = |port: i32| match port {
        15443 => "tls".to_owned(),
        8188 => discovery_name.to_owned(),
        other => format!("port-{other}"),
    };
    let asked: Vec<GatewayPort> = match &service.ports {
        Some(ports) if !ports.is_empty() => ports.clone(),
        _ => [DEFAULT_SERVICE_PORT, DEFAULT_DISCOVERY_PORT]
            .map(|port| GatewayPort {
                port: port.into(),
                ..GatewayPort::default()
            })
            .to_vec(),
    };
    for required in [DEFAULT_SERVICE_PORT, DEFAULT_DISCOVERY_PORT] {
        match asked
            .iter()
            .filter(|p| p.port == i32::from(required))
            .count()
        {
            0 => return Err(GatewayProblem::MissingPort(required)),
            1 => {}
            _ => return Err(GatewayProblem::DuplicatePort(required.into())),
        }
    }
    let with_node_port = asked.iter().filter(|p| p.node_port.is_some()).count();
    if with_node_port != 0 && with_node_port != asked.len() {
        return Err(GatewayProblem::HalfNodePorts);
    }
    if let Some(bad) = asked
        .iter()
        .filter_map(|p| p.node_port)
        .find(|p| !NODE_PORTS.contains(p))
    {
        return Err(GatewayProblem::NodePortRange(bad));
    }
    Ok(asked
        .into_iter()
        .map(|port| ServicePort {
            name: Some(port.name.unwrap_or_else(|| default_name(port.port))),
            port: port.port,
            target_port: Some(IntOrString::Int(port.port)),
            protocol: Some("TCP".to_owned()),
            node_port: port.node_port.filter(|_| type_ != "ClusterIP"),
            ..ServicePort::default()
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn mk_control_plane(gateways: Value) -> ServiceMeshControlPlane {
        serde_json::from_value(json!({
            "apiVersion": "maistra.io/v2",
            "kind": "ServiceMeshControlPlane",
            "metadata": {"name": "red-mesh", "namespace": "red-mesh-system", "uid": "u"},
            "spec": {"gateways": gateways},
        }))
        .unwrap()
    }

    fn one(gateway: Value) -> Result<GatewayPlan, GatewayProblem> {
        let smcp = mk_control_plane(json!({"additionalIngress": {"ingress-green-mesh": gateway}}));
        desired(&smcp).remove("ingress-green-mesh").unwrap()
    }

    #[test]
    fn a_gateway_without_settings_is_a_cluster_ip_service_with_both_ports() {
        let plan = one(json!({})).unwrap();
        assert_eq!(plan.service_account, "ingress-green-mesh-service-account");
        let spec = plan.service.spec.unwrap();
        assert_eq!(spec.type_.as_deref(), Some("ClusterIP"));
        let ports: Vec<(i32, &str)> = spec
            .ports
            .as_ref()
            .unwrap()
            .iter()
            .map(|p| (p.port, p.name.as_deref().unwrap()))
            .collect();
        assert_eq!(ports, [(15443, "tls"), (8188, "https-discovery")]);
    }

    #[test]
    fn enabled_false_takes_the_gateway_away() {
        let smcp = mk_control_plane(json!({"additionalEgress": {"egress": {"enabled": false}}}));
        assert!(desired(&smcp).is_empty());
    }

    #[test]
    fn labels_and_annotations_reach_the_service() {
        let plan = one(json!({"service": {"metadata": {
            "labels": {"federation.maistra.io/ingress-for": "ingress-green-mesh"},
            "annotations": {"service.beta.kubernetes.io/aws-load-balancer-type": "nlb"},
        }}}))
        .unwrap();
        let metadata = plan.service.metadata;
        assert_eq!(
            metadata.labels.unwrap()["federation.maistra.io/ingress-for"],
            "ingress-green-mesh"
        );
        assert_eq!(
            metadata.annotations.unwrap()["service.beta.kubernetes.io/aws-load-balancer-type"],
            "nlb"
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let with_ports = |ports: Value| one(json!({"service": {"ports": ports}})).unwrap_err();
        assert_eq!(
            with_ports(json!([{"port": 15443}])),
            GatewayProblem::MissingPort(8188)
        );
        assert_eq!(
            with_ports(json!([{"port": 15443, "nodePort": 30510}, {"port": 8188}])),
            GatewayProblem::HalfNodePorts
        );
        assert_eq!(
            with_ports(json!([{"port": 15443, "nodePort": 80}, {"port": 8188, "nodePort": 30000}])),
            GatewayProblem::NodePortRange(80)
        );
        assert_eq!(
            one(json!({"routerMode": "standard"})).unwrap_err(),
            GatewayProblem::RouterMode("standard".to_owned())
        );
        let twice = mk_control_plane(json!({
            "additionalIngress": {"g": {}}, "additionalEgress": {"g": {}},
        }));
        assert_eq!(
            desired(&twice)["g"].clone().unwrap_err(),
            GatewayProblem::NameTakenTwice
        );
    }

    #[test]
    fn a_node_port_service_is_reached_on_the_node_address_too() {
        let mut service = one(json!({"service": {"type": "NodePort", "ports": [
            {"port": 15443, "nodePort": 30510}, {"port": 8188, "nodePort": 32359},
        ]}}))
        .unwrap()
        .service;
        let spec = service.spec.as_mut().unwrap();
        spec.cluster_ip = Some("127.64.1.100".to_owned());
        let found = addresses(&service, "127.64.1.2".parse().unwrap());
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].service_port, 30510);
        assert_eq!(found[1].discovery_port, 32359);
    }
}
