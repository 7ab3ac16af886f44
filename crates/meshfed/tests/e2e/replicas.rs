//! Two control planes over one API: they come to one state and rest there, and when one of them
//! stops, the other one goes on.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt as _};
use meshfed_api::{ExportedServiceSet, ImportedServiceSet, ServiceMeshPeer};
use meshfed_apiserver::{ApiServer, Options, TokenVerifier};
use meshfed_controlplane::ca_service::{AuthError, ServiceAccountRef, TokenAuthenticator};
use meshfed_controlplane::control_plane::{ControlPlane, Running, ensure_namespace};
use meshfed_controlplane::discovery::PeerCache;
use meshfed_controlplane::identity::{OwnIdentity, authority};
use meshfed_controlplane::journal::AuditLog;
use meshfed_controlplane::subnet::Subnet;
use meshfed_runtime::{AccessLog, AccessLogMetrics, Drain, Metrics};
use meshfed_testkit::{LoopbackNet, TempDir, eventually, temp_dir};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::drain::merge;
use crate::federation::{App, IMPORTED, Mesh, Process, manifest};
use crate::program::PATIENCE;
use crate::removal::{api, create, delete, rests};

const NAME: &str = "green-mesh";
const SYSTEM: &str = "green-mesh-system";
/// The ends of the names of the two. The first one by name leads, if it hears from peers.
const SUFFIXES: [&str; 2] = ["a", "b"];
const PODS: [&str; 2] = ["istiod-green-mesh-a", "istiod-green-mesh-b"];
/// The last byte of the address of each.
const PLACES: [u8; 2] = [3, 4];
/// An empty list that nothing announced is held for 30 s, and a list is asked for every minute, so
/// what takes less was told.
const TOLD: Duration = Duration::from_secs(20);
/// An instance leaves workloads that have not come to it alone for this long after its start.
const GRACE: Duration = Duration::from_secs(30);

/// The Pod of the one sidecar of green-mesh: its uid, and which instance holds it.
async fn registered(green: &Mesh) -> Result<(String, String), String> {
    let pods: Api<Pod> = Api::namespaced(green.client.clone(), "bookinfo");
    let pod = pods
        .get("client")
        .await
        .map_err(|error| error.to_string())?;
    let holder = pod.annotations().get("meshfed.io/registered-by");
    let holder = holder.cloned().ok_or("nobody holds it")?;
    Ok((pod.uid().unwrap(), holder))
}

/// Whoever holds a ServiceAccount's token is it.
struct Tokens(TokenVerifier);

impl TokenAuthenticator for Tokens {
    async fn authenticate(&self, token: &str) -> Result<ServiceAccountRef, AuthError> {
        let audience = "https://kubernetes.default.svc.cluster.local";
        let account = self.0.verify(token, audience, SystemTime::now());
        let account = account.map_err(|error| AuthError::Refused(error.to_string()))?;
        Ok(ServiceAccountRef {
            namespace: account.namespace,
            name: account.name,
        })
    }

    async fn exists(&self, _account: &ServiceAccountRef) -> Result<(), AuthError> {
        Ok(())
    }
}

/// Where proxies find a control plane, as the Service before several would be.
struct Front {
    to: watch::Sender<SocketAddr>,
    _tasks: JoinSet<()>,
}

impl Front {
    async fn start(at: SocketAddr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let (to, behind) = watch::channel(to);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let mut behind = behind.clone();
                tokio::spawn(async move {
                    let to = *behind.borrow_and_update();
                    let carry = async {
                        let mut to = TcpStream::connect(to).await?;
                        copy_bidirectional(&mut from, &mut to).await
                    };
                    tokio::select! {
                        // Whoever breaks a connection sees that itself.
                        _ended = carry => {}
                        _moved = behind.changed() => {}
                    }
                });
            }
        });
        Self { to, _tasks: tasks }
    }
}

struct Replica {
    running: Running,
    drain: Drain,
    grpc: SocketAddr,
}

impl Replica {
    async fn start(which: usize, api: &ApiServer, net: &LoopbackNet, dir: &Path) -> Self {
        let client = Client::new(api.service(), "default");
        let dir = dir.join(SUFFIXES[which]);
        let at = net.address(PLACES[which]);
        let authority = authority(&client, SYSTEM, NAME).await.unwrap();
        let names = vec!["localhost".to_owned()];
        let identity = OwnIdentity::new(authority, names, vec![net.address(1)]).unwrap();
        let metrics = Metrics::new();
        let log_metrics = metrics.register(AccessLogMetrics::new);
        let (drain, watch) = Drain::new();
        let grpc = TcpListener::bind((at, 15012)).await.unwrap();
        let address = grpc.local_addr().unwrap();
        let running = ControlPlane {
            client,
            namespace: SYSTEM.to_owned(),
            subnet: net.cidr().parse::<Subnet>().unwrap(),
            node_address: net.address(2),
            instance_suffix: SUFFIXES[which].to_owned(),
            identity: Arc::new(identity),
            grpc,
            discovery: TcpListener::bind((at, 8188)).await.unwrap(),
            tokens: Tokens(api.token_verifier()),
            peer_lists: PeerCache::open(dir.join("peers")).unwrap(),
            access_log: AccessLog::open(&dir.join("logs"), "istiod-green-mesh", &log_metrics)
                .unwrap(),
            audit_log: AuditLog::open(&dir.join("audit")).unwrap(),
            writes: None,
            metrics,
            drain: watch,
        }
        .start()
        .unwrap();
        Self {
            running,
            drain,
            grpc: address,
        }
    }

    async fn stop(self) {
        self.running.stop().await;
        self.drain.drain(Duration::from_secs(1)).await;
    }
}

/// Green-mesh, run by two control planes; and red-mesh, its peer.
struct Scene {
    red: Mesh,
    green: Mesh,
    front: Front,
    replicas: [Option<Replica>; 2],
    _app: App,
    _proxies: Vec<Process>,
    _server: ApiServer,
    _dir: TempDir,
}

impl Scene {
    async fn start() -> Self {
        let dir = temp_dir();
        let nets = [LoopbackNet::lock(), LoopbackNet::lock()];
        let manifests = |mesh: &str, files: &[&str]| {
            let [red, green] = &nets;
            let all = files.iter();
            all.map(|file| manifest(&format!("{mesh}/{file}"), &[red, green]))
                .collect::<Vec<_>>()
        };
        let red_files = manifests(
            "red-mesh",
            &[
                "00-namespaces",
                "10-control-plane",
                "11-member-roll",
                "20-bookinfo",
                "30-peer-green-mesh",
                "31-export-to-green-mesh",
            ],
        );
        let green_files = manifests(
            "green-mesh",
            &[
                "00-namespaces",
                "10-control-plane",
                "11-member-roll",
                "20-client",
                "30-peer-red-mesh",
                "31-import-from-red-mesh",
            ],
        );
        let [red_net, green_net] = nets;
        let red = Mesh::start("red-mesh", red_net, dir.path().join("red-mesh"), Vec::new()).await;
        for file in &red_files {
            red.apply(file).await;
        }

        let data = dir.path().join(NAME);
        let server = {
            let options = Options::new(data.join("api"), meshfed_api::crds());
            let opening = tokio::task::spawn_blocking(move || ApiServer::open(options));
            opening.await.unwrap().unwrap()
        };
        let client = Client::new(server.service(), "default");
        ensure_namespace(&client, SYSTEM).await.unwrap();
        let first = Replica::start(0, &server, &green_net, &data).await;
        let second = Replica::start(1, &server, &green_net, &data).await;
        let authority = authority(&client, SYSTEM, NAME).await.unwrap();
        fs::write(data.join("root-cert.pem"), authority.root_pem()).unwrap();
        let front = Front::start((green_net.address(1), 15012).into(), first.grpc).await;
        let green = Mesh::around(NAME, green_net, data, client);
        for file in &green_files {
            green.apply(file).await;
        }
        red.keep_root_of(NAME, authority.root_pem().to_owned())
            .await;
        green.keep_root_of("red-mesh", red.root().await).await;
        let app = App::start().await;
        let account = "bookinfo-ratings";
        let proxies = vec![
            red.sidecar("ratings", "red-mesh-bookinfo", account, Some(&app))
                .await,
            green.sidecar("client", "bookinfo", "client", None).await,
            green
                .gateway("ingress-red-mesh", green.address(240, 15014))
                .await,
            green
                .gateway("egress-red-mesh", green.address(241, 15014))
                .await,
        ];
        Self {
            red,
            green,
            front,
            replicas: [Some(first), Some(second)],
            _app: app,
            _proxies: proxies,
            _server: server,
            _dir: dir,
        }
    }

    async fn works(&self) {
        self.red.connected(NAME).await;
        eventually(PATIENCE, async || self.green.call_to(IMPORTED).await).await;
    }

    /// Waits until these control planes of green-mesh, and no other, say that they watch red-mesh, and
    /// that one of them is watched.
    async fn are_in_contact(&self, expected: &[&str]) {
        let peers: Api<ServiceMeshPeer> = api(&self.green);
        eventually(PATIENCE, async || {
            let status = peers.get_status("red-mesh").await.unwrap().status;
            let active = status.unwrap_or_default().discovery_status.active;
            let watching = active.iter().filter(|entry| entry.watch.connected);
            let watching: Vec<&str> = watching.map(|entry| entry.pod.as_str()).collect();
            let mut remotes = active.iter().flat_map(|entry| &entry.remotes);
            if watching == expected && remotes.any(|remote| remote.connected) {
                Ok(())
            } else {
                Err(active)
            }
        })
        .await;
    }

    /// Both have seen a Service with this annotation.
    async fn have_seen(&self, annotation: &str) {
        for replica in self.replicas.iter().flatten() {
            let mut outcomes = replica.running.outcomes.clone();
            let seen = outcomes.wait_for(|newest| {
                let services = newest
                    .iter()
                    .flat_map(|o| o.world.resources.services.values());
                let mut services = services.filter_map(|s| s.metadata.annotations.as_ref());
                services.any(|all| all.contains_key(annotation))
            });
            tokio::time::timeout(PATIENCE, seen).await.unwrap().unwrap();
        }
    }

    /// Both plan the same of what is shared.
    async fn agree(&self) {
        eventually(PATIENCE, async || {
            let shares = self.replicas.iter().flatten().map(|replica| {
                let newest = replica.running.outcomes.borrow();
                newest.as_ref().unwrap().plan.shares.clone()
            });
            let shares: Vec<_> = shares.collect();
            assert_eq!(shares.len(), 2);
            if shares[0] == shares[1] && !shares[0].imports.is_empty() {
                Ok(())
            } else {
                Err(shares)
            }
        })
        .await;
    }
}

/// What green-mesh shares with red-mesh, so that there is something to take back.
const EXPORT: &str = "
apiVersion: v1
kind: Service
metadata: {name: details, namespace: bookinfo}
spec: {ports: [{name: http, port: 9080}]}
---
apiVersion: federation.maistra.io/v1
kind: ExportedServiceSet
metadata: {name: red-mesh, namespace: green-mesh-system}
spec: {exportRules: [{type: NameSelector, nameSelector: {name: details}}]}
";
const IMPORT: &str = "
apiVersion: federation.maistra.io/v1
kind: ImportedServiceSet
metadata: {name: green-mesh, namespace: red-mesh-system}
spec: {importRules: [{type: NameSelector, importAsLocal: false, nameSelector: {name: '*'}}]}
";

/// Waits until a mesh says that its peer offers this many services.
async fn is_offered(mesh: &Mesh, peer: &str, count: usize) {
    let sets: Api<ImportedServiceSet> = api(mesh);
    eventually(PATIENCE, async || {
        let status = sets.get_status(peer).await.unwrap().status;
        match status.map_or(0, |s| s.imported_services.len()) {
            found if found == count => Ok(()),
            found => Err(format!("{}: {found}, not {count}", mesh.name)),
        }
    })
    .await;
}

/// Red-mesh exports the first of its services alone, or both.
async fn export(red: &Mesh, rules: &[Value]) {
    let sets: Api<ExportedServiceSet> = api(red);
    let patch = Patch::Merge(json!({"spec": {"exportRules": rules}}));
    sets.patch(NAME, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_control_planes_over_one_api_do_not_fight_and_one_goes_on_without_the_other() {
    let mut scene = Scene::start().await;
    let both_run_since = Instant::now();
    let (red, green) = (&scene.red, &scene.green);
    green.apply(EXPORT).await;
    red.apply(IMPORT).await;
    scene.works().await;
    scene.are_in_contact(&PODS).await;
    is_offered(red, NAME, 1).await;
    is_offered(green, "red-mesh", 2).await;
    scene.agree().await;
    let workload = registered(green).await.unwrap();
    assert_eq!(workload.1, SUFFIXES[0]);

    // A change is written once, and then nothing more.
    let imports: Api<ImportedServiceSet> = api(green);
    rests(green).await;
    let since = imports.list(&ListParams::default()).await.unwrap();
    let since = since.metadata.resource_version.unwrap();
    let sets: Api<ExportedServiceSet> = api(red);
    let rules = sets.get(NAME).await.unwrap().spec.export_rules;
    let rules: Vec<Value> = rules.iter().map(|rule| json!(rule)).collect();
    export(red, &rules[..1]).await;
    is_offered(green, "red-mesh", 1).await;
    scene.agree().await;
    rests(green).await;
    let params = WatchParams::default().timeout(1);
    let writes = imports.watch(&params, &since).await.unwrap();
    let writes: Vec<_> = writes.try_collect().await.unwrap();
    let writes = writes
        .iter()
        .filter(|e| matches!(e, WatchEvent::Modified(_)));
    assert_eq!(writes.count(), 1);

    // A peer goes, with what was exported to it, and comes back.
    let params = PatchParams::default();
    let peers: Api<ServiceMeshPeer> = api(green);
    let now = json!({"metadata": {"annotations": {"meshfed.io/drain-period": "0s"}}});
    peers
        .patch("red-mesh", &params, &Patch::Merge(now))
        .await
        .unwrap();
    let deleted = Instant::now();
    let peer: ServiceMeshPeer = delete(green, "red-mesh").await;
    is_offered(red, NAME, 0).await;
    assert!(deleted.elapsed() < TOLD);
    create(green, &peer).await;
    scene.works().await;
    scene.are_in_contact(&PODS).await;
    is_offered(red, NAME, 1).await;

    // The second one waits no more for workloads to come to it, and leaves that of the first one alone.
    let grace_ends = both_run_since + GRACE;
    tokio::time::sleep_until(grace_ends.into()).await;
    let services: Api<Service> = Api::namespaced(green.client.clone(), "bookinfo");
    let news = json!({"metadata": {"annotations": {"news": "of no account"}}});
    merge(&services, "details", news).await;
    scene.have_seen("news").await;
    rests(green).await;
    assert_eq!(registered(green).await.unwrap(), workload);
    scene.green.call_to(IMPORTED).await.unwrap();

    // The one that leads stops; proxies find the other one.
    scene
        .front
        .to
        .send_replace(scene.replicas[1].as_ref().unwrap().grpc);
    let first = scene.replicas[0].take().unwrap();
    first.stop().await;
    scene.green.call_to(IMPORTED).await.unwrap();
    scene.works().await;
    scene.are_in_contact(&PODS[1..]).await;
    eventually(PATIENCE, async || match registered(&scene.green).await {
        Ok((_, holder)) if holder == SUFFIXES[1] => Ok(()),
        other => Err(other),
    })
    .await;
    let stopped = Instant::now();
    export(&scene.red, &rules).await;
    is_offered(&scene.green, "red-mesh", 2).await;
    assert!(stopped.elapsed() < TOLD);
    delete::<ExportedServiceSet>(&scene.green, "red-mesh").await;
    is_offered(&scene.red, NAME, 0).await;
    assert!(stopped.elapsed() < TOLD);
}
