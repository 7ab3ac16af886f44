//! The resources of meshfed as Kubernetes API types, and their CustomResourceDefinitions.
//!
//! Names, fields and statuses are those of OpenShift Service Mesh 2.x (groups `maistra.io` and
//! `federation.maistra.io`) and of Istio. The schemas say what a manifest must hold, so that the API
//! server refuses nonsense with the field's path. The Rust types are more lenient than the
//! schemas: an object that was stored before a rule existed must still be readable, and is then
//! judged by the control plane in a condition.

#![allow(
    clippy::duplicated_attributes,
    reason = "the columns of kube's derive repeat their keys"
)]

pub mod condition;
pub mod control_plane;
pub mod exported;
pub mod imported;
pub mod istio;
pub mod member;
pub mod peer;
mod schema;
pub mod selector;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

pub use condition::Condition;
pub use control_plane::{ServiceMeshControlPlane, ServiceMeshControlPlaneSpec};
pub use exported::{ExportedServiceSet, ExportedServiceSetSpec};
/// What kind an object is of, and its metadata.
pub use kube::Resource;

pub use imported::{ImportedServiceSet, ImportedServiceSetSpec};
pub use member::{ServiceMeshMember, ServiceMeshMemberRoll};
pub use peer::{ServiceMeshPeer, ServiceMeshPeerSpec};

/// Key of the certificate in the ConfigMaps `<peer>-ca-root-cert` and `istio-ca-root-cert`.
pub const ROOT_CERT_KEY: &str = "root-cert.pem";
/// ConfigMap in every member namespace with this mesh's own root.
pub const OWN_ROOT_CONFIG_MAP: &str = "istio-ca-root-cert";
/// Secret with a given certificate authority.
pub const CA_SECRET: &str = "cacerts";

/// A validation rule of a schema: a CEL expression over `self`, what to say when it is false, and the
/// field to blame.
fn rule(expression: &str, message: &str, field_path: &str) -> serde_json::Value {
    serde_json::json!({"rule": expression, "message": message, "fieldPath": field_path})
}

/// Every CustomResourceDefinition that meshfed needs, in a stable order.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut all = vec![
        ServiceMeshControlPlane::crd(),
        ServiceMeshMemberRoll::crd(),
        ServiceMeshMember::crd(),
        ServiceMeshPeer::crd(),
        ExportedServiceSet::crd(),
        ImportedServiceSet::crd(),
    ];
    all.iter_mut().for_each(schema::as_written_by_users);
    all.extend(istio::crds());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_stores_exactly_one_version_and_has_a_status() {
        for crd in crds() {
            let stored = crd.spec.versions.iter().filter(|v| v.storage).count();
            assert_eq!(stored, 1, "{:?}", crd.metadata.name);
            for version in &crd.spec.versions {
                let subresources = version.subresources.as_ref().unwrap();
                assert!(subresources.status.is_some(), "{:?}", crd.metadata.name);
            }
        }
    }

    #[test]
    fn schemas_neither_default_nor_accept_null() {
        let text = serde_json::to_string(&crds()).unwrap();
        assert!(!text.contains("\"default\":"));
        assert!(!text.contains("\"nullable\":"));
        assert!(text.contains(r#""required":["gateways","remote","security"]"#));
        assert!(text.contains(r#""required":["type"]"#));
    }
}
