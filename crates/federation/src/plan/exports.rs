//! What each peer gets to see of our services.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshfed_pki::SpiffeId;

use super::local::{LocalService, Touched};
use crate::discovery::export::Export;
use crate::discovery::message::{Service, ServicePort};
use crate::discovery::server::Exports;
use crate::names::{ExportedHost, PeerName, ServiceKey};
use crate::protocol::Protocol;
use crate::rules::{ExportDecision, ExportRules};
use crate::world::{ObjectKey, World};

/// Annotation, and in the documents a label, with the namespaces that may see a service.
const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// A service of a member that the system namespace may see and that stays, so that rules may pick
/// it.
#[derive(Debug, PartialEq)]
pub(super) struct Candidate {
    pub local: Arc<LocalService>,
    labels: BTreeMap<String, String>,
    created: Option<Timestamp>,
}

impl Candidate {
    /// By whom names are given: the oldest first, then by name.
    fn rank(&self) -> Rank {
        (self.created, self.local.key.clone())
    }

    fn goes_before(&self, other: &Self) -> bool {
        (self.created, &self.local.key) < (other.created, &other.local.key)
    }
}

/// Age and name of a service.
type Rank = (Option<Timestamp>, ServiceKey);

/// A candidate that came, changed or went.
pub(super) struct Changed {
    old: Option<Arc<Candidate>>,
    new: Option<Arc<Candidate>>,
}

/// All candidates.
#[derive(Debug, Default)]
pub(super) struct Candidates(BTreeMap<ServiceKey, Arc<Candidate>>);

impl Candidates {
    /// Shows all of them to new exporters: one candidate after the other, since it is the candidates
    /// that are many.
    pub fn show(&self, exporters: &mut [&mut Exporter]) {
        let mut touched = vec![BTreeSet::new(); exporters.len()];
        for candidate in self.0.values() {
            for (exporter, touched) in exporters.iter_mut().zip(&mut touched) {
                exporter.claim(candidate, touched);
            }
        }
        for (exporter, touched) in exporters.iter_mut().zip(&touched) {
            exporter.settle(touched);
        }
    }

    /// Looks anew at what may have changed.
    pub fn follow(
        &mut self,
        world: &World,
        services: &OrdMap<ServiceKey, Arc<LocalService>>,
        touched: &[Touched],
    ) -> Vec<Changed> {
        let mut changed = Vec::new();
        for Touched { object, key } in touched {
            let new = services
                .get(key)
                .and_then(|local| candidate(world, object, local));
            let old = self.0.get(key);
            if old.map(AsRef::as_ref) == new.as_ref() {
                continue;
            }
            let new = new.map(Arc::new);
            let old = match &new {
                Some(new) => self.0.insert(key.clone(), new.clone()),
                None => self.0.remove(key),
            };
            changed.push(Changed { old, new });
        }
        changed
    }
}

fn candidate(world: &World, at: &ObjectKey, local: &Arc<LocalService>) -> Option<Candidate> {
    let metadata = &world.resources.services.get(at)?.metadata;
    let stays = metadata.deletion_timestamp.is_none();
    let visible = is_visible(metadata, &at.namespace, &world.mesh.system_namespace);
    (stays && visible).then(|| Candidate {
        local: local.clone(),
        labels: metadata.labels.clone().unwrap_or_default(),
        created: metadata.creation_timestamp.as_ref().map(|t| t.0),
    })
}

/// What one peer gets. A copy shares the entries.
#[derive(Debug, Clone, Default)]
pub(super) struct PeerExports {
    pub list: Exports,
    /// By exported host.
    pub exported: OrdMap<ExportedHost, Arc<Exported>>,
    /// Services that a rule picks and that are not exported since another has the name, the oldest
    /// first.
    pub lost: OrdMap<Rank, Arc<NameTaken>>,
}

/// A service of ours under one of its exported names.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// Index of the rule that picks it.
    pub rule: usize,
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

/// Whether annotation and label let `namespace` be seen from `viewer`. As in Istio, an empty value
/// says nothing.
pub(crate) fn is_visible(metadata: &ObjectMeta, namespace: &str, viewer: &str) -> bool {
    let allows = |value: &String| {
        value.split(',').map(str::trim).any(|target| match target {
            "*" => true,
            "." => namespace == viewer,
            named => named == viewer,
        })
    };
    [&metadata.annotations, &metadata.labels]
        .into_iter()
        .filter_map(|map| {
            map.as_ref()?
                .get(EXPORT_TO)
                .filter(|value| !value.is_empty())
        })
        .all(allows)
}

/// To whom and by which rules services are exported.
#[derive(Debug, PartialEq)]
pub(super) struct Terms {
    pub peer: PeerName,
    pub rules: Arc<ExportRules>,
    /// The identity of the gateway that the peer comes in at.
    pub ingress: SpiffeId,
}

/// What the rules give to one peer.
#[derive(Debug)]
pub(super) struct Exporter {
    terms: Terms,
    account: String,
    /// Who would have each exported name, the first one first.
    claims: BTreeMap<ServiceKey, Vec<Claim>>,
    given: PeerExports,
}

/// A candidate and the index of the rule that picks it.
type Claim = (usize, Arc<Candidate>);

impl Exporter {
    /// One that has not looked at any candidate.
    pub fn new(terms: Terms) -> Self {
        Self {
            account: terms.ingress.to_string(),
            terms,
            claims: BTreeMap::new(),
            given: PeerExports::default(),
        }
    }

    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    pub fn given(&self) -> &PeerExports {
        &self.given
    }

    pub fn follow(&mut self, changed: &[Changed]) {
        let mut touched = BTreeSet::new();
        for Changed { old, new } in changed {
            if let Some(old) = old {
                self.retract(old, &mut touched);
            }
            if let Some(new) = new {
                self.claim(new, &mut touched);
            }
        }
        self.settle(&touched);
    }

    fn decide(&self, candidate: &Candidate) -> Option<(usize, ServiceKey)> {
        match self
            .terms
            .rules
            .decide(&candidate.local.key, &candidate.labels)
        {
            ExportDecision::Exported { rule, exported } => Some((rule, exported)),
            ExportDecision::NoRule | ExportDecision::Broken { .. } => None,
        }
    }

    fn claim(&mut self, candidate: &Arc<Candidate>, touched: &mut BTreeSet<ServiceKey>) {
        if let Some((rule, name)) = self.decide(candidate) {
            let claims = self.claims.entry(name.clone()).or_default();
            let at = claims.partition_point(|(_, other)| other.goes_before(candidate));
            claims.insert(at, (rule, candidate.clone()));
            touched.insert(name);
        }
    }

    fn retract(&mut self, candidate: &Candidate, touched: &mut BTreeSet<ServiceKey>) {
        if let Some((_, name)) = self.decide(candidate)
            && let Some(claims) = self.claims.get_mut(&name)
        {
            claims.retain(|(_, other)| other.local.key != candidate.local.key);
            if claims.is_empty() {
                self.claims.remove(&name);
            }
            self.given.lost.remove(&candidate.rank());
            touched.insert(name);
        }
    }

    /// Gives each name to the first who claims it.
    fn settle(&mut self, touched: &BTreeSet<ServiceKey>) {
        let given = &mut self.given;
        for name in touched {
            let host = ExportedHost::ours(name, &self.terms.peer);
            let claims = self.claims.get(name).map_or(&[][..], Vec::as_slice);
            let Some(((rule, winner), losers)) = claims.split_first() else {
                given.list.remove(name);
                given.exported.remove(&host);
                continue;
            };
            if !given.lost.is_empty() {
                given.lost.remove(&winner.rank());
            }
            for (_, loser) in losers {
                let taken = NameTaken {
                    host: host.clone(),
                    winner: winner.local.key.clone(),
                    loser: loser.local.key.clone(),
                };
                given.lost.insert(loser.rank(), Arc::new(taken));
            }
            let message = message(name, &host, &winner.local, &self.account);
            let export = Export::new(message, winner.local.health);
            if given.list.get(name).is_none_or(|there| **there != export) {
                given.list.insert(name.clone(), Arc::new(export));
            }
            let exported = Exported {
                rule: *rule,
                local: winner.local.clone(),
            };
            if given
                .exported
                .get(&host)
                .is_none_or(|there| **there != exported)
            {
                given.exported.insert(host, Arc::new(exported));
            }
        }
    }
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
