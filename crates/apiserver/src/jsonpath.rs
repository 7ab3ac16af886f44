//! The part of JSONPath that printer columns use: `.a.b`, `['a.b']`, `[0]`, `[*]` and
//! `[?(@.a=="b")]`.

use serde_json::Value;

/// The longest path that is read, in bytes.
const LONGEST: usize = 1024;
/// The most values that a path yields; the rest is left out.
const MOST_RESULTS: usize = 256;

/// Why a path cannot be read: where, and what was expected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cannot read the JSON path {path:?} at byte {at}: expected {expected}")]
pub struct JsonPathError {
    path: String,
    at: usize,
    expected: &'static str,
}

/// A parsed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(Box<str>),
    /// Counts from the end if negative.
    Index(i64),
    All,
    Filter {
        path: Vec<Step>,
        equal: bool,
        literal: Literal,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Literal {
    Text(Box<str>),
    Number(i64),
    Bool(bool),
}

impl Literal {
    fn equals(&self, value: &Value) -> bool {
        match self {
            Self::Text(text) => value.as_str() == Some(text),
            Self::Number(number) => value.as_i64() == Some(*number),
            Self::Bool(flag) => value.as_bool() == Some(*flag),
        }
    }
}

impl JsonPath {
    /// Reads a path; an enclosing `{…}` and a leading `$` are allowed.
    pub fn parse(text: &str) -> Result<Self, JsonPathError> {
        let inner = text
            .strip_prefix('{')
            .and_then(|text| text.strip_suffix('}'))
            .unwrap_or(text);
        let inner = inner.strip_prefix('$').unwrap_or(inner);
        let mut reader = Reader { text: inner, at: 0 };
        if inner.len() > LONGEST {
            return Err(reader.error("a shorter path"));
        }
        let steps = reader.steps(false)?;
        if reader.at < inner.len() {
            return Err(reader.error("the end"));
        }
        Ok(Self(steps))
    }

    /// The values that the path leads to, in order.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        find(&self.0, value)
    }
}

fn find<'a>(steps: &[Step], value: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![value];
    for step in steps {
        let mut next = Vec::new();
        for value in found {
            advance(step, value, &mut next);
            next.truncate(MOST_RESULTS);
        }
        found = next;
    }
    found
}

fn advance<'a>(step: &Step, value: &'a Value, next: &mut Vec<&'a Value>) {
    match (step, value) {
        (Step::Field(name), Value::Object(fields)) => next.extend(fields.get(&**name)),
        (Step::Index(index), Value::Array(items)) => {
            let index = if *index < 0 {
                items.len().checked_sub(index.unsigned_abs() as usize)
            } else {
                usize::try_from(*index).ok()
            };
            next.extend(index.and_then(|index| items.get(index)));
        }
        (Step::All, Value::Array(items)) => next.extend(items.iter().take(MOST_RESULTS)),
        (Step::All, Value::Object(fields)) => next.extend(fields.values().take(MOST_RESULTS)),
        (
            Step::Filter {
                path,
                equal,
                literal,
            },
            Value::Array(items),
        ) => next.extend(items.iter().filter(|item| {
            let found = find(path, item);
            !found.is_empty() && found.iter().any(|value| literal.equals(value)) == *equal
        })),
        _ => {}
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn error(&self, expected: &'static str) -> JsonPathError {
        JsonPathError {
            path: self.text.chars().take(80).collect(),
            at: self.at,
            expected,
        }
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str, expected: &'static str) -> Result<(), JsonPathError> {
        if self.eat(token) {
            Ok(())
        } else {
            Err(self.error(expected))
        }
    }

    fn spaces(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// Takes characters while `test` holds.
    fn take(&mut self, test: impl Fn(char) -> bool) -> String {
        let taken: String = self.rest().chars().take_while(|c| test(*c)).collect();
        self.at += taken.len();
        taken
    }

    fn steps(&mut self, in_filter: bool) -> Result<Vec<Step>, JsonPathError> {
        let mut steps = Vec::new();
        loop {
            if self.eat("[") {
                steps.push(self.bracket(in_filter)?);
            } else if self.eat(".") {
                if self.rest().starts_with('[') || self.rest().is_empty() {
                    continue;
                }
                if self.eat("*") {
                    steps.push(Step::All);
                    continue;
                }
                let name = self.field()?;
                steps.push(Step::Field(name));
            } else {
                return Ok(steps);
            }
        }
    }

    /// A name after a dot; `\.` is a dot in it.
    fn field(&mut self) -> Result<Box<str>, JsonPathError> {
        let mut name = String::new();
        loop {
            name += &self.take(|c| !matches!(c, '.' | '[' | ']' | '=' | '!' | ')' | '\\' | ' '));
            if !self.eat("\\.") {
                break;
            }
            name.push('.');
        }
        if name.is_empty() {
            return Err(self.error("a field name"));
        }
        Ok(name.into())
    }

    fn bracket(&mut self, in_filter: bool) -> Result<Step, JsonPathError> {
        let step = if self.eat("*") {
            Step::All
        } else if self.eat("?(") {
            if in_filter {
                return Err(self.error("no filter inside a filter"));
            }
            self.filter()?
        } else if self.rest().starts_with(['\'', '"']) {
            Step::Field(self.quoted()?)
        } else {
            let digits = self.take(|c| c == '-' || c.is_ascii_digit());
            let index = digits.parse();
            Step::Index(index.map_err(|_| self.error("an index, '*', a quoted name or a filter"))?)
        };
        self.expect("]", "]")?;
        Ok(step)
    }

    fn filter(&mut self) -> Result<Step, JsonPathError> {
        self.spaces();
        self.expect("@", "@")?;
        let path = self.steps(true)?;
        self.spaces();
        let equal = self.eat("==");
        if !equal {
            self.expect("!=", "== or !=")?;
        }
        self.spaces();
        let literal = if self.rest().starts_with(['\'', '"']) {
            Literal::Text(self.quoted()?)
        } else {
            let word = self.take(|c| c == '-' || c.is_ascii_alphanumeric());
            match word.as_str() {
                "true" => Literal::Bool(true),
                "false" => Literal::Bool(false),
                number => Literal::Number(
                    number
                        .parse()
                        .map_err(|_| self.error("a text, a number, true or false"))?,
                ),
            }
        };
        self.spaces();
        self.expect(")", ")")?;
        Ok(Step::Filter {
            path,
            equal,
            literal,
        })
    }

    fn quoted(&mut self) -> Result<Box<str>, JsonPathError> {
        let quote = if self.eat("'") {
            '\''
        } else {
            self.expect("\"", "a quote")?;
            '"'
        };
        let mut text = String::new();
        loop {
            text += &self.take(|c| c != quote && c != '\\');
            if self.eat("\\") {
                let Some(c) = self.rest().chars().next() else {
                    return Err(self.error("a character after the backslash"));
                };
                self.at += c.len_utf8();
                text.push(c);
            } else {
                break;
            }
        }
        let closing = if quote == '"' { "\"" } else { "'" };
        self.expect(closing, "the closing quote")?;
        Ok(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(path: &str) -> Vec<Value> {
        let object = json!({
            "metadata": {"annotations": {"a.b/c": "noted"}},
            "spec": {"version": "v2.6", "list": [1, 2, 3]},
            "status": {"conditions": [
                {"type": "Ready", "status": "True", "n": 1, "ok": true},
                {"type": "Other", "status": "False", "n": 2, "ok": false},
            ]},
        });
        let path = JsonPath::parse(path).unwrap();
        path.find(&object).into_iter().cloned().collect()
    }

    #[test]
    fn paths_find_what_printer_columns_ask_for() {
        for (path, expected) in [
            (".spec.version", vec![json!("v2.6")]),
            ("{.spec.version}", vec![json!("v2.6")]),
            ("$.spec['version']", vec![json!("v2.6")]),
            (".spec.list[0]", vec![json!(1)]),
            (".spec.list[-1]", vec![json!(3)]),
            (".spec.list[-9]", vec![]),
            (".spec.list[*]", vec![json!(1), json!(2), json!(3)]),
            (".metadata.annotations.a\\.b/c", vec![json!("noted")]),
            (".metadata.annotations['a.b/c']", vec![json!("noted")]),
            (
                ".status.conditions[?(@.type==\"Ready\")].status",
                vec![json!("True")],
            ),
            (
                ".status.conditions[?(@.type != 'Ready')].status",
                vec![json!("False")],
            ),
            (".status.conditions[?(@.n==2)].type", vec![json!("Other")]),
            (
                ".status.conditions[?(@.ok==true)].type",
                vec![json!("Ready")],
            ),
            (".status.none[*].x", vec![]),
        ] {
            assert_eq!(found(path), expected, "{path}");
        }
    }

    #[test]
    fn malformed_paths_say_where() {
        for path in [
            ".a[",
            ".a[?(@.b)]",
            ".a[?(@.b==",
            ".a['b",
            ".a..b",
            "a",
            ".a[x]",
            ".a]",
        ] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
        assert!(JsonPath::parse(&".a".repeat(1000)).is_err());
    }
}
