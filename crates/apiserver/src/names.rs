//! The forms that names, labels and keys must have.

/// Lower case letters, digits and `-`, at most 63, as RFC 1123 has labels.
pub fn is_dns_label(name: &str) -> bool {
    name.len() <= 63 && is_label_text(name)
}

/// Like a label, but starting with a letter, as RFC 1035 has them; for Services.
pub fn is_dns_1035_label(name: &str) -> bool {
    is_dns_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase())
}

/// Labels joined by dots, at most 253 bytes.
pub fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label_text)
}

/// An optional DNS subdomain and `/`, then 1 to 63 letters, digits, `-`, `_` and `.`.
pub fn is_qualified_name(name: &str) -> bool {
    match name.split_once('/') {
        Some((prefix, name)) => {
            is_dns_subdomain(prefix) && !name.is_empty() && is_label_value(name)
        }
        None => !name.is_empty() && is_label_value(name),
    }
}

/// Empty, or like the last part of a qualified name.
pub fn is_label_value(value: &str) -> bool {
    value.len() <= 63
        && value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && ends_are(value, |b| b.is_ascii_alphanumeric())
}

/// A key of a ConfigMap or Secret: letters, digits, `-`, `_` and `.`, but not `.` or `..`.
pub fn is_config_key(key: &str) -> bool {
    (1..=253).contains(&key.len())
        && !key.starts_with("..")
        && key != "."
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A port's name: at most 15 lower case letters, digits and single `-`, with a letter in it.
pub fn is_port_name(name: &str) -> bool {
    name.len() <= 15
        && is_label_text(name)
        && !name.contains("--")
        && name.bytes().any(|b| b.is_ascii_lowercase())
}

/// A segment of a path: nothing that a URL would take apart.
pub fn is_path_segment(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name != "."
        && name != ".."
        && !name.contains(['/', '%', '\0'])
}

fn is_label_text(label: &str) -> bool {
    !label.is_empty()
        && label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && ends_are(label, |b| b != b'-')
}

fn ends_are(text: &str, test: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    [bytes.first(), bytes.last()]
        .into_iter()
        .flatten()
        .all(|b| test(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        assert!(is_dns_label("a-1") && !is_dns_label("A") && !is_dns_label("-a"));
        assert!(!is_dns_label("") && !is_dns_label(&"a".repeat(64)));
        assert!(is_dns_1035_label("a1") && !is_dns_1035_label("1a"));
        assert!(is_dns_subdomain("a.b-c") && !is_dns_subdomain("a..b"));
        assert!(is_qualified_name("x.io/A_b") && !is_qualified_name("x.io/"));
        assert!(!is_qualified_name("/x") && !is_qualified_name("a/b/c"));
        assert!(is_label_value("") && !is_label_value("a b") && !is_label_value("-a"));
        assert!(is_config_key("a.B_") && !is_config_key("..") && !is_config_key("a/b"));
        assert!(is_port_name("http-1") && !is_port_name("1") && !is_port_name("a--b"));
    }
}
