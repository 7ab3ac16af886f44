use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length > 0x7f {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [
        MAGIC,
        &field(1, &meta),
        &field(2, raw),
        &field(3, b""),
        &field(4, b""),
    ]
    .concat()
}

#[test]
fn a_config_map_is_read_and_zeros_are_left_out() {
    let metadata = [field(1, b"a"), field(2, b""), field(8, b"")].concat();
    let pair = [field(1, b"k"), field(2, b"v")].concat();
    let empty = field(1, b"e");
    let raw = [
        field(1, &metadata),
        field(2, &pair),
        field(2, &empty),
        vec![4 << 3, 0],
    ]
    .concat();
    assert_eq!(
        parse(&envelope("v1", "ConfigMap", &raw)).unwrap(),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"},
            "data": {"k": "v", "e": ""}, "immutable": false})
    );
}

#[test]
fn a_service_is_read_with_its_special_types() {
    let int = [vec![1 << 3, 0], vec![2 << 3, 0x90, 0x3f], field(3, b"")].concat();
    let text = [vec![1 << 3, 1], vec![2 << 3, 0], field(3, b"http")].concat();
    let port = |target: &[u8]| [vec![3 << 3, 80], field(4, target), vec![5 << 3, 0]].concat();
    let time = [vec![1 << 3, 0x80, 0x94, 0xeb, 0xdc, 3], vec![2 << 3, 0]].concat();
    let metadata = field(8, &time);
    let spec = [field(1, &port(&int)), field(1, &port(&text))].concat();
    let raw = [field(1, &metadata), field(2, &spec)].concat();
    assert_eq!(
        parse(&envelope("v1", "Service", &raw)).unwrap(),
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"creationTimestamp": "2001-09-09T01:46:40Z"},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 80, "targetPort": "http"}]}})
    );
}

#[test]
fn fields_that_json_has_inline_are_part_of_their_parent() {
    let claim = field(3, &field(1, b"x"));
    let volume = [field(1, b"v"), field(2, &field(2, &[]))].concat();
    let raw = field(2, &field(1, &volume));
    let pod = parse(&envelope("v1", "Pod", &raw)).unwrap();
    assert_eq!(
        pod["spec"]["volumes"],
        json!([{"name": "v", "emptyDir": {}}])
    );
    assert!(parse(&envelope("v1", "Pod", &claim)).is_ok());
}

#[test]
fn what_is_not_known_or_damaged_is_refused() {
    let unknown = ProtobufError::Unknown {
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
    };
    assert_eq!(parse(&envelope("apps/v1", "Deployment", b"")), Err(unknown));
    assert_eq!(parse(b"{}"), Err(ProtobufError::Magic));
    for raw in [
        &b"\x0a\xff"[..],
        b"\x0a\x05ab",
        b"\x0f",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x08\x01",
    ] {
        assert_eq!(
            parse(&envelope("v1", "ConfigMap", raw)),
            Err(ProtobufError::Damaged),
            "{raw:?}"
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(raw in prop::collection::vec(any::<u8>(), 0..200), kind in 0..4_usize) {
        let kind = ["Pod", "Service", "Event", "Node"][kind];
        // Either is fine; it must come back.
        let _ = parse(&envelope("v1", kind, &raw));
        let _ = parse(&raw);
    }
}
