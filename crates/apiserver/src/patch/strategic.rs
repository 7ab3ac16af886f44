//! Strategic merge patches: merge patches that know which lists are merged, and by which key.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{Path, Schema};

/// Lists that are merged: each element is looked for in the other list.
pub const MOST_ELEMENTS: usize = 4096;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

/// The directive that says in which order the elements of a list are to be.
pub(super) fn order_of(list: &str) -> String {
    format!("{SET_ORDER}{list}")
}

/// The directive that takes values out of a list of scalars.
pub(super) fn deletions_of(list: &str) -> String {
    format!("{DELETE_FROM_LIST}{list}")
}

/// The element that takes another one, of the same key, out of a list.
pub(super) fn deletion_of(key: &str, id: &Value) -> Value {
    let fields = [(DIRECTIVE, Value::from("delete")), (key, id.clone())];
    fields
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect::<Map<_, _>>()
        .into()
}

/// Applies a patch to an object. On an error the target may be changed in part.
pub fn strategic(schema: &Schema, target: &mut Value, patch: Value) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Form("JSON object"));
    };
    merge_object(schema, target, patch, &mut Path::default())
}

fn merge_object(
    schema: &Schema,
    target: &mut Value,
    mut patch: Map<String, Value>,
    path: &mut Path,
) -> Result<(), PatchError> {
    match patch.shift_remove(DIRECTIVE) {
        None => {}
        Some(directive) => match directive.as_str() {
            Some("merge") => {}
            Some("replace") => {
                *target = cleaned(Value::Object(patch));
                return Ok(());
            }
            Some("delete") => {
                *target = Value::Object(Map::new());
                return Ok(());
            }
            _ => return Err(unknown(path, &directive)),
        },
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(fields) = target.as_object_mut() else {
        return Ok(());
    };
    if let Some(kept) = patch.shift_remove(RETAIN_KEYS) {
        let kept = kept
            .as_array()
            .ok_or_else(|| wrong(path, "a list of keys"))?;
        fields.retain(|name, _| kept.iter().any(|key| key.as_str() == Some(name)));
    }
    let mut orders = HashMap::new();
    let mut changes = Vec::new();
    for (name, change) in patch {
        if let Some(list) = name.strip_prefix(SET_ORDER) {
            orders.insert(list.to_owned(), list_of(change, path)?);
        } else if let Some(list) = name.strip_prefix(DELETE_FROM_LIST) {
            let gone = list_of(change, path)?;
            if let Some(Value::Array(items)) = fields.get_mut(list) {
                items.retain(|item| !gone.contains(item));
            }
        } else if name.starts_with('$') {
            return Err(unknown(path, &Value::from(name)));
        } else {
            changes.push((name, change));
        }
    }
    let unknown_fields = Schema::anything();
    for (name, change) in changes {
        if change.is_null() {
            fields.shift_remove(&name);
            continue;
        }
        let below = schema.property(&name).unwrap_or(&unknown_fields);
        path.field(&name, |path| match change {
            Value::Object(change) => {
                let field = fields.entry(name.clone()).or_insert(Value::Null);
                merge_object(below, field, change, path)
            }
            Value::Array(change) => {
                let field = fields.entry(name.clone()).or_insert(Value::Null);
                let order = orders.remove(&name);
                merge_list(below, field, change, order, path)
            }
            scalar => {
                fields.insert(name.clone(), scalar);
                Ok(())
            }
        })?;
    }
    // An order without a change of the list only sorts it.
    for (name, order) in orders {
        let below = schema.property(&name).unwrap_or(&unknown_fields);
        if let (Some(merge), Some(Value::Array(items))) = (&below.merge, fields.get_mut(&name)) {
            let live = items.clone();
            sort(items, &live, &order, &merge.key);
        }
    }
    Ok(())
}

fn merge_list(
    schema: &Schema,
    target: &mut Value,
    patch: Vec<Value>,
    order: Option<Vec<Value>>,
    path: &mut Path,
) -> Result<(), PatchError> {
    let Some(merge) = &schema.merge else {
        *target = cleaned(Value::Array(patch));
        return Ok(());
    };
    if !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Some(items) = target.as_array_mut() else {
        return Ok(());
    };
    check_length(items, path)?;
    check_length(&patch, path)?;
    let live = items.clone();
    if merge.key.is_empty() {
        for item in patch {
            if !items.contains(&item) {
                items.push(item);
            }
        }
    } else {
        merge_keyed(schema, items, patch, &merge.key, path)?;
    }
    if let Some(order) = order {
        sort(items, &live, &order, &merge.key);
    }
    Ok(())
}

fn merge_keyed(
    schema: &Schema,
    items: &mut Vec<Value>,
    patch: Vec<Value>,
    key: &str,
    path: &mut Path,
) -> Result<(), PatchError> {
    let replaces = |item: &Value| item.get(DIRECTIVE).and_then(Value::as_str) == Some("replace");
    if patch
        .iter()
        .any(|item| replaces(item) && item.get(key).is_none())
    {
        let rest = patch.into_iter().filter(|item| !replaces(item));
        *items = rest.map(cleaned).collect();
        return Ok(());
    }
    let anything = Schema::anything();
    let below = schema.items.as_ref().unwrap_or(&anything);
    for item in patch {
        let Value::Object(item) = item else {
            return Err(wrong(path, "an object"));
        };
        let Some(id) = item.get(key).cloned() else {
            return Err(PatchError::NoMergeKey {
                field: path.as_str().to_owned(),
                key: key.to_owned(),
            });
        };
        let same = |item: &Value| item.get(key) == Some(&id);
        if item.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
            items.retain(|item| !same(item));
            continue;
        }
        match items.iter().position(same) {
            Some(at) => path.index(at, |path| merge_object(below, &mut items[at], item, path))?,
            None => {
                let mut new = Value::Null;
                path.index(items.len(), |path| {
                    merge_object(below, &mut new, item, path)
                })?;
                items.push(new);
            }
        }
    }
    Ok(())
}

/// Puts what `order` names into that order. What it does not name stays behind those that it came after.
fn sort(items: &mut Vec<Value>, live: &[Value], order: &[Value], key: &str) {
    fn id<'a>(item: &'a Value, key: &str) -> Option<&'a Value> {
        if key.is_empty() {
            Some(item)
        } else {
            item.get(key)
        }
    }
    let rank = |item: &Value| {
        let own = id(item, key);
        order.iter().position(|ordered| id(ordered, key) == own)
    };
    let place = |item: &Value| {
        let own = id(item, key);
        live.iter().position(|live| id(live, key) == own)
    };
    let all = std::mem::take(items);
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        all.into_iter().partition(|item| rank(item).is_some());
    named.sort_by_key(|item| rank(item));
    let mut named = named.into_iter().peekable();
    for other in others {
        let own = place(&other).unwrap_or(usize::MAX);
        while let Some(next) = named.next_if(|next| place(next).is_some_and(|place| place < own)) {
            items.push(next);
        }
        items.push(other);
    }
    items.extend(named);
}

/// Without directives and nulls, for what is new.
fn cleaned(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .filter(|(name, value)| !value.is_null() && !is_directive(name))
                .map(|(name, value)| (name, cleaned(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(cleaned).collect()),
        scalar => scalar,
    }
}

fn is_directive(name: &str) -> bool {
    name == DIRECTIVE
        || name == RETAIN_KEYS
        || name.starts_with(DELETE_FROM_LIST)
        || name.starts_with(SET_ORDER)
}

fn check_length(items: &[Value], path: &Path) -> Result<(), PatchError> {
    if items.len() <= MOST_ELEMENTS {
        return Ok(());
    }
    Err(PatchError::Elements {
        field: path.as_str().to_owned(),
    })
}

fn list_of(value: Value, path: &Path) -> Result<Vec<Value>, PatchError> {
    match value {
        Value::Array(items) => {
            check_length(&items, path)?;
            Ok(items)
        }
        _ => Err(wrong(path, "a list")),
    }
}

fn wrong(path: &Path, expected: &'static str) -> PatchError {
    PatchError::Type {
        field: path.as_str().to_owned(),
        expected,
    }
}

fn unknown(path: &Path, directive: &Value) -> PatchError {
    PatchError::Directive {
        field: path.as_str().to_owned(),
        directive: directive.to_string(),
    }
}
