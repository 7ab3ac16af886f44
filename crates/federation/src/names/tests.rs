use super::*;

fn key(namespace: &str, name: &str) -> ServiceKey {
    ServiceKey::parse(namespace, name).unwrap()
}

fn peer(name: &str) -> PeerName {
    name.parse().unwrap()
}

#[test]
fn labels_follow_dns_1123() {
    let longest = "a".repeat(63);
    for good in ["a", "0", "a-b", "red-mesh-system", &longest] {
        assert_eq!(good.parse::<Label>().unwrap().as_str(), good);
    }
    let too_long = "a".repeat(64);
    for bad in [
        "", "-a", "a-", "A", "a.b", "a_b", "ä", "a b", "*", "a\n", &too_long,
    ] {
        assert!(bad.parse::<Label>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_peer_name_leaves_room_for_its_exports_label() {
    assert!("p".repeat(55).parse::<PeerName>().is_ok());
    assert_eq!(
        "p".repeat(56).parse::<PeerName>(),
        Err(NameError::PeerNameTooLong("p".repeat(56)))
    );
}

#[test]
fn the_names_of_the_documents_are_made() {
    let exported = ExportedHost::ours(&key("bookinfo", "red-ratings"), &peer("green-mesh"));
    assert_eq!(
        exported.as_str(),
        "red-ratings.bookinfo.svc.green-mesh-exports.local"
    );
    assert_eq!(exported.exports_label(), "green-mesh-exports");
    let suffix = DomainSuffix::imports_of(&peer("red-mesh"));
    assert_eq!(
        ImportedHost::new(&key("bookinfo", "ratings"), &suffix)
            .unwrap()
            .as_str(),
        "ratings.bookinfo.svc.red-mesh-imports.local"
    );
    assert_eq!(
        RemoteHost::new(&key("bookinfo", "ratings"), &peer("red-mesh")).as_str(),
        "ratings.bookinfo.svc.red-mesh.remote"
    );
    let system: Label = "green-mesh-system".parse().unwrap();
    assert_eq!(
        DiscoveryHost::new(&system, &peer("red-mesh")).as_str(),
        "discovery.green-mesh-system.svc.red-mesh.local"
    );
}

#[test]
fn a_host_from_a_peer_is_taken_only_with_the_entrys_own_name_and_namespace() {
    let ratings = key("bookinfo", "ratings");
    for good in [
        "ratings.bookinfo.svc.green-mesh-exports.local",
        "ratings.bookinfo.svc.x-exports.local",
    ] {
        assert_eq!(
            ExportedHost::from_peer(good, &ratings).unwrap().as_str(),
            good
        );
    }
    for bad in [
        "",
        "ratings",
        "ratings.bookinfo.svc.cluster.local",
        "reviews.bookinfo.svc.x-exports.local",
        "ratings.other.svc.x-exports.local",
        "ratings.bookinfo.svc.-exports.local",
        "ratings.bookinfo.svc.a.b-exports.local",
        "ratings.bookinfo.svc.X-exports.local",
        "ratings.bookinfo.svc.x-exports.local.",
        "ratings.bookinfo.svc.x-exports.example",
        "*.bookinfo.svc.x-exports.local",
        "ratings.bookinfo.svc.x-imports.local",
    ] {
        assert!(ExportedHost::from_peer(bad, &ratings).is_err(), "{bad:?}");
    }
    let too_long = format!(
        "ratings.bookinfo.svc.{}-exports.local",
        "x".repeat(MAX_PEER_NAME_LEN + 1)
    );
    assert!(ExportedHost::from_peer(&too_long, &ratings).is_err());
}

#[test]
fn an_imported_name_must_fit_into_an_sni() {
    let key = key(&"n".repeat(63), &"s".repeat(63));
    let domain = |len: usize| -> DomainSuffix {
        let text = format!("{}dd", "d.".repeat(len / 2 - 1));
        assert_eq!(text.len(), len);
        text.parse().unwrap()
    };
    let longest = domain(MAX_SNI_HOST_LEN - 128);
    let host = ImportedHost::new(&key, &longest).unwrap();
    assert_eq!(format!("outbound_.65535_._.{host}").len(), MAX_HOST_LEN);
    let longer = domain(MAX_SNI_HOST_LEN - 128 + 2);
    assert!(matches!(
        ImportedHost::new(&key, &longer),
        Err(NameError::HostTooLong(_))
    ));
}

#[test]
fn a_domain_suffix_is_a_dns_domain() {
    for good in ["local", "svc.cluster.local", "imported.local"] {
        assert!(good.parse::<DomainSuffix>().is_ok(), "{good:?}");
    }
    for bad in ["", ".", ".local", "local.", "a..b", "*.local", "A.local"] {
        assert!(bad.parse::<DomainSuffix>().is_err(), "{bad:?}");
    }
    let long = format!("{}dd", "d.".repeat(MAX_SNI_HOST_LEN / 2));
    let error = long.parse::<DomainSuffix>().unwrap_err().to_string();
    let begin = format!(
        "the DNS domain \"{}...\" is longer than 234 bytes",
        &long[..120]
    );
    assert!(error.starts_with(&begin), "{error}");
}

#[test]
fn what_is_repeated_of_what_was_given_is_short_and_says_that_it_was_cut() {
    assert_eq!(clip(&"é".repeat(120)), "é".repeat(120));
    assert_eq!(clip(&"é".repeat(121)), format!("{}...", "é".repeat(120)));
}
