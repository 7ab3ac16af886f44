//! Short names for the generated Envoy modules, for use inside this crate.

pub(crate) use envoy_types::pb::envoy::config::{
    accesslog::v3 as accesslog, cluster::v3 as cluster, core::v3 as core, endpoint::v3 as endpoint,
    listener::v3 as listener, rbac::v3 as rbac, route::v3 as route,
};
pub(crate) use envoy_types::pb::envoy::extensions::access_loggers::stream::v3 as stream_log;
pub(crate) use envoy_types::pb::envoy::extensions::clusters::{
    common::dns::v3 as dns, dns::v3 as dns_cluster,
};
pub(crate) use envoy_types::pb::envoy::extensions::filters::http::{
    rbac::v3 as http_rbac, router::v3 as router,
};
pub(crate) use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3 as tls_inspector;
pub(crate) use envoy_types::pb::envoy::extensions::filters::network::{
    http_connection_manager::v3 as hcm, rbac::v3 as network_rbac, sni_cluster::v3 as sni_cluster,
    tcp_proxy::v3 as tcp_proxy,
};
pub(crate) use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3 as previous_hosts;
pub(crate) use envoy_types::pb::envoy::extensions::transport_sockets::{
    raw_buffer::v3 as raw_buffer, tls::v3 as tls,
};
pub(crate) use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream_http;
pub(crate) use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
pub(crate) use envoy_types::pb::envoy::r#type::v3 as envoy_type;
pub(crate) use envoy_types::pb::google::api::expr::v1alpha1 as cel;
pub(crate) use envoy_types::pb::google::protobuf::{
    Any, BoolValue, Duration, ListValue, Struct, UInt32Value, Value, value,
};
