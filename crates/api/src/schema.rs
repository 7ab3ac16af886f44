//! What separates a schema derived from a Rust type from one written for users.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

/// What an expression of a label selector may compare with.
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

/// Keys and values of labels. Of `matchLabels` the schema can say nothing of the keys.
const LABEL_KEY: &str = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
const LABEL_VALUE: &str = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";
const MAX_LABEL_KEY: i64 = 253 + 1 + 63;
const MAX_LABEL_VALUE: i64 = 63;

fn plain(schema: &mut JSONSchemaProps) {
    schema.default = None;
    schema.nullable = None;
    if let Some(properties) = schema.properties.as_mut() {
        label_selector(properties);
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

/// What Kubernetes checks of a label selector in code.
fn label_selector(properties: &mut BTreeMap<String, JSONSchemaProps>) {
    if let Some(Some(JSONSchemaPropsOrBool::Schema(value))) =
        (properties.get_mut("matchLabels")).map(|labels| labels.additional_properties.as_mut())
    {
        form(value, LABEL_VALUE, MAX_LABEL_VALUE);
    }
    let expressions = properties.get_mut("matchExpressions");
    let Some(expression) = expressions
        .and_then(items)
        .and_then(|e| e.properties.as_mut())
    else {
        return;
    };
    if let Some(operator) = expression.get_mut("operator") {
        let each = OPERATORS.iter();
        operator.enum_ = Some(each.map(|name| JSON((*name).into())).collect());
    }
    if let Some(key) = expression.get_mut("key") {
        form(key, LABEL_KEY, MAX_LABEL_KEY);
    }
    if let Some(value) = expression.get_mut("values").and_then(items) {
        form(value, LABEL_VALUE, MAX_LABEL_VALUE);
    }
}

fn form(text: &mut JSONSchemaProps, pattern: &str, longest: i64) {
    text.pattern = Some(pattern.to_owned());
    text.max_length = Some(longest);
}

fn items(list: &mut JSONSchemaProps) -> Option<&mut JSONSchemaProps> {
    match list.items.as_mut()? {
        JSONSchemaPropsOrArray::Schema(item) => Some(item),
        JSONSchemaPropsOrArray::Schemas(_) => None,
    }
}
