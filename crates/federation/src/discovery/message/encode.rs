//! Writing messages byte for byte as Go's `encoding/json` does: keys in a fixed order, empty values
//! left out, and the characters that matter in HTML escaped.

use super::{Plain, PlainPort, Service, ServiceList, WatchEvent};
use crate::discovery::extension::Health;

/// A service whose JSON was made before.
pub(in crate::discovery) struct EncodedService<'a> {
    /// What [`plain`] gives.
    pub plain: &'a [u8],
    /// To be written behind it.
    pub health: Option<Health>,
}

pub(super) fn list(list: &ServiceList) -> Vec<u8> {
    let plain = list.services.iter().map(|s| plain(&s.plain()));
    let plain: Vec<Vec<u8>> = plain.collect();
    let services = list.services.iter().zip(&plain);
    let services: Vec<_> = services.map(|(s, plain)| encoded(s, plain)).collect();
    encode_list(list.checksum, &services)
}

pub(super) fn event(event: &WatchEvent) -> Vec<u8> {
    let changed = event.service.as_ref();
    let plain = changed.map(|s| plain(&s.plain()));
    let service = changed.zip(plain.as_ref());
    let service = service.map(|(s, plain)| encoded(s, plain));
    encode_event(event.action.as_str(), service.as_ref(), event.checksum)
}

fn encoded<'a>(service: &Service, plain: &'a [u8]) -> EncodedService<'a> {
    EncodedService {
        plain,
        health: service.health,
    }
}

pub(in crate::discovery) fn encode_list(checksum: u64, services: &[EncodedService<'_>]) -> Vec<u8> {
    let length = |s: &EncodedService<'_>| s.plain.len() + 80;
    let mut out = Vec::with_capacity(64 + services.iter().map(length).sum::<usize>());
    let mut object = Object::begin(&mut out);
    object.number("checksum", checksum);
    object.list("services", services, write);
    object.end();
    out
}

pub(in crate::discovery) fn encode_event(
    action: &str,
    service: Option<&EncodedService<'_>>,
    checksum: u64,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(160 + service.map_or(0, |s| s.plain.len()));
    let mut object = Object::begin(&mut out);
    object.text("action", action);
    if let Some(changed) = service {
        object.key("service");
        write(object.out, changed);
    }
    object.number("checksum", checksum);
    object.end();
    out.extend_from_slice(b"\r\n");
    out
}

fn write(out: &mut Vec<u8>, service: &EncodedService<'_>) {
    let Some(health) = service.health else {
        out.extend_from_slice(service.plain);
        return;
    };
    // The object is taken up again before its closing brace.
    let open = service.plain.strip_suffix(b"}").unwrap_or(service.plain);
    out.extend_from_slice(open);
    let mut object = Object {
        out,
        empty: open == b"{",
    };
    object.key("meshfedHealth");
    let mut inner = Object::begin(object.out);
    inner.number("readyEndpoints", health.ready_endpoints);
    inner.number("capacity", health.capacity);
    inner.number("draining", health.draining);
    inner.end();
    object.end();
}

pub(super) fn plain(service: &Plain<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(320);
    let mut object = Object::begin(&mut out);
    object.text("name", service.name);
    object.text("namespace", service.namespace);
    object.text("hostname", service.hostname);
    object.list("servicePorts", &service.ports, port);
    object.list("serviceAccounts", service.accounts, |out, account| {
        string(out, account);
    });
    object.end();
    out
}

fn port(out: &mut Vec<u8>, port: &PlainPort<'_>) {
    let mut object = Object::begin(out);
    object.text("name", port.name);
    if port.port != 0 {
        object.number("port", port.port);
    }
    object.text("protocol", port.protocol);
    object.end();
}

struct Object<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

impl<'a> Object<'a> {
    fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, empty: true }
    }

    fn end(self) {
        self.out.push(b'}');
    }

    fn key(&mut self, key: &str) {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        string(self.out, key);
        self.out.push(b':');
    }

    /// A number, or a truth value.
    fn number(&mut self, key: &str, value: impl ToString) {
        self.key(key);
        self.out.extend_from_slice(value.to_string().as_bytes());
    }

    /// Left out when empty.
    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.key(key);
            string(self.out, value);
        }
    }

    /// Left out when empty.
    fn list<T>(&mut self, key: &str, values: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
        if values.is_empty() {
            return;
        }
        self.key(key);
        self.out.push(b'[');
        for (i, value) in values.iter().enumerate() {
            if i > 0 {
                self.out.push(b',');
            }
            write(self.out, value);
        }
        self.out.push(b']');
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
            }
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}
