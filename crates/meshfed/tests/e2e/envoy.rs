//! A stock Envoy, joined to a mesh with `meshfed agent` beside it, in the place of our gateways.

use std::fs;

use meshfed_testkit::forge::{self, Forge, Forged};
use meshfed_testkit::{Envoy, eventually};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::federation::{Federation, Mesh, Process};
use crate::hostile::{CLIENT_ID, ask, authority_of};
use crate::program::{PATIENCE, meshfed};

const INGRESS: &str = "ingress-green-mesh";
const EGRESS: &str = "egress-red-mesh";
/// Last byte of the address of Envoy's admin page.
const ADMIN: u8 = 241;

/// An Envoy that is one of a mesh's gateways.
pub struct EnvoyGateway {
    envoy: Envoy,
    _agent: Process,
}

impl EnvoyGateway {
    /// Starts a gateway that was left out of the mesh's own process, and waits until it is
    /// configured. `None`: there is no Envoy.
    pub async fn start(mesh: &Mesh, name: &str) -> Option<Self> {
        let admin = mesh.address(ADMIN, 15000);
        let dir = mesh.dir.join(format!("{name}-agent"));
        let join = mesh
            .join(&mesh.system(), &format!("{name}-service-account"))
            .await;
        let mut agent = Process::start(
            meshfed()
                .arg("agent")
                .args(join)
                .args(["--name", name, "--namespace", &mesh.system()])
                .args(["--envoy-admin", &admin.to_string()])
                .arg("--dir")
                .arg(&dir),
            mesh.dir.join(format!("{name}-agent.stderr")),
        );
        let bootstrap = eventually(PATIENCE, async || {
            agent.assert_runs();
            fs::read_to_string(dir.join("envoy.json"))
        });
        let envoy = Envoy::start(&bootstrap.await, admin)?;
        eventually(PATIENCE, async || envoy.ready()).await;
        Some(Self {
            envoy,
            _agent: agent,
        })
    }

    pub fn access_log(&self) -> String {
        self.envoy.access_log().join("\n")
    }

    /// Nothing in our configuration made it warn.
    pub fn assert_no_complaints(&self) {
        assert_eq!(self.envoy.warnings(), Vec::<String>::new());
    }

    /// It carried service traffic, rather than somebody else.
    async fn assert_carried(&self) {
        eventually(PATIENCE, async || {
            let log = self.access_log();
            let carried = |line: &str| {
                line.contains("kind=connection")
                    && line.contains("outbound_.9080_._.")
                    && line.contains("flags=- ")
            };
            if log.lines().any(carried) {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
    }
}

/// A call, also through a tunnel that ends, so that every gateway on the way writes its line.
async fn carries_calls(federation: &Federation, envoys: &[&EnvoyGateway]) {
    federation.works().await;
    let mut tunnel = federation.tunnel().await;
    tunnel.call().await.unwrap();
    drop(tunnel);
    for envoy in envoys {
        envoy.assert_carried().await;
        envoy.assert_no_complaints();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_envoy_carries_calls_as_the_egress() {
    let federation = Federation::start(&[], &[EGRESS]).await;
    let Some(egress) = EnvoyGateway::start(&federation.green, EGRESS).await else {
        return;
    };
    carries_calls(&federation, &[&egress]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_envoy_carries_calls_as_the_ingress() {
    let federation = Federation::start(&[INGRESS], &[]).await;
    let Some(ingress) = EnvoyGateway::start(&federation.red, INGRESS).await else {
        return;
    };
    carries_calls(&federation, &[&ingress]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_envoys_carry_calls_as_both() {
    let federation = Federation::start(&[INGRESS], &[EGRESS]).await;
    let (ingress, egress) = tokio::join!(
        EnvoyGateway::start(&federation.red, INGRESS),
        EnvoyGateway::start(&federation.green, EGRESS),
    );
    let (Some(ingress), Some(egress)) = (ingress, egress) else {
        return;
    };
    carries_calls(&federation, &[&ingress, &egress]).await;
}

/// The identity of the egress gateway of blue-mesh, of which there is no more than this.
const BLUE_ID: &str =
    "spiffe://blue-mesh.local/ns/blue-mesh-system/sa/egress-red-mesh-service-account";

/// red-mesh federates with blue-mesh by the gateways that serve green-mesh.
async fn add_blue(red: &Mesh, root: &str) {
    let nobody = red.address(250, 0).ip();
    red.keep_root_of("blue-mesh", root.to_owned()).await;
    red.apply(&format!(
        "apiVersion: federation.maistra.io/v1
kind: ServiceMeshPeer
metadata: {{name: blue-mesh, namespace: red-mesh-system}}
spec:
  remote: {{addresses: ['{nobody}']}}
  gateways:
    ingress: {{name: {INGRESS}}}
    egress: {{name: egress-green-mesh}}
  security:
    trustDomain: blue-mesh.local
    clientID: {}
---
apiVersion: federation.maistra.io/v1
kind: ExportedServiceSet
metadata: {{name: blue-mesh, namespace: red-mesh-system}}
spec:
  exportRules:
  - type: NameSelector
    nameSelector:
      namespace: red-mesh-bookinfo
      name: ratings
      alias: {{namespace: for, name: blue}}
",
        BLUE_ID.trim_start_matches("spiffe://")
    ))
    .await;
}

/// What the ingress of red-mesh answers on a port.
async fn asks(red: &Mesh, port: u16, sni: &str, as_: &Forged, path: &str) -> String {
    let exchange = async {
        let stream = TcpStream::connect(red.address(10, port)).await?;
        let connector = TlsConnector::from(forge::client(Some(as_), &[]));
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        let mut stream = connector.connect(name, stream).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        Ok::<_, std::io::Error>(ask(&mut stream, request.as_bytes()).await)
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await.unwrap();
    String::from_utf8(answer.unwrap_or_default()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stock_envoy_gives_each_of_two_peers_its_own_list_and_its_own_names() {
    const GREENS: &str = "red-ratings.bookinfo.svc.green-mesh-exports.local";
    const BLUES: &str = "blue.for.svc.blue-mesh-exports.local";
    let federation = Federation::start(&[INGRESS], &[]).await;
    let red = &federation.red;
    let Some(envoy) = EnvoyGateway::start(red, INGRESS).await else {
        return;
    };
    federation.works().await;
    let blue_authority = Forge::new("blue-mesh");
    add_blue(red, blue_authority.root_pem()).await;
    let blue = blue_authority.issue(BLUE_ID);
    let green = authority_of(&federation.green).await.issue(CLIENT_ID);

    // The list follows from the certificate, and from nothing that the caller says.
    let discovery = "discovery.red-mesh-system.svc.red-mesh.local";
    for (who, own, other) in [(&blue, BLUES, GREENS), (&green, GREENS, BLUES)] {
        let list = eventually(PATIENCE, async || {
            let answer = asks(red, 8188, discovery, who, "/v1/services/").await;
            let good = answer.starts_with("HTTP/1.1 200 ") && answer.contains(own);
            if good { Ok(answer) } else { Err(answer) }
        })
        .await;
        assert!(!list.contains(other), "{list}");
        for path in [
            "/v1/services/green-mesh",
            "/v1/services/blue-mesh",
            "/v1/watch/blue-mesh",
        ] {
            let answer = asks(red, 8188, discovery, who, path).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
        }
    }
    let stranger = blue_authority.issue("spiffe://blue-mesh.local/ns/a/sa/b");
    let answer = asks(red, 8188, discovery, &stranger, "/v1/services/").await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");

    // So do the names that lead to services.
    for (who, host, is_its_own) in [
        (&blue, BLUES, true),
        (&green, GREENS, true),
        (&blue, GREENS, false),
        (&green, BLUES, false),
    ] {
        let sni = format!("outbound_.9080_._.{host}");
        let answer = asks(red, 15443, &sni, who, "/ratings/0").await;
        assert_eq!(
            answer.starts_with("HTTP/1.1 200 "),
            is_its_own,
            "{host}: {answer}"
        );
        assert!(is_its_own || answer.is_empty(), "{host}: {answer}");
    }
    envoy.assert_no_complaints();
}
