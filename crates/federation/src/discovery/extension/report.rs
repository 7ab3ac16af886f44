//! What an importing mesh tells the exporting one, in a header of its requests.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::names::{ServiceKey, clip};

/// Bytes of a report. What does not fit is counted and not named.
pub const MAX_REPORT_BYTES: usize = 4096;
/// What everything but the names takes at most: a clipped error with every character escaped.
const REST: usize = 1600;
/// Names in a report that we write; in one that is read its bytes are the bound.
const MAX_NAMES: usize = 512;

/// What became of a list that a mesh was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Services that are imported.
    pub imported: u32,
    /// Which, by exported namespace and name: as many as fit.
    pub services: Vec<ServiceKey>,
    /// When the last whole list was taken.
    pub last_sync: Option<Timestamp>,
    /// What is wrong with what is sent, in a sentence.
    pub error: Option<String>,
}

/// Why a report was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    #[error("the peer's report is longer than {MAX_REPORT_BYTES} bytes")]
    TooLong,
    #[error("the peer's report cannot be read: {0}")]
    Malformed(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Wire {
    imported: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_sync: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Report {
    /// Compact JSON of visible ASCII, as a header value takes it; at most [`MAX_REPORT_BYTES`].
    pub fn encode(&self) -> String {
        let mut room = MAX_REPORT_BYTES - REST;
        let names = self.services.iter().map(ToString::to_string);
        let services = names
            .take(MAX_NAMES)
            .take_while(|name| {
                let fits = name.len() + 3 <= room;
                room = room.saturating_sub(name.len() + 3);
                fits
            })
            .collect();
        let whole_seconds = |at: Timestamp| Timestamp::from_second(at.as_second()).unwrap_or(at);
        let wire = Wire {
            imported: self.imported,
            services,
            last_sync: self.last_sync.map(|at| whole_seconds(at).to_string()),
            error: self.error.as_deref().map(clip_error),
        };
        let json = serde_json::to_string(&wire).unwrap_or_default();
        ascii(&json)
    }

    /// Reads a header value.
    pub fn decode(value: &[u8]) -> Result<Self, ReportError> {
        if value.len() > MAX_REPORT_BYTES {
            return Err(ReportError::TooLong);
        }
        let malformed = |text: &dyn ToString| ReportError::Malformed(clip(&text.to_string()));
        if value.first() != Some(&b'{') {
            return Err(malformed(&"it is no JSON object"));
        }
        let wire: Wire = serde_json::from_slice(value).map_err(|e| malformed(&e))?;
        let last_sync = wire
            .last_sync
            .map(|text| text.parse::<Timestamp>())
            .transpose()
            .map_err(|e| malformed(&e))?;
        let services = wire
            .services
            .iter()
            .map(|text| {
                let (namespace, name) = text.split_once('/').unwrap_or_default();
                ServiceKey::parse(namespace, name).map_err(|e| malformed(&e))
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            imported: wire.imported,
            services,
            last_sync,
            error: wire.error.as_deref().map(clip_error),
        })
    }
}

/// A text for a status: short, and without characters that steer a terminal.
fn clip_error(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(120).map(visible).collect()
}

fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if matches!(c, ' '..='~') {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn report(services: &[&str]) -> Report {
        Report {
            imported: services.len() as u32,
            services: services
                .iter()
                .map(|name| ServiceKey::parse("bookinfo", name).unwrap())
                .collect(),
            last_sync: Some("2021-10-05T13:00:00Z".parse().unwrap()),
            error: None,
        }
    }

    #[test]
    fn a_report_is_one_short_line_that_is_read_back() {
        let report = report(&["ratings"]);
        let text = report.encode();
        assert_eq!(
            text,
            r#"{"imported":1,"services":["bookinfo/ratings"],"lastSync":"2021-10-05T13:00:00Z"}"#
        );
        assert_eq!(Report::decode(text.as_bytes()), Ok(report));
    }

    #[test]
    fn the_names_that_do_not_fit_are_counted() {
        let names: Vec<String> = (0..10_000).map(|i| format!("service-{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let full = Report {
            error: Some("\u{1}😀".repeat(500)),
            ..report(&names)
        };
        let text = full.encode();
        assert!(text.len() <= MAX_REPORT_BYTES, "{}", text.len());
        let read = Report::decode(text.as_bytes()).unwrap();
        assert_eq!(read.imported, 10_000);
        assert!(read.services.len() > 50 && read.services.len() < 500);
        assert!(!read.error.unwrap().contains('\u{1}'));
    }

    #[test]
    fn a_hostile_report_is_refused() {
        let long = format!("{{\"error\":\"{}\"}}", "x".repeat(MAX_REPORT_BYTES));
        assert_eq!(Report::decode(long.as_bytes()), Err(ReportError::TooLong));
        for bad in [
            "",
            "[]",
            "{\"imported\":-1}",
            "{\"imported\":4294967296}",
            "{\"imported\":\"1\"}",
            "{\"services\":[\"a/../../b\"]}",
            "{\"services\":[\"no-namespace\"]}",
            "{\"services\":{}}",
            "{\"lastSync\":\"yesterday\"}",
            "{\"error\":7}",
        ] {
            let refused = Report::decode(bad.as_bytes());
            assert!(matches!(refused, Err(ReportError::Malformed(_))), "{bad}");
        }
        let deep = format!("{{\"x\":{}", "[".repeat(4000));
        assert!(Report::decode(deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn every_report_is_a_header_value(error in ".{0,300}") {
            let report = Report { error: Some(error), ..Report::default() };
            let text = report.encode();
            prop_assert!(text.len() <= MAX_REPORT_BYTES);
            prop_assert!(text.bytes().all(|b| matches!(b, b' '..=b'~')));
            prop_assert!(Report::decode(text.as_bytes()).is_ok());
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Report::decode(&bytes);
        }
    }
}
