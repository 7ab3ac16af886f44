//! Reading messages without overlooking anything.
//!
//! Each message is read against a *template*: the message with everything set that the subset
//! fixes. A reader takes the variable fields out; what is left must equal the template. So a field
//! nobody thought of is refused, not skipped, and writer and reader cannot drift apart, as the
//! writer starts from the same template.

use std::fmt::{self, Debug, Write};
use std::net::{IpAddr, SocketAddr};
use std::time;

use meshfed_pki::{IdError, SpiffeId};
use prost::{Message, Name};

use crate::error::Reason;
use crate::pb::matcher::{StringMatcher, string_matcher::MatchPattern};
use crate::pb::{self, Any, core};

/// Longest resource that is read, in bytes. It bounds every list inside it. The virtual hosts of a large
/// route table come alone.
pub const MAX_RESOURCE_LEN: usize = 4 << 20;
/// Longest name of a resource or part of one, in bytes.
pub const MAX_NAME_LEN: usize = 1024;
/// The longest time that Protocol Buffers can say, in seconds (10 000 years).
const MAX_SECONDS: u64 = 315_576_000_000;

/// Where in a resource a reader is; a list on the stack, rendered only for an error.
#[derive(Clone, Copy)]
pub(crate) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    name: &'static str,
    index: Option<usize>,
}

impl<'a> Path<'a> {
    pub(crate) const ROOT: Path<'static> = Path {
        parent: None,
        name: "",
        index: None,
    };

    pub(crate) fn field(&'a self, name: &'static str) -> Path<'a> {
        Path {
            parent: Some(self),
            name,
            index: None,
        }
    }

    pub(crate) fn item(&'a self, name: &'static str, index: usize) -> Path<'a> {
        Path {
            parent: Some(self),
            name,
            index: Some(index),
        }
    }

    pub(crate) fn refuse(&self, reason: impl Into<Reason>) -> Refusal {
        Refusal {
            field: self.to_string(),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else {
            return Ok(());
        };
        if parent.parent.is_some() {
            write!(f, "{parent}.")?;
        }
        f.write_str(self.name)?;
        match self.index {
            Some(i) => write!(f, "[{i}]"),
            None => Ok(()),
        }
    }
}

/// A [`DecodeError`](crate::DecodeError) that does not know its resource yet.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) field: String,
    pub(crate) reason: Reason,
}

pub(crate) type Read<T> = Result<T, Refusal>;

/// Error messages repeat what was given, but never at a length that the sender chose.
pub(crate) fn clip(s: &str) -> String {
    s.chars().take(120).collect()
}

/// Parses one message. Anything that parsing dropped is noticed by the length of what is left.
pub(crate) fn parse<M: Message + Default>(at: &Path<'_>, bytes: &[u8], max: usize) -> Read<M> {
    if bytes.len() > max {
        return Err(at.refuse(Reason::TooLarge { max }));
    }
    let message = M::decode(bytes).map_err(|e| at.refuse(e))?;
    if message.encoded_len() != bytes.len() {
        return Err(at.refuse(Reason::UnknownFields));
    }
    Ok(message)
}

pub(crate) fn pack<M: Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

pub(crate) fn unpack<M: Name + Default>(at: &Path<'_>, any: &Any) -> Read<M> {
    if any.type_url != M::type_url() {
        return Err(at.refuse(Reason::WrongType(clip(&any.type_url))));
    }
    parse(at, &any.value, MAX_RESOURCE_LEN)
}

/// Refuses what is left of a message if it differs from its template.
pub(crate) fn nothing_else<M: PartialEq + Debug>(
    at: &Path<'_>,
    rest: &M,
    template: &M,
) -> Read<()> {
    if rest == template {
        return Ok(());
    }
    let inner = first_difference(rest, template);
    let outer = at.to_string();
    Err(Refusal {
        field: match (outer.is_empty(), inner.is_empty()) {
            (true, _) => inner,
            (_, true) => outer,
            _ => format!("{outer}.{inner}"),
        },
        reason: Reason::Unsupported,
    })
}

pub(crate) fn required<T>(at: &Path<'_>, value: Option<T>) -> Read<T> {
    value.ok_or_else(|| at.refuse(Reason::Missing))
}

pub(crate) fn name(at: &Path<'_>, value: String) -> Read<String> {
    match value.len() {
        0 => Err(at.refuse(Reason::Missing)),
        n if n > MAX_NAME_LEN => Err(at.refuse(Reason::TooLarge { max: MAX_NAME_LEN })),
        _ => Ok(value),
    }
}

pub(crate) fn duration(d: time::Duration) -> pb::Duration {
    let seconds = d.as_secs().min(MAX_SECONDS);
    pb::Duration {
        seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        nanos: d.subsec_nanos().cast_signed(),
    }
}

pub(crate) fn read_duration(at: &Path<'_>, d: Option<pb::Duration>) -> Read<time::Duration> {
    let d = required(at, d)?;
    match (u64::try_from(d.seconds), u32::try_from(d.nanos)) {
        (Ok(s), Ok(n)) if s <= MAX_SECONDS && n < 1_000_000_000 => Ok(time::Duration::new(s, n)),
        _ => Err(at.refuse(Reason::OutOfRange)),
    }
}

/// As [`read_duration`], where zero would mean that there is no limit.
pub(crate) fn read_limit(at: &Path<'_>, d: Option<pb::Duration>) -> Read<time::Duration> {
    match read_duration(at, d)? {
        time::Duration::ZERO => Err(at.refuse(Reason::OutOfRange)),
        d => Ok(d),
    }
}

pub(crate) fn address(host: &str, port: u16) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: host.to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}

pub(crate) fn socket_address(a: SocketAddr) -> core::Address {
    address(&a.ip().to_string(), a.port())
}

/// Host and port of a TCP address.
pub(crate) fn read_address(at: &Path<'_>, a: Option<core::Address>) -> Read<(String, u16)> {
    let at = &at.field("socket_address");
    let Some(core::address::Address::SocketAddress(mut a)) = a.and_then(|a| a.address) else {
        return Err(at.refuse(Reason::Missing));
    };
    let host = name(&at.field("address"), std::mem::take(&mut a.address))?;
    let port = a.port_specifier.take();
    nothing_else(at, &a, &core::SocketAddress::default())?;
    let at = &at.field("port_value");
    let Some(core::socket_address::PortSpecifier::PortValue(port)) = port else {
        return Err(at.refuse(Reason::Missing));
    };
    let port = u16::try_from(port).map_err(|_| at.refuse(Reason::OutOfRange))?;
    Ok((host, port))
}

pub(crate) fn read_socket_address(at: &Path<'_>, a: Option<core::Address>) -> Read<SocketAddr> {
    let (host, port) = read_address(at, a)?;
    let ip: IpAddr = host.parse().map_err(|_| at.refuse(Reason::BadAddress))?;
    Ok(SocketAddr::new(ip, port))
}

/// Reads all of a list, into room for no more. Collected in place it would keep the room of the messages that
/// it was read from, some of which have kilobytes.
pub(crate) fn read_all<M, T>(
    all: Vec<M>,
    mut read: impl FnMut(usize, M) -> Read<T>,
) -> Read<Vec<T>> {
    let mut done = Vec::with_capacity(all.len());
    for (i, m) in all.into_iter().enumerate() {
        done.push(read(i, m)?);
    }
    Ok(done)
}

/// A source of resources: the same ADS stream that the referring resource came over.
pub(crate) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..Default::default()
    }
}

pub(crate) fn text(pattern: MatchPattern) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(pattern),
        ignore_case: false,
    }
}

pub(crate) fn read_text(at: &Path<'_>, mut m: StringMatcher) -> Read<MatchPattern> {
    let pattern = m.match_pattern.take();
    nothing_else(at, &m, &StringMatcher::default())?;
    required(at, pattern)
}

/// An identity in the one form in which it stands in certificates, with its scheme.
pub(crate) fn read_id(at: &Path<'_>, text: &str) -> Read<SpiffeId> {
    let id: SpiffeId = text
        .parse()
        .map_err(|e| at.refuse(Reason::BadIdentity(e)))?;
    if id.as_str() != text {
        return Err(at.refuse(IdError::BadId(clip(text))));
    }
    Ok(id)
}

/// The path of the first field in which `got` differs from `want`, from their debug texts: the
/// generated messages can name their own fields there and nowhere else.
fn first_difference<M: Debug>(got: &M, want: &M) -> String {
    /// Follows the wanted text and stops at the first byte that differs, so that a huge message
    /// costs no more than its template.
    struct Follow<'a>(&'a str);
    impl Write for Follow<'_> {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            let same = s.bytes().zip(self.0.bytes()).take_while(|(a, b)| a == b);
            let n = same.count();
            let n = (0..=n).rev().find(|i| self.0.is_char_boundary(*i));
            self.0 = self.0.get(n.unwrap_or(0)..).unwrap_or("");
            if n == Some(s.len()) {
                Ok(())
            } else {
                Err(fmt::Error)
            }
        }
    }

    let want = format!("{want:#?}");
    let mut follow = Follow(&want);
    // An error is the sign that the difference was met.
    let _ = write!(follow, "{got:#?}");
    let differs_at = want.len() - follow.0.len();

    let mut path: Vec<(usize, &str)> = Vec::new();
    let mut start = 0;
    for line in want.split_inclusive('\n') {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        let end = start + line.len();
        let last = differs_at < end;
        // The end of a list belongs to the field that began it if something was added there.
        let keep = usize::from(last && text.starts_with([']', ')', '}']));
        path.retain(|(i, _)| *i < indent + keep);
        if let Some((field, _)) = text.split_once(": ") {
            path.push((indent, field));
        }
        if last {
            break;
        }
        start = end;
    }
    let names: Vec<&str> = path.into_iter().map(|(_, field)| field).collect();
    names.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::{UInt32Value, hcm};

    #[test]
    fn the_first_field_that_differs_is_named_with_its_path() {
        let want = hcm::HttpConnectionManager {
            max_request_headers_kb: Some(UInt32Value { value: 60 }),
            via: "a".to_string(),
            ..Default::default()
        };
        let with = |change: fn(&mut hcm::HttpConnectionManager)| {
            let mut got = want.clone();
            change(&mut got);
            first_difference(&got, &want)
        };
        assert_eq!(
            with(|m| m.max_request_headers_kb = Some(UInt32Value { value: 61 })),
            "max_request_headers_kb.value"
        );
        assert_eq!(
            with(|m| m.max_request_headers_kb = None),
            "max_request_headers_kb"
        );
        assert_eq!(with(|m| m.merge_slashes = true), "merge_slashes");
        assert_eq!(with(|m| m.via = "ä".to_string()), "via");
        assert_eq!(with(|m| m.codec_type = 77), "codec_type");
        assert_eq!(
            with(|m| m.http_filters = vec![Default::default()]),
            "http_filters"
        );
    }

    #[test]
    fn a_field_that_the_message_does_not_know_is_noticed() {
        let mut bytes = pb::Duration {
            seconds: 5,
            nanos: 0,
        }
        .encode_to_vec();
        assert!(parse::<pb::Duration>(&Path::ROOT, &bytes, MAX_RESOURCE_LEN).is_ok());
        bytes.extend([0xf8, 0x07, 1]); // field 127
        let refused = parse::<pb::Duration>(&Path::ROOT, &bytes, MAX_RESOURCE_LEN).unwrap_err();
        assert_eq!(refused.reason, Reason::UnknownFields);
    }

    #[test]
    fn a_duration_outside_what_protocol_buffers_allow_is_refused() {
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0)] {
            let d = pb::Duration { seconds, nanos };
            assert!(read_duration(&Path::ROOT, Some(d)).is_err(), "{d:?}");
        }
    }
}
