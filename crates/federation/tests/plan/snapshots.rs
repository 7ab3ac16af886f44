//! The configurations of the demo's proxies, whole, so that a change of any of them is seen.

use std::sync::Arc;

use meshfed_proxy_config::ProxyConfig;

use crate::lab::{gateway, red_and_green, root_of, sidecar};

/// The configuration as text, with roots by name.
fn text(config: &Arc<ProxyConfig>) -> String {
    let mut text = format!("{config:#?}");
    for mesh in ["red", "green"] {
        let pem = format!("{:?}", root_of(mesh));
        text = text.replace(&pem, &format!("<root of {mesh}-mesh>"));
    }
    assert!(!text.contains("BEGIN CERTIFICATE"));
    text
}

#[test]
fn ingress_of_the_exporting_mesh() {
    let (red, _) = red_and_green();
    insta::assert_snapshot!(text(&gateway(&red.plan(), "ingress-green-mesh")));
}

#[test]
fn egress_of_the_importing_mesh() {
    let (_, green) = red_and_green();
    insta::assert_snapshot!(text(&gateway(&green.plan(), "egress-red-mesh")));
}

#[test]
fn sidecar_of_the_client() {
    let (_, green) = red_and_green();
    insta::assert_snapshot!(text(&sidecar(&green.plan(), "bookinfo", "client-v1")));
}

#[test]
fn sidecar_of_a_workload() {
    let (red, _) = red_and_green();
    insta::assert_snapshot!(text(&sidecar(
        &red.plan(),
        "red-mesh-bookinfo",
        "ratings-v1"
    )));
}
