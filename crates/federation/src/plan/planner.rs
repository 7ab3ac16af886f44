//! The plan that follows the world, stage by stage.
//!
//! Each stage keeps what it made and up to where it followed its input. As inputs are persistent
//! maps, it finds by pointer what differs, and looks at that alone. So a plan costs what changed
//! since the one before; what is small (control planes, gateways, peers, membership) is made anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use meshfed_api::{ExportedServiceSet, ImportedServiceSet};

use super::configs::{Decisions, Proxies};
use super::exports::{self, Candidates, Exporter, PeerExports};
use super::imports::{self, Imports};
use super::local::Services;
use super::membership::Membership;
use super::peers::{self, Peers, Trusted};
use super::roots::ReadRoots;
use super::status::{self, Judged, LazyStatuses};
use super::workloads::Workloads;
use super::{
    DiscoveryTarget, GatewayPlan, Plan, Shares, control_plane, discovery_clients,
    discovery_targets, membership, staleness, withdrawal,
};
use crate::discovery::remote::RemoteServices;
use crate::discovery::server::Exports;
use crate::names::{DomainSuffix, PeerName};
use crate::rules::{ExportRules, ImportRules};
use crate::world::{ObjectKey, Shared, World};

/// Plans again and again, at a cost that is proportional to what changed.
///
/// What it answers depends on the last world alone, however it came to be: the answer is that of
/// [`plan`](super::plan). It holds for one mesh, so that [`World::mesh`] may not change.
#[derive(Debug, Default)]
pub struct Planner {
    roots: ReadRoots,
    services: Services,
    candidates: Candidates,
    export_rules: Parsed<ExportedServiceSet, ExportRules>,
    import_rules: Parsed<ImportedServiceSet, ImportRules>,
    exporters: BTreeMap<PeerName, Exporter>,
    imports: Imports,
    workloads: Workloads,
    proxies: Proxies,
    gateways: BTreeMap<String, Arc<GatewayPlan>>,
    discovery: BTreeMap<PeerName, Arc<DiscoveryTarget>>,
}

impl Planner {
    pub fn new() -> Self {
        Self::default()
    }

    /// What follows from `world`. Parts that did not change are those of the plan before.
    pub fn plan(&mut self, world: &World) -> Plan {
        let ruling = control_plane::ruling(world);
        let control_plane = ruling.object.map(|(key, _)| key);
        let membership = membership::membership(world, control_plane);
        let peers = peers::judge(world, &ruling, &mut self.roots);
        let draining = peers::draining(world, &ruling, &mut self.roots, &peers);
        let withdrawal = withdrawal::withdrawal(world, &ruling, &peers);

        let touched = self.services.follow(
            &world.resources,
            &membership.namespaces,
            &world.mesh.cluster_domain,
        );
        let changed = self.candidates.follow(world, touched);
        self.export(world, &peers, &changed);
        let looked_at = self.import(world, &peers, &membership);
        let touched = self
            .workloads
            .follow(&world.resources, &membership.namespaces);
        let given: BTreeMap<PeerName, PeerExports> = self
            .exporters
            .iter()
            .map(|(peer, exporter)| (peer.clone(), exporter.given().clone()))
            .collect();
        self.proxies.follow(&Decisions {
            world,
            ruling: &ruling,
            peers: &peers,
            draining: &draining,
            services: self.services.all(),
            exports: &given,
            imports: &self.imports,
            workloads: self.workloads.all(),
            news: changed.len() + looked_at,
            touched: &touched,
        });
        let (mut exports, mut withdrawn) = (BTreeMap::new(), BTreeMap::new());
        let mut shares = Shares::default();
        for (_, peer) in trusted(&peers).filter(|(_, peer)| peer.ingress.is_ok()) {
            let given = given.get(&peer.name);
            let list = given.map_or_else(Exports::new, |given| given.list.clone());
            if peer.withdraws() {
                exports.insert(peer.name.clone(), Exports::new());
                withdrawn.insert(peer.name.clone(), list);
                continue;
            }
            exports.insert(peer.name.clone(), list);
            if let Some(given) = given {
                let exported = given.exported.clone();
                shares.exports.insert(peer.name.clone(), exported);
            }
        }
        let made = ruling.gateways.iter().filter_map(|(name, view)| {
            let plan = view.plan.as_ref().ok()?;
            Some((name.clone(), Arc::new(plan.clone())))
        });
        keep(&mut self.gateways, made.collect());
        keep(
            &mut self.discovery,
            discovery_targets(world, &peers, &self.imports),
        );
        let judged = Judged {
            exports: given,
            imports: self.imports.given(),
        };
        let offers = judged.imports.iter();
        shares.imports = offers
            .map(|(peer, given)| (peer.clone(), given.offers.clone()))
            .collect();
        Plan {
            control_plane: control_plane.cloned(),
            discovery: self.discovery.clone(),
            discovery_clients: discovery_clients(&peers),
            proxies: self.proxies.all().clone(),
            statuses: LazyStatuses::new(world.clone(), judged),
            wake_at: [
                peers::next_change(&peers),
                status::next_change(world, &peers),
                staleness::next_change(world, &peers),
                withdrawal.next_change,
            ]
            .into_iter()
            .flatten()
            .min(),
            exports,
            withdrawn,
            shares,
            gateways: self.gateways.clone(),
            members: membership.namespaces,
            trust_domain: ruling.trust_domain,
            control_plane_id: ruling.control_plane_id,
            withdrawal,
        }
    }

    fn export(&mut self, world: &World, peers: &Peers<'_>, changed: &[exports::Changed]) {
        self.export_rules.retain(&world.resources.exports);
        let mut before = std::mem::take(&mut self.exporters);
        let mut new = Vec::new();
        for (key, peer) in trusted(peers) {
            let Ok(ingress) = &peer.ingress else { continue };
            let set = world.resources.exports.get(key);
            let terms = exports::Terms {
                peer: peer.name.clone(),
                rules: set.map_or_else(Arc::default, |set| {
                    let parse = || ExportRules::parse(&set.spec);
                    self.export_rules.of(key, set, parse)
                }),
                ingress: ingress.id.clone(),
            };
            let exporter = before
                .remove(&peer.name)
                .filter(|old| *old.terms() == terms);
            if let Some(mut exporter) = exporter {
                exporter.follow(changed);
                self.exporters.insert(peer.name.clone(), exporter);
            } else {
                new.push(Exporter::new(terms));
            }
        }
        if !new.is_empty() {
            self.candidates.show(&mut new);
        }
        let new = new.into_iter();
        self.exporters
            .extend(new.map(|e| (e.terms().peer.clone(), e)));
    }

    /// How many services of peers were looked at.
    fn import(&mut self, world: &World, peers: &Peers<'_>, membership: &Membership) -> usize {
        let local_suffix = DomainSuffix::of_cluster(&world.mesh.cluster_domain);
        self.import_rules.retain(&world.resources.imports);
        let mut wanted: BTreeMap<PeerName, (imports::Terms, Arc<RemoteServices>)> = BTreeMap::new();
        for (key, peer) in trusted(peers).filter(|(_, peer)| !peer.going) {
            let Some(set) = world.resources.imports.get(key) else {
                continue;
            };
            if peer.egress.is_err() {
                continue;
            }
            let Some(state) = world.observed.peers.get(&key.name) else {
                continue;
            };
            let parse = || ImportRules::parse(&set.spec, &peer.name, &local_suffix);
            let rules = self.import_rules.of(key, set, parse);
            let terms = imports::Terms {
                created: peer.created(),
                peer: peer.name.clone(),
                trust_domain: peer.trust_domain.clone(),
                system_namespace: world.mesh.system_namespace.clone(),
                members: rules.joins_local().then(|| membership.asked.clone()),
                rules,
            };
            let services = staleness::services(peer, &state.remote, world);
            wanted.insert(peer.name.clone(), (terms, services));
        }
        self.imports.follow(wanted)
    }
}

/// The rules of sets, parsed once for each version of a set. They depend on the set and its name alone.
#[derive(Debug)]
struct Parsed<S, R>(BTreeMap<ObjectKey, (Arc<S>, Arc<R>)>);

impl<S, R> Default for Parsed<S, R> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<S, R> Parsed<S, R> {
    fn of(&mut self, key: &ObjectKey, set: &Arc<S>, parse: impl FnOnce() -> R) -> Arc<R> {
        match self.0.get(key) {
            Some((of, rules)) if Arc::ptr_eq(of, set) => rules.clone(),
            _ => {
                let rules = Arc::new(parse());
                self.0.insert(key.clone(), (set.clone(), rules.clone()));
                rules
            }
        }
    }

    /// Forgets the sets that are gone.
    fn retain(&mut self, sets: &Shared<ObjectKey, S>) {
        self.0.retain(|key, _| sets.contains_key(key));
    }
}

/// Takes the new values, and keeps those that are equal to the ones before.
fn keep<K: Ord, V: PartialEq>(all: &mut BTreeMap<K, Arc<V>>, mut new: BTreeMap<K, Arc<V>>) {
    for (key, value) in &mut new {
        if let Some(before) = all.get(key).filter(|before| *before == value) {
            *value = before.clone();
        }
    }
    *all = new;
}

pub(super) fn trusted<'p, 'w>(
    peers: &'p Peers<'w>,
) -> impl Iterator<Item = (&'p ObjectKey, &'p Trusted<'w>)> {
    peers
        .iter()
        .filter_map(|(key, peer)| Some((key, peer.as_ref().ok()?)))
}
