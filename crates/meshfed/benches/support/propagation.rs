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
use super::workload::{Target, Workload, imported, sni, write_endpoint};

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
    /// Where a sidecar of green-mesh takes requests.
    sidecar: Option<SocketAddr>,
    backend: SocketAddr,
    count: usize,
}

/// How long it took until services could be called, and not any more, from the request to the API.
#[derive(Default)]
pub struct Times {
    pub appeared: Vec<Duration>,
    pub disappeared: Vec<Duration>,
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
            sidecar: None,
            backend,
            count,
        })
    }

    /// Calls by this sidecar as well.
    #[allow(dead_code, reason = "not every benchmark has one")]
    pub fn with_sidecar(self, address: SocketAddr) -> Self {
        Self {
            sidecar: Some(address),
            ..self
        }
    }

    /// A service of red-mesh as green-mesh's workloads call it.
    pub fn target(&self, service: &str) -> anyhow::Result<Target> {
        let name = sni(service, NAMESPACE)?;
        Ok(Target {
            address: self.egress,
            tls: Some((self.tls.clone(), name)),
            authority: imported(service, NAMESPACE),
        })
    }

    /// The same through the sidecar, if there is one.
    pub fn by_sidecar(&self, service: &str) -> Option<Target> {
        Some(Target {
            address: self.sidecar?,
            tls: None,
            authority: imported(service, NAMESPACE),
        })
    }

    /// At the egress gateway, and through the sidecar.
    pub async fn run(&self) -> anyhow::Result<(Times, Times)> {
        let services: Api<Service> = Api::namespaced(self.red.clone(), NAMESPACE);
        let slices: Api<EndpointSlice> = Api::namespaced(self.red.clone(), NAMESPACE);
        let (mut egress, mut sidecar) = (Times::default(), Times::default());
        for round in 0..self.count {
            let name = format!("round-{round}");
            let targets = (self.target(&name)?, self.by_sidecar(&name));
            let began = Instant::now();
            services
                .create(&PostParams::default(), &service(&name)?)
                .await?;
            write_endpoint(&self.red, &name, self.backend).await?;
            let (at_egress, at_sidecar) = both(&targets, true).await?;
            egress.appeared.push(at_egress.duration_since(began));
            let at_sidecar = at_sidecar.map(|at| at.duration_since(began));
            sidecar.appeared.extend(at_sidecar);

            let began = Instant::now();
            services.delete(&name, &DeleteParams::default()).await?;
            let (at_egress, at_sidecar) = both(&targets, false).await?;
            egress.disappeared.push(at_egress.duration_since(began));
            let at_sidecar = at_sidecar.map(|at| at.duration_since(began));
            sidecar.disappeared.extend(at_sidecar);
            let slice = format!("{name}-by-hand");
            slices.delete(&slice, &DeleteParams::default()).await?;
        }
        Ok((egress, sidecar))
    }
}

async fn both(
    (egress, sidecar): &(Target, Option<Target>),
    works: bool,
) -> anyhow::Result<(Instant, Option<Instant>)> {
    let by_sidecar = async {
        match sidecar {
            Some(sidecar) => until(sidecar, works).await.map(Some),
            None => Ok(None),
        }
    };
    tokio::try_join!(until(egress, works), by_sidecar)
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
