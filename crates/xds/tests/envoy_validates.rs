//! Everything that is written is valid configuration for a stock Envoy.
//!
//! Envoy reads a bootstrap that holds the resources as they are, in the binary form in which they
//! would come over ADS.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::BTreeMap;
use std::process::Command;

use envoy_types::pb::envoy::config::bootstrap::v3::{Bootstrap, bootstrap};
use envoy_types::pb::envoy::config::core::v3 as core;
use meshfed_testkit::{temp_dir, tools};
use meshfed_xds::{bootstrap as xds_bootstrap, encode};
use prost::Message;

/// A bootstrap with an ADS source for what the resources fetch, and the agent's cluster.
fn bootstrap() -> Bootstrap {
    let grpc = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
            core::grpc_service::EnvoyGrpc {
                cluster_name: meshfed_xds::XDS_CLUSTER.to_string(),
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    let static_cluster = |name: &str| {
        let cluster = meshfed_proxy_config::Cluster {
            name: name.into(),
            discovery: meshfed_proxy_config::Discovery::Static(vec![
                "127.0.0.1:1".parse().unwrap(),
            ]),
            connect_timeout: std::time::Duration::from_secs(1),
            tls: None,
            protocol: meshfed_proxy_config::UpstreamProtocol::Http2,
            outlier: None,
            drain: meshfed_proxy_config::DEFAULT_DRAIN,
        };
        Message::decode(&*encode::cluster(&cluster).value).unwrap()
    };
    Bootstrap {
        node: Some(core::Node {
            id: "test".to_string(),
            cluster: "test".to_string(),
            ..Default::default()
        }),
        dynamic_resources: Some(bootstrap::DynamicResources {
            ads_config: Some(core::ApiConfigSource {
                api_type: core::api_config_source::ApiType::DeltaGrpc.into(),
                transport_api_version: core::ApiVersion::V3.into(),
                grpc_services: vec![grpc],
                ..Default::default()
            }),
            ..Default::default()
        }),
        static_resources: Some(bootstrap::StaticResources {
            clusters: vec![
                static_cluster(meshfed_xds::XDS_CLUSTER),
                static_cluster(meshfed_xds::SDS_CLUSTER),
            ],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Asks Envoy about a bootstrap file and gives the lines that it warned or complained with.
fn complaints(file_name: &str, content: &[u8]) -> Option<Vec<String>> {
    let envoy = tools::envoy_or_skip()?;
    let dir = temp_dir();
    let path = dir.path().join(file_name);
    std::fs::write(&path, content).unwrap();
    let output = Command::new(envoy)
        .args(["--mode", "validate", "--disable-hot-restart", "-c"])
        .arg(&path)
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    let mut bad: Vec<String> = log
        .lines()
        .filter(|l| {
            ["[warning]", "[error]", "[critical]"]
                .iter()
                .any(|w| l.contains(w))
        })
        .map(String::from)
        .collect();
    if !output.status.success() && bad.is_empty() {
        bad.push(format!("{}: {log}", output.status));
    }
    Some(bad)
}

fn assert_valid(bootstrap: &Bootstrap) {
    if let Some(bad) = complaints("bootstrap.pb", &bootstrap.encode_to_vec()) {
        assert_eq!(bad, Vec::<String>::new());
    }
}

#[test]
fn every_listener_is_valid_for_envoy() {
    let mut bootstrap = bootstrap();
    let resources = bootstrap.static_resources.as_mut().unwrap();
    for (i, mut listener) in common::samples(common::listener()).into_iter().enumerate() {
        listener.name = format!("listener-{i}");
        let any = encode::listener(&listener);
        resources
            .listeners
            .push(Message::decode(&*any.value).unwrap());
    }
    assert_valid(&bootstrap);
}

#[test]
fn every_trust_bundle_is_valid_for_envoy() {
    let root = meshfed_testkit::forge::Forge::new("red-mesh.local");
    let mut bootstrap = bootstrap();
    let resources = bootstrap.static_resources.as_mut().unwrap();
    for (i, (_, mut bundle)) in common::samples(common::trust()).into_iter().enumerate() {
        let domains: BTreeMap<_, _> = bundle
            .domains
            .into_keys()
            .map(|d| (d, root.root_pem().into()))
            .collect();
        bundle.domains = domains;
        let any = encode::trust(&format!("trust-{i}"), &bundle);
        resources
            .secrets
            .push(Message::decode(&*any.value).unwrap());
    }
    assert_valid(&bootstrap);
}

#[test]
fn the_bootstrap_is_valid_for_envoy() {
    let id = "spiffe://red-mesh.local/ns/red-mesh-system/sa/istiod"
        .parse()
        .unwrap();
    for (host, server) in [
        ("127.0.0.1", xds_bootstrap::ServerName::Id(id)),
        (
            "istiod.red-mesh-system.svc",
            xds_bootstrap::ServerName::Dns("istiod.red-mesh-system.svc".to_string()),
        ),
    ] {
        let json = xds_bootstrap::envoy(&xds_bootstrap::BootstrapOptions {
            node: xds_bootstrap::NodeOptions {
                id: "ingress-green-mesh".to_string(),
                cluster: "ingress-green-mesh.red-mesh-system".to_string(),
                metadata: serde_json::Map::from_iter([(
                    "NAMESPACE".to_string(),
                    "red-mesh-system".into(),
                )]),
            },
            control_plane: (host.to_string(), 15012),
            server,
            sds_socket: "/tmp/agent/sds.sock".to_string(),
            admin: "127.0.0.1:0".parse().unwrap(),
            max_connections: xds_bootstrap::DEFAULT_MAX_CONNECTIONS,
        });
        if let Some(bad) = complaints("bootstrap.json", json.to_string().as_bytes()) {
            assert_eq!(bad, Vec::<String>::new());
        }
    }
}
