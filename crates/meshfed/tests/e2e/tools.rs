//! The administrator's tools on two meshes that run: what they say, their exit statuses, and who may
//! ask.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use meshfed_testkit::{LoopbackNet, TempDir, temp_dir, tools};
use serde_json::Value;

use crate::mesh::{Up, kubectl, start_as};
use crate::program::{meshfed, path, run, text};

const OBSERVATIONS: &str = "/apis/view.meshfed.io/v1/observations";

/// One of the two meshes of the examples, on a network of its own.
struct Mesh {
    name: &'static str,
    tool: PathBuf,
    dir: TempDir,
    /// The first three numbers of both networks, in the order red, green.
    nets: [String; 2],
    _up: Up,
    _net: LoopbackNet,
}

impl Mesh {
    fn kubeconfig(&self) -> String {
        self.dir
            .path()
            .join("kubeconfig")
            .to_str()
            .unwrap()
            .to_owned()
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        kubectl(&self.tool, self.dir.path(), arguments)
    }

    /// An example of this mesh, with the addresses of this test.
    fn example(&self, file: &str) -> String {
        let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
        let text = std::fs::read_to_string(format!("{tree}/{}/{file}", self.name)).unwrap();
        let text = text
            .replace("127.64.1.", &self.nets[0])
            .replace("127.64.2.", &self.nets[1]);
        let target = self.dir.path().join(file);
        std::fs::write(&target, text).unwrap();
        target.to_str().unwrap().to_owned()
    }

    fn apply(&self, file: &str) {
        self.kubectl(&["apply", "-f", &self.example(file)]);
    }

    /// Runs one of the tools on this mesh; `--kubeconfig` goes to its end.
    fn ask(&self, arguments: &[&str]) -> Output {
        run(meshfed()
            .args(arguments)
            .args(["--kubeconfig", &self.kubeconfig()]))
    }

    /// Asks for JSON until the answer is as it should be.
    fn until(&self, arguments: &[&str], good: impl Fn(&Value) -> bool) -> Value {
        let mut said = Value::Null;
        for _ in 0..600 {
            let output = self.ask(&[arguments, &["-o", "json"]].concat());
            assert!(status(&output) < 2, "{}", text(&output));
            said = serde_json::from_slice(&output.stdout).unwrap();
            if good(&said) {
                return said;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{arguments:?}: {said:#}");
    }
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Both meshes with their control planes and namespaces, not peers yet.
fn meshes() -> Option<[Mesh; 2]> {
    let tool = tools::kubectl_or_skip()?;
    let locks = [LoopbackNet::lock(), LoopbackNet::lock()];
    let nets = locks.each_ref().map(|net| {
        let address = net.address(0).to_string();
        address.trim_end_matches('0').to_owned()
    });
    let mut locks = locks.into_iter();
    Some(["red-mesh", "green-mesh"].map(|name| {
        let dir = temp_dir();
        let net = locks.next().unwrap();
        let mesh = Mesh {
            name,
            tool: tool.clone(),
            nets: nets.clone(),
            _up: start_as(name, &net, dir.path()),
            _net: net,
            dir,
        };
        for file in [
            "00-namespaces.yaml",
            "10-control-plane.yaml",
            "11-member-roll.yaml",
        ] {
            mesh.apply(file);
        }
        mesh
    }))
}

fn wait_ready(mesh: &Mesh, what: &str) {
    let namespace = format!("{}-system", mesh.name);
    mesh.kubectl(&[
        "-n",
        &namespace,
        "wait",
        "--for=condition=Ready",
        what,
        "--timeout=60s",
    ]);
}

/// The one line of a tool that could not do its work.
fn complaint(output: &Output) -> String {
    assert_eq!(status(output), 2, "{}", text(output));
    assert!(output.stdout.is_empty(), "{}", text(output));
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

#[test]
fn four_commands_make_a_federation_and_the_tools_tell_of_it() {
    let Some([red, green]) = meshes() else { return };
    wait_ready(&red, "smcp/red-mesh");
    wait_ready(&green, "smcp/green-mesh");
    let nobody = red.ask(&[
        "explain",
        "export",
        "red-mesh-bookinfo/ratings",
        "--peer",
        "green-mesh",
    ]);
    assert_eq!(status(&nobody), 1);
    assert!(
        stdout(&nobody).contains("is not exported"),
        "{}",
        text(&nobody)
    );

    // Two pipes of two commands.
    let script = format!(
        "set -euo pipefail
        meshfed() {{ '{}' \"$@\"; }}
        kubectl() {{ '{}' \"$@\"; }}
        meshfed peer bundle --kubeconfig {r} --for green-mesh | kubectl --kubeconfig {g} apply -f -
        meshfed peer bundle --kubeconfig {g} --for red-mesh | kubectl --kubeconfig {r} apply -f -",
        path().display(),
        red.tool.display(),
        r = red.kubeconfig(),
        g = green.kubeconfig(),
    );
    let output = run(Command::new("bash").arg("-c").arg(script));
    assert!(output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains("PRIVATE"));
    wait_ready(&red, "servicemeshpeer/green-mesh");
    wait_ready(&green, "servicemeshpeer/red-mesh");

    what_if(&red, &green);
    where_kubectl_would_put_it(&red);
    why(&red, &green);
    for_machines(&red, &green);

    let said = red.until(&["status"], |all| {
        let peer = &all["peers"][0];
        peer["watch"]["connected"] == true && peer["watchers"][0]["connected"] == true
    });
    assert_eq!(said["peers"][0]["exports"], 2, "{said:#}");
    assert_eq!(said["trustDomain"], "red-mesh.local");
    assert!(
        said["certificates"].as_array().unwrap().len() >= 3,
        "{said:#}"
    );
    let screen = stdout(&red.ask(&["status"]));
    assert!(
        screen.contains("green-mesh") && !screen.contains('\u{1b}'),
        "{screen}"
    );
    let yaml = stdout(&red.ask(&["status", "-o", "yaml"]));
    let parsed: Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(parsed["name"], "red-mesh");

    remedies_work_as_they_are_printed(&red);
    bad_input(&red);
    only_administrators_see_what_peers_export(&red);
}

/// What applying and deleting the examples would do, with nothing applied.
fn what_if(red: &Mesh, green: &Mesh) {
    let export = red.example("31-export-to-green-mesh.yaml");
    let both = ["-f", &red.example("20-bookinfo.yaml"), "-f", &export];
    let output = red.ask(&[&["diff"], &both[..]].concat());
    assert_eq!(status(&output), 1, "{}", text(&output));
    assert!(
        stdout(&output).starts_with("Newly exposed:\n"),
        "{}",
        text(&output)
    );
    let sets = red.kubectl(&["get", "exportedservicesets", "-A", "-o", "name"]);
    assert_eq!(sets, "", "nothing was applied");

    red.apply("20-bookinfo.yaml");
    red.apply("31-export-to-green-mesh.yaml");
    let output = red.ask(&["diff", "-f", &export]);
    assert_eq!(status(&output), 0, "{}", text(&output));
    assert_eq!(stdout(&output), "Nothing changes in what is shared.\n");
    let output = red.ask(&["diff", "--delete", "-f", &export, "-o", "json"]);
    assert_eq!(status(&output), 1);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["hidden"].as_array().unwrap().len(), 2, "{said:#}");

    green.apply("20-client.yaml");
    let import = green.example("31-import-from-red-mesh.yaml");
    green.until(&["diff", "-f", &import], |said| {
        said["imported"]
            .as_array()
            .is_some_and(|all| all.len() == 1)
    });
    green.apply("31-import-from-red-mesh.yaml");
}

/// What names no namespace goes to that of the context, and ports that others made stay.
fn where_kubectl_would_put_it(red: &Mesh) {
    let forget = "kubectl.kubernetes.io/last-applied-configuration-";
    red.kubectl(&[
        "-n",
        "red-mesh-bookinfo",
        "annotate",
        "service",
        "ratings",
        forget,
    ]);
    red.kubectl(&[
        "config",
        "set-context",
        "--current",
        "--namespace=red-mesh-bookinfo",
    ]);
    let port = "apiVersion: v1\nkind: Service\nmetadata: {name: ratings}\nspec:\n  ports: [{port: 9999, name: http2}]\n";
    let file = red.dir.path().join("port.yaml");
    std::fs::write(&file, port).unwrap();
    let output = red.ask(&["diff", "-f", file.to_str().unwrap(), "-o", "json"]);
    assert_eq!(status(&output), 1, "{}", text(&output));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ports: Vec<&Value> = said["exposed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["ports"])
        .collect();
    assert!(
        ports.iter().all(|ports| ports.to_string().contains("9999")),
        "{said:#}"
    );
    assert!(!said["hidden"].to_string().contains("9080"), "{said:#}");
    red.kubectl(&["config", "set-context", "--current", "--namespace=default"]);
}

/// Runs the commands that `explain` prints, until nothing is left that they could do.
fn remedies_work_as_they_are_printed(red: &Mesh) {
    let system = "red-mesh-system";
    for empty in [
        [
            "servicemeshmemberroll",
            "default",
            "{\"spec\":{\"members\":null}}",
        ],
        [
            "exportedserviceset",
            "green-mesh",
            "{\"spec\":{\"exportRules\":null}}",
        ],
    ] {
        let [kind, name, patch] = empty;
        red.kubectl(&[
            "-n",
            system,
            "patch",
            kind,
            name,
            "--type=merge",
            "-p",
            patch,
        ]);
    }
    let asked = [
        "explain",
        "export",
        "red-mesh-bookinfo/ratings",
        "--peer",
        "green-mesh",
    ];
    let script = |command: &str| {
        run(Command::new("bash").arg("-c").arg(format!(
            "set -euo pipefail; kubectl() {{ '{}' --kubeconfig '{}' \"$@\"; }}; {command}",
            red.tool.display(),
            red.kubeconfig()
        )))
    };
    for (reason, mark) in [
        ("NotAMember", None),
        ("NotVisible", Some("annotate")),
        ("NotVisible", Some("label")),
        ("NoRule", None),
    ] {
        if let Some(verb) = mark {
            let hide = "networking.istio.io/exportTo=elsewhere";
            red.kubectl(&["-n", "red-mesh-bookinfo", verb, "service", "ratings", hide]);
        }
        let said = red.until(&asked, |said| said["obstacle"]["reason"] == reason);
        let command = said["obstacle"]["command"].as_str().unwrap();
        let output = script(command);
        assert!(output.status.success(), "{command}: {}", text(&output));
    }
    red.until(&asked, |said| said["shared"] == true);
}

/// Why ratings is shared, on both sides.
fn why(red: &Mesh, green: &Mesh) {
    let said = red.until(
        &[
            "explain",
            "export",
            "red-mesh-bookinfo/ratings",
            "--peer",
            "green-mesh",
        ],
        |said| said["shared"] == true && said["obstacle"]["reason"] == "NoReadyEndpoint",
    );
    assert_eq!(said["rules"][0]["outcome"], "decides");
    let name = "red-ratings.bookinfo.svc.green-mesh-exports.local";
    let said = green.until(
        &[
            "explain",
            "import",
            "red-ratings.bookinfo",
            "--peer",
            "red-mesh",
        ],
        |said| said["shared"] == true,
    );
    assert_eq!(said["names"][0]["name"], name, "{said:#}");
    let same = green.ask(&["explain", "import", name, "--peer", "red-mesh"]);
    assert!(
        stdout(&same).contains("Path of a request:"),
        "{}",
        text(&same)
    );
    let name = "red-ratings.bookinfo.svc.wrong-exports.local";
    let line = complaint(&green.ask(&["explain", "import", name, "--peer", "red-mesh"]));
    assert!(
        line.contains("exports it as red-ratings.bookinfo.svc.green-mesh"),
        "{line}"
    );
    let other = green.ask(&["explain", "import", "rating.bookinfo", "--peer", "red-mesh"]);
    assert_eq!(status(&other), 1);
    assert!(
        stdout(&other).contains("it exports red-ratings.bookinfo"),
        "{}",
        text(&other)
    );
}

/// Each tool says the same in both forms for machines, and ends in the same way.
fn for_machines(red: &Mesh, green: &Mesh) {
    let export = red.example("31-export-to-green-mesh.yaml");
    let (ratings, imported) = ("red-mesh-bookinfo/ratings", "red-ratings.bookinfo");
    for (mesh, arguments, member) in [
        (red, &["status"][..], "trustDomain"),
        (
            red,
            &["explain", "export", ratings, "--peer", "green-mesh"],
            "rules",
        ),
        (
            green,
            &["explain", "import", imported, "--peer", "red-mesh"],
            "names",
        ),
        (red, &["diff", "--delete", "-f", &export], "hidden"),
    ] {
        let said = |form: &str| {
            let output = mesh.ask(&[arguments, &["-o", form]].concat());
            assert!(status(&output) < 2, "{}", text(&output));
            (status(&output), stdout(&output))
        };
        let (json, yaml) = (said("json"), said("yaml"));
        assert_eq!(json.0, yaml.0, "{arguments:?}");
        let json: Value = serde_json::from_str(&json.1).unwrap();
        let yaml: Value = serde_saphyr::from_str(&yaml.1).unwrap();
        let members = |said: &Value| {
            said.as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(members(&json), members(&yaml), "{arguments:?}");
        assert!(!json[member].is_null(), "{arguments:?}: {json:#}");
        assert_eq!(json[member], yaml[member], "{arguments:?}");
    }
    let bundle = |form: &str| {
        let output = red.ask(&["peer", "bundle", "--for", "green-mesh", "-o", form]);
        assert_eq!(status(&output), 0, "{}", text(&output));
        stdout(&output)
    };
    let list: Value = serde_json::from_str(&bundle("json")).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&bundle("yaml")).unwrap();
    assert_eq!(list["items"], Value::Array(documents));
    let kinds: Vec<&Value> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| &item["kind"])
        .collect();
    assert_eq!(kinds, ["ConfigMap", "ServiceMeshPeer"]);
}

fn bad_input(red: &Mesh) {
    let write = |name: &str, text: &str| {
        let file = red.dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let set = "apiVersion: federation.maistra.io/v1\nkind: ExportedServiceSet\nmetadata: {name: green-mesh}\n";
    for (file, said) in [
        (
            write("unknown.yaml", &format!("{set}spec: {{exportRule: []}}\n")),
            "exportRule",
        ),
        (
            write(
                "type.yaml",
                &format!("{set}spec: {{exportRules: [{{type: Nonsense}}]}}\n"),
            ),
            "spec.exportRules[0].type",
        ),
        (write("form.yaml", "a: [b\n"), "form.yaml"),
        (write("nothing.yaml", "a: b\n"), "apiVersion"),
        (
            write(
                "nowhere.yaml",
                &format!(
                    "{}spec: {{exportRules: []}}
",
                    set.replace("green-mesh}", "green-mesh, namespace: nowhere}")
                ),
            ),
            "namespace nowhere",
        ),
        (write("empty.yaml", "# nothing\n---\n"), "no object in"),
        ("-".to_owned(), "no object in standard input"),
        (
            write(
                "stale.yaml",
                "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, resourceVersion: \"999999\"}\n",
            ),
            "has been modified",
        ),
        (
            write(
                "before.yaml",
                "apiVersion: v1\nkind: Service\nmetadata: {name: till, namespace: shop}\nspec: {ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n",
            ),
            "namespace shop",
        ),
        ("/no/such/file".to_owned(), "/no/such/file"),
    ] {
        let line = complaint(&red.ask(&["diff", "-f", &file]));
        assert!(line.contains(said), "{line}");
    }
    let line = complaint(&red.ask(&["diff", "-f", "-", "-f", "-"]));
    assert!(line.contains("once"), "{line}");
    let nothing = write(
        "nobody.yaml",
        &format!("{}spec: {{}}\n", set.replace("green-mesh", "nobody")),
    );
    let line = complaint(&red.ask(&["diff", "--delete", "-f", &nothing]));
    assert!(line.contains("cannot be deleted"), "{line}");
    let lonely = write(
        "lonely.yaml",
        &format!(
            "{}spec: {{}}\n",
            set.replace("green-mesh}", "nobody, namespace: red-mesh-system}")
        ),
    );
    let output = red.ask(&["diff", "-f", &lonely]);
    assert_eq!(status(&output), 1, "{}", text(&output));
    assert!(
        stdout(&output).contains("New problems:"),
        "{}",
        text(&output)
    );
    let line = complaint(&red.ask(&["status", "--context", "blue-mesh"]));
    assert!(line.contains("kubeconfig"), "{line}");
    let line = complaint(&red.ask(&["status", "-n", "default"]));
    assert!(line.contains("red-mesh-system"), "{line}");
    let line = complaint(&red.ask(&["peer", "bundle", "--for", "yellow-mesh"]));
    assert!(line.contains("ingress-yellow-mesh"), "{line}");
    for arguments in [
        &["peer", "bundle", "--for", "Yellow"][..],
        &["explain", "export", "ratings", "--peer", "green-mesh"],
        &["explain", "import", "ratings", "--peer", "green-mesh"],
        &["explain", "export", "a/b"],
        &["diff"],
    ] {
        let output = run(meshfed().args(arguments));
        assert_eq!(status(&output), 2, "{arguments:?}: {}", text(&output));
    }
}

/// What peers export is for administrators alone, and kubectl is not confused by it.
fn only_administrators_see_what_peers_export(red: &Mesh) {
    let seen: Value = serde_json::from_str(&red.kubectl(&["get", "--raw", OBSERVATIONS])).unwrap();
    assert_eq!(seen["mesh"]["systemNamespace"], "red-mesh-system");
    assert!(!seen.to_string().contains("PRIVATE"));
    let resources = red.kubectl(&["api-resources"]);
    assert!(!resources.contains("observations"), "{resources}");

    let account = [
        "-n",
        "red-mesh-bookinfo",
        "create",
        "token",
        "bookinfo-ratings",
    ];
    let token = red.kubectl(&account);
    let config = red.kubectl(&["config", "view", "--raw", "-o", "json"]);
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["users"][0]["user"] = serde_json::json!({"token": token.trim()});
    let file = red.dir.path().join("workload.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let as_workload = |command: &mut Command| run(command.arg("--kubeconfig").arg(&file));
    let raw = as_workload(Command::new(&red.tool).args(["get", "--raw", OBSERVATIONS]));
    assert!(text(&raw).contains("forbidden"), "{}", text(&raw));
    for tool in [
        &["status"][..],
        &[
            "explain",
            "export",
            "red-mesh-bookinfo/ratings",
            "--peer",
            "green-mesh",
        ],
    ] {
        let line = complaint(&as_workload(meshfed().args(tool)));
        assert!(line.contains("cannot list"), "{line}");
    }
}

#[test]
fn a_tool_without_access_says_what_it_misses() {
    let dir = temp_dir();
    let missing = dir.path().join("none");
    let at = |kubeconfig: &Path| run(meshfed().args(["status", "--kubeconfig"]).arg(kubeconfig));
    assert!(complaint(&at(&missing)).contains("none"));
    let broken = dir.path().join("broken");
    for text in [
        "users:\n- name: a\n  user:\n    token: SECRET\n   bad: [\n",
        "users:\n- name: a\n  user: SECRET\n",
        "clusters: [{name: a, cluster: SECRET}]\n",
    ] {
        std::fs::write(&broken, text).unwrap();
        let line = complaint(&at(&broken));
        assert!(line.contains("broken") && line.contains("line "), "{line}");
        assert!(!line.contains("SECRET"), "{line}");
    }
    // Nobody listens there.
    let net = LoopbackNet::lock();
    let dead = dir.path().join("dead");
    let config = format!(
        "{{apiVersion: v1, kind: Config, current-context: a, clusters: [{{name: a, cluster: {{server: \
         'https://{}:6443'}}}}], users: [{{name: a, user: {{}}}}], contexts: [{{name: a, context: \
         {{cluster: a, user: a}}}}]}}",
        net.address(1)
    );
    std::fs::write(&dead, config).unwrap();
    let line = complaint(&at(&dead));
    assert!(line.contains("cannot be reached"), "{line}");
    assert_eq!(line.matches("client error").count(), 1, "{line}");
    // A credential plugin that fails says what is nobody else's business.
    let exec = "user: {exec: {apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, \
                command: sh, args: ['-c', 'echo SECRET >&2; exit 3']}}";
    let config = std::fs::read_to_string(&dead).unwrap();
    std::fs::write(&dead, config.replace("user: {}", exec)).unwrap();
    let line = complaint(&at(&dead));
    assert!(
        line.contains("credential plugin") && line.contains('3'),
        "{line}"
    );
    assert!(!line.contains("SECRET"), "{line}");
    let output = run(meshfed().args(["status"]).env("KUBECONFIG", &missing));
    assert!(complaint(&output).contains("kubeconfig"));
}
