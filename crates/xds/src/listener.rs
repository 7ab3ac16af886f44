//! Listeners and their filter chains.

use std::collections::HashSet;
use std::mem::take;
use std::time::Duration;

use meshfed_proxy_config::{FilterChain, Listener, ServerName};

use crate::pb::listener::{
    self as pb, FilterChainMatch, ListenerFilter, listener_filter::ConfigType,
};
use crate::pb::tls_inspector::TlsInspector;
use crate::wire::{self, Path, Read, clip, duration, name, nothing_else, pack, read_limit, unpack};
use crate::{Reason, access_log, drain, network, tls};

const TLS_INSPECTOR: &str = "envoy.filters.listener.tls_inspector";
/// Longest host name (RFC 1035) with the `outbound_.<port>_._.` in front of it.
const MAX_SERVER_NAME_LEN: usize = 255 + 24;

pub(crate) fn encode(l: &Listener) -> pb::Listener {
    let inspects = l.chains.iter().any(needs_inspector);
    pb::Listener {
        name: l.name.clone(),
        address: Some(wire::socket_address(l.address)),
        filter_chains: l
            .chains
            .iter()
            .map(|c| chain(c, l.handshake_timeout))
            .collect(),
        listener_filters: if inspects {
            vec![inspector()]
        } else {
            Vec::new()
        },
        listener_filters_timeout: Some(duration(l.handshake_timeout)),
        access_log: access_log::connections(),
        ..Default::default()
    }
}

pub(crate) fn read(mut m: pb::Listener) -> Read<Listener> {
    let at = &Path::ROOT;
    let listener = name(&at.field("name"), take(&mut m.name))?;
    let address = wire::read_socket_address(&at.field("address"), m.address.take())?;
    let chains = take(&mut m.filter_chains);
    let filters = take(&mut m.listener_filters);
    let at_timeout = &at.field("listener_filters_timeout");
    let handshake_timeout = read_limit(at_timeout, m.listener_filters_timeout.take())?;
    drop(take(&mut m.access_log));
    nothing_else(at, &m, &pb::Listener::default())?;

    let inspects = read_inspector(at, filters)?;
    let chains = wire::read_all(chains, |i, c| {
        read_chain(&at.item("filter_chains", i), c, handshake_timeout)
    })?;
    if !inspects && chains.iter().any(needs_inspector) {
        return Err(at.field("listener_filters").refuse(Reason::Missing));
    }
    distinct(at, &chains)?;
    Ok(Listener {
        name: listener,
        address,
        chains,
        handshake_timeout,
    })
}

/// Whether it must be known before a chain is chosen what the client asks for.
fn needs_inspector(c: &FilterChain) -> bool {
    c.tls.is_some() || !c.server_names.is_empty()
}

fn inspector() -> ListenerFilter {
    ListenerFilter {
        name: TLS_INSPECTOR.to_string(),
        config_type: Some(ConfigType::TypedConfig(pack(&TlsInspector::default()))),
        ..Default::default()
    }
}

fn read_inspector(at: &Path<'_>, filters: Vec<ListenerFilter>) -> Read<bool> {
    let mut found = false;
    for (i, mut f) in filters.into_iter().enumerate() {
        let at = &at.item("listener_filters", i);
        let filter = take(&mut f.name);
        let config = f.config_type.take();
        nothing_else(at, &f, &ListenerFilter::default())?;
        let at = &at.field("typed_config");
        match config {
            Some(ConfigType::TypedConfig(any)) if filter == TLS_INSPECTOR && !found => {
                nothing_else(at, &unpack(at, &any)?, &TlsInspector::default())?;
                found = true;
            }
            _ => return Err(at.refuse(Reason::WrongType(clip(&filter)))),
        }
    }
    Ok(found)
}

fn chain(c: &FilterChain, handshake_timeout: Duration) -> pb::FilterChain {
    pb::FilterChain {
        name: c.name.clone(),
        filter_chain_match: (!c.server_names.is_empty()).then(|| FilterChainMatch {
            server_names: c.server_names.iter().map(server_name).collect(),
            ..Default::default()
        }),
        filters: network::encode(&c.name, &c.network, c.tls.is_some()),
        transport_socket: c.tls.as_ref().map(tls::downstream),
        metadata: drain::metadata(c.drain),
        ..chain_template(c.tls.is_some(), handshake_timeout)
    }
}

fn chain_template(has_tls: bool, handshake_timeout: Duration) -> pb::FilterChain {
    pb::FilterChain {
        transport_socket_connect_timeout: has_tls.then(|| duration(handshake_timeout)),
        ..Default::default()
    }
}

fn read_chain(
    at: &Path<'_>,
    mut m: pb::FilterChain,
    handshake_timeout: Duration,
) -> Read<FilterChain> {
    let chain = name(&at.field("name"), take(&mut m.name))?;
    let matches = m.filter_chain_match.take();
    let filters = take(&mut m.filters);
    let socket = m.transport_socket.take();
    let drain = drain::read(&at.field("metadata"), m.metadata.take())?;
    nothing_else(at, &m, &chain_template(socket.is_some(), handshake_timeout))?;

    let at_match = &at.field("filter_chain_match");
    let mut matches = matches.unwrap_or_default();
    let names = take(&mut matches.server_names);
    nothing_else(at_match, &matches, &FilterChainMatch::default())?;

    let at_socket = &at.field("transport_socket");
    let tls = socket
        .map(|s| tls::read_downstream(at_socket, s))
        .transpose()?;
    Ok(FilterChain {
        name: chain,
        server_names: wire::read_all(names, |i, n| {
            read_server_name(&at_match.item("server_names", i), n)
        })?,
        network: network::read(at, filters, tls.is_some())?,
        tls,
        drain,
    })
}

fn server_name(n: &ServerName) -> String {
    match n {
        ServerName::Exact(name) => name.clone(),
        ServerName::Suffix(suffix) => format!("*.{suffix}"),
    }
}

fn read_server_name(at: &Path<'_>, text: String) -> Read<ServerName> {
    let (name, suffix) = match text.strip_prefix("*.") {
        Some(rest) => (rest, true),
        None => (text.as_str(), false),
    };
    // What a client sends is compared in lower case, so other names would never match.
    let ok = |b: u8| b.is_ascii_graphic() && !b.is_ascii_uppercase() && b != b'*';
    if name.is_empty() || text.len() > MAX_SERVER_NAME_LEN || !name.bytes().all(ok) {
        return Err(at.refuse(Reason::BadName(clip(&text))));
    }
    Ok(if suffix {
        ServerName::Suffix(name.to_string())
    } else {
        ServerName::Exact(text)
    })
}

/// No two chains may have one name or match the same connections.
fn distinct(at: &Path<'_>, chains: &[FilterChain]) -> Read<()> {
    let mut names = HashSet::new();
    let mut matches = HashSet::new();
    let mut any = false;
    for (i, c) in chains.iter().enumerate() {
        let at = &at.item("filter_chains", i);
        if !names.insert(&c.name) {
            return Err(at.field("name").refuse(Reason::Duplicate(clip(&c.name))));
        }
        let at = &at.field("filter_chain_match");
        if c.server_names.is_empty() && std::mem::replace(&mut any, true) {
            return Err(at.refuse(Reason::Duplicate(String::new())));
        }
        for n in &c.server_names {
            if !matches.insert(n) {
                return Err(at.refuse(Reason::Duplicate(clip(&server_name(n)))));
            }
        }
    }
    Ok(())
}
