//! Settings of one peer: annotations of its ServiceMeshPeer.
//!
//! A value that cannot be read is named, and the default counts.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;

use crate::names::clip;

/// What the annotations of all settings begin with.
const PREFIX: &str = "meshfed.io/";
const FOREVER: &str = "forever";
const HOUR: Duration = Duration::from_secs(3600);
const MIB: u64 = 1 << 20;

/// How we deal with one peer, beyond what its `spec` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSettings {
    /// `meshfed.io/drain-period`: connections of an export or import that is gone may go on for
    /// this long. 0s to 1h.
    pub drain_period: Duration,
    /// `meshfed.io/hold-empty-list`: a list that suddenly is empty is not believed for this long.
    /// 0s to 24h.
    pub hold_empty_list: Duration,
    /// `meshfed.io/imports-outlive-contact`: imports end this long after the last contact; `None`:
    /// never. 0s to 8760h.
    pub imports_outlive_contact: Option<Duration>,
    /// `meshfed.io/resync-period`: the peer's whole list is asked for this often, which also shows whether
    /// the way to it is there. 5s to 5m.
    pub resync_period: Duration,
    /// `meshfed.io/max-services`: services in a list of the peer. 1 to 100,000.
    pub max_services: usize,
    /// `meshfed.io/max-list-bytes`: bytes of a list of the peer. 64Ki to 1Gi.
    pub max_list_bytes: usize,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            drain_period: Duration::from_secs(5),
            hold_empty_list: Duration::from_secs(30),
            imports_outlive_contact: None,
            resync_period: Duration::from_secs(60),
            max_services: 10_000,
            max_list_bytes: 64 << 20,
        }
    }
}

/// An annotation that is without effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingProblem {
    #[error(
        "the annotation {PREFIX}{name} is {value:?}; it must be {expected}; the default counts"
    )]
    Value {
        name: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("the annotation {PREFIX}{0} is no setting of a peer and does nothing")]
    Unknown(String),
}

impl PeerSettings {
    /// Reads what is set; the problems are in the order of the annotations.
    pub fn parse(annotations: Option<&BTreeMap<String, String>>) -> (Self, Vec<SettingProblem>) {
        let mut settings = Self::default();
        let mut problems = Vec::new();
        let ours = annotations.into_iter().flatten();
        let ours = ours.filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value.trim())));
        for (name, value) in ours {
            if let Err(problem) = settings.set(name, value) {
                problems.push(problem);
            }
        }
        (settings, problems)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), SettingProblem> {
        let wrong = |name, expected| SettingProblem::Value {
            name,
            value: clip(value),
            expected,
        };
        let up_to = |most: Duration| duration(value).filter(|given| *given <= most);
        match name {
            "drain-period" => {
                self.drain_period = up_to(HOUR)
                    .ok_or_else(|| wrong("drain-period", "a duration of 0s to 1h, such as 5s"))?;
            }
            "hold-empty-list" => {
                self.hold_empty_list = up_to(24 * HOUR).ok_or_else(|| {
                    wrong("hold-empty-list", "a duration of 0s to 24h, such as 30s")
                })?;
            }
            "imports-outlive-contact" if value == FOREVER => self.imports_outlive_contact = None,
            "imports-outlive-contact" => {
                let given = up_to(8760 * HOUR).ok_or_else(|| {
                    wrong(
                        "imports-outlive-contact",
                        "forever, or a duration of 0s to 8760h, such as 12h",
                    )
                })?;
                self.imports_outlive_contact = Some(given);
            }
            "resync-period" => {
                let shortest = Duration::from_secs(5);
                self.resync_period = up_to(HOUR / 12)
                    .filter(|given| *given >= shortest)
                    .ok_or_else(|| wrong("resync-period", "a duration of 5s to 5m, such as 60s"))?;
            }
            "max-services" => {
                let number = value.parse().ok().filter(|n| (1..=100_000).contains(n));
                self.max_services =
                    number.ok_or_else(|| wrong("max-services", "a number from 1 to 100000"))?;
            }
            "max-list-bytes" => {
                let given = bytes(value).filter(|n| (MIB / 16..=1024 * MIB).contains(n));
                self.max_list_bytes = given
                    .and_then(|n| usize::try_from(n).ok())
                    .ok_or_else(|| wrong("max-list-bytes", "64Ki to 1Gi, such as 64Mi"))?;
            }
            other => return Err(SettingProblem::Unknown(clip(other))),
        }
        Ok(())
    }
}

/// A duration as Kubernetes and Go write it: `90s`, `1h30m`, `500ms`; `0`.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let given: SignedDuration = text.parse().ok()?;
    given.try_into().ok()
}

/// A number of bytes as Kubernetes writes it: `67108864`, `64Mi`, `64M`.
fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    let factor = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => MIB,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit());
    let (number, rest) = text.split_at(end.unwrap_or(text.len()));
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(given: &[(&str, &str)]) -> (PeerSettings, Vec<String>) {
        let annotations: BTreeMap<String, String> = given
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let (settings, problems) = PeerSettings::parse(Some(&annotations));
        let problems = problems.iter().map(ToString::to_string).collect();
        (settings, problems)
    }

    #[test]
    fn every_setting_is_read() {
        let (settings, problems) = parse(&[
            ("meshfed.io/drain-period", "1m30s"),
            ("meshfed.io/hold-empty-list", "0"),
            ("meshfed.io/imports-outlive-contact", "12h"),
            ("meshfed.io/resync-period", "5s"),
            ("meshfed.io/max-services", "20000"),
            ("meshfed.io/max-list-bytes", "128Mi"),
            ("example.com/drain-period", "of somebody else"),
        ]);
        assert_eq!(problems, [""; 0]);
        let expected = PeerSettings {
            drain_period: Duration::from_secs(90),
            hold_empty_list: Duration::ZERO,
            imports_outlive_contact: Some(12 * HOUR),
            resync_period: Duration::from_secs(5),
            max_services: 20_000,
            max_list_bytes: 128 << 20,
        };
        assert_eq!(settings, expected);
        let (settings, problems) = parse(&[("meshfed.io/imports-outlive-contact", "forever")]);
        assert_eq!((settings, problems), Default::default());
        assert_eq!(PeerSettings::parse(None), Default::default());
    }

    #[test]
    fn a_value_that_cannot_be_read_is_named_and_the_default_counts() {
        for (name, value) in [
            ("drain-period", "soon"),
            ("drain-period", ""),
            ("drain-period", "5"),
            ("drain-period", "-1s"),
            ("drain-period", "61m"),
            ("drain-period", "99999999999999999999h"),
            ("drain-period", "18446744073709551615h"),
            ("hold-empty-list", "25h"),
            ("imports-outlive-contact", "never"),
            ("resync-period", "4s"),
            ("resync-period", "6m"),
            ("max-services", "0"),
            ("max-services", "100001"),
            ("max-list-bytes", "1Ki"),
            ("max-list-bytes", "2Gi"),
            ("max-list-bytes", "18446744073709551615Gi"),
            ("drain-peroid", "5s"),
        ] {
            let key = format!("meshfed.io/{name}");
            let (settings, problems) = parse(&[(&key, value)]);
            assert_eq!(settings, PeerSettings::default(), "{name} {value}");
            assert_eq!(problems.len(), 1, "{name} {value}");
            assert!(problems[0].contains(&key), "{problems:?}");
        }
    }

    #[test]
    fn one_bad_setting_leaves_the_others() {
        let (settings, problems) = parse(&[
            ("meshfed.io/drain-period", "500ms"),
            ("meshfed.io/max-services", "many"),
        ]);
        assert_eq!(settings.drain_period, Duration::from_millis(500));
        assert_eq!(
            problems,
            [
                "the annotation meshfed.io/max-services is \"many\"; it must be a number from 1 to 100000; the default counts"
            ]
        );
    }
}
