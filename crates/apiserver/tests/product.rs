//! The product's own definitions in the server.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use meshfed_apiserver::{ApiServer, Options};
use serde_json::{Value, json};
use tower_service::Service as _;

async fn ask(server: &ApiServer, method: &str, path: &str, accept: &str, body: Value) -> Value {
    say(server, method, path, accept, body).await.1
}

/// The warnings, and what was answered.
async fn say(
    server: &ApiServer,
    method: &str,
    path: &str,
    accept: &str,
    body: Value,
) -> (Vec<String>, Value) {
    let body = if body.is_null() {
        Bytes::new()
    } else {
        body.to_string().into()
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::ACCEPT, accept)
        .body(Full::new(body))
        .unwrap();
    let response = server.service().call(request).await.unwrap();
    let warnings = response.headers().get_all(header::WARNING).iter();
    let warnings = warnings.map(|w| w.to_str().unwrap().to_owned()).collect();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (warnings, serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test]
async fn control_planes_are_listed_as_the_documents_show_them() {
    let dir = tempfile::tempdir().unwrap();
    let server = ApiServer::open(Options::new(dir.path(), meshfed_api::crds())).unwrap();
    let path = "/apis/maistra.io/v2/namespaces/default/servicemeshcontrolplanes";
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let list = ask(&server, "GET", path, table, Value::Null).await;
    let columns = list["columnDefinitions"].as_array().unwrap();
    let shown = columns.iter().filter(|column| column["priority"] == 0);
    let shown: Vec<String> = shown
        .map(|column| column["name"].as_str().unwrap().to_uppercase())
        .collect();
    assert_eq!(
        shown,
        ["NAME", "READY", "STATUS", "PROFILES", "VERSION", "AGE"]
    );
}

#[tokio::test]
async fn one_storage_holds_all_versions_of_a_kind() {
    let dir = tempfile::tempdir().unwrap();
    let server = ApiServer::open(Options::new(dir.path(), meshfed_api::crds())).unwrap();
    let path = |version: &str| {
        format!("/apis/networking.istio.io/{version}/namespaces/default/virtualservices")
    };
    let object = json!({"metadata": {"name": "v"}, "spec": {"hosts": ["a.b"]}});
    let (warnings, made) = say(&server, "POST", &path("v1alpha3"), "", object).await;
    assert_eq!(
        warnings,
        [
            r#"299 - "meshfed keeps this VirtualService and checks its form, and does not act on it yet""#
        ]
    );
    assert_eq!(made["apiVersion"], "networking.istio.io/v1alpha3", "{made}");
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let seen = ask(
            &server,
            "GET",
            &format!("{}/v", path(version)),
            "",
            Value::Null,
        )
        .await;
        assert_eq!(seen["apiVersion"], format!("networking.istio.io/{version}"));
        assert_eq!(seen["spec"], made["spec"]);
    }
}

/// The fields that are blamed for an object that is refused; none for one that is taken.
async fn blamed(server: &ApiServer, resource: &str, spec: Value) -> Vec<String> {
    let name = if resource.starts_with("servicemeshmember") {
        "default"
    } else {
        "p"
    };
    blamed_of(server, resource, name, spec).await
}

async fn blamed_of(server: &ApiServer, resource: &str, name: &str, spec: Value) -> Vec<String> {
    let group = match resource {
        "servicemeshpeers" | "exportedservicesets" | "importedservicesets" => {
            "federation.maistra.io/v1"
        }
        "servicemeshcontrolplanes" => "maistra.io/v2",
        _ => "maistra.io/v1",
    };
    let path = format!("/apis/{group}/namespaces/default/{resource}?dryRun=All");
    let object = json!({"metadata": {"name": name}, "spec": spec});
    let answer = ask(server, "POST", &path, "", object).await;
    if answer["kind"] != "Status" {
        return Vec::new();
    }
    assert_eq!(answer["code"], 422, "{answer}");
    let causes = answer["details"]["causes"].as_array().unwrap();
    causes
        .iter()
        .map(|cause| cause["field"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn what_the_documents_do_not_allow_is_refused_with_its_field() {
    let dir = tempfile::tempdir().unwrap();
    let server = ApiServer::open(Options::new(dir.path(), meshfed_api::crds())).unwrap();
    let export = |rule: Value| json!({"exportRules": [rule]});
    let import = |rule: Value| json!({"importRules": [rule]});
    let by_name = |selector: Value| json!({"type": "NameSelector", "nameSelector": selector});
    let by_label = |selector: Value| json!({"type": "LabelSelector", "labelSelector": selector});
    let joins = |selector: Value| json!({"type": "NameSelector", "importAsLocal": true, "nameSelector": selector});
    let peer = |edit: fn(&mut Value)| {
        let mut spec = json!({
            "remote": {"addresses": ["127.0.0.1"]},
            "gateways": {"ingress": {"name": "i"}, "egress": {"name": "e"}},
            "security": {"trustDomain": "green-mesh.local",
                "clientID": "green-mesh.local/ns/green-mesh-system/sa/egress-service-account",
                "certificateChain": {"kind": "ConfigMap", "name": "green-mesh-ca-root-cert"}},
        });
        edit(&mut spec);
        spec
    };
    let gateway = |side: &str, gateway: Value| json!({"gateways": {side: {"g": gateway}}});
    let exports = "exportedservicesets";
    let imports = "importedservicesets";
    let peers = "servicemeshpeers";
    let planes = "servicemeshcontrolplanes";
    let good = [
        (exports, export(by_name(json!({})))),
        (
            exports,
            export(by_name(
                json!({"namespace": "*", "name": "", "alias": {"name": "*"}}),
            )),
        ),
        (exports, export(by_label(json!({"selector": {}})))),
        (
            imports,
            import(joins(
                json!({"name": "*", "alias": {"namespace": "bookinfo"}}),
            )),
        ),
        (
            imports,
            json!({"domainSuffix": "imported.local", "locality": {"region": "r", "zone": "z", "subzone": "s"}}),
        ),
        (peers, peer(|_| {})),
        (peers, peer(|spec| spec["security"] = json!({}))),
        (
            peers,
            peer(|spec| spec["remote"]["discoveryPort"] = json!(32359)),
        ),
        (
            peers,
            peer(|spec| {
                spec["remote"]["addresses"] =
                    json!(["127.0.0.1", "::ffff:1.2.3.4", "::1", "a1.2b", "4com"]);
            }),
        ),
        (
            exports,
            export(by_label(json!({"selector": {
                "matchLabels": {"app.kubernetes.io/part-of": "", "K_1": "a.B-c"},
                "matchExpressions": [{"key": "x.io/k", "operator": "In", "values": ["", "v1.2"]}],
            }}))),
        ),
    ];
    for (resource, spec) in good {
        assert_eq!(
            blamed(&server, resource, spec.clone()).await,
            Vec::<String>::new(),
            "{spec}"
        );
    }
    let rule = |rest: &str| format!("spec.exportRules[0]{rest}");
    let import_rule = |rest: &str| format!("spec.importRules[0]{rest}");
    let cases: Vec<(&str, Value, String)> = vec![
        (exports, export(json!({"nameSelector": {}})), rule(".type")),
        (
            exports,
            export(json!({"type": "Everything"})),
            rule(".type"),
        ),
        (
            exports,
            export(json!({"type": "NameSelector"})),
            rule(".nameSelector"),
        ),
        (
            exports,
            export(json!({"type": "LabelSelector"})),
            rule(".labelSelector"),
        ),
        (
            exports,
            export(
                json!({"type": "LabelSelector", "nameSelector": {}, "labelSelector": {"selector": {}}}),
            ),
            rule(".nameSelector"),
        ),
        (
            exports,
            export(by_name(json!({"name": "ratings*"}))),
            rule(".nameSelector.name"),
        ),
        (
            exports,
            export(by_name(json!({"alias": {"namespace": "A"}}))),
            rule(".nameSelector.alias.namespace"),
        ),
        (
            exports,
            export(by_label(json!({}))),
            rule(".labelSelector.selector"),
        ),
        (
            exports,
            export(by_label(
                json!({"selector": {"matchLabels": {"export": true}}}),
            )),
            rule(".labelSelector.selector.matchLabels.export"),
        ),
        (
            exports,
            export(by_label(
                json!({"selector": {"matchExpressions": [{"key": "k", "operator": "Like"}]}}),
            )),
            rule(".labelSelector.selector.matchExpressions[0].operator"),
        ),
        (
            exports,
            export(by_label(
                json!({"selector": {"matchExpressions": [{"key": "k"}]}}),
            )),
            rule(".labelSelector.selector.matchExpressions[0].operator"),
        ),
        (
            exports,
            export(by_label(
                json!({"selector": {}, "aliases": [{"alias": {"name": "a.b"}}]}),
            )),
            rule(".labelSelector.aliases[0].alias.name"),
        ),
        (
            exports,
            export(by_label(json!({"selector": {"matchLabels": {"k": "x z"}}}))),
            rule(".labelSelector.selector.matchLabels.k"),
        ),
        (
            exports,
            export(by_label(
                json!({"selector": {"matchExpressions": [{"key": "a b", "operator": "Exists"}]}}),
            )),
            rule(".labelSelector.selector.matchExpressions[0].key"),
        ),
        (
            exports,
            export(by_label(
                json!({"selector": {"matchExpressions": [{"key": "k", "operator": "In", "values": ["x z"]}]}}),
            )),
            rule(".labelSelector.selector.matchExpressions[0].values[0]"),
        ),
        (
            imports,
            import(by_label(json!({"selector": {}}))),
            import_rule(".type"),
        ),
        (
            imports,
            import(json!({"type": "NameSelector"})),
            import_rule(".nameSelector"),
        ),
        (
            imports,
            import(joins(json!({"namespace": "bookinfo"}))),
            import_rule(".nameSelector"),
        ),
        (
            imports,
            import(joins(json!({"alias": {"namespace": "*"}}))),
            import_rule(".nameSelector"),
        ),
        (
            imports,
            import(joins(json!({"alias": {"namespace": ""}}))),
            import_rule(".nameSelector"),
        ),
        (
            imports,
            import(json!({"type": "NameSelector", "nameSelector": {}, "domainSuffix": "-x"})),
            import_rule(".domainSuffix"),
        ),
        (
            imports,
            json!({"domainSuffix": "X"}),
            "spec.domainSuffix".to_owned(),
        ),
        (
            imports,
            json!({"locality": {"region": "a/b"}}),
            "spec.locality.region".to_owned(),
        ),
        (
            imports,
            json!({"locality": {"zone": "z"}}),
            "spec.locality.region".to_owned(),
        ),
        (
            imports,
            json!({"locality": {"region": "r", "subzone": "s"}}),
            "spec.locality.zone".to_owned(),
        ),
        (peers, json!({}), "spec.gateways".to_owned()),
        (
            peers,
            peer(|spec| spec["remote"] = json!({})),
            "spec.remote.addresses".to_owned(),
        ),
        (
            peers,
            peer(|spec| spec["remote"]["addresses"] = json!([])),
            "spec.remote.addresses".to_owned(),
        ),
        (
            peers,
            peer(|spec| spec["remote"]["addresses"] = json!(["https://x"])),
            "spec.remote.addresses[0]".to_owned(),
        ),
        (
            peers,
            peer(|spec| spec["remote"]["addresses"] = json!(["127.0.0.1", "999.1.1.1"])),
            "spec.remote.addresses".to_owned(),
        ),
        (
            peers,
            peer(|spec| spec["remote"]["servicePort"] = json!(70000)),
            "spec.remote.servicePort".to_owned(),
        ),
        (
            peers,
            peer(|spec| spec["gateways"]["ingress"] = json!({})),
            "spec.gateways.ingress.name".to_owned(),
        ),
        (
            peers,
            peer(|spec| spec["security"]["clientID"] = json!("egress")),
            "spec.security.clientID".to_owned(),
        ),
        (
            peers,
            peer(|spec| spec["security"]["trustDomain"] = json!("a b")),
            "spec.security.trustDomain".to_owned(),
        ),
        (
            planes,
            gateway("additionalIngress", json!({"routerMode": "standard"})),
            "spec.gateways.additionalIngress.g.routerMode".to_owned(),
        ),
        (
            planes,
            gateway("additionalEgress", json!({"enabled": "yes"})),
            "spec.gateways.additionalEgress.g.enabled".to_owned(),
        ),
        (
            planes,
            gateway(
                "additionalIngress",
                json!({"service": {"type": "ExternalName"}}),
            ),
            "spec.gateways.additionalIngress.g.service.type".to_owned(),
        ),
        (
            planes,
            gateway(
                "additionalIngress",
                json!({"service": {"ports": [{"name": "tls"}]}}),
            ),
            "spec.gateways.additionalIngress.g.service.ports[0].port".to_owned(),
        ),
        (
            planes,
            gateway(
                "additionalIngress",
                json!({"service": {"ports": [{"port": 15443, "nodePort": 80}]}}),
            ),
            "spec.gateways.additionalIngress.g.service.ports[0].nodePort".to_owned(),
        ),
        (
            planes,
            gateway(
                "additionalIngress",
                json!({"service": {"ports": [{"port": 15443, "nodePort": 30000}, {"port": 8188}]}}),
            ),
            "spec.gateways.additionalIngress.g.service.ports".to_owned(),
        ),
        (
            planes,
            gateway(
                "additionalEgress",
                json!({"service": {"ports": [{"port": 15443}]}}),
            ),
            "spec.gateways.additionalEgress.g.service.ports".to_owned(),
        ),
        (
            planes,
            gateway(
                "additionalIngress",
                json!({"service": {"ports": [{"port": 15443}, {"port": 8188}, {"port": 8188}]}}),
            ),
            "spec.gateways.additionalIngress.g.service.ports".to_owned(),
        ),
        (
            planes,
            gateway(
                "additionalIngress",
                json!({"service": {"loadBalancerIP": "1.2"}}),
            ),
            "spec.gateways.additionalIngress.g.service.loadBalancerIP".to_owned(),
        ),
        (
            "servicemeshmemberrolls",
            json!({"members": ["Bad"]}),
            "spec.members[0]".to_owned(),
        ),
        (
            "servicemeshmembers",
            json!({"controlPlaneRef": {"name": "red-mesh"}}),
            "spec.controlPlaneRef.namespace".to_owned(),
        ),
    ];
    for (resource, spec, field) in cases {
        let fields = blamed(&server, resource, spec.clone()).await;
        assert!(fields.contains(&field), "{field} in {fields:?} for {spec}");
    }
    let good = peer(|_| {});
    assert!(
        blamed_of(&server, peers, &"p".repeat(55), good.clone())
            .await
            .is_empty()
    );
    for name in ["a.b", &"p".repeat(56)] {
        let fields = blamed_of(&server, peers, name, good.clone()).await;
        assert_eq!(fields, ["metadata.name"], "{name}");
    }
    let roll = blamed_of(&server, "servicemeshmemberrolls", "other", json!({})).await;
    assert_eq!(roll, ["metadata.name"]);
}
