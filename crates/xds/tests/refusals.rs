//! What is outside the subset is refused by the name of the resource and the path of the field.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::google::protobuf::{
    Any, BoolValue, ListValue, Struct, UInt32Value, Value, value,
};
use meshfed_proxy_config::*;
use meshfed_xds::{DecodeError, decode, encode};
use prost::{Message, Name};

const HTTP: usize = 0;
const TCP: usize = 1;

fn sample_routes() -> RouteTable {
    RouteTable::new(
        "table",
        [VirtualHost {
            name: "host".into(),
            domains: vec!["a".to_string()],
            routes: vec![Route {
                name: "route".to_string(),
                path: PathMatch::Prefix("/".to_string()),
                headers: vec![HeaderMatch::Suffix {
                    name: "x-forwarded-client-cert".to_string(),
                    value: ";URI=spiffe://red/ns/a/sa/b".to_string(),
                }],
                action: RouteAction::Forward {
                    cluster: "c".to_string(),
                    rewrite_authority: None,
                    rewrite_path: None,
                    timeout: Duration::ZERO,
                    remove_headers: [].into(),
                },
            }],
        }],
    )
}

fn sample_listener() -> Listener {
    let tls = DownstreamTls {
        trust: "trust".to_string(),
        client_ids: vec!["spiffe://red/ns/a/sa/b".parse().unwrap()],
        alpn: Vec::new(),
    };
    let allow = vec![AllowPolicy {
        name: "policy".to_string(),
        principals: vec!["spiffe://red/ns/a/sa/b".parse().unwrap()],
        server_name_suffix: None,
    }];
    let http = Http {
        stat_prefix: "http".to_string(),
        routes: HttpRoutes::Inline(sample_routes()),
        allow: Some(allow.clone()),
        forward_client_id: true,
        append_forwarded_for: false,
        accept_connect: false,
        stream_idle_timeout: Duration::ZERO,
    };
    let tcp = Tcp {
        target: TcpTarget::SniCluster,
        allow: Some(allow),
        idle_timeout: Duration::from_secs(60),
    };
    let chain = |name: &str, network| FilterChain {
        name: name.to_string(),
        server_names: vec![ServerName::Exact(name.to_string())],
        tls: Some(tls.clone()),
        drain: DEFAULT_DRAIN,
        network,
    };
    Listener {
        name: "ingress".to_string(),
        address: "127.0.0.1:15443".parse().unwrap(),
        chains: vec![
            chain("http", Network::Http(http)),
            chain("tcp", Network::Tcp(tcp)),
        ],
        handshake_timeout: Duration::from_secs(5),
    }
}

fn sample_cluster() -> Cluster {
    Cluster {
        name: "c".into(),
        discovery: Discovery::Eds("c".into()),
        connect_timeout: Duration::from_secs(5),
        tls: Some(UpstreamTls {
            trust: "trust".into(),
            server: ServerIds::AnyOf("red".parse().unwrap()),
            sni: None,
            alpn: Vec::new(),
        }),
        protocol: UpstreamProtocol::Http1,
        outlier: None,
        drain: DEFAULT_DRAIN,
    }
}

/// Changes a message inside an `Any`.
fn inside<M: Message + Name + Default>(any: &mut Any, change: impl FnOnce(&mut M)) {
    assert_eq!(any.type_url, M::type_url());
    let mut message = M::decode(&*any.value).unwrap();
    change(&mut message);
    any.value = message.encode_to_vec();
}

fn filter<M: Message + Name + Default>(
    l: &mut listener::Listener,
    chain: usize,
    change: impl FnOnce(&mut M),
) {
    let last = l.filter_chains[chain].filters.last_mut().unwrap();
    let Some(ConfigType::TypedConfig(any)) = &mut last.config_type else {
        panic!("a filter without its configuration");
    };
    inside(any, change);
}

fn weighted(weights: &[u32]) -> tcp_proxy::tcp_proxy::ClusterSpecifier {
    use tcp_proxy::tcp_proxy::weighted_cluster::ClusterWeight;
    let clusters = weights.iter().map(|weight| ClusterWeight {
        name: "c".to_string(),
        weight: *weight,
        metadata_match: None,
    });
    let clusters = clusters.collect();
    tcp_proxy::tcp_proxy::ClusterSpecifier::WeightedClusters(
        tcp_proxy::tcp_proxy::WeightedCluster { clusters },
    )
}

/// Clusters of these weights in place of the one that the SNI names.
fn spread(l: &mut listener::Listener, weights: &[u32]) {
    l.filter_chains[TCP]
        .filters
        .retain(|f| !f.name.ends_with("sni_cluster"));
    filter(l, TCP, |m: &mut tcp_proxy::TcpProxy| {
        m.cluster_specifier = Some(weighted(weights));
    });
}

fn downstream_tls(l: &mut listener::Listener, change: impl FnOnce(&mut tls::DownstreamTlsContext)) {
    use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
    let socket = l.filter_chains[TCP].transport_socket.as_mut().unwrap();
    let Some(ConfigType::TypedConfig(any)) = &mut socket.config_type else {
        panic!("a socket without its configuration");
    };
    inside(any, change);
}

fn refused_listener(change: impl FnOnce(&mut listener::Listener)) -> DecodeError {
    let mut m = listener::Listener::decode(&*encode::listener(&sample_listener()).value).unwrap();
    change(&mut m);
    decode::listener(&m.encode_to_vec()).unwrap_err()
}

fn refused_cluster(change: impl FnOnce(&mut cluster::Cluster)) -> DecodeError {
    let mut m = cluster::Cluster::decode(&*encode::cluster(&sample_cluster()).value).unwrap();
    change(&mut m);
    decode::cluster(&m.encode_to_vec()).unwrap_err()
}

fn refused_routes(change: impl FnOnce(&mut route::RouteConfiguration)) -> DecodeError {
    let bytes = encode::routes(&sample_routes()).value;
    let mut m = route::RouteConfiguration::decode(&*bytes).unwrap();
    change(&mut m);
    decode::routes(&m.encode_to_vec()).unwrap_err()
}

#[track_caller]
fn assert_field(refused: &DecodeError, resource: &str, field: &str) {
    assert_eq!(
        (refused.resource.as_str(), refused.field.as_str()),
        (resource, field),
        "{refused}"
    );
}

#[test]
fn a_listener_that_asks_for_more_is_refused_at_the_field() {
    type Change = fn(&mut listener::Listener);
    let cases: [(&str, Change); 19] = [
        ("transparent", |l| {
            l.transparent = Some(BoolValue { value: true })
        }),
        ("default_filter_chain", |l| {
            l.default_filter_chain = Some(l.filter_chains[TCP].clone());
        }),
        ("name", |l| l.name.clear()),
        ("address.socket_address", |l| l.address = None),
        ("listener_filters", |l| l.listener_filters.clear()),
        ("filter_chains[1].name", |l| {
            l.filter_chains[TCP].name = "http".to_string()
        }),
        ("filter_chains[1].filter_chain_match", |l| {
            l.filter_chains[TCP].filter_chain_match =
                l.filter_chains[HTTP].filter_chain_match.clone();
        }),
        ("filter_chains[0].filter_chain_match.source_ports", |l| {
            let matches = l.filter_chains[HTTP].filter_chain_match.as_mut().unwrap();
            matches.source_ports.push(1);
        }),
        ("filter_chains[0].filter_chain_match.server_names[0]", |l| {
            let matches = l.filter_chains[HTTP].filter_chain_match.as_mut().unwrap();
            matches.server_names[0] = "*".to_string();
        }),
        ("filter_chains[1].transport_socket_connect_timeout", |l| {
            l.filter_chains[TCP].transport_socket_connect_timeout = None;
        }),
        ("filter_chains[1].filters", |l| {
            l.filter_chains[TCP].filters.pop();
        }),
        ("filter_chains[1].filters[3]", |l| {
            let first = l.filter_chains[TCP].filters[0].clone();
            l.filter_chains[TCP].filters.push(first);
        }),
        (
            "filter_chains[1].filters[2].typed_config.upstream_connect_mode",
            |l| {
                filter(l, TCP, |m: &mut tcp_proxy::TcpProxy| {
                    m.upstream_connect_mode = 0
                });
            },
        ),
        (
            "filter_chains[1].filters[2].typed_config.max_connect_attempts.value",
            |l| {
                filter(l, TCP, |m: &mut tcp_proxy::TcpProxy| {
                    m.max_connect_attempts = Some(Default::default());
                });
            },
        ),
        ("filter_chains[1].filters[2].typed_config.cluster", |l| {
            filter(l, TCP, |m: &mut tcp_proxy::TcpProxy| {
                let other = tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster("other".to_string());
                m.cluster_specifier = Some(other);
            });
        }),
        (
            "filter_chains[1].filters[2].typed_config.weighted_clusters",
            |l| {
                filter(l, TCP, |m: &mut tcp_proxy::TcpProxy| {
                    m.cluster_specifier = Some(weighted(&[1]));
                });
            },
        ),
        (
            "filter_chains[1].filters[1].typed_config.weighted_clusters.clusters",
            |l| spread(l, &[]),
        ),
        (
            "filter_chains[1].filters[1].typed_config.weighted_clusters.clusters[1].weight",
            |l| spread(l, &[1, 0]),
        ),
        (
            "filter_chains[1].filters[1].typed_config.weighted_clusters.clusters[0].weight",
            |l| spread(l, &[MAX_WEIGHT + 1]),
        ),
    ];
    for (field, change) in cases {
        let refused = refused_listener(change);
        let resource = if field == "name" { "" } else { "ingress" };
        assert_field(&refused, resource, field);
    }
}

#[test]
fn a_weaker_handshake_is_refused() {
    type Change = fn(&mut tls::DownstreamTlsContext);
    let names = "common_tls_context.combined_validation_context.default_validation_context";
    let cases: [(&str, Change); 6] = [
        ("require_client_certificate", |m| {
            m.require_client_certificate = None
        }),
        ("session_ticket_keys_type", |m| {
            m.session_ticket_keys_type = None
        }),
        (
            "common_tls_context.tls_params.tls_minimum_protocol_version",
            |m| {
                let params = m.common_tls_context.as_mut().unwrap().tls_params.as_mut();
                params.unwrap().tls_minimum_protocol_version = 1;
            },
        ),
        ("common_tls_context.combined_validation_context", |m| {
            m.common_tls_context
                .as_mut()
                .unwrap()
                .validation_context_type = None;
        }),
        (&format!("{names}.allow_expired_certificate"), |m| {
            validation(m).allow_expired_certificate = true;
        }),
        (
            &format!("{names}.match_typed_subject_alt_names[0].matcher.ignore_case"),
            |m| {
                let names = &mut validation(m).match_typed_subject_alt_names;
                names[0].matcher.as_mut().unwrap().ignore_case = true;
            },
        ),
    ];
    for (field, change) in cases {
        let refused = refused_listener(|l| downstream_tls(l, change));
        let field = format!("filter_chains[1].transport_socket.typed_config.{field}");
        assert_field(&refused, "ingress", &field);
    }
}

fn validation(m: &mut tls::DownstreamTlsContext) -> &mut tls::CertificateValidationContext {
    use tls::common_tls_context::ValidationContextType;
    let common = m.common_tls_context.as_mut().unwrap();
    match common.validation_context_type.as_mut().unwrap() {
        ValidationContextType::CombinedValidationContext(c) => {
            c.default_validation_context.as_mut().unwrap()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_connection_manager_that_would_change_requests_is_refused() {
    type Change = fn(&mut hcm::HttpConnectionManager);
    let cases: [(&str, Change); 6] = [
        ("via", |m| m.via = "me".to_string()),
        ("normalize_path.value", |m| {
            m.normalize_path = Some(BoolValue { value: true })
        }),
        ("request_headers_timeout", |m| {
            m.request_headers_timeout = None
        }),
        ("set_current_client_cert_details.uri", |m| {
            m.set_current_client_cert_details.as_mut().unwrap().uri = false;
        }),
        ("http_filters[0].typed_config", |m| {
            m.http_filters.remove(1);
        }),
        ("http_filters[0].disabled", |m| {
            m.http_filters[0].disabled = true
        }),
    ];
    for (field, change) in cases {
        let refused = refused_listener(|l| filter(l, HTTP, change));
        let field = format!("filter_chains[0].filters[0].typed_config.{field}");
        assert_field(&refused, "ingress", &field);
    }
}

#[test]
fn a_cluster_that_asks_for_more_is_refused_at_the_field() {
    type Change = fn(&mut cluster::Cluster);
    let cases: [(&str, Change); 9] = [
        ("upstream_connection_options", |c| {
            c.upstream_connection_options = None
        }),
        ("lb_policy", |c| {
            c.lb_policy = cluster::cluster::LbPolicy::Maglev.into()
        }),
        ("health_checks", |c| {
            c.health_checks.push(Default::default())
        }),
        ("connect_timeout", |c| {
            c.connect_timeout = Some(Default::default())
        }),
        ("type", |c| c.cluster_discovery_type = None),
        ("eds_cluster_config", |c| c.eds_cluster_config = None),
        ("load_assignment", |c| {
            c.load_assignment = Some(Default::default())
        }),
        ("transport_socket_matches", |c| {
            c.transport_socket_matches.clear()
        }),
        ("typed_extension_protocol_options", |c| {
            c.typed_extension_protocol_options.clear()
        }),
    ];
    for (field, change) in cases {
        assert_field(&refused_cluster(change), "c", field);
    }
}

#[test]
fn a_drain_period_that_cannot_be_is_refused_and_so_is_any_other_metadata() {
    let mut sample = sample_cluster();
    sample.drain = Duration::from_millis(1500);
    let with = |change: fn(&mut Struct)| {
        let mut m = cluster::Cluster::decode(&*encode::cluster(&sample).value).unwrap();
        let metadata = &mut m.metadata.as_mut().unwrap().filter_metadata;
        change(metadata.get_mut("meshfed.io").unwrap());
        decode::cluster(&m.encode_to_vec()).map(|c| c.drain)
    };
    fn set(fields: &mut Struct, key: &str, number: f64) {
        let kind = Some(value::Kind::NumberValue(number));
        fields.fields.insert(key.to_owned(), Value { kind });
    }
    assert_eq!(with(|_| {}), Ok(sample.drain));
    let hour = with(|f| set(f, "drain_period_ms", 3_600_000.0));
    assert_eq!(hour, Ok(MAX_DRAIN));
    let refused: [fn(&mut Struct); 6] = [
        |f| set(f, "drain_period_ms", -1.0),
        |f| set(f, "drain_period_ms", 0.5),
        |f| set(f, "drain_period_ms", 3_600_001.0),
        |f| set(f, "drain_period_ms", f64::NAN),
        |f| set(f, "another", 1.0),
        |f| f.fields.clear(),
    ];
    for change in refused {
        assert_field(&with(change).unwrap_err(), "c", "metadata");
    }
}

fn behind(of: &mut endpoint::ClusterLoadAssignment) -> &mut ListValue {
    let metadata = of.endpoints[0].lb_endpoints[0].metadata.as_mut().unwrap();
    let ours = metadata.filter_metadata.get_mut("meshfed.io").unwrap();
    match &mut ours.fields.get_mut("behind").unwrap().kind {
        Some(value::Kind::ListValue(all)) => all,
        other => panic!("{other:?}"),
    }
}

#[test]
fn endpoints_that_ask_for_more_are_refused_at_the_field() {
    let sample = Endpoints {
        name: "e".into(),
        localities: vec![LocalityEndpoints {
            endpoints: vec![Endpoint {
                behind: vec!["red".into()],
                ..Endpoint::new("127.0.0.1:1".parse().unwrap())
            }],
            ..Default::default()
        }],
    };
    type Change = fn(&mut endpoint::ClusterLoadAssignment);
    let cases: [(&str, Change); 9] = [
        ("policy", |e| e.policy = None),
        ("endpoints[0].lb_endpoints[0].metadata", |e| {
            behind(e).values[0].kind = None;
        }),
        ("endpoints[0].lb_endpoints[0].metadata", |e| {
            behind(e).values.clear();
        }),
        ("endpoints[0].lb_endpoints[0].load_balancing_weight", |e| {
            e.endpoints[0].lb_endpoints[0].load_balancing_weight = Some(UInt32Value { value: 0 });
        }),
        ("endpoints[0].lb_endpoints[0].load_balancing_weight", |e| {
            let value = MAX_WEIGHT + 1;
            e.endpoints[0].lb_endpoints[0].load_balancing_weight = Some(UInt32Value { value });
        }),
        ("endpoints[0].priority", |e| e.endpoints[0].priority = 129),
        ("endpoints[0].lb_endpoints[0].health_status", |e| {
            e.endpoints[0].lb_endpoints[0].health_status = 2;
        }),
        ("endpoints[0].lb_endpoints[0].metadata", |e| {
            e.endpoints[0].lb_endpoints[0].metadata = Some(Default::default());
        }),
        ("endpoints[0].lb_endpoints[0].endpoint", |e| {
            e.endpoints[0].lb_endpoints[0].host_identifier = None;
        }),
    ];
    for (field, change) in cases {
        let bytes = encode::endpoints(&sample).value;
        let mut m = endpoint::ClusterLoadAssignment::decode(&*bytes).unwrap();
        change(&mut m);
        let refused = decode::endpoints(&m.encode_to_vec()).unwrap_err();
        assert_field(&refused, "e", field);
    }
}

#[test]
fn a_table_whose_hosts_come_alone_has_none_and_they_come_over_the_same_stream() {
    let refused = |change: fn(&mut route::RouteConfiguration)| {
        let bytes = encode::separate_routes("t").value;
        let mut m = route::RouteConfiguration::decode(&*bytes).unwrap();
        change(&mut m);
        decode::routes(&m.encode_to_vec()).unwrap_err()
    };
    let error = refused(|m| m.virtual_hosts.push(Default::default()));
    assert_field(&error, "t", "virtual_hosts");
    let error = refused(|m| m.vhds.as_mut().unwrap().config_source = None);
    assert_field(&error, "t", "vhds.config_source");
    let error = refused(|m| m.name.clear());
    assert_field(&error, "", "name");
}

#[test]
fn a_virtual_host_that_comes_alone_is_refused_at_the_field() {
    let sample = sample_routes();
    let refused = |change: fn(&mut route::VirtualHost)| {
        let bytes = encode::virtual_host(sample.hosts.values().next().unwrap()).value;
        let mut m = route::VirtualHost::decode(&*bytes).unwrap();
        change(&mut m);
        decode::virtual_host(&m.encode_to_vec()).unwrap_err()
    };
    let name = &sample.hosts.values().next().unwrap().name;
    let error = refused(|m| m.domains.push(m.domains[0].to_ascii_uppercase()));
    assert_field(
        &error,
        name,
        &format!("domains[{}]", sample.hosts[name].domains.len()),
    );
    let error = refused(|m| m.routes[0].action = None);
    assert_field(&error, name, "routes[0].action");
}

#[test]
fn a_route_that_asks_for_more_is_refused_at_the_field() {
    type Change = fn(&mut route::RouteConfiguration);
    let cases: [(&str, Change); 7] = [
        ("virtual_hosts[0].domains[0]", |m| {
            m.virtual_hosts[0].domains[0] = "*.a".to_string();
        }),
        ("virtual_hosts[1].name", |m| {
            let host = m.virtual_hosts[0].clone();
            m.virtual_hosts.push(host);
        }),
        ("virtual_hosts[1].domains[0]", |m| {
            let mut host = m.virtual_hosts[0].clone();
            host.name = "other".to_string();
            host.domains[0] = "A".to_string();
            m.virtual_hosts.push(host);
        }),
        ("virtual_hosts[0].retry_policy", |m| {
            m.virtual_hosts[0].retry_policy = Some(Default::default());
        }),
        ("virtual_hosts[0].routes[0].request_headers_to_add", |m| {
            let added = &mut m.virtual_hosts[0].routes[0].request_headers_to_add;
            added.push(Default::default());
        }),
        (
            "virtual_hosts[0].routes[0].request_headers_to_remove[0]",
            |m| {
                let removed = &mut m.virtual_hosts[0].routes[0].request_headers_to_remove;
                removed.push(":path".to_string());
            },
        ),
        ("virtual_hosts[0].routes[0].match.path_specifier", |m| {
            let matched = m.virtual_hosts[0].routes[0].r#match.as_mut().unwrap();
            matched.path_specifier = None;
        }),
    ];
    for (field, change) in cases {
        assert_field(&refused_routes(change), "table", field);
    }

    // A bare suffix of the client certificate header would match any URI of several.
    let refused = refused_routes(|m| {
        use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
        use route::header_matcher::HeaderMatchSpecifier;
        let matched = m.virtual_hosts[0].routes[0].r#match.as_mut().unwrap();
        let header = &mut matched.headers[0];
        let Some(HeaderMatchSpecifier::StringMatch(text)) = &mut header.header_match_specifier
        else {
            panic!("{header:?}");
        };
        text.match_pattern = Some(MatchPattern::Suffix(";URI=spiffe://x".to_string()));
    });
    assert_field(
        &refused,
        "table",
        "virtual_hosts[0].routes[0].match.headers[0].string_match",
    );
}

#[test]
fn a_secret_with_a_private_key_is_refused() {
    let any = encode::identity("default", "chain", "key");
    let refused = decode::trust(&any.value).unwrap_err();
    assert_field(&refused, "default", "validation_context");
    let any = encode::root("ROOTCA", "pem");
    let refused = decode::trust(&any.value).unwrap_err();
    assert_field(&refused, "ROOTCA", "validation_context.trusted_ca");
}
