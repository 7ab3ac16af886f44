//! Query strings.

use std::{borrow::Cow, time::Duration};

use crate::{
    error::{ApiError, FieldError},
    registry::ResourceType,
    selector::{FieldSelector, LabelSelector},
    verbs::{Cursor, ListOptions, Propagation, Validation, WriteOptions},
    watch::Start,
};

/// The longest query string that is read.
const LONGEST: usize = 48 * 1024;

/// The parameters of a request, decoded. Of several with one name the first counts.
pub struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    pub fn parse(text: Option<&'a str>) -> Result<Self, ApiError> {
        let text = text.unwrap_or_default();
        if text.len() > LONGEST {
            return Err(ApiError::bad_request("the query string is too long"));
        }
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        });
        let pairs: Option<Vec<_>> = pairs.collect();
        pairs
            .map(Self)
            .ok_or_else(|| ApiError::bad_request("the query string is not percent-encoded UTF-8"))
    }

    /// A parameter; empty if it is absent.
    pub fn get(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), "1" | "true" | "True" | "t")
    }

    fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!(
                    "invalid value for {name}: {text:?} is not a number"
                ))
            }),
        }
    }

    /// 0 stands for none: any state will do.
    fn revision(&self) -> Result<u64, ApiError> {
        Ok(self.number("resourceVersion")?.unwrap_or_default())
    }

    pub fn list_options(&self, ty: &ResourceType) -> Result<ListOptions, ApiError> {
        let bad = |error: crate::selector::SelectorError| ApiError::bad_request(error.to_string());
        let known = |field: &str| {
            matches!(field, "metadata.name" | "metadata.namespace")
                || ty.selectable.iter().any(|selectable| selectable == field)
        };
        let revision = self.revision()?;
        let cursor = match self.get("continue") {
            "" => None,
            token => Some(Cursor::parse(token)?),
        };
        let exactly = match self.get("resourceVersionMatch") {
            "Exact" if revision == 0 => {
                let why = "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"";
                return Err(ApiError::bad_request(why));
            }
            "Exact" => Some(revision),
            "" | "NotOlderThan" => None,
            other => {
                let why = format!("resourceVersionMatch {other:?} is not supported");
                return Err(ApiError::bad_request(why));
            }
        };
        Ok(ListOptions {
            labels: LabelSelector::parse(self.get("labelSelector")).map_err(bad)?,
            fields: FieldSelector::parse(self.get("fieldSelector"), known).map_err(bad)?,
            limit: self.number("limit")?.unwrap_or_default() as usize,
            cursor,
            exactly,
            at_least: if exactly.is_none() { revision } else { 0 },
        })
    }

    /// Where a watch is to start.
    pub fn watch_start(&self) -> Result<Start, ApiError> {
        let revision = self.get("resourceVersion");
        let initial = self.get("sendInitialEvents");
        if initial.is_empty() {
            return Ok(match revision {
                "" | "0" => Start::Initial { mark_end: false },
                _ => Start::After(self.revision()?),
            });
        }
        if self.get("resourceVersionMatch") != "NotOlderThan" {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            let cause = FieldError::forbidden("resourceVersionMatch", why);
            let subject = crate::error::Subject::new("meta.k8s.io", "ListOptions", "");
            return Err(ApiError::invalid(subject, vec![cause]));
        }
        if self.flag("sendInitialEvents") {
            // What there is, is always at least as new as what was asked for.
            self.revision()?;
            return Ok(Start::Initial {
                mark_end: self.flag("allowWatchBookmarks"),
            });
        }
        Ok(match self.revision()? {
            0 => Start::Now,
            revision => Start::After(revision),
        })
    }

    pub fn timeout(&self) -> Result<Option<Duration>, ApiError> {
        let seconds = self
            .number("timeoutSeconds")?
            .filter(|seconds| *seconds > 0);
        Ok(seconds.map(Duration::from_secs))
    }

    pub fn write_options(&self) -> Result<WriteOptions, ApiError> {
        let validation = match self.get("fieldValidation") {
            "Ignore" => Validation::Ignore,
            "" | "Warn" => Validation::Warn,
            "Strict" => Validation::Strict,
            other => {
                return Err(ApiError::bad_request(format!(
                    "fieldValidation: unsupported value {other:?}: supported values: \"Ignore\", \"Warn\", \"Strict\""
                )));
            }
        };
        Ok(WriteOptions {
            dry_run: self.dry_run()?,
            validation,
            by: None,
        })
    }

    pub fn dry_run(&self) -> Result<bool, ApiError> {
        dry_run(self.get("dryRun"))
    }

    pub fn propagation(&self) -> Result<Option<Propagation>, ApiError> {
        propagation(self.get("propagationPolicy"))
    }
}

pub fn dry_run(text: &str) -> Result<bool, ApiError> {
    match text {
        "" => Ok(false),
        "All" => Ok(true),
        other => Err(ApiError::bad_request(format!(
            "dryRun: unsupported value {other:?}: supported values: \"All\""
        ))),
    }
}

pub fn propagation(text: &str) -> Result<Option<Propagation>, ApiError> {
    match text {
        "" => Ok(None),
        "Background" => Ok(Some(Propagation::Background)),
        "Foreground" => Ok(Some(Propagation::Foreground)),
        "Orphan" => Ok(Some(Propagation::Orphan)),
        other => Err(ApiError::bad_request(format!(
            "propagationPolicy: unsupported value {other:?}: supported values: \"Background\", \"Foreground\", \"Orphan\""
        ))),
    }
}

/// Takes percent-encoding (and `+`) out; `None` if what comes out is not UTF-8.
pub fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'+' => plain.push(b' '),
            b'%' => {
                let hex = text.get(at + 1..at + 3)?;
                if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return None;
                }
                plain.push(u8::from_str_radix(hex, 16).ok()?);
                at += 2;
            }
            byte => plain.push(*byte),
        }
        at += 1;
    }
    String::from_utf8(plain).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_bad_ones_refused() {
        let query = Query::parse(Some("a=1&b=x%2Fy+z&c&a=2")).unwrap_or_else(|_| panic!());
        assert_eq!(
            (query.get("a"), query.get("b"), query.get("c")),
            ("1", "x/y z", "")
        );
        for text in ["a=%", "a=%f", "a=%zz", "a=%ff", "a=%+1"] {
            assert!(Query::parse(Some(text)).is_err(), "{text}");
        }
        assert!(Query::parse(Some(&"x".repeat(LONGEST + 1))).is_err());
    }
}
