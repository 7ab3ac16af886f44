//! The forms in which objects are sent: whole, only their metadata, or as rows of a table.

use bytes::{BufMut as _, BytesMut};
use serde_json::{Value, json};

use crate::{
    api::{Api, Target},
    error::ApiError,
    registry::Column,
    store::Stored,
    verbs::Page,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Object,
    /// `PartialObjectMetadata`
    Metadata,
    Table(Include),
}

/// What a table's rows carry besides their cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    Nothing,
    Metadata,
    Object,
}

const META: &str = "meta.k8s.io/v1";

/// What is sent, for the message of a refusal.
const SENT: &[&str] = &["application/json"];

impl Shape {
    /// Chooses by the Accept header: the first form in it that is served. Clients that prefer
    /// protobuf name JSON next.
    pub fn negotiate(accept: &str, include: &str) -> Result<Self, ApiError> {
        let include = match include {
            "" | "Metadata" => Include::Metadata,
            "None" => Include::Nothing,
            "Object" => Include::Object,
            other => {
                return Err(ApiError::bad_request(format!(
                    "unrecognized includeObject value: {other:?}"
                )));
            }
        };
        if accept.trim().is_empty() {
            return Ok(Self::Object);
        }
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            if !matches!(media, "application/json" | "application/*" | "*/*") {
                continue;
            }
            let (mut form, mut group, mut version) = ("", "", "");
            for part in parts {
                match part.split_once('=') {
                    Some(("as", value)) => form = value,
                    Some(("g", value)) => group = value,
                    Some(("v", value)) => version = value,
                    _ => {}
                }
            }
            match (form, group, version) {
                ("", _, _) => return Ok(Self::Object),
                ("Table", "meta.k8s.io", "v1") => return Ok(Self::Table(include)),
                ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
                    return Ok(Self::Metadata);
                }
                _ => {}
            }
        }
        Err(ApiError::not_acceptable(SENT))
    }

    /// One object.
    pub fn write(self, api: &Api, target: &Target, object: &Stored, out: &mut BytesMut) {
        match self {
            Self::Table(include) => {
                let row = row(api, target, object, include);
                let metadata = json!({"resourceVersion": object.revision.to_string()});
                put(&table(metadata, Some(columns(target)), vec![row]), out);
            }
            shape => shape.write_item(target, object, out),
        }
    }

    /// One object of a watch; the columns are in the first table only.
    pub fn write_for_watch(
        self,
        api: &Api,
        target: &Target,
        object: &Stored,
        first: bool,
        out: &mut BytesMut,
    ) {
        match self {
            Self::Table(include) => {
                let row = row(api, target, object, include);
                let metadata = json!({"resourceVersion": object.revision.to_string()});
                put(
                    &table(metadata, first.then(|| columns(target)), vec![row]),
                    out,
                );
            }
            shape => shape.write_item(target, object, out),
        }
    }

    fn write_item(self, target: &Target, object: &Stored, out: &mut BytesMut) {
        let version = target.version();
        if self == Self::Object && version.renamed.is_empty() {
            object.write_json(&version.head, out);
            return;
        }
        let value = target.value(object);
        let value = if self == Self::Metadata {
            metadata_only(&value)
        } else {
            value
        };
        put(&value, out);
    }

    /// A list.
    pub fn write_list(self, api: &Api, target: &Target, page: &Page, out: &mut BytesMut) {
        let mut metadata = json!({"resourceVersion": page.revision.to_string()});
        if let Some((cursor, left)) = &page.next {
            metadata["continue"] = cursor.token().into();
            if let Some(left) = left {
                metadata["remainingItemCount"] = (*left).into();
            }
        }
        let (kind, api_version) = match self {
            Self::Table(include) => {
                let rows = page.objects.iter().map(|o| row(api, target, o, include));
                put(&table(metadata, Some(columns(target)), rows.collect()), out);
                return;
            }
            Self::Metadata => ("PartialObjectMetadataList", META),
            Self::Object => (
                target.ty.list_kind.as_str(),
                target.version().api_version.as_str(),
            ),
        };
        let head =
            json!({"kind": kind, "apiVersion": api_version, "metadata": metadata, "items": []});
        let head = head.to_string();
        let open = head.strip_suffix("]}").unwrap_or(&head);
        out.put_slice(open.as_bytes());
        for (index, object) in page.objects.iter().enumerate() {
            if index > 0 {
                out.put_u8(b',');
            }
            self.write_item(target, object, out);
        }
        out.put_slice(b"]}");
    }

    /// The object of a bookmark.
    pub fn bookmark(self, target: &Target, metadata: Value) -> Value {
        match self {
            Self::Table(_) => table(metadata, None, Vec::new()),
            Self::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": META, "metadata": metadata})
            }
            Self::Object => json!({
                "kind": target.ty.kind,
                "apiVersion": target.version().api_version,
                "metadata": metadata,
            }),
        }
    }
}

fn put(value: &Value, out: &mut BytesMut) {
    // Writing a value into memory does not fail.
    out.put_slice(value.to_string().as_bytes());
}

fn table(metadata: Value, columns: Option<Value>, rows: Vec<Value>) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": META,
        "metadata": metadata,
        "columnDefinitions": columns.unwrap_or_else(|| json!([])),
        "rows": rows,
    })
}

fn columns(target: &Target) -> Value {
    let column = |column: &Column| {
        json!({
            "name": column.name,
            "type": column.kind,
            "format": column.format,
            "description": column.description,
            "priority": column.priority,
        })
    };
    target.version().columns.iter().map(column).collect()
}

fn row(api: &Api, target: &Target, object: &Stored, include: Include) -> Value {
    // Builtin cells know the stored names of fields.
    let stored = object.to_value();
    let now = api.timestamp();
    let cells: Vec<Value> = target
        .version()
        .columns
        .iter()
        .map(|column| column.cell(&stored, now))
        .collect();
    let mut row = json!({"cells": cells});
    match include {
        Include::Nothing => {}
        Include::Metadata => row["object"] = metadata_only(&stored),
        Include::Object => row["object"] = target.value(object),
    }
    row
}

fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": META,
        "metadata": object.get("metadata"),
    })
}
