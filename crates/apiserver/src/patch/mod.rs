//! Changing an object by a description of the change.

mod apply;
mod strategic;

use json_patch::PatchOperation;
use serde_json::{Map, Value};

pub use apply::{Merging, apply};
pub use strategic::strategic;

/// The most operations of a JSON patch.
const MOST_OPERATIONS: usize = 10_000;

/// Bytes that its copy operations may add.
const MOST_COPIED: usize = 3 * 1024 * 1024;

/// Why a patch cannot be applied. All are the sender's mistakes.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    #[error("the patch is not a {0}")]
    Form(&'static str),
    #[error("the patch has more than {MOST_OPERATIONS} operations")]
    TooLong,
    #[error("the patch copies more than {MOST_COPIED} bytes")]
    Copies,
    #[error(
        "{field}: more than {} elements cannot be merged",
        strategic::MOST_ELEMENTS
    )]
    Elements { field: String },
    #[error("cannot read the JSON patch: {0}")]
    Operations(#[source] serde_json::Error),
    #[error("the server rejected our request due to an error in our request: {0}")]
    Operation(#[source] json_patch::PatchError),
    #[error("{field}: unknown directive {directive}")]
    Directive { field: String, directive: String },
    #[error("{field}: an element has no merge key {key:?}")]
    NoMergeKey { field: String, key: String },
    #[error("{field}: {expected} expected")]
    Type {
        field: String,
        expected: &'static str,
    },
}

/// A merge patch, RFC 7386. Nesting is bounded by what the reader of the patch allowed.
pub fn merge(target: &mut Value, patch: Value) {
    let Value::Object(changes) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(fields) = target.as_object_mut() else {
        return;
    };
    for (name, change) in changes {
        if change.is_null() {
            fields.shift_remove(&name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), change);
        }
    }
}

/// A JSON patch, RFC 6902. On an error the target is unchanged.
pub fn json(target: &mut Value, patch: Value) -> Result<(), PatchError> {
    let operations = patch
        .as_array()
        .ok_or(PatchError::Form("list of operations"))?;
    if operations.len() > MOST_OPERATIONS {
        return Err(PatchError::TooLong);
    }
    let patch: json_patch::Patch = serde_json::from_value(patch).map_err(PatchError::Operations)?;
    let mut result = target.clone();
    let mut copied = 0;
    for operation in &patch.0 {
        // Each copy may double the object.
        if let PatchOperation::Copy(copy) = operation
            && let Some(value) = result.pointer(copy.from.as_str())
        {
            copied += value.to_string().len();
            if copied > MOST_COPIED {
                return Err(PatchError::Copies);
            }
        }
        json_patch::patch(&mut result, std::slice::from_ref(operation))
            .map_err(PatchError::Operation)?;
    }
    *target = result;
    Ok(())
}

#[cfg(test)]
mod tests;
