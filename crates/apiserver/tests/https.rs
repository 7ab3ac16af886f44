//! What the network may and may not do.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{
    HandClock,
    https::{HttpsServer, Identity},
};
use http::{HeaderMap, Method, Request, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use meshfed_apiserver::{Limits, TokenError, View};
use rcgen::ExtendedKeyUsagePurpose as Purpose;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

async fn connect(
    s: &HttpsServer,
    identity: Option<&Identity>,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(s.authority.root_pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain(), identity.key())
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(s.url.trim_start_matches("https://")).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

struct Answer {
    code: StatusCode,
    headers: HeaderMap,
    body: Value,
}

/// One request over HTTP/2.
async fn ask(
    s: &HttpsServer,
    identity: Option<&Identity>,
    token: Option<&str>,
    method: Method,
    path: &str,
) -> Answer {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers = bearer
        .iter()
        .map(|bearer| ("authorization", bearer.as_str()));
    ask_with(s, identity, &headers.collect::<Vec<_>>(), method, path).await
}

async fn ask_with(
    s: &HttpsServer,
    identity: Option<&Identity>,
    headers: &[(&str, &str)],
    method: Method,
    path: &str,
) -> Answer {
    let stream = connect(s, identity, &[b"h2"]).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .version(Version::HTTP_2)
        .uri(format!("{}{path}", s.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender
        .send_request(request.body(Full::<bytes::Bytes>::default()).unwrap())
        .await
        .unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body =
        serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
    Answer {
        code: parts.status,
        headers: parts.headers,
        body,
    }
}

#[tokio::test]
async fn only_an_administrators_certificate_opens_the_api() {
    let s = HttpsServer::start(|_| {}).await;
    let path = "/api/v1/namespaces";
    let admin = s.authority.admin();
    assert_eq!(
        ask(&s, Some(&admin), None, Method::GET, path).await.code,
        200
    );
    let workload = ["spiffe://test.local/ns/a/sa/b"];
    for (what, identity) in [
        ("none", None),
        (
            "a workload's",
            Some(s.authority.client("a", &workload, Purpose::ClientAuth)),
        ),
        (
            "a workload's that says that it is an administrator",
            Some(
                s.authority
                    .client("system:masters", &workload, Purpose::ClientAuth),
            ),
        ),
        (
            "another organisation's",
            Some(s.authority.client("system:nodes", &[], Purpose::ClientAuth)),
        ),
    ] {
        let answer = ask(&s, identity.as_ref(), None, Method::GET, path).await;
        assert_eq!(answer.code, 401, "{what}");
        assert_eq!(answer.body["reason"], "Unauthorized", "{what}");
        assert!(
            answer.headers.contains_key(header::WWW_AUTHENTICATE),
            "{what}"
        );
    }
    for open in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(
            ask(&s, None, None, Method::GET, open).await.code,
            200,
            "{open}"
        );
    }
    for closed in [
        "/",
        "/api",
        "/apis",
        "/openapi/v3",
        "/metrics",
        "/healthz/../api",
    ] {
        assert_eq!(
            ask(&s, None, None, Method::GET, closed).await.code,
            401,
            "{closed}"
        );
    }
    s.stop().await;
}

fn view(text: &'static str) -> View {
    View {
        group: "view.example.com",
        version: "v1",
        plural: "sights",
        document: Arc::new(move || (!text.is_empty()).then(|| text.into())),
    }
}

#[tokio::test]
async fn a_view_is_read_by_administrators_alone_and_is_no_resource() {
    let s = HttpsServer::start(|_| {}).await;
    let path = "/apis/view.example.com/v1/sights";
    let admin = s.authority.admin();
    let look = async |identity, method| ask(&s, identity, None, method, path).await;
    assert_eq!(look(Some(&admin), Method::GET).await.code, 404);
    assert!(s.server.serve_view(view(r#"{"seen": 1}"#)));
    assert!(!s.server.serve_view(view("{}")), "there is one already");
    let seen = look(Some(&admin), Method::GET).await;
    assert_eq!(seen.code, 200);
    assert_eq!(seen.headers[header::CONTENT_TYPE], "application/json");
    assert_eq!(seen.body["seen"], 1);
    assert_eq!(look(None, Method::GET).await.code, 401);
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        assert_eq!(look(Some(&admin), method).await.code, 405);
    }
    for below in ["/one", "/../sights/one"] {
        let answer = ask(
            &s,
            Some(&admin),
            None,
            Method::GET,
            &format!("{path}{below}"),
        )
        .await;
        assert_ne!(answer.code, 200, "{below}");
    }
    let groups = ask(&s, Some(&admin), None, Method::GET, "/apis").await;
    assert!(!groups.body.to_string().contains("view.example.com"));

    let s = HttpsServer::start(|_| {}).await;
    s.server.serve_view(view(""));
    let answer = ask(&s, Some(&s.authority.admin()), None, Method::GET, path).await;
    assert_eq!(answer.code, 503, "there is nothing to see yet");
}

#[tokio::test]
async fn nobody_acts_as_somebody_else() {
    let s = HttpsServer::start(|_| {}).await;
    let admin = s.authority.admin();
    for header in [
        "Impersonate-User",
        "Impersonate-Group",
        "impersonate-extra-scopes",
    ] {
        for (method, path) in [
            (Method::DELETE, "/api/v1/namespaces/default/configmaps/a"),
            (Method::GET, "/api/v1/namespaces"),
            (Method::GET, "/apis"),
        ] {
            let headers = [(header, "bob")];
            let answer = ask_with(&s, Some(&admin), &headers, method, path).await;
            assert_eq!(answer.code, 403, "{header} {path}");
            let message = answer.body["message"].as_str().unwrap();
            assert!(
                message.starts_with("impersonation is not supported"),
                "{message}"
            );
        }
    }
    let headers = [("Impersonate-User", "bob")];
    let stranger = ask_with(&s, None, &headers, Method::GET, "/api/v1/namespaces").await;
    assert_eq!(stranger.code, 401);
    s.stop().await;
}

#[tokio::test]
async fn writes_from_outside_are_told_with_who_made_them_and_our_own_are_not() {
    let s = HttpsServer::start(|_| {}).await;
    let (told, mut reports) = tokio::sync::mpsc::unbounded_channel();
    assert!(
        s.server
            .report_writes(move |report| told.send(report).unwrap())
    );
    assert!(!s.server.report_writes(drop), "somebody listens already");
    let inside = Client::new(s.server.service(), "default");
    let maps: Api<ConfigMap> = Api::default_namespaced(inside);
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some("a".to_owned()),
            finalizers: Some(vec!["example.com/held".to_owned()]),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    };
    maps.create(&PostParams::default(), &map).await.unwrap();
    let admin = s.authority.admin();
    let path = "/api/v1/namespaces/default/configmaps/a";
    let delete = async |query: &str| {
        let path = format!("{path}{query}");
        ask(&s, Some(&admin), None, Method::DELETE, &path).await
    };
    assert_eq!(delete("?dryRun=All").await.code, 200);
    assert_eq!(delete("").await.code, 200);
    let report = reports.try_recv().unwrap();
    assert_eq!(
        (report.verb, report.kind.as_str(), report.name.as_str()),
        ("delete", "ConfigMap", "a")
    );
    assert_eq!(report.namespace, "default");
    assert!(report.groups.contains(&"system:masters".to_owned()));
    let stored = maps.get("a").await.unwrap().metadata;
    assert_eq!(
        Some(report.revision.to_string()),
        stored.resource_version.clone()
    );
    assert_eq!(Some(report.uid), stored.uid);
    assert_eq!(delete("").await.code, 200);
    assert!(
        reports.try_recv().is_err(),
        "what wrote nothing, or was ours, is not told"
    );
}

#[tokio::test]
async fn certificates_of_another_authority_or_purpose_do_not_connect() {
    let s = HttpsServer::start(|_| {}).await;
    let other = common::https::Authority::new();
    for identity in [
        other.admin(),
        s.authority
            .client("system:masters", &[], Purpose::ServerAuth),
    ] {
        // With TLS 1.3 the client learns of it when it reads.
        let failed = match connect(&s, Some(&identity), &[b"http/1.1"]).await {
            Err(_) => true,
            Ok(mut stream) => {
                let _ = stream
                    .write_all(b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n")
                    .await;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await.is_err() && answer.is_empty()
            }
        };
        assert!(failed);
    }
    s.stop().await;
}

#[tokio::test]
async fn a_service_accounts_token_opens_nothing_but_what_it_is() {
    let clock = HandClock::new();
    let turned = clock.clone();
    let s = HttpsServer::start(move |options| options.clock = Arc::new(move || turned.now())).await;
    let client = Client::new(s.server.service(), "default");
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::default_namespaced(client);
    let account = k8s_openapi::api::core::v1::ServiceAccount {
        metadata: ObjectMeta {
            name: Some("bot".to_owned()),
            ..ObjectMeta::default()
        },
        ..Default::default()
    };
    let made = accounts
        .create(&PostParams::default(), &account)
        .await
        .unwrap();
    let request = |audiences: Value, seconds: Value| {
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": audiences, "expirationSeconds": seconds}});
        serde_json::from_value(body).unwrap()
    };
    let token = async |audiences: Value, seconds: Value| {
        let answer = accounts
            .create_token_request("bot", &PostParams::default(), &request(audiences, seconds))
            .await;
        answer.map(|answer| answer.status.unwrap().token)
    };
    let api_token = token(json!([]), json!(null)).await.unwrap();
    s.server.serve_view(view("{}"));
    for (path, code) in [
        ("/apis/view.example.com/v1/sights", 403),
        ("/api/v1/namespaces", 403),
        ("/api/v1/namespaces/default/secrets", 403),
        ("/apis/example.com/v1/widgets", 403),
        ("/api", 200),
        ("/apis", 200),
        ("/openapi/v3", 200),
        ("/metrics", 404),
    ] {
        let answer = ask(&s, None, Some(&api_token), Method::GET, path).await;
        let allowed: &[u16] = if code == 404 { &[403, 404] } else { &[code] };
        assert!(
            allowed.contains(&answer.code.as_u16()),
            "{path}: {}",
            answer.body
        );
    }
    let answer = ask(
        &s,
        None,
        Some(&api_token),
        Method::GET,
        "/api/v1/namespaces/default/secrets",
    )
    .await;
    assert_eq!(
        answer.body["message"],
        "secrets is forbidden: User \"system:serviceaccount:default:bot\" cannot list resource \"secrets\" \
         in API group \"\" in the namespace \"default\""
    );

    // A token for someone else is none for the API, and the other way round.
    let ca_token = token(json!(["istio-ca"]), json!(600)).await.unwrap();
    assert_eq!(
        ask(&s, None, Some(&ca_token), Method::GET, "/api")
            .await
            .code,
        401
    );
    assert_eq!(
        ask(&s, None, Some("x.y.z"), Method::GET, "/api").await.code,
        401
    );
    let verifier = s.server.token_verifier();
    let verified = verifier.verify(&ca_token, "istio-ca", clock.now()).unwrap();
    assert_eq!(
        (verified.namespace.as_str(), verified.name.as_str()),
        ("default", "bot")
    );
    assert_eq!(Some(verified.uid.clone()), made.metadata.uid);
    assert!(matches!(
        verifier.verify(&api_token, "istio-ca", clock.now()),
        Err(TokenError::Audience { .. })
    ));
    let mut damaged = ca_token.clone();
    damaged.replace_range(ca_token.len() - 4.., "AAAA");
    assert_eq!(
        verifier.verify(&damaged, "istio-ca", clock.now()),
        Err(TokenError::Invalid)
    );
    let later = clock.now() + Duration::from_secs(700);
    assert_eq!(
        verifier.verify(&ca_token, "istio-ca", later),
        Err(TokenError::Expired)
    );
    let earlier = clock.now() - Duration::from_secs(60);
    assert_eq!(
        verifier.verify(&ca_token, "istio-ca", earlier),
        Err(TokenError::NotYet)
    );

    // The life is bounded, and ends with the account.
    assert!(token(json!([]), json!(60)).await.is_err());
    let long = token(json!(["a"]), json!(100 * 24 * 3600)).await.unwrap();
    let day = clock.now() + Duration::from_secs(24 * 3600 + 60);
    assert_eq!(verifier.verify(&long, "a", day), Err(TokenError::Expired));
    accounts.delete("bot", &Default::default()).await.unwrap();
    accounts
        .create(&PostParams::default(), &account)
        .await
        .unwrap();
    assert!(matches!(
        verifier.verify(&ca_token, "istio-ca", clock.now()),
        Err(TokenError::NoServiceAccount { .. })
    ));
    assert_eq!(
        ask(&s, None, Some(&api_token), Method::GET, "/api")
            .await
            .code,
        401
    );
    clock.advance(Duration::from_secs(1));
    s.stop().await;
}

#[tokio::test]
async fn garbage_and_plain_http_get_nothing() {
    let s = HttpsServer::start(|options| {
        options.limits = Limits {
            handshake: Duration::from_secs(5),
            headers: Duration::from_secs(5),
            ..Limits::default()
        };
    })
    .await;
    let address = s.url.trim_start_matches("https://").to_owned();
    for sent in [
        &b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0; 512],
        b"",
    ] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        // It ends by itself: by an alert, or when the time for the handshake is over.
        let ended = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer));
        let _ = ended.await.unwrap();
        assert!(
            !answer.windows(4).any(|window| window == b"HTTP"),
            "{answer:?}"
        );
    }
    // Headers that never end.
    let mut stream = connect(&s, None, &[b"http/1.1"]).await.unwrap();
    stream
        .write_all(b"GET /version HTTP/1.1\r\nHost: x\r\nA: ")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer));
    let _ = ended.await.unwrap();
    // Headers that are too large.
    let mut stream = connect(&s, None, &[b"http/1.1"]).await.unwrap();
    let large = format!(
        "GET /version HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n",
        "a".repeat(200_000)
    );
    let _ = stream.write_all(large.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert_eq!(ask(&s, None, None, Method::GET, "/version").await.code, 200);
    s.stop().await;
}

#[tokio::test]
async fn a_drain_ends_watches_and_refuses_new_connections() {
    let s = HttpsServer::start(|_| {}).await;
    let admin = s.authority.admin();
    let mut stream = connect(&s, Some(&admin), &[b"http/1.1"]).await.unwrap();
    stream
        .write_all(b"GET /api/v1/configmaps?watch=1&resourceVersion=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    let url = s.url.clone();
    let (_, rest) = tokio::join!(s.stop(), async {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        rest
    });
    // The body ended as bodies do.
    assert!(
        rest.ends_with(b"0\r\n\r\n"),
        "{}",
        String::from_utf8_lossy(&rest)
    );
    assert!(
        TcpStream::connect(url.trim_start_matches("https://"))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let s = HttpsServer::start(|options| {
        options.limits = Limits {
            stall: Duration::from_millis(300),
            ..Limits::default()
        };
    })
    .await;
    let admin = s.authority.admin();
    let client = Client::new(s.server.service(), "default");
    let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::default_namespaced(client);
    for n in 0..20 {
        let map =
            json!({"metadata": {"name": format!("m{n}")}, "data": {"k": "x".repeat(900_000)}});
        maps.create(
            &PostParams::default(),
            &serde_json::from_value(map).unwrap(),
        )
        .await
        .unwrap();
    }
    // The list is larger than what buffers take; the client reads only after the limit. How long a busy server
    // takes to come that far is not known.
    let mut cut_off = false;
    for pause in [1, 4, 16, 64] {
        let mut stream = connect(&s, Some(&admin), &[b"http/1.1"]).await.unwrap();
        stream
            .write_all(b"GET /api/v1/configmaps HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(pause)).await;
        let mut got = Vec::new();
        let ended = stream.read_to_end(&mut got).await;
        cut_off = ended.is_err() || got.len() < 18_000_000;
        if cut_off {
            break;
        }
    }
    assert!(cut_off);
    s.stop().await;
}

#[tokio::test]
async fn more_requests_than_allowed_are_told_to_come_back() {
    let s = HttpsServer::start(|options| options.limits.requests = 0).await;
    let answer = ask(&s, None, None, Method::GET, "/version").await;
    assert_eq!(
        (answer.code, &answer.body["reason"]),
        (StatusCode::TOO_MANY_REQUESTS, &json!("TooManyRequests"))
    );
    assert_eq!(answer.headers[header::RETRY_AFTER], "1");
    s.stop().await;
}

#[tokio::test]
async fn a_stranger_cannot_keep_a_connection() {
    let s = HttpsServer::start(|options| options.limits.stranger = Duration::from_secs(5)).await;
    let admin = s.authority.admin();
    let mut known = connect(&s, Some(&admin), &[b"http/1.1"]).await.unwrap();
    let mut stranger = connect(&s, None, &[b"http/1.1"]).await.unwrap();
    let request = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n";
    stranger.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(30), stranger.read_to_end(&mut answer));
    let _ = ended.await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    known.write_all(request).await.unwrap();
    let mut head = [0; 12];
    known.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    s.stop().await;
}
