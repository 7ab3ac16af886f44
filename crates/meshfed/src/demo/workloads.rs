//! The workloads of the demo: the bookinfo services in red-mesh and a client in every other mesh,
//! each behind a sidecar that joins its mesh with a token of its ServiceAccount.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use meshfed_runtime::{AccessLogMetrics, Metrics};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::bookinfo::{self, App, ProxyClient};
use super::meshes::Mesh;
use crate::join::{Join, new_token, write_token};
use crate::proxies::{ProxyMetrics, Running, Sidecar};

/// Last byte of the first workload's address.
const FIRST: u8 = 200;
const OUTBOUND_PORT: u16 = 15001;

/// Everything that runs beside the meshes.
pub struct Workloads {
    apps: JoinSet<std::io::Result<()>>,
    sidecars: Vec<Running>,
    metrics: ProxyMetrics,
}

impl Default for Workloads {
    fn default() -> Self {
        let metrics = Metrics::new();
        let log = metrics.register(AccessLogMetrics::new);
        Self {
            apps: JoinSet::new(),
            sidecars: Vec::new(),
            metrics: ProxyMetrics::new(&metrics, log),
        }
    }
}

impl Workloads {
    /// Starts all bookinfo services in this mesh.
    pub async fn start_bookinfo(&mut self, mesh: &Mesh) -> anyhow::Result<()> {
        for (n, app) in (FIRST..).zip(App::ALL) {
            let address = mesh.subnet.address(n);
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let workload = Workload {
                name: format!("{}-{}", app.service(), app.version()),
                account: format!("bookinfo-{}", app.service()),
                labels: vec![
                    ("app".to_owned(), app.service().to_owned()),
                    ("version".to_owned(), app.version().to_owned()),
                ],
                address,
                app: Some(listener.local_addr()?),
            };
            let outbound = self.start(mesh, &workload).await?;
            self.apps.spawn(bookinfo::serve(
                listener,
                app,
                workload.name,
                mesh.profile.name.to_owned(),
                outbound,
            ));
        }
        Ok(())
    }

    /// Starts a workload that only calls others; returns the way to call through its sidecar.
    pub async fn start_client(&mut self, mesh: &Mesh) -> anyhow::Result<ProxyClient> {
        let workload = Workload {
            name: "client".to_owned(),
            account: "client".to_owned(),
            labels: vec![("app".to_owned(), "client".to_owned())],
            address: mesh.subnet.address(FIRST),
            app: None,
        };
        let outbound = self.start(mesh, &workload).await?;
        Ok(ProxyClient::new(outbound))
    }

    async fn start(&mut self, mesh: &Mesh, workload: &Workload) -> anyhow::Result<SocketAddr> {
        let token_file = token(mesh, workload).await?;
        let outbound = SocketAddr::new(IpAddr::V4(workload.address), OUTBOUND_PORT);
        let running = Sidecar {
            join: Join {
                control_plane: SocketAddr::from((mesh.subnet.control_plane(), 15012)),
                ca: mesh.dir.join("root-cert.pem"),
                token_file,
            },
            name: workload.name.clone(),
            namespace: mesh.profile.apps_namespace.to_owned(),
            labels: workload.labels.iter().cloned().collect(),
            address: IpAddr::V4(workload.address),
            outbound,
            app: workload.app,
            log_dir: mesh.logs(),
        }
        .start(&self.metrics)
        .await
        .with_context(|| format!("the sidecar of {} did not start", workload.name))?;
        running.ready().await;
        self.sidecars.push(running);
        Ok(outbound)
    }

    /// Resolves when an app ends by itself, which it should not.
    pub async fn ended(&mut self) -> String {
        match self.apps.join_next().await {
            Some(Ok(Err(error))) => format!("a bookinfo service ended: {error}"),
            Some(_) => "a bookinfo service ended".to_owned(),
            None => std::future::pending().await,
        }
    }

    pub async fn stop(mut self) {
        futures::future::join_all(self.sidecars.into_iter().map(Running::stop)).await;
        self.apps.shutdown().await;
    }
}

struct Workload {
    name: String,
    account: String,
    labels: Vec<(String, String)>,
    address: Ipv4Addr,
    app: Option<SocketAddr>,
}

/// A token of the workload's ServiceAccount, in a file of its own.
async fn token(mesh: &Mesh, workload: &Workload) -> anyhow::Result<PathBuf> {
    let namespace = mesh.profile.apps_namespace;
    let token = new_token(&mesh.client, namespace, &workload.account).await?;
    let file = mesh.dir.join("tokens").join(&workload.name);
    write_token(&file, &token)?;
    Ok(file)
}
