//! What a proxy is told, in our own plain types.
//!
//! The pure core (`meshfed-federation`) makes a [`ProxyConfig`], `meshfed-xds` writes it as Envoy
//! v3 resources and reads it back, and `meshfed-proxy` acts on it. The types can say no more than
//! what all three agree on, so this crate *is* the documented xDS subset.
//!
//! ```text
//! federation --ProxyConfig--> xds --Envoy v3 over ADS--> xds --ProxyConfig parts--> proxy
//!                                            \---------> a stock Envoy
//! ```
//!
//! Every part sits behind an [`Arc`] under its name, in maps that share what did not change with the
//! maps that they were made from. So a copy costs a few pointers, and the difference of two versions
//! ([`OrdMap::changes`]) costs about as much as changed.

mod cluster;
mod http;
mod listener;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meshfed_ordmap::OrdMap;

pub use cluster::{
    Cluster, Discovery, Endpoint, Endpoints, Locality, LocalityEndpoints, MAX_WEIGHT,
    OutlierDetection, ServerIds, UpstreamTls,
};
pub use http::{
    ANSWERED, ANSWERED_BEYOND, ANSWERED_HERE, HeaderMatch, PathMatch, Route, RouteAction,
    RouteTable, UpstreamProtocol, VirtualHost, host_name, table_of,
};
pub use listener::{
    AllowPolicy, DownstreamTls, FilterChain, Http, HttpRoutes, Listener, Network, ServerName, Tcp,
    TcpTarget,
};
use meshfed_pki::TrustDomain;

/// Parts of one kind, by name. A version shares with the one before what did not change.
pub type Parts<T> = OrdMap<Arc<str>, Arc<T>>;

/// The whole configuration of one proxy. Names are the Envoy resource names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProxyConfig {
    pub listeners: Parts<Listener>,
    pub clusters: Parts<Cluster>,
    /// EDS resources, by [`Discovery::Eds`] service name.
    pub endpoints: Parts<Endpoints>,
    /// RDS resources, by [`HttpRoutes::Rds`] name. For clients that want that, their virtual hosts are
    /// resources of their own.
    pub routes: Parts<RouteTable>,
    /// SDS validation contexts, by the names that TLS settings refer to. Never private keys.
    pub trust: Parts<TrustBundle>,
}

/// Which roots may vouch for which trust domain: Envoy's SPIFFE certificate validator.
///
/// A peer certificate is accepted only if it has exactly one SPIFFE URI SAN, the SAN's trust domain
/// has an entry here, and the certificate chains to a root of that entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustBundle {
    /// Trust domain to PEM text of one or more CA certificates.
    pub domains: BTreeMap<TrustDomain, Arc<str>>,
}

/// The name under which every proxy knows its own certificate and key. They come from the proxy's
/// own identity source (`meshfed agent` over SDS for a stock Envoy), never over ADS.
pub const OWN_IDENTITY: &str = "default";

/// How long connections of what was taken away go on, unless something else is said.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(5);
/// The longest that they can.
pub const MAX_DRAIN: Duration = Duration::from_secs(3600);

/// The SNI of a service port: `outbound_.<port>_._.<host>`.
pub fn sni(port: u16, host: &str) -> Arc<str> {
    joined(&["outbound_.", decimal(port, &mut [0; 5]), "_._.", host])
}

/// The name of the cluster that carries a service port where the name is not also an SNI, in
/// Istio's form `outbound|<port>||<host>`.
pub fn outbound_cluster(port: u16, host: &str) -> Arc<str> {
    joined(&["outbound|", decimal(port, &mut [0; 5]), "||", host])
}

/// A shared text, made with one allocation and without formatting: there are some of them for every
/// service.
pub fn joined(parts: &[&str]) -> Arc<str> {
    thread_local! {
        static BUFFER: RefCell<String> = const { RefCell::new(String::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        buffer.clear();
        for part in parts {
            buffer.push_str(part);
        }
        Arc::from(buffer.as_str())
    })
}

/// The number in decimal digits.
fn decimal(number: u16, digits: &mut [u8; 5]) -> &str {
    let mut rest = number;
    let mut first = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        first = at;
        if rest == 0 {
            break;
        }
    }
    std::str::from_utf8(&digits[first..]).unwrap_or_default()
}
