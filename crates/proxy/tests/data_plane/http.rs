//! Listeners that route HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use meshfed_proxy_config::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::*;

mod connections;
mod failures;
type Body = BoxBody<Bytes, Infallible>;

/// An HTTP server that tells what it was asked.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// Sends an event to everybody who watches.
    events: Arc<std::sync::Mutex<Vec<mpsc::UnboundedSender<Bytes>>>>,
    open: Arc<std::sync::Mutex<JoinSet<()>>>,
}

impl Server {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            events: Arc::default(),
            open: Arc::default(),
        };
        let (connections, events) = (server.connections.clone(), server.events.clone());
        let open = server.open.clone();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let events = events.clone();
                open.lock().unwrap().spawn(async move {
                    let service = service_fn(move |r| answer(r, events.clone()));
                    let io = TokioIo::new(socket);
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service)
                        .await;
                });
            }
        });
        server
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    async fn tell(&self, event: &'static str) {
        let events = eventually("a watcher", || async {
            Some(self.events.lock().unwrap().clone()).filter(|e| !e.is_empty())
        })
        .await;
        for watcher in events {
            let _ = watcher.unbounded_send(Bytes::from_static(event.as_bytes()));
        }
    }

    fn close_connections(&self) {
        self.open.lock().unwrap().abort_all();
    }

    fn end_watches(&self) {
        self.events.lock().unwrap().clear();
    }
}

async fn answer(
    request: Request<Incoming>,
    events: Arc<std::sync::Mutex<Vec<mpsc::UnboundedSender<Bytes>>>>,
) -> Result<Response<Body>, Infallible> {
    Ok(match request.uri().path() {
        "/watch" => {
            let (sender, receiver) = mpsc::unbounded();
            events.lock().unwrap().push(sender);
            Response::new(BodyExt::boxed(StreamBody::new(
                receiver.map(|b| Ok(Frame::data(b))),
            )))
        }
        "/never" => std::future::pending().await,
        "/echo" => {
            let body = request.into_body().into_data_stream();
            let frames = body.map(|b| Ok(Frame::data(b.unwrap_or_default())));
            Response::new(BodyExt::boxed(StreamBody::new(
                Box::pin(frames) as std::pin::Pin<Box<dyn futures::Stream<Item = _> + Send + Sync>>
            )))
        }
        "/fail" => {
            let mut response = Response::new(Full::from("failed").boxed());
            *response.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
        path @ ("/liar" | "/away") => {
            let mut response = Response::new(Full::from("away").boxed());
            let said = ANSWERED_HERE.parse().unwrap();
            response.headers_mut().insert(ANSWERED, said);
            if path == "/away" {
                *response.status_mut() = hyper::StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        }
        _ => {
            let mut text = format!(
                "{} {} {:?}\n",
                request.method(),
                request.uri(),
                request.version()
            );
            for (name, value) in request.headers() {
                text += &format!("{name}: {}\n", value.to_str().unwrap());
            }
            let mut response = Response::new(Full::from(text).boxed());
            response
                .headers_mut()
                .insert("keep-alive", "timeout=1".parse().unwrap());
            response
        }
    })
}

fn forward(path: PathMatch, cluster: &str) -> Route {
    Route {
        name: format!("to-{cluster}"),
        path,
        headers: vec![],
        action: RouteAction::Forward {
            cluster: cluster.into(),
            rewrite_authority: None,
            rewrite_path: None,
            timeout: Duration::ZERO,
            remove_headers: [].into(),
        },
    }
}

fn all_to(cluster: &str) -> Vec<Route> {
    vec![forward(PathMatch::Prefix("/".into()), cluster)]
}

fn http(routes: Vec<Route>) -> Http {
    Http {
        stat_prefix: "test".into(),
        routes: HttpRoutes::Inline(RouteTable::new(
            "inline",
            [VirtualHost {
                name: "any".into(),
                domains: vec!["*".into()],
                routes,
            }],
        )),
        allow: None,
        forward_client_id: false,
        append_forwarded_for: false,
        accept_connect: false,
        stream_idle_timeout: Duration::ZERO,
    }
}

fn plain(http: Http) -> Listener {
    let mut chain = chain("http", vec![], Network::Http(http));
    chain.tls = None;
    listener("in", vec![chain])
}

/// A plain HTTP proxy in front of one server.
struct Scene {
    red: Mesh,
    gateway: Gateway,
    server: Server,
}

impl Scene {
    async fn new(http: Http) -> Self {
        let red = Mesh::new("red-mesh.local");
        let server = Server::new().await;
        let mut gateway = Gateway::new(red.identity("proxy"));
        gateway.change(|c| {
            add_cluster(c, cluster("up", &[server.address]));
            add_listener(c, plain(http));
        });
        Self {
            red,
            gateway,
            server,
        }
    }

    fn to(&self) -> SocketAddr {
        self.gateway.address("in")
    }

    async fn raw(&self, request: &str) -> String {
        raw(self.to(), request).await
    }
}

/// Sends text and gives the whole answer; the request has to ask for the connection's end.
async fn raw(to: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("an end")
        .unwrap();
    String::from_utf8(answer).unwrap()
}

async fn h1(to: SocketAddr) -> http1::SendRequest<Full<Bytes>> {
    let socket = TcpStream::connect(to).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .uri(path)
        .header("host", "test")
        .body(Full::default())
        .unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn a_request_is_rewritten_as_its_route_says_and_its_hop_headers_end_here() {
    let mut route = forward(PathMatch::Prefix("/v1/".into()), "up");
    route.action = RouteAction::Forward {
        cluster: "up".into(),
        rewrite_authority: Some("discovery.red.local".into()),
        rewrite_path: Some("/v2/red/".into()),
        timeout: Duration::ZERO,
        remove_headers: ["x-caller".to_owned()].into(),
    };
    let mut config = http(vec![route]);
    config.append_forwarded_for = true;
    let scene = Scene::new(config).await;
    let answer = scene
        .raw(
            "GET /v1/services/?a=b HTTP/1.1\r\nHost: egress:8188\r\nConnection: close, x-hop\r\n\
             X-Hop: 1\r\nX-Caller: me\r\nX-Forwarded-For: 9.9.9.9\r\nX-Kept: yes\r\n\
             X-Forwarded-Client-Cert: URI=spiffe://evil/ns/a/sa/b\r\n\r\n",
        )
        .await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(!head.contains("keep-alive"), "{head}");
    let mut lines: Vec<_> = body.lines().collect();
    lines[1..].sort_unstable();
    assert_eq!(
        lines,
        [
            "GET /v2/red/services/?a=b HTTP/1.1",
            "host: discovery.red.local",
            "x-forwarded-for: 9.9.9.9, 127.0.0.1",
            "x-kept: yes",
        ]
    );
    let line = &scene.gateway.exactly(1).await[0];
    for part in [
        "method=GET authority=egress:8188 path=/v1/services/?a=b status=200 flags=- route=to-up",
        "cluster=up",
        "end=complete",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[tokio::test]
async fn the_absolute_form_of_an_explicit_proxys_client_goes_on_in_origin_form() {
    let scene = Scene::new(http(all_to("up"))).await;
    let answer = scene
        .raw(
            "GET http://ratings.local:9080/ratings/0 HTTP/1.1\r\nHost: other\r\n\
             Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\nConnection: close\r\n\r\n",
        )
        .await;
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(body, "GET /ratings/0 HTTP/1.1\nhost: ratings.local:9080\n");
}

#[tokio::test]
async fn the_clients_id_is_told_and_routed_on_and_a_client_without_permission_gets_403() {
    let (red, green) = (Mesh::new("red-mesh.local"), Mesh::new("green-mesh.local"));
    let server = Server::new().await;
    let mut gateway = Gateway::new(red.identity("ingress"));
    gateway.change(|c| {
        add_trust(c, "peer", bundle(&[&green]));
        add_cluster(c, cluster("up", &[server.address]));
        let mut route = forward(PathMatch::Exact("/v1/watch".into()), "up");
        route.headers = vec![HeaderMatch::Suffix {
            name: "x-forwarded-client-cert".into(),
            value: format!(";URI={}", green.id("egress")),
        }];
        let mut config = http(vec![route]);
        config.forward_client_id = true;
        config.allow = Some(vec![allow("egress", &[green.id("egress")])]);
        let mut chain = chain("http", vec![], Network::Http(config));
        chain.tls = Some(DownstreamTls {
            alpn: vec!["h2".into(), "http/1.1".into()],
            ..tls("peer", &[])
        });
        add_listener(c, listener("in", vec![chain]));
    });
    let ask_as = |account: &'static str, path: &'static str| {
        let (to, identity, red) = (gateway.address("in"), green.identity(account), &red);
        async move {
            let mut stream = tls_connect_alpn(to, None, Some(identity), red, &["http/1.1"])
                .await
                .unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                 X-Forwarded-Client-Cert: By=;URI=spiffe://evil/ns/a/sa/b\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            answer
        }
    };
    let answer = ask_as("egress", "/v1/watch").await;
    assert!(
        answer.contains(
            "x-forwarded-client-cert: By=spiffe://red-mesh.local/ns/ns/sa/ingress;\
         URI=spiffe://green-mesh.local/ns/ns/sa/egress\n"
        ),
        "{answer}"
    );
    let answer = ask_as("egress", "/other").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    let connections = server.connections();
    let answer = ask_as("other", "/v1/watch").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(server.connections(), connections);
    let lines = gateway.exactly(3).await;
    assert!(lines[0].contains("policy=egress"), "{}", lines[0]);
    assert!(
        lines[1].contains("flags=NR") && lines[1].contains("end=no_route"),
        "{}",
        lines[1]
    );
    assert!(
        lines[2].contains("status=403") && lines[2].contains("end=not_allowed"),
        "{}",
        lines[2]
    );
    assert_eq!(
        gateway.counter("refused_total", &["reason=\"not_allowed\""]),
        1
    );
    assert_eq!(
        gateway.counter("http_requests_total", &["status=\"403\""]),
        1
    );
}

#[tokio::test]
async fn a_watch_stays_open_and_each_event_arrives_at_once_over_both_versions() {
    let scene = Scene::new(http(all_to("up"))).await;
    for http2 in [false, true] {
        let response = if http2 {
            let socket = TcpStream::connect(scene.to()).await.unwrap();
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(socket))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            sender.send_request(get("http://test/watch")).await.unwrap()
        } else {
            h1(scene.to())
                .await
                .send_request(get("/watch"))
                .await
                .unwrap()
        };
        let mut body = response.into_body();
        for event in ["first\r\n", "second\r\n"] {
            scene.server.tell(event).await;
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap();
            assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), event);
        }
        scene.server.end_watches();
        let rest = tokio::time::timeout(PATIENCE, body.collect())
            .await
            .unwrap();
        assert_eq!(rest.unwrap().to_bytes(), "");
    }
    let lines = scene.gateway.exactly(2).await;
    assert!(lines[1].contains("received=0 sent=15"), "{}", lines[1]);
}

#[tokio::test]
async fn a_watch_that_the_client_leaves_ends_upstream_too() {
    let scene = Scene::new(http(all_to("up"))).await;
    let response = h1(scene.to())
        .await
        .send_request(get("/watch"))
        .await
        .unwrap();
    scene.server.tell("event").await;
    drop(response);
    let line = &scene.gateway.exactly(1).await[0];
    assert!(line.contains("end=downstream_reset"), "{line}");
    eventually("the server to notice", || async {
        let events = scene.server.events.lock().unwrap();
        events
            .iter()
            .all(mpsc::UnboundedSender::is_closed)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn bodies_stream_through_in_both_directions() {
    let scene = Scene::new(http(all_to("up"))).await;
    let mut sender = h1(scene.to()).await;
    let big = Bytes::from(vec![b'x'; 5_000_000]);
    let request = Request::post("/echo")
        .header("host", "x")
        .body(Full::new(big.clone()))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let back = response.into_body().collect().await.unwrap().to_bytes();
    assert!(back == big);
    let line = &scene.gateway.exactly(1).await[0];
    assert!(line.contains("received=5000000 sent=5000000"), "{line}");
}

#[tokio::test]
async fn an_http2_upstream_gets_scheme_and_authority() {
    let mut scene = Scene::new(http(all_to("up"))).await;
    let address = scene.server.address;
    scene.gateway.change(|c| {
        let mut up = cluster("up", &[address]);
        up.protocol = UpstreamProtocol::Http2;
        add_cluster(c, up);
    });
    let mut sender = h1(scene.to()).await;
    let first = sender.send_request(get("/x?y")).await.unwrap();
    assert_eq!(text(first).await, "GET http://test/x?y HTTP/2.0\n");
    sender.ready().await.unwrap();
    text(sender.send_request(get("/x")).await.unwrap()).await;
    assert_eq!(scene.server.connections(), 1);
}
