//! What the administrator of another mesh applies to make this mesh a peer of theirs.
//!
//! Two meshes that hand each other their bundle are a federation. What the other side calls things
//! cannot be known here, so it follows the naming of the documents unless it is told: the gateways for
//! `red-mesh` are `ingress-red-mesh` and `egress-red-mesh`, the namespace of `green-mesh` is
//! `green-mesh-system`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshfed_api::peer::{
    CertificateChain, DEFAULT_DISCOVERY_PORT, DEFAULT_SERVICE_PORT, GatewayReference, Gateways,
    Remote, Security,
};
use meshfed_api::{ROOT_CERT_KEY, ServiceMeshPeer, ServiceMeshPeerSpec};
use meshfed_pki::{IdError, TrustStore};

use crate::names::{Label, NameError, PeerName};
use crate::plan::gateways::service_account;
use crate::plan::{GatewayKind, Plan};
use crate::world::{ObjectKey, World};

/// What is asked for; `None` means by the naming of the documents.
#[derive(Debug, Clone)]
pub struct BundleRequest {
    /// The other mesh, as its ServiceMeshPeer here is or will be called.
    pub peer: PeerName,
    /// What the other mesh is to call this one; else the ServiceMeshControlPlane's name.
    pub own_name: Option<PeerName>,
    /// Our gateways for the peer.
    pub ingress: Option<String>,
    pub egress: Option<String>,
    /// Where the other mesh reaches our ingress gateway, if not at its Service's address.
    pub addresses: Vec<String>,
    pub their_namespace: Option<Label>,
    pub their_ingress: Option<String>,
    pub their_egress: Option<String>,
}

impl BundleRequest {
    pub fn new(peer: PeerName) -> Self {
        Self {
            peer,
            own_name: None,
            ingress: None,
            egress: None,
            addresses: Vec::new(),
            their_namespace: None,
            their_ingress: None,
            their_egress: None,
        }
    }
}

/// What to hand over. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle {
    /// What its reader should know, a line each.
    pub notes: Vec<String>,
    pub root: ConfigMap,
    pub peer: ServiceMeshPeer,
}

/// Why there is nothing to hand over yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("there is no ServiceMeshControlPlane in {0}; create one first")]
    NoControlPlane(String),
    #[error("this mesh's own name {name:?} cannot name a peer: {error}; give another with --as")]
    OwnName { name: String, error: NameError },
    #[error(
        "the ServiceMeshControlPlane has no {side} gateway {name:?} for {peer}; add it, or name one of its own with --{side}: {known}"
    )]
    NoGateway {
        side: &'static str,
        name: String,
        peer: PeerName,
        known: String,
    },
    #[error(
        "the gateway {0} has no address that another mesh could reach yet; wait for its Service, or give one with --address"
    )]
    NoAddress(String),
    #[error(
        "the gateway {0} is reached on the nodes: give their addresses, as the other mesh reaches them, with --address"
    )]
    NodesUnknown(String),
    #[error("the identity of the gateway {name} cannot be told: {error}")]
    Identity { name: String, error: IdError },
    #[error(
        "this mesh's own root certificate is not known; the ConfigMap istio-ca-root-cert is missing"
    )]
    NoRoot,
}

/// The bundle that makes this mesh a peer of the one that is asked for.
pub fn bundle(world: &World, plan: &Plan, request: &BundleRequest) -> Result<Bundle, BundleError> {
    let system = &world.mesh.system_namespace;
    let Some(control_plane) = &plan.control_plane else {
        return Err(BundleError::NoControlPlane(system.clone()));
    };
    let own = match &request.own_name {
        Some(name) => name.clone(),
        None => control_plane.name.parse().map_err(|error| {
            let name = control_plane.name.clone();
            BundleError::OwnName { name, error }
        })?,
    };
    let known = ObjectKey::new(system.clone(), request.peer.as_str());
    let known = world.resources.peers.get(&known);
    let of_peer = known.map(|peer| &peer.spec.gateways);
    let ingress = gateway(
        plan,
        request,
        GatewayKind::Ingress,
        of_peer.map(|g| &g.ingress),
    )?;
    let egress = gateway(
        plan,
        request,
        GatewayKind::Egress,
        of_peer.map(|g| &g.egress),
    )?;
    let egress_id = plan
        .trust_domain
        .service_account(system, &service_account(&egress))
        .map_err(|error| {
            let name = egress.clone();
            BundleError::Identity { name, error }
        })?;
    let pem = &world.observed.own_roots;
    if TrustStore::parse_roots(pem).is_err() {
        return Err(BundleError::NoRoot);
    }
    let namespace = match &request.their_namespace {
        Some(namespace) => namespace.to_string(),
        None => format!("{}-system", request.peer),
    };
    let root_name = format!("{own}-ca-root-cert");
    let metadata = |name: &str| ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.clone()),
        ..ObjectMeta::default()
    };
    let theirs = |given: &Option<String>, side: &str| {
        let name = given.clone().unwrap_or_else(|| format!("{side}-{own}"));
        GatewayReference { name }
    };
    let client_id = egress_id.to_string();
    let spec = ServiceMeshPeerSpec {
        remote: remote(world, request, &ingress)?,
        gateways: Gateways {
            ingress: theirs(&request.their_ingress, "ingress"),
            egress: theirs(&request.their_egress, "egress"),
        },
        security: Security {
            trust_domain: Some(plan.trust_domain.to_string()),
            client_id: Some(
                client_id
                    .strip_prefix("spiffe://")
                    .unwrap_or(&client_id)
                    .to_owned(),
            ),
            certificate_chain: Some(CertificateChain {
                kind: Some("ConfigMap".to_owned()),
                name: Some(root_name.clone()),
                ..CertificateChain::default()
            }),
        },
    };
    let notes = notes(request, &own, &namespace, &spec.gateways, known.is_some());
    Ok(Bundle {
        notes,
        root: ConfigMap {
            metadata: metadata(&root_name),
            data: Some(BTreeMap::from([(
                ROOT_CERT_KEY.to_owned(),
                pem.to_string(),
            )])),
            ..ConfigMap::default()
        },
        peer: ServiceMeshPeer {
            metadata: metadata(own.as_str()),
            spec,
            status: None,
        },
    })
}

fn notes(
    request: &BundleRequest,
    own: &PeerName,
    namespace: &str,
    theirs: &Gateways,
    known: bool,
) -> Vec<String> {
    let peer = &request.peer;
    let (ingress, egress) = (&theirs.ingress.name, &theirs.egress.name);
    let mut notes = vec![
        format!(
            "Makes {own} a peer of {peer}. For the administrator of {peer}: kubectl apply -f -"
        ),
        format!(
            "It needs the namespace {namespace}, and in the ServiceMeshControlPlane there the gateways"
        ),
        format!("{ingress} and {egress}. Where they are called otherwise, make it with"),
        "--their-namespace, --their-ingress, --their-egress. Nothing in it is secret.".to_owned(),
    ];
    if !known {
        notes.push(format!(
            "{own} has no ServiceMeshPeer {peer} yet: {peer} makes it with meshfed peer bundle --for {own}"
        ));
    }
    notes
}

/// The gateway that is asked for, else the ServiceMeshPeer's, else `<side>-<peer>`, else the only one.
fn gateway(
    plan: &Plan,
    request: &BundleRequest,
    kind: GatewayKind,
    of_peer: Option<&GatewayReference>,
) -> Result<String, BundleError> {
    let (side, asked) = match kind {
        GatewayKind::Ingress => ("ingress", &request.ingress),
        GatewayKind::Egress => ("egress", &request.egress),
    };
    let of_kind = |name: &&String| {
        let gateway = plan.gateways.get(*name);
        gateway.is_some_and(|g| g.kind == kind && !g.going)
    };
    let usual = format!("{side}-{}", request.peer);
    let name = match (asked, of_peer) {
        (Some(name), _) => name.clone(),
        (None, Some(reference)) => reference.name.clone(),
        (None, None) => usual,
    };
    if of_kind(&&name) {
        return Ok(name);
    }
    let known: Vec<&String> = plan.gateways.keys().filter(of_kind).collect();
    match known.as_slice() {
        [only] if asked.is_none() && of_peer.is_none() => Ok((*only).clone()),
        _ => Err(BundleError::NoGateway {
            side,
            name,
            peer: request.peer.clone(),
            known: match known.as_slice() {
                [] => "it has none".to_owned(),
                some => some
                    .iter()
                    .map(|n| n.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            },
        }),
    }
}

/// How the ingress gateway is reached from outside.
fn remote(world: &World, request: &BundleRequest, ingress: &str) -> Result<Remote, BundleError> {
    let key = ObjectKey::new(world.mesh.system_namespace.clone(), ingress);
    let service = world.resources.services.get(&key);
    let no_address = || BundleError::NoAddress(ingress.to_owned());
    let spec = service.and_then(|service| service.spec.as_ref());
    let type_ = spec
        .and_then(|spec| spec.type_.as_deref())
        .unwrap_or("ClusterIP");
    let mut ports = (None, None);
    let mut addresses = Vec::new();
    match (type_, service) {
        (_, None) => {}
        ("NodePort", Some(service)) => {
            ports = (
                node_port(service, DEFAULT_DISCOVERY_PORT),
                node_port(service, DEFAULT_SERVICE_PORT),
            );
            let node = world.mesh.node_address;
            if !node.is_unspecified() {
                addresses.push(node.to_string());
            } else if request.addresses.is_empty() {
                return Err(BundleError::NodesUnknown(ingress.to_owned()));
            }
        }
        ("LoadBalancer", Some(service)) => addresses.extend(load_balancers(service)),
        (_, Some(_)) => {
            let ip = spec.and_then(|spec| spec.cluster_ip.clone());
            addresses.extend(ip.filter(|ip| ip != "None"));
        }
    }
    if !request.addresses.is_empty() {
        addresses.clone_from(&request.addresses);
    }
    if addresses.is_empty() {
        return Err(no_address());
    }
    Ok(Remote {
        addresses,
        discovery_port: ports.0,
        service_port: ports.1,
    })
}

fn node_port(service: &Service, port: u16) -> Option<i32> {
    let ports = service.spec.as_ref()?.ports.iter().flatten();
    let mut found = ports.filter(|p| p.port == i32::from(port));
    found.next()?.node_port
}

fn load_balancers(service: &Service) -> impl Iterator<Item = String> {
    let status = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref());
    let all = status
        .and_then(|s| s.ingress.as_deref())
        .unwrap_or_default();
    all.iter()
        .filter_map(|one| one.ip.clone().or_else(|| one.hostname.clone()))
}
