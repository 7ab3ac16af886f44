use std::sync::Arc;

use serde_json::Value;

use super::{Body, Part, WriteOptions, Written, admit};
use crate::{
    api::{Api, Target},
    error::{ApiError, FieldError},
    json,
    patch::{self, PatchError},
    store::{Author, Change, Expect, Stored, Write, WriteError},
};

/// Times that a patch is applied anew because another write came between.
const MOST_TRIES: usize = 16;

/// A change by description.
#[derive(Debug)]
pub enum Patch {
    Merge(Value),
    Json(Value),
    Strategic(Value),
}

/// Replaces an object, or its status.
pub async fn replace(
    api: &Api,
    target: &Target,
    part: Part,
    mut body: Body,
    options: WriteOptions,
) -> Result<Written, ApiError> {
    admit::identify(target, &mut body.value)?;
    let named = target.named(json::text(&body.value, &["metadata", "name"]));
    let given = json::text(&body.value, &["metadata", "resourceVersion"]).to_owned();
    if given.is_empty() && target.ty.custom {
        let cause = FieldError::invalid(
            "metadata.resourceVersion",
            &Value::from(0),
            "must be specified for an update",
        );
        return Err(ApiError::invalid(named.kind_subject(), vec![cause]));
    }
    let warnings = admit::strip(target, &mut body, options.validation)?;
    let new = body.value;
    let write = move |_: &Value| Ok((new.clone(), warnings.clone()));
    update(api, target, part, &options, write).await
}

/// Changes an object, or its status.
pub async fn patch(
    api: &Api,
    target: &Target,
    part: Part,
    patch: Patch,
    duplicates: Vec<String>,
    options: WriteOptions,
) -> Result<Written, ApiError> {
    if matches!(patch, Patch::Strategic(_)) && target.ty.custom {
        return Err(ApiError::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json-patch+json, application/merge-patch+json",
        ));
    }
    let change = |old: &Value| {
        let mut new = old.clone();
        apply(target, &mut new, &patch).map_err(|error| refused(target, error))?;
        let mut body = Body {
            value: new,
            duplicates: duplicates.clone(),
        };
        admit::identify(target, &mut body.value)?;
        // What is stored is known to be pruned, so what is unknown came with the patch.
        let warnings = admit::strip(target, &mut body, options.validation)?;
        Ok((body.value, warnings))
    };
    update(api, target, part, &options, change).await
}

fn apply(target: &Target, value: &mut Value, patch: &Patch) -> Result<(), PatchError> {
    match patch {
        Patch::Merge(patch) if !patch.is_object() => Err(PatchError::Form("JSON object")),
        Patch::Merge(patch) => {
            patch::merge(value, patch.clone());
            Ok(())
        }
        Patch::Json(patch) => patch::json(value, patch.clone()),
        Patch::Strategic(patch) => patch::strategic(&target.version().schema, value, patch.clone()),
    }
}

fn refused(target: &Target, error: PatchError) -> ApiError {
    match error {
        PatchError::Operation(_) => {
            let cause = FieldError::invalid("patch", &Value::Null, &error);
            let mut refusal = ApiError::invalid(target.kind_subject(), vec![cause]);
            refusal.message = error.to_string();
            refusal
        }
        other => ApiError::bad_request(other.to_string()),
    }
}

async fn update(
    api: &Api,
    target: &Target,
    part: Part,
    options: &WriteOptions,
    change: impl Fn(&Value) -> Result<(Value, Vec<String>), ApiError>,
) -> Result<Written, ApiError> {
    for _ in 0..MOST_TRIES {
        let current = super::get(api, target)?;
        let old = target.value(&current);
        let (new, warnings) = change(&old)?;
        let given = json::text(&new, &["metadata", "resourceVersion"]);
        let pinned = !given.is_empty() && given != current.revision.to_string();
        if pinned {
            return Err(ApiError::modified(target.subject()));
        }
        let new = settle(target, part, &old, new)?;
        if new == old {
            let object = current;
            return Ok(Written { object, warnings });
        }
        let mut stored = target.to_stored(new)?;
        let finished = current.deleting && !stored.finalizers;
        if options.dry_run {
            stored.revision = current.revision;
            let object = Arc::new(stored);
            return Ok(Written { object, warnings });
        }
        let change = match finished {
            true if target.ty.store == api.registry.namespaces => Change::DeleteEmptyNamespace,
            true => Change::Delete,
            false => Change::Put(Box::new(stored)),
        };
        match write(api, target, &current, change, options.by.clone()).await {
            Ok(object) => return Ok(Written { object, warnings }),
            // Nothing that the sender said depends on the version that was overtaken.
            Err(WriteError::Changed) => {}
            Err(error) => return Err(target.write_error(error)),
        }
    }
    Err(ApiError::modified(target.subject()))
}

async fn write(
    api: &Api,
    target: &Target,
    current: &Stored,
    change: Change,
    by: Option<Arc<Author>>,
) -> Result<Arc<Stored>, WriteError> {
    let write = Write {
        kind: target.ty.store,
        key: current.key.clone(),
        expect: Expect::Revision(current.revision),
        change,
        into_namespace: false,
        by,
    };
    api.store.write(write).await
}

/// The object that an update makes of the old one and of what was asked for.
pub fn settle(target: &Target, part: Part, old: &Value, mut new: Value) -> Result<Value, ApiError> {
    let has_status = target.version().status;
    let new_uid = json::text(&new, &["metadata", "uid"]);
    let old_uid = json::text(old, &["metadata", "uid"]);
    if !new_uid.is_empty() && new_uid != old_uid {
        let why = format!(
            "Precondition failed: UID in precondition: {new_uid}, UID in object meta: {old_uid}"
        );
        return Err(ApiError::conflict(target.subject(), why));
    }
    let take = |value: &mut Value, field: &str, from: &Value| {
        if let Some(object) = value.as_object_mut() {
            match from.get(field) {
                Some(kept) => object.insert(field.to_owned(), kept.clone()),
                None => object.shift_remove(field),
            };
        }
    };
    if part == Part::Status {
        let status = new.get("status").cloned();
        new = old.clone();
        if let (Some(object), Some(status)) = (new.as_object_mut(), status) {
            object.insert("status".to_owned(), status);
        }
    } else if has_status {
        take(&mut new, "status", old);
    }
    keep_system_fields(&mut new, old);
    if target.ty.is("", "namespaces") {
        // Its finalizers change by what is in it, not by hand.
        keep_spec_finalizers(&mut new, old);
    }
    admit::complete(target, &mut new, Some(old))?;
    check_deletion(target, old, &new)?;
    if target.ty.generation && admit::intent_differs(old, &new, !has_status) {
        let generation = json::metadata(old)
            .get("generation")
            .and_then(Value::as_u64);
        if let Some(metadata) = json::metadata_mut(&mut new) {
            metadata.insert(
                "generation".to_owned(),
                (generation.unwrap_or(0) + 1).into(),
            );
        }
    }
    Ok(new)
}

fn keep_system_fields(new: &mut Value, old: &Value) {
    let old = json::metadata(old);
    let Some(metadata) = json::metadata_mut(new) else {
        return;
    };
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
        "selfLink",
        "managedFields",
    ] {
        match old.get(field) {
            Some(kept) => metadata.insert(field.to_owned(), kept.clone()),
            None => metadata.shift_remove(field),
        };
    }
}

fn keep_spec_finalizers(new: &mut Value, old: &Value) {
    if let Some(object) = new.as_object_mut() {
        match old.get("spec") {
            Some(spec) => object.insert("spec".to_owned(), spec.clone()),
            None => object.shift_remove("spec"),
        };
    }
}

/// An object that is being deleted may lose finalizers, not gain them.
fn check_deletion(target: &Target, old: &Value, new: &Value) -> Result<(), ApiError> {
    if json::metadata(old).get("deletionTimestamp").is_none() {
        return Ok(());
    }
    let finalizers = |value: &Value| {
        let list = json::metadata(value)
            .get("finalizers")
            .and_then(Value::as_array)
            .cloned();
        list.unwrap_or_default()
    };
    let before = finalizers(old);
    let added: Vec<Value> = finalizers(new)
        .into_iter()
        .filter(|finalizer| !before.contains(finalizer))
        .collect();
    if added.is_empty() {
        return Ok(());
    }
    let why = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers {}",
        Value::Array(added)
    );
    let cause = FieldError::forbidden("metadata.finalizers", why);
    Err(ApiError::invalid(target.kind_subject(), vec![cause]))
}
