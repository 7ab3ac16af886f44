//! The text formats that schemas may ask for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::store::parse_uid;

/// Whether a text has a format. Formats that are not known hold for every text, as in Kubernetes.
pub fn holds(format: &str, text: &str) -> bool {
    match format {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "byte" => BASE64_STANDARD.decode(text).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "ip" => text.parse::<IpAddr>().is_ok(),
        "cidr" => is_cidr(text),
        "uuid" => text.len() == 36 && parse_uid(text) != 0,
        "uri" => text
            .parse::<http::Uri>()
            .is_ok_and(|uri| uri.scheme().is_some()),
        "hostname" => crate::names::is_dns_subdomain(&text.to_ascii_lowercase()),
        "duration" => is_go_duration(text),
        _ => true,
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else {
        return false;
    };
    match (address.parse::<IpAddr>(), length.parse::<u8>()) {
        (Ok(IpAddr::V4(_)), Ok(length)) => length <= 32,
        (Ok(IpAddr::V6(_)), Ok(length)) => length <= 128,
        _ => false,
    }
}

/// `1h30m`, `1.5s`, `-2ms`, `0`.
fn is_go_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        if rest[..digits].parse::<f64>().is_err() {
            return false;
        }
        rest = &rest[digits..];
        let units = ["ns", "us", "µs", "ms", "s", "m", "h"];
        let Some(unit) = units.iter().find(|unit| {
            rest.strip_prefix(**unit)
                .is_some_and(|rest| !rest.starts_with(char::is_alphabetic))
        }) else {
            return false;
        };
        rest = &rest[unit.len()..];
    }
    !text.is_empty()
}

#[cfg(test)]
mod tests {
    use super::holds;

    #[test]
    fn formats_hold_for_what_they_name() {
        for (format, good, bad) in [
            ("date-time", "2026-11-21T01:02:03Z", "yesterday"),
            ("date", "2026-11-21", "2026-13-01"),
            ("byte", "aGk=", "a"),
            ("ipv4", "1.2.3.4", "1.2.3"),
            ("ipv6", "::1", "1.2.3.4"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("uuid", "0123abcd-0000-4000-8000-00000000beef", "x"),
            ("uri", "https://a/b", "a b"),
            ("hostname", "A.example.com", "-x"),
            ("duration", "1h30m0.5s", "1x"),
            ("duration", "0", "5"),
        ] {
            assert!(holds(format, good), "{format} {good}");
            assert!(!holds(format, bad), "{format} {bad}");
        }
        assert!(holds("whatever", "anything"));
    }
}
