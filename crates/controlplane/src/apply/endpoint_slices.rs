//! Keeps the EndpointSlices of Services with a selector.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use meshfed_federation::world::ObjectKey;

use super::{Done, delete, put};
use crate::endpoints::{MANAGED_BY, MANAGER, desired};
use crate::hub::Outcome;

/// What [`apply`] goes by.
pub(super) fn inputs(outcome: &Outcome) -> impl PartialEq + use<> {
    let resources = &outcome.world.resources;
    let (services, pods) = (resources.services.clone(), resources.pods.clone());
    (services, pods, resources.endpoint_slices.clone())
}

pub(super) async fn apply(client: &Client, outcome: &Outcome) -> Done {
    let resources = &outcome.world.resources;
    let mut pods: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for (key, pod) in resources.pods.iter() {
        pods.entry(&key.namespace).or_default().push(pod);
    }
    let wanted: BTreeMap<ObjectKey, EndpointSlice> = resources
        .services
        .iter()
        .filter(|(_, service)| service.metadata.deletion_timestamp.is_none())
        .filter_map(|(key, service)| {
            let pods = pods.get(key.namespace.as_str()).into_iter().flatten();
            let slice = desired(service, pods.copied())?;
            let name = slice.metadata.name.clone()?;
            Some((ObjectKey::new(key.namespace.clone(), name), slice))
        })
        .collect();
    let mut done = Done::Yes;
    for (key, slice) in &wanted {
        let present = resources.endpoint_slices.get(key);
        // One of this name that somebody else keeps stays as it is.
        if present.is_some_and(|present| is_same(present, slice) || !is_ours(present)) {
            continue;
        }
        let mut slice = slice.clone();
        slice.metadata.resource_version = present.and_then(|p| p.metadata.resource_version.clone());
        done = done.and(put(client, &key.namespace, &slice, present.is_some()).await);
    }
    for (key, slice) in resources.endpoint_slices.iter() {
        if is_ours(slice) && !wanted.contains_key(key) {
            done = done.and(delete::<EndpointSlice>(client, &key.namespace, &key.name).await);
        }
    }
    done
}

fn is_ours(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels.and_then(|l| l.get(MANAGED_BY)).map(String::as_str) == Some(MANAGER)
}

fn is_same(present: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    present.endpoints == wanted.endpoints
        && present.ports == wanted.ports
        && present.metadata.labels == wanted.metadata.labels
        && present.metadata.owner_references == wanted.metadata.owner_references
}
