//! What a ServiceMeshControlPlane, a ServiceMeshPeer and the sets do, as an administrator sees it.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use meshfed_testkit::{LoopbackNet, TempDir, temp_dir, tools};
use serde_json::Value;

use crate::mesh::{Up, kubectl, start};

const NAMESPACE: &str = "red-mesh-system";

/// A mesh with kubectl.
struct Mesh {
    tool: PathBuf,
    net: LoopbackNet,
    dir: TempDir,
    _up: Up,
}

impl Mesh {
    fn start() -> Option<Self> {
        let tool = tools::kubectl_or_skip()?;
        let net = LoopbackNet::lock();
        let dir = temp_dir();
        let up = start(&net, dir.path());
        Some(Self {
            tool,
            net,
            dir,
            _up: up,
        })
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        let mut all = vec!["-n", NAMESPACE];
        all.extend(arguments);
        kubectl(&self.tool, self.dir.path(), &all)
    }

    fn apply(&self, manifest: &str) {
        let file = self.dir.path().join("manifest.yaml");
        std::fs::write(&file, manifest).unwrap();
        let file = file.to_str().unwrap();
        kubectl(&self.tool, self.dir.path(), &["apply", "-f", file]);
    }

    fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", what, "-o", "json"])).unwrap()
    }

    /// Asks until the answer is as it should be.
    fn until<T>(&self, what: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        for _ in 0..600 {
            if let Some(found) = look(&self.get(what)) {
                return found;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{what} is not as it should be: {:#}", self.get(what));
    }

    fn condition(&self, what: &str, reason: &str) -> String {
        self.until(what, |object| {
            let all = object["status"]["conditions"].as_array()?;
            let found = all
                .iter()
                .find(|c| c["type"] == "Ready" && c["status"] == "False")?;
            (found["reason"] == reason).then(|| found["message"].to_string())
        })
    }
}

fn items(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

const GATEWAYS: &str = r#"
apiVersion: maistra.io/v2
kind: ServiceMeshControlPlane
metadata: {name: red-mesh, namespace: red-mesh-system}
spec:
  version: v2.1
  gateways:
    additionalEgress:
      egress-green-mesh: {}
    additionalIngress:
      ingress-green-mesh:
        enabled: ENABLED
        service:
          type: NodePort
          metadata:
            labels: {federation.maistra.io/ingress-for: ingress-green-mesh}
            annotations: {service.beta.kubernetes.io/aws-load-balancer-type: nlb}
          ports:
          - {port: 15443, nodePort: 30510, name: tls}
          - {port: 8188, nodePort: 32359, name: https-discovery}
  security: {trust: {domain: red-mesh.local}}
"#;

#[test]
fn gateways_come_and_go_with_their_control_plane() {
    let Some(mesh) = Mesh::start() else { return };
    mesh.apply(&GATEWAYS.replace("ENABLED", "true"));
    mesh.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "smcp/red-mesh",
        "--timeout=60s",
    ]);
    let table = mesh.kubectl(&["get", "smcp"]);
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        row[..5],
        [
            "red-mesh",
            "4/4",
            "ComponentsReady",
            "[\"default\"]",
            "2.1.0"
        ]
    );
    let header: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        header,
        ["NAME", "READY", "STATUS", "PROFILES", "VERSION", "AGE"]
    );

    let service = mesh.get("service/ingress-green-mesh");
    assert_eq!(service["spec"]["type"], "NodePort");
    let metadata = &service["metadata"];
    assert_eq!(
        metadata["labels"]["federation.maistra.io/ingress-for"],
        "ingress-green-mesh"
    );
    assert_eq!(
        metadata["annotations"]["service.beta.kubernetes.io/aws-load-balancer-type"],
        "nlb"
    );
    mesh.get("serviceaccount/ingress-green-mesh-service-account");
    let node_ports = [30510, 32359].map(|port| (mesh.net.address(2), port));
    for at in node_ports {
        TcpStream::connect(at).unwrap();
    }
    assert_eq!(
        mesh.get("service/egress-green-mesh")["spec"]["type"],
        "ClusterIP"
    );

    // It keeps the node ports that nobody asks for any more, and gets an address.
    let balanced = r#"{"spec":{"gateways":{"additionalIngress":{"ingress-green-mesh":{"service":{
        "type":"LoadBalancer",
        "ports":[{"port":15443,"name":"tls"},{"port":8188,"name":"https-discovery"}]}}}}}}"#;
    mesh.kubectl(&["patch", "smcp/red-mesh", "--type=merge", "-p", balanced]);
    mesh.until("service/ingress-green-mesh", |service| {
        let given = &service["status"]["loadBalancer"]["ingress"][0]["ip"];
        (service["spec"]["type"] == "LoadBalancer" && given.is_string()).then_some(())
    });

    mesh.apply(&GATEWAYS.replace("ENABLED", "false"));
    mesh.until("services", |list| {
        (items(list) == ["egress-green-mesh"]).then_some(())
    });
    mesh.until("serviceaccounts", |list| {
        (!items(list).contains(&"ingress-green-mesh-service-account".to_owned())).then_some(())
    });
    mesh.until("smcp/red-mesh", |smcp| {
        (smcp["status"]["annotations"]["readyComponentCount"] == "3/3").then_some(())
    });
    // The ports are free again.
    for at in node_ports {
        mesh.until("smcp/red-mesh", |_| TcpListener::bind(at).ok());
    }
}

#[test]
fn fields_that_are_not_acted_on_are_kept_and_named() {
    let Some(mesh) = Mesh::start() else { return };
    let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
    let example = Path::new(tree).join("documents/control-plane/smcp.yaml");
    mesh.apply(&std::fs::read_to_string(example).unwrap());
    let named = mesh.until("smcp/red-mesh", |smcp| {
        let all = smcp["status"]["conditions"].as_array()?;
        let found = all
            .iter()
            .find(|c| c["type"] == "AllFieldsActedOn" && c["status"] == "False")?;
        Some(found["message"].to_string())
    });
    assert!(named.contains("spec.runtime"), "{named}");
    let kept = &mesh.get("smcp/red-mesh")["spec"]["runtime"]["defaults"]["container"];
    assert_eq!(kept["imagePullPolicy"], "Always");
    let cluster = "{\"spec\": {\"cluster\": {\"name\": \"here\", \"network\": \"red-network\"}}}";
    mesh.kubectl(&["patch", "smcp/red-mesh", "--type=merge", "-p", cluster]);
    mesh.until("smcp/red-mesh", |smcp| {
        let applied = &smcp["status"]["appliedSpec"]["cluster"];
        (applied["name"] == "here" && applied["network"] == "red-network").then_some(())
    });
}

fn peer(namespace: &str, kind: &str) -> String {
    format!(
        r#"
apiVersion: federation.maistra.io/v1
kind: ServiceMeshPeer
metadata: {{name: green-mesh, namespace: {namespace}}}
spec:
  remote: {{addresses: [127.0.0.1]}}
  gateways: {{ingress: {{name: ingress-green-mesh}}, egress: {{name: egress-green-mesh}}}}
  security:
    trustDomain: green-mesh.local
    clientID: green-mesh.local/ns/green-mesh-system/sa/egress-red-mesh-service-account
    certificateChain: {{kind: {kind}, name: green-mesh-ca-root-cert}}
"#
    )
}

#[test]
fn what_cannot_be_connected_says_why_in_a_condition() {
    let Some(mesh) = Mesh::start() else { return };
    mesh.apply(&GATEWAYS.replace("ENABLED", "true"));
    mesh.apply(
        "{apiVersion: federation.maistra.io/v1, kind: ExportedServiceSet, metadata: {name: nobody, namespace: red-mesh-system}, spec: {exportRules: []}}",
    );
    mesh.apply(
        "{apiVersion: federation.maistra.io/v1, kind: ImportedServiceSet, metadata: {name: nobody, namespace: red-mesh-system}, spec: {importRules: []}}",
    );
    for set in ["exportedserviceset/nobody", "importedserviceset/nobody"] {
        mesh.condition(set, "NoPeer");
    }
    mesh.apply(&peer(NAMESPACE, "Secret"));
    mesh.condition("servicemeshpeer/green-mesh", "UnsupportedCertificateChain");
    mesh.apply(&peer(NAMESPACE, "ConfigMap"));
    let message = mesh.condition("servicemeshpeer/green-mesh", "RootCertificateMissing");
    assert!(message.contains("green-mesh-ca-root-cert"), "{message}");
    mesh.apply(&peer("default", "ConfigMap"));
    for _ in 0..600 {
        let found = kubectl(
            &mesh.tool,
            mesh.dir.path(),
            &[
                "-n",
                "default",
                "get",
                "servicemeshpeer/green-mesh",
                "-o",
                "json",
            ],
        );
        let found: Value = serde_json::from_str(&found).unwrap();
        if found["status"]["conditions"][0]["reason"] == "NotInSystemNamespace" {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("a peer outside the system namespace has no condition");
}
