//! Which ServiceMeshControlPlane rules, and who we are by it.

use std::collections::BTreeMap;

use meshfed_api::ServiceMeshControlPlane;
use meshfed_pki::{IdError, SpiffeId, TrustDomain};

use super::gateways::{self, GatewayAddress, GatewayProblem};
use super::withdrawal::is_held;
use super::{GatewayKind, GatewayPlan};
use crate::world::{ObjectKey, World, in_namespace};

/// What the control plane is called while no ServiceMeshControlPlane gives it a name.
const UNNAMED: &str = "istiod";

/// Why a ServiceMeshControlPlane does not rule, or not as it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlPlaneProblem {
    #[error("this mesh's control plane is in {0}; move the resource there")]
    OutsideSystemNamespace(String),
    #[error(
        "{0} rules this mesh, as the older one or the first by name; a mesh has one ServiceMeshControlPlane: delete one"
    )]
    NotTheOldest(ObjectKey),
    #[error("it is being deleted")]
    Deleting,
    #[error("spec.security.trust.domain: {0}")]
    TrustDomain(#[from] IdError),
    #[error("spec.version {0:?} is not one that this product knows")]
    Version(String),
}

/// The mesh as its control plane describes it.
#[derive(Debug)]
pub(super) struct Ruling<'w> {
    pub object: Option<(&'w ObjectKey, &'w ServiceMeshControlPlane)>,
    pub trust_domain: TrustDomain,
    pub control_plane_id: SpiffeId,
    /// Name of this instance in statuses.
    pub instance: String,
    pub gateways: BTreeMap<String, GatewayView>,
    pub problems: BTreeMap<ObjectKey, ControlPlaneProblem>,
}

/// A gateway that is asked for, and how far it has come.
#[derive(Debug)]
pub(super) struct GatewayView {
    pub plan: Result<GatewayPlan, GatewayProblem>,
    /// A Service that is not ours stands in its place.
    pub occupied: bool,
    /// None before its Service has an address.
    pub addresses: Vec<GatewayAddress>,
    pub id: Option<SpiffeId>,
    /// Its proxy is connected and has applied its configuration.
    pub ready: bool,
    /// What its proxy last refused to apply.
    pub refused: Option<String>,
}

impl GatewayView {
    /// Nobody asks for it any more, and its peers have yet to hear that.
    pub fn is_going(&self) -> bool {
        self.plan.as_ref().is_ok_and(|plan| plan.going)
    }

    pub fn kind(&self) -> Option<GatewayKind> {
        self.plan.as_ref().ok().map(|plan| plan.kind)
    }

    /// What is missing while it is not ready.
    pub fn waits_for(&self) -> &'static str {
        if self.occupied {
            "a Service that is none of ours has its name; delete that, or call the gateway otherwise"
        } else if self.addresses.is_empty() {
            "its Service has no address yet"
        } else {
            "its proxy is not connected, or has not taken its configuration yet; see the proxy's log"
        }
    }

    /// Why it is not as it is asked for.
    pub fn problem(&self) -> Option<&GatewayProblem> {
        match &self.plan {
            Ok(plan) => plan.kept.as_ref(),
            Err(problem) => Some(problem),
        }
    }
}

pub(super) fn ruling(world: &World) -> Ruling<'_> {
    let mut problems = BTreeMap::new();
    let object = oldest(world, &mut problems);
    let trust_domain = object
        .and_then(|(key, smcp)| match trust_domain(smcp) {
            Ok(domain) => domain,
            Err(error) => {
                problems.insert(key.clone(), error.into());
                None
            }
        })
        .unwrap_or_else(|| world.mesh.default_trust_domain.clone());
    if let Some((key, smcp)) = object
        && smcp.spec.product_version().is_none()
    {
        let version = smcp.spec.version.clone().unwrap_or_default();
        problems
            .entry(key.clone())
            .or_insert(ControlPlaneProblem::Version(version));
    }
    let name = object.map_or_else(
        || UNNAMED.to_owned(),
        |(key, _)| format!("{UNNAMED}-{}", key.name),
    );
    Ruling {
        gateways: object.map_or_else(BTreeMap::new, |(_, smcp)| {
            gateway_views(world, smcp, &trust_domain)
        }),
        control_plane_id: control_plane_id(&trust_domain, &world.mesh.system_namespace, &name),
        instance: format!("{name}-{}", world.mesh.instance_suffix),
        object,
        trust_domain,
        problems,
    }
}

/// The oldest one of the system namespace that stays. One that is being deleted goes on to rule until
/// its gateways are gone, if there is no other.
fn oldest<'w>(
    world: &'w World,
    problems: &mut BTreeMap<ObjectKey, ControlPlaneProblem>,
) -> Option<(&'w ObjectKey, &'w ServiceMeshControlPlane)> {
    let system = &world.mesh.system_namespace;
    let mut candidates = Vec::new();
    for (key, smcp) in world.resources.control_planes.iter() {
        if key.namespace != *system {
            let problem = ControlPlaneProblem::OutsideSystemNamespace(system.clone());
            problems.insert(key.clone(), problem);
            continue;
        }
        if smcp.metadata.deletion_timestamp.is_some() {
            problems.insert(key.clone(), ControlPlaneProblem::Deleting);
            if !is_held(&smcp.metadata) {
                continue;
            }
        }
        candidates.push((key, &**smcp));
    }
    let created = |smcp: &ServiceMeshControlPlane| {
        let time = smcp.metadata.creation_timestamp.as_ref();
        time.map(|time| time.0)
    };
    let is_going = |smcp: &ServiceMeshControlPlane| smcp.metadata.deletion_timestamp.is_some();
    candidates.sort_by_key(|(key, smcp)| (is_going(smcp), created(smcp), &key.name));
    let (first, others) = candidates.split_first()?;
    for (key, _) in others {
        let problem = ControlPlaneProblem::NotTheOldest(first.0.clone());
        problems.entry((*key).clone()).or_insert(problem);
    }
    Some(*first)
}

fn trust_domain(smcp: &ServiceMeshControlPlane) -> Result<Option<TrustDomain>, IdError> {
    let trust = smcp.spec.security.as_ref().and_then(|s| s.trust.as_ref());
    match trust.and_then(|t| t.domain.as_deref()) {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some),
    }
}

fn gateway_views(
    world: &World,
    smcp: &ServiceMeshControlPlane,
    trust_domain: &TrustDomain,
) -> BTreeMap<String, GatewayView> {
    let namespace = &world.mesh.system_namespace;
    let asked = if smcp.metadata.deletion_timestamp.is_some() {
        BTreeMap::new()
    } else {
        gateways::desired(smcp)
    };
    let there = there(world, &asked);
    let mut all = asked;
    all.extend(there);
    all.into_iter()
        .map(|(name, plan)| {
            let key = ObjectKey::new(namespace.clone(), name.clone());
            // A Service of the same name that is not ours lends no address.
            let present = world.resources.services.get(&key);
            let service = present.filter(|service| gateways::is_ours(service));
            let state = world.observed.gateways.get(&name);
            let view = GatewayView {
                occupied: present.is_some() && service.is_none(),
                addresses: service.map_or_else(Vec::new, |service| {
                    gateways::addresses(service, world.mesh.node_address)
                }),
                id: trust_domain
                    .service_account(namespace, &gateways::service_account(&name))
                    .ok(),
                ready: state.is_some_and(|state| state.ready),
                refused: state.and_then(|state| state.refused.clone()),
                plan,
            };
            (name, view)
        })
        .collect()
}

/// Gateways that are there and that nobody asks for, or not in a form that can be made.
fn there(
    world: &World,
    asked: &BTreeMap<String, Result<GatewayPlan, GatewayProblem>>,
) -> Vec<(String, Result<GatewayPlan, GatewayProblem>)> {
    in_namespace(&world.resources.services, &world.mesh.system_namespace)
        .filter(|(_, service)| gateways::is_ours(service))
        .filter_map(|(key, service)| {
            let metadata = &service.metadata;
            let held = is_held(metadata);
            let kept = match asked.get(&key.name) {
                Some(Ok(_)) => return None,
                Some(Err(problem)) if metadata.deletion_timestamp.is_none() => {
                    Some(problem.clone())
                }
                // An egress gateway has nobody to tell that it goes.
                _ if !held => return None,
                _ => None,
            };
            let plan = GatewayPlan {
                kind: if held {
                    GatewayKind::Ingress
                } else {
                    GatewayKind::Egress
                },
                service_account: gateways::service_account(&key.name),
                service: (**service).clone(),
                going: kept.is_none(),
                kept,
            };
            Some((key.name.clone(), Ok(plan)))
        })
        .collect()
}

#[expect(
    clippy::expect_used,
    reason = "a trust domain and constant labels always make an identity"
)]
fn control_plane_id(trust_domain: &TrustDomain, namespace: &str, account: &str) -> SpiffeId {
    trust_domain
        .service_account(namespace, account)
        .or_else(|_| trust_domain.service_account("istio-system", UNNAMED))
        .expect("constant labels")
}
