//! ServiceMeshMemberRoll and ServiceMeshMember: which namespaces belong to the mesh.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;

/// The only name of a ServiceMeshMemberRoll that counts, as in OpenShift Service Mesh.
pub const MEMBER_ROLL_NAME: &str = "default";

/// The member namespaces of the mesh whose control plane is in the same namespace.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "maistra.io",
    version = "v1",
    kind = "ServiceMeshMemberRoll",
    plural = "servicemeshmemberrolls",
    shortname = "smmr",
    category = "meshfed",
    namespaced,
    status = "ServiceMeshMemberRollStatus",
    derive = "PartialEq",
    doc = "The member namespaces of the mesh whose control plane is in the same namespace.",
    validation = Rule::new("self.metadata.name == 'default'").message("a ServiceMeshMemberRoll must be named default").field_path(".metadata.name"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.annotations.configuredMemberCount"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Members", type_ = "string", json_path = ".status.members", priority = 1)
)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceMeshMemberRollSpec {
    /// Namespaces by name; `*` for all but the control plane's and those of Kubernetes.
    #[schemars(
        length(max = 4096),
        inner(
            length(max = 63),
            regex(pattern = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")
        )
    )]
    pub members: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceMeshMemberRollStatus {
    /// For `kubectl get`: `configuredMemberCount`, such as `1/2`.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// All namespaces that are asked for.
    pub members: Vec<String>,
    /// Those of them that exist.
    pub configured_members: Vec<String>,
    /// Those that do not exist yet.
    pub pending_members: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Makes its namespace a member of the mesh that it names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "maistra.io",
    version = "v1",
    kind = "ServiceMeshMember",
    plural = "servicemeshmembers",
    shortname = "smm",
    category = "meshfed",
    namespaced,
    status = "ServiceMeshMemberStatus",
    derive = "PartialEq",
    doc = "Makes its namespace a member of the mesh that it names.",
    validation = Rule::new("self.metadata.name == 'default'").message("a ServiceMeshMember must be named default").field_path(".metadata.name"),
    printcolumn(name = "Control Plane", type_ = "string", json_path = ".spec.controlPlaneRef.name"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["controlPlaneRef"]))]
pub struct ServiceMeshMemberSpec {
    pub control_plane_ref: ControlPlaneRef,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["name", "namespace"]))]
pub struct ControlPlaneRef {
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceMeshMemberStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
