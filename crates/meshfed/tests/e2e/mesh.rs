//! One mesh as a process, and kubectl on it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use meshfed_testkit::LoopbackNet;

use crate::program::{PATIENCE, meshfed, run, text, wait};

/// `meshfed up` until dropped.
pub struct Up(Child);

impl Drop for Up {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _ended = wait(&mut self.0, PATIENCE);
    }
}

/// The command that starts red-mesh.
pub fn up(net: &LoopbackNet, data: &Path) -> Command {
    up_as("red-mesh", net, data)
}

fn up_as(name: &str, net: &LoopbackNet, data: &Path) -> Command {
    let mut command = meshfed();
    command
        .args(["up", "--name", name, "--subnet", &net.cidr(), "--data-dir"])
        .arg(data);
    command
}

/// Starts red-mesh and waits until it serves.
pub fn start(net: &LoopbackNet, data: &Path) -> Up {
    start_as("red-mesh", net, data)
}

/// Starts a mesh and waits until it serves.
pub fn start_as(name: &str, net: &LoopbackNet, data: &Path) -> Up {
    let mut child = up_as(name, net, data)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let line = BufReader::new(child.stdout.take().unwrap()).lines().next();
    assert!(matches!(line, Some(Ok(_))), "the mesh did not start");
    Up(child)
}

/// Runs kubectl as the administrator and gives what it prints.
pub fn kubectl(tool: &Path, data: &Path, arguments: &[&str]) -> String {
    let output = run(Command::new(tool)
        .arg("--kubeconfig")
        .arg(data.join("kubeconfig"))
        .args(arguments));
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}
