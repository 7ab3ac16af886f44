//! Filling in what a schema gives for absent fields.

use serde_json::Value;

use super::{Additional, Schema};

/// Inserts defaults, from the outside in, so that a defaulted object is completed too.
pub fn default(schema: &Schema, value: &mut Value) {
    if !schema.has_default {
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, known) in &schema.properties {
                let default = known
                    .rules
                    .as_ref()
                    .and_then(|rules| rules.default.as_ref());
                if let Some(default) = default
                    && !fields.contains_key(&**name)
                {
                    fields.insert(name.to_string(), default.clone());
                }
                if let Some(field) = fields.get_mut(&**name) {
                    self::default(known, field);
                }
            }
            if let Additional::Each(known) = &schema.additional {
                let named = |name: &str| {
                    schema
                        .properties
                        .binary_search_by(|(property, _)| (**property).cmp(name))
                        .is_ok()
                };
                for (name, field) in fields {
                    if !named(name) {
                        self::default(known, field);
                    }
                }
            }
        }
        Value::Array(items) => {
            if let Some(known) = &schema.items {
                for item in items {
                    self::default(known, item);
                }
            }
        }
        _ => {}
    }
}
