//! Writes the statuses that differ from those that are there.

use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use kube::api::PostParams;
use kube::core::object::HasStatus;
use kube::{Api, Client, Resource};
use meshfed_api::ServiceMeshPeer;
use meshfed_federation::plan::resigned;
use meshfed_federation::with_status;
use meshfed_federation::world::{ObjectKey, Shared};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{debug, warn};

use super::{Done, explain, failed};
use crate::hub::Outcome;

/// Others write too; each try is made on what is there then.
const RESIGNATIONS: usize = 5;

pub(super) async fn apply(client: &Client, outcome: &Outcome) -> Done {
    let present = &outcome.world.resources;
    let wanted = &outcome.plan.statuses;
    let mut done = Done::Yes;
    macro_rules! write_all {
        ($($field:ident),+) => {$(
            done = done.and(write(client, &present.$field, &wanted.$field).await);
        )+};
    }
    with_status!(write_all);
    done
}

/// An instance that stops leaves the statuses of peers to the others, so that none waits for it. What
/// fails is logged: it is forgotten after a time anyway.
pub async fn resign(client: &Client, outcome: &Outcome) {
    let suffix = &outcome.world.mesh.instance_suffix;
    for key in outcome.world.resources.peers.keys() {
        let api: Api<ServiceMeshPeer> = Api::namespaced(client.clone(), &key.namespace);
        for _ in 0..RESIGNATIONS {
            match resign_from(&api, &key.name, suffix).await {
                Ok(()) => break,
                // Another instance wrote its own.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => {
                    let error = explain(&error);
                    warn!(peer = %key, error, "cannot leave the status to other instances");
                    break;
                }
            }
        }
    }
}

async fn resign_from(
    api: &Api<ServiceMeshPeer>,
    name: &str,
    suffix: &str,
) -> Result<(), kube::Error> {
    let Some(mut peer) = api.get_opt(name).await? else {
        return Ok(());
    };
    let status = peer.status.as_mut();
    let left = status.and_then(|status| {
        status.discovery_status = resigned(&status.discovery_status, suffix)?;
        Some(())
    });
    if left.is_some() {
        let params = PostParams::default();
        api.replace_status(name, &params, &peer).await?;
    }
    Ok(())
}

async fn write<K>(
    client: &Client,
    present: &Shared<ObjectKey, K>,
    wanted: &BTreeMap<ObjectKey, K::Status>,
) -> Done
where
    K: Resource<Scope = NamespaceResourceScope>
        + HasStatus
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
    K::Status: Clone + PartialEq,
    K::DynamicType: Default,
{
    let mut done = Done::Yes;
    for (key, status) in wanted {
        let Some(object) = present.get(key) else {
            continue;
        };
        if object.status() == Some(status) {
            continue;
        }
        let mut object = K::clone(object);
        *object.status_mut() = Some(status.clone());
        let api: Api<K> = Api::namespaced(client.clone(), &key.namespace);
        if let Err(error) = api
            .replace_status(&key.name, &PostParams::default(), &object)
            .await
        {
            // That it is gone is on its way to us.
            if matches!(&error, kube::Error::Api(status) if status.code == 404) {
                debug!(
                    namespace = key.namespace,
                    name = key.name,
                    "gone before its status"
                );
                continue;
            }
            done = failed::<K>("write the status of", &key.namespace, &key.name, &error);
        }
    }
    done
}
