//! What separates a schema derived from a Rust type from one written for users.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

/// What an expression of a label selector may compare with. The type comes from Kubernetes, which
/// checks them in code.
const OPERATORS: [&str; 4] = ["In", "NotIn", "Exists", "DoesNotExist"];

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
    if let Some(operator) = operator_of_expressions(schema) {
        let each = OPERATORS.iter();
        operator.enum_ = Some(each.map(|name| JSON((*name).into())).collect());
    }
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

/// `operator` of the items of `matchExpressions`.
fn operator_of_expressions(schema: &mut JSONSchemaProps) -> Option<&mut JSONSchemaProps> {
    let expressions = schema.properties.as_mut()?.get_mut("matchExpressions")?;
    match expressions.items.as_mut()? {
        JSONSchemaPropsOrArray::Schema(item) => item.properties.as_mut()?.get_mut("operator"),
        JSONSchemaPropsOrArray::Schemas(_) => None,
    }
}
