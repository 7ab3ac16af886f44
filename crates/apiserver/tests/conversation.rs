//! What a stock kubectl (1.37) says and must hear: `conversation.json` holds its requests, command by
//! command, and the answers that made it succeed, or fail in the right way. The requests were taken
//! down between kubectl and this server; the commands are in the file.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use meshfed_apiserver::ApiServer;
use serde::Deserialize;
use serde_json::{Value, json};
use tower_service::Service as _;

#[derive(Deserialize)]
struct Command {
    command: String,
    requests: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    method: String,
    path: String,
    accept: Option<String>,
    content_type: Option<String>,
    body: Option<String>,
    body_base64: Option<String>,
    answer: Answer,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Answer {
    status: u16,
    /// Of the object.
    kind: Option<String>,
    /// Of a Status.
    reason: Option<String>,
    /// Of a Table.
    columns: Option<Vec<String>>,
    /// The type of a watch's first event.
    first: Option<String>,
    warnings: Option<Vec<String>>,
}

async fn say(server: &ApiServer, said: &Said) -> (Answer, Value) {
    let mut request = Request::builder()
        .method(said.method.as_str())
        .uri(&said.path);
    for (name, value) in [
        (header::ACCEPT, &said.accept),
        (header::CONTENT_TYPE, &said.content_type),
    ] {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    let body = match (&said.body, &said.body_base64) {
        (Some(text), _) => Bytes::from(text.clone()),
        (None, Some(encoded)) => BASE64_STANDARD.decode(encoded).unwrap().into(),
        (None, None) => Bytes::new(),
    };
    let response = server
        .service()
        .call(request.body(Full::new(body)).unwrap())
        .await
        .unwrap();
    let (parts, mut body) = response.into_parts();
    let warnings: Vec<String> = parts
        .headers
        .get_all(header::WARNING)
        .iter()
        .map(|value| value.to_str().unwrap().to_owned())
        .collect();
    let mut answer = Answer {
        status: parts.status.as_u16(),
        warnings: (!warnings.is_empty()).then_some(warnings),
        ..Answer::default()
    };
    if said.path.contains("watch=true") {
        if said.answer.first.is_some() {
            let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
            let line = frame.split(|b| *b == b'\n').next().unwrap();
            let event: Value = serde_json::from_slice(line).unwrap();
            answer.first = event["type"].as_str().map(str::to_owned);
        }
        return (answer, Value::Null);
    }
    let bytes = body.collect().await.unwrap().to_bytes();
    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    answer.kind = text(&value["kind"]).or(value.get("openapi").map(|_| "OpenAPI".to_owned()));
    if answer.kind.as_deref() == Some("Status") {
        answer.reason = Some(text(&value["reason"]).unwrap_or_default());
    }
    if let Some(columns) = value["columnDefinitions"].as_array() {
        answer.columns = Some(
            columns
                .iter()
                .filter_map(|column| text(&column["name"]))
                .collect(),
        );
    }
    (answer, value)
}

#[tokio::test]
async fn kubectl_hears_what_it_heard_when_it_was_recorded() {
    let commands: Vec<Command> = serde_json::from_str(include_str!("conversation.json")).unwrap();
    assert!(commands.len() > 50);
    let s = common::start();
    for Command { command, requests } in &commands {
        for said in requests {
            // What is deleted in the background may take a moment.
            let waits = said.method == "GET" && said.answer.status == 404;
            let mut tries = 0;
            let answer = loop {
                let (answer, _) = say(&s.server, said).await;
                tries += 1;
                if answer == said.answer || !waits || tries == 500 {
                    break answer;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            assert_eq!(
                answer, said.answer,
                "{command}: {} {}",
                said.method, said.path
            );
        }
    }
}

async fn read(server: &ApiServer, path: &str, accept: &str) -> Value {
    let said = Said {
        method: "GET".to_owned(),
        path: path.to_owned(),
        accept: Some(accept.to_owned()),
        content_type: None,
        body: None,
        body_base64: None,
        answer: Answer::default(),
    };
    say(server, &said).await.1
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
    application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

#[tokio::test]
async fn discovery_says_the_same_in_both_forms() {
    let s = common::start();
    insta::assert_json_snapshot!("groups", read(&s.server, "/apis", "application/json").await);
    insta::assert_json_snapshot!("core", read(&s.server, "/api/v1", "application/json").await);
    let widgets = read(&s.server, "/apis/example.com/v1beta1", "*/*").await;
    insta::assert_json_snapshot!("widgets", widgets);
    for (path, prefix) in [("/api", "/api"), ("/apis", "/apis")] {
        let whole = read(&s.server, path, AGGREGATED).await;
        assert_eq!(whole["kind"], "APIGroupDiscoveryList");
        for group in whole["items"].as_array().unwrap() {
            let name = group["metadata"]["name"].as_str().unwrap();
            for version in group["versions"].as_array().unwrap() {
                let number = version["version"].as_str().unwrap();
                let place = if name.is_empty() {
                    String::new()
                } else {
                    format!("/{name}")
                };
                let old = read(&s.server, &format!("{prefix}{place}/{number}"), "*/*").await;
                let of_old: Vec<(&Value, &Value)> = old["resources"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|resource| !resource["name"].as_str().unwrap().contains('/'))
                    .map(|resource| (&resource["name"], &resource["verbs"]))
                    .collect();
                let of_new: Vec<(&Value, &Value)> = version["resources"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|resource| (&resource["resource"], &resource["verbs"]))
                    .collect();
                assert_eq!(of_old, of_new, "{name}/{number}");
            }
        }
    }
}

#[tokio::test]
async fn every_reference_of_a_document_leads_somewhere() {
    let s = common::start();
    let index = read(&s.server, "/openapi/v3", "*/*").await;
    let paths = index["paths"].as_object().unwrap();
    assert!(paths.contains_key("api/v1") && paths.contains_key("apis/example.com/v1beta1"));
    for (name, place) in paths {
        let document = read(
            &s.server,
            place["serverRelativeURL"].as_str().unwrap(),
            "*/*",
        )
        .await;
        assert_eq!(document["openapi"], "3.0.0", "{name}");
        let schemas = &document["components"]["schemas"];
        let mut left = vec![&document];
        while let Some(value) = left.pop() {
            if let Some(reference) = value.get("$ref") {
                let target = reference
                    .as_str()
                    .unwrap()
                    .strip_prefix("#/components/schemas/")
                    .unwrap();
                assert!(schemas.get(target).is_some(), "{name}: {target}");
            }
            left.extend(
                value
                    .as_object()
                    .into_iter()
                    .flat_map(|fields| fields.values()),
            );
            left.extend(value.as_array().into_iter().flatten());
        }
    }
    let document = read(&s.server, "/openapi/v3/apis/example.com/v1", "*/*").await;
    let post = &document["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets"]["post"];
    let parameters = post["parameters"].as_array().unwrap();
    assert!(
        parameters
            .iter()
            .any(|parameter| parameter["name"] == "fieldValidation")
    );
    assert_eq!(
        post["x-kubernetes-group-version-kind"]["kind"],
        json!("Widget")
    );
}

#[tokio::test]
async fn forms_that_are_not_served_are_refused() {
    let s = common::start();
    let map = r#"{"metadata":{"name":"a"}}"#;
    for (method, path, accept, kind, body, code) in [
        (
            "GET",
            "/api/v1/namespaces",
            "application/vnd.kubernetes.protobuf",
            "",
            "",
            406,
        ),
        (
            "GET",
            "/api/v1/namespaces",
            "application/json;as=Table;v=v9;g=meta.k8s.io",
            "",
            "",
            406,
        ),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps",
            "",
            "application/cbor",
            map,
            415,
        ),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps",
            "",
            "",
            "{",
            400,
        ),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps",
            "",
            "",
            "[]",
            400,
        ),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps",
            "",
            "",
            r#"{"kind":"Secret"}"#,
            400,
        ),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps",
            "",
            "",
            r#"{"apiVersion":"v2"}"#,
            400,
        ),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps?dryRun=Some",
            "",
            "",
            map,
            400,
        ),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps?fieldValidation=X",
            "",
            "",
            map,
            400,
        ),
        (
            "POST",
            "/api/v1/namespaces/nowhere/configmaps",
            "",
            "",
            map,
            404,
        ),
        ("POST", "/api/v1/configmaps", "", "", map, 400),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps/a/status",
            "",
            "",
            map,
            404,
        ),
        (
            "POST",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            "",
            "",
            map,
            405,
        ),
        (
            "PUT",
            "/api/v1/namespaces/default/configmaps",
            "",
            "",
            map,
            405,
        ),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps?limit=x",
            "",
            "",
            "",
            400,
        ),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps?continue=x",
            "",
            "",
            "",
            400,
        ),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps?resourceVersion=99999",
            "",
            "",
            "",
            504,
        ),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps?watch=1&sendInitialEvents=true",
            "",
            "",
            "",
            422,
        ),
        ("GET", "/api/v2/pods", "", "", "", 404),
        ("GET", "/apis/nothing.io", "", "", "", 404),
        ("POST", "/version", "", "", "", 405),
    ] {
        let said = Said {
            method: method.to_owned(),
            path: path.to_owned(),
            accept: (!accept.is_empty()).then(|| accept.to_owned()),
            content_type: (!kind.is_empty()).then(|| kind.to_owned()),
            body: Some(body.to_owned()),
            body_base64: None,
            answer: Answer::default(),
        };
        let (answer, value) = say(&s.server, &said).await;
        assert_eq!(answer.status, code, "{method} {path}: {value}");
        assert_eq!(answer.kind.as_deref(), Some("Status"), "{method} {path}");
        assert_eq!(value["code"], code, "{method} {path}");
    }
}

#[tokio::test]
async fn yaml_bodies_and_duplicate_fields_are_read_as_asked() {
    let s = common::start();
    let mk_post = |query: &str, kind: &str, body: &str| Said {
        method: "POST".to_owned(),
        path: format!("/apis/example.com/v1/namespaces/default/widgets{query}"),
        accept: None,
        content_type: Some(kind.to_owned()),
        body: Some(body.to_owned()),
        body_base64: None,
        answer: Answer::default(),
    };
    let yaml = mk_post(
        "",
        "application/yaml",
        "metadata:\n  name: y\nspec:\n  size: 2\n  what: 1\n",
    );
    let (answer, value) = say(&s.server, &yaml).await;
    assert_eq!(answer.status, 201, "{value}");
    assert_eq!(
        answer.warnings.unwrap(),
        [r#"299 - "unknown field \"spec.what\"""#]
    );
    let twice = r#"{"metadata":{"name":"d"},"spec":{"size":2,"size":3}}"#;
    let strict = mk_post("?fieldValidation=Strict", "application/json", twice);
    let (answer, value) = say(&s.server, &strict).await;
    assert_eq!(answer.status, 400);
    assert!(
        value["message"]
            .as_str()
            .unwrap()
            .contains(r#"duplicate field "spec.size""#),
        "{value}"
    );
    let ignore = mk_post("?fieldValidation=Ignore", "application/json", twice);
    let (answer, value) = say(&s.server, &ignore).await;
    assert_eq!(
        (answer.status, &value["spec"]["size"], answer.warnings),
        (201, &json!(3), None)
    );
    let large = format!(
        r#"{{"metadata":{{"name":"l"}},"x":"{}"}}"#,
        "x".repeat(4 << 20)
    );
    assert_eq!(
        say(&s.server, &mk_post("", "application/json", &large))
            .await
            .0
            .status,
        413
    );
}
