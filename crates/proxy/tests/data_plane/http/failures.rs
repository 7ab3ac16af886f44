//! What fails or is refused, and how it is told.

use super::*;

#[tokio::test]
async fn a_client_certificate_that_is_not_trusted_fails_before_http() {
    let (red, green) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
    let server = Server::new().await;
    let mut gateway = Gateway::new(red.identity("ingress"));
    gateway.change(|c| {
        add_trust(c, "peer", bundle(&[&green]));
        add_cluster(c, cluster("up", &[server.address]));
        add_listener(
            c,
            listener(
                "in",
                vec![chain("http", vec![], Network::Http(http(all_to("up"))))],
            ),
        );
    });
    let forged = Mesh::new("evil.local").sign(&green.id("egress"));
    for (identity, why) in [(None, "no_certificate"), (Some(forged), "unknown_ca")] {
        let before = gateway.lines().len();
        if let Ok(mut stream) = tls_connect(gateway.address("in"), None, identity, &red).await {
            let _ = ask(&mut stream, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        }
        let line = gateway.exactly(before + 1).await.pop().unwrap();
        assert!(line.contains(why), "{line}");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn failures_have_their_status_flag_and_reason() {
    let gone = refusing_address();
    let mut routes = vec![
        forward(PathMatch::Exact("/gone".into()), "gone"),
        forward(PathMatch::Exact("/missing".into()), "missing"),
        forward(PathMatch::Exact("/empty".into()), "empty"),
        forward(PathMatch::Exact("/never".into()), "up"),
        Route {
            name: "fixed".into(),
            path: PathMatch::Exact("/fixed".into()),
            headers: vec![],
            action: RouteAction::Respond {
                status: 418,
                body: "teapot".into(),
            },
        },
    ];
    if let RouteAction::Forward { timeout, .. } = &mut routes[3].action {
        *timeout = Duration::from_millis(50);
    }
    let mut scene = Scene::new(http(routes)).await;
    scene.gateway.change(|c| {
        add_cluster(c, cluster("gone", &[gone]));
        add_cluster(c, cluster("empty", &[]));
    });
    for (path, status, flag, end) in [
        ("/gone", 503, "UF", "upstream_connect"),
        ("/missing", 503, "NC", "no_cluster"),
        ("/empty", 503, "UH", "no_endpoint"),
        ("/never", 504, "UT", "response_timeout"),
        ("/nowhere", 404, "NR", "no_route"),
        ("/fixed", 418, "-", "complete"),
    ] {
        let before = scene.gateway.lines().len();
        let response = h1(scene.to()).await.send_request(get(path)).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(response.headers()[ANSWERED], ANSWERED_HERE, "{path}");
        let line = scene.gateway.exactly(before + 1).await.pop().unwrap();
        let flags = format!("status={status} flags={flag} ");
        assert!(
            line.contains(&flags) && line.ends_with(&format!("end={end}")),
            "{line}"
        );
    }
}

#[tokio::test]
async fn whose_answer_it_is_no_upstream_can_say() {
    let scene = Scene::new(http(all_to("up"))).await;
    for (path, said) in [
        ("/liar", None),
        ("/fail", None),
        ("/away", Some(ANSWERED_BEYOND)),
    ] {
        let response = h1(scene.to()).await.send_request(get(path)).await.unwrap();
        let answered = response.headers().get(ANSWERED);
        assert_eq!(answered.map(|a| a.to_str().unwrap()), said, "{path}");
    }
}

#[tokio::test]
async fn a_request_without_host_and_a_connect_where_none_is_accepted_are_refused() {
    let scene = Scene::new(http(all_to("up"))).await;
    let answer = scene
        .raw("GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let answer = scene
        .raw("CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert_eq!(scene.server.connections(), 0);
}

#[tokio::test]
async fn what_is_no_http_or_too_large_is_refused_and_logged_once() {
    let scene = Scene::new(http(all_to("up"))).await;
    let answer = scene.raw("\x16\x03\x01 nonsense\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let line = &scene.gateway.exactly(1).await[0];
    assert!(line.contains("end=bad_request"), "{line}");
    let mut stream = TcpStream::connect(scene.to()).await.unwrap();
    let head = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX-Big: {}\r\n\r\n",
        "x".repeat(200_000)
    );
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    scene.gateway.exactly(2).await;
    assert_eq!(scene.server.connections(), 0);
}

#[tokio::test]
async fn a_head_that_does_not_get_on_ends_the_connection_and_rest_between_requests_does_not() {
    let scene = Scene::new(http(all_to("up"))).await;
    let mut stream = TcpStream::connect(scene.to()).await.unwrap();
    let request = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut answer = vec![0; 4096];
    for _ in 0..3 {
        stream.write_all(request).await.unwrap();
        assert_ne!(stream.read(&mut answer).await.unwrap(), 0);
        // Much longer than a head may take. The clock leaps only while nothing is under way.
        tokio::time::pause();
        tokio::time::sleep(Duration::from_secs(300)).await;
        tokio::time::resume();
    }
    stream.write_all(&request[..20]).await.unwrap();
    let began = tokio::time::Instant::now();
    assert_eq!(stream.read(&mut answer).await.unwrap_or(0), 0);
    // Ten seconds and what it takes to look; far less than the rest before.
    let taken = began.elapsed().as_secs();
    assert!((9..=60).contains(&taken), "{taken}");
}
