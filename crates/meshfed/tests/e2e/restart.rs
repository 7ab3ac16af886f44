//! What a mesh's process loses when it is killed: nothing that was acknowledged; and what stops
//! while it is away: nothing that was configured.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use meshfed_api::ServiceMeshPeer;
use meshfed_testkit::eventually;
use serde_json::json;
use tokio::task::JoinSet;

use crate::drain::merge;
use crate::federation::{Federation, Mesh, Tunnel};
use crate::program::PATIENCE;
use crate::removal::{api, becomes, fails};

const WRITERS: u32 = 8;
/// Writes under way when the process is killed come after at least as many that are done.
const WRITTEN_BEFORE: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_that_is_killed_comes_back_with_everything_that_was_acknowledged() {
    let mut federation = Federation::start(&[], &[]).await;
    federation.works().await;

    let addresses = gateway_addresses(&federation.red).await;
    let written = write_until_killed(&mut federation.red).await;
    assert!(
        federation.call().await.is_err(),
        "the gateways went with it"
    );
    federation.red.start_again().await;
    written.assert_kept(&federation.red.client).await;
    federation.works().await;
    assert_eq!(gateway_addresses(&federation.red).await, addresses);

    let addresses = gateway_addresses(&federation.green).await;
    let written = write_until_killed(&mut federation.green).await;
    assert!(
        federation.call().await.is_err(),
        "the gateways went with it"
    );
    federation.green.start_again().await;
    written.assert_kept(&federation.green.client).await;
    federation.works().await;
    assert_eq!(gateway_addresses(&federation.green).await, addresses);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_while_both_control_planes_are_away_and_while_they_come_back() {
    let (ingress, egress) = ("ingress-green-mesh", "egress-red-mesh");
    let mut federation = Federation::start(&[ingress], &[egress]).await;
    let _gateways = [
        federation
            .red
            .gateway(ingress, federation.red.address(240, 15014))
            .await,
        federation
            .green
            .gateway(egress, federation.green.address(240, 15014))
            .await,
    ];
    federation.works().await;
    let peers: Api<ServiceMeshPeer> = api(&federation.green);
    let outlive =
        json!({"metadata": {"annotations": {"meshfed.io/imports-outlive-contact": "1h"}}});
    merge(&peers, "red-mesh", outlive).await;
    let mut tunnel = federation.tunnel().await;
    tunnel.call().await.unwrap();

    federation.red.kill();
    federation.green.kill();
    for _ in 0..20 {
        federation.call().await.unwrap();
        tunnel.call().await.unwrap();
    }
    // A control plane that cannot ask its peer goes by what the peer last exported.
    federation.green.start_again().await;
    federation.green.alone("red-mesh").await;
    // Long enough for the proxies of green to come back and to be told of everything anew.
    for _ in 0..100 {
        federation.call().await.unwrap();
        tunnel.call().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    federation.red.start_again().await;
    come_back(&federation, &mut tunnel).await;

    // How long imports outlive the contact is not judged by when it was last noted. That peer is there.
    federation.green.kill();
    let kept = federation.green.dir.join("peers/red-mesh.json");
    let noted_long_ago = |file: &Path| {
        let file = File::options().write(true).open(file).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(2 * 3600);
        file.set_modified(long_ago).unwrap();
    };
    noted_long_ago(&kept);
    federation.green.start_again().await;
    come_back(&federation, &mut tunnel).await;

    // It was away already when we went.
    federation.red.kill();
    let lost = federation.green.dir.join("peers/red-mesh.lost");
    eventually(PATIENCE, async || match lost.exists() {
        false => Err("it is not noted that the contact was lost"),
        true => Ok(()),
    })
    .await;
    federation.call().await.unwrap();
    federation.green.kill();
    noted_long_ago(&kept);
    noted_long_ago(&lost);
    federation.green.start_again().await;
    becomes(&federation.green, "red-mesh", "ImportsExpired").await;
    fails(&federation).await;
    federation.red.start_again().await;
    federation.works().await;
    // What was imported as soon as green began, each time.
    let lines = federation.green.audit_log();
    let starts = lines.iter().filter(|line| line["event"] == "Started");
    let imported: Vec<_> = starts.map(|line| &line["totals"]["imported"]).collect();
    assert_eq!(imported, [0, 1, 1, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_while_the_peers_control_plane_stands_still_and_after() {
    // Longer than a proxy waits for a sign of life on the stream to its control plane.
    const STANDSTILL: Duration = Duration::from_secs(40);
    let ingress = "ingress-green-mesh";
    let mut federation = Federation::start(&[ingress], &[]).await;
    let admin = federation.red.address(240, 15014);
    let _gateway = federation.red.gateway(ingress, admin).await;
    federation.works().await;
    let mut tunnel = federation.tunnel().await;
    federation.red.freeze();
    call_for(&federation, &mut tunnel, STANDSTILL).await;
    federation.red.thaw();
    // Proxies that have lost it come back in these, or find out only now.
    call_for(&federation, &mut tunnel, Duration::from_secs(5)).await;
    come_back(&federation, &mut tunnel).await;
}

/// Calls without a failure.
async fn call_for(federation: &Federation, tunnel: &mut Tunnel, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        federation.call().await.unwrap();
        tunnel.call().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until both meshes are connected again, while calls never fail.
async fn come_back(federation: &Federation, tunnel: &mut Tunnel) {
    let Federation { red, green, .. } = federation;
    let back = async {
        red.connected("green-mesh").await;
        green.connected("red-mesh").await;
    };
    let mut back = std::pin::pin!(back);
    let mut is_back = false;
    for after in 0.. {
        federation.call().await.unwrap();
        tunnel.call().await.unwrap();
        if is_back && after >= 20 {
            break;
        }
        if !is_back {
            tokio::select! {
                () = &mut back => is_back = true,
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    }
}

/// Where the gateways can be reached, by name.
async fn gateway_addresses(mesh: &Mesh) -> BTreeMap<String, Option<String>> {
    let api: Api<Service> = Api::namespaced(mesh.client.clone(), &mesh.system());
    let services = api.list(&ListParams::default()).await.unwrap();
    let all = services.into_iter();
    all.map(|s| (s.name_any(), s.spec.and_then(|spec| spec.cluster_ip)))
        .collect()
}

/// What the API acknowledged.
#[derive(Default)]
struct Written {
    created: BTreeSet<String>,
    /// The last value that was patched into an object.
    counters: BTreeMap<String, u64>,
}

/// Many writers at once, and `kill -9` in the middle of it.
async fn write_until_killed(mesh: &mut Mesh) -> Written {
    let mut writers = JoinSet::new();
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    for writer in 0..WRITERS {
        let api: Api<ConfigMap> = Api::namespaced(mesh.client.clone(), "default");
        let told = told.clone();
        writers.spawn(async move {
            let mut written = Written::default();
            let counter = format!("counter-{writer}");
            let map = config_map(&counter, 0);
            api.create(&PostParams::default(), &map).await.unwrap();
            for n in 1.. {
                let name = format!("written-{writer}-{n}");
                let map = config_map(&name, n);
                if api.create(&PostParams::default(), &map).await.is_err() {
                    return written;
                }
                written.created.insert(name);
                let patch = Patch::Merge(json!({"data": {"n": n.to_string()}}));
                let patched = api.patch(&counter, &PatchParams::default(), &patch).await;
                if patched.is_err() {
                    return written;
                }
                written.counters.insert(counter.clone(), n);
                // Nobody listens any more once the process is killed.
                let _ = told.send(());
            }
            written
        });
    }
    drop(told);
    for _ in 0..WRITTEN_BEFORE {
        heard.recv().await.unwrap();
    }
    mesh.kill();
    let mut all = Written::default();
    while let Some(written) = writers.join_next().await {
        let written = written.unwrap();
        all.created.extend(written.created);
        all.counters.extend(written.counters);
    }
    assert!(all.created.len() >= WRITTEN_BEFORE);
    all
}

fn config_map(name: &str, n: u64) -> ConfigMap {
    let mut map = ConfigMap {
        data: Some([("n".to_owned(), n.to_string())].into()),
        ..ConfigMap::default()
    };
    map.metadata.name = Some(name.to_owned());
    map
}

impl Written {
    async fn assert_kept(&self, client: &Client) {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let kept: BTreeMap<String, u64> = api
            .list(&ListParams::default())
            .await
            .unwrap()
            .into_iter()
            .filter_map(|map| Some((map.name_any(), map.data?.get("n")?.parse().ok()?)))
            .collect();
        let missing: Vec<&String> = self
            .created
            .iter()
            .filter(|n| !kept.contains_key(*n))
            .collect();
        assert_eq!(missing, Vec::<&String>::new());
        for (name, acknowledged) in &self.counters {
            let found = kept[name];
            // One more may have been written without its acknowledgement getting through.
            assert!(
                (*acknowledged..=acknowledged + 1).contains(&found),
                "{name}: {found} after {acknowledged}"
            );
        }
    }
}
