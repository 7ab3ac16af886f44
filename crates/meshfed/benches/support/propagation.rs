//! How long a change of one mesh takes until a caller in the other one notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use rustls::ClientConfig;
use tokio::time::sleep;

use super::federation::{Federation, NAMESPACE, within};
use super::workload::{Target, Workload, sni, write_endpoint};

/// Between two attempts to call.
const PAUSE: Duration = Duration::from_millis(2);
/// So often the same, and it is not a coincidence.
const IN_A_ROW: u32 = 5;

/// Every service of the namespace, on both sides.
pub const EXPORT: &str = r#"
apiVersion: federation.maistra.io/v1
kind: ExportedServiceSet
metadata: {name: green-mesh, namespace: red-mesh-system}
spec:
  exportRules:
  - type: NameSelector
    nameSelector: {namespace: red-mesh-bookinfo, name: "*"}
"#;
pub const IMPORT: &str = r#"
apiVersion: federation.maistra.io/v1
kind: ImportedServiceSet
metadata: {name: red-mesh, namespace: green-mesh-system}
spec:
  importRules:
  - type: NameSelector
    importAsLocal: false
    nameSelector: {namespace: red-mesh-bookinfo, name: "*"}
"#;

/// Services that come and go, one after the other.
pub struct Rounds {
    red: Client,
    egress: SocketAddr,
    tls: Arc<ClientConfig>,
    backend: SocketAddr,
    count: usize,
}

impl Rounds {
    pub async fn new(
        federation: &Federation,
        client: &Workload,
        backend: SocketAddr,
        count: usize,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            red: federation.red.client.clone(),
            egress: federation.egress().await?,
            tls: client.client()?,
            backend,
            count,
        })
    }

    /// A service of red-mesh as green-mesh's workloads call it.
    pub fn target(&self, service: &str) -> anyhow::Result<Target> {
        let name = sni(service, NAMESPACE)?;
        Ok(Target {
            address: self.egress,
            tls: Some((self.tls.clone(), name)),
        })
    }

    /// The times until each service could be called, and could not be called any more, from the
    /// request to the API.
    pub async fn run(&self) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
        let services: Api<Service> = Api::namespaced(self.red.clone(), NAMESPACE);
        let slices: Api<EndpointSlice> = Api::namespaced(self.red.clone(), NAMESPACE);
        let (mut appeared, mut disappeared) = (Vec::new(), Vec::new());
        for round in 0..self.count {
            let name = format!("round-{round}");
            let target = self.target(&name)?;
            let began = Instant::now();
            services
                .create(&PostParams::default(), &service(&name)?)
                .await?;
            write_endpoint(&self.red, &name, self.backend).await?;
            appeared.push(until(&target, true).await?.duration_since(began));

            let began = Instant::now();
            services.delete(&name, &DeleteParams::default()).await?;
            disappeared.push(until(&target, false).await?.duration_since(began));
            let slice = format!("{name}-by-hand");
            slices.delete(&slice, &DeleteParams::default()).await?;
        }
        Ok((appeared, disappeared))
    }
}

/// One with a port.
pub fn service(name: &str) -> anyhow::Result<Service> {
    Ok(serde_json::from_value(serde_json::json!({
        "metadata": {"name": name},
        "spec": {"ports": [{"name": "http", "port": 9080}]},
    }))?)
}

/// Calls over new connections until that works, or does not, [`IN_A_ROW`] times; gives when the
/// first of those was done.
pub async fn until(target: &Target, works: bool) -> anyhow::Result<Instant> {
    within(async {
        let mut first = Instant::now();
        let mut row = 0;
        while row < IN_A_ROW {
            if target.call_once().await.is_ok() == works {
                if row == 0 {
                    first = Instant::now();
                }
                row += 1;
            } else {
                row = 0;
                sleep(PAUSE).await;
            }
        }
        first
    })
    .await
}
