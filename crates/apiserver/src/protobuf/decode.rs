//! The wire format.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value, map::Entry};

use super::{
    ProtobufError,
    table::{self, Field, Kind, Repeat},
};

/// Nesting of messages.
const DEEPEST: usize = 32;

/// The fields of a message, one after another.
pub struct Reader<'a>(&'a [u8]);

/// The value of a field.
#[derive(Debug, Clone, Copy)]
pub enum Wire<'a> {
    Number(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, ProtobufError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.number()?;
        let field = u32::try_from(tag >> 3).map_err(|_| ProtobufError::Damaged)?;
        let value = match tag & 7 {
            0 => Wire::Number(self.number()?),
            1 => {
                let (bytes, rest) = self.0.split_first_chunk().ok_or(ProtobufError::Damaged)?;
                self.0 = rest;
                Wire::Fixed(u64::from_le_bytes(*bytes))
            }
            2 => {
                let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
                let (bytes, rest) = self
                    .0
                    .split_at_checked(length)
                    .ok_or(ProtobufError::Damaged)?;
                self.0 = rest;
                Wire::Bytes(bytes)
            }
            5 => {
                let (bytes, rest) = self.0.split_first_chunk().ok_or(ProtobufError::Damaged)?;
                self.0 = rest;
                Wire::Fixed(u64::from(u32::from_le_bytes(*bytes)))
            }
            _ => return Err(ProtobufError::Damaged),
        };
        Ok(Some((field, value)))
    }

    fn number(&mut self) -> Result<u64, ProtobufError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(ProtobufError::Damaged)?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(ProtobufError::Damaged)
    }
}

impl<'a> Wire<'a> {
    pub fn bytes(self) -> Result<&'a [u8], ProtobufError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) | Self::Fixed(_) => Err(ProtobufError::Damaged),
        }
    }

    pub fn text(self) -> Result<&'a str, ProtobufError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| ProtobufError::Damaged)
    }

    /// Negative numbers are sent as what they are in two's complement.
    fn integer(self) -> Result<i64, ProtobufError> {
        match self {
            Self::Number(number) => Ok(number.cast_signed()),
            Self::Fixed(_) | Self::Bytes(_) => Err(ProtobufError::Damaged),
        }
    }
}

/// Reads a message as the JSON object that it stands for. Unknown fields are left out, as protobuf has it.
pub fn message(name: &str, bytes: &[u8], depth: usize) -> Result<Value, ProtobufError> {
    if depth > DEEPEST {
        return Err(ProtobufError::TooDeep);
    }
    let fields = table::fields(name);
    let mut object = Map::new();
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        if let Some(field) = fields.iter().find(|field| field.number == number) {
            add(&mut object, field, wire, depth)?;
        }
    }
    Ok(Value::Object(object))
}

fn add(
    object: &mut Map<String, Value>,
    field: &Field,
    wire: Wire<'_>,
    depth: usize,
) -> Result<(), ProtobufError> {
    match field.repeat {
        Repeat::Once => {
            let value = value(field.kind, wire, depth)?;
            if field.name == "-" {
                if let Value::Object(mut inner) = value {
                    object.append(&mut inner);
                }
            } else if field.keep_zero && !value.is_null() || !is_zero(&value) {
                object.insert(field.name.to_owned(), value);
            }
        }
        Repeat::List => {
            let value = value(field.kind, wire, depth)?;
            if let Value::Array(items) = entry(object, field, Value::Array(Vec::new())) {
                items.push(value);
            }
        }
        Repeat::Map => {
            let (mut key, mut found) = ("", None);
            let mut pair = Reader::new(wire.bytes()?);
            while let Some((number, wire)) = pair.next()? {
                match number {
                    1 => key = wire.text()?,
                    2 => found = Some(value(field.kind, wire, depth)?),
                    _ => {}
                }
            }
            let found = match found {
                Some(value) => value,
                None => value(field.kind, Wire::Bytes(&[]), depth)?,
            };
            if let Value::Object(entries) = entry(object, field, Value::Object(Map::new())) {
                entries.insert(key.to_owned(), found);
            }
        }
    }
    Ok(())
}

fn entry<'a>(object: &'a mut Map<String, Value>, field: &Field, empty: Value) -> &'a mut Value {
    match object.entry(field.name) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(empty),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

fn value(kind: Kind, wire: Wire<'_>, depth: usize) -> Result<Value, ProtobufError> {
    Ok(match kind {
        Kind::Text => wire.text()?.into(),
        Kind::Bytes => BASE64_STANDARD.encode(wire.bytes()?).into(),
        Kind::Integer => wire.integer()?.into(),
        Kind::Flag => (wire.integer()? != 0).into(),
        Kind::Double => match wire {
            Wire::Fixed(bits) => f64::from_bits(bits).into(),
            Wire::Number(_) | Wire::Bytes(_) => return Err(ProtobufError::Damaged),
        },
        Kind::Time => time(wire.bytes()?, 0)?,
        Kind::MicroTime => time(wire.bytes()?, 6)?,
        Kind::IntOrString => int_or_string(wire.bytes()?)?,
        Kind::Quantity => last(wire.bytes()?)?.map_or(Ok("0"), Wire::text)?.into(),
        Kind::Raw => match last(wire.bytes()?)? {
            None => Value::Null,
            Some(raw) => {
                let document = crate::json::parse_json(raw.bytes()?);
                document.map_err(|_| ProtobufError::Format)?.value
            }
        },
        Kind::Message(name) => message(name, wire.bytes()?, depth + 1)?,
    })
}

/// The only field of a message.
fn last(bytes: &[u8]) -> Result<Option<Wire<'_>>, ProtobufError> {
    let mut reader = Reader::new(bytes);
    let mut found = None;
    while let Some((number, wire)) = reader.next()? {
        if number == 1 {
            found = Some(wire);
        }
    }
    Ok(found)
}

/// Seconds and nanoseconds; without both it is no time at all.
fn time(bytes: &[u8], digits: usize) -> Result<Value, ProtobufError> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => seconds = wire.integer()?,
            2 => nanos = i32::try_from(wire.integer()?).map_err(|_| ProtobufError::Damaged)?,
            _ => {}
        }
    }
    if (seconds, nanos) == (0, 0) {
        return Ok(Value::Null);
    }
    let nanos = if digits == 0 { 0 } else { nanos };
    let time = Timestamp::new(seconds, nanos).map_err(|_| ProtobufError::Damaged)?;
    Ok(format!("{time:.digits$}").into())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    let mut reader = Reader::new(bytes);
    while let Some((field, wire)) = reader.next()? {
        match field {
            1 => is_text = wire.integer()? == 1,
            2 => number = wire.integer()?,
            3 => text = wire.text()?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}
