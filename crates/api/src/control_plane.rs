//! ServiceMeshControlPlane v2: the mesh itself, as far as federation acts on it.
//!
//! A manifest of OpenShift Service Mesh has many more fields. They are kept as they are
//! (`extra` in each type) and named in a condition by [`ServiceMeshControlPlaneSpec::not_acted_on`].

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::condition::Condition;
use crate::peer::{DEFAULT_DISCOVERY_PORT, DEFAULT_SERVICE_PORT};

/// Fields that no type here names.
pub type Extra = BTreeMap<String, Value>;

/// `spec.version` to the full product version that `kubectl get smcp` shows.
pub const VERSIONS: [(&str, &str); 6] = [
    ("v2.1", "2.1.0"),
    ("v2.2", "2.2.0"),
    ("v2.3", "2.3.0"),
    ("v2.4", "2.4.0"),
    ("v2.5", "2.5.0"),
    ("v2.6", "2.6.0"),
];
/// The version of a control plane that names none.
pub const DEFAULT_VERSION: &str = "v2.6";
/// The profile of a control plane that names none.
pub const DEFAULT_PROFILE: &str = "default";
/// The only router mode of a federation gateway.
pub const SNI_DNAT: &str = "sni-dnat";

/// The ports of a federation gateway: services, and discovery.
const GATEWAY_PORTS: [i32; 2] = [DEFAULT_SERVICE_PORT as i32, DEFAULT_DISCOVERY_PORT as i32];

/// One mesh: its trust domain, its network and its federation gateways.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "maistra.io",
    version = "v2",
    kind = "ServiceMeshControlPlane",
    plural = "servicemeshcontrolplanes",
    shortname = "smcp",
    category = "meshfed",
    namespaced,
    status = "ServiceMeshControlPlaneStatus",
    derive = "PartialEq",
    doc = "One mesh: its trust domain, its network and its federation gateways.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.annotations.readyComponentCount"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Profiles",
        type_ = "string",
        json_path = ".status.appliedSpec.profiles"
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.chartVersion"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceMeshControlPlaneSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["v2.1", "v2.2", "v2.3", "v2.4", "v2.5", "v2.6"]))]
    pub version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profiles: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateways: Option<GatewaysConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security: Option<SecurityConfig>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Cluster {
    /// Shown in the status at once; a gateway says it of itself from its next start.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub name: Option<String>,
    /// The network that a peer's `requestedNetworkView` names.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub network: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaysConfig {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub additional_ingress: BTreeMap<String, Gateway>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub additional_egress: BTreeMap<String, Gateway>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// One federation gateway.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// True unless set; false removes the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// `sni-dnat`, which is also what it is when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["sni-dnat"]))]
    pub router_mode: Option<String>,
    /// Networks whose exported services the gateway shows; egress only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_network_view: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<GatewayService>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Gateway {
    pub fn is_enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }
}

/// The Service of a gateway.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    crate::rule("!has(self.ports) || self.ports.all(p, has(p.nodePort)) || self.ports.all(p, !has(p.nodePort))", "nodePort must be set on both ports, for TLS and for service discovery, or on neither", ".ports"),
    crate::rule("!has(self.ports) || self.ports.size() == 0 || [15443, 8188].all(port, self.ports.exists_one(p, p.port == port))", "15443 and 8188 are both required, each of them once", ".ports"),
]))]
pub struct GatewayService {
    /// ClusterIP unless set.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["ClusterIP", "NodePort", "LoadBalancer"]))]
    pub type_: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ServiceMetadata>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub ports: Option<Vec<GatewayPort>>,
    /// The address that a LoadBalancer gateway asks for.
    #[serde(rename = "loadBalancerIP", skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 45),
        regex(pattern = r"^([0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*)?$")
    )]
    pub load_balancer_ip: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceMetadata {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["port"]))]
pub struct GatewayPort {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub name: Option<String>,
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// The port on every node, from 30000 to 32767.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 30000, max = 32767))]
    pub node_port: Option<i32>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Trust {
    /// Unique for every mesh of a federation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255), regex(pattern = r"^[a-z0-9._-]*$"))]
    pub domain: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl ServiceMeshControlPlaneSpec {
    /// Paths of the fields that are set and that meshfed keeps without acting on them, sorted.
    pub fn not_acted_on(&self) -> Vec<String> {
        let (mut paths, mut without_effect) = (Vec::new(), Vec::new());
        let mut note = |prefix: &str, extra: &Extra| {
            paths.extend(extra.keys().map(|key| format!("{prefix}.{key}")));
        };
        note("spec", &self.extra);
        if let Some(cluster) = &self.cluster {
            note("spec.cluster", &cluster.extra);
        }
        if let Some(security) = &self.security {
            note("spec.security", &security.extra);
            if let Some(trust) = &security.trust {
                note("spec.security.trust", &trust.extra);
            }
        }
        if let Some(gateways) = &self.gateways {
            note("spec.gateways", &gateways.extra);
            let sides = [
                ("additionalIngress", &gateways.additional_ingress),
                ("additionalEgress", &gateways.additional_egress),
            ];
            for (side, named) in sides {
                for (name, gateway) in named {
                    let at = format!("spec.gateways.{side}.{name}");
                    note(&at, &gateway.extra);
                    if side == "additionalIngress" && gateway.requested_network_view.is_some() {
                        without_effect.push(format!("{at}.requestedNetworkView"));
                    }
                    let Some(service) = &gateway.service else {
                        continue;
                    };
                    let type_ = service.type_.as_deref().unwrap_or("ClusterIP");
                    if service.load_balancer_ip.is_some() && type_ != "LoadBalancer" {
                        without_effect.push(format!("{at}.service.loadBalancerIP"));
                    }
                    note(&format!("{at}.service"), &service.extra);
                    if let Some(metadata) = &service.metadata {
                        note(&format!("{at}.service.metadata"), &metadata.extra);
                    }
                    for (i, port) in service.ports.iter().flatten().enumerate() {
                        let at = format!("{at}.service.ports[{i}]");
                        note(&at, &port.extra);
                        if !GATEWAY_PORTS.contains(&port.port) {
                            without_effect.push(at);
                        } else if port.node_port.is_some() && type_ == "ClusterIP" {
                            without_effect.push(format!("{at}.nodePort"));
                        }
                    }
                }
            }
        }
        paths.append(&mut without_effect);
        paths.sort();
        paths
    }

    /// The version to report: what `spec.version` names, else [`DEFAULT_VERSION`]'s; `None` for a
    /// version that is not ours.
    pub fn product_version(&self) -> Option<&'static str> {
        let asked = self.version.as_deref().unwrap_or(DEFAULT_VERSION);
        VERSIONS
            .iter()
            .find(|(short, _)| *short == asked)
            .map(|(_, full)| *full)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceMeshControlPlaneStatus {
    /// For `kubectl get`: `readyComponentCount`, such as `4/4`.
    pub annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    pub readiness: Readiness,
    /// The full product version.
    pub chart_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    pub applied_spec: AppliedSpec,
}

/// The part of the effective spec that is reported back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AppliedSpec {
    pub profiles: Vec<String>,
    pub version: String,
    /// Name and network of the cluster, for whoever looks for a fault.
    #[serde(skip_serializing_if = "AppliedCluster::is_empty")]
    pub cluster: AppliedCluster,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AppliedCluster {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
}

impl AppliedCluster {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Readiness {
    pub components: Components,
}

/// Names of the parts of the mesh by their state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Components {
    pub pending: Vec<String>,
    pub ready: Vec<String>,
    pub unready: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_kept_and_not_acted_on_are_named_by_their_path() {
        let spec: ServiceMeshControlPlaneSpec = serde_json::from_value(serde_json::json!({
            "version": "v2.6",
            "runtime": {"defaults": {"container": {"imagePullPolicy": "Always"}}},
            "gateways": {
                "enabled": true,
                "additionalEgress": {"egress-green-mesh": {"volumes": [], "service": {"ports": [{"port": 15443, "targetPort": 1}]}}},
            },
        }))
        .unwrap();
        assert_eq!(
            spec.not_acted_on(),
            [
                "spec.gateways.additionalEgress.egress-green-mesh.service.ports[0].targetPort",
                "spec.gateways.additionalEgress.egress-green-mesh.volumes",
                "spec.gateways.enabled",
                "spec.runtime",
            ]
        );
        assert_eq!(spec.product_version(), Some("2.6.0"));
        let again = serde_json::to_value(&spec).unwrap();
        assert_eq!(
            again["runtime"]["defaults"]["container"]["imagePullPolicy"],
            "Always"
        );
    }

    #[test]
    fn fields_that_have_no_effect_beside_others_are_named_too() {
        let spec: ServiceMeshControlPlaneSpec = serde_json::from_value(serde_json::json!({
            "gateways": {"additionalIngress": {"in": {
                "requestedNetworkView": ["n"],
                "service": {
                    "loadBalancerIP": "192.0.2.1",
                    "ports": [{"port": 15443, "nodePort": 30001}, {"port": 80}],
                },
            }}},
        }))
        .unwrap();
        assert_eq!(
            spec.not_acted_on(),
            [
                "spec.gateways.additionalIngress.in.requestedNetworkView",
                "spec.gateways.additionalIngress.in.service.loadBalancerIP",
                "spec.gateways.additionalIngress.in.service.ports[0].nodePort",
                "spec.gateways.additionalIngress.in.service.ports[1]",
            ]
        );
    }
}
