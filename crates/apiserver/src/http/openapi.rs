//! OpenAPI v3: a document for each group's version. kubectl reads from it what fields there are
//! (`explain`), which lists are merged (`apply`), and that unknown fields are noticed here.

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use serde_json::{Map, Value, json};

use super::{ResponseBody, discovery::groups};
use crate::{
    json,
    registry::{OpenApi, Registry, ResourceType, Version},
    schema::builtin,
};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const REFERENCE: &str = "#/components/schemas/";

/// OpenAPI v2 without a definition. kubectl asks for it, in protobuf only, before it checks the
/// elements of a `List` on its own; what it finds no definition for it leaves to the server.
pub fn version_2(accept: &str) -> Response<ResponseBody> {
    const TITLE: &str = "meshfed";
    const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
    if !accept.contains("protobuf") {
        let document = json!({
            "swagger": "2.0",
            "info": {"title": TITLE, "version": VERSION},
            "paths": {},
            "definitions": {},
        });
        return super::document(&document);
    }
    // Both fields are texts, as are those of `info`, the second one; all are shorter than 128.
    let field = |number: u8, bytes: &[u8]| {
        let mut field = vec![number << 3 | 2, bytes.len() as u8];
        field.extend_from_slice(bytes);
        field
    };
    let info = [field(1, TITLE.as_bytes()), field(2, VERSION.as_bytes())].concat();
    let document = [field(1, b"2.0"), field(2, &info)].concat();
    let mut response = Response::new(ResponseBody::whole(document));
    let kind = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Where the documents are. The hash in a document's address changes with it.
pub fn index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for (group, versions) in groups(registry) {
        for version in versions {
            let place = if group.is_empty() {
                format!("api/{version}")
            } else {
                format!("apis/{group}/{version}")
            };
            let hash = hash(registry, &group, &version);
            let url = format!("/openapi/v3/{place}?hash={hash:016X}");
            paths.insert(place, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// Builtin schemas change with the release only, others with their definition.
fn hash(registry: &Registry, group: &str, version: &str) -> u64 {
    // FNV-1a: short, and the same in each process.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    add(env!("CARGO_PKG_VERSION").as_bytes());
    add(group.as_bytes());
    add(version.as_bytes());
    for (ty, version) in served(registry, group, version) {
        add(ty.plural.as_bytes());
        if let OpenApi::Custom(schema) = &version.openapi {
            add(schema);
        }
    }
    hash
}

fn served<'a>(
    registry: &'a Registry,
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = (&'a ResourceType, &'a Version)> {
    let types = registry.types().filter(move |ty| ty.group == group);
    types.filter_map(move |ty| Some((&**ty, ty.version(version)?)))
}

/// The document of a group's version. It is made anew each time: clients keep it, and it is large.
pub fn document(registry: &Registry, group: &str, version: &str) -> Option<Bytes> {
    let known = groups(registry);
    if !known.get(group)?.iter().any(|known| known == version) {
        return None;
    }
    let mut definitions = builtin::definitions();
    let mut schemas = Map::new();
    let mut paths = Map::new();
    let mut wanted = vec![format!("{META}.ObjectMeta"), format!("{META}.ListMeta")];
    definitions.insert(format!("{META}.ListMeta"), list_meta());
    for (ty, version) in served(registry, group, version) {
        let name = definition_name(ty, version);
        let schema = match &version.openapi {
            OpenApi::Builtin(_) => definitions.get(&name).cloned().unwrap_or_default(),
            OpenApi::Custom(raw) => custom(raw),
        };
        let kind = json!([{"group": ty.group, "kind": ty.kind, "version": version.name}]);
        let list_kind = json!([{"group": ty.group, "kind": ty.list_kind, "version": version.name}]);
        references(&schema, &mut wanted);
        let mut schema = schema;
        schema["x-kubernetes-group-version-kind"] = kind;
        schemas.insert(name.clone(), schema);
        let mut list = list_schema(&name);
        list["x-kubernetes-group-version-kind"] = list_kind;
        schemas.insert(list_name(&name), list);
        add_paths(ty, version, &name, &mut paths);
    }
    while let Some(name) = wanted.pop() {
        if !schemas.contains_key(&name)
            && let Some(schema) = definitions.get(&name)
        {
            references(schema, &mut wanted);
            schemas.insert(name, schema.clone());
        }
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "meshfed", "version": concat!("v", env!("CARGO_PKG_VERSION"))},
        "paths": paths,
        "components": {"schemas": schemas},
    });
    Some(Bytes::from(document.to_string()))
}

/// `io.k8s.api.core.v1.Service`, or the reversed group, the version and the kind.
fn definition_name(ty: &ResourceType, version: &Version) -> String {
    match &version.openapi {
        OpenApi::Builtin(name) => builtin::full_name(name),
        OpenApi::Custom(_) => {
            let mut labels: Vec<&str> = ty.group.split('.').collect();
            labels.reverse();
            format!("{}.{}.{}", labels.join("."), version.name, ty.kind)
        }
    }
}

fn list_name(name: &str) -> String {
    format!("{name}List")
}

/// The schema of a resource definition, with what every object has.
fn custom(raw: &Bytes) -> Value {
    let mut schema: Value = serde_json::from_slice(raw).unwrap_or_else(|_| json!({}));
    let text = |description: &str| json!({"type": "string", "description": description});
    let fields = [
        (
            "apiVersion",
            text("The version of the schema that this object has."),
        ),
        ("kind", text("The kind of this object.")),
        (
            "metadata",
            json!({
                "allOf": [{"$ref": format!("{REFERENCE}{META}.ObjectMeta")}],
                "description": "What every object has: names, labels, owners.",
                "default": {},
            }),
        ),
    ];
    if let Some(schema) = schema.as_object_mut() {
        let properties = schema.entry("properties").or_insert_with(|| json!({}));
        if let Some(properties) = properties.as_object_mut() {
            for (name, field) in fields {
                properties.insert(name.to_owned(), field);
            }
        }
    }
    schema
}

fn list_schema(item: &str) -> Value {
    json!({
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"$ref": format!("{REFERENCE}{META}.ListMeta")},
            "items": {"type": "array", "items": {"$ref": format!("{REFERENCE}{item}")}},
        },
    })
}

fn list_meta() -> Value {
    json!({
        "type": "object",
        "description": "What every list has.",
        "properties": {
            "continue": {"type": "string"},
            "remainingItemCount": {"type": "integer", "format": "int64"},
            "resourceVersion": {"type": "string"},
            "selfLink": {"type": "string"},
        },
    })
}

/// Adds the names of the definitions that a schema refers to.
fn references(schema: &Value, names: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            if let Some(name) = json::text(schema, &["$ref"]).strip_prefix(REFERENCE) {
                names.push(name.to_owned());
            }
            fields.values().for_each(|field| references(field, names));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, names)),
        _ => {}
    }
}

fn add_paths(ty: &ResourceType, version: &Version, name: &str, paths: &mut Map<String, Value>) {
    let base = if ty.group.is_empty() {
        format!("/api/{}", version.name)
    } else {
        format!("/apis/{}/{}", ty.group, version.name)
    };
    let scope = if ty.namespaced {
        "/namespaces/{namespace}"
    } else {
        ""
    };
    let collection = format!("{base}{scope}/{}", ty.plural);
    let mut parameters = Vec::new();
    if ty.namespaced {
        parameters.push(parameter("namespace", "path"));
        let everywhere = json!({"get": operation(ty, version, "list", &list_name(name))});
        paths.insert(format!("{base}/{}", ty.plural), everywhere);
    }
    let mut all = json!({
        "get": operation(ty, version, "list", &list_name(name)),
        "parameters": parameters.clone(),
    });
    parameters.push(parameter("name", "path"));
    let mut one = json!({
        "get": operation(ty, version, "get", name),
        "parameters": parameters.clone(),
    });
    if !ty.read_only {
        all["post"] = operation(ty, version, "post", name);
        all["delete"] = operation(ty, version, "deletecollection", name);
        one["put"] = operation(ty, version, "put", name);
        one["patch"] = operation(ty, version, "patch", name);
        one["delete"] = operation(ty, version, "delete", name);
    }
    paths.insert(collection.clone(), all);
    paths.insert(format!("{collection}/{{name}}"), one);
    if version.status && !ty.read_only {
        let status = json!({
            "get": operation(ty, version, "get", name),
            "put": operation(ty, version, "put", name),
            "patch": operation(ty, version, "patch", name),
            "parameters": parameters,
        });
        paths.insert(format!("{collection}/{{name}}/status"), status);
    }
}

fn parameter(name: &str, place: &str) -> Value {
    json!({
        "name": name,
        "in": place,
        "required": place == "path",
        "schema": {"type": "string", "uniqueItems": true},
    })
}

fn operation(ty: &ResourceType, version: &Version, action: &str, answer: &str) -> Value {
    let reference = json!({"$ref": format!("{REFERENCE}{answer}")});
    let mut operation = json!({
        "operationId": format!("{action}{}{}{}", ty.group.replace('.', "_"), version.name, ty.kind),
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {
            "group": ty.group, "kind": ty.kind, "version": version.name,
        },
        "responses": {"200": {
            "description": "OK",
            "content": {"application/json": {"schema": reference}},
        }},
    });
    let media: &[&str] = match action {
        "post" | "put" => &["application/json", "application/yaml"],
        "patch" if ty.custom => &[
            "application/json-patch+json",
            "application/merge-patch+json",
        ],
        "patch" => &[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        ],
        _ => return operation,
    };
    operation["parameters"] = ["dryRun", "fieldManager", "fieldValidation"]
        .iter()
        .map(|name| parameter(name, "query"))
        .collect();
    let content: Map<String, Value> = media
        .iter()
        .map(|media| ((*media).to_owned(), json!({"schema": reference})))
        .collect();
    operation["requestBody"] = json!({"content": content, "required": true});
    operation
}
