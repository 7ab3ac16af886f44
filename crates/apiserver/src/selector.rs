//! Label and field selectors, as query parameters carry them.

use crate::names;

/// The longest selector that is read, in bytes.
const LONGEST: usize = 16 * 1024;

/// Why a selector is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SelectorError {
    #[error("the selector is longer than {LONGEST} bytes")]
    TooLong,
    #[error("unable to parse requirement {0:?}")]
    Syntax(String),
    #[error("invalid label key or value in {0:?}")]
    Label(String),
    #[error("field label not supported: {0}")]
    Field(String),
}

/// All requirements must hold. The default holds for everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
    Above(i64),
    Below(i64),
}

impl LabelSelector {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k,n>1`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > LONGEST {
            return Err(SelectorError::TooLong);
        }
        let requirements = split_outside_parentheses(text)
            .filter(|part| !part.is_empty())
            .map(requirement)
            .collect::<Result<_, _>>()?;
        Ok(Self { requirements })
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// `label` finds the value of a label.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = label(&requirement.key);
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
                Test::NotIn(values) => value.is_none_or(|value| values.iter().all(|v| v != value)),
                Test::Above(limit) => number(value).is_some_and(|number| number > *limit),
                Test::Below(limit) => number(value).is_some_and(|number| number < *limit),
            }
        })
    }
}

fn number(value: Option<&str>) -> Option<i64> {
    value?.parse().ok()
}

fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
}

fn requirement(text: &str) -> Result<Requirement, SelectorError> {
    let syntax = || SelectorError::Syntax(text.to_owned());
    let (key, test) = if let Some(key) = text.strip_prefix('!') {
        (key, Test::Absent)
    } else if let Some((head, list)) = text.split_once('(') {
        let list = list.strip_suffix(')').ok_or_else(syntax)?;
        if list.contains(['(', ')']) {
            return Err(syntax());
        }
        let values = list.split(',').map(|v| v.trim().to_owned()).collect();
        match head.split_whitespace().collect::<Vec<_>>().as_slice() {
            [key, "in"] => (*key, Test::In(values)),
            [key, "notin"] => (*key, Test::NotIn(values)),
            _ => return Err(syntax()),
        }
    } else if let Some((key, value)) = text.split_once("!=") {
        (key, Test::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key, Test::In(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = text.split_once('>') {
        (
            key,
            Test::Above(number(Some(value.trim())).ok_or_else(syntax)?),
        )
    } else if let Some((key, value)) = text.split_once('<') {
        (
            key,
            Test::Below(number(Some(value.trim())).ok_or_else(syntax)?),
        )
    } else {
        (text, Test::Exists)
    };
    let key = key.trim();
    let values_fit = match &test {
        Test::In(values) | Test::NotIn(values) => {
            values.iter().all(|value| names::is_label_value(value))
        }
        _ => true,
    };
    if !names::is_qualified_name(key) || !values_fit {
        return Err(SelectorError::Label(text.to_owned()));
    }
    Ok(Requirement {
        key: key.to_owned(),
        test,
    })
}

/// All terms must hold; each compares one field with a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldTerm {
    field: String,
    equal: bool,
    value: String,
}

impl FieldSelector {
    /// Reads `a=b,c==d,e!=f`; `\,`, `\=` and `\\` stand for themselves. `known` says which fields can be selected on.
    pub fn parse(text: &str, known: impl Fn(&str) -> bool) -> Result<Self, SelectorError> {
        if text.len() > LONGEST {
            return Err(SelectorError::TooLong);
        }
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let syntax = || SelectorError::Syntax(part.to_owned());
            let (field, rest) = part.split_at(part.find(['=', '!']).ok_or_else(syntax)?);
            let (equal, value) = if let Some(value) = rest.strip_prefix("!=") {
                (false, value)
            } else if let Some(value) = rest.strip_prefix("==") {
                (true, value)
            } else {
                (true, rest.strip_prefix('=').ok_or_else(syntax)?)
            };
            if !known(field) {
                return Err(SelectorError::Field(field.to_owned()));
            }
            terms.push(FieldTerm {
                field: field.to_owned(),
                equal,
                value: unescape(value).ok_or_else(syntax)?,
            });
        }
        Ok(Self { terms })
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// `field` finds the text of a field; a field that is absent reads as empty.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> &'a str) -> bool {
        self.terms
            .iter()
            .all(|term| (field(&term.field) == term.value) == term.equal)
    }
}

fn split_unescaped(text: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |c| {
        let splits = c == ',' && !escaped;
        escaped = c == '\\' && !escaped;
        splits
    })
}

fn unescape(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.push(chars.next().filter(|c| matches!(c, '\\' | ',' | '='))?),
            '=' => return None,
            c => plain.push(c),
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(key: &str) -> Option<&'static str> {
        match key {
            "app" => Some("web"),
            "tier" => Some("5"),
            "example.com/x" => Some(""),
            _ => None,
        }
    }

    #[test]
    fn label_requirements_hold_as_kubernetes_defines_them() {
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app=db", false),
            ("app!=db", true),
            ("gone!=db", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("gone notin (a)", true),
            ("app", true),
            ("gone", false),
            ("!gone", true),
            ("!app", false),
            ("tier>4,tier<6", true),
            ("tier>5", false),
            ("example.com/x=", true),
            ("app=web,gone", false),
        ] {
            let selector = LabelSelector::parse(text).unwrap();
            assert_eq!(selector.matches(labels), expected, "{text}");
        }
    }

    #[test]
    fn malformed_label_selectors_are_refused() {
        for text in [
            "a=b=c",
            "a in (b",
            "a in b",
            "a b",
            "=x",
            "a=ü",
            "a>x",
            "a in ((b))",
        ] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            LabelSelector::parse(&"a,".repeat(10_000)),
            Err(SelectorError::TooLong)
        );
    }

    #[test]
    fn field_terms_compare_and_unknown_fields_are_named() {
        let known = |field: &str| field == "metadata.name";
        let value = |_: &str| "a,b";
        let parse = |text| FieldSelector::parse(text, known);
        assert!(parse(r"metadata.name=a\,b").unwrap().matches(value));
        assert!(!parse("metadata.name=a").unwrap().matches(value));
        assert!(parse("metadata.name!=a").unwrap().matches(value));
        assert_eq!(
            parse("spec.x=1"),
            Err(SelectorError::Field("spec.x".to_owned()))
        );
        assert!(parse("metadata.name").is_err());
        assert!(parse(r"metadata.name=a\x").is_err());
    }
}
