//! Writes the statuses that differ from those that are there.

use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use kube::api::PostParams;
use kube::core::object::HasStatus;
use kube::{Api, Client, Resource};
use meshfed_federation::world::{ObjectKey, Shared};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Done, failed};
use crate::hub::Outcome;

pub(super) async fn apply(client: &Client, outcome: &Outcome) -> Done {
    let present = &outcome.world.resources;
    let wanted = &outcome.plan.statuses;
    let mut done = Done::Yes;
    macro_rules! write_all {
        ($($field:ident),+) => {$(
            done = done.and(write(client, &present.$field, &wanted.$field).await);
        )+};
    }
    write_all!(
        control_planes,
        member_rolls,
        members,
        peers,
        exports,
        imports
    );
    done
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
            done = failed::<K>("write the status of", &key.namespace, &key.name, &error);
        }
    }
    done
}
