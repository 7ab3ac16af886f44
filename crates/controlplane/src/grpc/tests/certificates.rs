//! What buys a certificate, and for how long one is good.

use super::*;

#[tokio::test]
async fn a_token_buys_a_certificate_and_the_certificate_a_configuration() {
    let plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&["a"])));

    let (key, csr) = mk_csr();
    let chain = plane
        .certify(None, Some("ratings-token"), &csr)
        .await
        .unwrap();
    assert_eq!(chain.last().unwrap(), plane.ca.root_pem());
    let identity = Identity::from_pem(&chain[0], &key.to_pkcs8_pem()).unwrap();
    assert_eq!(identity.id, Some(RATINGS.parse().unwrap()));

    let mut ads = plane.ads(identity).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Endpoints, &["a"])
        .await;
    assert_eq!(names(&ads.accept().await), ["a"]);
}

#[tokio::test]
async fn a_namespace_that_is_no_member_gets_no_certificate() {
    let plane = Plane::start().await;
    let (_, csr) = mk_csr();
    let refused = plane
        .certify(None, Some("stranger-token"), &csr)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_certificate_is_renewed_by_itself_until_its_service_account_is_gone() {
    let plane = Plane::start().await;
    let (key, csr) = mk_csr();
    let old = plane.identity(RATINGS);
    let chain = plane.certify(Some(old), None, &csr).await.unwrap();
    let new = Identity::from_pem(&chain[0], &key.to_pkcs8_pem()).unwrap();
    assert_eq!(new.id, Some(RATINGS.parse().unwrap()));

    plane.deleted.lock().unwrap().push(ServiceAccountRef {
        namespace: "bookinfo".to_string(),
        name: "ratings".to_string(),
    });
    let refused = plane.certify(Some(new), None, &csr).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn without_a_good_proof_there_is_no_certificate() {
    let plane = Plane::start().await;
    let (_, csr) = mk_csr();
    let refused = async |identity, token, csr: &str| {
        let refused = plane.certify(identity, token, csr).await.unwrap_err();
        (refused.code(), refused.message().to_string())
    };
    let (code, message) = refused(None, None, &csr).await;
    assert_eq!(code, Code::Unauthenticated);
    assert!(message.contains("ServiceAccount token"), "{message}");

    let (code, message) = refused(None, Some("expired-token"), &csr).await;
    assert_eq!(code, Code::Unauthenticated);
    assert!(message.contains("the token has expired"), "{message}");
    // A bad token is not made good by a certificate beside it.
    let own = Some(plane.identity(RATINGS));
    let (code, _) = refused(own, Some("expired-token"), &csr).await;
    assert_eq!(code, Code::Unauthenticated);

    let (code, _) = refused(None, Some("slow-api"), &csr).await;
    assert_eq!(code, Code::Unavailable);
    let (code, _) = refused(None, Some("ratings-token"), "no request").await;
    assert_eq!(code, Code::InvalidArgument);
    let long = "x".repeat(2 * MAX_MESSAGE);
    let (code, _) = refused(None, Some("ratings-token"), &long).await;
    assert_eq!(code, Code::OutOfRange);
}

#[tokio::test]
async fn ads_without_a_certificate_is_refused() {
    let plane = Plane::start().await;
    let channel = plane.connect(None).await.unwrap();
    let refused = Ads::try_open(channel).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_certificate_of_another_mesh_does_not_get_past_the_handshake() {
    let plane = Plane::start().await;
    let green = CertificateAuthority::self_signed("green", SystemTime::now()).unwrap();
    for (id, reason) in [
        (RATINGS, "unknown_ca"),
        (
            "spiffe://green-mesh.local/ns/bookinfo/sa/ratings",
            "wrong_trust_domain",
        ),
    ] {
        let stranger = mk_identity(&green, id);
        // In TLS 1.3 a client learns of the refusal with its first call at the latest.
        if let Ok(channel) = plane.connect(Some(stranger)).await {
            assert!(Ads::try_open(channel).await.is_err());
        }
        plane.refused(reason).await;
    }
}

#[tokio::test]
async fn when_the_mesh_leaves_a_trust_domain_its_streams_end_and_its_certificates_buy_only_new_ones()
 {
    let plane = Plane::start().await;
    plane.source.set("ratings", None);
    let store = |domain: &str, former: &[&str]| {
        let domain: TrustDomain = domain.parse().unwrap();
        let all = [domain.clone()].into_iter();
        let all = all.chain(former.iter().map(|former| former.parse().unwrap()));
        let bundles = all.map(|domain| (domain, plane.ca.root_pem())).collect();
        let store = Arc::new(TrustStore::parse(&bundles).unwrap());
        plane.mesh.send_replace(Some(mk_membership(domain.clone())));
        plane.store.send_replace(OwnTrust { domain, store });
    };
    let ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Cluster, &[])
        .await;
    // Time and again there is a new store, with which the stream is as good as before.
    store(RED, &[]);
    let second = plane.ads(plane.identity(RATINGS)).await;
    store("red2.local", &[RED]);
    for mut stream in [ads, second] {
        stream.receive().await.unwrap_err();
    }

    let channel = plane.connect(Some(plane.identity(RATINGS))).await.unwrap();
    let refused = Ads::try_open(channel).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let key = KeyPair::generate().unwrap();
    let moved = RATINGS.replace(RED, "red2.local");
    let csr = new_csr(&key, &moved.parse().unwrap()).unwrap();
    let renew = || plane.certify(Some(plane.identity(RATINGS)), None, &csr);
    let chain = renew().await.unwrap();
    let identity = Identity::from_pem(&chain[0], &key.to_pkcs8_pem()).unwrap();
    assert_eq!(identity.id, Some(moved.parse().unwrap()));
    plane.ads(identity).await;

    // As without a change, not for an account that is gone, and not in the place of a bad token.
    let expired = plane.certify(Some(plane.identity(RATINGS)), Some("expired-token"), &csr);
    assert_eq!(expired.await.unwrap_err().code(), Code::Unauthenticated);
    let account = ServiceAccountRef {
        namespace: "bookinfo".to_string(),
        name: "ratings".to_string(),
    };
    plane.deleted.lock().unwrap().push(account);
    assert_eq!(renew().await.unwrap_err().code(), Code::Unauthenticated);

    // A domain that is not remembered.
    store("red3.local", &["red2.local"]);
    if let Ok(channel) = plane.connect(Some(plane.identity(RATINGS))).await {
        assert!(Ads::try_open(channel).await.is_err());
    }
    plane.refused("wrong_trust_domain").await;
}

#[test]
fn a_connection_lives_no_longer_than_its_certificate() {
    let now = SystemTime::now();
    let mut peer = Peer {
        address: "127.0.0.1:1".parse().unwrap(),
        certificate: None,
        former: None,
    };
    assert_eq!(life(&peer, now), ANONYMOUS_LIFE);
    peer.certificate = Some(PeerCertificate {
        id: RATINGS.parse().unwrap(),
        not_after: now + HOUR,
    });
    assert_eq!(life(&peer, now), HOUR);
    assert_eq!(life(&peer, now + 2 * HOUR), Duration::ZERO);
}
