//! What applying a manifest would store, judged as the server judges it, without a server.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Map, Value};

use crate::{
    api::Target,
    error::{ApiError, OpenError},
    json::{self, ParseError},
    patch::{self, Merging},
    registry::Registry,
    verbs::{self, Body, Part, Validation, admit, forget_system_fields},
};

/// Where kubectl keeps what it applied the last time.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Why a manifest would be refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("it is no YAML or JSON: {0}")]
    Form(String),
    /// With where it is.
    #[error("{0} is no object with apiVersion, kind and metadata.name")]
    NoObject(String),
    /// A group that the server serves, and a kind or version in it that it does not.
    #[error("no kind {kind:?} is known in {api_version:?}")]
    Kind { api_version: String, kind: String },
    #[error("{0}")]
    Refused(String),
}

/// Which object a manifest describes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManifestKey {
    /// Empty for the core group.
    pub group: String,
    pub kind: String,
    /// Empty for kinds without namespaces.
    pub namespace: String,
    pub name: String,
}

/// One document.
#[derive(Debug, Clone)]
pub struct Manifest {
    pub key: ManifestKey,
    object: Value,
    target: Option<Target>,
}

impl Manifest {
    /// Whether the server has a kind for it; what it has none for cannot be judged.
    pub fn is_known(&self) -> bool {
        self.target.is_some()
    }
}

/// The kinds by which manifests are judged.
#[derive(Debug)]
pub struct Manifests(Registry);

impl Manifests {
    /// The builtin kinds and those of the definitions.
    pub fn new(crds: &[CustomResourceDefinition]) -> Result<Self, OpenError> {
        Registry::new(crds).map(Self)
    }

    /// Reads YAML or JSON with any number of documents; those of kind `List` are taken apart. Objects
    /// without a namespace that need one get `namespace`, and items of a list of one kind that kind.
    pub fn read(&self, text: &str, namespace: &str) -> Result<Vec<Manifest>, ManifestError> {
        let documents = json::parse_documents(text).map_err(|error| match error {
            ParseError::Refused(why) => ManifestError::Refused(why),
            ParseError::Json(_) | ParseError::Yaml(_) => ManifestError::Form(error.to_string()),
        })?;
        let mut all = Vec::new();
        for (index, mut document) in documents.into_iter().enumerate() {
            let number = index + 1;
            if document.is_null() {
                continue;
            }
            let kind = json::text(&document, &["kind"]).to_owned();
            let items = match (kind.strip_suffix("List"), document.get_mut("items")) {
                (Some(kind), Some(Value::Array(items))) => Some((kind, std::mem::take(items))),
                _ => None,
            };
            let Some((kind, items)) = items else {
                all.push(self.one(document, namespace, || format!("document {number}"))?);
                continue;
            };
            let api_version = json::text(&document, &["apiVersion"]);
            for (index, mut item) in items.into_iter().enumerate() {
                of_list(&mut item, api_version, kind);
                let place = || format!("item {} of document {number}", index + 1);
                all.push(self.one(item, namespace, place)?);
            }
        }
        Ok(all)
    }

    fn one(
        &self,
        object: Value,
        namespace: &str,
        place: impl Fn() -> String,
    ) -> Result<Manifest, ManifestError> {
        let text = |path: &[&str]| json::text(&object, path).to_owned();
        let (api_version, kind) = (text(&["apiVersion"]), text(&["kind"]));
        let name = text(&["metadata", "name"]);
        if api_version.is_empty() || kind.is_empty() || name.is_empty() {
            return Err(ManifestError::NoObject(place()));
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let of_kind = |ty: &&std::sync::Arc<crate::registry::ResourceType>| {
            ty.group == group && ty.kind == kind
        };
        let ty = self.0.types().find(of_kind);
        let known = ty.and_then(|ty| {
            let version = ty.versions.iter().position(|v| v.name == version)?;
            Some((ty, version))
        });
        if known.is_none() && self.0.types().any(|ty| ty.group == group) {
            return Err(ManifestError::Kind { api_version, kind });
        }
        let given = text(&["metadata", "namespace"]);
        let namespace = match ty {
            Some(ty) if !ty.namespaced => String::new(),
            _ if given.is_empty() => namespace.to_owned(),
            _ => given,
        };
        let key = ManifestKey {
            group: group.to_owned(),
            kind,
            namespace: namespace.clone(),
            name: name.clone(),
        };
        let target = known.map(|(ty, version)| Target {
            ty: ty.clone(),
            version,
            namespace,
            name,
        });
        Ok(Manifest {
            key,
            object,
            target,
        })
    }

    /// The object that `kubectl apply` of the manifest over `live` gives, or over nothing. Fields that
    /// somebody else set stay; those that were applied before and are not in the manifest any more go.
    /// Of builtin kinds lists are merged where Kubernetes has a key for it, such as the ports of a
    /// Service by number; other lists are replaced whole. What only a server can give, such as an
    /// address, is left out of what is new.
    ///
    /// # Errors
    ///
    /// The server would refuse it: by its schema, with unknown fields as kubectl asks for it, by a
    /// rule, or for a `resourceVersion` that is not that of `live`.
    pub fn apply(&self, manifest: &Manifest, live: Option<&Value>) -> Result<Value, ManifestError> {
        let Some(target) = &manifest.target else {
            let api_version = json::text(&manifest.object, &["apiVersion"]).to_owned();
            let kind = manifest.key.kind.clone();
            return Err(ManifestError::Kind { api_version, kind });
        };
        let applied = match live {
            None => create(target, manifest.object.clone()),
            Some(live) => update(target, &manifest.object, live),
        };
        let applied = applied.map_err(|error| ManifestError::Refused(error.to_string()))?;
        Ok(target.version().to_storage(applied))
    }
}

/// The server names kind and version once for all items of a list of one kind. As kubectl, both are taken
/// from the list where either is missing.
fn of_list(item: &mut Value, api_version: &str, kind: &str) {
    let complete = ["apiVersion", "kind"]
        .iter()
        .all(|field| !json::text(item, &[field]).is_empty());
    if let (false, false, Some(item)) = (complete, kind.is_empty(), item.as_object_mut()) {
        item.insert("apiVersion".to_owned(), api_version.into());
        item.insert("kind".to_owned(), kind.into());
    }
}

fn create(target: &Target, wanted: Value) -> Result<Value, ApiError> {
    let mut new = annotated(strict(target, wanted)?);
    if let Some(metadata) = json::metadata_mut(&mut new) {
        // kubectl creates with what it was given, but for this.
        metadata.shift_remove("resourceVersion");
    }
    forget_system_fields(target, &mut new)?;
    admit::complete(target, &mut new, None)?;
    Ok(new)
}

fn update(target: &Target, wanted: &Value, live: &Value) -> Result<Value, ApiError> {
    let live = target.version().read_stored(live.clone());
    let annotations = json::metadata(&live).get("annotations");
    let last = annotations
        .and_then(|all| all.get(LAST_APPLIED)?.as_str())
        .and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok())
        .unwrap_or_default();
    let mut wanted = wanted.clone();
    admit::identify(target, &mut wanted)?;
    let wanted = annotated(wanted);
    let mut merged = live.clone();
    let merging = if target.ty.custom {
        Merging::Plain
    } else {
        Merging::Strategic(&target.version().schema)
    };
    let nothing = Map::new();
    let wanted = wanted.as_object().unwrap_or(&nothing);
    patch::apply(merging, &last, wanted, &mut merged)
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let merged = strict(target, merged)?;
    let version = |object: &Value| json::text(object, &["metadata", "resourceVersion"]).to_owned();
    if version(&merged) != version(&live) {
        return Err(ApiError::modified(target.subject()));
    }
    verbs::settle(target, Part::Main, &live, merged)
}

/// An object of the target's, with no field that the schema does not know.
fn strict(target: &Target, value: Value) -> Result<Value, ApiError> {
    let mut body = Body {
        value,
        duplicates: Vec::new(),
    };
    admit::identify(target, &mut body.value)?;
    admit::strip(target, &mut body, Validation::Strict)?;
    Ok(body.value)
}

/// With the note of what is applied that kubectl leaves for the next time.
fn annotated(mut object: Value) -> Value {
    let Some(metadata) = json::metadata_mut(&mut object) else {
        return object;
    };
    let annotations = metadata
        .entry("annotations")
        .or_insert_with(|| Map::new().into());
    if annotations.is_null() {
        *annotations = Map::new().into();
    }
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.shift_remove(LAST_APPLIED);
    }
    let note = object.to_string() + "\n";
    if let Some(annotations) = object
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    {
        annotations.insert(LAST_APPLIED.to_owned(), note.into());
    }
    object
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn manifests() -> Manifests {
        Manifests::new(&[]).unwrap()
    }

    fn config_map(data: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
    }

    fn one(object: &Value) -> Manifest {
        let all = manifests().read(&object.to_string(), "home").unwrap();
        all.into_iter().next().unwrap()
    }

    #[test]
    fn documents_lists_and_namespaces_are_read_as_kubectl_does() {
        let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}
- {apiVersion: v1, kind: Namespace, metadata: {name: b}}
---
# nothing
---
{apiVersion: v1, kind: Service, metadata: {name: c, namespace: d}, spec: {ports: [{port: 80}]}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: e}}
";
        let all = manifests().read(text, "home").unwrap();
        let shown: Vec<_> = all
            .iter()
            .map(|m| {
                format!(
                    "{} {}/{} {}",
                    m.key.kind,
                    m.key.namespace,
                    m.key.name,
                    m.is_known()
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                "ConfigMap home/a true",
                "Namespace /b true",
                "Service d/c true",
                "Deployment home/e false"
            ]
        );
    }

    #[test]
    fn items_of_a_list_of_one_kind_are_of_that_kind() {
        let text = "
apiVersion: v1
kind: ConfigMapList
metadata: {resourceVersion: '1'}
items:
- {metadata: {name: a, namespace: b}, data: {kind: x}}
- {apiVersion: v1, kind: Namespace, metadata: {name: c}}
";
        let all = manifests().read(text, "home").unwrap();
        let shown: Vec<_> = all
            .iter()
            .map(|m| format!("{} {}", m.key.kind, m.key.name))
            .collect();
        assert_eq!(shown, ["ConfigMap a", "Namespace c"]);
        let new = manifests().apply(&all[0], None).unwrap();
        assert_eq!(new["data"], json!({"kind": "x"}));
        // A list of anything says nothing about its items.
        let text = "{apiVersion: v1, kind: List, items: [{metadata: {name: a}}]}";
        let refused = manifests().read(text, "home").unwrap_err();
        assert!(refused.to_string().starts_with("item 1 of document 1"));
    }

    #[test]
    fn files_of_a_large_mesh_are_read() {
        // More documents, and more values, than readers of YAML take when nobody asks for more.
        let many = "a, ".repeat(250);
        let one = format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: a}}, data: [{many}]}}\n---\n"
        );
        let all = manifests().read(&one.repeat(1_100), "home").unwrap();
        assert_eq!(all.len(), 1_100);
    }

    #[test]
    fn what_is_no_manifest_is_refused_and_says_where() {
        let refusal = |text: &str| manifests().read(text, "home").unwrap_err();
        let form = refusal("a: secret\nb: [c");
        assert!(matches!(form, ManifestError::Form(_)));
        let shown = form.to_string();
        assert!(
            !shown.contains('\n') && !shown.contains("secret"),
            "{shown}"
        );
        assert_eq!(
            refusal("a: b\n"),
            ManifestError::NoObject("document 1".to_owned())
        );
        let twice = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a, name: b}}";
        assert_eq!(
            refusal(twice).to_string(),
            "the field \"name\" is there twice: line 1, column 55"
        );
        let wrong = "{apiVersion: v1, kind: Sevice, metadata: {name: a}}";
        assert_eq!(
            refusal(wrong).to_string(),
            "no kind \"Sevice\" is known in \"v1\""
        );
    }

    #[test]
    fn unknown_fields_and_broken_rules_are_refused_with_their_path() {
        let mut object = config_map(json!({}));
        object["dta"] = json!({});
        let error = manifests().apply(&one(&object), None).unwrap_err();
        assert!(
            error.to_string().contains("unknown field \"dta\""),
            "{error}"
        );
        let error = manifests()
            .apply(&one(&config_map(json!({"a b": "c"}))), None)
            .unwrap_err();
        assert!(error.to_string().contains("data[a b]"), "{error}");
    }

    #[test]
    fn what_others_set_stays_and_what_was_applied_before_goes() {
        let last = config_map(json!({"old": "1", "both": "1"}));
        let mut live = config_map(json!({"old": "1", "both": "1", "theirs": "1"}));
        live["metadata"]["namespace"] = json!("home");
        live["metadata"]["uid"] = json!("1-2");
        live["metadata"]["annotations"] = json!({LAST_APPLIED: last.to_string()});
        let wanted = config_map(json!({"both": "2", "new": "2"}));
        let merged = manifests().apply(&one(&wanted), Some(&live)).unwrap();
        assert_eq!(
            merged["data"],
            json!({"both": "2", "theirs": "1", "new": "2"})
        );
        assert_eq!(merged["metadata"]["uid"], "1-2");
    }
}
