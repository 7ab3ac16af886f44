//! Listeners: where a proxy accepts connections and what it does with them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::SpiffeId;

/// A TCP listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    pub name: String,
    pub address: SocketAddr,
    /// A connection that matches no chain is closed and logged.
    pub chains: Vec<FilterChain>,
    /// How long a client may take from accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
}

/// What happens to the connections that it matches.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterChain {
    pub name: String,
    /// SNI to match; empty matches any connection, also without SNI. The most specific name wins:
    /// exact before suffix, longer suffix before shorter.
    pub server_names: Vec<ServerName>,
    pub tls: Option<DownstreamTls>,
    pub network: Network,
    /// How long its connections may go on after it was taken away, in whole milliseconds, at most
    /// [`MAX_DRAIN`](crate::MAX_DRAIN).
    pub drain: Duration,
}

/// A name in the SNI that selects a filter chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServerName {
    Exact(String),
    /// `Suffix("svc.x.local")` is Envoy's `*.svc.x.local`: at least one label more.
    Suffix(String),
}

/// TLS towards clients; a client certificate is always required.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownstreamTls {
    /// Name of the [`TrustBundle`](crate::TrustBundle) that client certificates must satisfy.
    pub trust: String,
    /// The ids that may finish the handshake; empty means every id that the bundle accepts.
    pub client_ids: Vec<SpiffeId>,
    /// Protocols to choose from. Empty: no ALPN is negotiated and none is required. No overlap
    /// with what the client offers is not an error; the handshake goes on without.
    pub alpn: Vec<String>,
}

/// What is done with the bytes of an accepted connection.
#[derive(Debug, Clone, PartialEq)]
pub enum Network {
    Tcp(Tcp),
    Http(Http),
}

/// Forwards bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Tcp {
    pub target: TcpTarget,
    /// Who may pass: the connection is allowed if one policy matches (Envoy's RBAC network filter,
    /// action ALLOW). `None` installs no check; an empty list allows nobody.
    pub allow: Option<Vec<AllowPolicy>>,
    /// A connection without a byte in either direction for this long is closed.
    pub idle_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TcpTarget {
    Cluster(String),
    /// The cluster whose name is the SNI (Envoy's `sni_cluster` filter); none of that name closes
    /// the connection.
    SniCluster,
    /// One of these clusters for each connection, each as often as its weight says: 1 to
    /// [`MAX_WEIGHT`](crate::MAX_WEIGHT). What is outside is written as the nearest bound. Never
    /// empty.
    Weighted(Vec<(Arc<str>, u32)>),
}

/// One way to be let through. All the conditions that are set must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowPolicy {
    /// Shown in logs and metrics as the policy that decided.
    pub name: String,
    /// The client's identity is one of these; empty means any authenticated one.
    pub principals: Vec<SpiffeId>,
    /// The SNI ends with this text; `None` means any SNI.
    pub server_name_suffix: Option<String>,
}

/// An HTTP connection manager, HTTP/1.1 and HTTP/2 chosen by ALPN or by the connection preface.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    pub stat_prefix: String,
    pub routes: HttpRoutes,
    /// As [`Tcp::allow`], answered with 403.
    pub allow: Option<Vec<AllowPolicy>>,
    /// Set `x-forwarded-client-cert` to `…;URI=<client id>`, dropping what the client sent, so that
    /// routes can match on the identity. Otherwise the header is removed.
    pub forward_client_id: bool,
    /// Append the client's address to `x-forwarded-for`; otherwise the header is left alone.
    pub append_forwarded_for: bool,
    /// CONNECT requests are accepted and matched by [`PathMatch::Connect`](crate::PathMatch).
    pub accept_connect: bool,
    /// Zero means streams may stay idle for ever.
    pub stream_idle_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub enum HttpRoutes {
    Inline(crate::RouteTable),
    /// A [`RouteTable`](crate::RouteTable) of this name, served separately.
    Rds(String),
}
