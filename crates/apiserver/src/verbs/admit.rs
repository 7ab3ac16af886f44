//! From what a client sends to an object that may be stored.

use serde_json::{Map, Value};

use super::Body;
use crate::{
    api::Target,
    error::{ApiError, FieldError, FieldErrorKind},
    json, names,
    registry::NameForm,
    schema::{self, Path},
};

/// All annotations of an object, in bytes.
const LARGEST_ANNOTATIONS: usize = 256 * 1024;
const MOST_WARNINGS: usize = 20;

/// What happens to unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Validation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// Checks that a body is an object of the target's kind, version, namespace and name.
pub fn identify(target: &Target, body: &mut Value) -> Result<(), ApiError> {
    let version = target.version();
    let Some(object) = body.as_object_mut() else {
        return Err(ApiError::bad_request("the body is not a JSON object"));
    };
    let text = |object: &Map<String, Value>, field: &str| {
        let text = object.get(field).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let (kind, api_version) = (text(object, "kind"), text(object, "apiVersion"));
    if !kind.is_empty() && kind != target.ty.kind {
        return Err(ApiError::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}",
            version.name, target.ty.kind
        )));
    }
    if !api_version.is_empty() && api_version != version.api_version {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            version.api_version
        )));
    }
    object.insert("apiVersion".to_owned(), version.api_version.as_str().into());
    object.insert("kind".to_owned(), target.ty.kind.as_str().into());
    let Some(metadata) = json::metadata_mut(body) else {
        return Err(ApiError::bad_request("metadata is not an object"));
    };
    let namespace = text(metadata, "namespace");
    if !namespace.is_empty() && namespace != target.namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if target.namespace.is_empty() {
        metadata.shift_remove("namespace");
    } else {
        metadata.insert("namespace".to_owned(), target.namespace.as_str().into());
    }
    let name = text(metadata, "name");
    if !target.name.is_empty() {
        if !name.is_empty() && name != target.name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                target.name
            )));
        }
        metadata.insert("name".to_owned(), target.name.as_str().into());
    }
    Ok(())
}

/// Takes unknown fields out; warns about them and about duplicates, or refuses.
pub fn strip(
    target: &Target,
    body: &mut Body,
    validation: Validation,
) -> Result<Vec<String>, ApiError> {
    let version = target.version();
    let mut unknown = Vec::new();
    schema::prune(
        &version.schema,
        &mut body.value,
        &mut Path::default(),
        &mut unknown,
    );
    if validation == Validation::Ignore {
        return Ok(Vec::new());
    }
    let duplicates = body.duplicates.iter();
    let mut messages: Vec<String> = duplicates
        .map(|field| format!("duplicate field {field:?}"))
        .collect();
    messages.extend(
        unknown
            .iter()
            .map(|field| format!("unknown field {field:?}")),
    );
    if validation == Validation::Strict && !messages.is_empty() {
        return Err(ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
            target.ty.kind,
            version.name,
            target.ty.kind,
            messages.join(", ")
        )));
    }
    messages.extend(version.deprecation.clone());
    messages.extend(target.ty.warning.clone());
    messages.truncate(MOST_WARNINGS);
    Ok(messages)
}

/// Completes an object and judges it. An update is not blamed for what was wrong with the old object already:
/// it may have been stored before a rule existed.
pub fn complete(target: &Target, value: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
    schema::default(&target.version().schema, value);
    (target.ty.strategy.prepare)(value, old);
    let mut errors = judge(target, value, old);
    if let Some(old) = old
        && !errors.is_empty()
    {
        let known = judge(target, old, None);
        errors.retain(|error| !known.contains(error));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid(target.kind_subject(), errors))
    }
}

fn judge(target: &Target, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let schema = &target.version().schema;
    let mut errors = Vec::new();
    validate_metadata(target, json::metadata(value), &mut errors);
    schema::validate(schema, value, &mut Path::default(), &mut errors);
    if errors.is_empty() {
        (target.ty.strategy.validate)(value, old, &mut errors);
    }
    // Rules may rely on the rest of the schema.
    if errors.is_empty() {
        schema::cel::check(schema, value, old, &mut errors);
    }
    errors
}

fn validate_metadata(target: &Target, metadata: &Map<String, Value>, errors: &mut Vec<FieldError>) {
    let name = metadata.get("name").unwrap_or(&Value::Null);
    let text = name.as_str().unwrap_or_default();
    let (fits, why) = match target.ty.name_form {
        _ if text.is_empty() => {
            errors.push(FieldError::required(
                "metadata.name",
                "name or generateName is required",
            ));
            (true, "")
        }
        NameForm::Subdomain => (
            names::is_dns_subdomain(text),
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
             and must start and end with an alphanumeric character",
        ),
        NameForm::Label => (
            names::is_dns_label(text),
            "a lowercase RFC 1123 label must consist of at most 63 lower case alphanumeric characters or '-', \
             and must start and end with an alphanumeric character",
        ),
        NameForm::ServiceLabel => (
            names::is_dns_1035_label(text),
            "a DNS-1035 label must consist of at most 63 lower case alphanumeric characters or '-', \
             start with an alphabetic character, and end with an alphanumeric character",
        ),
    };
    if !fits {
        errors.push(FieldError::invalid("metadata.name", name, why));
    }
    let entries = |field: &str| {
        metadata
            .get(field)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
    };
    for (key, value) in entries("labels") {
        if !names::is_qualified_name(key) {
            let why = "name part must consist of alphanumeric characters, '-', '_' or '.', with an optional DNS subdomain prefix and '/'";
            errors.push(FieldError::invalid(
                "metadata.labels",
                &Value::from(key.as_str()),
                why,
            ));
        }
        if !value.as_str().is_some_and(names::is_label_value) {
            let why = "a valid label must be an empty string or at most 63 alphanumeric characters, '-', '_' or '.', \
                       starting and ending with an alphanumeric character";
            errors.push(FieldError::invalid("metadata.labels", value, why));
        }
    }
    let mut size = 0;
    for (key, value) in entries("annotations") {
        size += key.len() + value.as_str().map_or(0, str::len);
        if !names::is_qualified_name(&key.to_ascii_lowercase()) {
            let why = "name part must consist of alphanumeric characters, '-', '_' or '.', with an optional DNS subdomain prefix and '/'";
            errors.push(FieldError::invalid(
                "metadata.annotations",
                &Value::from(key.as_str()),
                why,
            ));
        }
    }
    if size > LARGEST_ANNOTATIONS {
        let message = format!("Too long: may not be more than {LARGEST_ANNOTATIONS} bytes");
        errors.push(FieldError::new(
            "metadata.annotations",
            FieldErrorKind::TooLong,
            message,
        ));
    }
    let list = |field: &str| {
        metadata
            .get(field)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    for (index, finalizer) in list("finalizers").enumerate() {
        if !finalizer.as_str().is_some_and(names::is_qualified_name) {
            let field = format!("metadata.finalizers[{index}]");
            errors.push(FieldError::invalid(
                field,
                finalizer,
                "name part must be a qualified name",
            ));
        }
    }
    let mut controllers = 0;
    for (index, owner) in list("ownerReferences").enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if json::text(owner, &[field]).is_empty() {
                let field = format!("metadata.ownerReferences[{index}].{field}");
                errors.push(FieldError::required(field, "must not be empty"));
            }
        }
        controllers += usize::from(owner.get("controller") == Some(&Value::Bool(true)));
    }
    if controllers > 1 {
        let owners = Value::from(controllers);
        let why = "only one reference can have `controller` set to true";
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            &owners,
            why,
        ));
    }
}

/// Whether something besides metadata and status differs.
pub fn intent_differs(old: &Value, new: &Value, status_counts: bool) -> bool {
    let fields = |value: &Value| {
        let mut value = value.as_object().cloned().unwrap_or_default();
        value.shift_remove("metadata");
        if !status_counts {
            value.shift_remove("status");
        }
        value
    };
    fields(old) != fields(new)
}
