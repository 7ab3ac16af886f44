use serde::Deserialize;

use super::*;
use crate::discovery::message::{Limits, ServiceList, decode_list};

/// Values that the reference computes, as `[name, wire bytes, checksum]`.
#[derive(Deserialize)]
struct Vectors {
    lists: Vec<(String, String, u64)>,
    /// `[name, addresses, discovery port, service port, checksum]`.
    remotes: Vec<(String, Vec<String>, i32, i32, u64)>,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../../../tests/data/checksums.json")).unwrap()
}

#[test]
fn lists_have_the_references_checksum_and_bytes() {
    let vectors = vectors().lists;
    assert_eq!(vectors.len(), 21);
    for (name, wire, checksum) in vectors {
        let received = decode_list(wire.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(received.list.checksum, checksum, "{name}");
        assert_eq!(received.hash.checksum(Variant::Current), checksum, "{name}");
        let written = String::from_utf8(received.list.encode()).unwrap();
        assert_eq!(written, wire, "{name}");
    }
}

#[test]
fn remotes_have_the_references_checksum() {
    let vectors = vectors().remotes;
    assert_eq!(vectors.len(), 6);
    for (name, addresses, discovery, service, checksum) in vectors {
        let addresses = addresses.iter().map(String::as_str);
        assert_eq!(
            remote_hash(addresses, discovery, service),
            checksum,
            "{name}"
        );
    }
}

#[test]
fn the_primitives_have_their_known_values() {
    assert_eq!(text("a"), 0xaf63_bd4c_8601_b7be);
    assert_eq!(text(""), OFFSET_BASIS);
    assert_eq!(fnv(&[0; 8]), 0xa8c7_f832_281a_39c5);
}

#[test]
fn an_empty_list_has_a_checksum_of_its_own_in_each_variant() {
    let hash = ListHash::default();
    assert_eq!(hash.checksum(Variant::Current), 3_035_108_133_973_235_477);
    assert_eq!(
        hash.checksum(Variant::GatewayEndpoints),
        8_869_925_242_909_983_158
    );
    assert_eq!(
        hash.variant_of(8_869_925_242_909_983_158),
        Some(Variant::GatewayEndpoints)
    );
    assert_eq!(hash.variant_of(1), None);
}

#[test]
fn equal_elements_cancel_in_pairs() {
    let service = Service {
        name: "a".into(),
        ..Service::default()
    };
    let list = ServiceList::new(vec![service.clone(), service]);
    assert_eq!(list.checksum, ServiceList::new(Vec::new()).checksum);
}
