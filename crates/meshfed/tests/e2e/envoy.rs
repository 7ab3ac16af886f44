//! A stock Envoy, joined to a mesh with `meshfed agent` beside it, in the place of our gateways.

use std::fs;

use meshfed_testkit::{Envoy, eventually};

use crate::federation::{Federation, Mesh, Process};
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
