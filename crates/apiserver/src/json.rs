//! Reading request bodies: JSON with duplicate fields noticed, YAML through the same value type.

use std::{cell::RefCell, fmt};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// How many duplicate fields are named; a hostile body must not make a long list.
const MOST_DUPLICATES: usize = 16;

/// Values in one YAML text, aliases expanded. A text of 64 MiB of usual manifests has some eight million;
/// each takes about 100 bytes of memory.
const MOST_YAML_VALUES: usize = 10_000_000;
/// Bytes of all scalars of one YAML text, aliases expanded.
const MOST_YAML_BYTES: usize = 64 * 1024 * 1024;

/// Values that have an anchor, and values that aliases stand for.
const MOST_ALIASED_VALUES: usize = 100_000;

/// Why a body is not a document.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Yaml(String),
    /// It is YAML, and is not taken nevertheless.
    #[error("{0}")]
    Refused(String),
}

impl From<serde_saphyr::Error> for ParseError {
    fn from(error: serde_saphyr::Error) -> Self {
        use serde_saphyr::{Error, budget::BudgetBreach};
        let mut cause = error.without_snippet();
        while let Error::AliasError { error, .. } = cause {
            cause = error.without_snippet();
        }
        let refused = match cause {
            Error::DuplicateMappingKey { key: Some(key), .. } => {
                format!("the field {key:?} is there twice")
            }
            Error::DuplicateMappingKey { key: None, .. } => "a field is there twice".to_owned(),
            Error::Budget { breach, .. } => match breach {
                BudgetBreach::Depth { .. } => "it is nested too deeply".to_owned(),
                BudgetBreach::Nodes { .. }
                | BudgetBreach::Events { .. }
                | BudgetBreach::Documents { .. } => {
                    format!("it has more than {MOST_YAML_VALUES} values, aliases expanded")
                }
                BudgetBreach::ScalarBytes { .. } => {
                    let most = MOST_YAML_BYTES / 1024 / 1024;
                    format!("it is larger than {most} MiB, aliases expanded")
                }
                _ => TOO_MANY_ALIASES.to_owned(),
            },
            Error::AliasReplayCounterOverflow { .. }
            | Error::AliasReplayLimitExceeded { .. }
            | Error::AliasExpansionLimitExceeded { .. }
            | Error::AliasReplayStackDepthExceeded { .. } => TOO_MANY_ALIASES.to_owned(),
            _ => return Self::Yaml(error.to_string()),
        };
        Self::Refused(match error.location() {
            Some(at) => format!("{refused}: line {}, column {}", at.line(), at.column()),
            None => refused,
        })
    }
}

const TOO_MANY_ALIASES: &str = "it has too many anchors and aliases, or they stand for too much";

/// A parsed body, and the paths of fields that appeared twice (the last one wins).
#[derive(Debug)]
pub struct Document {
    pub value: Value,
    pub duplicates: Vec<String>,
}

/// Nesting is bounded (128 levels) by serde_json.
pub fn parse_json(bytes: &[u8]) -> Result<Document, ParseError> {
    let state = State::default();
    let mut input = serde_json::Deserializer::from_slice(bytes);
    let value = Node(&state).deserialize(&mut input)?;
    input.end()?;
    Ok(Document {
        value,
        duplicates: state.duplicates.into_inner(),
    })
}

/// How YAML is read. A text of 64 MiB of manifests passes; what aliases and merge keys make of it, and
/// nesting, have narrow limits. Duplicate keys are refused.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        // Or a name like `y` would be a flag.
        strict_booleans: true,
        // An error is one line.
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_nodes: MOST_YAML_VALUES,
            // A list or an object has a beginning and an end, and so has a document.
            max_events: 4 * MOST_YAML_VALUES,
            max_documents: MOST_YAML_VALUES,
            max_total_scalar_bytes: MOST_YAML_BYTES,
            max_recorded_anchor_events: MOST_ALIASED_VALUES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MOST_ALIASED_VALUES,
        },
    }
}

pub fn parse_yaml(bytes: &[u8]) -> Result<Document, ParseError> {
    let value = serde_saphyr::from_slice_with_options::<Value>(bytes, yaml_options())?;
    Ok(Document {
        value,
        duplicates: Vec::new(),
    })
}

/// Every document of a YAML or JSON text.
pub fn parse_documents(text: &str) -> Result<Vec<Value>, ParseError> {
    if text.trim_start().starts_with('{')
        && let Ok(value) = serde_json::from_str(text)
    {
        return Ok(vec![value]);
    }
    Ok(serde_saphyr::from_multiple_with_options(
        text,
        yaml_options(),
    )?)
}

/// The value at a path of field names.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, field| value.get(field))
}

/// The text at a path; empty if there is none.
pub fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or_default()
}

/// The object's `metadata`, made if absent. `None` if it is not an object.
pub fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object
        .as_object_mut()?
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()))
        .as_object_mut()
}

/// The object's `metadata`, or an empty one.
pub fn metadata(object: &Value) -> &Map<String, Value> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    object
        .get("metadata")
        .and_then(Value::as_object)
        .unwrap_or(&EMPTY)
}

#[derive(Default)]
struct State {
    path: RefCell<Vec<Step>>,
    duplicates: RefCell<Vec<String>>,
}

enum Step {
    Field(String),
    Index(usize),
}

impl State {
    fn note_duplicate(&self, field: &str) {
        let mut duplicates = self.duplicates.borrow_mut();
        if duplicates.len() == MOST_DUPLICATES {
            return;
        }
        let mut path = String::new();
        for step in self.path.borrow().iter() {
            match step {
                Step::Field(name) if path.is_empty() => path.push_str(name),
                Step::Field(name) => {
                    path.push('.');
                    path.push_str(name);
                }
                Step::Index(index) => path.push_str(&format!("[{index}]")),
            }
        }
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(field);
        if !duplicates.contains(&path) {
            duplicates.push(path);
        }
    }
}

struct Node<'a>(&'a State);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut input: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            self.0.path.borrow_mut().push(Step::Index(items.len()));
            let item = input.next_element_seed(Node(self.0))?;
            self.0.path.borrow_mut().pop();
            match item {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut input: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = input.next_key::<String>()? {
            if fields.contains_key(&name) {
                self.0.note_duplicate(&name);
            }
            self.0.path.borrow_mut().push(Step::Field(name));
            let value = input.next_value_seed(Node(self.0))?;
            if let Some(Step::Field(name)) = self.0.path.borrow_mut().pop() {
                fields.insert(name, value);
            }
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_duplicate_field_is_named_by_its_path_and_the_last_one_wins() {
        let document =
            parse_json(br#"{"spec":{"a":1,"items":[{"b":1,"b":2}],"a":3},"kind":"X"}"#).unwrap();
        assert_eq!(document.duplicates, ["spec.items[0].b", "spec.a"]);
        assert_eq!(document.value["spec"]["a"], json!(3));
        assert_eq!(document.value["spec"]["items"][0]["b"], json!(2));
    }

    #[test]
    fn deep_nesting_and_trailing_garbage_are_refused() {
        assert!(parse_json("[".repeat(100_000).as_bytes()).is_err());
        assert!(parse_json(b"{} x").is_err());
        assert!(parse_json(b"").is_err());
    }

    #[test]
    fn what_aliases_make_of_a_short_text_is_limited() {
        // Lists of lists: a thousand million leaves from 300 bytes.
        let mut lists = "a0: &a0 [x]\n".to_owned();
        for level in 1..10 {
            let inner = vec![format!("*a{}", level - 1); 10].join(", ");
            lists.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
        }
        // One long text, said again and again.
        let long = "x".repeat(4 * 1024 * 1024);
        let again = vec!["*a"; 99].join(", ");
        for text in [lists, format!("a: &a {long}\nb: [{again}]\n")] {
            let refused = parse_documents(&text).unwrap_err();
            assert!(matches!(refused, ParseError::Refused(_)), "{refused}");
            let shown = refused.to_string();
            assert!(
                shown.contains("alias") && shown.contains("line "),
                "{shown}"
            );
            assert!(parse_yaml(text.as_bytes()).is_err());
        }
    }

    #[test]
    fn a_duplicate_yaml_field_is_refused_with_its_place() {
        let refused = parse_yaml(b"kind: X\nspec:\n  a: 1\n  a: 2\n").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the field \"a\" is there twice: line 4, column 3"
        );
    }

    #[test]
    fn yaml_reads_as_the_same_value() {
        let document = parse_yaml(b"spec:\n  a: 1\n  b: [x, 'true', y, true]\n").unwrap();
        assert_eq!(
            document.value,
            json!({"spec": {"a": 1, "b": ["x", "true", "y", true]}})
        );
    }
}
