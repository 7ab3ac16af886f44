//! What two meshes tell each other beyond the reference's protocol, if both announce it.
//!
//! A request says so with [`ANNOUNCE_HEADER`], and the answer then too. Between two that do,
//!
//! - each service of a list or an event carries its [`Health`],
//! - a request for the list names with [`ListTag`] the one that is known, and gets 304 if that is
//!   still the one,
//! - each request carries a [`Report`] of what became of the list.
//!
//! Nothing of it is part of the checksum, and who does not announce it gets nothing of it.

mod report;

use std::fmt;

pub use report::{MAX_REPORT_BYTES, Report, ReportError};

use super::checksum::text;

/// Request and response header: who sends it speaks the extension, up to the version that it names.
pub const ANNOUNCE_HEADER: &str = "meshfed-discovery";
/// Our version.
pub const ANNOUNCED: &str = "1";
/// Request header with a [`Report`].
pub const REPORT_HEADER: &str = "meshfed-report";

/// Whether the value of [`ANNOUNCE_HEADER`] announces the extension: a version from 1 on.
pub fn announces(value: Option<&str>) -> bool {
    value
        .and_then(|value| value.trim().parse::<u32>().ok())
        .is_some_and(|version| version >= 1)
}

/// How an exported service fares, as its own mesh sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// Endpoints that take requests now.
    pub ready_endpoints: u32,
    /// Endpoints that there are, ready or not.
    pub capacity: u32,
    /// Its endpoints are on their way out: who has another place to send to should.
    pub draining: bool,
}

impl Health {
    /// Whether requests should still be sent there; `alternative`: there is another place.
    pub fn takes_requests(self, alternative: bool) -> bool {
        self.ready_endpoints > 0 && !(self.draining && alternative)
    }

    /// Its part in a [`ListTag`]: the primitive of the checksum over
    /// `<hostname> <ready> <capacity> <0 or 1>`.
    pub fn hash(self, hostname: &str) -> u64 {
        let draining = u8::from(self.draining);
        text(&format!(
            "{hostname} {} {} {draining}",
            self.ready_endpoints, self.capacity
        ))
    }
}

/// Names a list with the health of its services, as an entity tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListTag {
    pub checksum: u64,
    /// [`Health::hash`] of all services, joined by xor.
    pub health: u64,
}

/// With its quotes: `"3035108133973235477-0000000000000000"`.
impl fmt::Display for ListTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}-{:016x}\"", self.checksum, self.health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_from_1_on_announces_the_extension() {
        assert!(announces(Some("1")) && announces(Some(" 7 ")));
        for other in [
            None,
            Some(""),
            Some("0"),
            Some("-1"),
            Some("yes"),
            Some("99999999999"),
        ] {
            assert!(!announces(other), "{other:?}");
        }
    }

    #[test]
    fn a_service_without_ready_endpoints_takes_nothing_and_a_draining_one_only_without_another() {
        let health = |ready_endpoints, draining| Health {
            ready_endpoints,
            capacity: 3,
            draining,
        };
        assert!(!health(0, false).takes_requests(false));
        assert!(health(1, false).takes_requests(true));
        assert!(health(1, true).takes_requests(false));
        assert!(!health(1, true).takes_requests(true));
    }

    #[test]
    fn a_tag_names_checksum_and_health() {
        let health = Health {
            ready_endpoints: 1,
            capacity: 2,
            draining: false,
        };
        let tag = ListTag {
            checksum: u64::MAX,
            health: health.hash("a.b.svc.c-exports.local"),
        };
        let text = tag.to_string();
        assert!(text.starts_with("\"18446744073709551615-") && text.ends_with('"'));
        assert_ne!(
            tag.health,
            Health::default().hash("a.b.svc.c-exports.local")
        );
    }
}
