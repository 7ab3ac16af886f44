//! Towards endpoints: TLS, choice, failover.

use std::net::SocketAddr;
use std::time::Duration;

use meshfed_proxy_config::*;
use meshfed_testkit::LoopbackNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

const SNI: &str = "outbound_.9080_._.ratings.bookinfo.svc.green-mesh-exports.local";

fn plain(target: &str) -> Listener {
    let mut chain = chain("all", vec![], tcp(TcpTarget::Cluster(target.into()), None));
    chain.tls = None;
    listener("in", vec![chain])
}

async fn call(to: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let answer = ask(&mut stream, text.as_bytes()).await.unwrap_or_default();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_call_goes_through_both_gateways_with_the_certificates_of_both_meshes() {
    let (red, green) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
    let ratings = Backend::tls_echo("ratings", red.identity("ratings"), &red).await;
    let mut ingress = Gateway::new(red.identity("ingress"));
    ingress.change(|c| {
        add_trust(c, "green", bundle(&[&green]));
        add_trust(c, "own", bundle(&[&red]));
        let mut to_workload = cluster(SNI, &[ratings.address]);
        let server = ServerIds::OneOf(vec![red.id("ratings")]);
        to_workload.tls = Some(upstream_tls("own", server, Some(SNI)));
        add_cluster(c, to_workload);
        let mut exports = chain("exports", vec![], tcp(TcpTarget::SniCluster, None));
        exports.tls = Some(tls("green", &[green.id("egress")]));
        add_listener(c, listener("15443", vec![exports]));
    });
    let mut egress = Gateway::new(green.identity("egress"));
    egress.change(|c| {
        add_trust(c, "red", bundle(&[&red]));
        add_trust(c, "own", bundle(&[&green]));
        let mut import = cluster("import", &[ingress.address("15443")]);
        let server = ServerIds::OneOf(vec![red.id("ingress")]);
        import.tls = Some(upstream_tls("red", server, Some(SNI)));
        add_cluster(c, import);
        let name = ServerName::Exact("outbound_.9080_._.ratings.local".into());
        let target = TcpTarget::Cluster("import".into());
        let mut imports = chain("ratings", vec![name], tcp(target, None));
        imports.tls = Some(tls("own", &[]));
        add_listener(c, listener("15443", vec![imports]));
    });
    let mut client = tls_connect(
        egress.address("15443"),
        Some("outbound_.9080_._.ratings.local"),
        Some(green.identity("productpage")),
        &green,
    )
    .await
    .unwrap();
    assert_eq!(
        ask(&mut client, b"5 stars").await.unwrap(),
        b"ratings: 5 stars"
    );
    let line = &egress.exactly(1).await[0];
    assert!(
        line.contains("upstream_peer=spiffe://red-mesh.local/ns/ns/sa/ingress"),
        "{line}"
    );
    let line = &ingress.exactly(1).await[0];
    assert!(line.contains(&format!("sni={SNI}")), "{line}");
    assert!(
        line.contains("upstream_peer=spiffe://red-mesh.local/ns/ns/sa/ratings"),
        "{line}"
    );
}

#[tokio::test]
async fn a_server_with_another_id_gets_no_byte() {
    let (red, green) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
    let impostor = Backend::tls_echo("impostor", red.identity("someone"), &green).await;
    let mut gateway = Gateway::new(green.identity("egress"));
    gateway.change(|c| {
        add_trust(c, "red", bundle(&[&red]));
        let mut import = cluster("import", &[impostor.address]);
        let server = ServerIds::OneOf(vec![red.id("ingress")]);
        import.tls = Some(upstream_tls("red", server, Some(SNI)));
        add_cluster(c, import);
        add_listener(c, plain("import"));
    });
    assert_eq!(call(gateway.address("in"), "secret").await, "");
    let line = &gateway.exactly(1).await[0];
    assert!(
        line.contains("upstream_certificate: wrong_identity"),
        "{line}"
    );
    assert_eq!(impostor.bytes(), 0);
    let label = "reason=\"wrong_identity\"";
    assert_eq!(gateway.counter("upstream_failures_total", &[label]), 1);
}

#[tokio::test]
async fn an_endpoint_without_a_sidecar_gets_plain_bytes() {
    let red = Mesh::new("red-mesh.local");
    let old = Backend::echo("old").await;
    let mut gateway = Gateway::new(red.identity("ingress"));
    gateway.change(|c| {
        add_trust(c, "own", bundle(&[&red]));
        let mut to = cluster("to", &[]);
        to.discovery = Discovery::Eds("to".into());
        to.tls = Some(upstream_tls(
            "own",
            ServerIds::AnyOf(red.domain.clone()),
            None,
        ));
        add_cluster(c, to);
        set_endpoints(c, "to", &[(0, old.address, false)]);
        add_listener(c, plain("to"));
    });
    assert_eq!(call(gateway.address("in"), "x").await, "old: x");
}

fn set_endpoints(config: &mut ProxyConfig, name: &str, list: &[(u32, SocketAddr, bool)]) {
    let localities = list
        .iter()
        .map(|(priority, address, mesh_tls)| LocalityEndpoints {
            locality: Locality::default(),
            priority: *priority,
            endpoints: vec![Endpoint {
                mesh_tls: *mesh_tls,
                ..Endpoint::new(*address)
            }],
        });
    let endpoints = Endpoints {
        name: name.into(),
        localities: localities.collect(),
    };
    config.endpoints.insert(name.into(), endpoints.into());
}

#[tokio::test]
async fn another_endpoint_is_tried_when_one_refuses() {
    let red = Mesh::new("red-mesh.local");
    let alive = Backend::echo("alive").await;
    let dead = [refusing_address(), refusing_address()];
    let mut gateway = Gateway::new(red.identity("ingress"));
    gateway.change(|c| {
        add_cluster(c, cluster("to", &[dead[0], alive.address, dead[1]]));
        add_listener(c, plain("to"));
    });
    for _ in 0..10 {
        assert_eq!(call(gateway.address("in"), "x").await, "alive: x");
    }
}

#[tokio::test]
async fn a_lower_priority_is_used_only_while_the_higher_fails() {
    let red = Mesh::new("red-mesh.local");
    let (near, far) = (Backend::echo("near").await, Backend::echo("far").await);
    let mut gateway = Gateway::new(red.identity("ingress"));
    let gone = refusing_address();
    gateway.change(|c| {
        let mut to = cluster("to", &[]);
        to.discovery = Discovery::Eds("to".into());
        add_cluster(c, to);
        set_endpoints(c, "to", &[(1, far.address, true), (0, gone, true)]);
        add_listener(c, plain("to"));
    });
    let to = gateway.address("in");
    assert_eq!(call(to, "x").await, "far: x");
    gateway.change(|c| {
        set_endpoints(c, "to", &[(1, far.address, true), (0, near.address, true)]);
    });
    assert_eq!(call(to, "x").await, "near: x");
    gateway.change(|c| set_endpoints(c, "to", &[]));
    assert_eq!(call(to, "x").await, "");
    let lines = gateway.exactly(3).await;
    assert!(lines[2].contains("end=no_endpoint"), "{}", lines[2]);
}

#[tokio::test]
async fn an_endpoint_that_keeps_failing_is_left_out_and_comes_back() {
    let red = Mesh::new("red-mesh.local");
    let good = Backend::echo("good").await;
    let net = LoopbackNet::lock();
    let bad = SocketAddr::from((net.address(1), 9080));
    let mut gateway = Gateway::new(red.identity("ingress"));
    gateway.change(|c| {
        let mut to = cluster("to", &[good.address, bad]);
        to.outlier = Some(OutlierDetection {
            consecutive_failures: 2,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_millis(300),
            max_ejection_percent: 50,
        });
        add_cluster(c, to);
        add_listener(c, plain("to"));
    });
    let to = gateway.address("in");
    for _ in 0..40 {
        assert_eq!(call(to, "x").await, "good: x");
    }
    // It comes back as soon as somebody listens there and its time is over.
    let revived = tokio::net::TcpListener::bind(bad).await.unwrap();
    eventually("a connection to the endpoint that is back", || async {
        drop(TcpStream::connect(to).await);
        tokio::time::timeout(Duration::from_millis(20), revived.accept())
            .await
            .ok()?
            .ok()
    })
    .await;
}

#[tokio::test]
async fn a_failed_connect_is_told_with_its_reason() {
    let red = Mesh::new("red-mesh.local");
    let mut gateway = Gateway::new(red.identity("ingress"));
    let gone = refusing_address();
    gateway.change(|c| {
        add_cluster(c, cluster("to", &[gone]));
        add_listener(c, plain("to"));
    });
    assert_eq!(call(gateway.address("in"), "x").await, "");
    let line = &gateway.exactly(1).await[0];
    assert!(line.contains("end=upstream_connect"), "{line}");
    assert!(line.contains(&format!("upstream={gone}")), "{line}");
}

#[tokio::test]
async fn names_are_resolved() {
    let red = Mesh::new("red-mesh.local");
    let local = Backend::echo("local").await;
    let mut gateway = Gateway::new(red.identity("ingress"));
    gateway.change(|c| {
        let mut to = cluster("to", &[]);
        to.discovery = Discovery::Dns(vec![("127.0.0.1".into(), local.address.port())]);
        add_cluster(c, to);
        add_listener(c, plain("to"));
    });
    let to = gateway.address("in");
    eventually("an answer", || async {
        Some(call(to, "x").await).filter(|a| a == "local: x")
    })
    .await;
}

#[tokio::test]
async fn the_end_of_one_direction_is_passed_on_and_the_other_goes_on() {
    let (red, green) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
    let backend = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = backend.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (mut socket, _) = backend.accept().await.unwrap();
        let mut all = Vec::new();
        socket.read_to_end(&mut all).await.unwrap();
        socket.write_all(&all).await.unwrap();
        all.len()
    });
    let mut gateway = Gateway::new(red.identity("ingress"));
    gateway.change(|c| {
        add_trust(c, "peer", bundle(&[&green]));
        add_cluster(c, cluster("to", &[address]));
        let target = TcpTarget::Cluster("to".into());
        add_listener(
            c,
            listener("in", vec![chain("all", vec![], tcp(target, None))]),
        );
    });
    let identity = Some(green.identity("egress"));
    let client = tls_connect(gateway.address("in"), Some("any.local"), identity, &red)
        .await
        .unwrap();
    let (mut reader, mut writer) = tokio::io::split(client);
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let sending = {
        let sent = sent.clone();
        tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
            writer
        })
    };
    let mut got = Vec::new();
    reader.read_to_end(&mut got).await.unwrap();
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    sending.await.unwrap();
    assert_eq!(served.await.unwrap(), sent.len());
    let line = &gateway.exactly(1).await[0];
    assert!(line.contains("received=3000000 sent=3000000"), "{line}");
    assert!(line.contains("end=complete"), "{line}");
}

#[tokio::test]
async fn a_connection_that_breaks_on_one_side_does_not_look_complete_on_the_other() {
    let red = Mesh::new("red-mesh.local");
    let backend = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = backend.local_addr().unwrap();
    let mut gateway = Gateway::new(red.identity("ingress"));
    gateway.change(|c| {
        add_cluster(c, cluster("to", &[address]));
        add_listener(c, plain("to"));
    });
    for client_breaks in [true, false] {
        let mut client = TcpStream::connect(gateway.address("in")).await.unwrap();
        let (mut server, _) = backend.accept().await.unwrap();
        client.write_all(b"half of").await.unwrap();
        let mut got = [0; 7];
        server.read_exact(&mut got).await.unwrap();
        let (broken, mut other) = match client_breaks {
            true => (client, server),
            false => (server, client),
        };
        broken.set_zero_linger().unwrap();
        drop(broken);
        let end = tokio::time::timeout(PATIENCE, other.read(&mut got)).await;
        let kind = end.unwrap().unwrap_err().kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
    }
    let lines = gateway.exactly(2).await;
    assert!(lines[0].contains("end=downstream_reset"), "{}", lines[0]);
    assert!(lines[1].contains("end=upstream_reset"), "{}", lines[1]);
}
