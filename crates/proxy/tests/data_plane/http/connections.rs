//! Connections: kept, renewed, drained and ended.

use super::*;

#[tokio::test]
async fn upstream_connections_are_used_again() {
    let scene = Scene::new(http(all_to("up"))).await;
    let mut sender = h1(scene.to()).await;
    for _ in 0..20 {
        sender.ready().await.unwrap();
        let response = sender.send_request(get("/x")).await.unwrap();
        assert_eq!(response.status(), 200);
        text(response).await;
    }
    assert!(
        scene.server.connections() <= 3,
        "{}",
        scene.server.connections()
    );
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closed_costs_no_request() {
    let scene = Scene::new(http(all_to("up"))).await;
    let mut sender = h1(scene.to()).await;
    for _ in 0..3 {
        sender.ready().await.unwrap();
        let response = sender.send_request(get("/x")).await.unwrap();
        assert_eq!(response.status(), 200);
        text(response).await;
        scene.server.close_connections();
    }
}

#[tokio::test]
async fn a_watch_ends_when_its_client_is_admitted_no_more_and_another_one_goes_on() {
    let (red, green) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
    let server = Server::new().await;
    let discovery = |accounts: &[&str]| {
        let ids: Vec<_> = accounts.iter().map(|a| green.id(a)).collect();
        let mut config = http(all_to("up"));
        config.allow = Some(vec![allow("clients", &ids)]);
        listener("in", vec![chain("http", vec![], Network::Http(config))])
    };
    let mut gateway = Gateway::new(red.identity("ingress"));
    gateway.change(|c| {
        add_trust(c, "peer", bundle(&[&green]));
        add_cluster(c, cluster("up", &[server.address]));
        add_listener(c, discovery(&["first", "second"]));
    });
    let to = gateway.address("in");
    let mut streams = Vec::new();
    for account in ["first", "second"] {
        let identity = Some(green.identity(account));
        let mut stream = tls_connect(to, None, identity, &red).await.unwrap();
        let request = b"GET /watch HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0);
        }
        streams.push(stream);
    }
    gateway.change(|c| add_listener(c, discovery(&["second"])));
    let mut rest = Vec::new();
    let end = tokio::time::timeout(PATIENCE, streams[0].read_to_end(&mut rest));
    let _ = end.await.expect("cut");
    assert_eq!(rest, b"");
    let line = &gateway.exactly(1).await[0];
    assert!(line.contains("path=/watch status=200"), "{line}");
    assert!(line.contains("end=no_longer_allowed"), "{line}");
    server.tell("news").await;
    while !rest.windows(4).any(|w| w == b"news") {
        assert_ne!(streams[1].read_buf(&mut rest).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn connect_opens_a_tunnel_that_drains_with_its_cluster() {
    let red = Mesh::new("red-mesh.local");
    let far = Backend::tls_echo("far", red.identity("egress"), &red).await;
    let mut config = http(vec![forward(PathMatch::Connect, "import")]);
    config.accept_connect = true;
    let mut scene = Scene::new(config).await;
    scene.gateway.identity.set(red.identity("proxy"));
    scene.gateway.change(|c| {
        add_trust(c, "own", bundle(&[&red]));
        let mut import = cluster("import", &[far.address]);
        let server = ServerIds::OneOf(vec![red.id("egress")]);
        import.tls = Some(upstream_tls(
            "own",
            server,
            Some("outbound_.9080_._.ratings.local"),
        ));
        add_cluster(c, import);
    });
    let mut stream = TcpStream::connect(scene.to()).await.unwrap();
    stream
        .write_all(b"CONNECT ratings.local:9080 HTTP/1.1\r\nHost: ratings.local:9080\r\n\r\n")
        .await
        .unwrap();
    let mut answer = vec![0; 4096];
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\nfar: ") {
        let n = stream.read(&mut answer).await.unwrap();
        assert_ne!(n, 0, "{}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&answer[..n]);
    }
    assert!(got.starts_with(b"HTTP/1.1 200"));
    stream.write_all(b"ping").await.unwrap();
    stream.read_exact(&mut answer[..4]).await.unwrap();
    assert_eq!(&answer[..4], b"ping");
    scene.gateway.change(|c| {
        c.clusters.remove("import");
    });
    let end = tokio::time::timeout(PATIENCE, stream.read(&mut answer))
        .await
        .unwrap();
    assert!(matches!(end, Ok(0) | Err(_)));
    let line = &scene.gateway.exactly(1).await[0];
    assert!(
        line.contains("method=CONNECT authority=ratings.local:9080"),
        "{line}"
    );
    assert!(
        line.contains("upstream_peer=spiffe://red-mesh.local/ns/ns/sa/egress"),
        "{line}"
    );
    assert!(line.contains("end=drained"), "{line}");
    drop(scene.red);
}

#[tokio::test]
async fn a_new_certificate_or_trust_makes_new_upstream_connections() {
    let (red, green) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
    // A TLS terminator in front of the server, which counts connections.
    let server = Server::new().await;
    let mut far = Gateway::new(red.identity("ingress"));
    far.change(|c| {
        add_trust(c, "peer", bundle(&[&green]));
        add_cluster(c, cluster("server", &[server.address]));
        let network = tcp(TcpTarget::Cluster("server".into()), None);
        add_listener(c, listener("in", vec![chain("all", vec![], network)]));
    });
    let mut near = Gateway::new(green.identity("egress"));
    let far_address = far.address("in");
    near.change(|c| {
        add_trust(c, "red", bundle(&[&red]));
        let mut up = cluster("up", &[far_address]);
        up.tls = Some(upstream_tls(
            "red",
            ServerIds::AnyOf(red.domain.clone()),
            None,
        ));
        add_cluster(c, up);
        add_listener(c, plain(http(all_to("up"))));
    });
    let mut sender = h1(near.address("in")).await;
    let mut call = async || {
        sender.ready().await.unwrap();
        let response = sender.send_request(get("/x")).await.unwrap();
        assert_eq!(response.status(), 200);
        text(response).await;
    };
    call().await;
    call().await;
    let accepted = || far.counter("connections_accepted_total", &[]);
    let first = accepted();
    near.identity.set(green.identity("egress"));
    call().await;
    assert_eq!(accepted(), first + 1);
    let other = Mesh::new("blue-mesh.local");
    near.change(|c| add_trust(c, "red", bundle(&[&red, &other])));
    call().await;
    assert_eq!(accepted(), first + 2);
}

#[tokio::test]
async fn routes_that_arrive_by_name_apply_to_connections_that_are_open() {
    let mut config = http(vec![]);
    config.routes = HttpRoutes::Rds("table".into());
    let mut scene = Scene::new(config).await;
    let mut sender = h1(scene.to()).await;
    let mut status = async || {
        sender.ready().await.unwrap();
        let response = sender.send_request(get("/x")).await.unwrap();
        let status = response.status().as_u16();
        text(response).await;
        status
    };
    assert_eq!(status().await, 503);
    scene.gateway.change(|c| {
        let host = VirtualHost {
            name: "test".into(),
            domains: vec!["test".into()],
            routes: all_to("up"),
        };
        let table = RouteTable::new("table", [host]);
        c.routes.insert("table".into(), table.into());
    });
    assert_eq!(status().await, 200);
    scene.gateway.change(|c| {
        let empty = RouteTable::new("table", []);
        c.routes.insert("table".into(), empty.into());
    });
    assert_eq!(status().await, 404);
}

#[tokio::test]
async fn a_drain_lets_the_request_in_flight_finish_and_then_closes_the_connection() {
    let scene = Scene::new(http(all_to("up"))).await;
    let mut sender = h1(scene.to()).await;
    let response = sender.send_request(get("/watch")).await.unwrap();
    let stopping = tokio::spawn(scene.gateway.engine.stop(PATIENCE));
    let mut body = response.into_body();
    scene.server.tell("last").await;
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "last"
    );
    assert!(!stopping.is_finished());
    scene.server.end_watches();
    assert!(body.frame().await.is_none());
    stopping.await.unwrap();
    assert!(sender.ready().await.is_err());
}
