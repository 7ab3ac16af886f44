use std::convert::Infallible;
use std::sync::Mutex;

use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use jiff::Timestamp;
use kube::client::Body;
use meshfed_api::ServiceMeshPeer;
use meshfed_federation::plan::plan;
use meshfed_federation::world::{ObjectKey, Observed, Resources, World};
use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::test_world::mesh;

/// A peer that is there since `now`, and has no status yet.
fn outcome(now: Timestamp) -> Option<Arc<Outcome>> {
    let mut resources = Resources::default();
    let peer: ServiceMeshPeer = serde_json::from_value(json!({
        "apiVersion": "federation.maistra.io/v1",
        "kind": "ServiceMeshPeer",
        "metadata": {"name": "green-mesh", "namespace": "system", "resourceVersion": "1"},
        "spec": {},
    }))
    .unwrap();
    let key = ObjectKey::new("system", "green-mesh");
    resources.peers.insert(key, Arc::new(peer));
    let world = World {
        now,
        mesh: mesh(now),
        resources,
        observed: Observed::default(),
    };
    let plan = plan(&world);
    Some(Arc::new(Outcome { world, plan }))
}

type Writes = Arc<Mutex<Vec<Instant>>>;

/// An API that remembers when the status was written, and answers the writes that `refuses` names with
/// this code.
fn api(
    refusal: StatusCode,
    refuses: impl Fn(usize) -> bool + Clone + Send + Sync + 'static,
) -> (Client, Writes) {
    let writes = Writes::default();
    let seen = writes.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (seen, refuses) = (seen.clone(), refuses.clone());
        async move {
            assert_eq!(request.method(), Method::PUT);
            assert!(request.uri().path().ends_with("/green-mesh/status"));
            let count = {
                let mut seen = seen.lock().unwrap();
                seen.push(Instant::now());
                seen.len()
            };
            let (code, body) = if refuses(count) {
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                    "message": "it changed", "code": refusal.as_u16()});
                (refusal, status.to_string().into())
            } else {
                let body = request.into_body().collect_bytes().await.unwrap();
                (StatusCode::OK, body)
            };
            let mut response = Response::new(Full::new(body));
            *response.status_mut() = code;
            Ok::<_, Infallible>(response)
        }
    });
    (Client::new(service, "default"), writes)
}

/// Ten seconds in which every ten milliseconds something changes.
async fn churn(client: Client) {
    let (news, outcomes) = watch::channel(outcome(Timestamp::UNIX_EPOCH));
    let keeping = tokio::spawn(keep_statuses(client, outcomes));
    for n in 1..=1000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = Timestamp::from_millisecond(n * 10).unwrap();
        news.send_replace(outcome(now));
    }
    drop(news);
    keeping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_status_of_an_object_is_written_at_most_four_times_a_second_whatever_happens() {
    let cases: [fn(usize) -> bool; 3] = [|_| false, |count| count % 3 == 0, |_| true];
    for refuses in cases {
        let (client, writes) = api(StatusCode::CONFLICT, refuses);
        churn(client).await;
        let writes = writes.lock().unwrap();
        assert!(writes.len() > 30, "it is kept up to date: {writes:?}");
        for five in writes.windows(5) {
            let took = five[4] - five[0];
            assert!(took >= Duration::from_secs(1), "{took:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_status_of_an_object_that_is_gone_is_not_tried_again() {
    for (refusal, tries) in [(StatusCode::NOT_FOUND, 1), (StatusCode::FORBIDDEN, 8)] {
        let (client, writes) = api(refusal, |_| true);
        let (news, outcomes) = watch::channel(outcome(Timestamp::UNIX_EPOCH));
        let keeping = tokio::spawn(keep_statuses(client, outcomes));
        // Between two tries, of which one follows another after `STATUS_INTERVAL` and `RETRY`.
        tokio::time::sleep((STATUS_INTERVAL + RETRY) * 15 / 2).await;
        drop(news);
        keeping.await.unwrap();
        let writes = writes.lock().unwrap();
        assert_eq!(writes.len(), tries, "{refusal}: {writes:?}");
    }
}
