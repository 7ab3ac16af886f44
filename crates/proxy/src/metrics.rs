//! What the proxy counts.
//!
//! Labels come from our own configuration and from fixed words, never from what a client sends.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::end::End;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Listener {
    proxy: String,
    listener: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    proxy: String,
    listener: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    proxy: String,
    listener: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    proxy: String,
    listener: String,
    status: u16,
}

/// The counters of all proxies of a process, registered once.
#[derive(Clone, Default)]
pub struct Metrics {
    accepted: Family<Listener, Counter>,
    active: Family<Listener, Gauge>,
    refused: Family<Reason, Counter>,
    handshake_failures: Family<Reason, Counter>,
    upstream_failures: Family<Reason, Counter>,
    bytes: Family<Direction, Counter<u64, AtomicU64>>,
    requests: Family<Status, Counter>,
}

impl Metrics {
    /// Makes the counters and puts them in `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let m = Self::default();
        let registry = registry.sub_registry_with_prefix("meshfed_proxy");
        registry.register(
            "connections_accepted",
            "Connections that a listener accepted",
            m.accepted.clone(),
        );
        registry.register(
            "connections_active",
            "Connections that are open",
            m.active.clone(),
        );
        registry.register(
            "refused",
            "Connections and requests that were turned away before a byte went on, by reason",
            m.refused.clone(),
        );
        registry.register(
            "handshake_failures",
            "TLS handshakes of clients that failed, by reason",
            m.handshake_failures.clone(),
        );
        registry.register(
            "upstream_failures",
            "Connections and requests that failed at the upstream, by reason",
            m.upstream_failures.clone(),
        );
        registry.register_with_unit(
            "transferred",
            "Payload received from clients and sent to them",
            Unit::Bytes,
            m.bytes.clone(),
        );
        registry.register(
            "http_requests",
            "HTTP requests that were answered, by status",
            m.requests.clone(),
        );
        m
    }

    /// The counters of one listener, looked up once.
    pub(crate) fn listener(&self, proxy: &str, name: &str) -> ListenerMetrics {
        let label = Listener {
            proxy: proxy.to_owned(),
            listener: name.to_owned(),
        };
        let bytes = |direction| {
            self.bytes
                .get_or_create(&Direction {
                    proxy: proxy.to_owned(),
                    listener: name.to_owned(),
                    direction,
                })
                .clone()
        };
        ListenerMetrics {
            proxy: proxy.to_owned(),
            name: name.to_owned(),
            accepted: self.accepted.get_or_create(&label).clone(),
            active: self.active.get_or_create(&label).clone(),
            received: bytes("received"),
            sent: bytes("sent"),
            all: self.clone(),
        }
    }
}

/// The counters of one listener.
pub(crate) struct ListenerMetrics {
    proxy: String,
    name: String,
    pub(crate) accepted: Counter,
    pub(crate) active: Gauge,
    received: Counter<u64, AtomicU64>,
    sent: Counter<u64, AtomicU64>,
    all: Metrics,
}

impl ListenerMetrics {
    /// Counts the end of a connection or request, once, under its reason.
    pub(crate) fn ended(&self, end: End, received: u64, sent: u64) {
        self.received.inc_by(received);
        self.sent.inc_by(sent);
        let reason = || Reason {
            proxy: self.proxy.clone(),
            listener: self.name.clone(),
            reason: end.label(),
        };
        if matches!(end, End::ClientCertificate(_) | End::HandshakeTimeout) {
            self.all.handshake_failures.get_or_create(&reason()).inc();
        }
        if end.is_refusal() {
            self.all.refused.get_or_create(&reason()).inc();
        }
        if end.is_upstream_failure() {
            self.all.upstream_failures.get_or_create(&reason()).inc();
        }
    }

    pub(crate) fn answered(&self, status: u16) {
        self.all
            .requests
            .get_or_create(&Status {
                proxy: self.proxy.clone(),
                listener: self.name.clone(),
                status,
            })
            .inc();
    }
}
