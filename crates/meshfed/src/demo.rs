//! `meshfed demo`: two or three meshes on this machine, federated as their administrators would.

mod bookinfo;
mod claims;
mod manifests;
mod meshes;
mod screen;
mod workloads;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use meshfed_api::{OWN_ROOT_CONFIG_MAP, ROOT_CERT_KEY};

use self::bookinfo::ProxyClient;
use self::meshes::{Mesh, PROFILES, Profile};
use self::screen::Screen;
use self::workloads::Workloads;
use crate::cli::{DemoOptions, Logging};

/// Runs the demo to its end.
///
/// # Errors
///
/// A mesh does not start, or something that the demo claims does not hold.
pub fn run(options: DemoOptions, logging: &Logging) -> anyhow::Result<ExitCode> {
    // The meshes have logs of their own; here only what goes wrong is of interest.
    let _log = crate::join::init_logging(logging, "error")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(demonstrate(options))
}

async fn demonstrate(options: DemoOptions) -> anyhow::Result<ExitCode> {
    let mut stop = meshfed_runtime::shutdown_signal()?;
    let temporary = match &options.data_dir {
        Some(_) => None,
        None => Some(tempfile::tempdir().context("cannot make a temporary directory")?),
    };
    let data = match (&options.data_dir, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, Some(dir)) => dir.path().to_owned(),
        (None, None) => PathBuf::from("."),
    };
    let profiles = &PROFILES[..usize::from(options.meshes)];
    let screen = Screen::new();
    let mut stage = Stage::default();
    let result = tokio::select! {
        result = stage.play(&screen, profiles, &data, options.check) => result,
        _ = stop.recv() => Ok(Scene::Interrupted),
    };
    let result = match result {
        Ok(Scene::Ready) if options.check => Ok(ExitCode::SUCCESS),
        Ok(Scene::Ready) => {
            screen.line("");
            screen.line("Running until Ctrl-C.");
            tokio::select! {
                _ = stop.recv() => Ok(ExitCode::SUCCESS),
                what = stage.broken() => Err(anyhow::anyhow!(what)),
            }
        }
        Ok(Scene::Interrupted) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
    };
    if stage.is_empty() {
        return result;
    }
    let stopping = screen.step("stop everything");
    stage.stop().await;
    stopping.done();
    result
}

/// How far the demo got.
enum Scene {
    Ready,
    Interrupted,
}

/// Everything that runs.
#[derive(Default)]
struct Stage {
    /// Holds the network against other demos.
    network: Option<TcpListener>,
    meshes: Vec<Mesh>,
    workloads: Workloads,
}

impl Stage {
    /// Whether nothing was started.
    fn is_empty(&self) -> bool {
        self.meshes.is_empty()
    }

    async fn play(
        &mut self,
        screen: &Screen,
        profiles: &[Profile],
        data: &Path,
        check: bool,
    ) -> anyhow::Result<Scene> {
        let third = profiles.len() > 2;
        let (network, lock) = network(profiles, data)?;
        self.network = lock;
        screen.heading("Starting the meshes");
        for profile in profiles {
            let step = screen.step(format!("start {}", profile.name));
            let mesh = Mesh::start(*profile, network, data).await?;
            let pid = mesh.process_id().unwrap_or_default();
            step.done_with(format!("process {pid} on {}", mesh.subnet));
            self.meshes.push(mesh);
        }
        screen.heading("Applying what their administrators wrote");
        for mesh in &self.meshes {
            for manifest in mesh
                .profile
                .manifests
                .iter()
                .filter(|m| third || !m.third || mesh.profile.name == "blue-mesh")
            {
                let step = screen.step(format!(
                    "{}: apply examples/{}",
                    mesh.profile.name, manifest.path
                ));
                manifests::apply(&mesh.client, &manifest.text(network)).await?;
                step.done();
            }
        }
        for mesh in &self.meshes {
            for peer in self
                .meshes
                .iter()
                .filter(|p| p.profile.name != mesh.profile.name)
            {
                let step = screen.step(format!(
                    "{}: take the root certificate of {} as ConfigMap {}-ca-root-cert",
                    mesh.profile.name, peer.profile.name, peer.profile.name
                ));
                copy_root(peer, mesh).await?;
                step.done();
            }
        }
        screen.heading("Starting the workloads");
        let (red, others) = self.meshes.split_first().context("there is no mesh")?;
        let step = screen.step("red-mesh: start productpage, details, ratings, reviews v1 to v3");
        self.workloads.start_bookinfo(red).await?;
        step.done();
        let mut clients = Vec::new();
        for mesh in others {
            let step = screen.step(format!("{}: start a client", mesh.profile.name));
            clients.push((mesh, self.workloads.start_client(mesh).await?));
            step.done();
        }
        screen.heading("Federating");
        for mesh in &self.meshes {
            for peer in self
                .meshes
                .iter()
                .filter(|p| p.profile.name != mesh.profile.name)
            {
                let name = peer.profile.name;
                let step = screen.step(format!(
                    "{}: connected with {name} in both directions",
                    mesh.profile.name
                ));
                claims::connected(mesh, name).await?;
                step.done();
            }
        }
        for (mesh, client) in &clients {
            call(screen, mesh, client, check).await?;
        }
        self.report(screen, &clients, check).await?;
        Ok(Scene::Ready)
    }

    /// What was shared, who was seen, and what to try next.
    async fn report(
        &self,
        screen: &Screen,
        clients: &[(&Mesh, ProxyClient)],
        check: bool,
    ) -> anyhow::Result<()> {
        let (red, _) = self.meshes.split_first().context("there is no mesh")?;
        screen.heading("What red-mesh shares, and under which names");
        for (mesh, _) in clients {
            let exports = claims::exports(red, mesh.profile.name).await?;
            let imports = claims::imports(mesh).await?;
            for (exported, local) in &exports {
                screen.line(format_args!("{local} of red-mesh"));
                screen.line(format_args!(
                    "  is known to {} as {exported}",
                    mesh.profile.name
                ));
                match imports.get(exported).map(String::as_str) {
                    None | Some("") => screen.line("  and is not imported there"),
                    Some(imported) => {
                        screen.line(format_args!("  and is called there as {imported}:9080"))
                    }
                }
            }
        }
        screen.heading("Certificate identities seen at each hop");
        for (mesh, client) in clients {
            for hop in claims::hops(red, mesh, client).await? {
                screen.line(hop.component);
                screen.line(format_args!("  from  {}", hop.client));
                screen.line(format_args!("  to    {}", hop.server));
            }
        }
        screen.heading("kubectl");
        for mesh in &self.meshes {
            let file = mesh.kubeconfig();
            if check {
                claims::private(&file)?;
            }
            screen.line(format_args!(
                "{}: export KUBECONFIG={}",
                mesh.profile.name,
                file.display()
            ));
        }
        screen.heading("Try next");
        let Some((other, _)) = clients.first() else {
            return Ok(());
        };
        let (red_config, config) = (red.kubeconfig(), other.kubeconfig());
        let (red_config, config) = (red_config.display(), config.display());
        let name = other.profile.name;
        screen.line(format_args!(
            "kubectl --kubeconfig {red_config} get smcp -n red-mesh-system"
        ));
        screen.line(format_args!("kubectl --kubeconfig {red_config} -n red-mesh-system get exportedserviceset {name} -o yaml"));
        screen.line(format_args!(
            "kubectl --kubeconfig {config} -n {name}-system get servicemeshpeer red-mesh -o yaml"
        ));
        screen.line(format_args!(
            "curl -x http://{}:15001 http://{}:9080/ratings/0",
            other.subnet.address(200),
            claims::IMPORTED
        ));
        Ok(())
    }

    /// Resolves when something ends that should go on.
    async fn broken(&mut self) -> String {
        let meshes = self.meshes.iter_mut().map(|mesh| Box::pin(mesh.ended()));
        tokio::select! {
            (what, _, _) = futures::future::select_all(meshes) => what,
            what = self.workloads.ended() => what,
        }
    }

    async fn stop(self) {
        self.workloads.stop().await;
        drop(self.network);
        futures::future::join_all(self.meshes.into_iter().map(Mesh::stop)).await;
    }
}

/// Calls ratings of red-mesh from another mesh, and what it must not reach.
async fn call(
    screen: &Screen,
    mesh: &Mesh,
    client: &ProxyClient,
    check: bool,
) -> anyhow::Result<()> {
    let step = screen.step(format!(
        "{}: GET http://{}:9080/ratings/0",
        mesh.profile.name,
        claims::IMPORTED
    ));
    let answer = claims::call(client).await?;
    step.done_with(answer);
    if check {
        let step = screen.step(format!(
            "{}: what is not imported is not there",
            mesh.profile.name
        ));
        claims::refused(client).await?;
        step.done();
    }
    Ok(())
}

/// The network of an earlier demo in this directory, else one that is free.
fn network(profiles: &[Profile], data: &Path) -> anyhow::Result<(u8, Option<TcpListener>)> {
    let file = data.join("network");
    if let Ok(text) = std::fs::read_to_string(&file)
        && let Ok(network) = text.trim().parse()
    {
        return Ok((network, None));
    }
    let (network, lock) = meshes::free_network(profiles)?;
    std::fs::create_dir_all(data).with_context(|| format!("cannot create {}", data.display()))?;
    std::fs::write(&file, network.to_string())
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok((network, Some(lock)))
}

/// Hands the root of `from` to `to`, as two administrators would by mail.
async fn copy_root(from: &Mesh, to: &Mesh) -> anyhow::Result<()> {
    let source: Api<ConfigMap> = Api::namespaced(from.client.clone(), &from.system_namespace());
    let there = |map: Option<&ConfigMap>| map.is_some();
    let root = await_condition(source, OWN_ROOT_CONFIG_MAP, there)
        .await?
        .and_then(|map| map.data)
        .and_then(|mut data| data.remove(ROOT_CERT_KEY))
        .with_context(|| format!("{} has no root certificate", from.profile.name))?;
    let name = format!("{}-ca-root-cert", from.profile.name);
    let target: Api<ConfigMap> = Api::namespaced(to.client.clone(), &to.system_namespace());
    let config_map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            ..ObjectMeta::default()
        },
        data: Some([(ROOT_CERT_KEY.to_owned(), root)].into()),
        ..ConfigMap::default()
    };
    match target.create(&PostParams::default(), &config_map).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = Patch::Merge(&config_map);
            target.patch(&name, &PatchParams::default(), &patch).await?;
        }
        other => {
            other?;
        }
    }
    Ok(())
}
