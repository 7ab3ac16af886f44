//! Network filters: what is done with the bytes of a connection.

use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use meshfed_proxy_config::{AllowPolicy, Http, HttpRoutes, MAX_WEIGHT, Network, Tcp, TcpTarget};
use prost::{Message, Name};

use crate::pb::hcm::{
    self, HttpConnectionManager, HttpFilter, Rds, http_connection_manager as hcm_types, http_filter,
};
use crate::pb::listener::{Filter, filter};
use crate::pb::tcp_proxy::tcp_proxy::weighted_cluster::ClusterWeight;
use crate::pb::tcp_proxy::tcp_proxy::{ClusterSpecifier, WeightedCluster};
use crate::pb::tcp_proxy::{TcpProxy, UpstreamConnectMode};
use crate::pb::{Any, BoolValue, UInt32Value, core, http_rbac, network_rbac, router, sni_cluster};
use crate::wire::{
    self, Path, Read, clip, duration, name, nothing_else, pack, read_duration, read_limit,
    required, unpack,
};
use crate::{Reason, access_log, rbac, routes};

const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";
const SNI_CLUSTER: &str = "envoy.filters.network.sni_cluster";
const NETWORK_RBAC: &str = "envoy.filters.network.rbac";
const HTTP: &str = "envoy.filters.network.http_connection_manager";
const HTTP_RBAC: &str = "envoy.filters.http.rbac";
const ROUTER: &str = "envoy.filters.http.router";

/// The cluster of a connection that names none by its SNI. There is never one of this name, so
/// such a connection is closed.
const NO_SUCH_SNI: &str = "no-such-sni";
/// Endpoints that are tried, at most, before a connection or request is given up. Only a failure to
/// connect leads to the next one, so nothing is ever sent twice.
pub const CONNECT_ATTEMPTS: u32 = 3;
/// Clusters that the connections of one chain may be spread over, at most.
pub const MAX_WEIGHTED: usize = 1024;
/// How long a client may take to send the headers of a request.
pub const REQUEST_HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest headers of a request, in KiB.
pub const MAX_REQUEST_HEADERS_KIB: u32 = 60;

/// The filters of a chain. `has_tls`: the chain authenticates its clients.
pub(crate) fn encode(chain: &str, network: &Network, has_tls: bool) -> Vec<Filter> {
    match network {
        Network::Tcp(t) => tcp(chain, t, has_tls),
        Network::Http(h) => vec![filter(HTTP, pack(&http(h)))],
    }
}

pub(crate) fn read(at: &Path<'_>, filters: Vec<Filter>, has_tls: bool) -> Read<Network> {
    let mut filters = filters
        .into_iter()
        .enumerate()
        .map(|(i, f)| match f.config_type {
            Some(filter::ConfigType::TypedConfig(any)) => Ok((f.name, any)),
            _ => Err(at.item("filters", i).refuse(Reason::Missing)),
        })
        .collect::<Read<Vec<_>>>()?
        .into_iter()
        .enumerate()
        .peekable();
    let mut next = |wanted: &str| {
        let found = filters.next_if(|(_, (name, _))| name == wanted);
        found.map(|(i, (_, any))| (i, any))
    };

    let network = if let Some((i, any)) = next(HTTP) {
        Network::Http(read_http(
            &at.item("filters", i).field("typed_config"),
            any,
        )?)
    } else {
        let allow = next(NETWORK_RBAC)
            .map(|(i, any)| read_network_rbac(&at.item("filters", i).field("typed_config"), &any))
            .transpose()?;
        let by_sni = next(SNI_CLUSTER)
            .map(|(i, any)| {
                let at = &at.item("filters", i);
                unpack::<sni_cluster::SniCluster>(&at.field("typed_config"), &any)
            })
            .transpose()?
            .is_some();
        let Some((i, any)) = next(TCP_PROXY) else {
            return Err(at.field("filters").refuse(Reason::Unsupported));
        };
        let at = &at.item("filters", i);
        Network::Tcp(read_tcp(
            &at.field("typed_config"),
            &any,
            allow,
            by_sni,
            has_tls,
        )?)
    };
    match filters.next() {
        None => Ok(network),
        Some((i, (name, _))) => Err(at.item("filters", i).refuse(Reason::WrongType(clip(&name)))),
    }
}

fn tcp(chain: &str, t: &Tcp, has_tls: bool) -> Vec<Filter> {
    let mut filters = Vec::with_capacity(3);
    if let Some(allow) = &t.allow {
        let check = rbac::OrderedNetworkRbac {
            rules: Some(rbac::rules(allow)),
            stat_prefix: chain.to_string(),
        };
        filters.push(filter(NETWORK_RBAC, any_of::<network_rbac::Rbac>(&check)));
    }
    let target = match &t.target {
        TcpTarget::Cluster(name) => ClusterSpecifier::Cluster(name.clone()),
        TcpTarget::SniCluster => {
            filters.push(filter(SNI_CLUSTER, pack(&sni_cluster::SniCluster {})));
            ClusterSpecifier::Cluster(NO_SUCH_SNI.to_owned())
        }
        TcpTarget::Weighted(all) => weighted(all),
    };
    filters.push(filter(
        TCP_PROXY,
        pack(&TcpProxy {
            stat_prefix: chain.to_string(),
            idle_timeout: Some(duration(t.idle_timeout)),
            cluster_specifier: Some(target),
            ..tcp_template(has_tls)
        }),
    ));
    filters
}

fn weighted(all: &[(Arc<str>, u32)]) -> ClusterSpecifier {
    let clusters = all.iter().map(|(name, weight)| ClusterWeight {
        name: name.to_string(),
        weight: (*weight).clamp(1, MAX_WEIGHT),
        metadata_match: None,
    });
    ClusterSpecifier::WeightedClusters(WeightedCluster {
        clusters: clusters.collect(),
    })
}

fn read_weighted(at: &Path<'_>, all: WeightedCluster) -> Read<TcpTarget> {
    let count = all.clusters.len();
    if count == 0 || count > MAX_WEIGHTED {
        return Err(at.field("clusters").refuse(Reason::OutOfRange));
    }
    let clusters = wire::read_all(all.clusters, |i, cluster| {
        let at = &at.item("clusters", i);
        if cluster.metadata_match.is_some() {
            return Err(at.field("metadata_match").refuse(Reason::Unsupported));
        }
        if !(1..=MAX_WEIGHT).contains(&cluster.weight) {
            return Err(at.field("weight").refuse(Reason::OutOfRange));
        }
        let name = name(&at.field("name"), cluster.name)?;
        Ok((Arc::from(name), cluster.weight))
    })?;
    Ok(TcpTarget::Weighted(clusters))
}

/// Nothing is opened behind the proxy before the client has proved who it is.
fn tcp_template(has_tls: bool) -> TcpProxy {
    let template = TcpProxy {
        max_connect_attempts: Some(UInt32Value {
            value: CONNECT_ATTEMPTS,
        }),
        ..Default::default()
    };
    if !has_tls {
        return template;
    }
    TcpProxy {
        upstream_connect_mode: UpstreamConnectMode::OnDownstreamTlsHandshake.into(),
        max_early_data_bytes: Some(UInt32Value { value: 0 }),
        ..template
    }
}

fn read_tcp(
    at: &Path<'_>,
    any: &Any,
    allow: Option<Vec<AllowPolicy>>,
    by_sni: bool,
    has_tls: bool,
) -> Read<Tcp> {
    let mut m: TcpProxy = unpack(at, any)?;
    drop(take(&mut m.stat_prefix));
    drop(take(&mut m.access_log));
    let idle_timeout = read_limit(&at.field("idle_timeout"), m.idle_timeout.take())?;
    let cluster = m.cluster_specifier.take();
    nothing_else(at, &m, &tcp_template(has_tls))?;
    let target = match (by_sni, cluster) {
        (true, Some(ClusterSpecifier::Cluster(name))) if name == NO_SUCH_SNI => {
            TcpTarget::SniCluster
        }
        (false, Some(ClusterSpecifier::Cluster(cluster))) => {
            TcpTarget::Cluster(name(&at.field("cluster"), cluster)?)
        }
        (false, Some(ClusterSpecifier::WeightedClusters(all))) => {
            read_weighted(&at.field("weighted_clusters"), all)?
        }
        // Where connections without SNI go, which the subset cannot say.
        (true, Some(ClusterSpecifier::Cluster(_))) => {
            return Err(at.field("cluster").refuse(Reason::Unsupported));
        }
        (true, Some(ClusterSpecifier::WeightedClusters(_))) => {
            return Err(at.field("weighted_clusters").refuse(Reason::Unsupported));
        }
        (_, None) => return Err(at.field("cluster_specifier").refuse(Reason::Unsupported)),
    };
    Ok(Tcp {
        target,
        allow,
        idle_timeout,
    })
}

fn read_network_rbac(at: &Path<'_>, any: &Any) -> Read<Vec<AllowPolicy>> {
    let mut m: network_rbac::Rbac = unpack(at, any)?;
    drop(take(&mut m.stat_prefix));
    let rules = m.rules.take();
    nothing_else(at, &m, &network_rbac::Rbac::default())?;
    let at = &at.field("rules");
    rbac::read_rules(at, required(at, rules)?)
}

fn http(h: &Http) -> HttpConnectionManager {
    let mut filters = Vec::with_capacity(2);
    if let Some(allow) = &h.allow {
        let check = rbac::OrderedHttpRbac {
            rules: Some(rbac::rules(allow)),
        };
        filters.push(http_filter(HTTP_RBAC, any_of::<http_rbac::Rbac>(&check)));
    }
    filters.push(http_filter(ROUTER, pack(&router_template())));
    HttpConnectionManager {
        stat_prefix: h.stat_prefix.clone(),
        http_filters: filters,
        access_log: access_log::requests(),
        stream_idle_timeout: Some(duration(h.stream_idle_timeout)),
        route_specifier: Some(match &h.routes {
            HttpRoutes::Inline(table) => {
                hcm_types::RouteSpecifier::RouteConfig(routes::encode(table))
            }
            HttpRoutes::Rds(name) => hcm_types::RouteSpecifier::Rds(Rds {
                config_source: Some(wire::ads()),
                route_config_name: name.clone(),
            }),
        }),
        ..http_template(Switches {
            forward_client_id: h.forward_client_id,
            append_forwarded_for: h.append_forwarded_for,
            accept_connect: h.accept_connect,
        })
    }
}

#[derive(Clone, Copy)]
struct Switches {
    forward_client_id: bool,
    append_forwarded_for: bool,
    accept_connect: bool,
}

/// Requests pass as they came: no header is added, no path rewritten, and no client counts as
/// internal, whose `x-envoy-…` headers Envoy would obey.
fn http_template(on: Switches) -> HttpConnectionManager {
    use hcm_types::{
        ForwardClientCertDetails as Forward, InternalAddressConfig, PathWithEscapedSlashesAction,
        ServerHeaderTransformation, SetCurrentClientCertDetails, UpgradeConfig,
    };
    let (forward, details) = if on.forward_client_id {
        let uri = SetCurrentClientCertDetails {
            uri: true,
            ..Default::default()
        };
        (Forward::SanitizeSet, Some(uri))
    } else {
        (Forward::Sanitize, None)
    };
    let connect = UpgradeConfig {
        upgrade_type: routes::CONNECT.to_string(),
        ..Default::default()
    };
    HttpConnectionManager {
        codec_type: hcm_types::CodecType::Auto.into(),
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        max_request_headers_kb: Some(UInt32Value {
            value: MAX_REQUEST_HEADERS_KIB,
        }),
        request_headers_timeout: Some(duration(REQUEST_HEADERS_TIMEOUT)),
        generate_request_id: Some(BoolValue { value: false }),
        normalize_path: Some(BoolValue { value: false }),
        path_with_escaped_slashes_action: PathWithEscapedSlashesAction::KeepUnchanged.into(),
        internal_address_config: Some(InternalAddressConfig {
            cidr_ranges: vec![core::CidrRange {
                address_prefix: "0.0.0.0".to_string(),
                prefix_len: Some(UInt32Value { value: 32 }),
            }],
            ..Default::default()
        }),
        use_remote_address: Some(BoolValue {
            value: on.append_forwarded_for,
        }),
        skip_xff_append: !on.append_forwarded_for,
        forward_client_cert_details: forward.into(),
        set_current_client_cert_details: details,
        upgrade_configs: if on.accept_connect {
            vec![connect]
        } else {
            Vec::new()
        },
        ..Default::default()
    }
}

fn router_template() -> router::Router {
    router::Router {
        suppress_envoy_headers: true,
        ..Default::default()
    }
}

fn read_http(at: &Path<'_>, any: Any) -> Read<Http> {
    let mut m: HttpConnectionManager = unpack(at, &any)?;
    drop(any);
    drop(take(&mut m.access_log));
    let stat_prefix = name(&at.field("stat_prefix"), take(&mut m.stat_prefix))?;
    let stream_idle_timeout = read_duration(
        &at.field("stream_idle_timeout"),
        m.stream_idle_timeout.take(),
    )?;
    let filters = take(&mut m.http_filters);
    let specifier = m.route_specifier.take();
    let sanitize_set = i32::from(hcm_types::ForwardClientCertDetails::SanitizeSet);
    let on = Switches {
        forward_client_id: m.forward_client_cert_details == sanitize_set,
        append_forwarded_for: m.use_remote_address.is_some_and(|b| b.value),
        accept_connect: !m.upgrade_configs.is_empty(),
    };
    nothing_else(at, &m, &http_template(on))?;

    let routes = match specifier {
        Some(hcm_types::RouteSpecifier::RouteConfig(table)) => {
            HttpRoutes::Inline(routes::read(&at.field("route_config"), table)?)
        }
        Some(hcm_types::RouteSpecifier::Rds(mut rds)) => {
            let at = &at.field("rds");
            let table = take(&mut rds.route_config_name);
            let from_ads = Rds {
                config_source: Some(wire::ads()),
                ..Default::default()
            };
            nothing_else(at, &rds, &from_ads)?;
            HttpRoutes::Rds(name(&at.field("route_config_name"), table)?)
        }
        _ => return Err(at.field("route_specifier").refuse(Reason::Unsupported)),
    };
    Ok(Http {
        stat_prefix,
        routes,
        allow: read_http_filters(at, filters)?,
        forward_client_id: on.forward_client_id,
        append_forwarded_for: on.append_forwarded_for,
        accept_connect: on.accept_connect,
        stream_idle_timeout,
    })
}

/// An optional RBAC filter, then the router.
fn read_http_filters(
    at: &Path<'_>,
    filters: Vec<hcm::HttpFilter>,
) -> Read<Option<Vec<AllowPolicy>>> {
    let mut allow = None;
    let count = filters.len();
    for (i, mut f) in filters.into_iter().enumerate() {
        let at = &at.item("http_filters", i);
        let filter_name = take(&mut f.name);
        let config = f.config_type.take();
        nothing_else(at, &f, &HttpFilter::default())?;
        let at = &at.field("typed_config");
        let Some(http_filter::ConfigType::TypedConfig(any)) = config else {
            return Err(at.refuse(Reason::Missing));
        };
        match (filter_name.as_str(), count - i) {
            (ROUTER, 1) => {
                let router = unpack(at, &any)?;
                nothing_else(at, &router, &router_template())?;
                return Ok(allow);
            }
            (HTTP_RBAC, 2) if allow.is_none() => {
                let mut m: http_rbac::Rbac = unpack(at, &any)?;
                let rules = m.rules.take();
                nothing_else(at, &m, &http_rbac::Rbac::default())?;
                let at = &at.field("rules");
                allow = Some(rbac::read_rules(at, required(at, rules)?)?);
            }
            _ => return Err(at.refuse(Reason::WrongType(clip(&filter_name)))),
        }
    }
    Err(at.field("http_filters").refuse(Reason::Missing))
}

/// Packs a mirror of the message `M` as `M`.
fn any_of<M: Name>(mirror: &impl Message) -> Any {
    Any {
        type_url: M::type_url(),
        value: mirror.encode_to_vec(),
    }
}

fn filter(name: &str, config: Any) -> Filter {
    Filter {
        name: name.to_string(),
        config_type: Some(filter::ConfigType::TypedConfig(config)),
    }
}

fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_string(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}
