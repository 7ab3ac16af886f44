//! Which namespaces belong to the mesh.

use std::collections::{BTreeMap, BTreeSet};

use meshfed_api::member::MEMBER_ROLL_NAME;

use crate::world::{ObjectKey, World};

/// Stands for every namespace in a ServiceMeshMemberRoll.
const EVERY: &str = "*";
/// Namespaces that `*` leaves out begin so: they belong to the cluster.
const CLUSTER_NAMESPACES: [&str; 2] = ["kube-", "openshift-"];
const CLUSTER_NAMESPACE: &str = "openshift";

/// Why a ServiceMeshMemberRoll or a ServiceMeshMember has no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberProblem {
    #[error("this mesh's control plane is in {0}; its ServiceMeshMemberRoll belongs there")]
    RollOutsideSystemNamespace(String),
    #[error("the ServiceMeshMemberRoll of a mesh is named default")]
    RollName,
    #[error("spec.controlPlaneRef names {0}, which is not the control plane of this mesh")]
    OtherControlPlane(ObjectKey),
    #[error("the namespace of the control plane cannot be a member")]
    SystemNamespace,
    /// With the namespace that lacks it.
    #[error(
        "there is no ServiceMeshControlPlane in {0}; create one, and the namespaces are members"
    )]
    NoControlPlane(String),
}

/// The members of the mesh, and what each resource has to say.
#[derive(Debug, Default)]
pub(super) struct Membership {
    /// Those that exist and are not going.
    pub namespaces: BTreeSet<String>,
    /// Why the namespaces that are there are no members nevertheless.
    pub obstacle: Option<MemberProblem>,
    /// All that are asked for, by roll or member.
    pub asked: BTreeSet<String>,
    pub rolls: BTreeMap<ObjectKey, Result<(), MemberProblem>>,
    pub members: BTreeMap<ObjectKey, Result<(), MemberProblem>>,
}

pub(super) fn membership(world: &World, control_plane: Option<&ObjectKey>) -> Membership {
    let system = &world.mesh.system_namespace;
    let existing: BTreeSet<&String> = world
        .resources
        .namespaces
        .iter()
        .filter(|(_, namespace)| namespace.metadata.deletion_timestamp.is_none())
        .map(|(key, _)| &key.name)
        .collect();
    let mut all = Membership::default();
    for (key, roll) in world.resources.member_rolls.iter() {
        let judged = if key.namespace != *system {
            Err(MemberProblem::RollOutsideSystemNamespace(system.clone()))
        } else if key.name != MEMBER_ROLL_NAME {
            Err(MemberProblem::RollName)
        } else {
            for member in &roll.spec.members {
                if member == EVERY {
                    let every = existing.iter().filter(|name| !is_of_the_cluster(name));
                    all.asked.extend(every.map(|name| (*name).clone()));
                } else {
                    all.asked.insert(member.clone());
                }
            }
            Ok(())
        };
        all.rolls.insert(key.clone(), judged);
    }
    for (key, member) in world.resources.members.iter() {
        let named = &member.spec.control_plane_ref;
        let named = ObjectKey::new(named.namespace.clone(), named.name.clone());
        let judged = if key.namespace == *system {
            Err(MemberProblem::SystemNamespace)
        } else if control_plane.is_none() && named.namespace == *system {
            Err(MemberProblem::NoControlPlane(system.clone()))
        } else if control_plane != Some(&named) {
            Err(MemberProblem::OtherControlPlane(named))
        } else {
            all.asked.insert(key.namespace.clone());
            Ok(())
        };
        all.members.insert(key.clone(), judged);
    }
    // What runs beside the control plane is never shared, whatever the roll says.
    all.asked.remove(system);
    if control_plane.is_some() {
        let there = all.asked.iter().filter(|name| existing.contains(name));
        all.namespaces = there.cloned().collect();
    } else {
        all.obstacle = Some(MemberProblem::NoControlPlane(system.clone()));
    }
    all
}

fn is_of_the_cluster(namespace: &str) -> bool {
    namespace == CLUSTER_NAMESPACE
        || CLUSTER_NAMESPACES
            .iter()
            .any(|prefix| namespace.starts_with(prefix))
}
