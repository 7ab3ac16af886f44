//! HTTP routing.

use std::sync::Arc;
use std::time::Duration;

use crate::{Parts, joined};

/// By this header our proxies say whose answer it is, in place of what an upstream says about that:
/// [`ANSWERED_HERE`] on what they answer themselves, [`ANSWERED_BEYOND`] on a 502, 503 or 504 that they were
/// given. A stock Envoy says nothing, and lets pass what others say.
pub const ANSWERED: &str = "x-meshfed-answered";
pub const ANSWERED_HERE: &str = "here";
pub const ANSWERED_BEYOND: &str = "beyond";

/// An RDS resource: virtual hosts, chosen by the request's authority.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouteTable {
    pub name: String,
    /// By name.
    pub hosts: Parts<VirtualHost>,
}

impl RouteTable {
    pub fn new(name: impl Into<String>, hosts: impl IntoIterator<Item = VirtualHost>) -> Self {
        let hosts = hosts.into_iter();
        Self {
            name: name.into(),
            hosts: hosts
                .map(|host| (host.name.clone(), Arc::new(host)))
                .collect(),
        }
    }
}

/// The name of a virtual host as a resource, in the form of Envoy's VHDS: `<table>/<host>`.
pub fn host_name(table: &str, host: &str) -> Arc<str> {
    joined(&[table, "/", host])
}

/// The table that a virtual host belongs to, by its name as a resource.
pub fn table_of(host: &str) -> Option<&str> {
    host.split_once('/').map(|(table, _)| table)
}

#[derive(Debug, Clone, PartialEq)]
pub struct VirtualHost {
    /// In a table of [`ProxyConfig::routes`](crate::ProxyConfig::routes) it is made by
    /// [`host_name`], so that the host can be a resource of its own.
    pub name: Arc<str>,
    /// Authorities: exact (`host`, `host:port`), or `*` for any. A port in the request is part of
    /// the comparison. No two hosts of a table share one.
    pub domains: Vec<String>,
    /// In order; the first match wins, none gives 404.
    pub routes: Vec<Route>,
}

impl VirtualHost {
    /// Takes over the lists of `other` that are equal to its own, so that thousands of hosts hold
    /// them once.
    pub fn share(&mut self, other: &Self) {
        for (route, other) in self.routes.iter_mut().zip(&other.routes) {
            let (
                RouteAction::Forward { remove_headers, .. },
                RouteAction::Forward {
                    remove_headers: other,
                    ..
                },
            ) = (&mut route.action, &other.action)
            else {
                continue;
            };
            if remove_headers == other {
                *remove_headers = other.clone();
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    pub name: String,
    pub path: PathMatch,
    /// All must match.
    pub headers: Vec<HeaderMatch>,
    pub action: RouteAction,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// Compared without the query.
    Exact(String),
    Prefix(String),
    /// A CONNECT request.
    Connect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderMatch {
    Exact { name: String, value: String },
    Suffix { name: String, value: String },
}

#[derive(Debug, Clone, PartialEq)]
pub enum RouteAction {
    Forward {
        cluster: String,
        /// Replaces the authority.
        rewrite_authority: Option<String>,
        /// Replaces the matched path or prefix.
        rewrite_path: Option<String>,
        /// From the end of the request to the end of the response; zero means no limit.
        timeout: Duration,
        /// Removed from the request before it is sent on. Thousands of routes have the same ones.
        remove_headers: Arc<[String]>,
    },
    /// Answer here.
    Respond { status: u16, body: String },
}

/// The protocol spoken to a cluster's endpoints by HTTP routes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UpstreamProtocol {
    #[default]
    Http1,
    Http2,
    /// The protocol of the downstream request.
    Downstream,
}
