//! Endpoints of clusters, as EDS resources and inside clusters.

use std::collections::HashMap;
use std::mem::take;
use std::net::SocketAddr;
use std::sync::Arc;

use meshfed_proxy_config::{Endpoint, Endpoints, Locality, LocalityEndpoints, MAX_WEIGHT};

use crate::Reason;
use crate::drain::NAMESPACE as OURS;
use crate::pb::endpoint::{
    self as pb, ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints,
    cluster_load_assignment::Policy, lb_endpoint::HostIdentifier,
};
use crate::pb::{ListValue, Struct, UInt32Value, Value, core, value};
use crate::wire::{self, Path, Read, name, nothing_else};

/// Key and value in the metadata of an endpoint that takes no TLS; Envoy matches the cluster's
/// `transport_socket_matches` with it.
const MATCH_METADATA: &str = "envoy.transport_socket_match";
const MODE: &str = "tlsMode";
const DISABLED: &str = "disabled";
/// Key, among what is our own, of who is behind an endpoint.
const BEHIND: &str = "behind";

/// In percent: below 100 divided by this share of healthy endpoints, Envoy begins to use the next
/// priority. So one healthy endpoint in a thousand keeps its priority in use.
const OVERPROVISIONING: u32 = 100_000;
/// Highest priority number in Envoy.
const MAX_PRIORITY: u32 = 128;

pub(crate) fn encode(e: &Endpoints) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: e.name.to_string(),
        endpoints: e.localities.iter().map(locality).collect(),
        ..template()
    }
}

pub(crate) fn read(mut m: ClusterLoadAssignment) -> Read<Endpoints> {
    let at = &Path::ROOT;
    let cluster_name = name(&at.field("cluster_name"), take(&mut m.cluster_name))?;
    let localities = take(&mut m.endpoints);
    nothing_else(at, &m, &template())?;
    Ok(Endpoints {
        name: cluster_name.into(),
        localities: wire::read_all(localities, |i, l| {
            read_locality(&at.item("endpoints", i), l)
        })?,
    })
}

fn template() -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        policy: Some(Policy {
            overprovisioning_factor: Some(UInt32Value {
                value: OVERPROVISIONING,
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn locality(l: &LocalityEndpoints) -> LocalityLbEndpoints {
    LocalityLbEndpoints {
        locality: Some(core::Locality {
            region: l.locality.region.clone(),
            zone: l.locality.zone.clone(),
            sub_zone: l.locality.subzone.clone(),
        }),
        priority: l.priority,
        lb_endpoints: l
            .endpoints
            .iter()
            .map(|e| LbEndpoint {
                metadata: metadata(e.mesh_tls, &e.behind),
                load_balancing_weight: weight(e.weight),
                ..host(wire::socket_address(e.address))
            })
            .collect(),
        ..Default::default()
    }
}

fn read_locality(at: &Path<'_>, mut m: LocalityLbEndpoints) -> Read<LocalityEndpoints> {
    let locality = m.locality.take().unwrap_or_default();
    let priority = take(&mut m.priority);
    let hosts = take(&mut m.lb_endpoints);
    nothing_else(at, &m, &LocalityLbEndpoints::default())?;
    if priority > MAX_PRIORITY {
        return Err(at.field("priority").refuse(Reason::OutOfRange));
    }
    let endpoints = wire::read_all(hosts, |i, mut h| {
        let at = &at.item("lb_endpoints", i);
        let (mesh_tls, behind) = read_metadata(&at.field("metadata"), h.metadata.take())?;
        let weight = read_weight(at, h.load_balancing_weight.take())?;
        let address = read_host(at, h)?;
        Ok(Endpoint {
            address: wire::read_socket_address(&at.field("endpoint.address"), address)?,
            mesh_tls,
            weight,
            behind,
        })
    })?;
    Ok(LocalityEndpoints {
        locality: Locality {
            region: locality.region,
            zone: locality.zone,
            subzone: locality.sub_zone,
        },
        priority,
        endpoints,
    })
}

/// None means 1, which nearly every endpoint has.
fn weight(weight: u32) -> Option<UInt32Value> {
    let value = weight.clamp(1, MAX_WEIGHT);
    (value != 1).then_some(UInt32Value { value })
}

fn read_weight(at: &Path<'_>, weight: Option<UInt32Value>) -> Read<u32> {
    match weight.map_or(1, |w| w.value) {
        weight @ 1..=MAX_WEIGHT => Ok(weight),
        _ => Err(at.field("load_balancing_weight").refuse(Reason::OutOfRange)),
    }
}

/// The endpoints of a cluster that brings them along.
pub(crate) fn inline(cluster: &str, addresses: Vec<core::Address>) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: cluster.to_string(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: addresses.into_iter().map(host).collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub(crate) fn read_inline(
    at: &Path<'_>,
    cluster: &str,
    m: Option<ClusterLoadAssignment>,
) -> Read<Vec<Option<core::Address>>> {
    let mut m = wire::required(at, m)?;
    let localities = take(&mut m.endpoints);
    let template = ClusterLoadAssignment {
        cluster_name: cluster.to_string(),
        ..Default::default()
    };
    nothing_else(at, &m, &template)?;
    let at = &at.field("endpoints");
    let Ok([mut l]) = <[LocalityLbEndpoints; 1]>::try_from(localities) else {
        return Err(at.refuse(Reason::Unsupported));
    };
    let hosts = take(&mut l.lb_endpoints);
    nothing_else(at, &l, &LocalityLbEndpoints::default())?;
    wire::read_all(hosts, |i, h| read_host(&at.item("lb_endpoints", i), h))
}

/// What the endpoints' metadata must say for a cluster's plain socket to be used.
pub(crate) fn plain_match() -> Struct {
    let mode = Value {
        kind: Some(value::Kind::StringValue(DISABLED.to_string())),
    };
    Struct {
        fields: HashMap::from([(MODE.to_string(), mode)]),
    }
}

/// None is what nearly every endpoint has. One namespace at most, so that it is always the same bytes.
fn metadata(mesh_tls: bool, behind: &[Arc<str>]) -> Option<core::Metadata> {
    let (namespace, fields) = if !mesh_tls {
        (MATCH_METADATA, plain_match())
    } else if behind.is_empty() {
        return None;
    } else {
        let name = |name: &Arc<str>| Value {
            kind: Some(value::Kind::StringValue(name.to_string())),
        };
        let all = ListValue {
            values: behind.iter().map(name).collect(),
        };
        let all = Value {
            kind: Some(value::Kind::ListValue(all)),
        };
        let fields = HashMap::from([(BEHIND.to_string(), all)]);
        (OURS, Struct { fields })
    };
    Some(core::Metadata {
        filter_metadata: HashMap::from([(namespace.to_string(), fields)]),
        ..Default::default()
    })
}

fn read_metadata(at: &Path<'_>, m: Option<core::Metadata>) -> Read<(bool, Vec<Arc<str>>)> {
    let Some(m) = m else {
        return Ok((true, Vec::new()));
    };
    let mesh_tls = !m.filter_metadata.contains_key(MATCH_METADATA);
    let ours = m.filter_metadata.get(OURS);
    let behind = match ours.and_then(|ours| ours.fields.get(BEHIND)?.kind.as_ref()) {
        Some(value::Kind::ListValue(all)) => all.values.iter().filter_map(text).collect(),
        _ => Vec::new(),
    };
    if metadata(mesh_tls, &behind).as_ref() == Some(&m) {
        Ok((mesh_tls, behind))
    } else {
        Err(at.refuse(Reason::Unsupported))
    }
}

fn text(value: &Value) -> Option<Arc<str>> {
    match &value.kind {
        Some(value::Kind::StringValue(text)) => Some(text.as_str().into()),
        _ => None,
    }
}

fn host(address: core::Address) -> LbEndpoint {
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(pb::Endpoint {
            address: Some(address),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn read_host(at: &Path<'_>, mut m: LbEndpoint) -> Read<Option<core::Address>> {
    let identifier = m.host_identifier.take();
    nothing_else(at, &m, &LbEndpoint::default())?;
    let at = &at.field("endpoint");
    let Some(HostIdentifier::Endpoint(mut e)) = identifier else {
        return Err(at.refuse(Reason::Missing));
    };
    let address = e.address.take();
    nothing_else(at, &e, &pb::Endpoint::default())?;
    Ok(address)
}

pub(crate) fn addresses(of: &[SocketAddr]) -> Vec<core::Address> {
    of.iter().copied().map(wire::socket_address).collect()
}
