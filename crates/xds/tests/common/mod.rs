//! Generated configurations: everything that the types can say and Envoy can be told.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a panic is how a test fails; no test uses all of this"
)]

pub mod ads;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::{SpiffeId, TrustDomain};
use meshfed_proxy_config::*;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// How many of each kind are shown to Envoy.
pub const SAMPLES: usize = 60;

/// Values that differ, but are the same in each run.
pub fn samples<S: Strategy>(strategy: S) -> Vec<S::Value> {
    let mut runner = TestRunner::deterministic();
    (0..SAMPLES)
        .map(|_| strategy.new_tree(&mut runner).unwrap().current())
        .collect()
}

fn word() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,10}"
}

pub fn host() -> impl Strategy<Value = String> {
    vec("[a-z0-9_]{1,8}", 1..5).prop_map(|labels| labels.join("."))
}

fn domain() -> impl Strategy<Value = TrustDomain> {
    "[a-z]{1,8}\\.local".prop_map(|d| d.parse().unwrap())
}

fn id() -> impl Strategy<Value = SpiffeId> {
    (domain(), word(), word()).prop_map(|(d, ns, sa)| d.service_account(&ns, &sa).unwrap())
}

fn limit() -> impl Strategy<Value = Duration> {
    (1_u64..100_000).prop_map(Duration::from_millis)
}

fn drain() -> impl Strategy<Value = Duration> {
    let most = u64::try_from(MAX_DRAIN.as_millis()).unwrap();
    let other = (0..=most).prop_map(Duration::from_millis);
    prop_oneof![Just(DEFAULT_DRAIN), other]
}

fn limit_or_none() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(Duration::ZERO), limit()]
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let v4 = any::<u32>().prop_map(|a| IpAddr::V4(Ipv4Addr::from(a)));
    let v6 = any::<u128>().prop_map(|a| IpAddr::V6(Ipv6Addr::from(a)));
    (prop_oneof![4 => v4, 1 => v6], 1_u16..).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn alpn() -> impl Strategy<Value = Vec<String>> {
    prop_oneof![
        Just(vec![]),
        Just(vec!["h2".to_string(), "http/1.1".to_string()]),
        vec("[a-z0-9/.]{1,12}", 1..3),
    ]
}

fn allow() -> impl Strategy<Value = Option<Vec<AllowPolicy>>> {
    let policy = (vec(id(), 0..3), option::of(host()));
    option::of(btree_map(word(), policy, 0..3).prop_map(|policies| {
        let policies = policies.into_iter();
        policies
            .map(|(name, (principals, server_name_suffix))| AllowPolicy {
                name,
                principals,
                server_name_suffix,
            })
            .collect()
    }))
}

fn header_match() -> impl Strategy<Value = HeaderMatch> {
    let xfcc = id().prop_map(|id| HeaderMatch::Suffix {
        name: "x-forwarded-client-cert".to_string(),
        value: format!(";URI={id}"),
    });
    let exact =
        (word(), "[ -~]{0,20}").prop_map(|(name, value)| HeaderMatch::Exact { name, value });
    prop_oneof![xfcc, exact]
}

fn path() -> impl Strategy<Value = String> {
    "(/[a-z0-9._-]{0,8}){1,4}"
}

fn route() -> impl Strategy<Value = Route> {
    let matched = prop_oneof![
        path().prop_map(PathMatch::Exact),
        path().prop_map(PathMatch::Prefix),
        Just(PathMatch::Connect),
    ];
    let forward = (
        host(),
        option::of(host()),
        option::of(path()),
        limit_or_none(),
        vec(word(), 0..3),
    );
    let action = prop_oneof![
        3 => forward.prop_map(|(cluster, rewrite_authority, rewrite_path, timeout, remove_headers)| {
            let remove_headers = remove_headers.into();
            RouteAction::Forward { cluster, rewrite_authority, rewrite_path, timeout, remove_headers }
        }),
        1 => (200_u16..600, "[ -~]{0,40}").prop_map(|(status, body)| RouteAction::Respond { status, body }),
    ];
    (word(), matched, vec(header_match(), 0..3), action).prop_map(
        |(name, path, headers, mut action)| {
            if let (PathMatch::Connect, RouteAction::Forward { rewrite_path, .. }) =
                (&path, &mut action)
            {
                *rewrite_path = None;
            }
            Route {
                name,
                path,
                headers,
                action,
            }
        },
    )
}

pub fn routes() -> impl Strategy<Value = RouteTable> {
    let hosts = btree_map(word(), (btree_set(host(), 1..3), vec(route(), 0..4)), 0..4);
    (word(), hosts, any::<bool>()).prop_map(|(name, hosts, any)| {
        let mut hosts: Vec<VirtualHost> = hosts
            .into_iter()
            .map(|(name, (domains, routes))| VirtualHost {
                // Authorities must not occur twice in a table.
                domains: domains.iter().map(|d| format!("{d}.{name}:80")).collect(),
                name: name.into(),
                routes,
            })
            .collect();
        if let (true, Some(last)) = (any, hosts.last_mut()) {
            last.domains.push("*".to_string());
        }
        RouteTable::new(name, hosts)
    })
}

fn network() -> impl Strategy<Value = Network> {
    let target = prop_oneof![
        host().prop_map(TcpTarget::Cluster),
        Just(TcpTarget::SniCluster),
        vec((host().prop_map(Into::into), 1..=MAX_WEIGHT), 1..4).prop_map(TcpTarget::Weighted),
    ];
    let tcp = (target, allow(), limit()).prop_map(|(target, allow, idle_timeout)| {
        Network::Tcp(Tcp {
            target,
            allow,
            idle_timeout,
        })
    });
    let routes = prop_oneof![
        routes().prop_map(HttpRoutes::Inline),
        word().prop_map(HttpRoutes::Rds),
    ];
    let http = (word(), routes, allow(), any::<[bool; 3]>(), limit_or_none());
    let http = http.prop_map(|(stat_prefix, routes, allow, on, stream_idle_timeout)| {
        Network::Http(Http {
            stat_prefix,
            routes,
            allow,
            forward_client_id: on[0],
            append_forwarded_for: on[1],
            accept_connect: on[2],
            stream_idle_timeout,
        })
    });
    prop_oneof![tcp, http]
}

fn downstream_tls() -> impl Strategy<Value = DownstreamTls> {
    (word(), vec(id(), 0..3), alpn()).prop_map(|(trust, client_ids, alpn)| DownstreamTls {
        trust,
        client_ids,
        alpn,
    })
}

pub fn listener() -> impl Strategy<Value = Listener> {
    let chain = (
        vec((host(), any::<bool>()), 0..3),
        option::weighted(0.7, downstream_tls()),
        network(),
        drain(),
    );
    (word(), address(), btree_map(word(), chain, 1..4), limit()).prop_map(
        |(name, address, chains, handshake_timeout)| {
            let mut catch_all = false;
            let chains = chains
                .into_iter()
                .map(|(name, (names, tls, network, drain))| {
                    let mut server_names: Vec<ServerName> = names
                        .into_iter()
                        .enumerate()
                        // Chains must not match the same names.
                        .map(
                            |(i, (h, suffix))| match (format!("{h}.{i}.{name}"), suffix) {
                                (h, true) => ServerName::Suffix(h),
                                (h, false) => ServerName::Exact(h),
                            },
                        )
                        .collect();
                    if server_names.is_empty() && std::mem::replace(&mut catch_all, true) {
                        server_names.push(ServerName::Exact(name.clone()));
                    }
                    FilterChain {
                        name,
                        server_names,
                        tls,
                        network,
                        drain,
                    }
                })
                .collect();
            Listener {
                name,
                address,
                chains,
                handshake_timeout,
            }
        },
    )
}

pub fn cluster() -> impl Strategy<Value = Cluster> {
    let discovery = prop_oneof![
        host().prop_map(|name| Discovery::Eds(name.into())),
        vec(address(), 0..4).prop_map(Discovery::Static),
        vec((host(), 1_u16..), 0..4).prop_map(Discovery::Dns),
    ];
    let server = prop_oneof![
        vec(id(), 0..3).prop_map(ServerIds::OneOf),
        domain().prop_map(ServerIds::AnyOf),
    ];
    let tls =
        (word(), server, option::of(host()), alpn()).prop_map(|(trust, server, sni, alpn)| {
            UpstreamTls {
                trust: trust.into(),
                server,
                sni: sni.map(Into::into),
                alpn,
            }
        });
    let protocol = prop_oneof![
        Just(UpstreamProtocol::Http1),
        Just(UpstreamProtocol::Http2),
        Just(UpstreamProtocol::Downstream),
    ];
    let outlier = (1_u32..100, limit(), limit(), 0_u32..=100).prop_map(
        |(consecutive_failures, interval, base_ejection, max_ejection_percent)| OutlierDetection {
            consecutive_failures,
            interval,
            base_ejection,
            max_ejection_percent,
        },
    );
    (
        host(),
        discovery,
        limit(),
        option::of(tls),
        protocol,
        option::of(outlier),
        drain(),
    )
        .prop_map(
            |(name, discovery, connect_timeout, tls, protocol, outlier, drain)| Cluster {
                name: name.into(),
                discovery,
                connect_timeout,
                tls,
                protocol,
                outlier,
                drain,
            },
        )
}

pub fn endpoints() -> impl Strategy<Value = Endpoints> {
    let weight = prop_oneof![Just(1), 1..=MAX_WEIGHT];
    let behind = vec("[a-z]{1,9}".prop_map(Arc::from), 0..3);
    let endpoint = (address(), any::<bool>(), weight, behind).prop_map(
        |(address, mesh_tls, weight, behind)| Endpoint {
            address,
            mesh_tls,
            weight,
            behind: if mesh_tls { behind } else { Vec::new() },
        },
    );
    let locality =
        ("[a-z]{0,4}", "[a-z]{0,4}", "[a-z]{0,4}").prop_map(|(region, zone, subzone)| Locality {
            region,
            zone,
            subzone,
        });
    let locality =
        (locality, 0_u32..4, vec(endpoint, 0..4)).prop_map(|(locality, priority, endpoints)| {
            LocalityEndpoints {
                locality,
                priority,
                endpoints,
            }
        });
    (host(), vec(locality, 0..4)).prop_map(|(name, localities)| Endpoints {
        name: name.into(),
        localities,
    })
}

pub fn trust() -> impl Strategy<Value = (String, TrustBundle)> {
    let domains = btree_map(domain(), "[ -~\n]{0,80}", 0..4);
    (word(), domains).prop_map(|(name, domains)| {
        let domains: BTreeMap<_, _> = domains.into_iter().map(|(d, p)| (d, p.into())).collect();
        (name, TrustBundle { domains })
    })
}
