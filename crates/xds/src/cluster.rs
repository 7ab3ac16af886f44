//! Clusters.

use std::collections::HashMap;
use std::mem::take;
use std::time::Duration;

use meshfed_proxy_config::{Cluster, Discovery, OutlierDetection, UpstreamProtocol};

use crate::Reason;
use crate::pb::cluster::{
    self as pb, CircuitBreakers, UpstreamConnectionOptions, circuit_breakers,
    cluster::{
        ClusterDiscoveryType, CommonLbConfig, CustomClusterType, DiscoveryType, EdsClusterConfig,
        LbPolicy, TransportSocketMatch,
    },
};
use crate::pb::dns_cluster::{DnsCluster, dns_cluster};
use crate::pb::upstream_http::{
    HttpProtocolOptions,
    http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    },
};
use crate::pb::{BoolValue, UInt32Value, core, dns, envoy_type};
use crate::wire::{
    self, Path, Read, clip, duration, name, nothing_else, pack, read_limit, required, unpack,
};
use crate::{KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, KEEPALIVE_TIME, drain, endpoints, tls};

const DNS_CLUSTER: &str = "envoy.cluster.dns";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// The name of the socket match for endpoints without TLS.
const PLAIN_MATCH: &str = "plain";
/// Percent of healthy endpoints below which all are tried, healthy or not: only when none is.
const PANIC_THRESHOLD: f64 = 1.0;

pub(crate) fn encode(c: &Cluster) -> pb::Cluster {
    let mut out = template();
    out.name = c.name.to_string();
    out.connect_timeout = Some(duration(c.connect_timeout));
    match &c.discovery {
        Discovery::Eds(service) => {
            out.cluster_discovery_type =
                Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into()));
            out.eds_cluster_config = Some(EdsClusterConfig {
                eds_config: Some(wire::ads()),
                service_name: service.to_string(),
            });
        }
        Discovery::Static(addresses) => {
            out.cluster_discovery_type =
                Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into()));
            let addresses = endpoints::addresses(addresses);
            out.load_assignment = Some(endpoints::inline(&c.name, addresses));
        }
        Discovery::Dns(hosts) => {
            out.cluster_discovery_type =
                Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
                    name: DNS_CLUSTER.to_string(),
                    typed_config: Some(pack(&dns_template())),
                }));
            let addresses = hosts.iter().map(|(h, p)| wire::address(h, *p)).collect();
            out.load_assignment = Some(endpoints::inline(&c.name, addresses));
        }
    }
    out.transport_socket = c.tls.as_ref().map(tls::upstream);
    out.transport_socket_matches = socket_matches(c.tls.is_some(), &c.discovery);
    out.typed_extension_protocol_options =
        HashMap::from([(HTTP_OPTIONS.to_string(), pack(&http_options(c.protocol)))]);
    out.outlier_detection = c.outlier.as_ref().map(outlier);
    out.metadata = drain::metadata(c.drain);
    out
}

pub(crate) fn read(mut m: pb::Cluster) -> Read<Cluster> {
    let at = &Path::ROOT;
    let cluster_name = name(&at.field("name"), take(&mut m.name))?;
    let connect_timeout = read_limit(&at.field("connect_timeout"), m.connect_timeout.take())?;
    let kind = required(&at.field("type"), m.cluster_discovery_type.take())?;
    let eds = m.eds_cluster_config.take();
    let inline = m.load_assignment.take();
    let socket = m.transport_socket.take();
    let matches = take(&mut m.transport_socket_matches);
    let options = take(&mut m.typed_extension_protocol_options);
    let outlier = m.outlier_detection.take();
    let drain = drain::read(&at.field("metadata"), m.metadata.take())?;
    nothing_else(at, &m, &template())?;

    let discovery = read_discovery(at, &cluster_name, kind, eds, inline)?;
    let socket_at = &at.field("transport_socket");
    let tls = socket
        .map(|s| tls::read_upstream(socket_at, s))
        .transpose()?;
    if matches != socket_matches(tls.is_some(), &discovery) {
        return Err(at
            .field("transport_socket_matches")
            .refuse(Reason::Unsupported));
    }
    Ok(Cluster {
        name: cluster_name.into(),
        discovery,
        connect_timeout,
        tls,
        protocol: read_protocol(&at.field("typed_extension_protocol_options"), options)?,
        outlier: outlier
            .map(|o| read_outlier(&at.field("outlier_detection"), o))
            .transpose()?,
        drain,
    })
}

/// No limits on connections and requests: Envoy's own default of 1024 would be met by a busy
/// gateway, and the other proxies of this project have none.
///
/// An Envoy that is not told to probe its connections keeps a dead one for ever, and with it a watch that
/// never says anything again.
fn template() -> pb::Cluster {
    let number = |value| Some(UInt32Value { value });
    let seconds = |time: Duration| number(u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    let no_limit = || number(u32::MAX);
    pb::Cluster {
        lb_policy: LbPolicy::LeastRequest.into(),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(envoy_type::Percent {
                value: PANIC_THRESHOLD,
            }),
            ..Default::default()
        }),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![circuit_breakers::Thresholds {
                max_connections: no_limit(),
                max_pending_requests: no_limit(),
                max_requests: no_limit(),
                max_retries: no_limit(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        upstream_connection_options: Some(UpstreamConnectionOptions {
            tcp_keepalive: Some(core::TcpKeepalive {
                keepalive_time: seconds(KEEPALIVE_TIME),
                keepalive_interval: seconds(KEEPALIVE_INTERVAL),
                keepalive_probes: number(KEEPALIVE_PROBES),
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Every address of a name is an endpoint of its own, for as long as its TTL says.
fn dns_template() -> DnsCluster {
    let seconds = |n| Some(duration(Duration::from_secs(n)));
    DnsCluster {
        respect_dns_ttl: true,
        dns_refresh_rate: seconds(5),
        dns_failure_refresh_rate: Some(dns_cluster::RefreshRate {
            base_interval: seconds(1),
            max_interval: seconds(10),
        }),
        dns_lookup_family: dns::DnsLookupFamily::All.into(),
        ..Default::default()
    }
}

fn read_discovery(
    at: &Path<'_>,
    cluster: &str,
    kind: ClusterDiscoveryType,
    eds: Option<EdsClusterConfig>,
    inline: Option<crate::pb::endpoint::ClusterLoadAssignment>,
) -> Read<Discovery> {
    let load_at = &at.field("load_assignment");
    let eds_at = &at.field("eds_cluster_config");
    let is_eds = kind == ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
    if is_eds {
        if inline.is_some() {
            return Err(load_at.refuse(Reason::Unsupported));
        }
        let mut eds = required(eds_at, eds)?;
        let service = name(&eds_at.field("service_name"), take(&mut eds.service_name))?;
        let from_ads = EdsClusterConfig {
            eds_config: Some(wire::ads()),
            ..Default::default()
        };
        nothing_else(eds_at, &eds, &from_ads)?;
        return Ok(Discovery::Eds(service.into()));
    }
    if eds.is_some() {
        return Err(eds_at.refuse(Reason::Unsupported));
    }
    let addresses =
        || endpoints::read_inline(load_at, cluster, inline).map(|a| a.into_iter().enumerate());
    match kind {
        ClusterDiscoveryType::Type(t) if t == i32::from(DiscoveryType::Static) => {
            let read = addresses()?.map(|(i, a)| {
                wire::read_socket_address(&load_at.item("endpoints[0].lb_endpoints", i), a)
            });
            Ok(Discovery::Static(read.collect::<Read<_>>()?))
        }
        ClusterDiscoveryType::ClusterType(t) => {
            let at = &at.field("cluster_type");
            if t.name != DNS_CLUSTER {
                return Err(at.refuse(Reason::WrongType(clip(&t.name))));
            }
            let at = &at.field("typed_config");
            let dns: DnsCluster = unpack(at, &required(at, t.typed_config)?)?;
            nothing_else(at, &dns, &dns_template())?;
            let read = addresses()?
                .map(|(i, a)| wire::read_address(&load_at.item("endpoints[0].lb_endpoints", i), a));
            Ok(Discovery::Dns(read.collect::<Read<_>>()?))
        }
        ClusterDiscoveryType::Type(_) => Err(at.field("type").refuse(Reason::Unsupported)),
    }
}

/// Only endpoints that come over EDS can say that they take no TLS.
fn socket_matches(has_tls: bool, discovery: &Discovery) -> Vec<TransportSocketMatch> {
    if !has_tls || !matches!(discovery, Discovery::Eds(_)) {
        return Vec::new();
    }
    vec![TransportSocketMatch {
        name: PLAIN_MATCH.to_string(),
        r#match: Some(endpoints::plain_match()),
        transport_socket: Some(tls::plain()),
    }]
}

fn http_options(protocol: UpstreamProtocol) -> HttpProtocolOptions {
    let http1 = core::Http1ProtocolOptions::default;
    let http2 = core::Http2ProtocolOptions::default;
    let explicit = |p| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(p),
        })
    };
    let options = match protocol {
        UpstreamProtocol::Http1 => explicit(ProtocolConfig::HttpProtocolOptions(http1())),
        UpstreamProtocol::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2())),
        UpstreamProtocol::Downstream => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(http1()),
                http2_protocol_options: Some(http2()),
                ..Default::default()
            })
        }
    };
    HttpProtocolOptions {
        upstream_protocol_options: Some(options),
        ..Default::default()
    }
}

fn read_protocol(
    at: &Path<'_>,
    mut options: HashMap<String, crate::pb::Any>,
) -> Read<UpstreamProtocol> {
    let http = required(at, options.remove(HTTP_OPTIONS))?;
    if let Some(other) = options.into_keys().next() {
        return Err(at.refuse(Reason::WrongType(clip(&other))));
    }
    let http: HttpProtocolOptions = unpack(at, &http)?;
    [
        UpstreamProtocol::Http1,
        UpstreamProtocol::Http2,
        UpstreamProtocol::Downstream,
    ]
    .into_iter()
    .find(|p| http == http_options(*p))
    .ok_or_else(|| at.refuse(Reason::Unsupported))
}

fn outlier(o: &OutlierDetection) -> pb::OutlierDetection {
    let number = |value| Some(UInt32Value { value });
    pb::OutlierDetection {
        consecutive_5xx: number(o.consecutive_failures),
        interval: Some(duration(o.interval)),
        base_ejection_time: Some(duration(o.base_ejection)),
        max_ejection_percent: number(o.max_ejection_percent),
        ..outlier_template()
    }
}

/// Nothing but consecutive failures counts, and one endpoint may always be left out, or small
/// clusters would never be protected.
fn outlier_template() -> pb::OutlierDetection {
    let percent = |value| Some(UInt32Value { value });
    pb::OutlierDetection {
        enforcing_consecutive_5xx: percent(100),
        enforcing_success_rate: percent(0),
        enforcing_consecutive_gateway_failure: percent(0),
        enforcing_failure_percentage: percent(0),
        always_eject_one_host: Some(BoolValue { value: true }),
        ..Default::default()
    }
}

fn read_outlier(at: &Path<'_>, mut m: pb::OutlierDetection) -> Read<OutlierDetection> {
    let number = |field, v: Option<UInt32Value>, range: std::ops::RangeInclusive<u32>| {
        let at = &at.field(field);
        let n = required(at, v)?.value;
        if range.contains(&n) {
            Ok(n)
        } else {
            Err(at.refuse(Reason::OutOfRange))
        }
    };
    let out = OutlierDetection {
        consecutive_failures: number("consecutive_5xx", m.consecutive_5xx.take(), 1..=u32::MAX)?,
        interval: read_limit(&at.field("interval"), m.interval.take())?,
        base_ejection: read_limit(&at.field("base_ejection_time"), m.base_ejection_time.take())?,
        max_ejection_percent: number(
            "max_ejection_percent",
            m.max_ejection_percent.take(),
            0..=100,
        )?,
    };
    nothing_else(at, &m, &outlier_template())?;
    Ok(out)
}
