//! Between what a proxy is told ([`meshfed_proxy_config`]) and how Envoy says it.
//!
//! The control plane writes with [`encode`], our proxy reads with [`decode`], and a stock Envoy
//! reads the same bytes. What `decode` accepts is the documented subset (`docs/xds-subset.md`):
//! what it does not understand it refuses, by the name of the resource and the path of the field,
//! so nothing that was asked for is left undone in silence.
//!
//! ```text
//! Listener, Cluster, …  --encode-->  Any over ADS  --decode-->  the same Listener, Cluster, …
//!                                         \------> a stock Envoy (started with `bootstrap`)
//! ```
//!
//! ```
//! use meshfed_proxy_config::Endpoints;
//! use meshfed_xds::{TypeUrl, decode, encode};
//!
//! let endpoints = Endpoints { name: "ratings".into(), localities: Vec::new() };
//! let resource = encode::endpoints(&endpoints);
//! assert_eq!(resource.type_url, TypeUrl::Endpoints.as_str());
//! assert_eq!(decode::endpoints(&resource.value)?, endpoints);
//! # Ok::<(), meshfed_xds::DecodeError>(())
//! ```
//!
//! Only this crate knows the generated Envoy types; [`proto`] hands out those that speak xDS and
//! [`ca`] the certificate service.

mod access_log;
pub mod bootstrap;
pub mod ca;
mod cluster;
pub mod decode;
mod drain;
pub mod encode;
mod endpoints;
mod error;
mod listener;
mod network;
mod pb;
pub mod proto;
mod rbac;
mod routes;
mod tls;
mod trust;
mod type_url;
mod wire;

use std::time::Duration;

pub use error::{DecodeError, Reason};
pub use meshfed_proxy_config::OWN_IDENTITY;
pub use network::{CONNECT_ATTEMPTS, MAX_REQUEST_HEADERS_KIB, REQUEST_HEADERS_TIMEOUT};
pub use routes::Routes;
pub use type_url::TypeUrl;
pub use wire::{MAX_NAME_LEN, MAX_RESOURCE_LEN};

/// A connection on which nothing comes is probed after this time. A dead one ends within a minute.
pub const KEEPALIVE_TIME: Duration = Duration::from_secs(20);
/// From one probe to the next.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// So many without an answer end it; a way that is gone for half a minute does not.
pub const KEEPALIVE_PROBES: u32 = 8;

/// The cluster, in an Envoy's bootstrap, of the agent that keeps the proxy's own certificate.
pub const SDS_CLUSTER: &str = "sds-grpc";
/// The cluster, in an Envoy's bootstrap, of the control plane.
pub const XDS_CLUSTER: &str = "xds-grpc";
/// The secret, served by that agent, with the mesh's own root that vouches for the control plane.
pub const ROOT_SECRET: &str = "ROOTCA";
