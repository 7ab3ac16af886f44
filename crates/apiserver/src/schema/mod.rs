//! What objects look like: a compact form of OpenAPI schemas, and what is done with it.
//!
//! The order for an object that comes in: [`prune()`] (unknown fields), [`default()`],
//! [`validate()`], [`cel`].

pub mod builtin;
pub mod cel;
mod compile;
mod default;
mod format;
mod prune;
#[cfg(test)]
mod tests;
mod validate;

use std::sync::Arc;

use regex::Regex;
use serde_json::Value;

pub use self::{
    compile::{Compiler, SchemaError},
    default::default,
    prune::prune,
    validate::validate,
};

/// A schema of one node, with everything below it.
#[derive(Debug, Default)]
pub struct Schema {
    pub kind: Type,
    pub nullable: bool,
    /// Sorted by name.
    pub properties: Box<[(Box<str>, Arc<Schema>)]>,
    pub additional: Additional,
    pub items: Option<Arc<Schema>>,
    /// Unknown fields are kept.
    pub preserve: bool,
    pub list: ListType,
    /// Merge lists by this field, or as sets if it is empty, in a strategic merge patch.
    pub merge: Option<Merge>,
    /// What most nodes do not have.
    pub rules: Option<Box<Rules>>,
    /// Whether a CEL rule is here or below.
    pub has_cel: bool,
    /// Whether a default is here or below.
    pub has_default: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Type {
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
    /// A quantity: a string, or a number that is kept as it is.
    Quantity,
}

/// What fields besides the named ones an object may have.
#[derive(Debug, Default)]
pub enum Additional {
    #[default]
    None,
    Any,
    Each(Arc<Schema>),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Box<[Box<str>]>),
}

/// How a strategic merge patch treats a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merge {
    /// The field that tells elements apart; empty for lists of scalars.
    pub key: Box<str>,
}

#[derive(Debug, Default)]
pub struct Rules {
    pub required: Box<[Box<str>]>,
    pub allowed: Box<[Value]>,
    pub pattern: Option<Regex>,
    pub format: Option<Box<str>>,
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    pub exclusive_minimum: bool,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    pub unique_items: bool,
    pub default: Option<Value>,
    pub one_of: Box<[Arc<Schema>]>,
    pub any_of: Box<[Arc<Schema>]>,
    pub all_of: Box<[Arc<Schema>]>,
    pub not: Option<Arc<Schema>>,
    pub cel: Box<[cel::Rule]>,
}

impl Schema {
    /// A node of any form, kept as it is.
    pub fn anything() -> Arc<Self> {
        Arc::new(Self {
            preserve: true,
            ..Self::default()
        })
    }

    /// The schema of a named field, of what the map's values are otherwise.
    pub fn property(&self, name: &str) -> Option<&Arc<Schema>> {
        if let Ok(at) = self
            .properties
            .binary_search_by(|(property, _)| (**property).cmp(name))
        {
            return Some(&self.properties[at].1);
        }
        match &self.additional {
            Additional::Each(schema) => Some(schema),
            Additional::None | Additional::Any => None,
        }
    }
}

/// A path of fields as error messages have it, built and taken apart in place.
#[derive(Debug, Default)]
pub struct Path(String);

impl Path {
    /// Goes to a field, does something there, and comes back.
    pub fn field<T>(&mut self, name: &str, then: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.0.len();
        let plain = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        if !plain {
            self.0.push('[');
            self.0.push_str(name);
            self.0.push(']');
        } else if self.0.is_empty() {
            self.0.push_str(name);
        } else {
            self.0.push('.');
            self.0.push_str(name);
        }
        let result = then(self);
        self.0.truncate(length);
        result
    }

    pub fn index<T>(&mut self, index: usize, then: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.0.len();
        self.0.push_str(&format!("[{index}]"));
        let result = then(self);
        self.0.truncate(length);
        result
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}
