//! A name that several clusters carry together.

use meshfed_proxy_config::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::*;

const NAME: &str = "outbound_.9080_._.ratings.bookinfo.svc.cluster.local";

struct Scene {
    green: Mesh,
    gateway: Gateway,
    backends: [Backend; 2],
}

fn chains(weights: &[(&str, u32)]) -> Vec<FilterChain> {
    let by_sni = chain("imports", vec![], tcp(TcpTarget::SniCluster, None));
    let all = weights
        .iter()
        .map(|(name, weight)| ((*name).into(), *weight));
    let target = TcpTarget::Weighted(all.collect());
    let exact = ServerName::Exact(NAME.into());
    let shared = (!weights.is_empty()).then(|| chain(NAME, vec![exact], tcp(target, None)));
    [by_sni].into_iter().chain(shared).collect()
}

impl Scene {
    /// The clusters `a` and `b`, and one of the name, which leads where `a` does.
    async fn new() -> Self {
        let green = Mesh::new("green-mesh.local");
        let backends = [Backend::echo("a").await, Backend::echo("b").await];
        let mut gateway = Gateway::new(green.identity("egress"));
        gateway.change(|c| {
            add_trust(c, "peer", bundle(&[&green]));
            add_cluster(c, cluster("a", &[backends[0].address]));
            add_cluster(c, cluster("b", &[backends[1].address]));
            add_cluster(c, cluster(NAME, &[backends[0].address]));
            add_listener(c, listener("in", chains(&[])));
        });
        Self {
            green,
            gateway,
            backends,
        }
    }

    fn spread(&mut self, weights: &[(&str, u32)]) {
        self.gateway
            .change(|c| add_listener(c, listener("in", chains(weights))));
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let to = self.gateway.address("in");
        let identity = Some(self.green.identity("client"));
        let stream = tls_connect(to, Some(NAME), identity, &self.green).await;
        stream.unwrap()
    }

    async fn call(&self) -> String {
        let answer = ask(&mut self.connect().await, b"x").await;
        String::from_utf8(answer.unwrap_or_default()).unwrap()
    }

    /// A connection that is under way to this backend.
    async fn open(&self, backend: &str) -> Open {
        let mut stream = self.connect().await;
        let mut greeting = [0; 3];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(greeting, *format!("{backend}: ").as_bytes());
        Open(stream)
    }
}

struct Open(TlsStream<TcpStream>);

impl Open {
    async fn works(&mut self) -> bool {
        let exchange = async {
            self.0.write_all(b"ping").await?;
            self.0.flush().await?;
            self.0.read_exact(&mut [0; 4]).await
        };
        matches!(tokio::time::timeout(PATIENCE, exchange).await, Ok(Ok(_)))
    }
}

#[tokio::test]
async fn connections_are_spread_by_weight_and_go_elsewhere_when_one_place_cannot_be_reached() {
    let mut scene = Scene::new().await;
    scene.spread(&[("a", 3), ("b", 1)]);
    for _ in 0..200 {
        let answer = scene.call().await;
        assert!(answer == "a: x" || answer == "b: x", "{answer:?}");
    }
    let [a, b] = &scene.backends;
    assert_eq!(a.connections() + b.connections(), 200);
    assert!((120..180).contains(&a.connections()), "{}", a.connections());

    scene.spread(&[("a", MAX_WEIGHT), ("b", 1)]);
    let nobody = refusing_address();
    scene
        .gateway
        .change(|c| add_cluster(c, cluster("a", &[nobody])));
    for _ in 0..10 {
        assert_eq!(scene.call().await, "b: x");
    }
    scene.gateway.change(|c| _ = c.clusters.remove("a"));
    assert_eq!(scene.call().await, "b: x");
    scene
        .gateway
        .change(|c| add_cluster(c, cluster("b", &[nobody])));
    assert_eq!(scene.call().await, "");
    let lines = scene.gateway.exactly(212).await;
    let failed = &lines[211];
    assert!(failed.contains("end="), "{failed}");
    assert!(!failed.ends_with("end=complete"), "{failed}");
}

#[tokio::test]
async fn who_shares_the_name_may_change_and_only_what_leads_to_a_cluster_that_goes_ends() {
    let mut scene = Scene::new().await;
    let mut alone = scene.open("a").await;
    scene.spread(&[("b", 1)]);
    let mut shared = scene.open("b").await;
    assert!(alone.works().await);
    scene.spread(&[("a", 2), ("b", 7)]);
    assert!(alone.works().await && shared.works().await);
    scene.spread(&[]);
    assert!(alone.works().await && shared.works().await);
    scene.spread(&[("a", 1)]);
    scene.gateway.change(|c| _ = c.clusters.remove("b"));
    let mut rest = Vec::new();
    let end = tokio::time::timeout(PATIENCE, shared.0.read_to_end(&mut rest));
    let _ = end.await.expect("the connection ends");
    assert!(alone.works().await);
    let line = &scene.gateway.exactly(1).await[0];
    assert!(line.ends_with("end=drained"), "{line}");
}
