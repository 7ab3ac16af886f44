//! What callers in one mesh notice when the last endpoint in the other one goes and comes back.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use meshfed_api::ImportedServiceSet;
use meshfed_testkit::eventually;
use serde_json::json;

use crate::federation::{App, Federation, IMPORTED, Mesh, metric};
use crate::notice::{Came, Traffic, ratings_is_ready};
use crate::program::PATIENCE;
use crate::removal::api;

/// Below the 60 s after which a mesh would ask for the whole list, also where a call waits for 10 s; it takes
/// some 50 ms.
const TOLD: Duration = Duration::from_secs(40);
pub const LOCAL: &str = "ratings.bookinfo.svc.cluster.local:9080";

/// Connections that red-mesh's ingress gateway was given for services.
async fn at_ingress(red: &Mesh) -> u64 {
    let name = "meshfed_proxy_connections_accepted_total";
    let ingress = format!("{}_15443", red.address(10, 0).ip());
    metric(red.address(1, 15014), name, &[&ingress]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_are_told_at_once_that_the_last_endpoint_in_the_other_mesh_went_and_came() {
    let federation = Federation::start(&[], &[]).await;
    federation.works().await;
    let red = &federation.red;
    let traffic = Traffic::default();
    let story = async {
        traffic.more(50, Instant::now()).await;
        let began = Instant::now();
        ratings_is_ready(red, false).await;
        let told = traffic.first(&Came::NobodyThere, began).await;
        let took = told - began;
        let before = traffic
            .since(began)
            .into_iter()
            .filter(|(at, _)| *at < told);
        let failed: Vec<_> = before.filter(|(_, c)| *c != Came::Answered).collect();
        println!(
            "told after {took:.0?}; until then {} calls failed: {failed:?}",
            failed.len()
        );
        assert!(took < TOLD, "{took:?}");
        let (given, received) = (at_ingress(red).await, federation.app.received());
        assert!(given > 0);
        let all = traffic.more(100, told).await;
        assert!(all.iter().all(|c| *c == Came::NobodyThere), "{all:?}");
        assert_eq!(at_ingress(red).await, given, "nothing was sent");
        assert_eq!(federation.app.received(), received);

        let began = Instant::now();
        ratings_is_ready(red, true).await;
        let took = traffic.first(&Came::Answered, began).await - began;
        println!("answered again after {took:.0?}");
        assert!(took < TOLD, "{took:?}");
    };
    tokio::select! {
        () = traffic.run(&federation, IMPORTED) => {}
        () = story => {}
    }
}

/// Green-mesh has ratings of its own, which that of red-mesh joins.
async fn join_as_local(green: &Mesh, app: &App) {
    let services: Api<Service> = Api::namespaced(green.client.clone(), "bookinfo");
    let service = json!({
        "metadata": {"name": "ratings"},
        "spec": {"ports": [{"name": "http", "port": 9080}]},
    });
    let service = serde_json::from_value(service).unwrap();
    services
        .create(&PostParams::default(), &service)
        .await
        .unwrap();
    let slices: Api<EndpointSlice> = Api::namespaced(green.client.clone(), "bookinfo");
    let slice = json!({
        "metadata": {
            "name": "ratings-by-hand",
            "labels": {"kubernetes.io/service-name": "ratings"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": app.address.port(), "protocol": "TCP"}],
        "endpoints": [{"addresses": [app.address.ip()], "conditions": {"ready": true}}],
    });
    let slice = serde_json::from_value(slice).unwrap();
    slices.create(&PostParams::default(), &slice).await.unwrap();
    let sets: Api<ImportedServiceSet> = api(green);
    let rules = json!({"spec": {"importRules": [{
        "type": "NameSelector",
        "importAsLocal": true,
        "nameSelector": {
            "namespace": "bookinfo",
            "name": "red-ratings",
            "alias": {"namespace": "bookinfo", "name": "ratings"},
        },
    }]}});
    let params = PatchParams::default();
    sets.patch("red-mesh", &params, &Patch::Merge(rules))
        .await
        .unwrap();
}

/// Waits until the calls reach this application too, or no more.
async fn reached(app: &App, traffic: &Traffic, wanted: bool) {
    eventually(PATIENCE, async || {
        let before = app.received();
        traffic.more(20, Instant::now()).await;
        match app.received() - before {
            0 if wanted => Err("no call arrived"),
            more if more > 0 && !wanted => Err("calls arrive"),
            _ => Ok(()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_two_meshes_share_goes_on_in_one_when_the_other_has_nobody_left() {
    let federation = Federation::start(&[], &[]).await;
    federation.works().await;
    let (red, green) = (&federation.red, &federation.green);
    let own = App::start().await;
    join_as_local(green, &own).await;
    eventually(PATIENCE, async || federation.call_to(LOCAL).await).await;
    let traffic = Traffic::default();
    let story = async {
        reached(&federation.app, &traffic, true).await;
        reached(&own, &traffic, true).await;
        for _ in 0..3 {
            let began = Instant::now();
            ratings_is_ready(red, false).await;
            reached(&federation.app, &traffic, false).await;
            let took = began.elapsed();
            ratings_is_ready(red, true).await;
            reached(&federation.app, &traffic, true).await;
            let all = traffic.since(began);
            let failed: Vec<_> = all.iter().filter(|(_, c)| *c != Came::Answered).collect();
            println!(
                "{took:.0?}, {} calls, of which failed: {failed:?}",
                all.len()
            );
            assert!(took < TOLD, "{took:?}");
        }
    };
    tokio::select! {
        () = traffic.run(&federation, LOCAL) => {}
        () = story => {}
    }
}
