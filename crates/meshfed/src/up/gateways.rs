//! Runs the gateways that the plan names, each as a proxy that joins over gRPC like any other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use meshfed_api::control_plane::AppliedCluster;
use meshfed_controlplane::apply::Outcomes;
use meshfed_federation::plan::gateways::service_account;
use meshfed_runtime::DrainWatch;
use tracing::{info, warn};

use crate::join::{Join, new_token, write_token};
use crate::proxies::{Gateway, ProxyMetrics, Running};

/// After a failed start it is tried again after this.
const RETRY: Duration = Duration::from_millis(100);

/// A gateway that cannot join in this time must not keep the others waiting.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// Tokens live for a day. One that is fresh is needed only if a certificate was not renewed in time.
const TOKEN_REFRESH: Duration = Duration::from_secs(6 * 3600);

/// What is needed to run gateways in this process.
pub struct Gateways {
    pub client: Client,
    pub namespace: String,
    /// Those that run elsewhere.
    pub external: BTreeSet<String>,
    /// With the directory for tokens in the place of the token file.
    pub join: Join,
    pub logs: PathBuf,
    /// See `--dns-server`.
    pub name_servers: Vec<SocketAddr>,
    pub metrics: ProxyMetrics,
    pub outcomes: Outcomes,
    pub drain: DrainWatch,
}

impl Gateways {
    /// Follows the plan until the drain begins; then waits for nothing more.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut running: BTreeMap<String, Running> = BTreeMap::new();
        let mut refresh = tokio::time::interval(TOKEN_REFRESH);
        loop {
            let newest = self.outcomes.borrow_and_update().clone();
            let wanted: BTreeSet<String> = newest
                .iter()
                .flat_map(|outcome| outcome.plan.gateways.keys())
                .filter(|name| !self.external.contains(*name))
                .cloned()
                .collect();
            let gone: Vec<String> = running
                .keys()
                .filter(|name| !wanted.contains(*name))
                .cloned()
                .collect();
            for name in gone {
                if let Some(gateway) = running.remove(&name) {
                    info!(gateway = name, "a gateway is not wanted any more");
                    gateway.stop().await;
                }
            }
            let mut failed = false;
            for name in wanted {
                if running.contains_key(&name) {
                    continue;
                }
                if !self.has_account(&name).await {
                    failed = true;
                    continue;
                }
                let started = tokio::select! {
                    started = tokio::time::timeout(START_TIMEOUT, self.start(&name)) => started,
                    () = self.drain.signaled() => break,
                };
                match started.unwrap_or_else(|_| Err(anyhow::anyhow!("it took too long"))) {
                    Ok(gateway) => {
                        running.insert(name, gateway);
                    }
                    Err(error) => {
                        failed = true;
                        warn!(
                            gateway = name,
                            error = format!("{error:#}"),
                            "a gateway did not start, trying again"
                        );
                    }
                }
            }
            tokio::select! {
                () = self.drain.signaled() => break,
                changed = self.outcomes.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(RETRY), if failed => {}
                _ = refresh.tick() => {
                    for name in running.keys() {
                        if let Err(error) = self.write_token(name).await {
                            warn!(gateway = name, error = format!("{error:#}"), "no new token");
                        }
                    }
                }
            }
        }
        futures::future::join_all(running.into_values().map(Running::stop)).await;
        Ok(())
    }

    /// Its ServiceAccount is made at the same time as we are told of the gateway.
    async fn has_account(&self, name: &str) -> bool {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let account = api.get_opt(&service_account(name)).await;
        matches!(account, Ok(Some(_)))
    }

    async fn start(&self, name: &str) -> anyhow::Result<Running> {
        let token_file = self.write_token(name).await?;
        Gateway {
            join: Join {
                token_file,
                ..self.join.clone()
            },
            cluster: self.cluster(),
            name: name.to_owned(),
            namespace: self.namespace.clone(),
            log_dir: self.logs.clone(),
            name_servers: self.name_servers.clone(),
        }
        .start(&self.metrics)
        .await
    }

    /// Name and network of the cluster, as the control plane's status has them.
    fn cluster(&self) -> AppliedCluster {
        let newest = self.outcomes.borrow();
        let status = newest.as_ref().and_then(|outcome| {
            let ruling = outcome.plan.control_plane.as_ref()?;
            outcome.plan.statuses.control_planes.get(ruling)
        });
        status.map_or_else(AppliedCluster::default, |s| s.applied_spec.cluster.clone())
    }

    /// A new token, where the gateway reads it at its next use.
    async fn write_token(&self, name: &str) -> anyhow::Result<PathBuf> {
        let file = self.join.token_file.join(name);
        let token = new_token(&self.client, &self.namespace, &service_account(name)).await?;
        write_token(&file, &token)?;
        Ok(file)
    }
}
