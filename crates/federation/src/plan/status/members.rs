//! Statuses of ServiceMeshMemberRoll and ServiceMeshMember.

use std::collections::BTreeMap;

use meshfed_api::ServiceMeshMemberRoll;
use meshfed_api::member::{ServiceMeshMemberRollStatus, ServiceMeshMemberStatus};

use super::bounded::{bounded, named};
use super::condition::{READY, Verdict, conditions};
use crate::plan::membership::{MemberProblem, Membership};
use crate::world::{ObjectKey, World};

/// Namespaces that a message names; more are counted.
const MAX_NAMED: usize = 10;
/// A namespace stands in two lists, each time with about this beside its name.
const NAME_LEN: usize = 4;
/// Annotation behind the READY column.
const MEMBER_COUNT: &str = "configuredMemberCount";

pub(super) fn rolls(
    world: &World,
    membership: &Membership,
) -> BTreeMap<ObjectKey, ServiceMeshMemberRollStatus> {
    let judged = membership.rolls.iter();
    judged
        .filter_map(|(key, judged)| {
            let roll = world.resources.member_rolls.get(key)?;
            Some((key.clone(), roll_status(world, membership, roll, judged)))
        })
        .collect()
}

fn roll_status(
    world: &World,
    membership: &Membership,
    roll: &ServiceMeshMemberRoll,
    judged: &Result<(), MemberProblem>,
) -> ServiceMeshMemberRollStatus {
    let present = roll.status.as_ref().map(|s| s.conditions.as_slice());
    let length = |name: &String| 2 * (NAME_LEN + name.len());
    let asked = judged.is_ok().then_some(&membership.asked);
    let asked = asked.into_iter().flatten().cloned();
    let (listed, all_listed) = bounded(asked, length, "namespaces");
    let conditions = |ready| conditions(present, [ready, all_listed], &roll.metadata, world.now);
    if let Err(problem) = judged {
        return ServiceMeshMemberRollStatus {
            conditions: conditions(verdict_of(problem)),
            ..ServiceMeshMemberRollStatus::default()
        };
    }
    let is_there = |name: &&String| membership.namespaces.contains(*name);
    let missing: Vec<String> = membership
        .asked
        .iter()
        .filter(|name| !is_there(name))
        .cloned()
        .collect();
    let of = membership.asked.len();
    let count = format!("{}/{of}", of - missing.len());
    let names_ours = roll.spec.members.contains(&world.mesh.system_namespace);
    let ready = if names_ours {
        let message = format!(
            "{}: take {} out of spec.members; the others are members",
            MemberProblem::SystemNamespace,
            world.mesh.system_namespace
        );
        Verdict::fails(READY, "SystemNamespace", message)
    } else if let Some(obstacle) = &membership.obstacle {
        verdict_of(obstacle)
    } else if missing.is_empty() {
        Verdict::holds(READY, "Configured", "all namespaces are members")
    } else {
        let missing = named(missing, MAX_NAMED, ", ");
        let message = format!("waiting for these namespaces to be there: {missing}");
        Verdict::fails(READY, "NamespacesMissing", message)
    };
    let (configured, pending) = listed.iter().cloned().partition(|name| is_there(&name));
    ServiceMeshMemberRollStatus {
        annotations: BTreeMap::from([(MEMBER_COUNT.to_owned(), count)]),
        members: listed,
        configured_members: configured,
        pending_members: pending,
        conditions: conditions(ready),
    }
}

pub(super) fn members(
    world: &World,
    membership: &Membership,
) -> BTreeMap<ObjectKey, ServiceMeshMemberStatus> {
    let judged = membership.members.iter();
    judged
        .filter_map(|(key, judged)| {
            let member = world.resources.members.get(key)?;
            let present = member.status.as_ref().map(|s| s.conditions.as_slice());
            let verdict = match judged {
                Ok(()) => Verdict::holds(READY, "Configured", "the namespace is a member"),
                Err(problem) => verdict_of(problem),
            };
            let conditions = conditions(present, [verdict], &member.metadata, world.now);
            Some((key.clone(), ServiceMeshMemberStatus { conditions }))
        })
        .collect()
}

fn verdict_of(problem: &MemberProblem) -> Verdict {
    let reason = match problem {
        MemberProblem::RollOutsideSystemNamespace(_) => "NotInSystemNamespace",
        MemberProblem::RollName => "InvalidName",
        MemberProblem::OtherControlPlane(_) => "UnknownControlPlane",
        MemberProblem::SystemNamespace => "SystemNamespace",
        MemberProblem::NoControlPlane(_) => "NoControlPlane",
    };
    Verdict::fails(READY, reason, problem.to_string())
}
