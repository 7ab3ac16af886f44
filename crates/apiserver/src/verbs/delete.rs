use std::sync::Arc;

use serde_json::{Value, json};

use super::{Deleted, ListOptions, get, list};
use crate::{
    api::{Api, Target},
    error::ApiError,
    json,
    store::{Author, Change, Expect, Stored, Write, WriteError, format_uid},
};

const MOST_TRIES: usize = 16;

/// Finalizers of the garbage collector.
pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// What happens to the dependents of an object that is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// They are deleted after it.
    #[default]
    Background,
    /// They are deleted before it.
    Foreground,
    /// They stay, without an owner.
    Orphan,
}

#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub propagation: Propagation,
    pub uid: Option<String>,
    pub revision: Option<String>,
    pub dry_run: bool,
    /// Who asks, if that is to be told.
    pub by: Option<Arc<Author>>,
}

/// Deletes an object, or begins to if it has finalizers.
pub async fn delete(
    api: &Api,
    target: &Target,
    options: &DeleteOptions,
) -> Result<Deleted, ApiError> {
    for _ in 0..MOST_TRIES {
        let current = get(api, target)?;
        check_preconditions(target, &current, options)?;
        let step = step(api, target, &current, options)?;
        if options.dry_run {
            return Ok(match step {
                Step::Remove(_) => Deleted::Gone(current),
                Step::Begin(_) | Step::Wait => Deleted::Waiting(current),
            });
        }
        let (change, waits) = match step {
            Step::Wait => return Ok(Deleted::Waiting(current)),
            Step::Begin(object) => (Change::Put(object), true),
            Step::Remove(change) => (change, false),
        };
        let write = Write {
            kind: target.ty.store,
            key: current.key.clone(),
            expect: Expect::Revision(current.revision),
            change,
            into_namespace: false,
            by: options.by.clone(),
        };
        match api.store.write(write).await {
            Ok(object) if waits => return Ok(Deleted::Waiting(object)),
            Ok(object) => return Ok(Deleted::Gone(object)),
            Err(WriteError::Changed) => {}
            Err(error) => return Err(target.write_error(error)),
        }
    }
    Err(ApiError::modified(target.subject()))
}

/// Deletes all that match; returns them as they were.
pub async fn delete_collection(
    api: &Api,
    target: &Target,
    selection: &ListOptions,
    options: &DeleteOptions,
) -> Result<Vec<Arc<Stored>>, ApiError> {
    let page = list(api, target, selection)?;
    for object in &page.objects {
        let one = Target {
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
            ..target.clone()
        };
        match delete(api, &one, options).await {
            Ok(_) => {}
            // Someone else was faster.
            Err(error) if error.code == http::StatusCode::NOT_FOUND => {}
            Err(error) => return Err(error),
        }
    }
    Ok(page.objects)
}

fn check_preconditions(
    target: &Target,
    current: &Stored,
    options: &DeleteOptions,
) -> Result<(), ApiError> {
    let uid = format_uid(current.uid);
    let revision = current.revision.to_string();
    for (name, wanted, found) in [
        ("UID", &options.uid, &uid),
        ("ResourceVersion", &options.revision, &revision),
    ] {
        if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != found) {
            let why = format!(
                "Precondition failed: {name} in precondition: {wanted}, {name} in object meta: {found}"
            );
            return Err(ApiError::conflict(target.subject(), why));
        }
    }
    Ok(())
}

enum Step {
    /// Mark it as being deleted.
    Begin(Box<Stored>),
    Remove(Change),
    /// It is marked already, and something holds it.
    Wait,
}

fn step(
    api: &Api,
    target: &Target,
    current: &Stored,
    options: &DeleteOptions,
) -> Result<Step, ApiError> {
    let mut value = target.value(current);
    let is_namespace = target.ty.store == api.registry.namespaces;
    if is_namespace && matches!(current.name(), "default" | "kube-system") {
        return Err(ApiError::forbidden(
            target.subject(),
            "this namespace may not be deleted",
        ));
    }
    let wanted = match options.propagation {
        Propagation::Background => None,
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Orphan => Some(ORPHAN),
    };
    if let Some(metadata) = json::metadata_mut(&mut value)
        && !current.deleting
    {
        if let Some(wanted) = wanted {
            let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
            if let Some(list) = finalizers.as_array_mut()
                && !list.iter().any(|finalizer| finalizer == wanted)
            {
                list.push(wanted.into());
            }
        }
        metadata.insert("deletionTimestamp".to_owned(), api.time_text().into());
        metadata.insert("deletionGracePeriodSeconds".to_owned(), 0.into());
        if target.ty.generation {
            let generation = metadata.get("generation").and_then(Value::as_u64);
            metadata.insert(
                "generation".to_owned(),
                (generation.unwrap_or(0) + 1).into(),
            );
        }
    }
    if is_namespace {
        value["status"]["phase"] = "Terminating".into();
    }
    let ending = target.to_stored(value)?;
    Ok(match (ending.finalizers, current.deleting) {
        (false, _) if is_namespace => Step::Remove(Change::DeleteEmptyNamespace),
        (false, _) => Step::Remove(Change::Delete),
        (true, true) => Step::Wait,
        (true, false) => Step::Begin(Box::new(ending)),
    })
}
