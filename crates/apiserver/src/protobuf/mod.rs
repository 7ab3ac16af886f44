//! Reading Kubernetes' protobuf: typed Go clients send nothing else for builtin kinds. Answers are
//! JSON, which the same clients accept.

mod decode;
mod table;

use serde_json::{Map, Value};

use self::decode::Reader;
use crate::json;

pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Four bytes before the envelope.
const MAGIC: &[u8] = b"k8s\0";

/// Why bytes are not an object in protobuf.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProtobufError {
    #[error("the body does not begin as Kubernetes' protobuf does")]
    Magic,
    #[error("the body ends within a field, or a field is not what its number says")]
    Damaged,
    #[error("messages are nested too deeply")]
    TooDeep,
    #[error("{kind} of {api_version} is not known in protobuf; send it as JSON")]
    Unknown { api_version: String, kind: String },
    #[error("the object inside is in an unknown format")]
    Format,
}

/// Reads an object.
pub fn parse(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let body = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let (mut meta, mut raw, mut media): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
    let mut fields = Reader::new(body);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => meta = value.bytes()?,
            2 => raw = value.bytes()?,
            3 if !value.bytes()?.is_empty() => return Err(ProtobufError::Format),
            4 => media = value.bytes()?,
            _ => {}
        }
    }
    let (mut api_version, mut kind) = (String::new(), String::new());
    let mut fields = Reader::new(meta);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => api_version = value.text()?.to_owned(),
            2 => kind = value.text()?.to_owned(),
            _ => {}
        }
    }
    let mut value = match media {
        b"" | b"application/vnd.kubernetes.protobuf" => {
            let Some(message) = table::message(&api_version, &kind) else {
                return Err(ProtobufError::Unknown { api_version, kind });
            };
            decode::message(message, raw, 0)?
        }
        b"application/json" => {
            let document = json::parse_json(raw).map_err(|_| ProtobufError::Format)?;
            document.value
        }
        _ => return Err(ProtobufError::Format),
    };
    if let Value::Object(fields) = &mut value {
        let mut whole = Map::new();
        whole.insert("apiVersion".to_owned(), api_version.into());
        whole.insert("kind".to_owned(), kind.into());
        whole.append(fields);
        *fields = whole;
    }
    Ok(value)
}

#[cfg(test)]
mod tests;
