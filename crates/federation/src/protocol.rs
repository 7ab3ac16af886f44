//! What is spoken on a service's port.

use std::fmt;

/// The protocols that Istio tells apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Http,
    Https,
    Http2,
    Grpc,
    GrpcWeb,
    Tcp,
    Tls,
    Udp,
    Mongo,
    Redis,
    MySql,
    HttpProxy,
    Hbone,
    /// Not declared. Bytes are forwarded as they are.
    #[default]
    Unsupported,
}

const NAMES: [(Protocol, &str); 14] = [
    (Protocol::Http, "HTTP"),
    (Protocol::Https, "HTTPS"),
    (Protocol::Http2, "HTTP2"),
    (Protocol::Grpc, "GRPC"),
    (Protocol::GrpcWeb, "GRPC-Web"),
    (Protocol::Tcp, "TCP"),
    (Protocol::Tls, "TLS"),
    (Protocol::Udp, "UDP"),
    (Protocol::Mongo, "Mongo"),
    (Protocol::Redis, "Redis"),
    (Protocol::MySql, "MySQL"),
    (Protocol::HttpProxy, "HTTP_PROXY"),
    (Protocol::Hbone, "HBONE"),
    (Protocol::Unsupported, "UnsupportedProtocol"),
];

/// Ports whose servers speak first, so that Istio takes them for TCP whatever their name.
const SERVER_FIRST_PORTS: [i32; 4] = [25, 53, 3306, 27017];

impl Protocol {
    /// The name in discovery messages.
    pub fn as_str(self) -> &'static str {
        NAMES
            .iter()
            .find(|(protocol, _)| *protocol == self)
            .map_or("UnsupportedProtocol", |(_, name)| name)
    }

    /// By its name in any case; unknown ones are [`Protocol::Unsupported`].
    pub fn parse(text: &str) -> Self {
        NAMES
            .iter()
            .find(|(_, name)| name.eq_ignore_ascii_case(text))
            .map_or(Self::Unsupported, |(protocol, _)| *protocol)
    }

    /// Of a Kubernetes Service's port: UDP where the transport says so, else by `appProtocol`,
    /// else by the port's name in Istio's form `<protocol>[-<more>]`.
    pub fn of_service_port(
        transport: Option<&str>,
        app_protocol: Option<&str>,
        name: Option<&str>,
        port: i32,
    ) -> Self {
        if transport == Some("UDP") {
            return Self::Udp;
        }
        if let Some(app) = app_protocol {
            return match app {
                "kubernetes.io/h2c" => Self::Http2,
                "kubernetes.io/ws" => Self::Http,
                "kubernetes.io/wss" => Self::Https,
                other => Self::parse(other),
            };
        }
        if SERVER_FIRST_PORTS.contains(&port) {
            return Self::Tcp;
        }
        let name = name.unwrap_or_default();
        let prefix = name.split('-').next().unwrap_or_default();
        if prefix.eq_ignore_ascii_case("grpc")
            && name
                .get(..8)
                .is_some_and(|s| s.eq_ignore_ascii_case("grpc-web"))
        {
            return Self::GrpcWeb;
        }
        Self::parse(prefix)
    }

    /// Whether requests of it are HTTP/2.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for (protocol, name) in NAMES {
            assert_eq!(Protocol::parse(name), protocol);
            assert_eq!(Protocol::parse(&name.to_lowercase()), protocol);
            assert_eq!(protocol.to_string(), name);
        }
        assert_eq!(Protocol::parse("quic"), Protocol::Unsupported);
    }

    #[test]
    fn a_service_port_tells_its_protocol_as_in_istio() {
        let of = Protocol::of_service_port;
        let named = |name| of(Some("TCP"), None, Some(name), 9080);
        assert_eq!(named("http"), Protocol::Http);
        assert_eq!(named("http-web"), Protocol::Http);
        assert_eq!(named("http2-x"), Protocol::Http2);
        assert_eq!(named("grpc"), Protocol::Grpc);
        assert_eq!(named("grpc-x"), Protocol::Grpc);
        assert_eq!(named("grpc-web"), Protocol::GrpcWeb);
        assert_eq!(named("web"), Protocol::Unsupported);
        assert_eq!(of(None, None, None, 9080), Protocol::Unsupported);
        assert_eq!(
            of(Some("UDP"), Some("http"), Some("http"), 53),
            Protocol::Udp
        );
        assert_eq!(of(None, Some("grpc"), Some("http"), 1), Protocol::Grpc);
        assert_eq!(
            of(None, Some("kubernetes.io/h2c"), None, 1),
            Protocol::Http2
        );
        assert_eq!(of(None, None, Some("http"), 3306), Protocol::Tcp);
    }
}
