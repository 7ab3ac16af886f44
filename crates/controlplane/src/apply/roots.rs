//! Keeps our own root certificate in the ConfigMap `istio-ca-root-cert` of the system namespace and
//! of every member, for handing to peers.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use meshfed_api::{OWN_ROOT_CONFIG_MAP, ROOT_CERT_KEY};
use meshfed_federation::world::ObjectKey;

use super::{Done, failed, part_of_time, put};
use crate::hub::Outcome;

/// What [`apply`] goes by.
pub(super) fn inputs(outcome: &Outcome) -> impl PartialEq + use<> {
    let roots = outcome.world.observed.own_roots.clone();
    (roots, namespaces(outcome), part_of_time(outcome))
}

pub(super) async fn apply(client: &Client, outcome: &Outcome) -> Done {
    let roots = &outcome.world.observed.own_roots;
    if roots.is_empty() {
        return Done::Yes;
    }
    let mut done = Done::Yes;
    for namespace in namespaces(outcome) {
        done = done.and(ensure(client, &namespace, roots).await);
    }
    done
}

/// Nothing can be made in a namespace that is going.
fn is_alive(outcome: &Outcome, namespace: &str) -> bool {
    let key = ObjectKey::new("", namespace);
    let found = outcome.world.resources.namespaces.get(&key);
    found.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none())
}

/// Where the root belongs.
fn namespaces(outcome: &Outcome) -> BTreeSet<String> {
    let members = outcome.plan.members.iter().cloned();
    members
        .chain([outcome.world.mesh.system_namespace.clone()])
        .filter(|namespace| is_alive(outcome, namespace))
        .collect()
}

async fn ensure(client: &Client, namespace: &str, roots: &str) -> Done {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let wanted = BTreeMap::from([(ROOT_CERT_KEY.to_owned(), roots.to_owned())]);
    match api.get_opt(OWN_ROOT_CONFIG_MAP).await {
        Ok(Some(present)) if present.data.as_ref() == Some(&wanted) => Done::Yes,
        Ok(Some(_)) => {
            let patch = serde_json::json!({"data": wanted});
            let result = api
                .patch(
                    OWN_ROOT_CONFIG_MAP,
                    &PatchParams::default(),
                    &Patch::Merge(patch),
                )
                .await;
            match result {
                Ok(_) => Done::Yes,
                Err(error) => failed::<ConfigMap>("write", namespace, OWN_ROOT_CONFIG_MAP, &error),
            }
        }
        Ok(None) => {
            let config_map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(OWN_ROOT_CONFIG_MAP.to_owned()),
                    namespace: Some(namespace.to_owned()),
                    labels: Some(BTreeMap::from([(
                        "istio.io/config".to_owned(),
                        "true".to_owned(),
                    )])),
                    ..ObjectMeta::default()
                },
                data: Some(wanted),
                ..ConfigMap::default()
            };
            put(client, namespace, &config_map, false).await
        }
        Err(error) => failed::<ConfigMap>("read", namespace, OWN_ROOT_CONFIG_MAP, &error),
    }
}
