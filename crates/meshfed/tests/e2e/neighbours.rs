//! Two peers of one mesh: what happens to one of them, its gateways and its trust is nothing to the
//! other, whose traffic goes on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use meshfed_api::{ServiceMeshControlPlane, ServiceMeshPeer};
use meshfed_testkit::eventually;
use serde_json::{Value, json};

use crate::blue;
use crate::drain::{ended, ends, merge, set_drain};
use crate::federation::{Federation, IMPORTED, Mesh, Tunnel};
use crate::program::PATIENCE;
use crate::removal::{api, becomes, create, delete};

/// What is cut is cut within this on a busy machine, where a call may wait for 10 s, and its time to drain
/// would be an hour.
const AT_ONCE: Duration = Duration::from_secs(60);
const GREENS_GATEWAYS: [&str; 2] = ["ingress-green-mesh", "egress-green-mesh"];

/// The good peer calls without a pause, by a tunnel that was there from the beginning and by new
/// connections. No call may fail.
async fn calls(federation: &Federation, count: &AtomicUsize) {
    let mut tunnel = federation.tunnel().await;
    loop {
        tunnel.call().await.unwrap();
        federation.call().await.unwrap();
        count.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits for more calls of the good peer, by which a change has come to all proxies.
async fn more(count: &AtomicUsize) {
    let before = count.load(Ordering::SeqCst);
    eventually(PATIENCE, async || match count.load(Ordering::SeqCst) {
        now if now >= before + 50 => Ok(()),
        now => Err(now - before),
    })
    .await;
}

async fn works(blue: &Mesh) {
    eventually(PATIENCE, async || blue.call_to(IMPORTED).await).await;
}

async fn fails(blue: &Mesh) {
    eventually(PATIENCE, async || match blue.call_to(IMPORTED).await {
        Ok(()) => Err("a call succeeds"),
        Err(_) => Ok(()),
    })
    .await;
}

async fn change(mesh: &Mesh, peer: &str, spec: Value) {
    let peers: Api<ServiceMeshPeer> = api(mesh);
    merge(&peers, peer, json!({"spec": spec})).await;
}

/// Blue-mesh moves to the gateways of green-mesh, at both ends; its own go.
async fn move_in(red: &Mesh, blue: &Mesh, tunnel: &mut Tunnel) {
    let [ingress, egress] = GREENS_GATEWAYS;
    let gateways = json!({"ingress": {"name": ingress}, "egress": {"name": egress}});
    change(red, "blue-mesh", json!({"gateways": gateways})).await;
    let client = format!("red-mesh.local/ns/red-mesh-system/sa/{egress}-service-account");
    let spec = json!({
        "remote": {"addresses": [red.net.address(10)]},
        "security": {"clientID": client},
    });
    change(blue, "red-mesh", spec).await;
    // Its calls come that way as well, and what was open goes on through the gateway that was left.
    eventually(PATIENCE, async || {
        blue.call_to(IMPORTED).await?;
        blue.tunnel_to(IMPORTED).await.call().await?;
        match red
            .log_of(ingress)
            .contains("peer=spiffe://blue-mesh.local/")
        {
            true => Ok(()),
            false => Err("it does not come".to_owned()),
        }
    })
    .await;
    red.connected("blue-mesh").await;
    blue.connected("red-mesh").await;
    tunnel.call().await.unwrap();

    let meshes: Api<ServiceMeshControlPlane> = api(red);
    let off = json!({"enabled": false});
    for patch in [
        json!({"additionalIngress": {"ingress-blue-mesh": off}}),
        json!({"additionalEgress": {"egress-blue-mesh": off}}),
    ] {
        let patch = json!({"spec": {"gateways": patch}});
        merge(&meshes, "red-mesh", patch).await;
    }
    let services: Api<Service> = api(red);
    for name in ["ingress-blue-mesh", "egress-blue-mesh"] {
        eventually(PATIENCE, async || match services.get_opt(name).await {
            Ok(None) => Ok(()),
            other => Err(format!("{name} is not gone: {other:?}")),
        })
        .await;
    }
}

/// Something is done to the trust in blue-mesh, for which red-mesh has this reason, and undone.
async fn is_closed(red: &Mesh, blue: &Mesh, domain: Value, reason: &str) {
    let security = |domain: Value| json!({"security": {"trustDomain": domain}});
    works(blue).await;
    let mut tunnel = blue.tunnel_to(IMPORTED).await;
    tunnel.call().await.unwrap();
    let cut = || ended(red, &GREENS_GATEWAYS[..1], " end=trust_removed");
    let (before, began) = (cut(), Instant::now());
    change(red, "blue-mesh", security(domain)).await;
    ends(&mut tunnel).await;
    let took = began.elapsed();
    assert!(took < AT_ONCE, "{reason}: {took:?}");
    becomes(red, "blue-mesh", reason).await;
    fails(blue).await;
    eventually(PATIENCE, async || match cut() {
        now if now > before => Ok(()),
        _ => Err(red.log_of(GREENS_GATEWAYS[0])),
    })
    .await;
    change(red, "blue-mesh", security(json!("blue-mesh.local"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_to_a_peer_its_gateways_and_its_trust_is_nothing_to_another_peer() {
    let federation = Federation::start(&[], &[]).await;
    let (blue, _sidecar) = blue::calls_red(&federation).await;
    let (red, blue) = (&federation.red, &blue);
    federation.works().await;
    red.connected("blue-mesh").await;
    works(blue).await;
    for (mesh, peer) in [(red, "blue-mesh"), (blue, "red-mesh")] {
        set_drain(mesh, peer, "1h").await;
    }
    let count = AtomicUsize::new(0);
    let story = async {
        let mut tunnel = blue.tunnel_to(IMPORTED).await;
        tunnel.call().await.unwrap();
        more(&count).await;
        move_in(red, blue, &mut tunnel).await;
        more(&count).await;

        // Somebody says that it is green-mesh.
        let peers: Api<ServiceMeshPeer> = api(red);
        let mut claims = peers.get("green-mesh").await.unwrap();
        claims.metadata = serde_json::from_value(json!({"name": "claims"})).unwrap();
        claims.status = None;
        create(red, &claims).await;
        becomes(red, "claims", "TrustDomainTaken").await;
        more(&count).await;
        delete::<ServiceMeshPeer>(red, "claims").await;

        for (domain, reason) in [
            (Value::Null, "TrustDomainUnset"),
            (json!("green-mesh.local"), "TrustDomainTaken"),
        ] {
            is_closed(red, blue, domain, reason).await;
            more(&count).await;
        }

        // The peer itself.
        works(blue).await;
        set_drain(red, "blue-mesh", "0s").await;
        let mut tunnel = blue.tunnel_to(IMPORTED).await;
        delete::<ServiceMeshPeer>(red, "blue-mesh").await;
        ends(&mut tunnel).await;
        fails(blue).await;
        more(&count).await;
    };
    tokio::select! {
        () = calls(&federation, &count) => {}
        () = story => {}
    }
    println!("{} calls of green-mesh", count.into_inner());
    becomes(red, "green-mesh", "Connected").await;
}
