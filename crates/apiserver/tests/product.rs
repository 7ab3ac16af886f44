//! The product's own definitions in the server.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use meshfed_apiserver::{ApiServer, Options};
use serde_json::{Value, json};
use tower_service::Service as _;

async fn ask(server: &ApiServer, method: &str, path: &str, accept: &str, body: Value) -> Value {
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
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
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
    let made = ask(&server, "POST", &path("v1alpha3"), "", object).await;
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
