//! What the program says to input that makes no sense: one clear line, a non-zero exit, nothing
//! half-done.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use meshfed_testkit::{LoopbackNet, temp_dir};

use crate::program::{meshfed, run, text};

/// The one line that is not a log line.
fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "{}", text(output));
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr
        .lines()
        .filter(|l| l.starts_with("meshfed: "))
        .collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    lines[0].to_owned()
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_left_behind() {
    let net = LoopbackNet::lock();
    let _taken = TcpListener::bind((net.address(1), 15012)).unwrap();
    let dir = temp_dir();
    let data = dir.path().join("data");
    let output = run(meshfed()
        .args([
            "up",
            "--name",
            "red-mesh",
            "--subnet",
            &net.cidr(),
            "--data-dir",
        ])
        .arg(&data));
    let line = complaint(&output);
    assert!(
        line.contains(&format!("{}:15012", net.address(1))),
        "{line}"
    );
    assert!(!data.join("api.redb").exists(), "no store was made");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    let dir = temp_dir();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = run(meshfed().args(["up", "--data-dir"]).arg(file.join("data")));
    let line = complaint(&output);
    assert!(line.contains("data directory"), "{line}");
}

#[test]
fn a_subnet_that_is_none_of_loopback_is_refused() {
    let output = run(meshfed().args(["up", "--subnet", "10.0.0.0/24"]));
    assert!(!output.status.success());
    assert!(text(&output).contains("127.0.0.0/8"), "{}", text(&output));
}

#[test]
fn an_option_that_does_not_exist_in_the_file_is_named() {
    let dir = temp_dir();
    let file = dir.path().join("up.yaml");
    std::fs::write(&file, "name: red-mesh\nsubnets: x\n").unwrap();
    let line = complaint(&run(meshfed().args(["up", "--config"]).arg(&file)));
    assert!(line.contains("subnets"), "{line}");
}

#[test]
fn definitions_and_completions_are_printed() {
    let output = run(meshfed().arg("crds"));
    assert!(output.status.success());
    let shown = String::from_utf8(output.stdout).unwrap();
    let kept = include_str!("../../../../deploy/crds.yaml");
    assert_eq!(
        shown, kept,
        "write it anew: meshfed crds > deploy/crds.yaml"
    );
    for shell in ["bash", "zsh", "fish"] {
        let output = run(meshfed().args(["completions", shell]));
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("meshfed"));
    }
}

#[test]
fn a_sidecar_without_its_files_says_which() {
    let dir = temp_dir();
    let output = run(meshfed().args([
        "sidecar",
        "--control-plane",
        "https://127.0.0.1:1",
        "--ca",
        dir.path().join("no-ca.pem").to_str().unwrap(),
        "--token-file",
        dir.path().join("no-token").to_str().unwrap(),
        "--name",
        "client",
        "--namespace",
        "bookinfo",
        "--address",
        "127.0.0.1",
    ]));
    let line = complaint(&output);
    assert!(
        line.contains("no-ca.pem") || line.contains("no-token"),
        "{line}"
    );
}

#[test]
fn files_of_others_cannot_be_read() {
    // The mode of the kubeconfig itself is a claim of the demo; here it is the directory's.
    let dir = temp_dir();
    let data = dir.path().join("data");
    let net = LoopbackNet::lock();
    let _taken = TcpListener::bind((net.address(1), 6443)).unwrap();
    run(meshfed()
        .args(["up", "--subnet", &net.cidr(), "--data-dir"])
        .arg(&data));
    let mode = std::fs::metadata(&data).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);
}
