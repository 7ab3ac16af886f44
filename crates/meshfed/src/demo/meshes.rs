//! The meshes of the demo: each a process of its own with everything of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use meshfed_controlplane::subnet::Subnet;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::manifests::{self, Manifest};

const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Marks a network as a demo's.
const LOCK_PORT: u16 = 15999;
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What makes a mesh different from the others.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    pub name: &'static str,
    /// Third byte of its /24.
    pub third: u8,
    pub manifests: &'static [Manifest],
    /// Where its workloads are.
    pub apps_namespace: &'static str,
}

pub const PROFILES: [Profile; 3] = [
    Profile {
        name: "red-mesh",
        third: 1,
        manifests: manifests::RED,
        apps_namespace: "red-mesh-bookinfo",
    },
    Profile {
        name: "green-mesh",
        third: 2,
        manifests: manifests::GREEN,
        apps_namespace: "bookinfo",
    },
    Profile {
        name: "blue-mesh",
        third: 3,
        manifests: manifests::BLUE,
        apps_namespace: "bookinfo",
    },
];

/// A running mesh.
pub struct Mesh {
    pub profile: Profile,
    pub subnet: Subnet,
    pub dir: PathBuf,
    child: Child,
    /// The process runs until this is closed. Waiting for a child closes what it holds itself.
    stdin: Option<ChildStdin>,
    pub client: Client,
}

impl Mesh {
    /// Starts `meshfed up` in a process of its own and waits until it serves its API. The process
    /// ends when this one does, however that happens: its standard input ends then.
    pub async fn start(profile: Profile, network: u8, data: &Path) -> anyhow::Result<Self> {
        let subnet = Subnet::new(network, profile.third);
        let dir = data.join(profile.name);
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        let log_path = dir.join("meshfed.log");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| format!("cannot write {}", log_path.display()))?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Command::new(program)
            .args(["up", "--until-stdin-ends", "--name", profile.name])
            .args(["--subnet", &subnet.to_string()])
            .arg("--data-dir")
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", profile.name))?;
        let started = tokio::time::timeout(START_TIMEOUT, first_line(&mut child)).await;
        if !matches!(started, Ok(Ok(Some(_)))) {
            bail!(
                "{} did not start: {}",
                profile.name,
                last_line(&log_path).unwrap_or_else(|| format!("see {}", log_path.display()))
            );
        }
        let client = client(&dir.join("kubeconfig")).await?;
        Ok(Self {
            profile,
            subnet,
            dir,
            stdin: child.stdin.take(),
            child,
            client,
        })
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Where the access logs of its components are.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub fn system_namespace(&self) -> String {
        format!("{}-system", self.profile.name)
    }

    pub fn process_id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Resolves when the process ends by itself, which it should not.
    pub async fn ended(&mut self) -> String {
        let status = self.child.wait().await;
        let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
        format!("{} ended: {status}", self.profile.name)
    }

    /// Lets the process end by itself, else kills it.
    pub async fn stop(mut self) {
        drop(self.stdin.take());
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait())
            .await
            .is_err()
        {
            let _already_gone = self.child.kill().await;
        }
    }
}

/// A client with the rights of the mesh's administrator.
async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("cannot use {}", kubeconfig.display()))?;
    let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("cannot use {}", kubeconfig.display()))?;
    Ok(Client::try_from(config)?)
}

async fn first_line(child: &mut Child) -> std::io::Result<Option<String>> {
    match child.stdout.take() {
        Some(stdout) => BufReader::new(stdout).lines().next_line().await,
        None => Ok(None),
    }
}

fn last_line(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    text.lines().last().map(str::to_owned)
}

/// The first 127.N.0.0/16 in which the control plane of every mesh finds its address free,
/// beginning with the examples' own.
///
/// # Errors
///
/// None is free.
pub fn free_network(profiles: &[Profile]) -> anyhow::Result<(u8, TcpListener)> {
    let free = |network: u8| {
        // Held as long as the demo runs: two that start at once do not take the same one.
        let lock = TcpListener::bind((Subnet::new(network, 0).address(254), LOCK_PORT)).ok()?;
        let all = profiles.iter().all(|profile| {
            let address = Subnet::new(network, profile.third).control_plane();
            [6443, 15012]
                .iter()
                .all(|port| TcpListener::bind((address, *port)).is_ok())
        });
        all.then_some((network, lock))
    };
    (manifests::NETWORK..=127).find_map(free).context(
        "no network from 127.64.0.0/16 to 127.127.0.0/16 is free; is another demo running?",
    )
}
