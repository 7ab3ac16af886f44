use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use http_body_util::Full;
use kube::client::Body;
use meshfed_federation::plan::plan;
use meshfed_federation::world::{Observed, Resources, World};

use super::*;
use crate::ads::Nodes;
use crate::test_world::mesh;

const SUFFIX: &str = "0";

/// An API that notes what is deleted, and answers every request with this Pod.
fn api(pod: &Pod) -> (Client, Arc<Mutex<Vec<Instant>>>) {
    let deleted = Arc::<Mutex<Vec<Instant>>>::default();
    let (noted, pod) = (deleted.clone(), serde_json::to_vec(pod).unwrap());
    let service = tower::service_fn(move |request: Request<Body>| {
        if request.method() == Method::DELETE {
            noted.lock().unwrap().push(Instant::now());
        }
        let response = Response::new(Full::new(bytes::Bytes::from(pod.clone())));
        async move { Ok::<_, Infallible>(response) }
    });
    (Client::new(service, "default"), deleted)
}

fn ratings() -> AuthenticatedNode {
    AuthenticatedNode {
        connection: Nodes::new().next_id(),
        identity: "spiffe://cluster.local/ns/bookinfo/sa/ratings"
            .parse()
            .unwrap(),
        peer: ([127, 0, 0, 1], 40000).into(),
        id: "sidecar~127.0.0.1~ratings-1".to_owned(),
        cluster: String::new(),
        name: Some("ratings-1".to_owned()),
        labels: BTreeMap::new(),
        addresses: vec![[127, 0, 0, 1].into()],
        ready: Some(true),
        metadata: serde_json::Map::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn workloads_that_are_lost_while_we_stand_still_have_time_to_come_back() {
    for stands_still in [false, true] {
        let nodes = watch::Sender::new(NodeSet::default());
        let node = ratings();
        nodes.send_modify(|set| {
            Arc::make_mut(set).insert(node.connection, Arc::new(node.clone()));
        });
        let pod = pod(&node, "ratings-1", SUFFIX);
        let key = ObjectKey::new("bookinfo", "ratings-1");
        let mut resources = Resources::default();
        resources.pods.insert(key, Arc::new(pod.clone()));
        let world = World {
            now: Timestamp::UNIX_EPOCH,
            mesh: mesh(Timestamp::UNIX_EPOCH),
            resources,
            observed: Observed::default(),
        };
        let mut plan = plan(&world);
        plan.members.insert("bookinfo".to_owned());
        let (_outcomes, newest) = watch::channel(Some(Arc::new(Outcome { world, plan })));
        let (client, deleted) = api(&pod);
        tokio::spawn(run(client, nodes.subscribe(), newest));
        tokio::time::sleep(Duration::from_secs(100)).await;
        if stands_still {
            // Whoever waits for a time in between is woken after all of it.
            tokio::time::advance(Duration::from_secs(45)).await;
        }
        let lost = Instant::now();
        nodes.send_replace(NodeSet::default());
        tokio::time::sleep(Duration::from_secs(20)).await;
        let took = deleted.lock().unwrap().first().map(|at| *at - lost);
        assert_eq!(took.is_none(), stands_still, "{took:?}");
        assert!(
            took.unwrap_or_default() < Duration::from_secs(1),
            "{took:?}"
        );
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(!deleted.lock().unwrap().is_empty());
    }
}
