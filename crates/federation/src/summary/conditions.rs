//! What is wrong, from the conditions of all resources.

use meshfed_api::Condition;
use serde::Serialize;

use crate::plan::Plan;
use crate::world::{ObjectKey, World};

/// How bad it is. The worst is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Weight {
    /// Something does not work.
    Fault,
    /// Something will not work soon, or not as somebody may expect.
    Warning,
}

/// One thing that an administrator should look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    pub weight: Weight,
    /// Which object, as kubectl names it: `servicemeshpeer/green-mesh`, with `-n <namespace>` if it
    /// is not in the control plane's; or what else it is about.
    pub about: String,
    /// A word in CamelCase for machines.
    pub reason: String,
    /// What is wrong and what to do.
    pub message: String,
}

pub(crate) fn problems(world: &World, plan: &Plan) -> Vec<Problem> {
    let system = &world.mesh.system_namespace;
    let mut problems = Vec::new();
    if plan.control_plane.is_none() {
        problems.push(Problem {
            weight: Weight::Fault,
            about: format!("namespace/{system}"),
            reason: "NoControlPlane".to_owned(),
            message: "there is no ServiceMeshControlPlane that rules; create one".to_owned(),
        });
    }
    let statuses = &plan.statuses;
    macro_rules! note {
        ($($field:ident: $kind:literal),+ $(,)?) => {$(
            for (key, status) in &statuses.$field {
                problems.extend(of(system, $kind, key, &status.conditions));
            }
        )+};
    }
    note!(
        control_planes: "smcp",
        member_rolls: "servicemeshmemberroll",
        members: "servicemeshmember",
        peers: "servicemeshpeer",
        exports: "exportedserviceset",
        imports: "importedserviceset",
    );
    problems
}

fn of<'a>(
    system: &'a str,
    kind: &'a str,
    key: &'a ObjectKey,
    conditions: &'a [Condition],
) -> impl Iterator<Item = Problem> + 'a {
    let failed = conditions.iter().filter(|c| c.status == "False");
    failed.map(move |condition| Problem {
        weight: if condition.type_ == "Ready" {
            Weight::Fault
        } else {
            Weight::Warning
        },
        about: if key.namespace == system {
            format!("{kind}/{}", key.name)
        } else {
            format!("-n {} {kind}/{}", key.namespace, key.name)
        },
        reason: condition.reason.clone().unwrap_or_default(),
        message: condition.message.clone().unwrap_or_default(),
    })
}
