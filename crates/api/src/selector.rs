//! Rule parts that exports and imports share.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Value of a rule's `type` that selects by name.
pub const NAME_SELECTOR: &str = "NameSelector";
/// Value of a rule's `type` that selects by label.
pub const LABEL_SELECTOR: &str = "LabelSelector";

/// A namespace and a name. In a selector, missing, empty and `*` match anything; in an alias they
/// keep what the service has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceKey {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 63),
        regex(pattern = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")
    )]
    pub namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 63),
        regex(pattern = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")
    )]
    pub name: Option<String>,
}

/// Selects services by namespace and name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NameSelector {
    /// Missing, empty or `*` matches any namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 63),
        regex(pattern = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")
    )]
    pub namespace: Option<String>,
    /// Missing, empty or `*` matches any name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 63),
        regex(pattern = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")
    )]
    pub name: Option<String>,
    /// The name and namespace under which a selected service is known on the other side of the
    /// rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<ServiceKey>,
}

/// Selects services by their labels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["selector"]))]
pub struct ServiceLabelSelector {
    /// Missing, empty or `*` selects in all namespaces of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 63),
        regex(pattern = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")
    )]
    pub namespace: Option<String>,
    /// Without any requirement, `{}`, it selects every service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// The first entry that matches gives the alias.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub aliases: Vec<NameSelector>,
}

/// The location of imported services. A zone needs a region, a subzone needs a zone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    crate::rule("!has(self.zone) || self.zone == '' || (has(self.region) && self.region != '')", "if zone is set, region must be set", ".region"),
    crate::rule("!has(self.subzone) || self.subzone == '' || (has(self.zone) && self.zone != '')", "if subzone is set, zone must be set", ".zone"),
]))]
pub struct Locality {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = r"^[^/]*$"))]
    pub region: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = r"^[^/]*$"))]
    pub zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = r"^[^/]*$"))]
    pub subzone: Option<String>,
}

/// A service of this mesh, as named in statuses. All three are empty for a service that is
/// available from a peer and not imported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalService {
    pub hostname: String,
    pub name: String,
    pub namespace: String,
}
