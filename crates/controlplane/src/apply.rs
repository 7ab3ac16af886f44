//! Makes the API what the plan says: each part follows the plan in a task of its own, compares
//! with what is there, and writes only differences.

mod endpoint_slices;
mod finalizers;
mod gateways;
mod roots;
mod statuses;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::warn;

pub use self::statuses::resign;
use crate::hub::Outcome;
use crate::subnet::Subnet;

/// After a failed write the difference is looked at again after this.
const RETRY: Duration = Duration::from_secs(1);
/// The status of an object is written at most this often: four times in a second.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);

/// Outcomes as they come.
pub type Outcomes = watch::Receiver<Option<Arc<Outcome>>>;

/// Starts all appliers.
pub fn start(client: &Client, subnet: Subnet, outcomes: &Outcomes, tasks: &mut JoinSet<()>) {
    let (c, o) = (client.clone(), outcomes.clone());
    tasks.spawn(follow(o, gateways::inputs, async move |outcome| {
        gateways::apply(&c, subnet, outcome).await
    }));
    let (c, o) = (client.clone(), outcomes.clone());
    tasks.spawn(follow(o, endpoint_slices::inputs, async move |outcome| {
        endpoint_slices::apply(&c, outcome).await
    }));
    let (c, o) = (client.clone(), outcomes.clone());
    tasks.spawn(follow(o, finalizers::inputs, async move |outcome| {
        finalizers::apply(&c, outcome).await
    }));
    let (c, o) = (client.clone(), outcomes.clone());
    tasks.spawn(follow(o, roots::inputs, async move |outcome| {
        roots::apply(&c, outcome).await
    }));
    tasks.spawn(keep_statuses(client.clone(), outcomes.clone()));
}

/// Writes the newest statuses, to each object at most once in [`STATUS_INTERVAL`].
fn keep_statuses(client: Client, outcomes: Outcomes) -> impl Future<Output = ()> + Send {
    follow(
        outcomes,
        |_| Always,
        async move |outcome| {
            let done = statuses::apply(&client, outcome).await;
            tokio::time::sleep(STATUS_INTERVAL).await;
            done
        },
    )
}

/// Calls `apply` with the newest outcome whenever its `inputs` are others than before; again after
/// [`RETRY`] when it says that something failed.
async fn follow<I: PartialEq>(
    mut outcomes: Outcomes,
    inputs: impl Fn(&Outcome) -> I,
    mut apply: impl AsyncFnMut(&Outcome) -> Done,
) {
    let mut applied: Option<I> = None;
    loop {
        let newest = outcomes.borrow_and_update().clone();
        let mut done = Done::Yes;
        if let Some(outcome) = &newest {
            let inputs = inputs(outcome);
            if applied.as_ref() != Some(&inputs) {
                done = apply(outcome).await;
                applied = Some(inputs).filter(|_| done == Done::Yes);
            }
        }
        let changed = outcomes.changed();
        let ended = match done {
            Done::Yes => changed.await.is_err(),
            Done::TryAgain => tokio::select! {
                ended = changed => ended.is_err(),
                () = tokio::time::sleep(RETRY) => false,
            },
        };
        if ended {
            return;
        }
    }
}

/// Inputs that are never the same.
struct Always;

impl PartialEq for Always {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}

/// What is not watched is looked at again in each of these parts of time, if anything happens.
fn part_of_time(outcome: &Outcome) -> i64 {
    outcome.world.now.as_second() / 30
}

/// Whether everything that should be written was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Yes,
    TryAgain,
}

impl Done {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::TryAgain,
        }
    }
}

/// Creates an object, or replaces the present one.
async fn put<K>(client: &Client, namespace: &str, object: &K, present: bool) -> Done
where
    K: Resource<Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let name = object.meta().name.clone().unwrap_or_default();
    let params = PostParams::default();
    let result = if present {
        api.replace(&name, &params, object).await
    } else {
        api.create(&params, object).await
    };
    match result {
        Ok(_) => Done::Yes,
        Err(error) => failed::<K>("write", namespace, &name, &error),
    }
}

/// Deletes an object; one that is not there is what was wanted.
async fn delete<K>(client: &Client, namespace: &str, name: &str) -> Done
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Done::Yes,
        Err(kube::Error::Api(status)) if status.code == 404 => Done::Yes,
        Err(error) => failed::<K>("delete", namespace, name, &error),
    }
}

/// What the API said, in its own words; kube-rs would repeat the whole Status.
pub fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// A conflict means that something newer is on its way to us, so only others are worth a line.
fn failed<K>(what: &str, namespace: &str, name: &str, error: &kube::Error) -> Done
where
    K: Resource,
    K::DynamicType: Default,
{
    if !matches!(error, kube::Error::Api(status) if status.code == 409) {
        let kind = K::kind(&K::DynamicType::default()).into_owned();
        let error = explain(error);
        warn!(
            kind,
            namespace, name, error, "cannot {what} an object, trying again"
        );
    }
    Done::TryAgain
}

#[cfg(test)]
mod tests;
