//! The walk-through of the README: the commands in its blocks, as they stand there.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use meshfed_testkit::{LoopbackNet, temp_dir, tools};

use crate::program::{PATIENCE, path, run_within, text};

const README: &str = include_str!("../../../../README.md");
/// Opens a block of the walk-through.
const FENCE: &str = "```sh walk\n";

#[test]
fn every_command_of_the_readme_works() {
    let Some(kubectl) = tools::kubectl_or_skip() else {
        return;
    };
    let dir = temp_dir();
    let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let (red, green) = (LoopbackNet::lock(), LoopbackNet::lock());
    let own = |text: &str| {
        text.replace("127.64.1.", &prefix(&red))
            .replace("127.64.2.", &prefix(&green))
    };
    // The same files, on networks that this test owns.
    for file in walk_files(&format!("{tree}/examples")) {
        let target = dir
            .path()
            .join(file.strip_prefix(tree).unwrap().trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::write(target, own(&std::fs::read_to_string(&file).unwrap())).unwrap();
    }
    let bin = dir.path().join("target/release");
    std::fs::create_dir_all(&bin).unwrap();
    symlink(path(), bin.join("meshfed")).unwrap();
    let tools = dir.path().join("tools");
    std::fs::create_dir_all(&tools).unwrap();
    symlink(&kubectl, tools.join("kubectl")).unwrap();

    let mut script = String::from("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null' EXIT\n");
    for block in README.split(FENCE).skip(1) {
        let block = block.split("```").next().unwrap();
        // The program under test is the one that was built for it.
        let block = block.replace("cargo build --release\n", "");
        writeln!(script, "{}", own(&block)).unwrap();
    }
    // Several tests may want the port of the stand-in service.
    let script = script
        .replace(
            "http.server 9080 --bind 127.0.0.1",
            &format!("http.server 9080 --bind {}", red.address(230)),
        )
        .replace(
            "--app 127.0.0.1:9080",
            &format!("--app {}:9080", red.address(230)),
        );
    let search = std::env::var("PATH").unwrap();
    let output = run_within(
        Command::new("bash")
            .arg("-c")
            .arg(&script)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .env("PATH", format!("{}:{search}", tools.display())),
        // All of it, with two meshes and two sidecars, beside other tests.
        4 * PATIENCE,
    );
    let shown = text(&output);
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("ComponentsReady"), "{shown}");
    assert!(shown.contains("\"Reviewer1\": 5"), "{shown}");
}

fn prefix(net: &LoopbackNet) -> String {
    let address = net.address(0).to_string();
    address.trim_end_matches('0').to_owned()
}

fn walk_files(dir: &str) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let text = path.to_str().unwrap().to_owned();
        if path.is_dir() {
            files.extend(walk_files(&text));
        } else if text.ends_with(".yaml") {
            files.push(text);
        }
    }
    files
}
