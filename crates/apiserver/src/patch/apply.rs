//! What `kubectl apply` makes of an object: the three-way merge of what was applied the last time,
//! what is there, and what is wanted.

use serde_json::{Map, Value};

use super::{PatchError, merge, strategic};
use crate::schema::Schema;

type Fields = Map<String, Value>;

/// How the server takes a client's changes of a kind.
#[derive(Debug, Clone, Copy)]
pub enum Merging<'a> {
    /// Builtin kinds: lists are merged where the schema has a key for it.
    Strategic(&'a Schema),
    /// Custom resources: lists are replaced whole.
    Plain,
}

/// Makes `live` what `wanted` says. What `last` has and `wanted` has not goes; what neither has stays.
/// On an error `live` may be changed in part.
pub fn apply(
    merging: Merging<'_>,
    last: &Fields,
    wanted: &Fields,
    live: &mut Value,
) -> Result<(), PatchError> {
    let before = live.as_object().cloned().unwrap_or_default();
    match merging {
        Merging::Strategic(schema) => {
            strategic(schema, live, set(Some(schema), &before, wanted).into())?;
            strategic(schema, live, gone(Some(schema), last, wanted).into())
        }
        Merging::Plain => {
            merge(live, set(None, &before, wanted).into());
            merge(live, gone(None, last, wanted).into());
            Ok(())
        }
    }
}

/// The patch that gives `live` what `wanted` says otherwise, or beyond it.
fn set(schema: Option<&Schema>, live: &Fields, wanted: &Fields) -> Fields {
    let mut patch = Map::new();
    for (name, wanted) in wanted {
        // In a merge patch of a client a null only takes away what it applied itself.
        if schema.is_none() && wanted.is_null() {
            continue;
        }
        let below = schema.map(|schema| field(schema, name));
        let change = match (live.get(name), wanted) {
            (Some(live), wanted) if live == wanted => continue,
            (Some(Value::Object(live)), Value::Object(wanted)) => {
                let change = set(below, live, wanted);
                if change.is_empty() {
                    continue;
                }
                change.into()
            }
            (Some(Value::Array(live)), Value::Array(wanted)) => {
                match below.filter(|below| below.merge.is_some() && !live.is_empty()) {
                    None => wanted.clone().into(),
                    Some(below) => {
                        patch.insert(strategic::order_of(name), order(below, wanted));
                        let changes = set_list(below, live, wanted);
                        if changes.is_empty() {
                            continue;
                        }
                        changes.into()
                    }
                }
            }
            (_, Value::Object(wanted)) if schema.is_none() => set(None, &Map::new(), wanted).into(),
            _ => wanted.clone(),
        };
        patch.insert(name.clone(), change);
    }
    patch
}

/// The patch that takes away what was applied and is not wanted any more.
fn gone(schema: Option<&Schema>, last: &Fields, wanted: &Fields) -> Fields {
    let mut patch = Map::new();
    for (name, last) in last {
        let below = schema.map(|schema| field(schema, name));
        match (last, wanted.get(name)) {
            (_, None) => {
                patch.insert(name.clone(), Value::Null);
            }
            (last, Some(Value::Null)) if schema.is_none() && !last.is_null() => {
                patch.insert(name.clone(), Value::Null);
            }
            (Value::Object(last), Some(Value::Object(wanted))) => {
                let change = gone(below, last, wanted);
                if !change.is_empty() {
                    patch.insert(name.clone(), change.into());
                }
            }
            (Value::Array(last), Some(Value::Array(wanted))) => {
                let Some(merge) = below.and_then(|below| below.merge.as_ref()) else {
                    continue;
                };
                if merge.key.is_empty() {
                    let away: Vec<Value> = missing(last, wanted).cloned().collect();
                    if !away.is_empty() {
                        patch.insert(strategic::deletions_of(name), away.into());
                    }
                } else if let Some(below) = below {
                    let changes = gone_list(below, &merge.key, last, wanted);
                    if !changes.is_empty() {
                        patch.insert(name.clone(), changes.into());
                    }
                }
            }
            _ => {}
        }
    }
    patch
}

fn set_list(schema: &Schema, live: &[Value], wanted: &[Value]) -> Vec<Value> {
    let Some(key) = schema.merge.as_ref().map(|merge| &*merge.key) else {
        return wanted.to_vec();
    };
    if key.is_empty() {
        return missing(wanted, live).cloned().collect();
    }
    let pairs = pairs(key, live, wanted).into_iter();
    let changes = pairs.filter_map(|pair| match pair {
        (Some(live), Some(wanted)) => changed(schema, key, live, wanted, set),
        (_, wanted) => wanted.cloned(),
    });
    changes.collect()
}

fn gone_list(schema: &Schema, key: &str, last: &[Value], wanted: &[Value]) -> Vec<Value> {
    let pairs = pairs(key, last, wanted).into_iter();
    let changes = pairs.filter_map(|pair| match pair {
        (Some(last), Some(wanted)) => changed(schema, key, last, wanted, gone),
        (Some(last), None) => Some(strategic::deletion_of(key, last.get(key)?)),
        (None, _) => None,
    });
    changes.collect()
}

/// [`set`] or [`gone`].
type Difference = fn(Option<&Schema>, &Fields, &Fields) -> Fields;

/// The change of an element of a list, which says by its key which one it is about.
fn changed(
    schema: &Schema,
    key: &str,
    before: &Value,
    wanted: &Value,
    difference: Difference,
) -> Option<Value> {
    let items = schema.items.as_deref().unwrap_or(&ANYTHING);
    let mut change = difference(Some(items), before.as_object()?, wanted.as_object()?);
    if change.is_empty() {
        return None;
    }
    change.insert(key.to_owned(), wanted.get(key)?.clone());
    Some(change.into())
}

/// Elements of both lists by key. Where several have one key, the last of one list meets the last of
/// the other, and so on: that is what kubectl does, though the server takes them for one.
fn pairs<'v>(
    key: &str,
    before: &'v [Value],
    wanted: &'v [Value],
) -> Vec<(Option<&'v Value>, Option<&'v Value>)> {
    let mut left: Vec<&Value> = before.iter().rev().collect();
    let mut pairs = Vec::new();
    for wanted in wanted.iter().rev() {
        let same = left
            .iter()
            .position(|before| before.get(key) == wanted.get(key));
        pairs.push((same.map(|at| left.remove(at)), Some(wanted)));
    }
    pairs.extend(left.into_iter().map(|before| (Some(before), None)));
    pairs
}

fn missing<'v>(of: &'v [Value], other: &'v [Value]) -> impl Iterator<Item = &'v Value> {
    of.iter().filter(|value| !other.contains(value))
}

/// The order of a list, by keys alone.
fn order(schema: &Schema, wanted: &[Value]) -> Value {
    let key = schema.merge.as_ref().map_or("", |merge| &*merge.key);
    let only_key = |value: &Value| match value.get(key) {
        Some(id) if !key.is_empty() => {
            Value::Object(Map::from_iter([(key.to_owned(), id.clone())]))
        }
        _ => value.clone(),
    };
    wanted.iter().map(only_key).collect::<Vec<_>>().into()
}

fn field<'s>(schema: &'s Schema, name: &str) -> &'s Schema {
    schema.property(name).map_or(&*ANYTHING, |below| &**below)
}

static ANYTHING: std::sync::LazyLock<Schema> = std::sync::LazyLock::new(|| Schema {
    preserve: true,
    ..Schema::default()
});
