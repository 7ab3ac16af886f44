//! Why connections and requests end.

use std::borrow::Cow;

use crate::cut::Cut;
use crate::io::RelayEnd;

/// The reason of an end, as access logs and metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides were done, or the HTTP exchange was.
    Complete,
    /// The limit of connections is reached.
    ConnectionLimit,
    /// The client did not finish its TLS handshake in time.
    HandshakeTimeout,
    /// The TLS handshake failed; the label says why the client was refused.
    ClientCertificate(&'static str),
    /// The client closed before it was connected to anything.
    ClientLeft,
    /// No filter chain matches the SNI, or its absence.
    NoChain,
    /// What the filter chain refers to has not arrived or is broken.
    NotConfigured,
    /// No allow policy admits this client.
    NotAllowed,
    /// No cluster has the name that the route or the SNI gives.
    NoCluster,
    /// The cluster has no endpoint.
    NoEndpoint,
    /// No endpoint could be reached.
    UpstreamConnect,
    /// Endpoints did not finish TCP and TLS in time.
    UpstreamTimeout,
    /// An endpoint failed the TLS handshake; the label says why.
    UpstreamCertificate(&'static str),
    /// The client's side failed in the middle.
    DownstreamReset,
    /// The endpoint's side failed in the middle.
    UpstreamReset,
    /// No byte in either direction for too long.
    Idle,
    /// The answer took longer than the route allows.
    ResponseTimeout,
    /// No virtual host or route matches.
    NoRoute,
    /// The request makes no sense for a proxy.
    BadRequest,
    /// What carried it was taken away, or the proxy stops, and it was still open at the end of the
    /// time to finish.
    Drained,
    /// The chain that carried it has other security now.
    ChainRemoved,
    /// The cluster was taken away while a connection was being made.
    ClusterRemoved,
    /// The client or the endpoint is not admitted any more.
    NoLongerAllowed,
    /// The certificate of the client or the endpoint is not trusted any more.
    TrustRemoved,
}

impl End {
    /// A stable word for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ConnectionLimit => "connection_limit",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::ClientCertificate(why) | Self::UpstreamCertificate(why) => why,
            Self::ClientLeft => "client_left",
            Self::NoChain => "no_chain_for_sni",
            Self::NotConfigured => "not_configured",
            Self::NotAllowed => "not_allowed",
            Self::NoCluster => "no_cluster",
            Self::NoEndpoint => "no_endpoint",
            Self::UpstreamConnect => "upstream_connect",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::DownstreamReset => "downstream_reset",
            Self::UpstreamReset => "upstream_reset",
            Self::Idle => "idle",
            Self::ResponseTimeout => "response_timeout",
            Self::NoRoute => "no_route",
            Self::BadRequest => "bad_request",
            Self::Drained => "drained",
            Self::ChainRemoved => "chain_removed",
            Self::ClusterRemoved => "cluster_removed",
            Self::NoLongerAllowed => "no_longer_allowed",
            Self::TrustRemoved => "trust_removed",
        }
    }

    /// The text for the access log.
    pub(crate) fn text(self) -> Cow<'static, str> {
        match self {
            Self::ClientCertificate(why) => format!("client_certificate: {why}").into(),
            Self::UpstreamCertificate(why) => format!("upstream_certificate: {why}").into(),
            other => other.label().into(),
        }
    }

    /// The client was turned away by us before any of its bytes went on.
    pub(crate) fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::ConnectionLimit
                | Self::HandshakeTimeout
                | Self::ClientCertificate(_)
                | Self::NoChain
                | Self::NotConfigured
                | Self::NotAllowed
                | Self::NoCluster
                | Self::NoRoute
                | Self::BadRequest
        )
    }

    /// The upstream is at fault.
    pub(crate) fn is_upstream_failure(self) -> bool {
        matches!(
            self,
            Self::NoEndpoint
                | Self::UpstreamConnect
                | Self::UpstreamTimeout
                | Self::UpstreamCertificate(_)
                | Self::UpstreamReset
                | Self::ResponseTimeout
        )
    }

    /// Envoy's response flag for the same end, which dashboards know.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::Complete => "-",
            Self::NoRoute | Self::NoChain => "NR",
            Self::NoCluster => "NC",
            Self::NoEndpoint => "UH",
            Self::UpstreamConnect | Self::UpstreamCertificate(_) | Self::UpstreamTimeout => "UF",
            Self::UpstreamReset => "UC",
            Self::ResponseTimeout => "UT",
            Self::Idle => "SI",
            Self::DownstreamReset | Self::ClientLeft => "DC",
            Self::ConnectionLimit => "UO",
            Self::BadRequest => "DPE",
            Self::NotAllowed | Self::NoLongerAllowed => "RBAC",
            Self::Drained
            | Self::ChainRemoved
            | Self::ClusterRemoved
            | Self::TrustRemoved
            | Self::HandshakeTimeout
            | Self::ClientCertificate(_)
            | Self::NotConfigured => "LR",
        }
    }
}

impl From<Cut> for End {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Drained => Self::Drained,
            Cut::ChainRemoved => Self::ChainRemoved,
            Cut::ClusterRemoved => Self::ClusterRemoved,
            Cut::NotAllowed => Self::NoLongerAllowed,
            Cut::TrustRemoved => Self::TrustRemoved,
        }
    }
}

impl From<RelayEnd> for End {
    fn from(end: RelayEnd) -> Self {
        match end {
            RelayEnd::Complete => Self::Complete,
            RelayEnd::Idle => Self::Idle,
            RelayEnd::Cut(cut) => cut.into(),
            RelayEnd::Client => Self::DownstreamReset,
            RelayEnd::Endpoint => Self::UpstreamReset,
        }
    }
}
