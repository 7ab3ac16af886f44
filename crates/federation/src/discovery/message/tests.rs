use proptest::prelude::*;

use super::*;
use crate::discovery::checksum::{ListHash, Variant};

fn ratings() -> Service {
    Service {
        name: "ratings".into(),
        namespace: "bookinfo".into(),
        hostname: "ratings.bookinfo.svc.green-mesh-exports.local".into(),
        ports: vec![ServicePort {
            name: "http".into(),
            port: 9080,
            protocol: "HTTP".into(),
        }],
        accounts: vec!["spiffe://red-mesh.local/ns/red-mesh-system/sa/ingress".into()],
        health: None,
    }
}

fn events_of(chunks: &[&[u8]]) -> Result<Vec<WatchEvent>, DecodeError> {
    let mut decoder = EventDecoder::new(Limits::default());
    let mut events = Vec::new();
    for chunk in chunks {
        decoder.push(chunk, &mut events)?;
    }
    Ok(events)
}

fn list_of(json: &str) -> Result<ServiceList, DecodeError> {
    decode_list(json.as_bytes(), &Limits::default()).map(|received| received.list)
}

#[test]
fn an_event_is_one_compact_object_and_crlf() {
    let event = WatchEvent {
        action: Action::Add,
        service: Some(ratings()),
        checksum: u64::MAX,
    };
    let text = String::from_utf8(event.encode()).unwrap();
    assert_eq!(
        text,
        "{\"action\":\"add\",\"service\":{\"name\":\"ratings\",\"namespace\":\"bookinfo\",\
         \"hostname\":\"ratings.bookinfo.svc.green-mesh-exports.local\",\"servicePorts\":\
         [{\"name\":\"http\",\"port\":9080,\"protocol\":\"HTTP\"}],\"serviceAccounts\":\
         [\"spiffe://red-mesh.local/ns/red-mesh-system/sa/ingress\"]},\
         \"checksum\":18446744073709551615}\r\n"
    );
    assert_eq!(events_of(&[text.as_bytes()]).unwrap(), [event]);
}

#[test]
fn an_event_without_action_or_service_is_written_and_read() {
    let event = WatchEvent {
        action: Action::Other(String::new()),
        service: None,
        checksum: 0,
    };
    assert_eq!(event.encode(), b"{\"checksum\":0}\r\n");
    assert_eq!(events_of(&[b"{\"checksum\":0}"]).unwrap(), [event]);
}

#[test]
fn object_and_line_end_may_come_in_separate_chunks() {
    let bytes = [
        WatchEvent {
            action: Action::Delete,
            service: Some(Service {
                name: "a\"}\\".into(),
                ..ratings()
            }),
            checksum: 7,
        }
        .encode(),
        b"\r\n  ".to_vec(),
        b"{\"action\":\"resync\",\"later\":{\"x\":[1,\"]}\"]},\"checksum\":8}".to_vec(),
    ]
    .concat();
    let whole = events_of(&[&bytes]).unwrap();
    assert_eq!(whole.len(), 2);
    assert_eq!(whole[1].action, Action::Other("resync".into()));
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(events_of(&single).unwrap(), whole);
}

#[test]
fn a_watch_that_is_no_sequence_of_objects_is_given_up() {
    let refused = events_of(&[b"[1]"]).unwrap_err();
    assert_eq!(refused, DecodeError::NotAnObject(b'['));
    assert!(
        refused.to_string().ends_with("it begins with '['"),
        "{refused}"
    );
    assert_eq!(
        events_of(&[b"{\"checksum\":0}<html>"]),
        Err(DecodeError::NotAnObject(b'<'))
    );
    assert_eq!(
        events_of(&["{\"a\":".repeat(1000).as_bytes()]),
        Err(DecodeError::EventTooDeep { limit: 32 })
    );
    assert!(matches!(
        events_of(&[b"{\"checksum\":]}"]),
        Err(DecodeError::Malformed(_))
    ));
}

#[test]
fn an_endless_event_is_cut_at_the_limit() {
    let limits = Limits {
        event_bytes: 100,
        ..Limits::default()
    };
    let mut decoder = EventDecoder::new(limits);
    let mut events = Vec::new();
    decoder.push(b"{\"action\":\"", &mut events).unwrap();
    let error = (0..100)
        .find_map(|_| decoder.push(b"x", &mut events).err())
        .unwrap();
    assert_eq!(error, DecodeError::EventTooLong { limit: 100 });
    assert!(events.is_empty());
}

#[test]
fn reading_ignores_unknown_keys_and_takes_null_as_go_does() {
    let list = list_of(
        r#"{"later":[[{}]],"checksum":null,"services":[
            {"name":"a","namespace":null,"x":1,"servicePorts":null,"serviceAccounts":[null,"b"]},
            {"servicePorts":[{"port":null,"protocol":"TCP","y":{}}]}]}"#,
    )
    .unwrap();
    assert_eq!(list.checksum, 0);
    assert_eq!(list.services[0].accounts, ["", "b"]);
    assert_eq!(list.services[1].ports[0].protocol, "TCP");
    assert_eq!(list_of(r#"{"services":null}"#), Ok(ServiceList::default()));
}

#[test]
fn checksums_are_read_exactly() {
    let list = list_of(r#"{"checksum":18446744073709551615}"#).unwrap();
    assert_eq!(list.checksum, u64::MAX);
}

#[test]
fn wrong_types_and_broken_documents_are_refused() {
    for bad in [
        "",
        "null",
        "[]",
        "{",
        "{}x",
        r#"{"checksum":-1}"#,
        r#"{"checksum":1.5}"#,
        r#"{"checksum":18446744073709551616}"#,
        r#"{"checksum":"1"}"#,
        r#"{"services":{}}"#,
        r#"{"services":[null]}"#,
        r#"{"services":[{"name":1}]}"#,
        r#"{"services":[{"servicePorts":[{"port":"80"}]}]}"#,
        r#"{"services":[{"servicePorts":[{"port":1e3}]}]}"#,
        "{\"services\":[{\"name\":\"\u{fffd}\\ud800\"}]}",
    ] {
        assert!(
            matches!(list_of(bad), Err(DecodeError::Malformed(_))),
            "{bad:?}"
        );
    }
    let deep = format!("{{\"x\":{}", "[".repeat(100_000));
    assert!(matches!(list_of(&deep), Err(DecodeError::Malformed(_))));
    assert!(decode_list(b"{\"services\":[{\"name\":\"\xff\"}]}", &Limits::default()).is_err());
}

#[test]
fn counts_and_lengths_are_limited() {
    let limits = Limits {
        services: 2,
        ports: 1,
        accounts: 1,
        text_bytes: 5,
        list_bytes: 200,
        ..Limits::default()
    };
    let read = |json: &str| decode_list(json.as_bytes(), &limits);
    assert!(read(r#"{"services":[{},{}]}"#).is_ok());
    assert!(read(r#"{"services":[{},{},{}]}"#).is_err());
    assert!(read(r#"{"services":[{"name":"12345"}]}"#).is_ok());
    assert!(read(r#"{"services":[{"name":"123456"}]}"#).is_err());
    assert!(read(r#"{"services":[{"serviceAccounts":["",""]}]}"#).is_err());
    assert!(read(r#"{"services":[{"servicePorts":[{},{}]}]}"#).is_err());
    assert!(read(r#"{"networkGatewayEndpoints":[{},{},{}]}"#).is_err());
    assert_eq!(
        read(&format!("{{}}{}", " ".repeat(200))),
        Err(DecodeError::ListTooLong { limit: 200 })
    );
}

#[test]
fn an_error_does_not_repeat_what_a_peer_sent_at_any_length() {
    let json = format!(r#"{{"checksum":"{}"}}"#, "x".repeat(1 << 20));
    assert!(list_of(&json).unwrap_err().to_string().len() < 300);
}

#[test]
fn the_older_messages_gateway_endpoints_are_part_of_its_hash_only() {
    let empty = decode_list(b"{}", &Limits::default()).unwrap();
    let received = decode_list(
        br#"{"networkGatewayEndpoints":[{"port":15443,"hostname":"10.0.0.1"}]}"#,
        &Limits::default(),
    )
    .unwrap();
    assert_eq!(received.list, empty.list);
    assert_eq!(
        received.hash.checksum(Variant::Current),
        empty.hash.checksum(Variant::Current)
    );
    assert_ne!(
        received.hash.checksum(Variant::GatewayEndpoints),
        empty.hash.checksum(Variant::GatewayEndpoints)
    );
}

fn any_service() -> impl Strategy<Value = Service> {
    let text = || "[ -~<>&\"\\\\\n\u{1}\u{2028}é😀]{0,12}";
    let port = (text(), any::<i64>(), text()).prop_map(|(name, port, protocol)| ServicePort {
        name,
        port,
        protocol,
    });
    (
        (text(), text(), text()),
        proptest::collection::vec(port, 0..4),
        proptest::collection::vec(text(), 0..4),
    )
        .prop_map(|((name, namespace, hostname), ports, accounts)| Service {
            name,
            namespace,
            hostname,
            ports,
            accounts,
            health: None,
        })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(services in proptest::collection::vec(any_service(), 0..8)) {
        let list = ServiceList::new(services);
        let received = decode_list(&list.encode(), &Limits::default()).unwrap();
        prop_assert_eq!(&received.list, &list);
        prop_assert_eq!(received.hash.variant_of(list.checksum), Some(Variant::Current));
    }

    #[test]
    fn the_order_of_services_ports_and_accounts_does_not_matter(
        services in proptest::collection::vec(any_service(), 0..8),
    ) {
        let forward = ListHash::of(&services);
        let backward: Vec<Service> = services
            .iter()
            .rev()
            .cloned()
            .map(|mut service| {
                service.ports.reverse();
                service.accounts.reverse();
                service
            })
            .collect();
        prop_assert_eq!(forward, ListHash::of(&backward));
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_list(&bytes, &Limits::default());
        let _ = events_of(&[&bytes]);
    }
}
