//! The bootstrap of a stock Envoy that joins a mesh.
//!
//! It names two clusters: the control plane, over mutual TLS, and the agent beside the proxy, over
//! a Unix socket. Of the agent come the proxy's own certificate and the root by which the control
//! plane is known; everything else comes from the control plane.

use std::net::{IpAddr, SocketAddr};

use meshfed_pki::SpiffeId;
use meshfed_proxy_config::OWN_IDENTITY;
use serde_json::{Map, Value, json};

use crate::{
    KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, KEEPALIVE_TIME, ROOT_SECRET, SDS_CLUSTER, XDS_CLUSTER,
};

/// The limit on connections that clients may hold, if nobody says otherwise.
pub const DEFAULT_MAX_CONNECTIONS: u64 = 50_000;

/// What an Envoy must know to join.
#[derive(Debug, Clone)]
pub struct BootstrapOptions {
    pub node: NodeOptions,
    /// Host name or IP address of the control plane's ADS, and its port.
    pub control_plane: (String, u16),
    /// The identity that the control plane must prove.
    pub server: ServerName,
    /// Where the agent serves SDS. At most 107 bytes, the limit of a Unix socket's path.
    pub sds_socket: String,
    /// The admin page of Envoy; it asks for no password, so a loopback address.
    pub admin: SocketAddr,
    /// More connections from clients than this are closed at once.
    pub max_connections: u64,
}

/// Who the proxy says it is. The control plane believes only what its certificate proves.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    pub id: String,
    pub cluster: String,
    pub metadata: Map<String, Value>,
}

/// The name in the control plane's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerName {
    Id(SpiffeId),
    Dns(String),
}

/// The bootstrap, ready to be written to a file for `envoy -c`.
pub fn envoy(options: &BootstrapOptions) -> Value {
    let ads = json!({
        "api_type": "DELTA_GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": true,
        "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER}}],
    });
    let from_ads = json!({"ads": {}, "resource_api_version": "V3"});
    json!({
        "node": {
            "id": options.node.id,
            "cluster": options.node.cluster,
            "metadata": options.node.metadata,
        },
        "admin": {"address": socket_address(&options.admin.ip().to_string(), options.admin.port())},
        "dynamic_resources": {
            "ads_config": ads,
            "lds_config": from_ads,
            "cds_config": from_ads,
        },
        "static_resources": {"clusters": [control_plane(options), agent(options)]},
        "overload_manager": {
            "resource_monitors": [{
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    "max_active_downstream_connections": options.max_connections,
                },
            }],
        },
    })
}

fn control_plane(options: &BootstrapOptions) -> Value {
    let (host, port) = &options.control_plane;
    let is_ip = host.parse::<IpAddr>().is_ok();
    let mut cluster = json!({
        "name": XDS_CLUSTER,
        "connect_timeout": "5s",
        "load_assignment": endpoint(XDS_CLUSTER, &json!({"address": socket_address(host, *port)})),
        "typed_extension_protocol_options": http2(),
        "upstream_connection_options": {"tcp_keepalive": {
            "keepalive_time": KEEPALIVE_TIME.as_secs(),
            "keepalive_interval": KEEPALIVE_INTERVAL.as_secs(),
            "keepalive_probes": KEEPALIVE_PROBES,
        }},
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": control_plane_tls(options, (!is_ip).then_some(host)),
        },
    });
    if is_ip {
        cluster["type"] = json!("STATIC");
    } else {
        cluster["cluster_type"] = json!({
            "name": "envoy.cluster.dns",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster",
                "respect_dns_ttl": true,
                "dns_lookup_family": "V4_PREFERRED",
            },
        });
    }
    cluster
}

fn control_plane_tls(options: &BootstrapOptions, host: Option<&String>) -> Value {
    let (san_type, name, sni) = match &options.server {
        ServerName::Id(id) => ("URI", id.as_str(), host),
        ServerName::Dns(name) => ("DNS", name.as_str(), Some(name)),
    };
    let from_agent = json!({
        "resource_api_version": "V3",
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": true,
            "grpc_services": [{"envoy_grpc": {"cluster_name": SDS_CLUSTER}}],
        },
    });
    let mut tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_2",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": [
                {"name": OWN_IDENTITY, "sds_config": from_agent},
            ],
            "combined_validation_context": {
                "default_validation_context": {
                    "match_typed_subject_alt_names": [{
                        "san_type": san_type,
                        "matcher": {"exact": name},
                    }],
                },
                "validation_context_sds_secret_config":
                    {"name": ROOT_SECRET, "sds_config": from_agent},
            },
        },
    });
    if let Some(sni) = sni {
        tls["sni"] = json!(sni);
    }
    tls
}

fn agent(options: &BootstrapOptions) -> Value {
    let pipe = json!({"address": {"pipe": {"path": options.sds_socket}}});
    json!({
        "name": SDS_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": endpoint(SDS_CLUSTER, &pipe),
        "typed_extension_protocol_options": http2(),
    })
}

fn endpoint(cluster: &str, endpoint: &Value) -> Value {
    json!({
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
    })
}

/// gRPC, with a ping that finds a dead connection where TCP alone would wait.
fn http2() -> Value {
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {
            "connection_keepalive": {"interval": "30s", "timeout": "5s"},
        }},
    }})
}

fn socket_address(host: &str, port: u16) -> Value {
    json!({"socket_address": {"address": host, "port_value": port}})
}
