//! What callers and the administrator of one mesh notice of the other one.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{Patch, PatchParams};
use meshfed_api::ServiceMeshPeer;
use meshfed_api::peer::WatchStatus;
use meshfed_testkit::eventually;
use serde_json::json;

use crate::federation::{Federation, Mesh};
use crate::program::PATIENCE;

/// What a call came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Came {
    Answered,
    /// The caller's own sidecar knows that there is nobody, and sent nothing.
    NobodyThere,
    Failed(String),
}

/// Calls one after the other, without a pause, and what became of each.
#[derive(Default)]
pub struct Traffic(Mutex<Vec<(Instant, Came)>>);

impl Traffic {
    pub async fn run(&self, federation: &Federation, authority: &str) {
        loop {
            let came = match federation.call_to(authority).await {
                Ok(()) => Came::Answered,
                Err(answer)
                    if answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("no endpoint\n") =>
                {
                    Came::NobodyThere
                }
                Err(answer) => Came::Failed(answer),
            };
            self.0.lock().unwrap().push((Instant::now(), came));
        }
    }

    pub fn since(&self, since: Instant) -> Vec<(Instant, Came)> {
        let all = self.0.lock().unwrap();
        all.iter().filter(|(at, _)| *at > since).cloned().collect()
    }

    /// Waits for the first call that came to this after `since`.
    pub async fn first(&self, came: &Came, since: Instant) -> Instant {
        eventually(PATIENCE, async || {
            let all = self.since(since);
            let first = all.iter().find(|(_, c)| c == came);
            first.map(|(at, _)| *at).ok_or(all.last().cloned())
        })
        .await
    }

    /// Waits for this many more, and returns what all since then came to.
    pub async fn more(&self, count: usize, since: Instant) -> Vec<Came> {
        eventually(PATIENCE, async || {
            let all = self.since(since);
            match all.len() {
                enough if enough >= count => Ok(all.into_iter().map(|(_, c)| c).collect()),
                few => Err(few),
            }
        })
        .await
    }
}

/// Ratings of red-mesh has endpoints no more, or again.
pub async fn ratings_is_ready(red: &Mesh, ready: bool) {
    let services: Api<Service> = Api::namespaced(red.client.clone(), "red-mesh-bookinfo");
    let app = if ready { "ratings" } else { "nobody" };
    let patch = Patch::Merge(json!({"spec": {"selector": {"app": app}}}));
    let params = PatchParams::default();
    services.patch("ratings", &params, &patch).await.unwrap();
}

/// What green-mesh says of its watch of red-mesh.
async fn watch(green: &Mesh) -> Option<WatchStatus> {
    let peers: Api<ServiceMeshPeer> = Api::namespaced(green.client.clone(), &green.system());
    let status = peers.get_status("red-mesh").await.unwrap().status?;
    let discovery = status.discovery_status;
    let mut pods = discovery.active.into_iter().chain(discovery.inactive);
    pods.next().map(|pod| pod.watch)
}

/// Waits until the status says so; returns how long it took.
pub async fn says_connected(green: &Mesh, connected: bool, since: Instant) -> Duration {
    eventually(PATIENCE, async || match watch(green).await {
        Some(watch) if watch.connected == connected => Ok(since.elapsed()),
        other => Err(other),
    })
    .await
}
