//! What was acknowledged is there after the process was killed.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use meshfed_apiserver::{ApiServer, OpenError};
use serde_json::json;

/// Names the data directory for the process that is to be killed: this test binary, started again.
const CHILD: &str = "MESHFED_TEST_DATA_DIR";

fn mk_map(name: &str) -> ConfigMap {
    let map = json!({"metadata": {"name": name}, "data": {"filler": "x".repeat(2000)}});
    serde_json::from_value(map).unwrap()
}

/// Writes until it is killed, and says after each write that it was acknowledged.
async fn write_until_killed(dir: &Path) {
    let server = ApiServer::open(common::options(dir)).unwrap();
    let client = Client::new(server.service(), "default");
    let mut writers = Vec::new();
    for writer in 0..8 {
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        writers.push(tokio::spawn(async move {
            for n in 0.. {
                let name = format!("w{writer}-{n}");
                maps.create(&PostParams::default(), &mk_map(&name))
                    .await
                    .unwrap();
                println!("acknowledged {name}");
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_kill_9() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return write_until_killed(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "acknowledged_writes_survive_kill_9",
                "--nocapture",
            ])
            .env(CHILD, dir.path().join(round.to_string()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while seen < 100 {
            let line = lines.next().unwrap().unwrap();
            if let Some(at) = line.find("acknowledged ") {
                acknowledged.push((round, line[at + 13..].to_owned()));
                seen += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts, too; a last line may be cut.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        let whole = rest.split_last().map_or(&[][..], |(_, whole)| whole);
        let said = whole
            .iter()
            .filter_map(|line| line.strip_prefix("acknowledged "));
        acknowledged.extend(said.map(|name| (round, name.to_owned())));
    }
    for round in 1..=3 {
        let server = ApiServer::open(common::options(&dir.path().join(round.to_string()))).unwrap();
        let maps: Api<ConfigMap> =
            Api::default_namespaced(Client::new(server.service(), "default"));
        let list = maps.list(&ListParams::default()).await.unwrap();
        let found: std::collections::HashSet<String> = list
            .items
            .into_iter()
            .filter_map(|map| map.metadata.name)
            .collect();
        for (_, name) in acknowledged.iter().filter(|(of, _)| *of == round) {
            assert!(
                found.contains(name),
                "{name} was acknowledged in round {round}"
            );
        }
    }
}

#[tokio::test]
async fn a_restart_keeps_objects_and_revisions_and_the_directory_is_for_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let server = ApiServer::open(common::options(dir.path())).unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(Client::new(server.service(), "default"));
    let made = maps
        .create(&PostParams::default(), &mk_map("a"))
        .await
        .unwrap();
    let error = ApiServer::open(common::options(dir.path())).err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    let revision = server.revision();
    drop((server, maps));
    let server = common::eventually("the directory is free", async || {
        ApiServer::open(common::options(dir.path())).ok()
    })
    .await;
    assert_eq!(server.revision(), revision);
    let maps: Api<ConfigMap> = Api::default_namespaced(Client::new(server.service(), "default"));
    assert_eq!(maps.get("a").await.unwrap().metadata, made.metadata);
    for file in ["api.redb", "sa-signer.pem"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(dir.path().join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn a_definition_that_makes_no_sense_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = common::options(dir.path());
    options.crds[0].spec.versions[0].storage = true;
    let error = ApiServer::open(options).err().unwrap();
    assert!(error.to_string().contains("widgets.example.com"), "{error}");
    std::fs::write(dir.path().join("sa-signer.pem"), "not a key").unwrap();
    let error = ApiServer::open(common::options(dir.path())).err().unwrap();
    assert!(matches!(error, OpenError::SigningKey { .. }), "{error}");
}
