//! A server with a small resource definition, for tests.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod https;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use meshfed_apiserver::{ApiServer, Options};
use serde_json::json;

/// `widgets.example.com` (v1, and v1beta1 over the same storage) with what schemas have.
pub fn widgets() -> CustomResourceDefinition {
    let schema = json!({"type": "object", "description": "A widget.", "properties": {
        "spec": {
            "type": "object",
            "description": "What the widget is to be.",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 10, "description": "How large."},
                "colour": {"type": "string", "enum": ["red", "green"], "default": "red"},
                "parts": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "required": ["name"],
                        "properties": {"name": {"type": "string"}, "count": {"type": "integer"}}},
                },
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            },
            "x-kubernetes-validations": [{
                "rule": "self.colour != 'green' || self.size <= 5",
                "message": "green widgets are small",
                "fieldPath": ".size",
            }],
        },
        "status": {"type": "object", "properties": {
            "ready": {"type": "string"},
            "conditions": {"type": "array", "items": {"type": "object", "properties": {
                "type": {"type": "string"}, "status": {"type": "string"},
                "reason": {"type": "string"}, "message": {"type": "string"},
                "lastTransitionTime": {"type": "string", "format": "date-time"}}}},
        }},
    }});
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage,
            "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}},
            "additionalPrinterColumns": [
                {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
                {"name": "Colour", "type": "string", "jsonPath": ".spec.colour", "priority": 1},
                {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            ],
        })
    };
    serde_json::from_value(json!({
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList",
                "shortNames": ["wd"], "categories": ["all"]},
            "scope": "Namespaced",
            "versions": [version("v1beta1", false), version("v1", true)],
        },
    }))
    .unwrap()
}

pub fn options(dir: &Path) -> Options {
    Options::new(dir, vec![widgets()])
}

pub struct Server {
    pub server: ApiServer,
    pub client: Client,
    pub dir: tempfile::TempDir,
}

pub fn start() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let server = ApiServer::open(options(dir.path())).unwrap();
    let client = Client::new(server.service(), "default");
    Server {
        server,
        client,
        dir,
    }
}

/// A clock that is turned by hand.
#[derive(Clone)]
pub struct HandClock(Arc<AtomicU64>);

impl HandClock {
    pub fn new() -> Self {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        Self(Arc::new(AtomicU64::new(now.as_secs())))
    }

    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::SeqCst);
    }

    pub fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

/// Waits until something holds.
pub async fn eventually<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = holds().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
