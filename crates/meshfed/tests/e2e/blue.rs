//! Blue-mesh: a third mesh beside the two of a federation, by the files under `examples/`.

use meshfed_testkit::LoopbackNet;

use crate::federation::{App, Federation, Mesh, Process, manifest};

/// Starts blue-mesh with these files, and gives the neighbour, which is its peer, these.
async fn start(
    federation: &Federation,
    files: &[&str],
    neighbour: &Mesh,
    neighbours_files: &[&str],
) -> Mesh {
    let (red, green) = (&federation.red, &federation.green);
    let net = LoopbackNet::lock();
    let texts = |mesh: &str, files: &[&str]| -> Vec<String> {
        let paths = files.iter().map(|file| format!("{mesh}/{file}"));
        paths
            .map(|path| manifest(&path, &[&red.net, &green.net, &net]))
            .collect()
    };
    let common = ["00-namespaces", "10-control-plane", "11-member-roll"];
    let files = texts("blue-mesh", &[&common[..], files].concat());
    let neighbours_files = texts(neighbour.name, neighbours_files);
    let dir = red.dir.with_file_name("blue-mesh");
    let blue = Mesh::start("blue-mesh", net, dir, Vec::new()).await;
    for file in &files {
        blue.apply(file).await;
    }
    blue.keep_root_of(neighbour.name, neighbour.root().await)
        .await;
    neighbour.keep_root_of(blue.name, blue.root().await).await;
    for file in &neighbours_files {
        neighbour.apply(file).await;
    }
    blue
}

/// A second peer of red-mesh, by gateways of its own. Its client calls ratings by the name that the
/// client of green-mesh has for it.
pub async fn calls_red(federation: &Federation) -> (Mesh, Process) {
    let files = ["20-client", "30-peer-red-mesh", "31-import-from-red-mesh"];
    let reds_files = ["40-peer-blue-mesh", "41-export-to-blue-mesh"];
    let blue = start(federation, &files, &federation.red, &reds_files).await;
    let sidecar = blue.sidecar("client", "bookinfo", "client", None).await;
    (blue, sidecar)
}

/// Shares ratings of its own with green-mesh.
const EXPORT: &str = "
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: bookinfo}
spec:
  selector: {app: ratings}
  ports: [{name: http, port: 9080}]
---
apiVersion: federation.maistra.io/v1
kind: ExportedServiceSet
metadata: {name: green-mesh, namespace: blue-mesh-system}
spec: {exportRules: [{type: NameSelector, nameSelector: {namespace: bookinfo, name: ratings}}]}
";

/// A second peer of green-mesh, which exports a service to it that this application answers for.
pub async fn serves_green(federation: &Federation, app: &App) -> (Mesh, Process) {
    let files = ["20-client", "40-peer-green-mesh"];
    let greens_files = ["40-peer-blue-mesh"];
    let blue = start(federation, &files, &federation.green, &greens_files).await;
    blue.apply(EXPORT).await;
    let sidecar = blue
        .sidecar("ratings", "bookinfo", "client", Some(app))
        .await;
    (blue, sidecar)
}
