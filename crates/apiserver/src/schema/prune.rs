//! Taking out what a schema does not know.

use serde_json::Value;

use super::{Additional, Path, Schema};

/// How many unknown fields are named.
const MOST_NAMED: usize = 64;

/// Removes unknown fields and nulls that mean "absent"; the paths of the unknown ones go into `unknown`.
pub fn prune(schema: &Schema, value: &mut Value, path: &mut Path, unknown: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, field| {
                let Some(known) = schema.property(name) else {
                    let kept = schema.preserve || matches!(schema.additional, Additional::Any);
                    if !kept && unknown.len() < MOST_NAMED {
                        path.field(name, |path| unknown.push(path.as_str().to_owned()));
                    }
                    return kept;
                };
                if field.is_null() {
                    return known.nullable || known.preserve;
                }
                path.field(name, |path| prune(known, field, path, unknown));
                true
            });
        }
        Value::Array(items) => {
            if let Some(known) = &schema.items {
                for (index, item) in items.iter_mut().enumerate() {
                    path.index(index, |path| prune(known, item, path, unknown));
                }
            }
        }
        _ => {}
    }
}
