//! What is passed on as bytes: who is let in, what is shown, and where it goes.

use std::net::SocketAddr;
use std::time::Duration;

use meshfed_proxy_config::*;
use meshfed_testkit::forge::{self, Forge, Validity};
use meshfed_testkit::{LoopbackNet, eventually};
use meshfed_xds::encode;
use rustls::pki_types::ServerName as TlsName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::ads::Ads;
use crate::bench::*;
use crate::common::{Authority, PATIENCE, id};

#[tokio::test]
async fn an_ingress_lets_in_its_peer_and_nobody_else() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    let green = Forge::new("green-mesh");
    let app = App::start().await;
    let exported = sni(9080, "ratings.bookinfo.svc.green-exports.local");
    let at = SocketAddr::new(net.address(10), 15443);

    let mut ads = Ads::default();
    let suffix = "svc.green-exports.local";
    let policy = AllowPolicy {
        name: "green".to_string(),
        principals: vec![id(GREEN)],
        server_name_suffix: Some(format!(".{suffix}")),
    };
    let chain = FilterChain {
        name: "green".to_string(),
        server_names: vec![ServerName::Suffix(suffix.to_string())],
        tls: tls(&[GREEN]),
        drain: DEFAULT_DRAIN,
        network: tcp(TcpTarget::SniCluster, Some(vec![policy])),
    };
    let ingress = listener("ingress", at, vec![chain]);
    ads.add("ingress", encode::listener(&ingress));
    let local = cluster(&exported, Discovery::Eds("ratings".into()), None);
    ads.add(&*exported, encode::cluster(&local));
    let workload = endpoints("ratings", &[(app.address, true)]);
    ads.add("ratings", encode::endpoints(&workload));
    ads.add(TRUST, encode::trust(TRUST, &federation(&authority, &green)));
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };

    // The peer's egress is let in, and hears the application speak first.
    let mut seen = 0;
    let peer = green.issue(GREEN);
    let answer = call(at, &exported, Some(&peer)).await.unwrap();
    assert_eq!(answer, [GREETING, b"ping\n"].concat());
    assert_eq!(app.connections(), 1);
    mesh.logged(&mut seen, &["kind=connection", GREEN, &exported, "flags=-"])
        .await;

    // Every forged client is stopped at the handshake and logged once with the reason.
    let stranger = Forge::new("green-mesh");
    let red = "spiffe://red-mesh.local/ns/green-mesh-system/sa/egress-service-account";
    let other = "spiffe://green-mesh.local/ns/green-mesh-system/sa/another";
    let forged = [
        ("of the wrong CA", Some(stranger.issue(GREEN))),
        (
            "of our trust domain by the peer's CA",
            Some(green.issue(red)),
        ),
        (
            "of the right domain but not the peer's egress",
            Some(green.issue(other)),
        ),
        ("expired", Some(green.expired(GREEN))),
        (
            "not valid yet",
            Some(green.issue_with(&[GREEN], Validity::Future)),
        ),
        ("of nobody", Some(green.issue_with(&[], Validity::Now))),
        ("none", None),
    ];
    for (what, certificate) in forged {
        let refused = call(at, &exported, certificate.as_ref()).await;
        assert!(refused.is_err(), "certificate {what}: {refused:?}");
        mesh.logged(&mut seen, &["flags=", "downstream_tls=\"TLS_error"])
            .await;
    }
    // No name of ours, no TLS at all, garbage.
    let unknown = sni(9080, "ratings.bookinfo.svc.blue-exports.local");
    assert!(call(at, &unknown, Some(&peer)).await.is_err());
    mesh.logged(&mut seen, &["flags=NR", &unknown]).await;
    let not_exported = sni(9080, "details.bookinfo.svc.green-exports.local");
    let closed = call(at, &not_exported, Some(&peer)).await;
    assert_eq!(closed.unwrap_or_default(), b"");
    mesh.logged(&mut seen, &["flags=NC", &not_exported]).await;
    for bytes in [
        &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        &[0x16, 3, 1, 0, 4, 9, 9, 9, 9],
    ] {
        let closed = plain(at, bytes).await;
        assert_eq!(closed.unwrap_or_default(), b"");
        mesh.logged(&mut seen, &["flags="]).await;
    }
    assert_eq!(
        app.connections(),
        1,
        "only the peer reached the application"
    );
    assert_eq!(mesh.envoy.access_log().len(), seen, "each is logged once");

    // With the peer's identity behind another one of its domain, Envoy finishes the handshake and
    // the policy judges the first bytes.
    let heard = app.received();
    let both = green.issue_with(&[other, GREEN], Validity::Now);
    let closed = call(at, &exported, Some(&both)).await;
    assert_eq!(closed.unwrap_or_default(), b"");
    assert_eq!(app.received(), heard);
    mesh.assert_no_complaints();
}

#[tokio::test]
async fn a_client_that_only_the_policy_stops_gets_no_byte_through() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    let green = Forge::new("green-mesh");
    let app = App::start().await;
    let at = SocketAddr::new(net.address(10), 15443);
    let mut ads = Ads::default();
    let policy = AllowPolicy {
        name: "green".to_string(),
        principals: vec![id(GREEN)],
        server_name_suffix: None,
    };
    let chain = chain(
        "any",
        tls(&[]),
        tcp(TcpTarget::Cluster("app".to_string()), Some(vec![policy])),
    );
    listen(&mut ads, "ingress", at, vec![chain]);
    let app_cluster = cluster("app", Discovery::Static(vec![app.address]), None);
    ads.add("app", encode::cluster(&app_cluster));
    ads.add(TRUST, encode::trust(TRUST, &federation(&authority, &green)));
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };

    let answer = call(at, "any.name", Some(&green.issue(GREEN))).await;
    assert_eq!(answer.unwrap(), [GREETING, b"ping\n"].concat());

    let other = green.issue("spiffe://green-mesh.local/ns/green-mesh-system/sa/another");
    let heard = app.received();
    let refused = call(at, "any.name", Some(&other)).await;
    assert_eq!(refused.unwrap_or_default(), b"");
    // Envoy judges the first bytes of a client, so it may have connected already; but nothing that
    // the client sent went on.
    assert_eq!(app.received(), heard);
    mesh.assert_no_complaints();
}

#[tokio::test]
async fn an_egress_shows_its_certificate_and_takes_only_the_servers_that_it_was_told() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    let green = Forge::new("green-mesh");
    let server = "spiffe://green-mesh.local/ns/green-mesh-system/sa/ingress-service-account";
    let impostor = "spiffe://green-mesh.local/ns/green-mesh-system/sa/impostor";
    let tls_app = async |as_id: &str, forge| App::start_as(as_id, forge, &authority).await;
    let honest = tls_app(server, &green).await;
    let wrong_id = tls_app(impostor, &green).await;
    let wrong_ca = tls_app(server, &Forge::new("green-mesh")).await;
    let no_tls = App::start().await;

    let one_of = |ids: &[&str]| ServerIds::OneOf(ids.iter().map(|i| id(i)).collect());
    let any_of_green = ServerIds::AnyOf(id(GREEN).trust_domain().clone());
    let any_of_red = ServerIds::AnyOf(id(GATEWAY).trust_domain().clone());
    let greeted = [GREETING, GATEWAY.as_bytes(), b"ping\n"].concat();
    let plainly = [GREETING, b"ping\n"].concat();
    let cases = [
        (
            "honest",
            &honest,
            one_of(&[impostor, server]),
            true,
            greeted.clone(),
        ),
        ("any", &honest, any_of_green.clone(), true, greeted),
        ("wrong-id", &wrong_id, one_of(&[server]), true, Vec::new()),
        ("wrong-ca", &wrong_ca, one_of(&[server]), true, Vec::new()),
        ("wrong-domain", &honest, any_of_red, true, Vec::new()),
        ("nobody", &honest, one_of(&[]), true, Vec::new()),
        ("no-sidecar", &no_tls, any_of_green.clone(), false, plainly),
        ("lost-sidecar", &no_tls, any_of_green, true, Vec::new()),
    ];

    let mut ads = Ads::default();
    ads.add(TRUST, encode::trust(TRUST, &federation(&authority, &green)));
    let port = |i: usize| SocketAddr::new(net.address(10), 15443 + u16::try_from(i).unwrap());
    for (i, (name, app, server, mesh_tls, _)) in cases.iter().enumerate() {
        let upstream = UpstreamTls {
            trust: TRUST.into(),
            server: server.clone(),
            sni: Some(sni(9080, "ratings.bookinfo.svc.red-exports.local")),
            alpn: Vec::new(),
        };
        let chain = chain("any", None, tcp(TcpTarget::Cluster(name.to_string()), None));
        listen(&mut ads, name, port(i), vec![chain]);
        let of = cluster(name, Discovery::Eds((*name).into()), Some(upstream));
        ads.add(*name, encode::cluster(&of));
        let to = endpoints(name, &[(app.address, *mesh_tls)]);
        ads.add(*name, encode::endpoints(&to));
    }
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };
    for (i, (name, _, _, _, expected)) in cases.iter().enumerate() {
        let answer = plain(port(i), b"").await.unwrap_or_default();
        assert_eq!(
            String::from_utf8_lossy(&answer),
            String::from_utf8_lossy(expected),
            "{name}"
        );
    }
    mesh.assert_no_complaints();
}

#[tokio::test]
async fn an_egress_spreads_a_name_that_two_peers_share_and_reaches_each_by_its_hidden_name() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    let forges = [Forge::new("green-mesh"), Forge::new("blue-mesh")];
    let peers = ["green", "blue"];
    let server = |peer: &str| format!("spiffe://{peer}-mesh.local/ns/a/sa/ingress");
    let local = sni(9080, "ratings.bookinfo.svc.cluster.local");
    let hidden = peers.map(|peer| sni(9080, &format!("ratings.bookinfo.svc.{peer}.remote")));
    let at = SocketAddr::new(net.address(10), 15443);

    let mut ads = Ads::default();
    let mut apps = Vec::new();
    for ((peer, forge), name) in peers.iter().zip(&forges).zip(&hidden) {
        let app = App::start_as(&server(peer), forge, &authority).await;
        let domain = id(&server(peer)).trust_domain().clone();
        let domains = [(domain, forge.root_pem().into())].into();
        ads.add(*peer, encode::trust(peer, &TrustBundle { domains }));
        let upstream = UpstreamTls {
            trust: (*peer).into(),
            server: ServerIds::OneOf(vec![id(&server(peer))]),
            sni: Some(sni(9080, &format!("{peer}.bookinfo.svc.red-exports.local"))),
            alpn: Vec::new(),
        };
        let to = cluster(name, Discovery::Static(vec![app.address]), Some(upstream));
        ads.add(&**name, encode::cluster(&to));
        apps.push(app);
    }
    let own = || {
        Some(DownstreamTls {
            trust: "own".to_string(),
            client_ids: Vec::new(),
            alpn: Vec::new(),
        })
    };
    let chain = |name: &str, server_names, target| FilterChain {
        name: name.to_string(),
        server_names,
        tls: own(),
        drain: DEFAULT_DRAIN,
        network: tcp(target, None),
    };
    let weighted = TcpTarget::Weighted(hidden.iter().map(|name| (name.clone(), 1)).collect());
    let chains = vec![
        chain("imports", Vec::new(), TcpTarget::SniCluster),
        chain(&local, vec![ServerName::Exact(local.to_string())], weighted),
    ];
    listen(&mut ads, "egress", at, chains);
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };

    let workload = "spiffe://red-mesh.local/ns/bookinfo/sa/client";
    let ca = authority.ca.to_pem();
    let client = Forge::stolen(&ca.ca_cert, &ca.ca_key).issue(workload);
    let expected = [GREETING, GATEWAY.as_bytes(), b"ping\n"].concat();
    for (name, app) in hidden.iter().zip(&apps) {
        assert_eq!(call(at, name, Some(&client)).await.unwrap(), expected);
        assert_eq!(app.connections(), 1, "{name}");
    }
    // That one of two is never chosen in so many calls does not happen.
    for _ in 0..60 {
        assert_eq!(call(at, &local, Some(&client)).await.unwrap(), expected);
    }
    let counts: Vec<usize> = apps.iter().map(App::connections).collect();
    assert_eq!(counts.iter().sum::<usize>(), 62);
    assert!(counts.iter().all(|count| *count > 1), "{counts:?}");
    mesh.assert_no_complaints();
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_from_then_on_and_cuts_no_connection() {
    let net = LoopbackNet::lock();
    let authority = Authority::new();
    *authority.ttl.lock().unwrap() = Duration::from_secs(4);
    let green = Forge::new("green-mesh");
    let app = App::start().await;
    let at = SocketAddr::new(net.address(10), 15443);
    let mut ads = Ads::default();
    let chain = chain(
        "any",
        tls(&[GREEN]),
        tcp(TcpTarget::Cluster("app".to_string()), None),
    );
    listen(&mut ads, "ingress", at, vec![chain]);
    let app_cluster = cluster("app", Discovery::Static(vec![app.address]), None);
    ads.add("app", encode::cluster(&app_cluster));
    ads.add(TRUST, encode::trust(TRUST, &federation(&authority, &green)));
    let Some(mesh) = Mesh::start(&net, &authority, ads).await else {
        return;
    };

    let connect = async || {
        let stream = TcpStream::connect(at).await.unwrap();
        let connector = TlsConnector::from(forge::client(Some(&green.issue(GREEN)), &[]));
        let name = TlsName::try_from("any.name").unwrap();
        let stream = connector.connect(name, stream).await.unwrap();
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        (stream, shown)
    };
    let (first, shown) = connect().await;
    eventually(PATIENCE, async || match connect().await.1 {
        now if now != shown => Ok(()),
        _ => Err("still the first certificate"),
    })
    .await;
    assert_eq!(talk(first).await.unwrap(), [GREETING, b"ping\n"].concat());
    assert!(mesh.gateway.get().is_some());
    assert!(mesh.authority.proofs.lock().unwrap().len() > 1);
    mesh.assert_no_complaints();
}
