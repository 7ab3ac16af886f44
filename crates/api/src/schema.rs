//! What separates a schema derived from a Rust type from one written for users.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

/// Drops `default` and `nullable`, which the derived schema has for everything that Rust can do
/// without. The API server must store what the user wrote, and treat `null` as unset.
pub(crate) fn as_written_by_users(crd: &mut CustomResourceDefinition) {
    for version in &mut crd.spec.versions {
        if let Some(schema) = version
            .schema
            .as_mut()
            .and_then(|s| s.open_api_v3_schema.as_mut())
        {
            plain(schema);
        }
    }
}

fn plain(schema: &mut JSONSchemaProps) {
    schema.default = None;
    schema.nullable = None;
    for child in schema.properties.iter_mut().flat_map(|p| p.values_mut()) {
        plain(child);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(child)) = &mut schema.additional_properties {
        plain(child);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(child)) = &mut schema.items {
        plain(child);
    }
}
