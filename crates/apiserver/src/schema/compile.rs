//! From OpenAPI JSON to [`Schema`].

use std::{collections::HashMap, sync::Arc};

use regex::RegexBuilder;
use serde_json::{Map, Value};

use super::{Additional, ListType, Merge, Rules, Schema, Type, cel};
use crate::json;

/// Prefix of references to shared definitions.
pub const REFERENCE: &str = "#/components/schemas/";
/// A compiled pattern may use this much memory.
const LARGEST_PATTERN: usize = 256 * 1024;
/// Nesting of schemas, to end where definitions go in circles.
const DEEPEST: usize = 48;

/// A schema is not usable: where in it, and why.
#[derive(Debug, thiserror::Error)]
#[error("schema at {path:?}: {message}")]
pub struct SchemaError {
    pub path: String,
    pub message: String,
}

/// Compiles schemas; equal references become one shared schema.
pub struct Compiler<'a> {
    definitions: &'a Map<String, Value>,
    done: HashMap<String, Arc<Schema>>,
    /// Builtins: an object without properties is free form, and its lists may be absent though "required".
    builtin: bool,
}

impl<'a> Compiler<'a> {
    pub fn builtin(definitions: &'a Map<String, Value>) -> Self {
        Self {
            definitions,
            done: HashMap::new(),
            builtin: true,
        }
    }

    /// `metadata` is the schema of ObjectMeta.
    pub fn custom_resource(
        schema: &Value,
        metadata: &Arc<Schema>,
    ) -> Result<Arc<Schema>, SchemaError> {
        let definitions = Map::new();
        let mut compiler = Compiler {
            definitions: &definitions,
            done: HashMap::new(),
            builtin: false,
        };
        compiler
            .done
            .insert("metadata".to_owned(), metadata.clone());
        let mut schema = schema.clone();
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("x-kubernetes-embedded-resource".to_owned(), true.into());
        }
        compiler.node(&schema, &mut Vec::new()).map(Arc::new)
    }

    /// A definition by its name.
    pub fn definition(&mut self, name: &str) -> Result<Arc<Schema>, SchemaError> {
        self.reference(name, &mut Vec::new())
    }

    fn reference(
        &mut self,
        name: &str,
        path: &mut Vec<String>,
    ) -> Result<Arc<Schema>, SchemaError> {
        if let Some(done) = self.done.get(name) {
            return Ok(done.clone());
        }
        let definition = self
            .definitions
            .get(name)
            .ok_or_else(|| error(path, format!("no definition {name}")))?;
        let schema = Arc::new(self.node(definition, path)?);
        self.done.insert(name.to_owned(), schema.clone());
        Ok(schema)
    }

    fn child(
        &mut self,
        name: &str,
        value: &Value,
        path: &mut Vec<String>,
    ) -> Result<Arc<Schema>, SchemaError> {
        path.push(name.to_owned());
        let schema = match self.target(value) {
            Some(target) if value.get("default").is_none() => self.reference(target, path)?,
            Some(target) => {
                let mut own = self.definitions.get(target).cloned().unwrap_or_default();
                own["default"] = value["default"].clone();
                Arc::new(self.node(&own, path)?)
            }
            None => Arc::new(self.node(value, path)?),
        };
        path.pop();
        Ok(schema)
    }

    /// The definition that a property refers to: `$ref`, or `allOf` of one, beside which OpenAPI allows more.
    fn target<'v>(&self, value: &'v Value) -> Option<&'v str> {
        let all_of = || match value.get("allOf")?.as_array()?.as_slice() {
            [one] => one.get("$ref"),
            _ => None,
        };
        let target = value.get("$ref").or_else(all_of)?.as_str()?;
        target.strip_prefix(REFERENCE).filter(|_| self.builtin)
    }

    fn node(&mut self, value: &Value, path: &mut Vec<String>) -> Result<Schema, SchemaError> {
        if path.len() > DEEPEST {
            return Err(error(path, "nested too deeply".to_owned()));
        }
        let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or_default();
        let kind = kind(value);
        let mut properties = Vec::new();
        if let Some(fields) = value.get("properties").and_then(Value::as_object) {
            for (name, schema) in fields {
                properties.push((name.as_str().into(), self.child(name, schema, path)?));
            }
        }
        if flag("x-kubernetes-embedded-resource") {
            self.embed(&mut properties);
        }
        properties.sort_by(|a: &(Box<str>, Arc<Schema>), b| a.0.cmp(&b.0));
        let additional = match value.get("additionalProperties") {
            None | Some(Value::Bool(false)) => Additional::None,
            Some(Value::Bool(true)) => Additional::Any,
            Some(schema) => Additional::Each(self.child("*", schema, path)?),
        };
        let items = value.get("items");
        let items = items
            .map(|items| self.child("[]", items, path))
            .transpose()?;
        let free_form = self.builtin
            && matches!(kind, Type::Object | Type::Any)
            && properties.is_empty()
            && matches!(additional, Additional::None);
        let rules = self.rules(value, path)?;
        let children = || {
            let each = match &additional {
                Additional::Each(schema) => Some(schema),
                Additional::None | Additional::Any => None,
            };
            let named = properties.iter().map(|(_, schema)| schema);
            named.chain(each).chain(&items)
        };
        Ok(Schema {
            kind,
            nullable: flag("nullable"),
            has_cel: children().any(|child| child.has_cel)
                || rules.as_ref().is_some_and(|rules| !rules.cel.is_empty()),
            has_default: children().any(|child| child.has_default)
                || rules.as_ref().is_some_and(|rules| rules.default.is_some()),
            preserve: flag("x-kubernetes-preserve-unknown-fields") || free_form,
            list: list_type(value),
            merge: merge(value),
            properties: properties.into(),
            additional,
            items,
            rules,
        })
    }

    fn embed(&mut self, properties: &mut Vec<(Box<str>, Arc<Schema>)>) {
        let text = || {
            Arc::new(Schema {
                kind: Type::String,
                ..Schema::default()
            })
        };
        let metadata = self.done.get("metadata").cloned();
        for (name, schema) in [
            ("apiVersion", text()),
            ("kind", text()),
            ("metadata", metadata.unwrap_or_else(Schema::anything)),
        ] {
            properties.retain(|(property, _)| **property != *name);
            properties.push((name.into(), schema));
        }
    }

    fn rules(
        &mut self,
        value: &Value,
        path: &mut Vec<String>,
    ) -> Result<Option<Box<Rules>>, SchemaError> {
        let number = |name: &str| value.get(name).and_then(Value::as_f64);
        let count = |name: &str| value.get(name).and_then(Value::as_u64);
        let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or_default();
        let list = |name: &str| {
            value
                .get(name)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
        };
        let mut required: Vec<Box<str>> = list("required")
            .filter_map(|name| Some(name.as_str()?.into()))
            .collect();
        if self.builtin {
            required.retain(|name| !self.is_list(value, name));
        }
        let pattern = value.get("pattern").and_then(Value::as_str);
        let pattern = pattern
            .map(|pattern| {
                RegexBuilder::new(pattern)
                    .size_limit(LARGEST_PATTERN)
                    .build()
                    .map_err(|reason| error(path, format!("pattern {pattern:?}: {reason}")))
            })
            .transpose()?;
        let mut each = |name: &str| {
            list(name)
                .map(|schema| self.child(name, schema, path))
                .collect::<Result<Box<[_]>, _>>()
        };
        let (one_of, any_of, all_of) = (each("oneOf")?, each("anyOf")?, each("allOf")?);
        let not = value.get("not");
        let not = not.map(|not| self.child("not", not, path)).transpose()?;
        let cel = list("x-kubernetes-validations")
            .map(|rule| cel::Rule::compile(rule).map_err(|reason| error(path, reason)))
            .collect::<Result<Box<[_]>, _>>()?;
        let rules = Rules {
            required: required.into(),
            allowed: list("enum").cloned().collect(),
            pattern,
            format: value.get("format").and_then(Value::as_str).map(Box::from),
            minimum: number("minimum"),
            maximum: number("maximum"),
            exclusive_minimum: flag("exclusiveMinimum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            multiple_of: number("multipleOf"),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            unique_items: flag("uniqueItems"),
            default: value.get("default").cloned(),
            one_of,
            any_of,
            all_of,
            not,
            cel,
        };
        Ok((!rules.is_empty()).then(|| Box::new(rules)))
    }

    fn is_list(&self, parent: &Value, name: &str) -> bool {
        let property = json::at(parent, &["properties", name]);
        property.is_some_and(|property| json::text(property, &["type"]) == "array")
    }
}

impl Rules {
    fn is_empty(&self) -> bool {
        self.required.is_empty()
            && self.allowed.is_empty()
            && self.pattern.is_none()
            && self.format.is_none()
            && self.minimum.is_none()
            && self.maximum.is_none()
            && self.multiple_of.is_none()
            && self.min_length.is_none()
            && self.max_length.is_none()
            && self.min_items.is_none()
            && self.max_items.is_none()
            && self.min_properties.is_none()
            && self.max_properties.is_none()
            && !self.unique_items
            && self.default.is_none()
            && self.one_of.is_empty()
            && self.any_of.is_empty()
            && self.all_of.is_empty()
            && self.not.is_none()
            && self.cel.is_empty()
    }
}

fn kind(value: &Value) -> Type {
    if value
        .get("x-kubernetes-int-or-string")
        .and_then(Value::as_bool)
        == Some(true)
    {
        return match json::text(value, &["format"]) {
            "quantity" => Type::Quantity,
            _ => Type::IntOrString,
        };
    }
    match json::text(value, &["type"]) {
        "object" => Type::Object,
        "array" => Type::Array,
        "string" => Type::String,
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        _ => Type::Any,
    }
}

fn list_type(value: &Value) -> ListType {
    match json::text(value, &["x-kubernetes-list-type"]) {
        "set" => ListType::Set,
        "map" => ListType::Map(
            value
                .get("x-kubernetes-list-map-keys")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|key| Some(key.as_str()?.into()))
                .collect(),
        ),
        _ => ListType::Atomic,
    }
}

fn merge(value: &Value) -> Option<Merge> {
    let strategy = json::text(value, &["x-kubernetes-patch-strategy"]);
    strategy
        .split(',')
        .any(|part| part == "merge")
        .then(|| Merge {
            key: json::text(value, &["x-kubernetes-patch-merge-key"]).into(),
        })
}

fn error(path: &[String], message: String) -> SchemaError {
    SchemaError {
        path: path.join("."),
        message,
    }
}
