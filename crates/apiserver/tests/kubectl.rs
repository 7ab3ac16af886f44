//! A stock kubectl against the server, without a special flag.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::Duration,
};

use common::https::HttpsServer;
use tokio::io::{AsyncBufReadExt as _, BufReader};

struct Kubectl {
    program: PathBuf,
    server: HttpsServer,
}

const WIDGET: &str = "\
apiVersion: example.com/v1
kind: Widget
metadata:
  name: w1
  labels: {app: x}
spec:
  size: 3
";

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {app: web}
  ports:
  - name: http
    port: 80
    targetPort: 8080
";

impl Kubectl {
    /// `None` where kubectl cannot be had; the test has said so.
    async fn start() -> Option<Self> {
        let fetched = tokio::task::spawn_blocking(meshfed_testkit::tools::kubectl_or_skip);
        let program = fetched.await.unwrap()?;
        let server = HttpsServer::start(|_| {}).await;
        Some(Self { program, server })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env_clear()
            .env("HOME", self.server.dir.path())
            .env("PATH", "/usr/bin:/bin")
            .env("KUBECONFIG", &self.server.kubeconfig);
        command
    }

    async fn output(&self, mut command: Command, input: &str) -> Output {
        use std::io::Write as _;
        let input = input.to_owned();
        let run = tokio::task::spawn_blocking(move || {
            let mut child = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(input.as_bytes())
                .unwrap();
            child.wait_with_output().unwrap()
        });
        tokio::time::timeout(Duration::from_secs(60), run)
            .await
            .unwrap()
            .unwrap()
    }

    /// What a command that succeeds prints.
    async fn ok(&self, line: &str) -> String {
        self.ok_with(line, "").await
    }

    async fn ok_with(&self, line: &str, input: &str) -> String {
        let args: Vec<&str> = line.split(' ').collect();
        let output = self.output(self.command(&args), input).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {line}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command that fails says.
    async fn fails(&self, line: &str, input: &str) -> String {
        let args: Vec<&str> = line.split(' ').collect();
        let output = self.output(self.command(&args), input).await;
        assert!(!output.status.success(), "kubectl {line} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Edits with a script of sed in the place of a person.
    async fn edit(&self, script: &str, line: &str) -> String {
        let args: Vec<&str> = line.split(' ').collect();
        let mut command = self.command(&args);
        command.env("KUBE_EDITOR", format!("sed -i {script}"));
        let output = self.output(command, "").await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {line}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.server.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// The words of a table's lines.
fn table(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .map(|line| line.split_whitespace().collect())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_applied_read_in_every_form_and_deleted() {
    let Some(k) = Kubectl::start().await else {
        return;
    };
    let both = format!("{WIDGET}---\n{SERVICE}");
    let file = k.file("both.yaml", &both);
    assert_eq!(
        k.ok(&format!("apply -f {file}")).await,
        "widget.example.com/w1 created\nservice/web created\n"
    );
    assert_eq!(
        k.ok(&format!("apply -f {file}")).await,
        "widget.example.com/w1 unchanged\nservice/web unchanged\n"
    );
    k.file(
        "both.yaml",
        &both.replace("size: 3", "size: 4").replace("8080", "8081"),
    );
    assert_eq!(
        k.ok(&format!("apply -f {file}")).await,
        "widget.example.com/w1 configured\nservice/web configured\n"
    );
    let list = k.ok("get svc,widgets -o yaml").await;
    assert_eq!(
        k.ok_with("apply -f -", &list).await,
        "service/web configured\nwidget.example.com/w1 configured\n",
        "a List, with the whole objects as what is applied now"
    );

    let widgets = k.ok("get widgets").await;
    let widgets = table(&widgets);
    assert_eq!(widgets[0], ["NAME", "READY", "SIZE", "AGE"]);
    assert_eq!(widgets[1][..2], ["w1", "4"]);
    let wide = k.ok("get wd -o wide").await;
    assert_eq!(table(&wide)[0], ["NAME", "READY", "SIZE", "COLOUR", "AGE"]);
    let services = k.ok("get svc -o wide").await;
    let services = table(&services);
    assert_eq!(
        services[0],
        [
            "NAME",
            "TYPE",
            "CLUSTER-IP",
            "EXTERNAL-IP",
            "PORT(S)",
            "AGE",
            "SELECTOR"
        ]
    );
    assert_eq!(
        services[1][..5],
        ["web", "ClusterIP", "<none>", "<none>", "80/TCP"]
    );
    let yaml = k.ok("get svc web -o yaml").await;
    assert!(
        yaml.starts_with("apiVersion: v1\nkind: Service\n") && yaml.contains("targetPort: 8081")
    );
    let json: serde_json::Value = serde_json::from_str(&k.ok("get wd w1 -o json").await).unwrap();
    assert_eq!(
        (&json["spec"]["size"], &json["spec"]["colour"]),
        (&4.into(), &"red".into())
    );
    let old: serde_json::Value =
        serde_json::from_str(&k.ok("get widgets.v1beta1.example.com w1 -o json").await).unwrap();
    assert_eq!(old["apiVersion"], "example.com/v1beta1");
    assert_eq!(
        k.ok("get svc,wd -o name").await,
        "service/web\nwidget.example.com/w1\n"
    );
    assert_eq!(
        k.ok("get wd -l app=x -o name").await,
        "widget.example.com/w1\n"
    );
    assert_eq!(k.ok("get wd -l app!=x -o name").await, "");
    assert_eq!(
        k.ok("get wd -A --field-selector metadata.name=w1,metadata.namespace=default -o name")
            .await,
        "widget.example.com/w1\n"
    );
    assert_eq!(
        k.ok("get svc web -o jsonpath={.spec.ports[0].protocol}")
            .await,
        "TCP"
    );
    let all = k.ok("get all").await;
    assert!(
        all.contains("service/web") && all.contains("widget.example.com/w1"),
        "{all}"
    );
    assert!(
        k.fails("get wd gone", "")
            .await
            .contains(r#"widgets.example.com "gone" not found"#)
    );
    assert!(
        k.fails("get nothing", "")
            .await
            .contains("doesn't have a resource type")
    );

    assert_eq!(
        k.ok(&format!("delete -f {file}")).await,
        "widget.example.com \"w1\" deleted from default namespace\nservice \"web\" deleted from default namespace\n"
    );
    assert_eq!(k.ok("get svc,wd -o name").await, "");
    k.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_created_by_kind_and_changed_in_every_way() {
    let Some(k) = Kubectl::start().await else {
        return;
    };
    assert_eq!(
        k.ok("create namespace team").await,
        "namespace/team created\n"
    );
    assert_eq!(
        k.ok("create configmap c --from-literal=a=1").await,
        "configmap/c created\n"
    );
    assert_eq!(
        k.ok("create serviceaccount bot -n team").await,
        "serviceaccount/bot created\n"
    );
    assert_eq!(
        k.ok("create secret generic s --from-literal=x=y").await,
        "secret/s created\n"
    );
    assert_eq!(
        k.ok("get secret s -o jsonpath={.type},{.data.x}").await,
        "Opaque,eQ=="
    );
    assert_eq!(
        k.ok("create service nodeport n --tcp=80:http --node-port=31000")
            .await,
        "service/n created\n"
    );
    let token = k
        .ok("create token bot -n team --duration=20m --audience=istio-ca")
        .await;
    assert_eq!(token.trim().split('.').count(), 3);
    let short = k.fails("create token bot -n team --duration=1m", "").await;
    assert!(short.contains("spec.expirationSeconds"), "{short}");
    assert!(
        k.fails("create configmap c", "")
            .await
            .contains("already exists")
    );

    assert_eq!(k.ok("label cm c tier=one").await, "configmap/c labeled\n");
    assert_eq!(
        k.ok("annotate cm c note=hello").await,
        "configmap/c annotated\n"
    );
    assert_eq!(
        k.ok("get cm c --show-labels --no-headers")
            .await
            .split_whitespace()
            .last(),
        Some("tier=one")
    );
    k.ok("label cm c tier-").await;
    k.ok(r#"patch cm c --type=merge -p {"data":{"b":"2"}}"#)
        .await;
    k.ok(r#"patch cm c --type=json -p [{"op":"add","path":"/data/c","value":"3"}]"#)
        .await;
    assert_eq!(
        k.ok("get cm c -o jsonpath={.data}").await,
        r#"{"a":"1","b":"2","c":"3"}"#
    );
    k.ok(r#"patch svc n -p {"spec":{"ports":[{"port":80,"name":"web"}]}}"#)
        .await;
    assert_eq!(
        k.ok("get svc n -o jsonpath={.spec.ports[*].name},{.spec.ports[*].nodePort}")
            .await,
        "web,31000"
    );
    k.ok_with("apply -f -", WIDGET).await;
    let strategic = k.fails(r#"patch wd w1 -p {"spec":{"size":5}}"#, "").await;
    assert!(
        strategic.contains("is not supported by example.com/v1, Kind=Widget"),
        "{strategic}"
    );
    k.ok(r#"patch wd w1 --type=merge --subresource=status -p {"status":{"ready":"yes"}}"#)
        .await;
    assert_eq!(
        k.ok("get wd w1 -o jsonpath={.status.ready},{.metadata.generation}")
            .await,
        "yes,1"
    );

    let replaced = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: nine}\n";
    assert_eq!(
        k.ok_with("replace -f -", replaced).await,
        "configmap/c replaced\n"
    );
    assert_eq!(
        k.edit("s/nine/ten/", "edit cm c").await,
        "configmap/c edited\n"
    );
    assert_eq!(k.ok("get cm c -o jsonpath={.data}").await, r#"{"a":"ten"}"#);
    let file = k.file("both.yaml", &format!("{WIDGET}---\n{SERVICE}"));
    k.ok(&format!("apply -f {file}")).await;
    let edited = k.edit("s/8080/8082/", &format!("edit -f {file}")).await;
    assert_eq!(
        edited,
        "widget.example.com/w1 skipped\nservice/web edited\n"
    );
    assert_eq!(
        k.ok("get svc web -o jsonpath={.spec.ports[0].targetPort}")
            .await,
        "8082"
    );
    assert_eq!(
        k.edit("s/red/green/", "edit widget w1").await,
        "widget.example.com/w1 edited\n"
    );

    assert_eq!(
        k.ok("delete namespace team").await,
        "namespace \"team\" deleted\n"
    );
    assert!(k.ok("get sa -n team -o name").await.is_empty());
    assert_eq!(
        k.ok("delete cm --all --cascade=foreground").await,
        "configmap \"c\" deleted from default namespace\n"
    );
    k.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_with_the_field_and_the_reason() {
    let Some(k) = Kubectl::start().await else {
        return;
    };
    let typo = WIDGET.replace("size: 3", "size: 3\n  colr: red");
    let strict = k.fails("apply -f -", &typo).await;
    assert!(
        strict.contains(r#"strict decoding error: unknown field "spec.colr""#),
        "{strict}"
    );
    let output = k
        .output(k.command(&["apply", "--validate=warn", "-f", "-"]), &typo)
        .await;
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "Warning: unknown field \"spec.colr\"\n"
    );
    k.ok("delete wd w1").await;
    k.ok_with("apply --validate=false -f -", &typo).await;
    let large = k
        .fails("apply -f -", &WIDGET.replace("size: 3", "size: 30"))
        .await;
    assert!(
        large.contains(
            "spec.size: Invalid value: 30: spec.size in body should be less than or equal to 10"
        ),
        "{large}"
    );
    let service = SERVICE.replace("port: 80\n", "port: 80\n  - port: 81\n");
    let unnamed = k.fails("create -f -", &service).await;
    assert!(
        unnamed.contains("spec.ports[1].name: Required value"),
        "{unnamed}"
    );

    let server_side = k.fails("apply --server-side -f -", WIDGET).await;
    assert!(
        server_side
            .contains("server-side apply is not supported by this server; use client-side apply"),
        "{server_side}"
    );
    let dry = k
        .ok_with("apply --dry-run=server -f -", &WIDGET.replace("w1", "w2"))
        .await;
    assert_eq!(dry, "widget.example.com/w2 created (server dry run)\n");
    assert!(k.fails("get wd w2", "").await.contains("not found"));
    // 1: there is a difference.
    let diff = k
        .output(
            k.command(&["diff", "-f", "-"]),
            &WIDGET.replace("size: 3", "size: 7"),
        )
        .await;
    assert_eq!(
        diff.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&diff.stderr)
    );
    assert!(String::from_utf8_lossy(&diff.stdout).contains("+  size: 7"));
    let gone = k.fails("create configmap c -n nowhere", "").await;
    assert!(gone.contains(r#"namespaces "nowhere" not found"#), "{gone}");
    k.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_explains_itself() {
    let Some(k) = Kubectl::start().await else {
        return;
    };
    let resources = k.ok("api-resources --no-headers").await;
    let resources = table(&resources);
    for wanted in [
        &["configmaps", "cm", "v1", "true", "ConfigMap"][..],
        &["namespaces", "ns", "v1", "false", "Namespace"],
        &["secrets", "v1", "true", "Secret"],
        &["leases", "coordination.k8s.io/v1", "true", "Lease"],
        &[
            "endpointslices",
            "discovery.k8s.io/v1",
            "true",
            "EndpointSlice",
        ],
        &["widgets", "wd", "example.com/v1", "true", "Widget"],
    ] {
        assert!(
            resources.iter().any(|row| row == wanted),
            "{wanted:?} in {resources:?}"
        );
    }
    let versions = k.ok("api-versions").await;
    assert!(
        versions
            .lines()
            .any(|version| version == "example.com/v1beta1"),
        "{versions}"
    );
    assert!(k.ok("version").await.contains("Server Version: v1.33"));
    let widget = k.ok("explain widget.spec").await;
    assert!(
        widget.contains("What the widget is to be.")
            && widget.contains("size\t<integer> -required-"),
        "{widget}"
    );
    let ports = k.ok("explain service.spec.ports").await;
    assert!(
        ports.contains("targetPort\t<IntOrString>") && ports.contains("nodePort\t<integer>"),
        "{ports}"
    );
    assert!(
        k.ok("explain pod.spec.containers --recursive")
            .await
            .contains("imagePullPolicy")
    );
    let me = k.ok("auth whoami").await;
    assert!(
        me.contains("admin") && me.contains("system:masters"),
        "{me}"
    );
    assert_eq!(k.ok("auth can-i delete secrets").await, "yes\n");
    assert!(k.ok("auth can-i --list").await.contains("*.*"));
    assert_eq!(k.ok("get --raw /readyz").await, "ok");
    assert!(k.ok("cluster-info").await.contains("is running at"));
    assert!(
        k.ok("get crd -o name")
            .await
            .contains("widgets.example.com")
    );

    // The same questions of a service account.
    k.ok("create serviceaccount bot").await;
    let token = k.ok("create token bot").await;
    let config = std::fs::read_to_string(&k.server.kubeconfig).unwrap();
    let config: String = config
        .lines()
        .filter(|line| !line.contains("client-key-data"))
        .map(|line| match line.contains("client-certificate-data") {
            true => format!("    token: {}\n", token.trim()),
            false => format!("{line}\n"),
        })
        .collect();
    let config = k.file("bot", &config);
    let me = k.ok(&format!("--kubeconfig {config} auth whoami")).await;
    assert!(me.contains("system:serviceaccount:default:bot"), "{me}");
    let may = k
        .output(
            k.command(&["--kubeconfig", &config, "auth", "can-i", "get", "secrets"]),
            "",
        )
        .await;
    assert_eq!(String::from_utf8_lossy(&may.stdout), "no\n");
    let refused = k
        .fails(&format!("--kubeconfig {config} get secrets"), "")
        .await;
    assert!(
        refused.contains("cannot list resource \"secrets\""),
        "{refused}"
    );
    k.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_watched_and_waited_for() {
    let Some(k) = Kubectl::start().await else {
        return;
    };
    k.ok_with("apply -f -", WIDGET).await;
    let args = ["get", "wd", "-w", "--output-watch-events"];
    let mut command = tokio::process::Command::from(k.command(&args));
    let mut watch = command
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line());
        let line = line.await.unwrap().unwrap().unwrap();
        line.split_whitespace()
            .take(3)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(next().await, ["EVENT", "NAME", "READY"]);
    assert_eq!(next().await, ["ADDED", "w1", "3"]);

    let waits = async |line: &'static str| {
        let args: Vec<&str> = line.split(' ').collect();
        k.output(k.command(&args), "").await
    };
    let condition = r#"patch wd w1 --type=merge --subresource=status -p {"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#;
    let (waited, _) = tokio::join!(
        waits("wait wd/w1 --for=condition=Ready --timeout=20s"),
        k.ok(condition)
    );
    assert_eq!(
        String::from_utf8_lossy(&waited.stdout),
        "widget.example.com/w1 condition met\n"
    );
    assert_eq!(next().await, ["MODIFIED", "w1", "True"]);
    let (waited, _) = tokio::join!(
        waits("wait wd/w1 --for=jsonpath={.spec.size}=5 --timeout=20s"),
        k.ok(r#"patch wd w1 --type=merge -p {"spec":{"size":5}}"#),
    );
    assert!(waited.status.success());
    assert_eq!(next().await, ["MODIFIED", "w1", "True"]);
    let (waited, _) = tokio::join!(
        waits("wait wd/w1 --for=delete --timeout=20s"),
        k.ok("delete wd w1"),
    );
    assert!(waited.status.success());
    assert_eq!(next().await, ["DELETED", "w1", "True"]);
    watch.kill().await.unwrap();
    let never = k
        .fails("wait wd/w1 --for=condition=Ready --timeout=1s", "")
        .await;
    assert!(never.contains("not found"), "{never}");
    k.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptions_and_events_tell_what_happened() {
    let Some(k) = Kubectl::start().await else {
        return;
    };
    k.ok_with("apply -f -", &format!("{WIDGET}---\n{SERVICE}"))
        .await;
    let uid = k.ok("get wd w1 -o jsonpath={.metadata.uid}").await;
    let event = format!(
        "apiVersion: v1\nkind: Event\nmetadata: {{name: e1}}\nreason: Because\nmessage: it happened\ntype: Warning\n\
         involvedObject: {{apiVersion: example.com/v1, kind: Widget, name: w1, namespace: default, uid: {uid}}}\n\
         firstTimestamp: '2026-01-01T00:00:00Z'\nlastTimestamp: '2026-01-01T00:00:00Z'\ncount: 3\nsource: {{component: me}}\n"
    );
    k.ok_with("create -f -", &event).await;
    let events = k
        .ok("get events --field-selector involvedObject.name=w1")
        .await;
    let events = table(&events);
    assert_eq!(
        events[0],
        ["LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
    );
    assert_eq!(
        events[1][1..],
        ["Warning", "Because", "widget/w1", "it", "happened"]
    );
    assert!(
        k.ok("get events --field-selector involvedObject.name=other -o name")
            .await
            .is_empty()
    );
    assert!(k.ok("events --for widget/w1").await.contains("it happened"));
    assert!(
        k.ok("get events.v1.events.k8s.io e1 -o yaml")
            .await
            .contains("note: it happened")
    );

    let widget = k.ok("describe widget w1").await;
    assert!(
        widget.contains("Kind:         Widget") && widget.contains("it happened"),
        "{widget}"
    );
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
        metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\n\
        ports: [{name: http, port: 8080}]\nendpoints: [{addresses: [127.0.0.9]}]\n";
    k.ok_with("apply -f -", slice).await;
    let slices = k.ok("get endpointslices").await;
    assert_eq!(
        table(&slices)[1][..4],
        ["web-1", "IPv4", "8080", "127.0.0.9"]
    );
    let service = k.ok("describe service web").await;
    assert!(
        service.contains("127.0.0.9:8080") && service.contains("app=web"),
        "{service}"
    );
    k.ok("create configmap c --from-literal=key=value").await;
    assert!(k.ok("describe configmap c").await.contains("value"));
    assert!(
        k.ok("describe namespace default")
            .await
            .contains("Status:       Active")
    );
    k.ok("create serviceaccount bot").await;
    assert!(
        k.ok("describe serviceaccount bot")
            .await
            .contains("Name:                bot")
    );
    k.server.stop().await;
}
