use std::sync::Arc;

use serde_json::Value;

use super::{Body, WriteOptions, Written, admit};
use crate::{
    api::{Api, Target, random_suffix, random_uid},
    error::ApiError,
    json,
    store::{Change, Expect, Write, WriteError, format_uid, key},
};

/// Names that are tried for `generateName`.
const NAMES_TRIED: usize = 8;
/// A generated name's prefix is cut to leave place for the suffix.
const LONGEST_PREFIX: usize = 58;

/// Creates an object.
pub async fn create(
    api: &Api,
    target: &Target,
    mut body: Body,
    options: WriteOptions,
) -> Result<Written, ApiError> {
    admit::identify(target, &mut body.value)?;
    let warnings = admit::strip(target, &mut body, options.validation)?;
    let mut value = body.value;
    forget_system_fields(target, &mut value)?;
    reset(api, target, &mut value);
    let prefix = match json::text(&value, &["metadata", "name"]) {
        "" => json::text(&value, &["metadata", "generateName"]).to_owned(),
        _ => String::new(),
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let attempt = attempt(target, &value, &prefix)?;
        match write(api, target, attempt, &options).await {
            Err(WriteFailure::Exists) if !prefix.is_empty() && tries < NAMES_TRIED => {}
            Err(WriteFailure::Exists) => {
                let name = json::text(&value, &["metadata", "name"]);
                return Err(ApiError::already_exists(target.named(name).subject()));
            }
            Err(WriteFailure::Refused(error)) => return Err(*error),
            Ok(object) => return Ok(Written { object, warnings }),
        }
    }
}

/// Takes out what is the server's to say.
///
/// # Errors
///
/// A version is named, which something new cannot have.
pub fn forget_system_fields(target: &Target, value: &mut Value) -> Result<(), ApiError> {
    if !json::text(value, &["metadata", "resourceVersion"]).is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    if target.version().status
        && !target.ty.status_on_create
        && let Some(object) = value.as_object_mut()
    {
        object.shift_remove("status");
    }
    let Some(metadata) = json::metadata_mut(value) else {
        return Ok(());
    };
    for field in [
        "resourceVersion",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
        "generation",
        "uid",
    ] {
        metadata.shift_remove(field);
    }
    Ok(())
}

/// Sets what is the server's to say.
fn reset(api: &Api, target: &Target, value: &mut Value) {
    let Some(metadata) = json::metadata_mut(value) else {
        return;
    };
    metadata.insert("uid".to_owned(), format_uid(random_uid()).into());
    metadata.insert("creationTimestamp".to_owned(), api.time_text().into());
    if target.ty.generation {
        metadata.insert("generation".to_owned(), 1.into());
    }
}

fn attempt(target: &Target, value: &Value, prefix: &str) -> Result<(Value, Target), ApiError> {
    let mut value = value.clone();
    if !prefix.is_empty()
        && let Some(metadata) = json::metadata_mut(&mut value)
    {
        let cut = prefix
            .char_indices()
            .nth(LONGEST_PREFIX)
            .map_or(prefix.len(), |(at, _)| at);
        let name = format!("{}{}", &prefix[..cut], random_suffix());
        metadata.insert("name".to_owned(), name.into());
    }
    let target = target.named(json::text(&value, &["metadata", "name"]));
    admit::complete(&target, &mut value, None)?;
    Ok((value, target))
}

enum WriteFailure {
    Exists,
    Refused(Box<ApiError>),
}

async fn write(
    api: &Api,
    target: &Target,
    (value, named): (Value, Target),
    options: &WriteOptions,
) -> Result<Arc<crate::store::Stored>, WriteFailure> {
    let refused = |error| WriteFailure::Refused(Box::new(error));
    let mut stored = named.to_stored(value).map_err(refused)?;
    let place = key(&target.namespace, stored.name());
    if options.dry_run {
        let cache = api.store.read();
        if cache.get(target.ty.store, &place).is_some() {
            return Err(WriteFailure::Exists);
        }
        if target.ty.namespaced {
            let namespace = cache.get(api.registry.namespaces, &key("", &target.namespace));
            let error = match namespace {
                None => Some(WriteError::NoNamespace),
                Some(namespace) if namespace.deleting => Some(WriteError::NamespaceEnding),
                Some(_) => None,
            };
            if let Some(error) = error {
                return Err(refused(named.write_error(error)));
            }
        }
        stored.revision = cache.revision;
        return Ok(Arc::new(stored));
    }
    let write = Write {
        kind: target.ty.store,
        key: place,
        expect: Expect::Absent,
        change: Change::Put(Box::new(stored)),
        into_namespace: target.ty.namespaced,
        by: options.by.clone(),
    };
    api.store.write(write).await.map_err(|error| match error {
        WriteError::Exists => WriteFailure::Exists,
        other => refused(named.write_error(other)),
    })
}
