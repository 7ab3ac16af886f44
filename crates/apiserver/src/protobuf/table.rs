//! The messages, as data.

use std::{collections::HashMap, sync::LazyLock};

static TEXT: &str = include_str!("messages.txt");

static MESSAGES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(read);

#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub number: u32,
    pub name: &'static str,
    pub repeat: Repeat,
    pub kind: Kind,
    /// Zeros are said.
    pub keep_zero: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    Once,
    List,
    Map,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Bytes,
    Integer,
    Flag,
    Double,
    Time,
    MicroTime,
    IntOrString,
    Quantity,
    /// JSON in bytes in a message.
    Raw,
    Message(&'static str),
}

/// The fields of a message, by its name in the table.
pub fn fields(message: &str) -> &'static [Field] {
    MESSAGES.get(message).map(Vec::as_slice).unwrap_or_default()
}

/// The name of the message of a kind.
pub fn message(api_version: &str, kind: &str) -> Option<&'static str> {
    let package = match api_version {
        _ if kind == "DeleteOptions" => "meta.v1",
        "v1" => "core.v1",
        "events.k8s.io/v1" => "events.v1",
        "discovery.k8s.io/v1" => "discovery.v1",
        "coordination.k8s.io/v1" => "coordination.v1",
        "authentication.k8s.io/v1" => "authentication.v1",
        "authorization.k8s.io/v1" => "authorization.v1",
        _ => return None,
    };
    let (name, _) = MESSAGES.get_key_value(format!("{package}.{kind}").as_str())?;
    Some(name)
}

fn read() -> HashMap<&'static str, Vec<Field>> {
    let mut messages = HashMap::new();
    let mut current: Option<&mut Vec<Field>> = None;
    for line in TEXT
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let mut words = line.split(' ');
        let first = words.next().unwrap_or_default();
        match (first.parse(), words.next(), words.next()) {
            (Ok(number), Some(name), Some(kind)) => {
                if let Some(fields) = &mut current {
                    fields.push(field(number, name, kind));
                }
            }
            _ => current = Some(messages.entry(first).or_default()),
        }
    }
    messages
}

fn field(number: u32, name: &'static str, kind: &'static str) -> Field {
    let (kind, keep_zero) = match kind.strip_suffix('!') {
        Some(kind) => (kind, true),
        None => (kind, false),
    };
    let (repeat, kind) = if let Some(kind) = kind.strip_prefix('*') {
        (Repeat::List, kind)
    } else if let Some(kind) = kind.strip_prefix('%') {
        (Repeat::Map, kind)
    } else {
        (Repeat::Once, kind)
    };
    let kind = match kind {
        "s" => Kind::Text,
        "y" => Kind::Bytes,
        "i" => Kind::Integer,
        "b" => Kind::Flag,
        "d" => Kind::Double,
        "@time" => Kind::Time,
        "@micro" => Kind::MicroTime,
        "@intstr" => Kind::IntOrString,
        "@quantity" => Kind::Quantity,
        "@raw" | "@fields" => Kind::Raw,
        message => Kind::Message(message),
    };
    Field {
        number,
        name,
        repeat,
        kind,
        keep_zero,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_that_is_named_is_in_the_table() {
        assert!(MESSAGES.len() > 150);
        for (name, fields) in MESSAGES.iter() {
            for field in fields {
                if let Kind::Message(message) = field.kind {
                    assert!(
                        MESSAGES.contains_key(message),
                        "{name}.{}: {message}",
                        field.name
                    );
                }
            }
        }
    }
}
