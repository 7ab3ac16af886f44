//! A connected sidecar is its workload's registration: while it is connected it has a Pod.

mod holds;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStatus, Pod, PodCondition, PodIP,
    PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use meshfed_federation::plan::{has_others, is_heard};
use meshfed_federation::world::{
    APP_ANNOTATION, OUTBOUND_ANNOTATION, ObjectKey, TLS_MODE_ISTIO, TLS_MODE_LABEL,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use self::holds::{Deed, HOLDER_ANNOTATION, Holder, Holds};
use crate::ads::{AuthenticatedNode, ConnectionId, NodeSet};
use crate::apply::{Outcomes, explain};
use crate::hub::Outcome;

/// Label of the Pods that are kept here.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const MANAGER: &str = "meshfed-registration";
/// The one container of a Pod here: the workload, wherever it runs.
const CONTAINER: &str = "workload";
/// After a failed write the difference is looked at again after this.
const RETRY: Duration = Duration::from_millis(500);
/// We look at the clock this often; when it has gone on by so much more, we have stood still.
const TICK: Duration = Duration::from_secs(1);
const STANDSTILL: Duration = Duration::from_secs(5);
/// Metadata of our sidecars beyond Istio's: where they listen for the workload, and where the
/// workload listens (`ip:port`).
pub const OUTBOUND_KEY: &str = "MESHFED_OUTBOUND";
pub const APP_KEY: &str = "MESHFED_APP";

/// Keeps the Pods until the nodes' sender goes.
pub async fn run(client: Client, mut nodes: watch::Receiver<NodeSet>, mut outcomes: Outcomes) {
    let started = Instant::now();
    let mut holds = Holds::new(started);
    let (beats, pulse) = watch::channel(Beat {
        last: started,
        stood_still: None,
    });
    // Ends with the receiver.
    tokio::spawn(beat(beats));
    let mut known = None;
    loop {
        let (now, beat) = (Instant::now(), *pulse.borrow());
        // Whoever of the two is woken first.
        if beat.is_late(now) || beat.stood_still != known {
            warn!("nothing was done here for a while; workloads have time to come back");
            holds.stood_still(now);
            known = beat.stood_still;
        }
        let connected = nodes.borrow_and_update().clone();
        let newest = outcomes.borrow_and_update().clone();
        let again = match newest {
            Some(outcome) => register(&client, &mut holds, &connected, &outcome).await,
            None => None,
        };
        tokio::select! {
            changed = nodes.changed() => if changed.is_err() { return },
            changed = outcomes.changed() => if changed.is_err() { return },
            () = sleep_until(again) => {}
        }
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// When the clock was looked at last, and when it was found to have gone on without us.
#[derive(Debug, Clone, Copy)]
struct Beat {
    last: Instant,
    stood_still: Option<Instant>,
}

impl Beat {
    fn is_late(&self, now: Instant) -> bool {
        now >= self.last + TICK + STANDSTILL
    }
}

/// Beside all work, so that what takes long is not taken for a standstill.
async fn beat(beats: watch::Sender<Beat>) {
    while !beats.is_closed() {
        tokio::time::sleep(TICK).await;
        let now = Instant::now();
        beats.send_modify(|beat| {
            if beat.is_late(now) {
                beat.stood_still = Some(now);
            }
            beat.last = now;
        });
    }
}

/// Brings the Pods to what is connected now. Returns when to look again, though nothing changes.
async fn register(
    client: &Client,
    holds: &mut Holds,
    connected: &NodeSet,
    outcome: &Outcome,
) -> Option<Instant> {
    let (world, now) = (&outcome.world, Instant::now());
    let (present, suffix) = (&world.resources.pods, &world.mesh.instance_suffix);
    let wanted = wanted_pods(connected, &outcome.plan.members, suffix);
    let (mut failed, mut yielded) = (false, BTreeSet::new());
    for (key, (connection, pod)) in &wanted {
        let old = present.get(key).map(AsRef::as_ref);
        let holder = old.map_or(Holder::Nobody, |old| Holder::of(old, suffix));
        if !holds.may_write(key, *connection, &holder) {
            yielded.insert(key);
            continue;
        }
        match ensure(client, key, pod, old).await {
            Ok(()) => holds.wrote(key, *connection),
            Err(error) => failed |= report(key, &error),
        }
    }
    let mut again = None;
    let mut heard = BTreeMap::new();
    for (key, pod) in present.iter() {
        if !is_ours(pod) || wanted.contains_key(key) && !yielded.contains(key) {
            continue;
        }
        let is_alive = |other: &str| {
            *heard
                .entry(other.to_owned())
                .or_insert_with(|| is_heard(&world.resources, other, Timestamp::now()))
        };
        let done = match holds.judge(key, Holder::of(pod, suffix), now, is_alive) {
            Deed::Wait(until) => {
                again = Some(again.map_or(until, |again: Instant| again.min(until)));
                continue;
            }
            Deed::StrikeOut => {
                info!(pod = %key, "nothing is heard of the instance that holds it");
                let done = strike_out(client, key, pod).await;
                if done.is_ok() {
                    holds.struck_out(key, now);
                }
                done
            }
            Deed::Delete => {
                info!(pod = %key, "the workload has left the mesh");
                delete(client, key, pod).await
            }
        };
        if let Err(error) = done {
            failed |= report(key, &error);
        }
    }
    holds.keep(|key| wanted.contains_key(key) || present.contains_key(key));
    if failed { Some(now + RETRY) } else { again }
}

/// An instance that stops leaves its Pods to the others, if there are any. What fails is logged: they
/// find out after a time.
pub async fn resign(client: &Client, outcome: &Outcome) {
    let (resources, suffix) = (
        &outcome.world.resources,
        &outcome.world.mesh.instance_suffix,
    );
    if !has_others(resources, suffix, Timestamp::now()) {
        return;
    }
    for (key, pod) in resources.pods.iter() {
        if !is_ours(pod) || Holder::of(pod, suffix) != Holder::Us {
            continue;
        }
        if let Err(error) = strike_out(client, key, pod).await {
            report(key, &error);
        }
    }
}

/// The newest connection of a name counts; one without a usable address or name has no Pod.
fn wanted_pods(
    nodes: &NodeSet,
    members: &BTreeSet<String>,
    suffix: &str,
) -> BTreeMap<ObjectKey, (ConnectionId, Pod)> {
    let mut pods: BTreeMap<ObjectKey, (ConnectionId, Pod)> = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for node in nodes.values() {
        let (Some(name), Some(ip)) = (&node.name, node.addresses.first()) else {
            continue;
        };
        if !members.contains(node.namespace()) {
            continue;
        }
        let key = ObjectKey::new(node.namespace(), name.clone());
        // Nodes come in the order in which they connected. Whoever has an address keeps it, so that
        // no workload can push another one out.
        let holder = addresses.entry(*ip).or_insert_with(|| key.clone());
        if *holder != key {
            warn!(address = %ip, pod = %key, %holder, "this address is another workload's");
            continue;
        }
        let pod = pod(node, name, suffix);
        // A second connection of a name is its next one, unless it is of somebody else.
        let account = |pod: &Pod| pod.spec.as_ref()?.service_account_name.clone();
        match pods.entry(key) {
            Entry::Occupied(held) if account(&held.get().1) != account(&pod) => {
                warn!(pod = %held.key(), id = %node.identity, "this name is another workload's");
            }
            Entry::Occupied(mut held) => {
                held.insert((node.connection, pod));
            }
            Entry::Vacant(free) => {
                free.insert((node.connection, pod));
            }
        }
    }
    pods
}

fn pod(node: &AuthenticatedNode, name: &str, holder: &str) -> Pod {
    let ip = node.addresses.first().map(ToString::to_string);
    let ready = node.ready.unwrap_or(true);
    let mut labels = node.labels.clone();
    labels.insert(TLS_MODE_LABEL.to_owned(), TLS_MODE_ISTIO.to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let annotations = [
        (OUTBOUND_KEY, OUTBOUND_ANNOTATION),
        (APP_KEY, APP_ANNOTATION),
    ];
    let annotations = annotations
        .iter()
        .filter_map(|(key, annotation)| {
            let address = node.metadata.get(*key)?.as_str()?;
            // Only what is an address may get into the plan.
            let address: SocketAddr = address.parse().ok()?;
            Some(((*annotation).to_owned(), address.to_string()))
        })
        .chain([(HOLDER_ANNOTATION.to_owned(), holder.to_owned())])
        .collect();
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(node.namespace().to_owned()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            service_account_name: Some(node.service_account().to_owned()),
            containers: vec![Container {
                name: CONTAINER.to_owned(),
                image: Some(CONTAINER.to_owned()),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Running".to_owned()),
            pod_ip: ip.clone(),
            pod_ips: ip.map(|ip| vec![PodIP { ip }]),
            container_statuses: Some(vec![ContainerStatus {
                name: CONTAINER.to_owned(),
                ready,
                started: Some(true),
                state: Some(ContainerState {
                    running: Some(ContainerStateRunning::default()),
                    ..ContainerState::default()
                }),
                ..ContainerStatus::default()
            }]),
            conditions: Some(vec![PodCondition {
                type_: "Ready".to_owned(),
                status: if ready { "True" } else { "False" }.to_owned(),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }),
    }
}

fn is_ours(pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|l| l.get(MANAGED_BY)).map(String::as_str) == Some(MANAGER)
}

async fn ensure(
    client: &Client,
    key: &ObjectKey,
    wanted: &Pod,
    present: Option<&Pod>,
) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let params = PostParams::default();
    let current = match present {
        None => api.create(&params, wanted).await?,
        Some(present) if !is_ours(present) => return Ok(()),
        Some(present)
            if present.metadata.labels == wanted.metadata.labels
                && present.metadata.annotations == wanted.metadata.annotations =>
        {
            present.clone()
        }
        Some(present) => {
            let mut pod = present.clone();
            pod.metadata.labels = wanted.metadata.labels.clone();
            pod.metadata.annotations = wanted.metadata.annotations.clone();
            api.replace(&key.name, &params, &pod).await?
        }
    };
    if same_status(current.status.as_ref(), wanted.status.as_ref()) {
        return Ok(());
    }
    let mut pod = current;
    pod.status = wanted.status.clone();
    api.replace_status(&key.name, &params, &pod).await?;
    Ok(())
}

fn same_status(present: Option<&PodStatus>, wanted: Option<&PodStatus>) -> bool {
    let view = |status: Option<&PodStatus>| {
        status.map(|s| {
            let ready = s.conditions.iter().flatten().find(|c| c.type_ == "Ready");
            (
                s.pod_ip.clone(),
                s.phase.clone(),
                ready.map(|c| c.status.clone()),
            )
        })
    };
    view(present) == view(wanted)
}

/// Nobody holds the Pod any more, unless it is another one by now.
async fn strike_out(client: &Client, key: &ObjectKey, pod: &Pod) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let mut pod = pod.clone();
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove(HOLDER_ANNOTATION);
    }
    api.replace(&key.name, &PostParams::default(), &pod).await?;
    Ok(())
}

/// Deletes the Pod that was judged: if another instance has taken it meanwhile, it stays.
async fn delete(client: &Client, key: &ObjectKey, pod: &Pod) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let mut params = DeleteParams::default().grace_period(0);
    params.preconditions = Some(Preconditions {
        resource_version: pod.metadata.resource_version.clone(),
        uid: pod.metadata.uid.clone(),
    });
    match api.delete(&key.name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Conflicts are normal: something newer is on its way to us. True: look again soon, which does not
/// help where the API finds fault with what the workload says of itself.
fn report(key: &ObjectKey, error: &kube::Error) -> bool {
    if !matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409)) {
        let error = explain(error);
        warn!(pod = %key, error, "cannot register a workload, trying again");
    }
    !matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 422))
}

#[cfg(test)]
mod tests;
