//! ServiceMeshPeer: one side of the federation of two meshes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;

/// Where the peer listens for discovery unless `spec.remote.discoveryPort` says otherwise.
pub const DEFAULT_DISCOVERY_PORT: u16 = 8188;
/// Where the peer listens for service traffic unless `spec.remote.servicePort` says otherwise.
pub const DEFAULT_SERVICE_PORT: u16 = 15443;

/// Declares the federation of this mesh with another one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "federation.maistra.io",
    version = "v1",
    kind = "ServiceMeshPeer",
    plural = "servicemeshpeers",
    shortname = "smp",
    category = "meshfed",
    namespaced,
    status = "ServiceMeshPeerStatus",
    derive = "PartialEq",
    doc = "Declares the federation of this mesh with another one.",
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,53}[a-z0-9])?$')").message("the name of a ServiceMeshPeer is part of host names: at most 55 of a-z, 0-9 and '-'").field_path(".metadata.name"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["remote", "gateways", "security"]))]
pub struct ServiceMeshPeerSpec {
    pub remote: Remote,
    pub gateways: Gateways,
    pub security: Security,
}

/// The peer's ingress gateways as they are reached from here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["addresses"]))]
pub struct Remote {
    /// IP addresses or DNS names.
    #[schemars(
        length(min = 1, max = 64),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^[A-Za-z0-9:]([-.:A-Za-z0-9]*[A-Za-z0-9:])?$")
        ),
        extend("x-kubernetes-validations" = [serde_json::json!({
            "rule": "self.all(a, a.contains(':') || a.matches('^(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])([.](25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}$') || !a.matches('(^|[.])[0-9]+$'))",
            "message": "each must be an IP address or a DNS name, and no DNS name ends with a number",
        })])
    )]
    pub addresses: Vec<String>,
    /// 8188 unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub discovery_port: Option<i32>,
    /// 15443 unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub service_port: Option<i32>,
}

/// The gateways of this mesh that talk with the peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["ingress", "egress"]))]
pub struct Gateways {
    /// Serves requests from the peer; an entry of `spec.gateways.additionalIngress`.
    pub ingress: GatewayReference,
    /// Sends requests to the peer; an entry of `spec.gateways.additionalEgress`.
    pub egress: GatewayReference,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["name"]))]
pub struct GatewayReference {
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// How the peer proves who it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Security {
    /// The trust domain of the peer. Must not be ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255), regex(pattern = r"^[a-z0-9._-]*$"))]
    pub trust_domain: Option<String>,
    /// The identity of the peer's egress gateway:
    /// `<trust domain>/ns/<namespace>/sa/<service account>`.
    #[serde(rename = "clientID", skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 2048),
        regex(pattern = r"^((spiffe://)?[a-z0-9._-]+/ns/[A-Za-z0-9._-]+/sa/[A-Za-z0-9._-]+)?$")
    )]
    pub client_id: Option<String>,
    /// Holds the root certificate of the peer under `root-cert.pem`; the ConfigMap
    /// `<peer>-ca-root-cert` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_chain: Option<CertificateChain>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateChain {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_group: Option<String>,
    /// `ConfigMap`; another kind is reported in a condition and nothing is connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub name: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceMeshPeerStatus {
    pub discovery_status: DiscoveryStatus,
    /// When the peer's control plane was last heard: an event, or a list that could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_contact: Option<Time>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// The state of both directions of discovery, by control plane instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DiscoveryStatus {
    /// Instances with at least one connection.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub active: Vec<PodDiscoveryStatus>,
    /// Instances without any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inactive: Vec<PodDiscoveryStatus>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodDiscoveryStatus {
    /// The control plane instance of this mesh.
    pub pod: String,
    /// Connections of the peer's control plane to us.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remotes: Vec<RemoteDiscoveryStatus>,
    /// Our connection to the peer's control plane.
    pub watch: WatchStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RemoteDiscoveryStatus {
    pub connected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_connected: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_disconnect: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_event: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_full_sync: Option<Time>,
    /// The address that the connection came from.
    pub source: String,
    /// What the peer says of our exports, if it has the extension of the protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<ImportReport>,
}

/// What became of our exports at the peer, in its own words.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ImportReport {
    /// How many of them it imports.
    pub imported: u32,
    /// Which, by exported namespace and name; the first of them if there are many.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// When it last took a whole list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync: Option<Time>,
    /// What is wrong with what we send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WatchStatus {
    pub connected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_connected: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_disconnect: Option<Time>,
    /// The HTTP status or error of the last attempt that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_disconnect_status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_event: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_full_sync: Option<Time>,
}
