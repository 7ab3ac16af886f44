//! The ingress of a mesh: who gets through to what, and who does not.

use std::time::{Duration, SystemTime};

use meshfed_proxy_config::*;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

const SNI: &str = "outbound_.9080_._.ratings.bookinfo.svc.green-mesh-exports.local";

/// red-mesh's ingress: green-mesh's egress may call one exported service, blue-mesh is a peer
/// without exports.
struct Scene {
    red: Mesh,
    green: Mesh,
    gateway: Gateway,
    ratings: Backend,
}

impl Scene {
    async fn new() -> Self {
        let (red, green) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
        let ratings = Backend::echo("ratings").await;
        let mut gateway = Gateway::new(red.identity("ingress"));
        gateway.change(|c| {
            add_trust(c, "peer", bundle(&[&green]));
            add_cluster(c, cluster(SNI, &[ratings.address]));
            add_listener(c, listener("15443", vec![exports(&green)]));
        });
        Self {
            red,
            green,
            gateway,
            ratings,
        }
    }

    fn to(&self) -> std::net::SocketAddr {
        self.gateway.address("15443")
    }

    /// Tries to get bytes through; nothing may arrive upstream, and one line says why.
    async fn refused(&self, attempt: impl Future<Output = std::io::Result<Vec<u8>>>, why: &str) {
        let answer = tokio::time::timeout(PATIENCE, attempt)
            .await
            .expect("an end");
        if let Ok(answer) = answer {
            assert!(
                !String::from_utf8_lossy(&answer).contains("ratings"),
                "{answer:?}"
            );
        }
        let lines = self.gateway.exactly(1).await;
        assert!(lines[0].contains(why), "{}", lines[0]);
        assert_eq!(self.ratings.connections(), 0);
        assert_eq!(self.ratings.bytes(), 0);
        let reason = why.rsplit(['=', ' ', '"']).find(|w| !w.is_empty()).unwrap();
        let label = format!("reason=\"{reason}\"");
        assert_eq!(
            self.gateway.counter("refused_total", &[&label]),
            1,
            "{}",
            self.gateway.metrics()
        );
    }

    async fn send_as(
        &self,
        identity: Option<meshfed_pki::Identity>,
        sni: &str,
    ) -> std::io::Result<Vec<u8>> {
        let mut stream = tls_connect(self.to(), Some(sni), identity, &self.red).await?;
        ask(&mut stream, b"secret").await
    }
}

fn exports(peer: &Mesh) -> FilterChain {
    let mut chain = chain(
        "exports",
        vec![ServerName::Suffix("svc.green-mesh-exports.local".into())],
        tcp(TcpTarget::SniCluster, None),
    );
    chain.tls = Some(tls("peer", &[peer.id("egress")]));
    chain
}

#[tokio::test]
async fn an_allowed_peer_reaches_the_exported_service_by_its_sni() {
    let scene = Scene::new().await;
    let answer = scene
        .send_as(Some(scene.green.identity("egress")), SNI)
        .await
        .unwrap();
    assert_eq!(answer, b"ratings: secret");
    let lines = scene.gateway.exactly(1).await;
    for part in [
        "listener=15443".to_owned(),
        "chain=exports".into(),
        format!("sni={SNI}"),
        "peer=spiffe://green-mesh.local/ns/ns/sa/egress".into(),
        "tls=1.3".into(),
        format!("cluster={SNI}"),
        format!("upstream={}", scene.ratings.address),
        "received=6 sent=15".into(),
        "end=complete".into(),
    ] {
        assert!(lines[0].contains(&part), "{part} in {}", lines[0]);
    }
    assert_eq!(scene.gateway.counter("connections_accepted_total", &[]), 1);
    assert_eq!(scene.gateway.counter("refused_total", &[]), 0);
    assert_eq!(
        scene
            .gateway
            .counter("transferred_bytes_total", &["direction=\"sent\""]),
        15
    );
}

#[tokio::test]
async fn the_right_domain_with_another_id_is_refused() {
    let scene = Scene::new().await;
    let other = scene.green.identity("someone");
    let attempt = scene.send_as(Some(other), SNI);
    scene
        .refused(attempt, "client_certificate: wrong_identity")
        .await;
    let claimed = "peer=- claimed=spiffe://green-mesh.local/ns/ns/sa/someone";
    assert!(scene.gateway.lines()[0].contains(claimed));
}

#[tokio::test]
async fn a_certificate_of_another_ca_with_the_right_id_is_refused() {
    let scene = Scene::new().await;
    let forged = Mesh::new("evil.local").sign(&scene.green.id("egress"));
    let attempt = scene.send_as(Some(forged), SNI);
    scene
        .refused(attempt, "client_certificate: unknown_ca")
        .await;
}

#[tokio::test]
async fn another_trust_domain_is_refused_also_when_the_peers_ca_signed_it() {
    let scene = Scene::new().await;
    let id = "spiffe://red-mesh.local/ns/ns/sa/egress".parse().unwrap();
    let forged = scene.green.sign(&id);
    let attempt = scene.send_as(Some(forged), SNI);
    scene
        .refused(attempt, "client_certificate: wrong_trust_domain")
        .await;
}

#[tokio::test]
async fn no_certificate_is_refused() {
    let scene = Scene::new().await;
    let attempt = scene.send_as(None, SNI);
    scene
        .refused(attempt, "client_certificate: no_certificate")
        .await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let scene = Scene::new().await;
    let long_ago = SystemTime::now() - Duration::from_secs(2 * 3600);
    let expired = scene.green.sign_at(
        &scene.green.id("egress"),
        Duration::from_secs(3600),
        long_ago,
    );
    let attempt = scene.send_as(Some(expired), SNI);
    scene.refused(attempt, "client_certificate: expired").await;
}

#[tokio::test]
async fn an_sni_that_no_chain_has_is_closed() {
    let scene = Scene::new().await;
    let attempt = scene.send_as(
        Some(scene.green.identity("egress")),
        "outbound_.9080_._.ratings.bookinfo.svc.blue-mesh-exports.local",
    );
    scene.refused(attempt, "end=no_chain_for_sni").await;
}

#[tokio::test]
async fn an_sni_that_is_not_exported_is_closed() {
    let scene = Scene::new().await;
    let attempt = scene.send_as(
        Some(scene.green.identity("egress")),
        "outbound_.9080_._.details.bookinfo.svc.green-mesh-exports.local",
    );
    scene.refused(attempt, "end=no_cluster").await;
}

#[tokio::test]
async fn no_sni_is_closed() {
    let scene = Scene::new().await;
    let identity = Some(scene.green.identity("egress"));
    let attempt = async {
        let mut stream = tls_connect(scene.to(), None, identity, &scene.red).await?;
        ask(&mut stream, b"secret").await
    };
    scene.refused(attempt, "end=no_chain_for_sni").await;
}

#[tokio::test]
async fn plain_http_is_refused() {
    let scene = Scene::new().await;
    let attempt = async {
        let mut stream = TcpStream::connect(scene.to()).await?;
        ask(&mut stream, b"GET / HTTP/1.1\r\nHost: ratings\r\n\r\n").await
    };
    scene.refused(attempt, "client_certificate: garbage").await;
}

#[tokio::test]
async fn garbage_is_refused() {
    let scene = Scene::new().await;
    let attempt = async {
        let mut stream = TcpStream::connect(scene.to()).await?;
        ask(&mut stream, &[0x16, 3, 1, 0xff, 0xff, 9, 9, 9, 9, 9]).await
    };
    scene.refused(attempt, "client_certificate: garbage").await;
}

#[tokio::test]
async fn a_client_that_takes_too_long_to_shake_hands_is_closed() {
    let mut scene = Scene::new().await;
    scene.gateway.change(|c| {
        let mut slow = listener("15443", vec![exports(&scene.green)]);
        slow.handshake_timeout = Duration::from_millis(100);
        add_listener(c, slow);
    });
    let to = scene.to();
    let attempt = async move {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(&[0x16, 3, 1]).await?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await?;
        Ok(rest)
    };
    scene.refused(attempt, "end=handshake_timeout").await;
}

#[tokio::test]
async fn a_policy_that_does_not_admit_the_client_closes_before_anything_is_connected() {
    let mut scene = Scene::new().await;
    scene.gateway.change(|c| {
        let mut chain = exports(&scene.green);
        chain.tls = Some(tls("peer", &[]));
        chain.network = tcp(
            TcpTarget::SniCluster,
            Some(vec![allow("peer", &[scene.green.id("egress")])]),
        );
        add_listener(c, listener("15443", vec![chain]));
    });
    let attempt = scene.send_as(Some(scene.green.identity("other")), SNI);
    scene.refused(attempt, "end=not_allowed").await;
    let answer = scene
        .send_as(Some(scene.green.identity("egress")), SNI)
        .await
        .unwrap();
    assert_eq!(answer, b"ratings: secret");
    let lines = scene.gateway.exactly(2).await;
    assert!(lines[1].contains("policy=peer"), "{}", lines[1]);
}

#[tokio::test]
async fn a_client_that_offers_only_protocols_of_others_is_served_without_one() {
    let scene = Scene::new().await;
    let mut stream = tls_connect_alpn(
        scene.to(),
        Some(SNI),
        Some(scene.green.identity("egress")),
        &scene.red,
        &["istio-peer-exchange", "istio"],
    )
    .await
    .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), None);
    assert_eq!(ask(&mut stream, b"x").await.unwrap(), b"ratings: x");
}

#[tokio::test]
async fn an_older_peer_with_tls_1_2_is_served_and_held_to_the_same() {
    let scene = Scene::new().await;
    let mut stream = tls12_connect(scene.to(), SNI, scene.green.identity("egress"))
        .await
        .unwrap();
    assert_eq!(ask(&mut stream, b"x").await.unwrap(), b"ratings: x");
    let lines = scene.gateway.exactly(1).await;
    assert!(lines[0].contains("tls=1.2"), "{}", lines[0]);
    let other = scene.green.identity("other");
    assert!(tls12_connect(scene.to(), SNI, other).await.is_err());
    let lines = scene.gateway.exactly(2).await;
    assert!(lines[1].contains("wrong_identity"), "{}", lines[1]);
}
