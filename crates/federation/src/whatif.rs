//! What would be shared if some objects were others, with nothing touched.

mod show;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::difference::{Difference, Sharing};
use crate::discovery::server::SourceStatus;
use crate::plan::gateways::is_ours;
use crate::plan::{Plan, plan};
use crate::summary::{Problem, problems};
use crate::world::{GatewayState, ObjectKey, PeerState, Shared, World};

/// What a change of objects would do.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WhatIf {
    #[serde(flatten)]
    pub difference: Difference,
    /// Faults and warnings that would appear.
    pub new_problems: Vec<Problem>,
    /// Faults and warnings that would go.
    pub solved_problems: Vec<Problem>,
    /// What cannot be told.
    pub unknown: Vec<String>,
}

impl WhatIf {
    /// Whether somebody should look before going on: something changes in what is shared, something
    /// breaks, or it cannot be told. What is only mended is no reason.
    pub fn is_notable(&self) -> bool {
        !(self.difference.is_empty() && self.new_problems.is_empty() && self.unknown.is_empty())
    }
}

/// A world in which objects are changed, not applied.
#[derive(Debug, Clone)]
pub struct Hypothesis {
    before: World,
    after: World,
}

/// Group and kind of an object, as far as sharing depends on it.
macro_rules! kinds {
    ($($group:literal $kind:literal => $field:ident),+ $(,)?) => {
        /// The object as it is, where it is known.
        pub fn live(&self, group: &str, kind: &str, key: &ObjectKey) -> Option<Value> {
            let resources = &self.after.resources;
            match (group, kind) {
                $(($group, $kind) => to_value(&resources.$field, key),)+
                _ => None,
            }
        }

        /// Puts an object in the place of the one of its name. False if nothing that is shared depends
        /// on such a one: see [`Self::depends_on`].
        ///
        /// # Errors
        ///
        /// It is not of its kind's form.
        pub fn put(
            &mut self,
            group: &str,
            kind: &str,
            key: ObjectKey,
            mut object: Value,
        ) -> Result<bool, serde_json::Error> {
            if !self.depends_on(group, kind, &key) {
                return Ok(false);
            }
            let created = &mut object["metadata"]["creationTimestamp"];
            if created.is_null() {
                *created = self.after.now.to_string().into();
            }
            let resources = &mut self.after.resources;
            match (group, kind) {
                $(($group, $kind) => put(&mut resources.$field, key, object)?,)+
                _ => return Ok(false),
            }
            Ok(true)
        }

        /// Whether sharing depends on objects of this kind, in this place.
        pub fn depends_on(&self, group: &str, kind: &str, key: &ObjectKey) -> bool {
            match (group, kind) {
                ("", "ConfigMap") if key.namespace != self.after.mesh.system_namespace => false,
                $(($group, $kind) => true,)+
                _ => false,
            }
        }

        /// Takes an object away, and what is in it if it is a namespace. False if there is none.
        pub fn remove(&mut self, group: &str, kind: &str, key: &ObjectKey) -> bool {
            let resources = &mut self.after.resources;
            if (group, kind) == ("", "Namespace") {
                $(drop_where(&mut resources.$field, |inner| inner.namespace == key.name);)+
            }
            match (group, kind) {
                $(($group, $kind) => drop_where(&mut resources.$field, |at| at == key),)+
                _ => false,
            }
        }
    };
}

impl Hypothesis {
    pub fn new(world: &World) -> Self {
        Self {
            before: world.clone(),
            after: world.clone(),
        }
    }

    kinds! {
        "" "Namespace" => namespaces,
        "" "Service" => services,
        "" "Pod" => pods,
        "" "ConfigMap" => config_maps,
        "discovery.k8s.io" "EndpointSlice" => endpoint_slices,
        "maistra.io" "ServiceMeshControlPlane" => control_planes,
        "maistra.io" "ServiceMeshMemberRoll" => member_rolls,
        "maistra.io" "ServiceMeshMember" => members,
        "federation.maistra.io" "ServiceMeshPeer" => peers,
        "federation.maistra.io" "ExportedServiceSet" => exports,
        "federation.maistra.io" "ImportedServiceSet" => imports,
    }

    /// Whether something new can be made there: its namespace exists, and stays.
    pub fn has_home(&self, key: &ObjectKey) -> bool {
        let namespaces = &self.after.resources.namespaces;
        let home = || namespaces.get(&ObjectKey::new("", key.namespace.as_str()));
        key.namespace.is_empty()
            || home().is_some_and(|home| home.metadata.deletion_timestamp.is_none())
    }

    /// What the changes do once everything that they ask for is there: gateways that they add are
    /// taken to run, and peers to be connected.
    pub fn judge(mut self) -> WhatIf {
        let unheard = self.unheard();
        let (plan_before, plan_after) = (settle(&mut self.before), settle(&mut self.after));
        let before = Sharing::of(&self.before, &plan_before);
        let after = Sharing::of(&self.after, &plan_after);
        let was = problems(&self.before, &plan_before);
        let is = problems(&self.after, &plan_after);
        let beyond = |more: &[Problem], less: &[Problem]| {
            let beyond = more.iter().filter(|problem| !less.contains(problem));
            beyond.cloned().collect()
        };
        WhatIf {
            difference: after.since(&before),
            new_problems: beyond(&is, &was),
            solved_problems: beyond(&was, &is),
            unknown: unheard
                .iter()
                .filter(|peer| plan_after.discovery.contains_key(peer.as_str()))
                .map(|peer| {
                    format!(
                        "{peer} was not heard yet, so what would be imported from it is not known"
                    )
                })
                .collect(),
        }
    }

    /// Peers that nothing was ever heard of, though something would be imported.
    fn unheard(&self) -> Vec<String> {
        let world = &self.after;
        let sets = world.resources.imports.keys();
        sets.filter(|key| key.namespace == world.mesh.system_namespace)
            .map(|key| key.name.clone())
            .filter(|peer| {
                let state = world.observed.peers.get(peer);
                state.is_none_or(|state| state.remote.last_full_sync.is_none())
            })
            .collect()
    }
}

/// Lets the gateways that are wanted run, those that are not wanted be gone, and every peer be
/// connected. Differences are then those of the changes, not of what is still on its way.
fn settle(world: &mut World) -> Plan {
    let wanted = plan(world);
    let stays = |name: &String| wanted.gateways.get(name).is_some_and(|g| !g.going);
    let system = world.mesh.system_namespace.clone();
    let services = &mut world.resources.services;
    let is_left = |key: &ObjectKey, service: &Service| {
        key.namespace != system || !is_ours(service) || stays(&key.name)
    };
    let going = services
        .iter()
        .filter(|(key, service)| !is_left(key, service));
    let going: Vec<ObjectKey> = going.map(|(key, _)| key.clone()).collect();
    for key in going {
        services.remove(&key);
    }
    for (name, gateway) in wanted.gateways.iter().filter(|(_, gateway)| !gateway.going) {
        let key = ObjectKey::new(system.clone(), name.clone());
        if !services.contains_key(&key) {
            let mut service = gateway.service.clone();
            if let Some(spec) = &mut service.spec {
                spec.cluster_ip = Some(PLACEHOLDER.to_string());
            }
            services.insert(key, Arc::new(service));
        }
        let state = GatewayState {
            ready: true,
            refused: None,
        };
        world.observed.insert_gateway(name.clone(), state);
    }
    let now = world.now;
    let peers: Vec<String> = world
        .resources
        .peers
        .keys()
        .map(|key| key.name.clone())
        .collect();
    for name in peers {
        let known = world.observed.peers.get(&name);
        let mut state = known
            .map(|state| PeerState::clone(state))
            .unwrap_or_default();
        let remote = Arc::make_mut(&mut state.remote);
        remote.watch.connected = true;
        remote.watch.last_connected = Some(now);
        remote.last_contact = Some(now);
        remote.last_full_sync.get_or_insert(now);
        if !state.watchers.iter().any(|watcher| watcher.connected) {
            state.watchers.push(SourceStatus {
                source: String::new(),
                connected: true,
                last_connected: Some(now),
                last_disconnect: None,
                last_event: None,
                last_full_sync: Some(now),
                report: None,
            });
        }
        world.observed.insert_peer(name, state);
    }
    plan(world)
}

/// Stands for an address that is not allocated yet; one of those for documentation.
const PLACEHOLDER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn to_value<K: Serialize>(all: &Shared<ObjectKey, K>, key: &ObjectKey) -> Option<Value> {
    serde_json::to_value(&**all.get(key)?).ok()
}

fn put<K: DeserializeOwned + Clone>(
    all: &mut Shared<ObjectKey, K>,
    key: ObjectKey,
    object: Value,
) -> Result<(), serde_json::Error> {
    let object = serde_json::from_value(object)?;
    all.insert(key, Arc::new(object));
    Ok(())
}

/// True if that took anything away.
fn drop_where<K>(all: &mut Shared<ObjectKey, K>, goes: impl Fn(&ObjectKey) -> bool) -> bool {
    let going: Vec<ObjectKey> = all.keys().filter(|key| goes(key)).cloned().collect();
    for key in &going {
        all.remove(key);
    }
    !going.is_empty()
}
