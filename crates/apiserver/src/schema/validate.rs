//! Judging a value by its schema.

use serde_json::Value;

use super::{ListType, Path, Rules, Schema, Type, format};
use crate::error::{FieldError, FieldErrorKind};

/// Errors that are reported for one object; the rest would not be read.
pub const MOST_ERRORS: usize = 32;

/// Adds what is wrong with a value to `errors`.
pub fn validate(schema: &Schema, value: &Value, path: &mut Path, errors: &mut Vec<FieldError>) {
    if errors.len() >= MOST_ERRORS {
        return;
    }
    if value.is_null() {
        if !schema.nullable && schema.kind != Type::Any {
            errors.push(wrong_type(schema.kind, value, path));
        }
        return;
    }
    if !has_type(schema.kind, value) {
        errors.push(wrong_type(schema.kind, value, path));
        return;
    }
    if let Some(rules) = &schema.rules {
        check(rules, value, path, errors);
    }
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let known = schema.property(name);
                if let Some(known) = known {
                    path.field(name, |path| validate(known, field, path, errors));
                }
            }
        }
        Value::Array(items) => {
            if let Some(known) = &schema.items {
                for (index, item) in items.iter().enumerate() {
                    path.index(index, |path| validate(known, item, path, errors));
                }
            }
            unique(schema, items, path, errors);
        }
        _ => {}
    }
}

fn has_type(kind: Type, value: &Value) -> bool {
    match kind {
        Type::Any => true,
        Type::Object => value.is_object(),
        Type::Array => value.is_array(),
        Type::String => value.is_string(),
        // 1.0 is an integer for JSON schemas.
        Type::Integer => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        Type::Number => value.is_number(),
        Type::Boolean => value.is_boolean(),
        Type::IntOrString => value.is_i64() || value.is_u64() || value.is_string(),
        Type::Quantity => value.is_number() || value.is_string(),
    }
}

fn wrong_type(kind: Type, value: &Value, path: &Path) -> FieldError {
    let wanted = match kind {
        Type::Any => "any value",
        Type::Object => "object",
        Type::Array => "array",
        Type::String => "string",
        Type::Integer => "integer",
        Type::Number => "number",
        Type::Boolean => "boolean",
        Type::IntOrString => "integer or string",
        Type::Quantity => "quantity",
    };
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    FieldError::new(
        path.as_str(),
        FieldErrorKind::TypeInvalid,
        format!(
            "Invalid value: {found:?}: {} must be of type {wanted}: {found:?}",
            in_body(path)
        ),
    )
}

fn in_body(path: &Path) -> String {
    match path.as_str() {
        "" => "the object".to_owned(),
        path => format!("{path} in body"),
    }
}

fn check(rules: &Rules, value: &Value, path: &mut Path, errors: &mut Vec<FieldError>) {
    if !rules.allowed.is_empty() && !rules.allowed.contains(value) {
        let allowed: Vec<String> = rules.allowed.iter().map(plain).collect();
        let allowed = allowed.iter().map(String::as_str);
        errors.push(FieldError::not_supported(path.as_str(), value, allowed));
    }
    match value {
        Value::String(text) => check_text(rules, text, value, path, errors),
        Value::Number(number) => {
            if let Some(number) = number.as_f64() {
                check_number(rules, number, value, path, errors);
            }
        }
        Value::Array(items) => {
            let count = items.len() as u64;
            if rules.min_items.is_some_and(|least| count < least) {
                let least = rules.min_items.unwrap_or_default();
                let why = format!("{} should have at least {least} items", in_body(path));
                errors.push(FieldError::invalid(path.as_str(), &count.into(), why));
            }
            if let Some(most) = rules.max_items.filter(|most| count > *most) {
                let message = format!("Too many: {count}: must have at most {most} items");
                errors.push(FieldError::new(
                    path.as_str(),
                    FieldErrorKind::TooMany,
                    message,
                ));
            }
        }
        Value::Object(fields) => {
            let count = fields.len() as u64;
            if let Some(least) = rules.min_properties.filter(|least| count < *least) {
                let why = format!("{} should have at least {least} properties", in_body(path));
                errors.push(FieldError::invalid(path.as_str(), &count.into(), why));
            }
            if let Some(most) = rules.max_properties.filter(|most| count > *most) {
                let message = format!("Too many: {count}: must have at most {most} items");
                errors.push(FieldError::new(
                    path.as_str(),
                    FieldErrorKind::TooMany,
                    message,
                ));
            }
            for name in &rules.required {
                if !fields.contains_key(&**name) {
                    path.field(name, |path| {
                        errors.push(FieldError::required(path.as_str(), ""));
                    });
                }
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
    check_combinations(rules, value, path, errors);
}

fn check_text(rules: &Rules, text: &str, value: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let mut invalid = |why: String| errors.push(FieldError::invalid(path.as_str(), value, why));
    if rules.min_length.is_some() || rules.max_length.is_some() {
        let length = text.chars().count() as u64;
        if let Some(least) = rules.min_length.filter(|least| length < *least) {
            let body = in_body(path);
            invalid(format!("{body} should be at least {least} chars long"));
        }
        if let Some(most) = rules.max_length.filter(|most| length > *most) {
            let message = format!("Too long: may not be more than {most} bytes");
            errors.push(FieldError::new(
                path.as_str(),
                FieldErrorKind::TooLong,
                message,
            ));
            return;
        }
    }
    if let Some(pattern) = &rules.pattern
        && !pattern.is_match(text)
    {
        let why = format!("{} should match '{pattern}'", in_body(path));
        errors.push(FieldError::invalid(path.as_str(), value, why));
    }
    if let Some(wanted) = &rules.format
        && !format::holds(wanted, text)
    {
        let why = format!("{} must be of type {wanted}: {value}", in_body(path));
        errors.push(FieldError::invalid(path.as_str(), value, why));
    }
}

fn check_number(
    rules: &Rules,
    number: f64,
    value: &Value,
    path: &Path,
    errors: &mut Vec<FieldError>,
) {
    let mut invalid = |why: String| {
        let why = format!("{} {why}", in_body(path));
        errors.push(FieldError::invalid(path.as_str(), value, why));
    };
    if let Some(least) = rules.minimum {
        if rules.exclusive_minimum && number <= least {
            invalid(format!("should be greater than {least}"));
        } else if number < least {
            invalid(format!("should be greater than or equal to {least}"));
        }
    }
    if let Some(most) = rules.maximum {
        if rules.exclusive_maximum && number >= most {
            invalid(format!("should be less than {most}"));
        } else if number > most {
            invalid(format!("should be less than or equal to {most}"));
        }
    }
    if let Some(step) = rules.multiple_of
        && (number / step).fract() != 0.0
    {
        invalid(format!("should be a multiple of {step}"));
    }
    let range = match rules.format.as_deref() {
        Some("int32") => Some((f64::from(i32::MIN), f64::from(i32::MAX))),
        // 2^63 is the first that does not fit.
        Some("int64") => Some((-9_223_372_036_854_775_808.0, 9_223_372_036_854_774_784.0)),
        _ => None,
    };
    if range.is_some_and(|(least, most)| number < least || number > most) {
        let format = rules.format.as_deref().unwrap_or_default();
        invalid(format!("must be of type {format}"));
    }
}

fn check_combinations(rules: &Rules, value: &Value, path: &mut Path, errors: &mut Vec<FieldError>) {
    for schema in &rules.all_of {
        validate(schema, value, path, errors);
    }
    let holds = |schema: &Schema, path: &mut Path| {
        let mut wrong = Vec::new();
        validate(schema, value, path, &mut wrong);
        wrong.is_empty()
    };
    let mut fails = |path: &Path, why: &str| {
        let why = format!("{} {why}", in_body(path));
        errors.push(FieldError::invalid(path.as_str(), &short(value), why));
    };
    if !rules.any_of.is_empty() && !rules.any_of.iter().any(|schema| holds(schema, path)) {
        fails(path, "must validate at least one schema (anyOf)");
    }
    if !rules.one_of.is_empty() {
        let count = rules
            .one_of
            .iter()
            .filter(|schema| holds(schema, path))
            .count();
        if count != 1 {
            fails(path, "must validate one and only one schema (oneOf)");
        }
    }
    if let Some(not) = &rules.not
        && holds(not, path)
    {
        fails(path, "must not validate the schema (not)");
    }
}

/// Containers are named, not quoted.
pub fn short(value: &Value) -> Value {
    match value {
        Value::Object(_) => Value::from("object"),
        Value::Array(_) => Value::from("array"),
        other => other.clone(),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn unique(schema: &Schema, items: &[Value], path: &mut Path, errors: &mut Vec<FieldError>) {
    let by_value = schema.list == ListType::Set
        || schema
            .rules
            .as_ref()
            .is_some_and(|rules| rules.unique_items);
    if !by_value && !matches!(schema.list, ListType::Map(_)) {
        return;
    }
    let mut seen = std::collections::HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let id = match &schema.list {
            ListType::Map(keys) => {
                let mut id = serde_json::Map::new();
                for key in keys {
                    let value = item.get(&**key).cloned();
                    let value = value.or_else(|| default_of(schema, key));
                    // A key that must be there is among the required fields.
                    let value = value.unwrap_or_default();
                    id.insert(key.to_string(), value);
                }
                Value::Object(id)
            }
            ListType::Set | ListType::Atomic => item.clone(),
        };
        if !seen.insert(id.to_string()) {
            path.index(index, |path| {
                errors.push(FieldError::duplicate(path.as_str(), &id));
            });
        }
        if errors.len() >= MOST_ERRORS {
            return;
        }
    }
}

fn default_of(schema: &Schema, key: &str) -> Option<Value> {
    let property = schema.items.as_ref()?.property(key)?;
    property.rules.as_ref()?.default.clone()
}
