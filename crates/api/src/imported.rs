//! ImportedServiceSet: what of a peer's exports becomes usable in this mesh.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::selector::{LocalService, Locality, NameSelector};

/// The services of the ServiceMeshPeer of the same name that this mesh uses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "federation.maistra.io",
    version = "v1",
    kind = "ImportedServiceSet",
    plural = "importedservicesets",
    shortname = "iss",
    category = "meshfed",
    namespaced,
    status = "ImportedServiceSetStatus",
    derive = "PartialEq",
    doc = "The services of the ServiceMeshPeer of the same name that this mesh uses.",
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
pub struct ImportedServiceSetSpec {
    /// Stands in place of `svc.<peer>-imports.local` for rules without their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 253),
        regex(pattern = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)?$")
    )]
    pub domain_suffix: Option<String>,
    /// Where the imported services are, for locality load balancing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// In order; the first rule that matches a service decides.
    #[schemars(length(max = 1024))]
    pub import_rules: Vec<ImportRule>,
}

/// One way for a peer's service to be imported.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["type"]))]
#[schemars(extend("x-kubernetes-validations" = [
    crate::rule("has(self.nameSelector)", "type NameSelector needs nameSelector", ".nameSelector"),
    crate::rule("!has(self.importAsLocal) || !self.importAsLocal || (has(self.nameSelector) && has(self.nameSelector.alias) && has(self.nameSelector.alias.__namespace__) && !(self.nameSelector.alias.__namespace__ in ['', '*']))", "importAsLocal needs an alias with a fixed namespace, so that the peer cannot choose the namespace in this mesh", ".nameSelector"),
]))]
pub struct ImportRule {
    /// Only `NameSelector`: a peer's labels are not known here.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["NameSelector"]))]
    pub type_: String,
    /// Join the endpoints of the peer to the local service of the same name, under
    /// `<name>.<namespace>.svc.cluster.local`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import_as_local: Option<bool>,
    /// Stands in place of `svc.<peer>-imports.local`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 253),
        regex(pattern = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)?$")
    )]
    pub domain_suffix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_selector: Option<NameSelector>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ImportedServiceSetStatus {
    /// Everything that the peer exports to this mesh, imported or not.
    pub imported_services: Vec<ImportedServiceStatus>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ImportedServiceStatus {
    /// The name that the exporting mesh gave it.
    pub exported_name: String,
    /// Empty for a service that no rule imports.
    pub local_service: LocalService,
}
