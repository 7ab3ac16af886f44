//! A mesh that finds something unusable at its start says so in one line and does not start.

use std::process::Command;

use meshfed_testkit::{LoopbackNet, temp_dir, tools};

use crate::mesh::{kubectl, start, up};
use crate::program::{run, text};

/// The one line about a start that failed.
fn complaint(command: &mut Command) -> String {
    let output = run(command);
    assert!(!output.status.success(), "{}", text(&output));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut lines = stderr.lines().filter(|line| line.starts_with("meshfed: "));
    let line = lines
        .next()
        .unwrap_or_else(|| panic!("{stderr}"))
        .to_owned();
    assert!(lines.next().is_none(), "{stderr}");
    line
}

#[test]
fn a_data_directory_that_another_process_holds_is_refused() {
    let (first, second) = (LoopbackNet::lock(), LoopbackNet::lock());
    let dir = temp_dir();
    let _running = start(&first, dir.path());
    let line = complaint(&mut up(&second, dir.path()));
    assert!(
        line.contains("api.lock") || line.contains("another process"),
        "{line}"
    );
    let kept = std::fs::read_to_string(dir.path().join("subnet")).unwrap();
    assert_eq!(kept, first.cidr(), "the second start changed nothing");
}

#[test]
fn an_authority_that_cannot_be_used_is_refused() {
    let Some(tool) = tools::kubectl_or_skip() else {
        return;
    };
    let net = LoopbackNet::lock();
    let dir = temp_dir();
    let running = start(&net, dir.path());
    let garbage = dir.path().join("garbage.pem");
    std::fs::write(&garbage, "no certificate\n").unwrap();
    let file = |key: &str| format!("--from-file={key}={}", garbage.display());
    kubectl(
        &tool,
        dir.path(),
        &[
            "-n",
            "red-mesh-system",
            "create",
            "secret",
            "generic",
            "cacerts",
            &file("root-cert.pem"),
            &file("ca-cert.pem"),
            &file("ca-key.pem"),
            &file("cert-chain.pem"),
        ],
    );
    drop(running);
    let line = complaint(&mut up(&net, dir.path()));
    assert!(line.contains("red-mesh-system/cacerts"), "{line}");
}

#[test]
fn every_example_is_accepted_by_the_api() {
    let Some(tool) = tools::kubectl_or_skip() else {
        return;
    };
    let net = LoopbackNet::lock();
    let dir = temp_dir();
    let _running = start(&net, dir.path());
    for namespace in ["green-mesh-system", "blue-mesh-system", "bookinfo"] {
        kubectl(&tool, dir.path(), &["create", "namespace", namespace]);
    }
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
    kubectl(
        &tool,
        dir.path(),
        &[
            "apply",
            "-f",
            &format!("{examples}/red-mesh/00-namespaces.yaml"),
        ],
    );
    // Server-side dry runs go through all checks; several examples describe the same object.
    let output = kubectl(
        &tool,
        dir.path(),
        &[
            "apply",
            "--dry-run=server",
            "--validate=strict",
            "-R",
            "-f",
            examples,
        ],
    );
    let applied = output
        .lines()
        .filter(|line| line.contains("server dry run"))
        .count();
    assert!(applied >= 40, "{output}");
}

#[test]
fn manifests_that_make_no_sense_are_refused_with_the_field_and_the_reason() {
    let Some(tool) = tools::kubectl_or_skip() else {
        return;
    };
    let net = LoopbackNet::lock();
    let dir = temp_dir();
    let _running = start(&net, dir.path());
    let cases = [
        (
            "importAsLocal without a namespace",
            "apiVersion: federation.maistra.io/v1\nkind: ImportedServiceSet\nmetadata: {name: p, namespace: default}\nspec:\n  importRules:\n  - type: NameSelector\n    importAsLocal: true\n    nameSelector: {name: ratings}\n",
            "spec.importRules[0].nameSelector",
            "fixed namespace",
        ),
        (
            "an import by label",
            "apiVersion: federation.maistra.io/v1\nkind: ImportedServiceSet\nmetadata: {name: p, namespace: default}\nspec:\n  importRules:\n  - type: LabelSelector\n",
            "spec.importRules[0].type",
            "LabelSelector",
        ),
        (
            "a node port out of range",
            "apiVersion: maistra.io/v2\nkind: ServiceMeshControlPlane\nmetadata: {name: p, namespace: default}\nspec:\n  gateways:\n    additionalIngress:\n      g:\n        service:\n          ports: [{port: 15443, nodePort: 80}, {port: 8188, nodePort: 30001}]\n",
            "service.ports[0].nodePort",
            "30000",
        ),
        (
            "node ports on one port only",
            "apiVersion: maistra.io/v2\nkind: ServiceMeshControlPlane\nmetadata: {name: p, namespace: default}\nspec:\n  gateways:\n    additionalIngress:\n      g:\n        service:\n          ports: [{port: 15443, nodePort: 30000}, {port: 8188}]\n",
            "service.ports",
            "on both ports",
        ),
        (
            "another router mode",
            "apiVersion: maistra.io/v2\nkind: ServiceMeshControlPlane\nmetadata: {name: p, namespace: default}\nspec:\n  gateways:\n    additionalEgress:\n      g: {routerMode: standard}\n",
            "routerMode",
            "sni-dnat",
        ),
        (
            "a peer without addresses",
            "apiVersion: federation.maistra.io/v1\nkind: ServiceMeshPeer\nmetadata: {name: p, namespace: default}\nspec:\n  remote: {}\n  gateways: {ingress: {name: i}, egress: {name: e}}\n  security: {}\n",
            "spec.remote.addresses",
            "Required",
        ),
    ];
    for (what, manifest, field, reason) in cases {
        let file = dir.path().join("manifest.yaml");
        std::fs::write(&file, manifest).unwrap();
        let output = run(Command::new(&tool)
            .arg("--kubeconfig")
            .arg(dir.path().join("kubeconfig"))
            .args(["create", "-f"])
            .arg(&file));
        let said = text(&output);
        assert!(!output.status.success(), "{what} was accepted");
        assert!(
            said.contains(field) && said.contains(reason),
            "{what}: {said}"
        );
    }
}
