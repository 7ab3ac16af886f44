//! What the demo says, and what it looks at before it says so.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use kube::Api;
use kube::runtime::wait::await_condition;
use meshfed_api::{ExportedServiceSet, ImportedServiceSet, ServiceMeshPeer};

use super::bookinfo::ProxyClient;
use super::meshes::Mesh;

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// The name under which workloads of every other mesh call ratings of red-mesh.
pub const IMPORTED: &str = "ratings.bookinfo.svc.red-mesh-imports.local";

/// Waits until both directions with this peer are connected.
pub async fn connected(mesh: &Mesh, peer: &str) -> anyhow::Result<()> {
    let api: Api<ServiceMeshPeer> = Api::namespaced(mesh.client.clone(), &mesh.system_namespace());
    let both = |peer: Option<&ServiceMeshPeer>| peer.is_some_and(both_directions);
    let waiting = await_condition(api.clone(), peer, both);
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        let status = api.get(peer).await?.status;
        bail!(
            "{} and {peer} are not connected: {}",
            mesh.profile.name,
            serde_json::to_string(&status)?
        );
    }
    Ok(())
}

fn both_directions(peer: &ServiceMeshPeer) -> bool {
    let active = peer.status.iter().flat_map(|s| &s.discovery_status.active);
    active
        .into_iter()
        .any(|pod| pod.watch.connected && pod.remotes.iter().any(|r| r.connected))
}

/// What `red` exports to a peer: exported name to local host.
pub async fn exports(red: &Mesh, peer: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let api: Api<ExportedServiceSet> = Api::namespaced(red.client.clone(), &red.system_namespace());
    let set = wait(&api, peer, |set: &ExportedServiceSet| {
        set.status
            .as_ref()
            .is_some_and(|s| !s.exported_services.is_empty())
    })
    .await?;
    let services = set.status.unwrap_or_default().exported_services;
    Ok(services
        .into_iter()
        .map(|s| (s.exported_name, s.local_service.hostname))
        .collect())
}

/// What a mesh imports from red-mesh: exported name to imported host, empty if not imported.
pub async fn imports(mesh: &Mesh) -> anyhow::Result<BTreeMap<String, String>> {
    let api: Api<ImportedServiceSet> =
        Api::namespaced(mesh.client.clone(), &mesh.system_namespace());
    let set = wait(&api, "red-mesh", |set: &ImportedServiceSet| {
        let services = set.status.iter().flat_map(|s| &s.imported_services);
        services
            .into_iter()
            .any(|s| s.local_service.hostname == IMPORTED)
    })
    .await?;
    let services = set.status.unwrap_or_default().imported_services;
    Ok(services
        .into_iter()
        .map(|s| (s.exported_name, s.local_service.hostname))
        .collect())
}

async fn wait<K>(api: &Api<K>, name: &str, condition: impl Fn(&K) -> bool) -> anyhow::Result<K>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
{
    let met = |object: Option<&K>| object.is_some_and(&condition);
    let waiting = await_condition(api.clone(), name, met);
    let found = tokio::time::timeout(PATIENCE, waiting).await;
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    found
        .with_context(|| format!("the status of {kind} {name} is not what it should be"))?
        .with_context(|| format!("cannot watch {kind} {name}"))?
        .with_context(|| format!("{kind} {name} is gone"))
}

/// Calls ratings of red-mesh until it answers; returns the answer and how often that took.
pub async fn call(client: &ProxyClient) -> anyhow::Result<serde_json::Value> {
    let began = Instant::now();
    loop {
        match client.json(IMPORTED, "/ratings/0").await {
            Ok(answer) => {
                ensure!(
                    answer["ratings"]["Reviewer1"] == 5,
                    "ratings answered something else: {answer}"
                );
                return Ok(answer);
            }
            Err(error) if began.elapsed() > PATIENCE => {
                return Err(anyhow::Error::new(error))
                    .with_context(|| format!("{IMPORTED} cannot be called"));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// A service that is exported and not imported must not be reachable under any name.
pub async fn refused(client: &ProxyClient) -> anyhow::Result<()> {
    for host in [
        "reviews.red-mesh-bookinfo.svc.red-mesh-imports.local",
        "reviews.red-mesh-bookinfo.svc.cluster.local",
        "details.red-mesh-bookinfo.svc.cluster.local",
    ] {
        let answer = client.get(host, "/reviews/0").await?;
        ensure!(
            answer.status == 404,
            "{host} is not imported, and answered with {}",
            answer.status
        );
    }
    Ok(())
}

/// One hop of the call: the log that tells of it and who was at its two ends.
#[derive(Debug)]
pub struct Hop {
    pub component: String,
    pub client: String,
    pub server: String,
}

/// The identities that the two gateways saw, from their access logs. They write a connection down
/// when it ends, so this makes one that does.
pub async fn hops(red: &Mesh, other: &Mesh, client: &ProxyClient) -> anyhow::Result<Vec<Hop>> {
    let answer = client.get_by_tunnel(IMPORTED, "/ratings/0").await?;
    ensure!(
        answer.status == 200,
        "the tunnel answered with {}",
        answer.status
    );
    let name = other.profile.name;
    let mut hops = Vec::new();
    for (mesh, component, domain, next) in [
        (other, "egress-red-mesh".to_owned(), name, "red-mesh"),
        (red, format!("ingress-{name}"), name, "red-mesh"),
    ] {
        let log = mesh.logs().join(format!("{component}.log"));
        let (client, server) = identities(&log, "15443").await?;
        for (identity, domain) in [(&client, domain), (&server, next)] {
            ensure!(
                identity.starts_with(&format!("spiffe://{domain}.local/")),
                "{component} of {} saw {identity}, which is not of {domain}",
                mesh.profile.name
            );
        }
        hops.push(Hop {
            component: format!("{component} of {}", mesh.profile.name),
            client,
            server,
        });
    }
    Ok(hops)
}

/// The two identities in the newest line about a forwarded connection of a listener. Logs are
/// written behind the traffic, so it waits for the line.
async fn identities(log: &Path, port: &str) -> anyhow::Result<(String, String)> {
    let began = Instant::now();
    loop {
        let text = tokio::fs::read_to_string(log).await.unwrap_or_default();
        let found = text.lines().rev().find_map(|line| {
            let fields: BTreeMap<&str, &str> = line
                .split(' ')
                .filter_map(|field| field.split_once('='))
                .collect();
            let listener = fields.get("listener")?;
            let ids = (*fields.get("peer")?, *fields.get("upstream_peer")?);
            (listener.ends_with(port) && ids.0 != "-" && ids.1 != "-")
                .then(|| (ids.0.to_owned(), ids.1.to_owned()))
        });
        match found {
            Some(found) => return Ok(found),
            None if began.elapsed() > PATIENCE => {
                bail!("{} has no line about the call", log.display())
            }
            None => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// The administrator's credentials are for nobody else.
pub fn private(file: &Path) -> anyhow::Result<()> {
    let metadata =
        std::fs::metadata(file).with_context(|| format!("{} is not there", file.display()))?;
    let mode = metadata.permissions().mode() & 0o777;
    ensure!(
        mode == 0o600,
        "{} has mode {mode:o}, not 600",
        file.display()
    );
    Ok(())
}
