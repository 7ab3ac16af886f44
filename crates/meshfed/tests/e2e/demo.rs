//! `meshfed demo`.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use meshfed_testkit::temp_dir;

use crate::program::{PATIENCE, meshfed, run, text, wait};

#[test]
fn two_meshes_share_a_service_and_every_claim_holds() {
    let output = run(meshfed().args(["demo", "--check"]));
    assert!(output.status.success(), "{}", text(&output));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("ratings.bookinfo.svc.red-mesh-imports.local:9080"));
    assert!(shown.contains("red-ratings.bookinfo.svc.green-mesh-exports.local"));
    assert!(!shown.contains('\u{1b}'), "a pipe gets no colours");
}

#[test]
fn three_meshes_have_six_peers() {
    let output = run(meshfed().args(["demo", "--check", "--meshes", "3"]));
    assert!(output.status.success(), "{}", text(&output));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(shown.matches("in both directions").count(), 6, "{shown}");
}

#[test]
fn what_was_started_ends_with_a_demo_that_is_killed() {
    let data = temp_dir();
    let mut demo = meshfed()
        .arg("demo")
        .arg("--data-dir")
        .arg(data.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let mut pids = Vec::new();
    for line in lines {
        let line = line.unwrap();
        if let Some((_, rest)) = line.split_once(": process ") {
            pids.push(rest.split(' ').next().unwrap().to_owned());
        }
        if line.contains("Running until Ctrl-C") {
            break;
        }
    }
    assert_eq!(pids.len(), 2, "the demo names the processes of its meshes");
    demo.kill().unwrap();
    assert!(wait(&mut demo, PATIENCE).is_some());
    let began = Instant::now();
    let alive = |pid: &String| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|s| s.starts_with("Name:\tmeshfed") && !s.contains("State:\tZ"))
    };
    while pids.iter().any(alive) {
        assert!(began.elapsed() < PATIENCE, "a mesh outlived its demo");
        std::thread::sleep(Duration::from_millis(20));
    }
}
