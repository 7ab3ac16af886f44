//! The administrator gives the mesh another certificate authority, while its proxies run.

use std::time::SystemTime;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::PostParams;
use meshfed_api::ROOT_CERT_KEY;
use meshfed_pki::CertificateAuthority;
use meshfed_testkit::eventually;
use serde_json::json;

use crate::drain::merge;
use crate::federation::{Federation, Mesh};
use crate::program::PATIENCE;
use crate::removal::api;

/// The mesh uses this authority from its next start on. Its root is given back.
async fn give_authority(mesh: &Mesh) -> String {
    let made = CertificateAuthority::self_signed(mesh.name, SystemTime::now()).unwrap();
    let pem = made.to_pem();
    let mut secret = Secret {
        data: Some(
            [
                ("root-cert.pem", &*pem.root_cert),
                ("ca-cert.pem", &*pem.ca_cert),
                ("ca-key.pem", &*pem.ca_key),
                ("cert-chain.pem", &*pem.cert_chain),
            ]
            .map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())))
            .into(),
        ),
        ..Secret::default()
    };
    secret.metadata.name = Some("cacerts".to_owned());
    let secrets: Api<Secret> = api(mesh);
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    made.root_pem().to_owned()
}

/// The root by which one of the two trusts the other.
async fn trust(mesh: &Mesh, peer: &Mesh, pem: String) {
    let maps: Api<ConfigMap> = api(mesh);
    let name = format!("{}-ca-root-cert", peer.name);
    merge(&maps, &name, json!({"data": {ROOT_CERT_KEY: pem}})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_proxies_follow_their_mesh_to_another_root() {
    let mut federation = Federation::start(&[], &[]).await;
    federation.works().await;
    // First of the mesh that calls, then of the one that is called.
    for calls in [true, false] {
        let (moves, stays) = match calls {
            true => (&mut federation.green, &federation.red),
            false => (&mut federation.red, &federation.green),
        };
        let (old, new) = (moves.root().await, give_authority(moves).await);
        trust(stays, moves, format!("{old}{new}")).await;
        moves.kill();
        moves.start_again().await;
        eventually(PATIENCE, async || match moves.root().await {
            root if root.trim() == new.trim() => Ok(()),
            other => Err(other),
        })
        .await;
        // Nobody believes anything of before now.
        trust(stays, moves, new).await;
        federation.works().await;
        let mut tunnel = federation.tunnel().await;
        tunnel.call().await.unwrap();
    }
}
