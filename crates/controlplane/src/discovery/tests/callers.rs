//! Who may call our end of discovery, and what each caller gets.

use k8s_openapi::api::core::v1::Service as GatewayService;
use meshfed_federation::discovery::server::{Exports, ServerSettings};
use meshfed_federation::names::PeerName;
use meshfed_federation::plan::{GatewayKind, GatewayPlan};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::exporter::{Scene, ingress_of, read_until, rest, send};
use super::*;
use crate::discovery::server::Bounds;

const OK: &str = "HTTP/1.1 200 ";
const BAD_REQUEST: &str = "HTTP/1.1 400 Bad Request\r\n";

fn few_places() -> Bounds {
    Bounds {
        handshakes: 4,
        connections: 4,
        ..Bounds::default()
    }
}

fn workload() -> SpiffeId {
    let id = "spiffe://cluster.local/ns/bookinfo/sa/ratings";
    id.parse().unwrap()
}

impl Scene {
    /// What this identity gets for a peer's list.
    async fn got(&self, identity: Arc<IdentityCell>) -> String {
        let Ok(mut stream) = self.connect_as(identity).await else {
            return String::new();
        };
        // It may have been turned away already.
        let _broken = send(&mut stream, "/v1/services/good", "").await;
        rest(stream).await
    }

    async fn works_for(&self, peer: &str) {
        let path = format!("/v1/services/{peer}");
        let answer = self.answer(peer, &path, "").await;
        assert!(answer.starts_with(OK), "{peer}: {answer:.100}");
    }

    /// Waits until a request of this peer's gateway is answered so; `None`: not at all.
    async fn answers(&self, peer: &str, path: &str, status: Option<&str>) {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.answer(peer, path, "").await;
            if status.map_or(answer.is_empty(), |status| answer.starts_with(status)) {
                return;
            }
            assert!(tokio::time::Instant::now() < until, "{path}: {answer:.100}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_and_who_has_no_certificate_get_not_one_byte_and_no_place() {
    let scene = Scene::bounded(few_places(), ServerSettings::default()).await;
    let workload_identity = scene.bench.certificate(&workload());
    assert_eq!(scene.got(workload_identity.clone()).await, "");
    let id = workload();
    scene
        .logged(&format!(" peer={id} end=wrong_identity"))
        .await;
    assert_eq!(scene.got(Arc::new(IdentityCell::new(None))).await, "");
    scene.logged(" end=no_certificate").await;

    // All of them stay as long as they may.
    let mut open = Vec::new();
    let mut silent = Vec::new();
    for _ in 0..20 {
        open.push(scene.connect_as(workload_identity.clone()).await);
        silent.push(TcpStream::connect(scene.address).await.unwrap());
    }
    scene.works_for("good").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_says_nothing_is_dropped() {
    let bounds = Bounds {
        head: Duration::from_secs(5),
        ..Bounds::default()
    };
    let scene = Scene::bounded(bounds, ServerSettings::default()).await;
    // Nothing, a beginning of HTTP/2, and half a request.
    for said in ["", "PRI * HTT", "GET /v1/services/good HTTP/1.1\r\n"] {
        let mut stream = scene.connect("good").await.unwrap();
        // It may have been dropped already.
        let _broken = stream.write_all(said.as_bytes()).await;
        let _broken = stream.flush().await;
        let answer = rest(stream).await;
        assert!(!answer.starts_with(OK), "{said:?}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_kept_and_not_used_again_is_no_broken_one() {
    let bounds = Bounds {
        head: Duration::from_secs(5),
        ..Bounds::default()
    };
    let scene = Scene::bounded(bounds, ServerSettings::default()).await;
    let log = |client: std::net::SocketAddr, end: &str| format!(" client={client} end={end}");
    let used = scene.ask("good", "/v1/services/good", "").await.unwrap();
    let client = used.get_ref().0.local_addr().unwrap();
    assert!(rest(used).await.starts_with(OK));
    scene.logged(&log(client, "idle")).await;

    let mut slow = scene.connect("good").await.unwrap();
    let client = slow.get_ref().0.local_addr().unwrap();
    let half = "GET /v1/services/good HTTP/1.1\r\n";
    slow.write_all(half.as_bytes()).await.unwrap();
    slow.flush().await.unwrap();
    rest(slow).await;
    scene.logged(&log(client, "broken")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_has_places_for_its_peers_and_takes_none_of_another() {
    let scene = Scene::bounded(few_places(), ServerSettings::default()).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut watch = scene.ask("evil", "/v1/watch/evil", "").await.unwrap();
        read_until(&mut watch, "\r\n\r\n").await;
        open.push(watch);
    }
    let answer = scene.answer("evil", "/v1/services/evil", "").await;
    assert_eq!(answer, "");
    let evil = ingress_of("evil");
    scene
        .logged(&format!(" peer={evil} end=connection_limit"))
        .await;
    scene.works_for("good").await;
    drop(open.pop());
    scene.answers("evil", "/v1/services/evil", Some(OK)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_peer_is_a_bad_request_and_other_paths_are_not_found() {
    let scene = Scene::new().await;
    for (path, status) in [
        ("/v1/services/nobody", BAD_REQUEST),
        ("/v1/watch/nobody", BAD_REQUEST),
        ("/v1/services/", BAD_REQUEST),
        ("/v1/watch/good/more", BAD_REQUEST),
        ("/v1/services", "HTTP/1.1 404 Not Found\r\n"),
        ("/v1/watch", "HTTP/1.1 404 Not Found\r\n"),
        ("/", "HTTP/1.1 404 Not Found\r\n"),
        ("/v2/services/good", "HTTP/1.1 404 Not Found\r\n"),
    ] {
        let answer = scene.answer("good", path, "").await;
        assert!(answer.starts_with(status), "{path}: {answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{path} has no body: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_goes_between_connection_and_request_is_unknown_and_gets_no_watch_that_ends() {
    let mut scene = Scene::new().await;
    let early = scene.connect("evil").await.unwrap();
    let evil: PeerName = "evil".parse().unwrap();
    let plan = &mut scene.bench.plan;
    plan.exports.remove(&evil);
    plan.discovery_clients.remove(&evil);
    // Its gateway is still there, and has not heard yet.
    let gateway = GatewayPlan {
        kind: GatewayKind::Ingress,
        service_account: ingress_of("evil").service_account().to_owned(),
        service: GatewayService::default(),
        going: false,
        kept: None,
    };
    let name = "ingress-evil".to_owned();
    plan.gateways.insert(name.clone(), Arc::new(gateway));
    scene.bench.publish();
    scene
        .answers("good", "/v1/services/evil", Some(BAD_REQUEST))
        .await;
    let late = scene.connect("evil").await.unwrap();
    for mut stream in [early, late] {
        send(&mut stream, "/v1/services/evil", "").await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answer.starts_with(BAD_REQUEST), "{answer}");
        let close = "connection: close\r\n";
        send(&mut stream, "/v1/watch/evil", close).await.unwrap();
        let answer = rest(stream).await;
        assert!(answer.starts_with(BAD_REQUEST), "{answer}");
    }
    // Without its gateway there is nobody to be told.
    scene.bench.plan.gateways.remove(&name);
    scene.bench.publish();
    scene.answers("evil", "/v1/services/evil", None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_by_the_former_gateway_end_when_a_peer_moves_to_another() {
    let mut scene = Scene::new().await;
    let close = "connection: close\r\n";
    let mut watch = scene.ask("good", "/v1/watch/good", close).await.unwrap();
    read_until(&mut watch, "\r\n\r\n").await;
    let good: PeerName = "good".parse().unwrap();
    let clients = &mut scene.bench.plan.discovery_clients;
    // No gateway for a moment: who watches is still told what happens.
    clients.remove(&good);
    scene.export(3, 10);
    read_until(&mut watch, "00000000003").await;
    let clients = &mut scene.bench.plan.discovery_clients;
    clients.insert(good, ingress_of("evil"));
    scene.bench.publish();
    let end = rest(watch).await;
    assert!(end.ends_with("0\r\n\r\n"), "a clean end: {end}");
    scene.answers("evil", "/v1/services/good", Some(OK)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_begins_in_the_middle_of_a_removal_tells_who_comes_back() {
    let mut scene = Scene::new().await;
    let told = |scene: &Scene, peer: &str| {
        let seen = scene.bench.seen.observed();
        seen.peers.get(peer).and_then(|state| state.farewell.told)
    };
    // Nobody watches: `good` goes before our eyes, of `again` we hear when it goes already.
    let again: PeerName = "again".parse().unwrap();
    let plan = &mut scene.bench.plan;
    let good: PeerName = "good".parse().unwrap();
    let clients = &mut plan.discovery_clients;
    clients.insert(again.clone(), ingress_of("again"));
    let gone = plan.exports["good"].clone();
    for peer in [good, again] {
        plan.exports.insert(peer.clone(), Exports::new());
        plan.withdrawn.insert(peer, gone.clone());
    }
    scene.bench.publish();
    eventually("nobody is to be told", || {
        told(&scene, "good").map(|_| ()).ok_or_else(String::new)
    })
    .await;
    let mut watch = scene.ask("again", "/v1/watch/again", "").await.unwrap();
    let deletes = read_until(&mut watch, "3035108133973235477").await;
    assert!(deletes.contains("\"action\":\"delete\""), "{deletes}");
    assert_eq!(told(&scene, "again"), None, "others may be on the way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_went_is_forgotten_in_its_time_though_nothing_else_happens() {
    let settings = ServerSettings {
        kept: Duration::from_secs(3),
        ..ServerSettings::default()
    };
    let scene = Scene::bounded(Bounds::default(), settings).await;
    let mut watch = scene.ask("good", "/v1/watch/good", "").await.unwrap();
    read_until(&mut watch, "\r\n\r\n").await;
    let is = |expected: &'static [bool]| {
        let scene = &scene;
        move || match scene.connected("good") {
            known if known == expected => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    eventually("it watches", is(&[true])).await;
    drop(watch);
    eventually("it went", is(&[false])).await;
    eventually("it is forgotten", is(&[])).await;
}
