//! ExportedServiceSet: what this mesh shares with one peer.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::selector::{LocalService, NameSelector, ServiceLabelSelector};

/// The services of this mesh that the ServiceMeshPeer of the same name may use.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "federation.maistra.io",
    version = "v1",
    kind = "ExportedServiceSet",
    plural = "exportedservicesets",
    shortname = "ess",
    category = "meshfed",
    namespaced,
    status = "ExportedServiceSetStatus",
    derive = "PartialEq",
    doc = "The services of this mesh that the ServiceMeshPeer of the same name may use.",
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
pub struct ExportedServiceSetSpec {
    /// In order; the first rule that matches a service decides.
    #[schemars(length(max = 1024))]
    pub export_rules: Vec<ExportRule>,
}

/// One way for a service to be exported.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["type"]))]
#[schemars(extend("x-kubernetes-validations" = [
    crate::rule("self.type != 'NameSelector' || has(self.nameSelector)", "type NameSelector needs nameSelector", ".nameSelector"),
    crate::rule("self.type != 'LabelSelector' || has(self.labelSelector)", "type LabelSelector needs labelSelector", ".labelSelector"),
    crate::rule("self.type != 'NameSelector' || !has(self.labelSelector)", "type NameSelector takes no labelSelector", ".labelSelector"),
    crate::rule("self.type != 'LabelSelector' || !has(self.nameSelector)", "type LabelSelector takes no nameSelector", ".nameSelector"),
]))]
pub struct ExportRule {
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["NameSelector", "LabelSelector"]))]
    pub type_: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_selector: Option<NameSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<ServiceLabelSelector>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExportedServiceSetStatus {
    /// The services that are exported now.
    pub exported_services: Vec<ExportedServiceStatus>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExportedServiceStatus {
    /// The name by which the peer asks for it:
    /// `<name>.<namespace>.svc.<peer>-exports.local`.
    pub exported_name: String,
    pub local_service: LocalService,
}
