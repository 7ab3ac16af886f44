//! Callers that are not the peer's egress, against the ingress of red-mesh: not one byte of theirs
//! reaches anything behind it, and each is told of once. First our proxy, then a stock Envoy in its
//! place.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use meshfed_testkit::eventually;
use meshfed_testkit::forge::{self, Forge, Forged};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use crate::envoy::EnvoyGateway;
use crate::federation::{Federation, Mesh, Process, metric};
use crate::program::PATIENCE;

const INGRESS: &str = "ingress-green-mesh";
/// Last byte of the address at which the ingress serves the peer, as in `examples/`.
const AT: u8 = 10;
/// Last bytes of the addresses, in green-mesh's network, from which others call: each has its own, and
/// the peer's own.
const FIRST_CALLER: u8 = 100;
const PEER: u8 = 99;
const SERVICES: u16 = 15443;
const DISCOVERY: u16 = 8188;
const EXPORTED: &str = "outbound_.9080_._.red-ratings.bookinfo.svc.green-mesh-exports.local";
const NOT_EXPORTED: &str =
    "outbound_.9080_._.details.red-mesh-bookinfo.svc.green-mesh-exports.local";
const OF_ANOTHER_PEER: &str = "outbound_.9080_._.red-ratings.bookinfo.svc.blue-mesh-exports.local";
const DISCOVERY_SNI: &str = "discovery.red-mesh-system.svc.red-mesh.local";
/// The one identity that is let in.
pub const CLIENT_ID: &str =
    "spiffe://green-mesh.local/ns/green-mesh-system/sa/egress-red-mesh-service-account";
/// A request that the application would answer, and discovery would write down; nobody honest
/// uses PUT there.
const REQUEST: &[u8] =
    b"PUT /v1/watch HTTP/1.1\r\nhost: ratings\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// One who should not get through.
struct Caller {
    what: &'static str,
    port: u16,
    speaks: Speaks,
    /// Why our proxy refuses it.
    reason: &'static str,
}

enum Speaks {
    Bytes(&'static [u8]),
    Tls {
        sni: Option<&'static str>,
        certificate: Option<Forged>,
    },
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_the_peers_egress_gets_a_byte_through_our_ingress() {
    let federation = Federation::start(&[INGRESS], &[]).await;
    let admin = federation.red.address(240, 15014);
    let _gateway: Process = federation.red.gateway(INGRESS, admin).await;
    federation.works().await;
    let scene = Scene::new(&federation).await;
    let log = || federation.red.log_of(INGRESS);
    let mut seen = Vec::new();
    for (place, caller) in (FIRST_CALLER..).zip(scene.callers()) {
        let labels = format!("reason=\"{}\"", caller.reason);
        let listener = format!("{}_{}", federation.red.net.address(AT), caller.port);
        let count =
            async || metric(admin, "meshfed_proxy_refused_total", &[&labels, &listener]).await;
        let before = count().await;
        let from = scene.is_refused(&caller, place).await;
        let line = logged(&caller, from, log).await;
        assert!(line.contains(caller.reason), "{}: {line}", caller.what);
        assert!(line.contains(" upstream=- "), "{}: {line}", caller.what);
        assert_eq!(count().await, before + 1, "{} in the metric", caller.what);
        seen.push((caller.what, from));
    }
    assert_logged_once(&seen, &log());
    scene.the_same_as_the_peer_gets_through().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_the_peers_egress_gets_a_byte_through_a_stock_envoy() {
    let federation = Federation::start(&[INGRESS], &[]).await;
    let Some(envoy) = EnvoyGateway::start(&federation.red, INGRESS).await else {
        return;
    };
    federation.works().await;
    let scene = Scene::new(&federation).await;
    let log = || envoy.access_log();
    let mut seen = Vec::new();
    for (place, caller) in (FIRST_CALLER..).zip(scene.callers()) {
        let from = scene.is_refused(&caller, place).await;
        let line = logged(&caller, from, log).await;
        let reason = match caller.reason {
            "no_cluster" => "flags=NC",
            "no_chain_for_sni" => "flags=NR",
            "not_allowed" => "status=403",
            _ => "downstream_tls=\"TLS_error",
        };
        assert!(line.contains(reason), "{}: {line}", caller.what);
        seen.push((caller.what, from));
    }
    assert_logged_once(&seen, &log());
    scene.the_same_as_the_peer_gets_through().await;
    envoy.assert_no_complaints();
}

/// The line about a caller, who is known by its address.
async fn logged(caller: &Caller, from: IpAddr, log: impl Fn() -> String) -> String {
    let mark = mark(from);
    eventually(PATIENCE, async || {
        let text = log();
        let line = text.lines().find(|line| line.contains(&mark));
        line.map(str::to_owned)
            .ok_or_else(|| format!("{}: no line with{mark}\n{text}", caller.what))
    })
    .await
}

/// In every line about a caller. A port may have been used by somebody else before, so it does not tell who
/// called; the address does.
fn mark(from: IpAddr) -> String {
    format!(" client={from}:")
}

fn assert_logged_once(seen: &[(&str, IpAddr)], log: &str) {
    for (what, from) in seen {
        let mark = mark(*from);
        let of_caller = log.lines().filter(|line| line.contains(&mark));
        // An Envoy tells of each request, and of the connection that it came by.
        let lines: Vec<&str> = of_caller.filter(|l| !l.contains("kind=request")).collect();
        assert_eq!(lines.len(), 1, "{what}: {lines:#?}");
    }
}

/// What stands behind the ingress, and whom it knows.
struct Scene<'a> {
    federation: &'a Federation,
    green: Forge,
    before: Arrived,
}

impl<'a> Scene<'a> {
    async fn new(federation: &'a Federation) -> Self {
        Self {
            federation,
            green: authority_of(&federation.green).await,
            before: Arrived::so_far(federation).await,
        }
    }

    fn peer(&self) -> Forged {
        self.green.issue(CLIENT_ID)
    }

    fn callers(&self) -> Vec<Caller> {
        let stranger = Forge::new("green-mesh");
        let red = "spiffe://red-mesh.local/ns/green-mesh-system/sa/egress-red-mesh-service-account";
        let blue =
            "spiffe://blue-mesh.local/ns/blue-mesh-system/sa/egress-red-mesh-service-account";
        let other = "spiffe://green-mesh.local/ns/bookinfo/sa/client";
        let raw = |what, port, bytes| Caller {
            what,
            port,
            speaks: Speaks::Bytes(bytes),
            reason: "garbage",
        };
        let tls = |what, port, sni, certificate, reason| Caller {
            what,
            port,
            speaks: Speaks::Tls { sni, certificate },
            reason,
        };
        let mut all = vec![
            tls(
                "a name that is not exported",
                SERVICES,
                Some(NOT_EXPORTED),
                Some(self.peer()),
                "no_cluster",
            ),
            tls(
                "a name of another peer",
                SERVICES,
                Some(OF_ANOTHER_PEER),
                Some(self.peer()),
                "no_chain_for_sni",
            ),
            tls(
                "no name",
                SERVICES,
                None,
                Some(self.peer()),
                "no_chain_for_sni",
            ),
        ];
        for (port, sni) in [(SERVICES, EXPORTED), (DISCOVERY, DISCOVERY_SNI)] {
            let sni = Some(sni);
            let not_client_id = if port == SERVICES {
                "wrong_identity"
            } else {
                "not_allowed"
            };
            all.extend([
                raw("garbage", port, &[0x16, 3, 1, 0xff, 0xff, 9, 9, 9, 9, 9]),
                raw("plain HTTP", port, REQUEST),
                tls(
                    "the wrong CA",
                    port,
                    sni,
                    Some(stranger.issue(CLIENT_ID)),
                    "unknown_ca",
                ),
                tls(
                    "our own trust domain",
                    port,
                    sni,
                    Some(self.green.issue(red)),
                    "wrong_trust_domain",
                ),
                tls(
                    "a third trust domain",
                    port,
                    sni,
                    Some(self.green.issue(blue)),
                    "wrong_trust_domain",
                ),
                tls(
                    "not the clientID",
                    port,
                    sni,
                    Some(self.green.issue(other)),
                    not_client_id,
                ),
                tls("no certificate", port, sni, None, "no_certificate"),
                tls(
                    "expired",
                    port,
                    sni,
                    Some(self.green.expired(CLIENT_ID)),
                    "expired",
                ),
            ]);
        }
        all
    }

    /// Tries to get a request through; at most a TLS alert, or 403 on 8188, comes back, and
    /// nothing arrives behind. `place` is the last byte of the caller's address, which is returned.
    async fn is_refused(&self, caller: &Caller, place: u8) -> IpAddr {
        let from = self.federation.green.address(place, 0).ip();
        let answer = self
            .call(caller.what, from, caller.port, &caller.speaks)
            .await;
        let shown = String::from_utf8_lossy(&answer);
        match &caller.speaks {
            // The content type of an alert, and its whole length.
            Speaks::Bytes(_) => assert!(
                answer.is_empty() || (answer[0] == 21 && answer.len() <= 7),
                "{} got {shown:?}",
                caller.what
            ),
            Speaks::Tls { .. } => assert!(
                answer.is_empty()
                    || (caller.port == DISCOVERY && shown.starts_with("HTTP/1.1 403 ")),
                "{} got {shown:?}",
                caller.what
            ),
        }
        let now = Arrived::so_far(self.federation).await;
        assert_eq!(now, self.before, "{}", caller.what);
        from
    }

    /// The same call with the identity that is let in, so that the refusals above mean something;
    /// and it is all that arrived.
    async fn the_same_as_the_peer_gets_through(&self) {
        for (port, sni, expected) in [
            (SERVICES, EXPORTED, "HTTP/1.1 200 "),
            (DISCOVERY, DISCOVERY_SNI, "HTTP/1.1 405 "),
        ] {
            let speaks = Speaks::Tls {
                sni: Some(sni),
                certificate: Some(self.peer()),
            };
            let from = self.federation.green.address(PEER, 0).ip();
            let answer = self.call("the peer", from, port, &speaks).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with(expected), "{port}: {answer:?}");
        }
        let expected = Arrived {
            connections: self.before.connections + 1,
            bytes: self.before.bytes + REQUEST.len(),
            discovery: self.before.discovery + 1,
        };
        eventually(PATIENCE, async || {
            let now = Arrived::so_far(self.federation).await;
            if now == expected { Ok(()) } else { Err(now) }
        })
        .await;
    }

    /// What came back until the other end was done.
    async fn call(&self, what: &str, from: IpAddr, port: u16, speaks: &Speaks) -> Vec<u8> {
        let to = self.federation.red.address(AT, port);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let mut stream = socket.connect(to).await.unwrap();
        let exchange = async {
            match speaks {
                Speaks::Bytes(bytes) => ask(&mut stream, bytes).await,
                Speaks::Tls { sni, certificate } => {
                    let connector = TlsConnector::from(forge::client(certificate.as_ref(), &[]));
                    // A client sends no SNI for an address.
                    let name = match sni {
                        Some(sni) => ServerName::try_from(*sni).unwrap(),
                        None => ServerName::from(to.ip()),
                    };
                    match connector.connect(name, stream).await {
                        Ok(mut stream) => ask(&mut stream, REQUEST).await,
                        Err(_refused) => Vec::new(),
                    }
                }
            }
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await;
        answer.unwrap_or_else(|_| panic!("{what} on {port}: no end in time"))
    }
}

/// What got through the ingress so far.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Arrived {
    /// That the application's sidecar accepted from others.
    connections: u64,
    /// That the application itself read.
    bytes: usize,
    /// Requests to red-mesh's own discovery.
    discovery: usize,
}

impl Arrived {
    async fn so_far(federation: &Federation) -> Self {
        let log = federation.red.log_of("istiod-red-mesh");
        Self {
            connections: federation.connections_of_apps_sidecar().await,
            bytes: federation.app.received(),
            discovery: log.lines().filter(|l| l.contains("method=PUT")).count(),
        }
    }
}

/// Everything that comes back. A broken connection is an end like another.
pub async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    if stream.write_all(bytes).await.is_ok() && stream.flush().await.is_ok() {
        let _refused = stream.read_to_end(&mut answer).await;
    }
    answer
}

/// A mesh's certificate authority, as somebody would have it who stole its key.
pub async fn authority_of(mesh: &Mesh) -> Forge {
    let api: Api<Secret> = Api::namespaced(mesh.client.clone(), &mesh.system());
    let data = api.get("istio-ca-secret").await.unwrap().data.unwrap();
    let text = |key: &str| String::from_utf8(data[key].0.clone()).unwrap();
    Forge::stolen(&text("ca-cert.pem"), &text("ca-key.pem"))
}
