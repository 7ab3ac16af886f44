//! Reading resources. Any bytes may be given: the outcome is a value that [`encode`](crate::encode)
//! would write, or a [`DecodeError`] with the resource's name and the field's path.

use meshfed_proxy_config::{Cluster, Endpoints, Listener, TrustBundle, VirtualHost};
use prost::Message;

use crate::pb::tls::Secret;
use crate::pb::{cluster, endpoint, listener, route};
use crate::wire::{MAX_RESOURCE_LEN, Path, Read, clip, parse};
use crate::{DecodeError, Routes, TypeUrl};

pub fn listener(bytes: &[u8]) -> Result<Listener, DecodeError> {
    read(
        TypeUrl::Listener,
        bytes,
        |m: &listener::Listener| &m.name,
        crate::listener::read,
    )
}

pub fn cluster(bytes: &[u8]) -> Result<Cluster, DecodeError> {
    read(
        TypeUrl::Cluster,
        bytes,
        |m: &cluster::Cluster| &m.name,
        crate::cluster::read,
    )
}

pub fn endpoints(bytes: &[u8]) -> Result<Endpoints, DecodeError> {
    read(
        TypeUrl::Endpoints,
        bytes,
        |m: &endpoint::ClusterLoadAssignment| &m.cluster_name,
        crate::endpoints::read,
    )
}

pub fn routes(bytes: &[u8]) -> Result<Routes, DecodeError> {
    read(
        TypeUrl::Routes,
        bytes,
        |m: &route::RouteConfiguration| &m.name,
        crate::routes::read_resource,
    )
}

pub fn virtual_host(bytes: &[u8]) -> Result<VirtualHost, DecodeError> {
    read(
        TypeUrl::VirtualHosts,
        bytes,
        |m: &route::VirtualHost| &m.name,
        crate::routes::read_host_resource,
    )
}

/// The bundle with the name under which TLS settings refer to it.
pub fn trust(bytes: &[u8]) -> Result<(String, TrustBundle), DecodeError> {
    read(
        TypeUrl::Trust,
        bytes,
        |m: &Secret| &m.name,
        crate::trust::read,
    )
}

fn read<M: Message + Default, T>(
    kind: TypeUrl,
    bytes: &[u8],
    name: impl Fn(&M) -> &String,
    read: impl FnOnce(M) -> Read<T>,
) -> Result<T, DecodeError> {
    let mut resource = String::new();
    parse(&Path::ROOT, bytes, MAX_RESOURCE_LEN)
        .and_then(|m: M| {
            resource = clip(name(&m));
            read(m)
        })
        .map_err(|refused| DecodeError {
            kind,
            resource,
            field: refused.field,
            reason: refused.reason,
        })
}
