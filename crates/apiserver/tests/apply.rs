//! What a manifest would give, beside what a stock kubectl gives with `apply --dry-run=server`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use common::https::HttpsServer;
use meshfed_apiserver::Manifests;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

/// Triples that are made by chance, beside those that are written down here.
const RANDOM: usize = 60;
const APPLY: &str = "apply --dry-run=server -o json -f -";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An object's history: what was applied, what is there since others changed it, and what is applied
/// now. Only the fields below the top.
#[derive(Debug, Clone)]
struct Case {
    kind: &'static str,
    last: Option<Value>,
    live: Option<Value>,
    wanted: Value,
}

/// Makes cases of one kind.
fn of(kind: &'static str) -> impl Fn(Option<Value>, Option<Value>, Value) -> Case {
    move |last, live, wanted| Case {
        kind,
        last,
        live,
        wanted,
    }
}

fn ports(ports: Value) -> Value {
    json!({"spec": {"ports": ports}})
}

fn written() -> Vec<Case> {
    let (service, widget) = (of("Service"), of("Widget"));
    let http = json!({"name": "http", "port": 80});
    let more = json!({"name": "more", "port": 81});
    let dns = json!([
        {"name": "tcp", "port": 53, "protocol": "TCP"},
        {"name": "udp", "port": 53, "protocol": "UDP"},
    ]);
    vec![
        service(None, None, ports(json!([http]))),
        // A port that somebody else added stays, and the new one comes.
        service(None, Some(ports(json!([more]))), ports(json!([http]))),
        service(
            Some(ports(json!([http]))),
            Some(ports(json!([more, http]))),
            ports(json!([{"name": "new", "port": 82}, http])),
        ),
        // A port that was applied before goes.
        service(
            Some(ports(json!([http, more]))),
            Some(ports(json!([http, more, {"name": "theirs", "port": 90}]))),
            ports(json!([http])),
        ),
        // One number with two protocols, which the merge key does not tell apart.
        service(
            Some(ports(dns.clone())),
            Some(ports(dns.clone())),
            ports(dns.clone()),
        ),
        service(
            Some(ports(json!([dns[0]]))),
            Some(ports(json!([dns[0]]))),
            ports(dns.clone()),
        ),
        service(
            Some(ports(dns.clone())),
            Some(ports(dns.clone())),
            ports(json!([dns[0]])),
        ),
        // Nulls, and a kind of text that is no number.
        service(
            None,
            Some(json!({"spec": {"ports": [http], "selector": {"a": "b", "c": "d"}}})),
            json!({"spec": {"ports": [http], "selector": {"a": null}}}),
        ),
        service(
            None,
            Some(json!({"spec": {"ports": [http], "selector": {"a": "b"}}})),
            json!({"spec": {"ports": [http], "selector": null}}),
        ),
        service(
            None,
            Some(ports(json!([http]))),
            json!({"metadata": {"creationTimestamp": null}, "spec": {"ports": [http]}, "status": {"loadBalancer": {}}}),
        ),
        // What a server refuses.
        service(
            None,
            Some(ports(json!([http]))),
            ports(json!([{"port": 81}])),
        ),
        service(
            None,
            Some(ports(json!([http]))),
            json!({"spec": {"port": []}}),
        ),
        service(
            None,
            Some(ports(json!([http]))),
            json!({"metadata": {"resourceVersion": "1"}, "spec": {"ports": [http]}}),
        ),
        service(
            None,
            None,
            json!({"metadata": {"resourceVersion": "1"}, "spec": {"ports": [http]}}),
        ),
        // Lists of scalars: a set, and one that is replaced whole.
        service(
            Some(json!({"metadata": {"finalizers": ["a/a", "a/b"]}})),
            Some(
                json!({"metadata": {"finalizers": ["a/a", "a/b", "a/c"]}, "spec": {"ports": [http]}}),
            ),
            json!({"metadata": {"finalizers": ["a/d", "a/b"]}, "spec": {"ports": [http]}}),
        ),
        service(
            Some(json!({"spec": {"externalIPs": ["1.2.3.4"]}})),
            Some(json!({"spec": {"ports": [http], "externalIPs": ["1.2.3.4", "1.2.3.5"]}})),
            json!({"spec": {"ports": [http], "externalIPs": ["1.2.3.6"]}}),
        ),
        // A namespace's own kind of annotations, and a custom resource, whose lists are replaced.
        service(
            Some(json!({"metadata": {"annotations": {"mine": "1", "both": "1"}}})),
            Some(
                json!({"metadata": {"annotations": {"mine": "1", "both": "1", "theirs": "1"}}, "spec": {"ports": [http]}}),
            ),
            json!({"metadata": {"annotations": {"both": "2"}}, "spec": {"ports": [http]}}),
        ),
        widget(None, None, json!({"spec": {"size": 3}})),
        widget(
            Some(json!({"spec": {"size": 3, "parts": [{"name": "a"}], "colour": "green"}})),
            Some(
                json!({"spec": {"size": 3, "parts": [{"name": "a"}, {"name": "b"}], "colour": "green"}}),
            ),
            json!({"spec": {"size": 4, "parts": [{"name": "c", "count": 1}]}}),
        ),
        // A null takes away what was applied, not what others set.
        widget(
            Some(json!({"spec": {"free": {"a": 1}}})),
            Some(json!({"spec": {"size": 3, "free": {"a": 1, "b": 2}}})),
            json!({"spec": {"free": {"a": null, "b": null, "c": null}}}),
        ),
        widget(
            None,
            Some(json!({"spec": {"size": 3}})),
            json!({"spec": {"size": 3, "shape": 1}}),
        ),
        widget(
            None,
            Some(json!({"spec": {"size": 3}})),
            json!({"spec": {"size": 30}}),
        ),
    ]
}

/// Specs of Services that the server takes, out of few values so that they meet.
fn spec() -> impl Strategy<Value = Value> {
    let port = (
        1..5_u16,
        prop::bool::ANY,
        "[ab]",
        prop::option::of(1..4_u16),
    );
    let ports = prop::collection::vec(port, 1..4).prop_map(|ports| {
        let mut seen = std::collections::BTreeSet::new();
        let ports = ports.into_iter().filter(|(port, ..)| seen.insert(*port));
        let ports = ports.map(|(port, udp, name, target)| {
            let mut object = json!({"port": port, "name": format!("{name}{port}")});
            if udp {
                object["protocol"] = "UDP".into();
            }
            if let Some(target) = target {
                object["targetPort"] = target.into();
            }
            object
        });
        Value::Array(ports.collect())
    });
    let texts = || prop::collection::btree_map("[a-c]", "[ab]", 0..3);
    (ports, prop::option::of(texts()), texts()).prop_map(|(ports, selector, labels)| {
        let mut object = json!({"metadata": {"labels": labels}, "spec": {"ports": ports}});
        if let Some(selector) = selector {
            object["spec"]["selector"] = json!(selector);
        }
        object
    })
}

fn random() -> Vec<Case> {
    let mut runner = TestRunner::deterministic();
    let case = (prop::option::of(spec()), spec(), spec())
        .prop_map(|(last, live, wanted)| of("Service")(last, Some(live), wanted));
    let all = (0..RANDOM).map(|_| case.new_tree(&mut runner).unwrap().current());
    all.collect()
}

impl Case {
    fn object(&self, number: usize, fields: &Value) -> Value {
        let mut object = fields.clone();
        object["apiVersion"] = match self.kind {
            "Widget" => "example.com/v1",
            _ => "v1",
        }
        .into();
        object["kind"] = self.kind.into();
        object["metadata"]["name"] = format!("case-{number}").into();
        object
    }

    fn live(&self, number: usize) -> Option<Value> {
        let mut live = self.object(number, self.live.as_ref()?);
        if let Some(last) = &self.last {
            let last = self.object(number, last).to_string();
            live["metadata"]["annotations"][LAST_APPLIED] = last.into();
        }
        Some(live)
    }
}

struct Kubectl {
    program: PathBuf,
    server: HttpsServer,
}

impl Kubectl {
    async fn run(&self, line: &str, input: String) -> Output {
        let mut command = Command::new(&self.program);
        command
            .args(line.split(' '))
            .env_clear()
            .env("HOME", self.server.dir.path())
            .env("KUBECONFIG", &self.server.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let run = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(input.as_bytes()).unwrap();
            drop(stdin);
            child.wait_with_output().unwrap()
        });
        run.await.unwrap()
    }
}

fn list(items: Vec<Value>) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// The objects of an answer by kind and name; one alone is no list.
fn by_name(output: &Output) -> std::collections::BTreeMap<String, Value> {
    let answer: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    let items = answer["items"].as_array().unwrap();
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    items
        .iter()
        .map(|object| (name(object), object.clone()))
        .collect()
}

/// Without what only a server gives, and with the note of what was applied as what it says.
fn comparable(mut object: Value, is_new: bool) -> Value {
    if is_new {
        for field in ["uid", "creationTimestamp", "generation", "resourceVersion"] {
            object["metadata"].as_object_mut().unwrap().remove(field);
        }
    }
    let note = &mut object["metadata"]["annotations"][LAST_APPLIED];
    *note = serde_json::from_str(note.as_str().unwrap()).unwrap();
    object
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_gives_what_kubectl_gives() {
    let fetched = tokio::task::spawn_blocking(meshfed_testkit::tools::kubectl_or_skip);
    let Some(program) = fetched.await.unwrap() else {
        return;
    };
    let server = HttpsServer::start(|_| {}).await;
    let kubectl = Kubectl { program, server };
    let cases: Vec<Case> = written().into_iter().chain(random()).collect();
    let numbered = || cases.iter().enumerate();

    let there = numbered().filter_map(|(number, case)| case.live(number));
    let created = kubectl.run("create -f -", list(there.collect())).await;
    let said = String::from_utf8_lossy(&created.stderr);
    assert!(created.status.success(), "{said}");
    let live = by_name(
        &kubectl
            .run("get services,widgets -o json", String::new())
            .await,
    );

    let manifests = Manifests::new(&[common::widgets()]).unwrap();
    let mut ours = Vec::new();
    let mut refused = 0;
    for (number, case) in numbered() {
        let wanted = case.object(number, &case.wanted);
        let manifest = manifests.read(&wanted.to_string(), "default").unwrap();
        let live = live.get(&format!("case-{number}"));
        assert_eq!(live.is_some(), case.live.is_some());
        match manifests.apply(&manifest[0], live) {
            Ok(applied) => ours.push((case, wanted, comparable(applied, live.is_none()))),
            Err(error) => {
                let theirs = kubectl.run(APPLY, wanted.to_string()).await;
                assert!(!theirs.status.success(), "{case:#?}: {error}");
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 7);
    // One of them that kubectl refuses, and it prints none.
    let wanted = ours.iter().map(|(_, wanted, _)| wanted.clone()).collect();
    let mut theirs = by_name(&kubectl.run(APPLY, list(wanted)).await);
    for (case, wanted, ours) in ours {
        let theirs = theirs.remove(wanted["metadata"]["name"].as_str().unwrap());
        assert_eq!(
            ours,
            comparable(theirs.unwrap(), case.live.is_none()),
            "{case:#?}"
        );
    }
    kubectl.server.stop().await;
}
