//! What is written is what is read, and nothing that was not written is read.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::net::IpAddr;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use meshfed_xds::{MAX_RESOURCE_LEN, Reason, Routes, TypeUrl, decode, encode};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use prost::Message as _;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn a_listener_is_read_as_it_was_written(x in common::listener()) {
        let any = encode::listener(&x);
        prop_assert_eq!(&any.type_url, TypeUrl::Listener.as_str());
        prop_assert_eq!(decode::listener(&any.value), Ok(x.clone()));
        prop_assert_eq!(any, encode::listener(&x), "not the same bytes each time");
    }

    #[test]
    fn a_cluster_is_read_as_it_was_written(x in common::cluster()) {
        let any = encode::cluster(&x);
        prop_assert_eq!(&any.type_url, TypeUrl::Cluster.as_str());
        prop_assert_eq!(decode::cluster(&any.value), Ok(x.clone()));
        prop_assert_eq!(any, encode::cluster(&x), "not the same bytes each time");
    }

    #[test]
    fn endpoints_are_read_as_they_were_written(x in common::endpoints()) {
        let any = encode::endpoints(&x);
        prop_assert_eq!(&any.type_url, TypeUrl::Endpoints.as_str());
        prop_assert_eq!(decode::endpoints(&any.value), Ok(x.clone()));
        prop_assert_eq!(any, encode::endpoints(&x), "not the same bytes each time");
    }

    #[test]
    fn a_route_table_is_read_as_it_was_written(x in common::routes()) {
        let any = encode::routes(&x);
        prop_assert_eq!(&any.type_url, TypeUrl::Routes.as_str());
        prop_assert_eq!(decode::routes(&any.value), Ok(Routes::Whole(x.clone())));
        prop_assert_eq!(any, encode::routes(&x), "not the same bytes each time");
    }

    #[test]
    fn a_virtual_host_that_comes_alone_is_read_as_it_was_written(x in common::routes()) {
        for host in x.hosts.values() {
            let any = encode::virtual_host(host);
            prop_assert_eq!(&any.type_url, TypeUrl::VirtualHosts.as_str());
            prop_assert_eq!(decode::virtual_host(&any.value).unwrap(), (**host).clone());
        }
        let table = encode::separate_routes(&x.name);
        prop_assert_eq!(decode::routes(&table.value), Ok(Routes::Separate(x.name)));
    }

    #[test]
    fn a_trust_bundle_is_read_as_it_was_written(x in common::trust()) {
        let any = encode::trust(&x.0, &x.1);
        prop_assert_eq!(&any.type_url, TypeUrl::Trust.as_str());
        prop_assert_eq!(decode::trust(&any.value), Ok(x.clone()));
        prop_assert_eq!(any, encode::trust(&x.0, &x.1), "not the same bytes each time");
    }

    /// One byte of a resource is changed. Either it is refused, or what was read is all that the
    /// bytes say: writing it again gives them back (but for labels that carry no meaning).
    #[test]
    fn a_damaged_listener_is_refused_or_understood(
        x in common::listener(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = encode::listener(&x).value;
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = decode::listener(&bytes) {
            prop_assert_eq!(decode::listener(&encode::listener(&read).value), Ok(read));
        }
    }

    #[test]
    fn a_damaged_cluster_is_refused_or_understood(
        x in common::cluster(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = encode::cluster(&x).value;
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = decode::cluster(&bytes) {
            let again = encode::cluster(&read).value;
            prop_assert_eq!(decode::cluster(&again), Ok(read));
            prop_assert_eq!(again.len(), one_spelling(&bytes).encoded_len());
        }
    }

    #[test]
    fn any_bytes_can_be_given_to_a_reader(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode::listener(&bytes);
        let _ = decode::cluster(&bytes);
        let _ = decode::endpoints(&bytes);
        let _ = decode::routes(&bytes);
        let _ = decode::virtual_host(&bytes);
        let _ = decode::trust(&bytes);
    }
}

/// The cluster that the bytes say, with its addresses in the spelling in which they are written:
/// damage can leave `03::1`, which is `3::1`.
fn one_spelling(bytes: &[u8]) -> pb::Cluster {
    let mut cluster = pb::Cluster::decode(bytes).unwrap();
    let localities = cluster
        .load_assignment
        .iter_mut()
        .flat_map(|a| &mut a.endpoints);
    for host in localities.flat_map(|l| &mut l.lb_endpoints) {
        let Some(HostIdentifier::Endpoint(endpoint)) = &mut host.host_identifier else {
            continue;
        };
        if let Some(Address::SocketAddress(socket)) =
            endpoint.address.as_mut().and_then(|a| a.address.as_mut())
            && let Ok(ip) = socket.address.parse::<IpAddr>()
        {
            socket.address = ip.to_string();
        }
    }
    cluster
}

#[test]
fn a_resource_that_is_too_large_is_refused_before_it_is_parsed() {
    let refused = decode::cluster(&vec![0; MAX_RESOURCE_LEN + 1]).unwrap_err();
    assert_eq!(
        refused.reason,
        Reason::TooLarge {
            max: MAX_RESOURCE_LEN
        }
    );
    let said = refused.sent_as("egress").to_string();
    assert_eq!(said, r#"cluster "egress": larger than 4194304 bytes"#);
}

/// Their messages are some kilobytes each.
#[test]
fn what_is_read_has_no_more_room_than_it_needs() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..20 {
        let table = common::routes().new_tree(&mut runner).unwrap().current();
        for host in table.hosts.values() {
            let read = decode::virtual_host(&encode::virtual_host(host).value).unwrap();
            assert_eq!(read.routes.capacity(), read.routes.len());
        }
        let endpoints = common::endpoints().new_tree(&mut runner).unwrap().current();
        let read = decode::endpoints(&encode::endpoints(&endpoints).value).unwrap();
        assert_eq!(read.localities.capacity(), read.localities.len());
        for locality in &read.localities {
            assert_eq!(locality.endpoints.capacity(), locality.endpoints.len());
        }
    }
}

/// A watch is silent for hours, so nothing else shows that its other end has lost power.
#[test]
fn an_envoy_ends_a_dead_connection_within_a_minute() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let cluster = common::cluster().new_tree(&mut runner).unwrap().current();
    let written = pb::Cluster::decode(&*encode::cluster(&cluster).value).unwrap();
    let options = written.upstream_connection_options.unwrap();
    let keepalive = options.tcp_keepalive.unwrap();
    let time = keepalive.keepalive_time.unwrap().value;
    let interval = keepalive.keepalive_interval.unwrap().value;
    assert!(time + interval * keepalive.keepalive_probes.unwrap().value <= 60);
}
