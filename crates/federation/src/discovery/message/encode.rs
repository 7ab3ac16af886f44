//! Writing messages byte for byte as Go's `encoding/json` does: keys in a fixed order, empty values
//! left out, and the characters that matter in HTML escaped.

use super::{Service, ServiceList, ServicePort, WatchEvent};

pub(super) fn list(list: &ServiceList) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + list.services.len() * 320);
    let mut object = Object::begin(&mut out);
    object.number("checksum", list.checksum);
    object.list("services", &list.services, service);
    object.end();
    out
}

pub(super) fn event(event: &WatchEvent) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    let mut object = Object::begin(&mut out);
    object.text("action", event.action.as_str());
    if let Some(changed) = &event.service {
        object.key("service");
        service(object.out, changed);
    }
    object.number("checksum", event.checksum);
    object.end();
    out.extend_from_slice(b"\r\n");
    out
}

fn service(out: &mut Vec<u8>, service: &Service) {
    let mut object = Object::begin(out);
    object.text("name", &service.name);
    object.text("namespace", &service.namespace);
    object.text("hostname", &service.hostname);
    object.list("servicePorts", &service.ports, port);
    object.list("serviceAccounts", &service.accounts, |out, account| {
        string(out, account);
    });
    object.end();
}

fn port(out: &mut Vec<u8>, port: &ServicePort) {
    let mut object = Object::begin(out);
    object.text("name", &port.name);
    if port.port != 0 {
        object.number("port", port.port);
    }
    object.text("protocol", &port.protocol);
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
