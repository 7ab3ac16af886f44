//! One version of one object, as the store holds it.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};

use crate::json;

/// A kind of stored object.
#[derive(Debug, Clone, Default)]
pub struct StoreKind {
    /// `<group>/<plural>`; part of every key on the disk.
    pub path: String,
    /// Paths of the fields that can be selected on.
    pub selectable: Vec<Vec<String>>,
    /// `spec.finalizers` hold an object back as well: it is the kind of namespaces.
    pub spec_finalizers: bool,
}

/// The place of an object among those of its kind: `<namespace>/<name>`.
pub type Key = Arc<str>;

/// A UUID as a number; 0 if it is not one.
pub type Uid = u128;

/// The key of an object; `namespace` is empty for kinds without one.
pub fn key(namespace: &str, name: &str) -> Key {
    Key::from(format!("{namespace}/{name}"))
}

/// The form `8-4-4-4-12`.
pub fn format_uid(uid: Uid) -> String {
    let hex = format!("{uid:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// 0 for a text that is not a UUID, which no object has.
pub fn parse_uid(text: &str) -> Uid {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    if hex.len() != 32 {
        return 0;
    }
    Uid::from_str_radix(&hex, 16).unwrap_or_default()
}

/// An object, serialized once: everything after `{"metadata":{"resourceVersion":"…",`. So what
/// differs between versions of an API (`apiVersion`) and what is known only when a write commits
/// (the resource version) is put in front when the object is sent, without reading it again.
#[derive(Debug, Clone)]
pub struct Stored {
    pub key: Key,
    pub revision: u64,
    pub uid: Uid,
    /// Set once deletion has begun.
    pub deleting: bool,
    /// Whether something must still happen before a deleted object is gone.
    pub finalizers: bool,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    pub owners: Box<[Uid]>,
    /// The values of the kind's selectable fields, in the kind's order.
    pub fields: Box<[Box<str>]>,
    pub tail: Bytes,
}

impl Stored {
    /// Takes an object apart. `apiVersion`, `kind` and the resource version are left out; the
    /// revision is given when it is written. `None` if it is not an object with metadata.
    pub fn from_value(value: &Value, kind: &StoreKind) -> Option<Self> {
        let object = value.as_object()?;
        let metadata = object.get("metadata")?.as_object()?;
        let mut tail = Vec::with_capacity(512);
        let mut first = true;
        for (name, field) in metadata {
            if name == "resourceVersion" {
                continue;
            }
            write_field(&mut tail, &mut first, name, field)?;
        }
        tail.push(b'}');
        let mut first = false;
        for (name, field) in object {
            if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                write_field(&mut tail, &mut first, name, field)?;
            }
        }
        tail.push(b'}');
        // Without the room to grow that it was written with.
        let tail = tail.into_boxed_slice();
        Some(Self::index(value, metadata, kind, tail.into()))
    }

    /// Reads what [`Stored::tail`] was written to the disk as.
    pub fn from_disk(revision: u64, tail: &[u8], kind: &StoreKind) -> Option<Self> {
        let value = parse_tail(tail)?;
        let metadata = value.get("metadata")?.as_object()?;
        let mut stored = Self::index(&value, metadata, kind, Bytes::copy_from_slice(tail));
        stored.revision = revision;
        Some(stored)
    }

    fn index(value: &Value, metadata: &Map<String, Value>, kind: &StoreKind, tail: Bytes) -> Self {
        let text = |field| {
            metadata
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let labels = metadata.get("labels").and_then(Value::as_object);
        let owners = metadata.get("ownerReferences").and_then(Value::as_array);
        Self {
            key: key(text("namespace"), text("name")),
            revision: 0,
            uid: parse_uid(text("uid")),
            deleting: metadata.contains_key("deletionTimestamp"),
            finalizers: has_finalizers(value, kind),
            labels: labels
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.as_str().into(), value.as_str().unwrap_or("").into()))
                .collect(),
            owners: owners
                .into_iter()
                .flatten()
                .map(|owner| parse_uid(json::text(owner, &["uid"])))
                .filter(|uid| *uid != 0)
                .collect(),
            fields: kind
                .selectable
                .iter()
                .map(|path| {
                    let path: Vec<&str> = path.iter().map(String::as_str).collect();
                    match json::at(value, &path) {
                        Some(Value::String(text)) => text.as_str().into(),
                        Some(Value::Null) | None => "".into(),
                        Some(other) => other.to_string().into(),
                    }
                })
                .collect(),
            tail,
        }
    }

    pub fn namespace(&self) -> &str {
        self.key
            .split_once('/')
            .map_or("", |(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        self.key.split_once('/').map_or("", |(_, name)| name)
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(label, _)| **label == *name);
        found.map(|(_, value)| &**value)
    }

    /// The whole object, as an API version has it; `head` is [`head`] of that version.
    pub fn write_json(&self, head: &str, out: &mut BytesMut) {
        out.reserve(head.len() + 24 + self.tail.len());
        out.put_slice(head.as_bytes());
        out.put_slice(self.revision.to_string().as_bytes());
        out.put_slice(b"\",");
        out.put_slice(&self.tail);
    }

    /// The object as a value, with its resource version, without `apiVersion` and `kind`.
    pub fn to_value(&self) -> Value {
        let mut value = parse_tail(&self.tail).unwrap_or_default();
        if let Some(metadata) = json::metadata_mut(&mut value) {
            metadata.insert(
                "resourceVersion".to_owned(),
                Value::from(self.revision.to_string()),
            );
        }
        value
    }

    /// Bytes that holding this object costs, about.
    pub fn weight(&self) -> usize {
        self.tail.len() + 256
    }
}

/// What comes before the revision in an object's JSON.
pub fn head(api_version: &str, kind: &str) -> String {
    format!(
        r#"{{"apiVersion":{},"kind":{},"metadata":{{"resourceVersion":""#,
        Value::from(api_version),
        Value::from(kind)
    )
}

/// Whether something holds a deleted object back.
fn has_finalizers(value: &Value, kind: &StoreKind) -> bool {
    let own = Some(&["metadata", "finalizers"][..]);
    let specs = kind.spec_finalizers.then_some(&["spec", "finalizers"][..]);
    own.into_iter()
        .chain(specs)
        .filter_map(|path| json::at(value, path)?.as_array())
        .any(|finalizers| !finalizers.is_empty())
}

fn write_field(out: &mut Vec<u8>, first: &mut bool, name: &str, value: &Value) -> Option<()> {
    if !std::mem::take(first) {
        out.push(b',');
    }
    serde_json::to_writer(&mut *out, name).ok()?;
    out.push(b':');
    serde_json::to_writer(&mut *out, value).ok()
}

fn parse_tail(tail: &[u8]) -> Option<Value> {
    let mut text = Vec::with_capacity(tail.len() + 16);
    text.extend_from_slice(br#"{"metadata":{"#);
    text.extend_from_slice(tail);
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_comes_back_as_it_was_under_another_version_and_revision() {
        let value = json!({
            "apiVersion": "old/v1", "kind": "Old",
            "metadata": {
                "name": "n", "namespace": "ns", "resourceVersion": "3",
                "uid": "00000000-0000-0000-0000-0000000000ff", "labels": {"a": "b"},
                "ownerReferences": [{"uid": "00000000-0000-0000-0000-000000000001"}],
            },
            "spec": {"x": [1, "two"]},
        });
        let kind = StoreKind {
            selectable: vec![vec!["spec".to_owned(), "x".to_owned()]],
            ..StoreKind::default()
        };
        let mut stored = Stored::from_value(&value, &kind).unwrap();
        stored.revision = 7;
        assert_eq!((stored.namespace(), stored.name()), ("ns", "n"));
        assert_eq!((stored.uid, &*stored.owners), (255, &[1][..]));
        assert_eq!(stored.label("a"), Some("b"));
        assert_eq!(&*stored.fields[0], r#"[1,"two"]"#);

        let mut out = BytesMut::new();
        stored.write_json(&head("new/v2", "New"), &mut out);
        let mut expected = value;
        expected["apiVersion"] = json!("new/v2");
        expected["kind"] = json!("New");
        expected["metadata"]["resourceVersion"] = json!("7");
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);

        let again = Stored::from_disk(7, &stored.tail, &StoreKind::default()).unwrap();
        assert_eq!(again.to_value(), stored.to_value());
    }

    #[test]
    fn finalizers_in_the_spec_count_for_namespaces_only() {
        let value = json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}});
        let namespaces = StoreKind {
            spec_finalizers: true,
            ..StoreKind::default()
        };
        assert!(Stored::from_value(&value, &namespaces).unwrap().finalizers);
        let others = StoreKind::default();
        assert!(!Stored::from_value(&value, &others).unwrap().finalizers);
    }

    #[test]
    fn uids_have_the_usual_form() {
        let text = "0123abcd-0000-4000-8000-00000000beef";
        assert_eq!(format_uid(parse_uid(text)), text);
        assert_eq!(parse_uid("no"), 0);
    }
}
