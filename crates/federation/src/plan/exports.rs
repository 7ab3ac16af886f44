//! What each peer gets to see of our services.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshfed_ordmap::OrdMap;
use meshfed_pki::SpiffeId;

use super::changes::put;
use super::local::{LocalService, Touched};
use super::parallel::each;
use crate::discovery::export::{Export, Shown};
use crate::discovery::server::Exports;
use crate::names::{ExportedHost, PeerName, ServiceKey};
use crate::rules::ExportRules;
use crate::world::World;

/// Annotation, and in the documents a label, with the namespaces that may see a service.
const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// A service of a member that the system namespace may see and that stays, so that rules may pick
/// it.
#[derive(Debug)]
pub(super) struct Candidate {
    pub local: Arc<LocalService>,
    object: Arc<Service>,
}

impl Candidate {
    fn new(
        world: &World,
        key: &ServiceKey,
        object: Arc<Service>,
        local: Arc<LocalService>,
    ) -> Option<Self> {
        let metadata = &object.metadata;
        let stays = metadata.deletion_timestamp.is_none();
        let visible = is_visible(
            metadata,
            key.namespace.as_str(),
            &world.mesh.system_namespace,
        );
        (stays && visible).then_some(Self { local, object })
    }

    fn labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.object.metadata.labels.as_ref().unwrap_or(&NONE)
    }

    fn created(&self) -> Option<Timestamp> {
        self.object
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|t| t.0)
    }

    /// By whom names are given: the oldest first, then by name.
    fn rank(&self) -> Rank {
        (self.created(), self.local.key.clone())
    }

    fn goes_before(&self, other: &Self) -> bool {
        (self.created(), &self.local.key) < (other.created(), &other.local.key)
    }
}

/// By what rules and peers may see of it.
impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.local == other.local
            && self.created() == other.created()
            && self.labels() == other.labels()
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
    /// Shows all of them to new exporters: one namespace after the other, since most rules are for some
    /// of them.
    pub fn show(&self, exporters: &mut [Exporter]) {
        let all: Vec<&Arc<Candidate>> = self.0.values().collect();
        let same_namespace = |a: &&Arc<Candidate>, b: &&Arc<Candidate>| {
            a.local.key.namespace == b.local.key.namespace
        };
        let namespaces: Vec<&[&Arc<Candidate>]> = all.chunk_by(same_namespace).collect();
        each(exporters.iter_mut().collect(), all.len(), |exporter| {
            let mut claims = Vec::new();
            for candidates in &namespaces {
                exporter.look_at(candidates, &mut claims);
            }
            exporter.settle_all(claims);
        });
    }

    /// Looks anew at what may have changed.
    pub fn follow(&mut self, world: &World, touched: Vec<Touched>) -> Vec<Changed> {
        let mut changed = Vec::with_capacity(touched.len());
        let mut came = Vec::with_capacity(touched.len());
        for Touched { key, now } in touched {
            let new = now.and_then(|(object, local)| Candidate::new(world, &key, object, local));
            let old = self.0.get(&key);
            if old.map(AsRef::as_ref) == new.as_ref() {
                continue;
            }
            let (old, new) = (old.cloned(), new.map(Arc::new));
            changed.push(Changed {
                old,
                new: new.clone(),
            });
            match new {
                Some(new) => came.push((key, new)),
                None => {
                    self.0.remove(&key);
                }
            }
        }
        if self.0.is_empty() {
            self.0 = came.into_iter().collect();
        } else {
            self.0.extend(came);
        }
        changed
    }
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

/// Whether annotation and label let `namespace` be seen from `viewer`.
fn is_visible(metadata: &ObjectMeta, namespace: &str, viewer: &str) -> bool {
    [&metadata.annotations, &metadata.labels]
        .into_iter()
        .all(|map| !hides(map.as_ref(), namespace, viewer))
}

/// Whether `exportTo` among annotations or labels hides `namespace` from `viewer`. As in Istio, an empty
/// value says nothing.
pub(crate) fn hides(map: Option<&BTreeMap<String, String>>, namespace: &str, viewer: &str) -> bool {
    let Some(value) = map.and_then(|map| map.get(EXPORT_TO)) else {
        return false;
    };
    let allows = |target: &str| match target {
        "*" => true,
        "." => namespace == viewer,
        named => named == viewer,
    };
    !value.is_empty() && !value.split(',').map(str::trim).any(allows)
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
    /// What the gateway presents, as messages say it.
    accounts: Arc<[String]>,
    claims: BTreeMap<ServiceKey, Claims>,
    given: PeerExports,
}

/// A candidate and the index of the rule that picks it.
type Claim = (usize, Arc<Candidate>);

/// Who would have an exported name.
#[derive(Debug)]
struct Claims {
    first: Claim,
    /// In the order in which they would have it.
    others: Vec<Claim>,
}

impl Claims {
    fn of(first: Claim) -> Self {
        let others = Vec::new();
        Self { first, others }
    }

    fn add(&mut self, mut claim: Claim) {
        if claim.1.goes_before(&self.first.1) {
            std::mem::swap(&mut self.first, &mut claim);
        }
        let at = self
            .others
            .partition_point(|(_, other)| other.goes_before(&claim.1));
        self.others.insert(at, claim);
    }

    /// Without the claim of one service. `None`: nobody is left.
    fn without(mut self, key: &ServiceKey) -> Option<Self> {
        self.others.retain(|(_, other)| other.local.key != *key);
        if self.first.1.local.key != *key {
            return Some(self);
        }
        (!self.others.is_empty()).then(|| Self {
            first: self.others.remove(0),
            others: self.others,
        })
    }
}

/// What follows from the claims to a name.
struct Settled {
    host: ExportedHost,
    export: Export,
    exported: Exported,
}

impl Exporter {
    /// One that has not looked at any candidate.
    pub fn new(terms: Terms) -> Self {
        Self {
            accounts: [terms.ingress.to_string()].into(),
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
                let key = &new.local.key;
                let rules = self.terms.rules.in_namespace(&key.namespace);
                if let Some((rule, name)) = rules.pick(key, new.labels()) {
                    self.claim(name.clone(), (rule, new.clone()));
                    touched.insert(name);
                }
            }
        }
        self.settle(&touched);
    }

    /// The claims of candidates of one namespace.
    fn look_at(&self, candidates: &[&Arc<Candidate>], claims: &mut Vec<(ServiceKey, Claim)>) {
        let Some(first) = candidates.first() else {
            return;
        };
        let rules = self.terms.rules.in_namespace(&first.local.key.namespace);
        if rules.is_empty() {
            return;
        }
        for candidate in candidates {
            if let Some((rule, name)) = rules.pick(&candidate.local.key, candidate.labels()) {
                claims.push((name, (rule, Arc::clone(candidate))));
            }
        }
    }

    fn claim(&mut self, name: ServiceKey, claim: Claim) {
        match self.claims.entry(name) {
            Entry::Occupied(mut there) => there.get_mut().add(claim),
            Entry::Vacant(free) => {
                free.insert(Claims::of(claim));
            }
        }
    }

    fn retract(&mut self, candidate: &Candidate, touched: &mut BTreeSet<ServiceKey>) {
        let key = &candidate.local.key;
        let rules = self.terms.rules.in_namespace(&key.namespace);
        if let Some((_, name)) = rules.pick(key, candidate.labels())
            && let Some(claims) = self.claims.remove(&name)
        {
            if let Some(rest) = claims.without(key) {
                self.claims.insert(name.clone(), rest);
            }
            self.given.lost.remove(&candidate.rank());
            touched.insert(name);
        }
    }

    /// Gives each name to the first who claims it.
    fn settle(&mut self, touched: &BTreeSet<ServiceKey>) {
        for name in touched {
            let Some(claims) = self.claims.get(name) else {
                let host = ExportedHost::ours(name, &self.terms.peer);
                self.given.list.remove(name);
                self.given.exported.remove(&host);
                continue;
            };
            let settled = self.terms.settle(&self.accounts, name, claims);
            let Settled {
                host,
                export,
                exported,
            } = settled;
            self.given.lose(&host, claims);
            put(&mut self.given.list, name.clone(), export);
            put(&mut self.given.exported, host, exported);
        }
    }

    /// The same for all claims, where there were none yet.
    fn settle_all(&mut self, mut all: Vec<(ServiceKey, Claim)>) {
        // Mostly sorted, since few rules rename.
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut by_name: Vec<(ServiceKey, Claims)> = Vec::with_capacity(all.len());
        for (name, claim) in all {
            match by_name.last_mut() {
                Some((last, claims)) if *last == name => claims.add(claim),
                _ => by_name.push((name, Claims::of(claim))),
            }
        }
        self.claims = by_name.into_iter().collect();
        let mut list = Vec::with_capacity(self.claims.len());
        let mut all = Vec::with_capacity(self.claims.len());
        for (name, claims) in &self.claims {
            let settled = self.terms.settle(&self.accounts, name, claims);
            let Settled {
                host,
                export,
                exported,
            } = settled;
            self.given.lose(&host, claims);
            list.push((name.clone(), Arc::new(export)));
            all.push((host, Arc::new(exported)));
        }
        all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        self.given.list.extend_all(list);
        self.given.exported.extend_all(all);
    }
}

impl Terms {
    fn settle(&self, accounts: &Arc<[String]>, name: &ServiceKey, claims: &Claims) -> Settled {
        let (rule, winner) = &claims.first;
        let host = ExportedHost::ours(name, &self.peer);
        let shown = Shown {
            key: name.clone(),
            host: host.clone(),
            ports: winner.local.shown.clone(),
            accounts: accounts.clone(),
        };
        Settled {
            host,
            export: Export::new(shown, winner.local.health),
            exported: Exported {
                rule: *rule,
                local: winner.local.clone(),
            },
        }
    }
}

impl PeerExports {
    /// Notes who does not get a name.
    fn lose(&mut self, host: &ExportedHost, claims: &Claims) {
        let winner = &claims.first.1;
        if !self.lost.is_empty() {
            self.lost.remove(&winner.rank());
        }
        for (_, loser) in &claims.others {
            let taken = NameTaken {
                host: host.clone(),
                winner: winner.local.key.clone(),
                loser: loser.local.key.clone(),
            };
            self.lost.insert(loser.rank(), Arc::new(taken));
        }
    }
}
