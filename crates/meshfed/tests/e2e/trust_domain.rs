//! A mesh gets another trust domain while it runs: its gateways and sidecars follow, and so do peers
//! that are told.

use std::time::{Duration, Instant};

use kube::Api;
use meshfed_api::{ServiceMeshControlPlane, ServiceMeshPeer};
use meshfed_testkit::eventually;
use serde_json::{Value, json};

use crate::drain::{ends, merge};
use crate::federation::{Federation, Mesh};
use crate::program::{PATIENCE, meshfed, run, text};
use crate::removal::{api, fails};

/// From the change in the peer to a call, on a busy machine, where a call may wait for 10 s; alone it is a
/// second or two.
const SOON: Duration = Duration::from_secs(45);

async fn move_to(mesh: &Mesh, domain: &str) {
    let control_planes: Api<ServiceMeshControlPlane> = api(mesh);
    let spec = json!({"spec": {"security": {"trust": {"domain": domain}}}});
    merge(&control_planes, mesh.name, spec).await;
}

/// The administrator of a mesh learns who its peer is now.
async fn tell(mesh: &Mesh, peer: &str, domain: &str) {
    let peers: Api<ServiceMeshPeer> = api(mesh);
    let egress = format!("egress-{}-service-account", mesh.name);
    let security = json!({
        "trustDomain": domain,
        "clientID": format!("{domain}/ns/{peer}-system/sa/{egress}"),
    });
    merge(&peers, peer, json!({"spec": {"security": security}})).await;
}

/// What `meshfed diff` says of another trust domain, with its exit status.
fn supposed(mesh: &Mesh, domain: &str, nets: &[&Mesh]) -> (Option<i32>, Value) {
    let nets: Vec<_> = nets.iter().map(|mesh| &mesh.net).collect();
    let path = format!("{}/10-control-plane", mesh.name);
    let old = format!("domain: {}.local", mesh.name);
    let manifest =
        crate::federation::manifest(&path, &nets).replace(&old, &format!("domain: {domain}"));
    let file = mesh.dir.join("moved.yaml");
    std::fs::write(&file, manifest).unwrap();
    let output = run(meshfed()
        .args(["diff", "-o", "json", "-f"])
        .arg(&file)
        .arg("--kubeconfig")
        .arg(mesh.dir.join("kubeconfig")));
    let said = serde_json::from_slice(&output.stdout);
    (
        output.status.code(),
        said.unwrap_or_else(|_| panic!("{}", text(&output))),
    )
}

/// Neither mesh says that all is well with the other one.
async fn both_say_so(federation: &Federation) {
    for (mesh, peer) in [
        (&federation.red, "green-mesh"),
        (&federation.green, "red-mesh"),
    ] {
        let peers: Api<ServiceMeshPeer> = api(mesh);
        eventually(PATIENCE, async || {
            let status = peers.get_status(peer).await.unwrap().status.unwrap();
            let ready = status
                .conditions
                .iter()
                .find(|c| c.type_ == "Ready")
                .unwrap();
            match ready.status.as_str() {
                "False" => Ok(()),
                _ => Err(format!("{peer}: {:?}", ready.message)),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_trust_domain_of_a_mesh_takes_effect_without_a_restart() {
    let federation = Federation::start(&[], &[]).await;
    let (red, green) = (&federation.red, &federation.green);
    federation.works().await;

    let (code, said) = supposed(red, "red2.local", &[red, green]);
    let ours: Vec<&str> = (said["peers"].as_array().unwrap().iter())
        .filter_map(|change| change["after"].as_str())
        .collect();
    let id = "red2.local/ns/red-mesh-system/sa/egress-green-mesh-service-account";
    assert_eq!((code, &ours[..]), (Some(1), &[id, "red2.local"][..]));

    // First the one that calls, then the one that is called, and that one back.
    let mut tunnel = federation.tunnel().await;
    tunnel.call().await.unwrap();
    let moves = [
        (green, red, "green2.local"),
        (red, green, "red2.local"),
        (red, green, "red-mesh.local"),
    ];
    for (moves, stays, domain) in moves {
        move_to(moves, domain).await;
        fails(&federation).await;
        ends(&mut tunnel).await;
        both_say_so(&federation).await;

        let told = Instant::now();
        tell(stays, moves.name, domain).await;
        federation.answers().await;
        let took = told.elapsed();
        assert!(took < SOON, "{} took {took:?}", moves.name);
        federation.works().await;
        tunnel = federation.tunnel().await;
        tunnel.call().await.unwrap();

        let lines = moves.audit_log();
        let line = lines.iter().find(|line| {
            let mut changes = line["peers"].as_array().into_iter().flatten();
            changes.any(|change| change["after"] == domain)
        });
        let by = &line.unwrap_or_else(|| panic!("{lines:#?}"))["by"][0];
        assert_eq!(by["kind"], "ServiceMeshControlPlane");
        assert_eq!(by["user"], "kubernetes-admin");
    }

    // A sidecar whose token is good no more has its certificate to show.
    let useless = std::fs::read(red.dir.join("bookinfo-ratings.token")).unwrap();
    std::fs::write(green.dir.join("client.token"), useless).unwrap();
    move_to(green, "green3.local").await;
    fails(&federation).await;
    tell(red, "green-mesh", "green3.local").await;
    federation.works().await;
}
