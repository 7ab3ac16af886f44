//! Two meshes as their administrators run them, each in a process of its own, on networks that a
//! test owns: red-mesh shares ratings with green-mesh by the files under `examples/`.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::api::{DynamicObject, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt as _, discovery};
use meshfed_api::{OWN_ROOT_CONFIG_MAP, ROOT_CERT_KEY, ServiceMeshPeer};
use meshfed_testkit::{LoopbackNet, TempDir, eventually, temp_dir};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::program::{PATIENCE, meshfed, wait};

/// The name under which green-mesh calls ratings of red-mesh.
pub const IMPORTED: &str = "ratings.bookinfo.svc.red-mesh-imports.local:9080";
/// The last byte of the address of each mesh's workload.
const WORKLOAD: u8 = 200;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// What the application answers to everything.
const ANSWER: &str = r#"{"id":0,"ratings":{"Reviewer1":5}}"#;

/// A process that does not outlive its test. If the test fails, it shows the end of its log.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn start(command: &mut Command, log: PathBuf) -> Self {
        let file = File::options().create(true).append(true).open(&log);
        let child = command
            .stdout(Stdio::null())
            .stderr(file.unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// As `kill -9`: without a chance to clean up.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status();
        assert!(sent.unwrap().success());
    }

    /// As a service manager stops it. It must end well, and soon.
    pub fn stop(&mut self) {
        self.signal("TERM");
        let ended = wait(&mut self.child, PATIENCE);
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    }

    pub fn assert_runs(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert_eq!(ended, None, "it ended by itself");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have been killed before.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(10)..];
            eprintln!("--- {}\n{}", self.log.display(), last.join("\n"));
        }
    }
}

/// A mesh, most often `meshfed up` in a process of its own.
pub struct Mesh {
    pub name: &'static str,
    pub net: LoopbackNet,
    pub dir: PathBuf,
    pub client: Client,
    /// `None` where the test itself runs it.
    up: Option<Process>,
    /// More arguments of `meshfed up`.
    more: Vec<String>,
}

impl Mesh {
    pub async fn start(
        name: &'static str,
        net: LoopbackNet,
        dir: PathBuf,
        more: Vec<String>,
    ) -> Self {
        fs::create_dir_all(&dir).unwrap();
        let mut up = spawn_up(name, &net, &dir, &more);
        let client = administrator(&dir, &mut up).await;
        Self {
            name,
            net,
            dir,
            client,
            up: Some(up),
            more,
        }
    }

    /// A mesh whose API and control plane the test runs.
    pub fn around(name: &'static str, net: LoopbackNet, dir: PathBuf, client: Client) -> Self {
        Self {
            name,
            net,
            dir,
            client,
            up: None,
            more: Vec::new(),
        }
    }

    fn process(&mut self) -> &mut Process {
        self.up.as_mut().unwrap()
    }

    /// The resident memory of the mesh's process in MiB: now, and the most that there was.
    pub fn memory(&self) -> [u64; 2] {
        let file = format!("/proc/{}/status", self.up.as_ref().unwrap().child.id());
        let status = fs::read_to_string(file).unwrap();
        ["VmRSS:", "VmHWM:"].map(|field| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let kib = line.unwrap().split_whitespace().next().unwrap();
            kib.parse::<u64>().unwrap() / 1024
        })
    }

    /// `kill -9` of the mesh's process.
    pub fn kill(&mut self) {
        self.process().kill();
    }

    /// The mesh's process does nothing from now on, as on a machine that sleeps.
    pub fn freeze(&mut self) {
        self.process().signal("STOP");
    }

    /// It goes on.
    pub fn thaw(&mut self) {
        self.process().signal("CONT");
    }

    /// SIGTERM for the mesh's process.
    pub fn stop(&mut self) {
        self.process().stop();
    }

    /// The lines of its audit log.
    pub fn audit_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.join("audit/audit.log")).unwrap();
        let lines = text.lines().map(serde_json::from_str);
        lines.map(Result::unwrap).collect()
    }

    /// The same command with the same data directory.
    pub async fn start_again(&mut self) {
        let mut up = spawn_up(self.name, &self.net, &self.dir, &self.more);
        self.client = administrator(&self.dir, &mut up).await;
        self.up = Some(up);
    }

    pub fn system(&self) -> String {
        format!("{}-system", self.name)
    }

    pub fn address(&self, last: u8, port: u16) -> SocketAddr {
        (self.net.address(last), port).into()
    }

    /// A log of a component that runs in the mesh's own process.
    pub fn log_of(&self, component: &str) -> String {
        let file = self.dir.join("logs").join(format!("{component}.log"));
        fs::read_to_string(file).unwrap_or_default()
    }

    /// Applies a manifest whose addresses are those of this federation.
    pub async fn apply(&self, manifest: &str) {
        let objects: Vec<DynamicObject> = serde_saphyr::from_multiple(manifest).unwrap();
        for object in objects {
            let gvk = GroupVersionKind::try_from(object.types.as_ref().unwrap()).unwrap();
            let (resource, _) = discovery::pinned_kind(&self.client, &gvk).await.unwrap();
            let api: Api<DynamicObject> = match object.namespace() {
                Some(ns) => Api::namespaced_with(self.client.clone(), &ns, &resource),
                None => Api::all_with(self.client.clone(), &resource),
            };
            match api.create(&PostParams::default(), &object).await {
                // The mesh makes the namespace of its control plane itself.
                Err(kube::Error::Api(e)) if e.code == 409 && resource.kind == "Namespace" => {}
                created => {
                    created.unwrap_or_else(|e| panic!("{}: {e}", object.name_any()));
                }
            }
        }
    }

    /// The root certificate that this mesh hands to others.
    pub async fn root(&self) -> String {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.system());
        eventually(PATIENCE, async || {
            let map = api.get(OWN_ROOT_CONFIG_MAP).await.map_err(text)?;
            let root = map.data.and_then(|mut data| data.remove(ROOT_CERT_KEY));
            root.ok_or_else(|| "it holds no root".to_owned())
        })
        .await
    }

    pub async fn keep_root_of(&self, peer: &str, root: String) {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.system());
        let mut map = ConfigMap {
            data: Some([(ROOT_CERT_KEY.to_owned(), root)].into()),
            ..ConfigMap::default()
        };
        map.metadata.name = Some(format!("{peer}-ca-root-cert"));
        api.create(&PostParams::default(), &map).await.unwrap();
    }

    /// Waits until this mesh says that both directions with the peer are connected.
    pub async fn connected(&self, peer: &str) {
        let api: Api<ServiceMeshPeer> = Api::namespaced(self.client.clone(), &self.system());
        eventually(PATIENCE, async || {
            let status = api.get(peer).await.map_err(text)?.status;
            let mut active = status.iter().flat_map(|s| &s.discovery_status.active);
            let both =
                active.any(|pod| pod.watch.connected && pod.remotes.iter().any(|r| r.connected));
            if both {
                Ok(())
            } else {
                Err(format!("{} with {peer}: {status:?}", self.name))
            }
        })
        .await;
    }

    /// Waits until this mesh says that it has no connection with the peer.
    pub async fn alone(&self, peer: &str) {
        let api: Api<ServiceMeshPeer> = Api::namespaced(self.client.clone(), &self.system());
        eventually(PATIENCE, async || {
            let status = api.get(peer).await.map_err(text)?.status;
            match &status {
                Some(status) if status.discovery_status.active.is_empty() => Ok(()),
                _ => Err(format!("{} with {peer}: {status:?}", self.name)),
            }
        })
        .await;
    }

    /// The arguments by which a proxy joins this mesh as a ServiceAccount.
    pub async fn join(&self, namespace: &str, account: &str) -> Vec<String> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let request = TokenRequest::default();
        let token = eventually(PATIENCE, async || {
            let answer = api
                .create_token_request(account, &PostParams::default(), &request)
                .await
                .map_err(text)?;
            answer.status.ok_or_else(|| "no token".to_owned())
        });
        let file = self.dir.join(format!("{account}.token"));
        fs::write(&file, token.await.token).unwrap();
        let path = |file: PathBuf| file.to_str().unwrap().to_owned();
        [
            "--control-plane".to_owned(),
            format!("https://{}", self.address(1, 15012)),
            "--ca".to_owned(),
            path(self.dir.join("root-cert.pem")),
            "--token-file".to_owned(),
            path(file),
        ]
        .to_vec()
    }

    /// Starts one of the gateways that were left out of the mesh's own process.
    pub async fn gateway(&self, name: &str, admin: SocketAddr) -> Process {
        let join = self
            .join(&self.system(), &format!("{name}-service-account"))
            .await;
        Process::start(
            meshfed()
                .arg("gateway")
                .args(join)
                .args(["--name", name, "--namespace", &self.system()])
                .args(["--admin", &admin.to_string()])
                .arg("--log-dir")
                .arg(self.dir.join("logs")),
            self.dir.join(format!("{name}.stderr")),
        )
    }

    /// The client of this mesh calls by a new connection to its sidecar.
    pub async fn call_to(&self, authority: &str) -> Result<(), String> {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address(WORKLOAD, 15001)).await?;
            let request = format!(
                "GET http://{authority}/ratings/0 HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = tokio::time::timeout(CALL_TIMEOUT, exchange).await;
        let answer = answer.map_err(text)?.map_err(text)?;
        if answer.starts_with("HTTP/1.1 200 ") && answer.contains(ANSWER) {
            Ok(())
        } else {
            Err(answer)
        }
    }

    /// A tunnel of the client, through a connection of its own at every hop.
    pub async fn tunnel_to(&self, authority: &str) -> Tunnel {
        let mut stream = TcpStream::connect(self.address(WORKLOAD, 15001))
            .await
            .unwrap();
        let request = format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream, &AtomicUsize::new(0)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Tunnel(stream)
    }

    pub async fn sidecar(
        &self,
        name: &str,
        namespace: &str,
        account: &str,
        app: Option<&App>,
    ) -> Process {
        let join = self.join(namespace, account).await;
        let mut command = meshfed();
        command
            .arg("sidecar")
            .args(join)
            .args(["--name", name, "--namespace", namespace])
            .args(["--labels", &format!("app={name}")])
            .args(["--address", &self.net.address(WORKLOAD).to_string()])
            .args(["--admin", &self.address(WORKLOAD, 15014).to_string()])
            .arg("--log-dir")
            .arg(self.dir.join("logs"));
        if let Some(app) = app {
            command.args(["--app", &app.address.to_string()]);
        }
        Process::start(&mut command, self.dir.join(format!("{name}.stderr")))
    }
}

fn spawn_up(name: &str, net: &LoopbackNet, dir: &Path, more: &[String]) -> Process {
    let mut command = meshfed();
    command
        .args(["up", "--name", name, "--subnet", &net.cidr(), "--data-dir"])
        .arg(dir)
        .args(more);
    Process::start(&mut command, dir.join("up.stderr"))
}

/// A client with the administrator's credentials, as soon as the API answers.
async fn administrator(dir: &Path, up: &mut Process) -> Client {
    let file = dir.join("kubeconfig");
    eventually(PATIENCE, async || {
        up.assert_runs();
        let read = Kubeconfig::read_from(&file).map_err(text)?;
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(read, &options)
            .await
            .map_err(text)?;
        let client = Client::try_from(config).map_err(text)?;
        client.apiserver_version().await.map_err(text)?;
        Ok::<_, String>(client)
    })
    .await
}

fn text(error: impl std::error::Error) -> String {
    error.to_string()
}

/// The application in red-mesh: an HTTP server that counts what reaches it.
pub struct App {
    pub address: SocketAddr,
    received: Arc<AtomicUsize>,
}

impl App {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(AtomicUsize::new(0));
        let count = received.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let count = count.clone();
                // Whoever breaks its connection sees that itself.
                tokio::spawn(async move { serve(stream, &count).await.ok() });
            }
        });
        Self { address, received }
    }

    /// Bytes of all connections so far. A probe of the sidecar connects and sends none.
    pub fn received(&self) -> usize {
        self.received.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, received: &AtomicUsize) -> std::io::Result<()> {
    answer(&mut stream, received).await
}

/// Answers requests as the application does, until the connection ends.
pub async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    received: &AtomicUsize,
) -> std::io::Result<()> {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{ANSWER}",
        ANSWER.len()
    );
    loop {
        let head = read_head(stream, received).await?;
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
        if head.contains("\r\nconnection: close\r\n") {
            return stream.shutdown().await;
        }
    }
}

async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
    count: &AtomicUsize,
) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
        count.fetch_add(1, Ordering::SeqCst);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Both meshes, the application of the one and a client in the other.
pub struct Federation {
    pub red: Mesh,
    pub green: Mesh,
    pub app: App,
    _sidecars: [Process; 2],
    _dir: TempDir,
}

impl Federation {
    /// Starts and configures everything except the gateways that are named here: those run
    /// elsewhere.
    pub async fn start(red_external: &[&str], green_external: &[&str]) -> Self {
        let external = |gateways: &[&str]| match gateways {
            [] => Vec::new(),
            _ => vec!["--external-gateways".to_owned(), gateways.join(",")],
        };
        Self::start_with(external(red_external), external(green_external)).await
    }

    /// The same, with these arguments of `meshfed up`.
    pub async fn start_with(red_more: Vec<String>, green_more: Vec<String>) -> Self {
        let dir = temp_dir();
        let (red_net, green_net) = (LoopbackNet::lock(), LoopbackNet::lock());
        let manifest = |path: String| manifest(&path, &[&red_net, &green_net]);
        let red_files = [
            "00-namespaces",
            "10-control-plane",
            "11-member-roll",
            "20-bookinfo",
            "30-peer-green-mesh",
            "31-export-to-green-mesh",
        ]
        .map(|file| manifest(format!("red-mesh/{file}")));
        let green_files = [
            "00-namespaces",
            "10-control-plane",
            "11-member-roll",
            "20-client",
            "30-peer-red-mesh",
            "31-import-from-red-mesh",
        ]
        .map(|file| manifest(format!("green-mesh/{file}")));
        let start = async |name, net, more, files: [String; 6]| {
            let mesh = Mesh::start(name, net, dir.path().join(name), more).await;
            for file in files {
                mesh.apply(&file).await;
            }
            mesh
        };
        let (red, green) = tokio::join!(
            start("red-mesh", red_net, red_more, red_files),
            start("green-mesh", green_net, green_more, green_files),
        );
        red.keep_root_of("green-mesh", green.root().await).await;
        green.keep_root_of("red-mesh", red.root().await).await;
        let app = App::start().await;
        let sidecars = [
            red.sidecar(
                "ratings",
                "red-mesh-bookinfo",
                "bookinfo-ratings",
                Some(&app),
            )
            .await,
            green.sidecar("client", "bookinfo", "client", None).await,
        ];
        Self {
            red,
            green,
            app,
            _sidecars: sidecars,
            _dir: dir,
        }
    }

    /// Waits until both meshes report both directions connected and a call succeeds.
    pub async fn works(&self) {
        self.red.connected("green-mesh").await;
        self.green.connected("red-mesh").await;
        self.answers().await;
    }

    /// Waits until a call succeeds.
    pub async fn answers(&self) {
        eventually(PATIENCE, async || self.call().await).await;
    }

    /// The client in green-mesh calls ratings of red-mesh, by a new connection to its sidecar.
    pub async fn call(&self) -> Result<(), String> {
        self.call_to(IMPORTED).await
    }

    /// The same, by another name and port.
    pub async fn call_to(&self, authority: &str) -> Result<(), String> {
        self.green.call_to(authority).await
    }

    /// A tunnel to the application, through a connection of its own at every hop.
    pub async fn tunnel(&self) -> Tunnel {
        self.tunnel_to(IMPORTED).await
    }

    /// The same, by another name and port: any bytes may pass.
    pub async fn tunnel_to(&self, authority: &str) -> Tunnel {
        self.green.tunnel_to(authority).await
    }

    /// How many connections of others the application's sidecar accepted.
    pub async fn connections_of_apps_sidecar(&self) -> u64 {
        self.connections_at(9080).await
    }

    /// The same, on one port of the workload.
    pub async fn connections_at(&self, port: u16) -> u64 {
        metric(
            self.red.address(WORKLOAD, 15014),
            "meshfed_proxy_connections_accepted_total",
            &[&format!("listener=\"inbound_{port}\"")],
        )
        .await
    }
}

pub struct Tunnel(TcpStream);

impl Tunnel {
    pub async fn call(&mut self) -> Result<(), String> {
        let exchange = async {
            self.0
                .write_all(b"GET /ratings/0 HTTP/1.1\r\nhost: ratings\r\n\r\n")
                .await?;
            let head = read_head(&mut self.0, &AtomicUsize::new(0)).await?;
            let mut body = vec![0; ANSWER.len()];
            self.0.read_exact(&mut body).await?;
            Ok::<_, std::io::Error>(head)
        };
        let head = tokio::time::timeout(CALL_TIMEOUT, exchange).await;
        let head = head.map_err(text)?.map_err(text)?;
        if head.starts_with("HTTP/1.1 200 ") {
            Ok(())
        } else {
            Err(head)
        }
    }
}

/// The sum of a metric over all its series with these texts in their labels, from the admin page
/// of a process.
pub async fn metric(admin: SocketAddr, name: &str, labels: &[&str]) -> u64 {
    let page = eventually(PATIENCE, async || admin_page(admin, "/metrics").await).await;
    page.lines()
        .filter(|line| line.starts_with(&format!("{name}{{")))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

pub async fn admin_page(admin: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A file under `examples/`, with the networks of red-mesh, green-mesh and blue-mesh.
pub fn manifest(path: &str, nets: &[&LoopbackNet]) -> String {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
    let text = fs::read_to_string(format!("{examples}/{path}.yaml")).unwrap();
    (1..).zip(nets).fold(text, |text, (n, net)| {
        text.replace(&format!("127.64.{n}."), &prefix(net))
    })
}

fn prefix(net: &LoopbackNet) -> String {
    let address = net.address(0).to_string();
    address.trim_end_matches('0').to_owned()
}
