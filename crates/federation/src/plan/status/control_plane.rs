//! Status of ServiceMeshControlPlane.

use std::collections::{BTreeMap, BTreeSet};

use meshfed_api::ServiceMeshControlPlane;
use meshfed_api::control_plane::{
    AppliedCluster, AppliedSpec, Components, DEFAULT_PROFILE, DEFAULT_VERSION, Gateway, Readiness,
    ServiceMeshControlPlaneStatus,
};

use super::Decided;
use super::condition::{READY, Verdict, conditions};
use crate::plan::control_plane::{ControlPlaneProblem, GatewayView};
use crate::world::{ObjectKey, Refusals};

/// Annotation behind the READY column.
const READY_COUNT: &str = "readyComponentCount";
/// The parts of the control plane itself.
const CERTIFICATE_AUTHORITY: &str = "certificate-authority";
const ISTIOD: &str = "istiod";

pub(super) fn statuses(
    decided: &Decided<'_, '_>,
) -> BTreeMap<ObjectKey, ServiceMeshControlPlaneStatus> {
    let all = decided.world.resources.control_planes.iter();
    all.map(|(key, smcp)| (key.clone(), status(decided, key, smcp)))
        .collect()
}

fn status(
    decided: &Decided<'_, '_>,
    key: &ObjectKey,
    smcp: &ServiceMeshControlPlane,
) -> ServiceMeshControlPlaneStatus {
    let rules = decided.ruling.object.is_some_and(|(ours, _)| ours == key);
    let problem = decided.ruling.problems.get(key);
    let components = if rules {
        components(decided)
    } else {
        Components::default()
    };
    let ready = components.ready.len();
    let total = ready + components.pending.len() + components.unready.len();
    let spec = &smcp.spec;
    let present = smcp.status.as_ref().map(|s| s.conditions.as_slice());
    // Those that join are the ruling one's.
    let none = Refusals::default();
    let refusals = match rules {
        true => &*decided.world.observed.refusals,
        false => &none,
    };
    let verdicts = [
        ready_verdict(decided, &components, problem),
        acted_on_verdict(smcp),
        networks_verdict(decided, smcp),
        sidecars_verdict(refusals),
    ];
    ServiceMeshControlPlaneStatus {
        annotations: BTreeMap::from([(READY_COUNT.to_owned(), format!("{ready}/{total}"))]),
        conditions: conditions(present, verdicts, &smcp.metadata, decided.world.now),
        readiness: Readiness { components },
        chart_version: spec.product_version().unwrap_or_default().to_owned(),
        observed_generation: smcp.metadata.generation,
        applied_spec: AppliedSpec {
            profiles: match &spec.profiles {
                Some(profiles) if !profiles.is_empty() => profiles.clone(),
                _ => vec![DEFAULT_PROFILE.to_owned()],
            },
            version: spec
                .version
                .clone()
                .unwrap_or_else(|| DEFAULT_VERSION.to_owned()),
            cluster: spec
                .cluster
                .as_ref()
                .map_or_else(AppliedCluster::default, |cluster| AppliedCluster {
                    name: cluster.name.clone().unwrap_or_default(),
                    network: cluster.network.clone().unwrap_or_default(),
                }),
        },
    }
}

fn components(decided: &Decided<'_, '_>) -> Components {
    let mut all = Components::default();
    let has_roots = !decided.world.observed.own_roots.is_empty();
    let authority = if has_roots {
        &mut all.ready
    } else {
        &mut all.pending
    };
    authority.push(CERTIFICATE_AUTHORITY.to_owned());
    all.ready.push(ISTIOD.to_owned());
    for (name, view) in &decided.ruling.gateways {
        let state = if view.problem().is_some() || view.refused.is_some() {
            &mut all.unready
        } else if view.ready && !view.addresses.is_empty() {
            &mut all.ready
        } else {
            &mut all.pending
        };
        state.push(name.clone());
    }
    all
}

fn ready_verdict(
    decided: &Decided<'_, '_>,
    components: &Components,
    problem: Option<&ControlPlaneProblem>,
) -> Verdict {
    if let Some(problem) = problem {
        let reason = match problem {
            ControlPlaneProblem::OutsideSystemNamespace(_) => "NotInSystemNamespace",
            ControlPlaneProblem::NotTheOldest(_) => "NotTheOldest",
            ControlPlaneProblem::Deleting => "Deleting",
            ControlPlaneProblem::TrustDomain(_) => "InvalidTrustDomain",
            ControlPlaneProblem::Version(_) => "UnsupportedVersion",
        };
        return Verdict::fails(READY, reason, problem.to_string());
    }
    let why = |(name, view): (&String, &GatewayView)| match (view.problem(), &view.refused) {
        (Some(problem), _) if view.plan.is_ok() => Some(format!(
            "the gateway {name} stays as it was, as it cannot be made so: {problem}"
        )),
        (Some(problem), _) => Some(format!("the gateway {name} cannot be made: {problem}")),
        (_, Some(refused)) => Some(format!(
            "the gateway {name} refuses its configuration: {refused}"
        )),
        _ => None,
    };
    let broken: Vec<String> = decided.ruling.gateways.iter().filter_map(why).collect();
    if !broken.is_empty() {
        return Verdict::fails(READY, "ComponentsNotReady", broken.join("; "));
    }
    if !components.pending.is_empty() {
        let waiting: Vec<String> = components
            .pending
            .iter()
            .map(|name| {
                let view = decided.ruling.gateways.get(name);
                view.map_or_else(
                    || name.clone(),
                    |view| format!("{name}: {}", view.waits_for()),
                )
            })
            .collect();
        let message = format!("waiting for {}", waiting.join("; "));
        return Verdict::fails(READY, "ComponentsNotReady", message);
    }
    Verdict::holds(READY, "ComponentsReady", "all components are ready")
}

/// Names the fields that are kept without effect, so that nobody waits for one.
fn acted_on_verdict(smcp: &ServiceMeshControlPlane) -> Verdict {
    const TYPE: &str = "AllFieldsActedOn";
    let kept = smcp.spec.not_acted_on();
    if kept.is_empty() {
        return Verdict::holds(
            TYPE,
            "AllFieldsKnown",
            "every field that is set has its effect",
        );
    }
    let message = format!("kept as they are and without effect: {}", kept.join(", "));
    Verdict::fails(TYPE, "FieldsWithoutEffect", message)
}

/// Names the networks in `requestedNetworkView` that no peer has. They hide nothing.
fn networks_verdict(decided: &Decided<'_, '_>, smcp: &ServiceMeshControlPlane) -> Verdict {
    const TYPE: &str = "NetworksKnown";
    let peers = decided.world.resources.peers.keys();
    let known: BTreeSet<String> = peers
        .flat_map(|key| {
            [
                format!("{}-network", key.name),
                format!("network-{}", key.name),
            ]
        })
        .collect();
    let gateways = smcp.spec.gateways.as_ref();
    let egresses = gateways.iter().flat_map(|g| &g.additional_egress);
    let unknown: Vec<String> = egresses
        .flat_map(|(name, gateway)| unknown_networks(name, gateway, &known))
        .collect();
    if unknown.is_empty() {
        return Verdict::holds(
            TYPE,
            "AllNetworksKnown",
            "every requested network is a peer's",
        );
    }
    let message = format!(
        "these are the networks of no ServiceMeshPeer, unless the peer's own spec.cluster.network says so; \
         <peer>-network is always known: {}. A gateway shows its own peers all the same.",
        unknown.join(", ")
    );
    Verdict::unknown(TYPE, "UnknownNetwork", message)
}

/// Names sidecars that do not take what they are sent.
fn sidecars_verdict(refusals: &Refusals) -> Verdict {
    const TYPE: &str = "SidecarsFollow";
    let Refusals { sidecars, words } = refusals;
    if *sidecars == 0 {
        return Verdict::holds(
            TYPE,
            "NoneRefuses",
            "no connected sidecar refuses its configuration",
        );
    }
    // The words are those of a workload.
    let mut said: Vec<String> = words
        .iter()
        .map(|(pod, words)| format!("{pod} says {words:?}"))
        .collect();
    if *sidecars > said.len() {
        said.push(format!("and {} more", *sidecars - said.len()));
    }
    let message = format!(
        "sidecars that refuse their configuration go on with the one that they have, so that what changed since \
         does not reach their workloads: {}",
        said.join("; ")
    );
    Verdict::fails(TYPE, "ConfigurationRefused", message)
}

fn unknown_networks(name: &str, gateway: &Gateway, known: &BTreeSet<String>) -> Vec<String> {
    let asked = gateway.requested_network_view.iter().flatten();
    asked
        .filter(|network| !known.contains(*network))
        .map(|network| format!("{network} (egress {name})"))
        .collect()
}
