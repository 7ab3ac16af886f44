use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{
    api::{Api, Target},
    error::ApiError,
    selector::{FieldSelector, LabelSelector},
    store::{KindId, Stored, TooOld},
};

/// What a list or a watch is about.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// Objects in one answer; 0 for all.
    pub limit: usize,
    /// Where the page before ended.
    pub cursor: Option<Cursor>,
    /// Exactly the state at this revision.
    pub exactly: Option<u64>,
    /// The state at this revision or later.
    pub at_least: u64,
}

/// Where a page ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    #[serde(rename = "rv")]
    revision: u64,
    /// The key of the last object.
    #[serde(rename = "after")]
    after: String,
}

/// The longest token that is read.
const LONGEST_TOKEN: usize = 1024;

impl Cursor {
    pub fn parse(token: &str) -> Result<Self, ApiError> {
        let invalid = || ApiError::bad_request("continue key is not valid");
        if token.len() > LONGEST_TOKEN {
            return Err(invalid());
        }
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(token)
            .map_err(|_| invalid())?;
        serde_json::from_slice(&bytes).map_err(|_| invalid())
    }

    pub fn token(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::json!(self).to_string())
    }
}

/// A part of a list.
#[derive(Debug)]
pub struct Page {
    pub revision: u64,
    pub objects: Vec<Arc<Stored>>,
    /// Where to go on, and how many are left (unknown with selectors).
    pub next: Option<(Cursor, Option<usize>)>,
}

impl ListOptions {
    /// Whether an object is among those asked for; `selectable` names its `fields`.
    pub fn matches(&self, target: &Target, object: &Stored) -> bool {
        (target.namespace.is_empty() || object.namespace() == target.namespace)
            && (self.labels.is_empty() || self.labels.matches(|label| object.label(label)))
            && (self.fields.is_empty() || self.fields.matches(|field| value(target, object, field)))
    }
}

fn value<'a>(target: &Target, object: &'a Stored, field: &str) -> &'a str {
    match field {
        "metadata.name" => object.name(),
        "metadata.namespace" => object.namespace(),
        field => {
            let index = target.ty.selectable.iter().position(|known| known == field);
            index
                .and_then(|index| object.fields.get(index))
                .map_or("", |value| value)
        }
    }
}

/// One object.
pub fn get(api: &Api, target: &Target) -> Result<Arc<Stored>, ApiError> {
    let cache = api.store.read();
    let found = cache.get(target.ty.store, &target.key()).cloned();
    found.ok_or_else(|| ApiError::not_found(target.subject()))
}

/// The objects that match, in the order of their keys.
pub fn list(api: &Api, target: &Target, options: &ListOptions) -> Result<Page, ApiError> {
    let (revision, all) = snapshot(api, target, options)?;
    let after = options.cursor.as_ref().map(|cursor| cursor.after.as_str());
    let mut matching = all
        .into_iter()
        .filter(|object| after.is_none_or(|after| &*object.key > after))
        .filter(|object| options.matches(target, object));
    if options.limit == 0 {
        return Ok(Page {
            revision,
            objects: matching.collect(),
            next: None,
        });
    }
    let objects: Vec<Arc<Stored>> = matching.by_ref().take(options.limit).collect();
    let left = matching.count();
    let selective = !options.labels.is_empty() || !options.fields.is_empty();
    let next = objects.last().filter(|_| left > 0).map(|last| {
        let cursor = Cursor {
            revision,
            after: last.key.to_string(),
        };
        (cursor, (!selective).then_some(left))
    });
    Ok(Page {
        revision,
        objects,
        next,
    })
}

fn snapshot(
    api: &Api,
    target: &Target,
    options: &ListOptions,
) -> Result<(u64, Vec<Arc<Stored>>), ApiError> {
    let cache = api.store.read();
    let kind: KindId = target.ty.store;
    let exactly = options
        .cursor
        .as_ref()
        .map(|cursor| cursor.revision)
        .or(options.exactly);
    let wanted = exactly.unwrap_or(options.at_least);
    if wanted > cache.revision {
        return Err(ApiError::timeout(format!(
            "Too large resource version: {wanted}, current: {}",
            cache.revision
        )));
    }
    let kind = cache.kind(kind);
    match exactly {
        Some(revision) if revision < cache.revision => {
            let objects = kind.at(revision, &target.namespace).map_err(too_old)?;
            Ok((revision, objects))
        }
        _ => {
            let objects = kind.in_namespace(&target.namespace).cloned().collect();
            Ok((cache.revision, objects))
        }
    }
}

/// History that is gone, as clients know it.
pub fn too_old(error: TooOld) -> ApiError {
    ApiError::expired(format!(
        "too old resource version: the oldest is {}",
        error.oldest
    ))
}
