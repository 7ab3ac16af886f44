//! What is exported to one peer is read by that peer alone: not by another peer that uses the same
//! gateways, not by a workload, whatever they say about themselves.

use std::net::SocketAddr;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use meshfed_testkit::eventually;
use meshfed_testkit::forge::{self, Forge, Forged};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::envoy::EnvoyGateway;
use crate::federation::{Federation, Mesh};
use crate::hostile::{ask, authority_of};
use crate::program::PATIENCE;
use crate::removal::api;

const INGRESS: &str = "ingress-green-mesh";
/// Only green-mesh is told this name, and only blue-mesh the other.
const OF_GREEN: &str = "red-ratings";
const OF_BLUE: &str = "blue-reviews";
const GREEN: &str =
    "spiffe://green-mesh.local/ns/green-mesh-system/sa/egress-red-mesh-service-account";
const BLUE: &str =
    "spiffe://blue-mesh.local/ns/blue-mesh-system/sa/egress-red-mesh-service-account";
/// A second peer of red-mesh, through the gateways that green-mesh uses.
const BLUE_MESH: &str = "
apiVersion: federation.maistra.io/v1
kind: ServiceMeshPeer
metadata: {name: blue-mesh, namespace: red-mesh-system}
spec:
  remote: {addresses: [127.0.0.1]}
  gateways:
    ingress: {name: ingress-green-mesh}
    egress: {name: egress-green-mesh}
  security:
    trustDomain: blue-mesh.local
    clientID: blue-mesh.local/ns/blue-mesh-system/sa/egress-red-mesh-service-account
    certificateChain: {kind: ConfigMap, name: blue-mesh-ca-root-cert}
---
apiVersion: federation.maistra.io/v1
kind: ExportedServiceSet
metadata: {name: blue-mesh, namespace: red-mesh-system}
spec:
  exportRules:
  - type: NameSelector
    nameSelector:
      namespace: red-mesh-bookinfo
      name: reviews
      alias: {namespace: bookinfo, name: blue-reviews}
";

/// Requests that would be worth something to the wrong one.
fn requests() -> Vec<String> {
    let more = "discovery-service: discovery.green-mesh-system.svc.red-mesh.local\r\n\
                x-forwarded-client-cert: URI=";
    let paths = [
        "/v1/services/",
        "/v1/services/green-mesh",
        "/v1/services//green-mesh",
        "/v1/services/%67reen-mesh",
        "/v1/services/../services/green-mesh",
        "/v1/services/?peer=green-mesh",
        "/v1/services/blue-mesh/../green-mesh",
        "http://istiod-red-mesh.red-mesh-system.svc:8188/v1/services/green-mesh",
    ];
    let hosts = [
        "discovery.red-mesh-system.svc.green-mesh.local",
        "istiod-red-mesh.red-mesh-system.svc",
    ];
    let all = paths.iter().flat_map(|path| hosts.map(|host| (path, host)));
    all.map(|(path, host)| {
        format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{more}{GREEN}\r\nconnection: close\r\n\r\n")
    })
    .collect()
}

/// What comes back; nothing if the handshake fails.
async fn tell(to: SocketAddr, sni: &str, shows: Option<&Forged>, request: &str) -> String {
    let exchange = async {
        let stream = TcpStream::connect(to).await.unwrap();
        let connector = TlsConnector::from(forge::client(shows, &["http/1.1"]));
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        match connector.connect(name, stream).await {
            Ok(mut stream) => ask(&mut stream, request.as_bytes()).await,
            Err(_refused) => Vec::new(),
        }
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await;
    String::from_utf8(answer.expect("an end in time")).unwrap()
}

/// Every request, with every name that a caller may say the gateway has.
async fn everything(to: SocketAddr, shows: Option<&Forged>) -> Vec<String> {
    let names = [
        "discovery.red-mesh-system.svc.green-mesh.local",
        "discovery.red-mesh-system.svc.blue-mesh.local",
    ];
    let all = requests();
    let all = all
        .iter()
        .flat_map(|request| names.map(|sni| (request, sni)));
    // At once, as an Envoy that has refused keeps each connection for a second.
    join_all(all.map(|(request, sni)| tell(to, sni, shows, request))).await
}

/// Nothing is told at all.
async fn is_told_nothing(to: SocketAddr, who: &str, shows: Option<&Forged>) {
    for answer in everything(to, shows).await {
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 403 ");
        assert!(refused, "{who}: {answer}");
    }
}

async fn second_peer(red: &Mesh) -> Forge {
    let authority = Forge::new("blue-mesh");
    red.keep_root_of("blue-mesh", authority.root_pem().to_owned())
        .await;
    red.apply(BLUE_MESH).await;
    authority
}

async fn lists_are_private(federation: &Federation) {
    let red = &federation.red;
    let (red_ca, green_ca) = (
        authority_of(red).await,
        authority_of(&federation.green).await,
    );
    let blue_ca = second_peer(red).await;
    let (green, blue) = (green_ca.issue(GREEN), blue_ca.issue(BLUE));
    let ingress = red.address(10, 8188);

    // Each peer gets its own, whatever it says.
    let own = async |shows: &Forged, name: &str| {
        eventually(PATIENCE, async || {
            let sni = "discovery.red-mesh-system.svc.red-mesh.local";
            let answer = tell(ingress, sni, Some(shows), &requests()[0]).await;
            match answer.starts_with("HTTP/1.1 200 ") && answer.contains(name) {
                true => Ok(()),
                false => Err(answer),
            }
        })
        .await;
    };
    own(&green, OF_GREEN).await;
    own(&blue, OF_BLUE).await;
    for (shows, own, other) in [(&green, OF_GREEN, OF_BLUE), (&blue, OF_BLUE, OF_GREEN)] {
        let answers = everything(ingress, Some(shows)).await;
        assert!(answers.iter().any(|answer| answer.contains(own)));
        assert!(
            !answers.iter().any(|answer| answer.contains(other)),
            "{answers:?}"
        );
    }
    // Nor may it call what was exported to the other.
    let services = red.address(10, 15443);
    let name = "outbound_.9080_._.red-ratings.bookinfo.svc.green-mesh-exports.local";
    let request = "GET /ratings/0 HTTP/1.1\r\nhost: ratings\r\nconnection: close\r\n\r\n";
    let answer = tell(services, name, Some(&green), request).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(tell(services, name, Some(&blue), request).await, "");

    // Others at the gateway.
    let workload = "spiffe://red-mesh.local/ns/red-mesh-bookinfo/sa/bookinfo-ratings";
    let istiod = "spiffe://red-mesh.local/ns/red-mesh-system/sa/istiod-red-mesh";
    for (who, shows) in [
        ("nobody", None),
        ("a workload", Some(red_ca.issue(workload))),
        ("our own control plane", Some(red_ca.issue(istiod))),
        ("green as signed by blue", Some(blue_ca.issue(GREEN))),
        ("blue as signed by green", Some(green_ca.issue(BLUE))),
    ] {
        is_told_nothing(ingress, who, shows.as_ref()).await;
    }

    // Past the gateway, at the control plane itself.
    let account = |name: &str| {
        let account =
            format!("spiffe://red-mesh.local/ns/red-mesh-system/sa/{name}-service-account");
        red_ca.issue(&account)
    };
    let control_plane = red.address(1, 8188);
    let as_ingress = everything(control_plane, Some(&account(INGRESS))).await;
    assert!(as_ingress.iter().any(|answer| answer.contains(OF_GREEN)));
    let workload = red_ca.issue(workload);
    let other_gateway = account("egress-green-mesh");
    for shows in [
        Some(&workload),
        Some(&other_gateway),
        None,
        Some(&green),
        Some(&blue),
    ] {
        is_told_nothing(control_plane, "past the gateway", shows).await;
    }

    // At our egress, which would ask the peer in our name.
    let service: Api<Service> = api(red);
    let service = service.get("egress-green-mesh").await.unwrap();
    let address = service.spec.unwrap().cluster_ip.unwrap();
    let egress = SocketAddr::new(address.parse().unwrap(), 8188);
    let host = "egress-green-mesh.red-mesh-system.svc.cluster.local";
    let request =
        format!("GET /v1/services/ HTTP/1.1\r\nhost: {host}:8188\r\nconnection: close\r\n\r\n");
    let answer = tell(egress, host, Some(&red_ca.issue(istiod)), &request).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let answer = tell(egress, host, Some(&workload), &request).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    for shows in [None, Some(&green)] {
        assert_eq!(tell(egress, host, shows, &request).await, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_for_one_peer_is_read_by_nobody_else() {
    let federation = Federation::start(&[], &[]).await;
    federation.works().await;
    lists_are_private(&federation).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_for_one_peer_is_read_by_nobody_else_through_a_stock_envoy() {
    let federation = Federation::start(&[INGRESS], &[]).await;
    let Some(envoy) = EnvoyGateway::start(&federation.red, INGRESS).await else {
        return;
    };
    federation.works().await;
    lists_are_private(&federation).await;
    envoy.assert_no_complaints();
}
