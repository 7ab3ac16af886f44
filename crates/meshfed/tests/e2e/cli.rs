//! What the program says to input that makes no sense: one clear line, a non-zero exit, nothing
//! half-done.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use meshfed_testkit::{LoopbackNet, temp_dir};

use crate::program::{meshfed, path, run, text};

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
fn an_address_for_node_ports_that_is_not_of_this_machine_is_refused() {
    let dir = temp_dir();
    let data = dir.path().join("data");
    let mut up = meshfed();
    up.args(["up", "--node-address", "192.0.2.1", "--data-dir"])
        .arg(&data);
    let line = complaint(&run(&mut up));
    assert!(line.contains("--node-address 192.0.2.1"), "{line}");
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
fn a_mesh_whose_resources_are_gone_or_damaged_does_not_start() {
    let net = LoopbackNet::lock();
    let dir = temp_dir();
    std::fs::write(dir.path().join("sa-signer.pem"), "a key").unwrap();
    for (resources, said) in [("", "api.redb is empty"), ("x", "api.redb is damaged")] {
        std::fs::write(dir.path().join("api.redb"), resources).unwrap();
        let mut up = meshfed();
        up.args(["up", "--subnet", &net.cidr(), "--data-dir"])
            .arg(dir.path());
        let output = run(&mut up);
        let line = complaint(&output);
        assert!(line.contains(said) && line.contains("backup"), "{line}");
        assert!(!text(&output).contains("panicked"), "{}", text(&output));
    }
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
fn a_file_and_a_command_line_that_make_no_sense_are_one_line_without_what_else_is_in_them() {
    let dir = temp_dir();
    let file = dir.path().join("up.yaml");
    std::fs::write(&file, "name: red-mesh\ndata-dir: /other\nsubnet: [\n").unwrap();
    let mut bad_file = meshfed();
    bad_file.args(["up", "--config"]).arg(&file);
    let typed = |arguments: &[&str]| {
        let mut command = meshfed();
        command.args(arguments);
        command
    };
    for (mut command, said) in [
        (bad_file, "up.yaml makes no sense"),
        (typed(&["diff"]), "--filename <FILE>"),
        (typed(&["status", "--outptu", "json"]), "'--output'"),
        (
            typed(&["peer", "bundle", "--for", "a", "--address", "a:80"]),
            "'a:80'",
        ),
        (typed(&["status", "--log-level", "a=b=c"]), "neither error"),
    ] {
        let output = run(&mut command);
        assert!(!output.status.success() && output.stdout.is_empty());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(
            stderr.starts_with("meshfed: ") && stderr.contains(said),
            "{stderr}"
        );
        assert_eq!(stderr.matches(said).count(), 1, "{stderr}");
        assert!(!stderr.contains("/other"), "{stderr}");
    }
    let help = run(&mut meshfed());
    assert_eq!(help.status.code(), Some(2));
    assert!(text(&help).contains("Usage: meshfed"), "{}", text(&help));
    for command in ["explain", "peer"] {
        let line = complaint(&run(meshfed().arg(command)));
        let usage = format!("meshfed {command} ");
        assert!(line.contains(&usage) && line.contains("--help"), "{line}");
    }
}

#[test]
fn a_reader_that_goes_is_no_failure_and_a_full_disk_is_one() {
    let shell = |script: &str| {
        let program = path();
        run(Command::new("bash")
            .args(["-c", &format!("set -o pipefail; {script}"), "-"])
            .arg(program))
    };
    for asked in ["completions bash", "crds", "--help", "--version"] {
        let gone = shell(&format!("\"$1\" {asked} | true"));
        assert!(
            gone.status.success() && gone.stderr.is_empty(),
            "{asked}: {}",
            text(&gone)
        );
        let full = shell(&format!("\"$1\" {asked} > /dev/full"));
        assert_eq!(full.status.code(), Some(1), "{asked}: {}", text(&full));
        let stderr = String::from_utf8_lossy(&full.stderr);
        assert_eq!(stderr.lines().count(), 1, "{asked}: {stderr}");
    }
    let silent = shell("\"$1\" status --kubeconfig /none 2> /dev/full");
    assert_eq!(silent.status.code(), Some(2));
}

#[test]
fn definitions_are_printed() {
    let output = run(meshfed().arg("crds"));
    assert!(output.status.success());
    let shown = String::from_utf8(output.stdout).unwrap();
    let kept = include_str!("../../../../deploy/crds.yaml");
    assert_eq!(
        shown, kept,
        "write it anew: meshfed crds > deploy/crds.yaml"
    );
}

/// The script that teaches a shell what to offer.
fn completions(shell: &str) -> String {
    let output = run(meshfed().args(["completions", shell]));
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_bash_that_reads_the_completions_offers_the_tools_and_their_options() {
    let dir = temp_dir();
    let script = dir.path().join("meshfed.bash");
    std::fs::write(&script, completions("bash")).unwrap();
    for (typed, offered) in [
        ("", &["status", "explain", "diff", "peer", "up", "demo"][..]),
        ("peer", &["bundle"]),
        ("peer bundle", &["--for", "--context"]),
        ("explain", &["export", "import"]),
        ("explain export", &["--peer", "--kubeconfig", "--output"]),
        ("explain import", &["--peer"]),
        ("diff", &["--filename", "--delete", "--output"]),
        ("status", &["--output", "--namespace"]),
    ] {
        let ask = format!(
            "source {}; COMP_WORDS=(meshfed {typed} ''); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _meshfed meshfed '' \"${{COMP_WORDS[COMP_CWORD-1]}}\"; echo \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let output = run(Command::new("bash").args(["--norc", "-c", &ask]));
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let answer: Vec<&str> = answer.split_whitespace().collect();
        for word in offered {
            assert!(answer.contains(word), "{typed:?}: {}", text(&output));
        }
    }
}

#[test]
fn completions_for_zsh_and_fish_know_the_tools() {
    let zsh = completions("zsh");
    let fish = completions("fish");
    for (above, command) in [
        ("", "status"),
        ("", "explain"),
        ("", "diff"),
        ("peer", "bundle"),
        ("explain", "export"),
        ("explain", "import"),
    ] {
        let below = match above {
            "" => String::new(),
            above => format!("subcmd__{above}__"),
        };
        let described = format!("_meshfed__{below}subcmd__{command}_commands() {{");
        assert!(zsh.contains(&described), "{described}");
        let mut offers = fish.lines().filter(|line| match above {
            "" => line.contains("__fish_meshfed_needs_command"),
            above => line.contains(&format!("__fish_meshfed_using_subcommand {above};")),
        });
        let offer = format!("-a \"{command}\"");
        assert!(offers.any(|line| line.contains(&offer)), "{command}");
    }
    assert!(zsh.contains("'*--filename=["), "{zsh}");
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
