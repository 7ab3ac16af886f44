//! What each peer gets to see of our services.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use meshfed_pki::SpiffeId;

use super::local::LocalService;
use crate::discovery::export::Export;
use crate::discovery::message::{Service, ServicePort};
use crate::discovery::server::Exports;
use crate::names::{ExportedHost, PeerName, ServiceKey};
use crate::protocol::Protocol;
use crate::rules::{ExportDecision, ExportRules};
use crate::world::{ObjectKey, World};

/// Annotation, and in the documents a label, with the namespaces that may see a service.
const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// A service that rules may pick.
pub(super) struct Candidate<'w> {
    key: &'w ServiceKey,
    object: &'w core::Service,
    local: &'w Arc<LocalService>,
    created: Option<Timestamp>,
}

/// What one peer gets.
#[derive(Debug, Clone, Default)]
pub(super) struct PeerExports {
    pub list: Exports,
    /// By exported host.
    pub exported: BTreeMap<ExportedHost, Exported>,
    /// Services that a rule picks and that are not exported since another has the name.
    pub lost: Vec<NameTaken>,
}

#[derive(Debug, Clone)]
pub(super) struct Exported {
    pub local: Arc<LocalService>,
}

/// Two services would be exported under one name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{loser} is not exported: {winner} has the name {host} and goes first, being older or first by name; give one of them an alias"
)]
pub struct NameTaken {
    pub host: ExportedHost,
    pub winner: ServiceKey,
    pub loser: ServiceKey,
}

/// The services of members that the system namespace may see and that stay, oldest first.
pub(super) fn candidates<'w>(
    world: &'w World,
    services: &'w BTreeMap<ServiceKey, Arc<LocalService>>,
) -> Vec<Candidate<'w>> {
    let mut all: Vec<Candidate<'w>> = services
        .iter()
        .filter_map(|(key, local)| {
            let at = ObjectKey::new(key.namespace.as_str(), key.name.as_str());
            let object = &**world.resources.services.get(&at)?;
            let stays = object.metadata.deletion_timestamp.is_none();
            let visible = is_visible(object, &at.namespace, &world.mesh.system_namespace);
            (stays && visible).then_some(Candidate {
                key,
                object,
                local,
                created: object.metadata.creation_timestamp.as_ref().map(|t| t.0),
            })
        })
        .collect();
    all.sort_by_key(|candidate| (candidate.created, candidate.key));
    all
}

/// Whether annotation and label let `namespace` be seen from `viewer`. As in Istio, an empty value
/// says nothing.
fn is_visible(object: &core::Service, namespace: &str, viewer: &str) -> bool {
    let allows = |value: &String| {
        value.split(',').map(str::trim).any(|target| match target {
            "*" => true,
            "." => namespace == viewer,
            named => named == viewer,
        })
    };
    let metadata = &object.metadata;
    [&metadata.annotations, &metadata.labels]
        .into_iter()
        .filter_map(|map| {
            map.as_ref()?
                .get(EXPORT_TO)
                .filter(|value| !value.is_empty())
        })
        .all(allows)
}

/// What the rules give `peer`, which comes in at the gateway with the identity `ingress`.
pub(super) fn exports(
    candidates: &[Candidate<'_>],
    rules: &ExportRules,
    peer: &PeerName,
    ingress: &SpiffeId,
) -> PeerExports {
    let mut all = PeerExports::default();
    let mut list = Exports::new();
    let mut holders: BTreeMap<ExportedHost, &ServiceKey> = BTreeMap::new();
    let no_labels = BTreeMap::new();
    let account = ingress.to_string();
    for candidate in candidates {
        let labels = candidate.object.metadata.labels.as_ref();
        let decision = rules.decide(candidate.key, labels.unwrap_or(&no_labels));
        let ExportDecision::Exported { exported, .. } = decision else {
            continue;
        };
        let host = ExportedHost::ours(&exported, peer);
        if let Some(winner) = holders.get(&host) {
            all.lost.push(NameTaken {
                host,
                winner: (*winner).clone(),
                loser: candidate.key.clone(),
            });
            continue;
        }
        holders.insert(host.clone(), candidate.key);
        let message = message(&exported, &host, candidate.local, &account);
        list.insert(
            exported,
            Arc::new(Export::new(message, candidate.local.health)),
        );
        let local = candidate.local.clone();
        all.exported.insert(host, Exported { local });
    }
    all.list = list;
    all
}

fn message(
    exported: &ServiceKey,
    host: &ExportedHost,
    local: &LocalService,
    account: &str,
) -> Service {
    Service {
        name: exported.name.to_string(),
        namespace: exported.namespace.to_string(),
        hostname: host.to_string(),
        ports: local
            .ports
            .iter()
            .map(|port| {
                let protocol = Protocol::of_service_port(
                    None,
                    port.app_protocol.as_deref(),
                    Some(&port.name),
                    port.number.into(),
                );
                ServicePort {
                    name: port.name.clone(),
                    port: port.number.into(),
                    protocol: protocol.to_string(),
                }
            })
            .collect(),
        accounts: vec![account.to_owned()],
        health: None,
    }
}
