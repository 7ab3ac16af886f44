//! From a CustomResourceDefinition to a kind.

use std::sync::Arc;

use bytes::Bytes;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use serde_json::Value;

use super::{Column, NameForm, OpenApi, ResourceType, Source, Strategy, Version, columns};
use crate::{
    jsonpath::{JsonPath, JsonPathError},
    names,
    schema::{Compiler, Schema, SchemaError},
    store::{KindId, StoreKind},
};

/// Why a definition cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    #[error("its name must be <plural>.<group>")]
    Name,
    #[error("the names of its group, plural or versions are not DNS names")]
    Names,
    #[error("it must have served versions, and exactly one that is stored")]
    Versions,
    #[error("conversion between versions by webhook is not supported")]
    Conversion,
    #[error("version {version}: {source}")]
    Schema {
        version: String,
        #[source]
        source: SchemaError,
    },
    #[error("version {version}: column {column}: {source}")]
    Column {
        version: String,
        column: String,
        #[source]
        source: JsonPathError,
    },
    #[error("version {0} has no schema")]
    NoSchema(String),
}

/// On a definition: a warning for everybody who writes an object of that kind.
const WARNING_ANNOTATION: &str = "meshfed.io/warning";

/// Reads a definition. `object_meta` is the schema of metadata.
pub fn read(
    crd: &CustomResourceDefinition,
    object_meta: &Arc<Schema>,
) -> Result<ResourceType, CrdError> {
    let spec = &crd.spec;
    let expected = format!("{}.{}", spec.names.plural, spec.group);
    if crd.metadata.name.as_deref() != Some(expected.as_str()) {
        return Err(CrdError::Name);
    }
    let mut labels = spec.versions.iter().map(|version| &version.name);
    if !names::is_dns_subdomain(&spec.group)
        || !names::is_dns_label(&spec.names.plural)
        || !labels.all(|name| names::is_dns_label(name))
    {
        return Err(CrdError::Names);
    }
    if spec
        .conversion
        .as_ref()
        .is_some_and(|conversion| conversion.strategy != "None")
    {
        return Err(CrdError::Conversion);
    }
    let stored = spec.versions.iter().filter(|version| version.storage);
    if stored.count() != 1 || !spec.versions.iter().any(|version| version.served) {
        return Err(CrdError::Versions);
    }
    let kind = &spec.names.kind;
    let mut versions = Vec::new();
    for version in spec.versions.iter().filter(|version| version.served) {
        versions.push(read_version(&spec.group, kind, version, object_meta)?);
    }
    versions.sort_by_key(|version| std::cmp::Reverse(priority(&version.name)));
    let selectable = spec.versions.iter().flat_map(|version| {
        let fields = version.selectable_fields.iter().flatten();
        fields.map(|field| field.json_path.trim_start_matches('.').to_owned())
    });
    let mut selectable: Vec<String> = selectable.collect();
    selectable.sort();
    selectable.dedup();
    let annotations = crd.metadata.annotations.as_ref();
    let or = |given: &Option<String>, otherwise: String| given.clone().unwrap_or(otherwise);
    Ok(ResourceType {
        group: spec.group.clone(),
        plural: spec.names.plural.clone(),
        singular: or(&spec.names.singular, kind.to_lowercase()),
        kind: kind.clone(),
        list_kind: or(&spec.names.list_kind, format!("{kind}List")),
        short_names: spec.names.short_names.clone().unwrap_or_default(),
        categories: spec.names.categories.clone().unwrap_or_default(),
        namespaced: spec.scope == "Namespaced",
        store: KindId(0),
        stored_as: StoreKind::default(),
        versions,
        selectable,
        name_form: NameForm::Subdomain,
        strategy: Strategy {
            prepare: |_, _| {},
            validate: |_, _, _| {},
        },
        custom: true,
        generation: true,
        read_only: false,
        status_on_create: false,
        warning: annotations.and_then(|all| all.get(WARNING_ANNOTATION).cloned()),
    })
}

fn read_version(
    group: &str,
    kind: &str,
    version: &CustomResourceDefinitionVersion,
    object_meta: &Arc<Schema>,
) -> Result<Version, CrdError> {
    let name = &version.name;
    let raw = version
        .schema
        .as_ref()
        .and_then(|schema| schema.open_api_v3_schema.as_ref())
        .and_then(|schema| serde_json::to_value(schema).ok())
        .ok_or_else(|| CrdError::NoSchema(name.clone()))?;
    let schema =
        Compiler::custom_resource(&raw, object_meta).map_err(|source| CrdError::Schema {
            version: name.clone(),
            source,
        })?;
    let openapi = OpenApi::Custom(Bytes::from(raw.to_string()));
    let mut made = Version::new(group, name, kind, schema, openapi);
    let subresources = version.subresources.as_ref();
    made.status = subresources.is_some_and(|subresources| subresources.status.is_some());
    if version.deprecated == Some(true) {
        let standard = format!("{group}/{name} {kind} is deprecated");
        made.deprecation = Some(version.deprecation_warning.clone().unwrap_or(standard));
    }
    made.columns.push(columns::name());
    let given = version.additional_printer_columns.as_deref();
    for column in given.unwrap_or_default() {
        let path = JsonPath::parse(&column.json_path).map_err(|source| CrdError::Column {
            version: name.clone(),
            column: column.name.clone(),
            source,
        })?;
        made.columns.push(Column {
            name: column.name.clone(),
            kind: column.type_.clone(),
            format: column.format.clone().unwrap_or_default(),
            description: column.description.clone().unwrap_or_default(),
            priority: column.priority.unwrap_or_default().max(0).unsigned_abs(),
            source: Source::Path(path),
        });
    }
    if given.is_none_or(|columns| columns.is_empty()) {
        made.columns.push(columns::age_column());
    }
    Ok(made)
}

/// Orders versions as Kubernetes does: v2, v1, v1beta1, v1alpha3, and then others.
pub fn priority(version: &str) -> (u8, u64, u64) {
    let number = |text: &str| text.parse::<u64>().ok();
    let parse = || {
        let rest = version.strip_prefix('v')?;
        if let Some(major) = number(rest) {
            return Some((3, major, 0));
        }
        if let Some((major, minor)) = rest.split_once("beta") {
            return Some((2, number(major)?, number(minor)?));
        }
        let (major, minor) = rest.split_once("alpha")?;
        Some((1, number(major)?, number(minor)?))
    };
    parse().unwrap_or_default()
}

/// The definition as an object of the API, established.
pub fn object(crd: &CustomResourceDefinition, now: &str) -> Option<Value> {
    let mut value = serde_json::to_value(crd).ok()?;
    let condition = |kind: &str, reason: &str, message: &str| {
        serde_json::json!({"type": kind, "status": "True", "reason": reason,
            "message": message, "lastTransitionTime": now})
    };
    value["status"] = serde_json::json!({
        "acceptedNames": value["spec"]["names"],
        "conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
        "storedVersions": crd.spec.versions.iter().filter(|v| v.storage).map(|v| &v.name).collect::<Vec<_>>(),
    });
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::priority;

    #[test]
    fn versions_are_ordered_by_stability_then_number() {
        let mut versions = ["v1alpha3", "v1", "zeta", "v2", "v1beta1", "v1beta2"];
        versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        assert_eq!(
            versions,
            ["v2", "v1", "v1beta2", "v1beta1", "v1alpha3", "zeta"]
        );
    }
}
