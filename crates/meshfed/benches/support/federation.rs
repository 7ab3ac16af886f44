//! Two meshes, each a process of its own, federated by the files under `examples/`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use kube::api::{Api, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use kube::{Client, Config};
use meshfed_testkit::{LoopbackNet, TempDir, temp_dir};
use tokio::time::{Instant, sleep};

use super::process::Process;

#[allow(dead_code, reason = "the demo applies more of it")]
#[path = "../../src/demo/manifests.rs"]
mod manifests;

pub use manifests::apply;

/// Anything that is waited for comes within this, or the benchmark fails.
pub const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// The gateways between a caller in green-mesh and a service of red-mesh.
pub const EGRESS: &str = "egress-red-mesh";
pub const INGRESS: &str = "ingress-green-mesh";
/// Where the services of red-mesh are.
pub const NAMESPACE: &str = "red-mesh-bookinfo";

/// Who runs [`EGRESS`] and [`INGRESS`].
#[allow(dead_code, reason = "each benchmark has one of them")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gateways {
    /// The process of their mesh.
    InMesh,
    /// Processes of their own.
    External,
}

/// One mesh.
pub struct Mesh {
    pub name: &'static str,
    pub net: LoopbackNet,
    pub dir: PathBuf,
    #[allow(dead_code, reason = "not every benchmark reads it")]
    pub log: PathBuf,
    pub client: Client,
    #[allow(dead_code, reason = "not every benchmark asks what it uses")]
    pub process: Process,
}

/// red-mesh and green-mesh, connected as soon as their gateways run.
pub struct Federation {
    pub red: Mesh,
    pub green: Mesh,
    _dir: TempDir,
}

impl Federation {
    /// `logging`: how green-mesh logs, as options of the program.
    ///
    /// # Errors
    ///
    /// A mesh does not start, or refuses a file.
    pub async fn start(gateways: Gateways, logging: &[&str]) -> anyhow::Result<Self> {
        let dir = temp_dir();
        let red = Mesh::start(&dir, "red-mesh", gateways, INGRESS, &[]).await?;
        let green = Mesh::start(&dir, "green-mesh", gateways, EGRESS, logging).await?;
        let federation = Self {
            red,
            green,
            _dir: dir,
        };
        let red = &federation.red;
        let green = &federation.green;
        for (mesh, files) in [(red, manifests::RED), (green, manifests::GREEN)] {
            for file in files.iter().filter(|file| !file.third) {
                let text = federation.own_addresses(&file.text(manifests::NETWORK));
                apply(&mesh.client, &text).await?;
            }
        }
        copy_root(red, green).await?;
        copy_root(green, red).await?;
        Ok(federation)
    }

    /// The same manifest on the networks of these meshes.
    fn own_addresses(&self, text: &str) -> String {
        // Either network may be the one that stands in the files for the other.
        text.replace("127.64.1.", "<red>")
            .replace("127.64.2.", &prefix(&self.green.net))
            .replace("<red>", &prefix(&self.red.net))
    }

    /// Where green-mesh's egress gateway for red-mesh takes connections.
    pub async fn egress(&self) -> anyhow::Result<SocketAddr> {
        let api: Api<Service> = Api::namespaced(self.green.client.clone(), &self.green.system());
        let service = within(await_condition(api, EGRESS, |service: Option<&Service>| {
            service.is_some_and(|s| cluster_ip(s).is_some())
        }))
        .await??;
        let ip = service.as_ref().and_then(cluster_ip);
        let ip = ip.context("the egress gateway has no address")?;
        Ok(SocketAddr::new(ip.parse()?, 15443))
    }
}

fn cluster_ip(service: &Service) -> Option<&str> {
    service.spec.as_ref()?.cluster_ip.as_deref()
}

impl Mesh {
    async fn start(
        parent: &TempDir,
        name: &'static str,
        gateways: Gateways,
        gateway: &str,
        logging: &[&str],
    ) -> anyhow::Result<Self> {
        let net = LoopbackNet::lock();
        let dir = parent.path().join(name);
        let log = parent.path().join(format!("{name}.log"));
        let mut process = Process::meshfed(&log, |up| {
            up.args(logging);
            up.args(["up", "--until-stdin-ends", "--name", name]);
            up.args(["--subnet", &net.cidr(), "--data-dir"]).arg(&dir);
            if gateways == Gateways::External {
                up.args(["--external-gateways", gateway]);
            }
        })?;
        let deadline = Instant::now() + PATIENCE;
        let client = loop {
            process.check()?;
            match connect(&dir).await {
                Ok(client) => break client,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => sleep(PAUSE).await,
            }
        };
        Ok(Self {
            name,
            net,
            dir,
            log,
            client,
            process,
        })
    }

    /// The namespace of the control plane.
    pub fn system(&self) -> String {
        format!("{}-system", self.name)
    }

    /// Where proxies join.
    pub fn control_plane(&self) -> SocketAddr {
        SocketAddr::new(self.net.address(1), 15012)
    }

    pub fn root_cert(&self) -> PathBuf {
        self.dir.join("root-cert.pem")
    }

    /// A token of a ServiceAccount that is there or will be.
    pub async fn token(&self, namespace: &str, account: &str) -> anyhow::Result<String> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let there = |account: Option<&ServiceAccount>| account.is_some();
        within(await_condition(api.clone(), account, there)).await??;
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(3600),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let answer = api
            .create_token_request(account, &PostParams::default(), &request)
            .await?;
        Ok(answer.status.context("the answer has no token")?.token)
    }
}

/// # Errors
///
/// It did not end in time.
pub async fn within<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.with_context(|| format!("not within {PATIENCE:?}"))
}

/// The administrator's client, if the API is there already.
async fn connect(dir: &std::path::Path) -> anyhow::Result<Client> {
    let read = Kubeconfig::read_from(dir.join("kubeconfig"))?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.list(&ListParams::default().limit(1)).await?;
    Ok(client)
}

/// Hands the root certificate of one mesh to the administrator of the other.
async fn copy_root(from: &Mesh, to: &Mesh) -> anyhow::Result<()> {
    let root = std::fs::read_to_string(from.root_cert())?;
    let map: ConfigMap = serde_json::from_value(serde_json::json!({
        "metadata": {"name": format!("{}-ca-root-cert", from.name)},
        "data": {"root-cert.pem": root},
    }))?;
    let api: Api<ConfigMap> = Api::namespaced(to.client.clone(), &to.system());
    api.create(&PostParams::default(), &map).await?;
    Ok(())
}

/// `127.x.y.`
fn prefix(net: &LoopbackNet) -> String {
    let first = net.address(0).to_string();
    first.trim_end_matches('0').to_owned()
}
