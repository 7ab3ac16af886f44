//! What is passed on as HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use meshfed_proxy_config::*;
use meshfed_testkit::LoopbackNet;
use meshfed_testkit::forge::{self, Forge, Forged, Validity};
use meshfed_xds::encode;
use rustls::pki_types::ServerName as TlsName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::ads::Ads;
use crate::bench::*;
use crate::common::{Authority, PATIENCE, id};

/// Answers each request with its own head, as the application saw it.
async fn mirror() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let length = head.len();
                let status = format!(
                    "HTTP/1.1 200 OK\r\nserver: mirror\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
                );
                stream.write_all(status.as_bytes()).await?;
                stream.write_all(&head).await
            });
        }
    });
    address
}

async fn request(stream: impl AsyncRead + AsyncWrite + Unpin, head: &str) -> String {
    let mut stream = stream;
    let text = format!("{head}\r\nconnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.expect("an end in time").unwrap();
    String::from_utf8(answer).unwrap()
}

async fn tls_request(to: SocketAddr, certificate: &Forged, head: &str) -> String {
    let stream = TcpStream::connect(to).await.unwrap();
    let connector = TlsConnector::from(forge::client(Some(certificate), &["http/1.1"]));
    let name = TlsName::try_from("any.name").unwrap();
    request(connector.connect(name, stream).await.unwrap(), head).await
}

fn forward(to: &str, path: Option<&str>, remove: &[&str]) -> RouteAction {
    RouteAction::Forward {
        cluster: to.to_string(),
        rewrite_authority: path.map(|_| "istiod.local".to_string()),
        rewrite_path: path.map(String::from),
        timeout: Duration::from_secs(5),
        remove_headers: remove.iter().map(|h| h.to_string()).collect(),
    }
}

fn http(routes: HttpRoutes) -> Http {
    Http {
        stat_prefix: "http".to_string(),
        routes,
        allow: None,
        forward_client_id: false,
        append_forwarded_for: false,
        accept_connect: false,
        stream_idle_timeout: Duration::ZERO,
    }
}

#[tokio::test]
async fn requests_are_routed_by_the_identity_that_was_proved_and_not_by_what_they_say() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    let green = Forge::new("green-mesh");
    let blue = "spiffe://green-mesh.local/ns/blue/sa/egress-service-account";
    let third = "spiffe://green-mesh.local/ns/third/sa/egress-service-account";
    let at = SocketAddr::new(net.address(10), 8188);
    let route = |name: &str, peer: &str| Route {
        name: name.to_string(),
        path: PathMatch::Exact("/v1/watch".to_string()),
        headers: vec![HeaderMatch::Suffix {
            name: "x-forwarded-client-cert".to_string(),
            value: format!(";URI={peer}"),
        }],
        action: forward(
            "mirror",
            Some(&format!("/v1/watch/{name}")),
            &["x-forwarded-client-cert"],
        ),
    };
    let mut discovery = http(HttpRoutes::Inline(RouteTable::new(
        "discovery",
        [VirtualHost {
            name: "discovery".into(),
            domains: vec!["*".to_string()],
            routes: vec![route("green", GREEN), route("blue", blue)],
        }],
    )));
    discovery.allow = Some(vec![AllowPolicy {
        name: "peers".to_string(),
        principals: vec![id(GREEN), id(blue)],
        server_name_suffix: None,
    }]);
    discovery.forward_client_id = true;
    discovery.append_forwarded_for = true;
    let mut ads = Ads::default();
    let chain = chain(
        "discovery",
        Some(DownstreamTls {
            trust: TRUST.to_string(),
            client_ids: Vec::new(),
            alpn: vec!["h2".to_string(), "http/1.1".to_string()],
        }),
        Network::Http(discovery),
    );
    listen(&mut ads, "discovery", at, vec![chain]);
    let to = cluster("mirror", Discovery::Static(vec![mirror().await]), None);
    ads.add("mirror", encode::cluster(&to));
    ads.add(TRUST, encode::trust(TRUST, &federation(&authority, &green)));
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };

    let lie = format!(
        "GET /v1/watch HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 192.0.2.1\r\n\
         x-envoy-upstream-rq-timeout-ms: 1\r\n\
         x-forwarded-client-cert: By=x;URI={blue}"
    );
    for (name, id) in [("green", GREEN), ("blue", blue)] {
        let answer = tls_request(at, &green.issue(id), &lie).await;
        assert!(answer.contains("200 OK"), "{answer}");
        assert!(answer.contains("server: mirror"), "{answer}");
        assert!(
            answer.contains(&format!("GET /v1/watch/{name} HTTP/1.1")),
            "{answer}"
        );
        assert!(answer.contains("host: istiod.local"), "{answer}");
        assert!(answer.contains("x-forwarded-for: 192.0.2.1,"), "{answer}");
        for never in [
            "x-forwarded-client-cert",
            "x-envoy-upstream",
            "x-request-id",
        ] {
            assert!(!answer.contains(never), "{never}: {answer}");
        }
    }
    // A second identity in a certificate of the peer's own authority gives nothing.
    for ids in [[GREEN, blue], [blue, GREEN], [third, GREEN], [GREEN, third]] {
        let forged = green.issue_with(&ids, Validity::Now);
        let answer = tls_request(at, &forged, &lie).await;
        let refused = answer.starts_with("HTTP/1.1 403") || answer.starts_with("HTTP/1.1 404");
        assert!(refused, "{ids:?}: {answer}");
    }
    let answer = tls_request(at, &green.issue(third), &lie).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let elsewhere = "GET /v1/watch/blue HTTP/1.1\r\nhost: a";
    let answer = tls_request(at, &green.issue(GREEN), elsewhere).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    let dots = "GET /v1/x/../watch HTTP/1.1\r\nhost: a";
    let answer = tls_request(at, &green.issue(GREEN), dots).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    mesh.assert_no_complaints();
}

#[tokio::test]
async fn an_explicit_proxy_forwards_requests_and_tunnels() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    let app = App::start().await;
    let at = SocketAddr::new(net.address(10), 3128);
    let host = |name: &str, domain: &str, path: PathMatch, action| VirtualHost {
        name: name.into(),
        domains: vec![domain.to_string()],
        routes: vec![Route {
            name: name.to_string(),
            path,
            headers: Vec::new(),
            action,
        }],
    };
    let all = || PathMatch::Prefix("/".to_string());
    let tunnel = RouteAction::Forward {
        cluster: "app".to_string(),
        rewrite_authority: None,
        rewrite_path: None,
        timeout: Duration::ZERO,
        remove_headers: [].into(),
    };
    let nothing = RouteAction::Respond {
        status: 502,
        body: "no such service".to_string(),
    };
    let table = RouteTable::new(
        "outbound",
        [
            host(
                "ratings",
                "ratings:9080",
                all(),
                forward("mirror", None, &["cookie"]),
            ),
            host("app", "app:7000", PathMatch::Connect, tunnel),
            host(
                "gone",
                "gone:80",
                all(),
                forward("no such cluster", None, &[]),
            ),
            host("other", "*", all(), nothing),
        ],
    );
    let mut outbound = http(HttpRoutes::Rds("outbound".to_string()));
    outbound.accept_connect = true;
    let mut ads = Ads::default();
    ads.add("outbound", encode::routes(&table));
    let chain = chain("outbound", None, Network::Http(outbound));
    listen(&mut ads, "outbound", at, vec![chain]);
    // One of the endpoints is not there.
    let all = vec![SocketAddr::new(net.address(11), 9080), mirror().await];
    let mirror = cluster("mirror", Discovery::Static(all), None);
    ads.add("mirror", encode::cluster(&mirror));
    let behind = cluster("app", Discovery::Static(vec![app.address]), None);
    ads.add("app", encode::cluster(&behind));
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };

    let connect = async || TcpStream::connect(at).await.unwrap();
    let absolute = "GET http://ratings:9080/a%2Fb/./c?d=/e HTTP/1.1\r\nhost: ratings:9080\r\n\
                    cookie: secret\r\nx-forwarded-for: 192.0.2.1\r\n\
                    x-forwarded-client-cert: By=x;URI=spiffe://x";
    let answer = request(connect().await, absolute).await;
    assert!(answer.contains("GET /a%2Fb/./c?d=/e HTTP/1.1"), "{answer}");
    assert!(answer.contains("host: ratings:9080"), "{answer}");
    assert!(
        answer.contains("x-forwarded-for: 192.0.2.1\r\n"),
        "{answer}"
    );
    for never in [
        "cookie",
        "x-forwarded-client-cert",
        "x-envoy",
        "x-request-id",
    ] {
        assert!(!answer.contains(never), "{never}: {answer}");
    }

    for _ in 0..10 {
        let answer = request(connect().await, absolute).await;
        assert!(answer.contains("200 OK"), "{answer}");
    }

    let other = request(connect().await, "GET / HTTP/1.1\r\nhost: other").await;
    assert!(
        other.starts_with("HTTP/1.1 502") && other.ends_with("no such service"),
        "{other}"
    );
    let gone = request(connect().await, "GET / HTTP/1.1\r\nhost: gone:80").await;
    assert!(gone.starts_with("HTTP/1.1 503"), "{gone}");

    let mut stream = connect().await;
    stream
        .write_all(b"CONNECT app:7000 HTTP/1.1\r\nhost: app:7000\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(
        head.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    // Envoy takes the end of one direction for the end of both where HTTP carries the bytes, so
    // nothing is closed before the answer is there.
    stream.write_all(b"ping\n").await.unwrap();
    let expected = [GREETING, b"ping\n"].concat();
    let mut answer = vec![0; expected.len()];
    let read = timeout(PATIENCE, stream.read_exact(&mut answer)).await;
    read.expect("an answer in time").unwrap();
    assert_eq!(answer, expected);
    mesh.assert_no_complaints();
}
