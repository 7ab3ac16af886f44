//! Puts our finalizer on what must not go before it is withdrawn, and takes it away then.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use meshfed_api::{ServiceMeshControlPlane, ServiceMeshPeer};
use meshfed_federation::plan::FINALIZER;
use meshfed_federation::world::{ObjectKey, Shared};
use serde::de::DeserializeOwned;
use tracing::info;

use super::{Done, failed};
use crate::hub::Outcome;

/// What [`apply`] goes by.
pub(super) fn inputs(outcome: &Outcome) -> impl PartialEq + use<> {
    let resources = &outcome.world.resources;
    let wanted = outcome.plan.withdrawal.finalizers.clone();
    let services = wanted.services.keys();
    let services: Vec<Option<Arc<Service>>> = services
        .map(|key| resources.services.get(key).cloned())
        .collect();
    let (peers, rulers) = (resources.peers.clone(), resources.control_planes.clone());
    (wanted, services, peers, rulers)
}

pub(super) async fn apply(client: &Client, outcome: &Outcome) -> Done {
    let wanted = &outcome.plan.withdrawal.finalizers;
    let present = &outcome.world.resources;
    let peers = each::<ServiceMeshPeer>(client, &wanted.peers, &present.peers).await;
    let services = each::<Service>(client, &wanted.services, &present.services).await;
    let meshes = &present.control_planes;
    let rulers = each::<ServiceMeshControlPlane>(client, &wanted.control_planes, meshes).await;
    peers.and(services).and(rulers)
}

async fn each<K>(
    client: &Client,
    wanted: &BTreeMap<ObjectKey, bool>,
    present: &Shared<ObjectKey, K>,
) -> Done
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let mut done = Done::Yes;
    for (key, held) in wanted {
        let Some(object) = present.get(key) else {
            continue;
        };
        let metadata = object.meta();
        let finalizers = metadata.finalizers.clone().unwrap_or_default();
        let is_held = finalizers.iter().any(|f| f == FINALIZER);
        // An object that is being deleted gains no finalizers.
        if is_held == *held || (*held && metadata.deletion_timestamp.is_some()) {
            continue;
        }
        let mut changed: Vec<&str> = finalizers.iter().map(String::as_str).collect();
        if *held {
            changed.push(FINALIZER);
        } else {
            changed.retain(|f| *f != FINALIZER);
        }
        let patch = serde_json::json!({"metadata": {
            "resourceVersion": metadata.resource_version,
            "finalizers": changed,
        }});
        let api: Api<K> = Api::namespaced(client.clone(), &key.namespace);
        let patch = Patch::Merge(patch);
        match api.patch(&key.name, &PatchParams::default(), &patch).await {
            Ok(_) if metadata.deletion_timestamp.is_some() => {
                info!(object = %key, "withdrawn, and free to go");
            }
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                done = failed::<K>("hold or release", &key.namespace, &key.name, &error);
            }
        }
    }
    done
}
