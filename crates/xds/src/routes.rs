//! Route tables.

use std::collections::HashSet;
use std::mem::take;
use std::time::Duration;

use meshfed_proxy_config::{HeaderMatch, PathMatch, Route, RouteAction, RouteTable, VirtualHost};

use crate::Reason;
use crate::network::CONNECT_ATTEMPTS;
use crate::pb::core::{DataSource, data_source::Specifier};
use crate::pb::matcher::{RegexMatcher, string_matcher::MatchPattern};
use crate::pb::previous_hosts::PreviousHostsPredicate;
use crate::pb::route::{
    self as pb, DirectResponseAction, HeaderMatcher, RouteConfiguration, RouteMatch, Vhds,
    header_matcher::HeaderMatchSpecifier,
    retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate::ConfigType},
    route::Action,
    route_action::{
        ClusterSpecifier, HostRewriteSpecifier, UpgradeConfig, upgrade_config::ConnectConfig,
    },
    route_match::{ConnectMatcher, PathSpecifier},
};
use crate::pb::{BoolValue, UInt32Value};
use crate::wire::{
    Path, Read, ads, clip, duration, name, nothing_else, pack, read_all, read_duration, read_text,
    required, text,
};

/// Upgrade type that stands for CONNECT.
pub(crate) const CONNECT: &str = "CONNECT";
/// The header in which a proxy says who its client is: `By=…;Hash=…;URI=<client id>`.
const CLIENT_CERTIFICATE: &str = "x-forwarded-client-cert";
/// Stands before a suffix of that header (RE2, of the whole value). Envoy lists every URI of a
/// certificate, and a bare suffix would match the last, whoever vouches for it; this lets exactly
/// one through. The suffix is not part of it, as Envoy refuses expressions that compile to more than
/// 100 instructions.
const ONE_URI: &str = "(By=[^;]*;)?Hash=[^;]*;URI=[^;]*";
const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";
/// Matches every authority.
const ANY: &str = "*";
/// Longest body of an answer from here, in bytes; Envoy's limit.
const MAX_BODY_LEN: usize = 4096;

/// An RDS resource.
#[derive(Debug, Clone, PartialEq)]
pub enum Routes {
    Whole(RouteTable),
    /// The name of a table whose virtual hosts are resources of their own, named `<table>/<host>`.
    Separate(String),
}

pub(crate) fn encode(t: &RouteTable) -> RouteConfiguration {
    RouteConfiguration {
        name: t.name.clone(),
        virtual_hosts: t.hosts.values().map(|h| encode_host(h)).collect(),
        ..template()
    }
}

pub(crate) fn encode_separate(table: &str) -> RouteConfiguration {
    RouteConfiguration {
        name: table.to_owned(),
        vhds: Some(vhds()),
        ..template()
    }
}

fn vhds() -> Vhds {
    Vhds {
        config_source: Some(ads()),
    }
}

pub(crate) fn read_resource(mut m: RouteConfiguration) -> Read<Routes> {
    let at = &Path::ROOT;
    let Some(source) = m.vhds.take() else {
        return Ok(Routes::Whole(read(at, m)?));
    };
    nothing_else(&at.field("vhds"), &source, &vhds())?;
    let table = name(&at.field("name"), take(&mut m.name))?;
    nothing_else(at, &m, &template())?;
    Ok(Routes::Separate(table))
}

pub(crate) fn read(at: &Path<'_>, mut m: RouteConfiguration) -> Read<RouteTable> {
    let table = name(&at.field("name"), take(&mut m.name))?;
    let hosts = take(&mut m.virtual_hosts);
    nothing_else(at, &m, &template())?;

    let mut domains = HashSet::new();
    let mut names = HashSet::new();
    let mut read = Vec::with_capacity(hosts.len());
    for (i, h) in hosts.into_iter().enumerate() {
        let at = &at.item("virtual_hosts", i);
        let host = read_host(at, h)?;
        if !names.insert(host.name.clone()) {
            return Err(at.field("name").refuse(Reason::Duplicate(clip(&host.name))));
        }
        each_once(at, &host, &mut domains)?;
        read.push(host);
    }
    Ok(RouteTable::new(table, read))
}

/// A virtual host that comes alone.
pub(crate) fn read_host_resource(m: pb::VirtualHost) -> Read<VirtualHost> {
    let host = read_host(&Path::ROOT, m)?;
    each_once(&Path::ROOT, &host, &mut HashSet::new())?;
    Ok(host)
}

fn each_once(at: &Path<'_>, host: &VirtualHost, domains: &mut HashSet<String>) -> Read<()> {
    for (i, d) in host.domains.iter().enumerate() {
        // Envoy compares authorities without regard to case.
        if !domains.insert(d.to_ascii_lowercase()) {
            return Err(at.item("domains", i).refuse(Reason::Duplicate(clip(d))));
        }
    }
    Ok(())
}

/// A route to a cluster that is not there answers 503; it does not make the table invalid, as
/// tables and clusters travel separately.
fn template() -> RouteConfiguration {
    RouteConfiguration {
        validate_clusters: Some(BoolValue { value: false }),
        ..Default::default()
    }
}

pub(crate) fn encode_host(h: &VirtualHost) -> pb::VirtualHost {
    pb::VirtualHost {
        name: h.name.to_string(),
        domains: h.domains.clone(),
        routes: h.routes.iter().map(route).collect(),
        ..Default::default()
    }
}

fn read_host(at: &Path<'_>, mut m: pb::VirtualHost) -> Read<VirtualHost> {
    let host_name = name(&at.field("name"), take(&mut m.name))?;
    let domains = take(&mut m.domains);
    let routes = take(&mut m.routes);
    nothing_else(at, &m, &pb::VirtualHost::default())?;
    for (i, d) in domains.iter().enumerate() {
        if d.is_empty() || (d != ANY && d.contains('*')) {
            return Err(at.item("domains", i).refuse(Reason::BadName(clip(d))));
        }
    }
    if domains.is_empty() {
        return Err(at.field("domains").refuse(Reason::Missing));
    }
    Ok(VirtualHost {
        name: host_name.into(),
        domains,
        routes: read_all(routes, |i, r| read_route(&at.item("routes", i), r))?,
    })
}

fn route(r: &Route) -> pb::Route {
    let path = match &r.path {
        PathMatch::Exact(p) => PathSpecifier::Path(p.clone()),
        PathMatch::Prefix(p) => PathSpecifier::Prefix(p.clone()),
        PathMatch::Connect => PathSpecifier::ConnectMatcher(ConnectMatcher {}),
    };
    let connect = r.path == PathMatch::Connect;
    let mut remove = Vec::new();
    let action = match &r.action {
        RouteAction::Forward {
            cluster,
            rewrite_authority,
            rewrite_path,
            timeout,
            remove_headers,
        } => {
            remove = remove_headers.to_vec();
            Action::Route(pb::RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.clone())),
                host_rewrite_specifier: rewrite_authority
                    .clone()
                    .map(HostRewriteSpecifier::HostRewriteLiteral),
                prefix_rewrite: rewrite_path.clone().unwrap_or_default(),
                timeout: Some(duration(*timeout)),
                ..action_template(connect)
            })
        }
        RouteAction::Respond { status, body } => Action::DirectResponse(DirectResponseAction {
            status: u32::from(*status),
            body: (!body.is_empty()).then(|| DataSource {
                specifier: Some(Specifier::InlineString(body.clone())),
                ..Default::default()
            }),
            ..Default::default()
        }),
    };
    pb::Route {
        name: r.name.clone(),
        r#match: Some(RouteMatch {
            path_specifier: Some(path),
            headers: r.headers.iter().flat_map(header).collect(),
            ..Default::default()
        }),
        request_headers_to_remove: remove,
        action: Some(action),
        ..Default::default()
    }
}

/// A CONNECT request that is forwarded ends here and its payload goes on as plain bytes. Any other
/// goes to another endpoint if there is no connection to the first.
fn action_template(connect: bool) -> pb::RouteAction {
    let tunnel = UpgradeConfig {
        upgrade_type: CONNECT.to_string(),
        connect_config: Some(ConnectConfig::default()),
        ..Default::default()
    };
    if connect {
        return pb::RouteAction {
            upgrade_configs: vec![tunnel],
            ..Default::default()
        };
    }
    let short = |ms| Some(duration(Duration::from_millis(ms)));
    pb::RouteAction {
        retry_policy: Some(pb::RetryPolicy {
            retry_on: "connect-failure".to_string(),
            num_retries: Some(UInt32Value {
                value: CONNECT_ATTEMPTS - 1,
            }),
            retry_host_predicate: vec![RetryHostPredicate {
                name: PREVIOUS_HOSTS.to_string(),
                config_type: Some(ConfigType::TypedConfig(pack(&PreviousHostsPredicate {}))),
            }],
            host_selection_retry_max_attempts: 5,
            retry_back_off: Some(RetryBackOff {
                base_interval: short(1),
                max_interval: short(10),
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn read_route(at: &Path<'_>, mut m: pb::Route) -> Read<Route> {
    let route_name = take(&mut m.name);
    let matches = m.r#match.take();
    let remove = take(&mut m.request_headers_to_remove);
    let action = m.action.take();
    nothing_else(at, &m, &pb::Route::default())?;
    for (i, h) in remove.iter().enumerate() {
        if !is_header_name(h) || h == "host" {
            let at = at.item("request_headers_to_remove", i);
            return Err(at.refuse(Reason::BadName(clip(h))));
        }
    }

    let at_match = &at.field("match");
    let mut matches = required(at_match, matches)?;
    let headers = take(&mut matches.headers);
    let path = matches.path_specifier.take();
    nothing_else(at_match, &matches, &RouteMatch::default())?;
    let path = match path {
        Some(PathSpecifier::Path(p)) if p.starts_with('/') => PathMatch::Exact(p),
        Some(PathSpecifier::Prefix(p)) if p.starts_with('/') => PathMatch::Prefix(p),
        Some(PathSpecifier::ConnectMatcher(_)) => PathMatch::Connect,
        _ => return Err(at_match.field("path_specifier").refuse(Reason::Unsupported)),
    };
    let action = match action {
        Some(Action::Route(a)) => {
            read_forward(&at.field("route"), a, path == PathMatch::Connect, remove)?
        }
        Some(Action::DirectResponse(a)) if remove.is_empty() => {
            read_respond(&at.field("direct_response"), a)?
        }
        _ => return Err(at.field("action").refuse(Reason::Unsupported)),
    };
    Ok(Route {
        name: route_name,
        path,
        headers: read_headers(at_match, headers)?,
        action,
    })
}

fn read_forward(
    at: &Path<'_>,
    mut m: pb::RouteAction,
    connect: bool,
    remove_headers: Vec<String>,
) -> Read<RouteAction> {
    let cluster = m.cluster_specifier.take();
    let authority = m.host_rewrite_specifier.take();
    let path = take(&mut m.prefix_rewrite);
    let timeout = read_duration(&at.field("timeout"), m.timeout.take())?;
    nothing_else(at, &m, &action_template(connect))?;

    let Some(ClusterSpecifier::Cluster(cluster)) = cluster else {
        return Err(at.field("cluster_specifier").refuse(Reason::Unsupported));
    };
    let rewrite_authority = match authority {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(h)) => {
            Some(name(&at.field("host_rewrite_literal"), h)?)
        }
        Some(_) => {
            return Err(at
                .field("host_rewrite_specifier")
                .refuse(Reason::Unsupported));
        }
    };
    let rewrite_path = Some(path).filter(|p| !p.is_empty());
    if rewrite_path
        .as_ref()
        .is_some_and(|p| connect || !p.starts_with('/'))
    {
        return Err(at.field("prefix_rewrite").refuse(Reason::Unsupported));
    }
    Ok(RouteAction::Forward {
        cluster: name(&at.field("cluster"), cluster)?,
        rewrite_authority,
        rewrite_path,
        timeout,
        remove_headers: remove_headers.into(),
    })
}

fn read_respond(at: &Path<'_>, mut m: DirectResponseAction) -> Read<RouteAction> {
    let status = take(&mut m.status);
    let body = m.body.take();
    nothing_else(at, &m, &DirectResponseAction::default())?;
    let status = match u16::try_from(status) {
        Ok(s @ 200..=599) => s,
        _ => return Err(at.field("status").refuse(Reason::OutOfRange)),
    };
    let at = &at.field("body");
    let body = match body {
        None => String::new(),
        Some(mut source) => {
            let specifier = source.specifier.take();
            nothing_else(at, &source, &DataSource::default())?;
            match specifier {
                Some(Specifier::InlineString(s)) if s.len() <= MAX_BODY_LEN => s,
                _ => return Err(at.refuse(Reason::Unsupported)),
            }
        }
    };
    Ok(RouteAction::Respond { status, body })
}

fn header(h: &HeaderMatch) -> Vec<HeaderMatcher> {
    match h {
        HeaderMatch::Exact { name, value } => {
            vec![matcher(name, MatchPattern::Exact(value.clone()))]
        }
        HeaderMatch::Suffix { name, value } => {
            let suffix = matcher(name, MatchPattern::Suffix(value.clone()));
            let before = (name == CLIENT_CERTIFICATE).then(one_uri);
            before.into_iter().chain([suffix]).collect()
        }
    }
}

fn matcher(name: &str, pattern: MatchPattern) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(text(pattern))),
        ..Default::default()
    }
}

fn one_uri() -> HeaderMatcher {
    let regex = RegexMatcher {
        regex: ONE_URI.to_owned(),
        ..Default::default()
    };
    matcher(CLIENT_CERTIFICATE, MatchPattern::SafeRegex(regex))
}

fn read_headers(at: &Path<'_>, all: Vec<HeaderMatcher>) -> Read<Vec<HeaderMatch>> {
    let mut read = Vec::with_capacity(all.len());
    let mut all = all.into_iter().enumerate();
    while let Some((i, m)) = all.next() {
        if m != one_uri() {
            read.push(read_header(&at.item("headers", i), m, false)?);
            continue;
        }
        let (i, m) = all
            .next()
            .ok_or_else(|| at.item("headers", i).refuse(Reason::Unsupported))?;
        read.push(read_header(&at.item("headers", i), m, true)?);
    }
    Ok(read)
}

/// `one_uri`: the matcher before this one lets only clients with a single URI through.
fn read_header(at: &Path<'_>, mut m: HeaderMatcher, one_uri: bool) -> Read<HeaderMatch> {
    let name = take(&mut m.name);
    let specifier = m.header_match_specifier.take();
    nothing_else(at, &m, &HeaderMatcher::default())?;
    if !is_header_name(&name) {
        return Err(at.field("name").refuse(Reason::BadName(clip(&name))));
    }
    let at = &at.field("string_match");
    let Some(HeaderMatchSpecifier::StringMatch(m)) = specifier else {
        return Err(at.refuse(Reason::Missing));
    };
    let is_client = name == CLIENT_CERTIFICATE;
    match read_text(at, m)? {
        MatchPattern::Exact(value) if !one_uri => Ok(HeaderMatch::Exact { name, value }),
        MatchPattern::Suffix(value) if !value.is_empty() && is_client == one_uri => {
            Ok(HeaderMatch::Suffix { name, value })
        }
        _ => Err(at.refuse(Reason::Unsupported)),
    }
}

/// A header name as it stands in HTTP/2, so without upper case and without pseudo-headers.
fn is_header_name(s: &str) -> bool {
    let token =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
    !s.is_empty() && s.bytes().all(token)
}
