//! What we use of what peers export.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use meshfed_ordmap::OrdMap;
use meshfed_pki::{SpiffeId, TrustDomain};
use meshfed_proxy_config::{Locality, ServerIds};

use super::changes::put;
use crate::discovery::client::Imported;
use crate::discovery::extension::Health;
use crate::discovery::remote::{RemoteService, RemoteServices};
use crate::names::{ImportedHost, Label, NameError, PeerName, ServiceKey};
use crate::protocol::Protocol;
use crate::rules::{ImportDecision, ImportRules};

/// Services that a report names; its bytes are limited too.
const NAMED_IN_REPORT: usize = 200;

/// Why a service that a rule picks is not imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportProblem {
    #[error("its name here cannot be used: {0}")]
    Name(#[from] NameError),
    #[error(
        "none of its service accounts is in the peer's trust domain {0}; the peer's administrator knows \
         which of the two is wrong"
    )]
    ForeignAccounts(TrustDomain),
    #[error("it has no port that carries TCP; the peer's Service needs one")]
    NoPort,
    #[error("{host} is already the name of {holder}; give one of them an alias")]
    NameTaken { host: ImportedHost, holder: String },
    #[error("importAsLocal into {0}, the namespace of the control plane")]
    SystemNamespace(String),
    #[error(
        "importAsLocal into {0}, which is no member of this mesh; add it to the ServiceMeshMemberRoll"
    )]
    NoMember(Label),
}

/// Everything that a peer offers. A copy shares the entries.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct PeerImports {
    pub offers: OrdMap<ServiceKey, Arc<Offer>>,
    /// Those that are imported.
    used: OrdMap<ServiceKey, ()>,
    pub locality: Locality,
}

/// A service that a peer offers, and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    pub remote: Arc<RemoteService>,
    /// `None`: no rule picks it.
    pub import: Option<Result<Arc<Import>, ImportProblem>>,
}

impl Offer {
    pub fn imported(&self) -> Option<&Arc<Import>> {
        self.import.as_ref()?.as_ref().ok()
    }
}

/// One imported service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Index of the rule that picks it.
    pub rule: usize,
    /// Name and namespace here.
    pub key: ServiceKey,
    pub host: ImportedHost,
    pub as_local: bool,
    pub ports: Vec<u16>,
    pub servers: ServerIds,
    /// How it fares there, if the peer tells.
    pub health: Option<Health>,
}

impl PeerImports {
    pub fn imported(&self) -> impl Iterator<Item = (&Arc<RemoteService>, &Arc<Import>)> {
        let offers = self.offers.values();
        offers.filter_map(|offer| Some((&offer.remote, offer.imported()?)))
    }

    /// What the peer is told of it.
    pub fn to_report(&self) -> Imported {
        let first = self.used.keys().take(NAMED_IN_REPORT);
        Imported {
            services: first.cloned().collect(),
            count: u32::try_from(self.used.len()).unwrap_or(u32::MAX),
        }
    }
}

/// From whom and by which rules services are imported.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Terms {
    /// Age of the peer: the oldest is asked first, then by name, so that a name stays with whom had it
    /// first, however often sets are made again.
    pub created: Option<Timestamp>,
    pub peer: PeerName,
    pub trust_domain: TrustDomain,
    pub rules: Arc<ImportRules>,
    pub system_namespace: String,
    /// The members of this mesh, also those that do not exist yet. `None` where nothing is imported
    /// as local.
    pub members: Option<BTreeSet<String>>,
}

/// What is used of all peers. Services of different peers compete for names.
#[derive(Debug, Default)]
pub(super) struct Imports {
    sources: BTreeMap<PeerName, Source>,
    /// Who would have each name, the first one first.
    claims: BTreeMap<ImportedHost, Vec<Claim>>,
}

#[derive(Debug)]
struct Source {
    terms: Terms,
    /// Up to where the peer's list was followed.
    services: Arc<RemoteServices>,
    given: PeerImports,
}

#[derive(Debug)]
struct Claim {
    rank: Rank,
    remote: Arc<RemoteService>,
    import: Arc<Import>,
}

/// Peers in the order of their age, the services of each in the order of their exported namespaces
/// and names.
type Rank = (Option<Timestamp>, PeerName, ServiceKey);

impl Imports {
    /// Takes the peers as they are now. How many services were looked at for that.
    pub fn follow(&mut self, wanted: BTreeMap<PeerName, (Terms, Arc<RemoteServices>)>) -> usize {
        let (mut touched, mut looked_at) = (BTreeSet::new(), 0);
        let gone: Vec<PeerName> = self
            .sources
            .iter()
            .filter(|(peer, source)| {
                let terms = wanted.get(*peer).map(|(terms, _)| terms);
                terms != Some(&source.terms)
            })
            .map(|(peer, _)| peer.clone())
            .collect();
        for peer in gone {
            if let Some(source) = self.sources.remove(&peer) {
                for remote in source.services.iter() {
                    self.retract(&source.terms, remote, &mut touched);
                    looked_at += 1;
                }
            }
        }
        for (peer, (terms, services)) in wanted {
            let mut source = self.sources.remove(&peer).unwrap_or_else(|| Source {
                given: PeerImports {
                    locality: terms.rules.locality().clone(),
                    ..PeerImports::default()
                },
                terms,
                services: Arc::default(),
            });
            let before = std::mem::replace(&mut source.services, services.clone());
            for (key, old, new) in before.by_key().changes(services.by_key()) {
                looked_at += 1;
                if let Some(old) = old {
                    self.retract(&source.terms, old, &mut touched);
                }
                match new {
                    Some(new) => self.offer(&mut source, new, &mut touched),
                    None => {
                        source.given.remove(key);
                    }
                }
            }
            self.sources.insert(peer, source);
        }
        for host in &touched {
            self.settle(host);
        }
        looked_at
    }

    pub fn given(&self) -> BTreeMap<PeerName, PeerImports> {
        let sources = self.sources.iter();
        sources
            .map(|(peer, source)| (peer.clone(), source.given.clone()))
            .collect()
    }

    pub fn of(&self, peer: &PeerName) -> Option<&PeerImports> {
        self.sources.get(peer).map(|source| &source.given)
    }

    /// Who has a name, the first one first.
    pub fn holders(&self, host: &str) -> impl Iterator<Item = (&PeerName, &Offer, &Arc<Import>)> {
        let claims = self.claims.get(host).into_iter().flatten();
        claims.filter_map(|claim| {
            let (_, peer, key) = &claim.rank;
            let offer = self.sources.get(peer)?.given.offers.get(key)?;
            Some((peer, &**offer, offer.imported()?))
        })
    }

    fn retract(
        &mut self,
        terms: &Terms,
        remote: &RemoteService,
        touched: &mut BTreeSet<ImportedHost>,
    ) {
        let Some(Ok(import)) = judge(terms, remote) else {
            return;
        };
        if let Some(claims) = self.claims.get_mut(&import.host) {
            claims.retain(|c| (&c.rank.1, &c.rank.2) != (&terms.peer, &remote.key));
            if claims.is_empty() {
                self.claims.remove(&import.host);
            }
        }
        touched.insert(import.host);
    }

    fn offer(
        &mut self,
        source: &mut Source,
        remote: &Arc<RemoteService>,
        touched: &mut BTreeSet<ImportedHost>,
    ) {
        let terms = &source.terms;
        let import = match judge(terms, remote) {
            None => None,
            Some(Err(problem)) => Some(Err(problem)),
            Some(Ok(import)) => {
                let (import, host) = (Arc::new(import.clone()), import.host);
                let claim = Claim {
                    rank: (terms.created, terms.peer.clone(), remote.key.clone()),
                    remote: remote.clone(),
                    import,
                };
                let claims = self.claims.entry(host.clone()).or_default();
                let at = claims.partition_point(|other| other.rank < claim.rank);
                claims.insert(at, claim);
                touched.insert(host);
                return;
            }
        };
        let remote = remote.clone();
        let offer = Offer { remote, import };
        source.given.put(offer);
    }

    /// Gives a name to the first who claims it, and to those who may join.
    fn settle(&mut self, host: &ImportedHost) {
        let claims = self.claims.get(host).map_or(&[][..], Vec::as_slice);
        let mut holder = Holder::default();
        for claim in claims {
            let import = holder.take(host, claim).map(|()| claim.import.clone());
            if let Some(source) = self.sources.get_mut(&claim.rank.1) {
                source.given.put(Offer {
                    remote: claim.remote.clone(),
                    import: Some(import),
                });
            }
        }
    }
}

impl PeerImports {
    fn remove(&mut self, key: &ServiceKey) {
        self.offers.remove(key);
        self.used.remove(key);
    }

    fn put(&mut self, offer: Offer) {
        let key = &offer.remote.key;
        if offer.imported().is_none() {
            self.used.remove(key);
        } else if !self.used.contains_key(key) {
            self.used.insert(key.clone(), ());
        }
        put(&mut self.offers, key.clone(), offer);
    }
}

/// Who has a name.
#[derive(Debug, Default)]
struct Holder<'c> {
    first: Option<&'c Claim>,
    /// Those that share the local name.
    peers: BTreeSet<&'c PeerName>,
}

impl<'c> Holder<'c> {
    fn take(&mut self, host: &ImportedHost, claim: &'c Claim) -> Result<(), ImportProblem> {
        let peer = &claim.rank.1;
        if let Some(first) = self.first {
            let joins = first.import.as_local && claim.import.as_local;
            if !joins || self.peers.contains(peer) {
                return Err(ImportProblem::NameTaken {
                    host: host.clone(),
                    holder: format!("{} of {}", first.remote.key, first.rank.1),
                });
            }
        } else {
            self.first = Some(claim);
        }
        self.peers.insert(peer);
        Ok(())
    }
}

/// What the rules say about one service, whatever others say.
fn judge(terms: &Terms, remote: &RemoteService) -> Option<Result<Import, ImportProblem>> {
    match terms.rules.decide(&remote.key) {
        ImportDecision::NoRule | ImportDecision::Broken { .. } => None,
        ImportDecision::BadName { error, .. } => Some(Err(error.into())),
        ImportDecision::Imported {
            rule,
            local,
            host,
            as_local,
        } => Some(import(terms, remote, (local, host), as_local, rule)),
    }
}

fn import(
    terms: &Terms,
    remote: &RemoteService,
    (key, host): (ServiceKey, ImportedHost),
    as_local: bool,
    rule: usize,
) -> Result<Import, ImportProblem> {
    if as_local {
        let namespace = key.namespace.as_str();
        if namespace == terms.system_namespace {
            return Err(ImportProblem::SystemNamespace(namespace.to_owned()));
        }
        // A name in a namespace of somebody else's would hide that one's service.
        if !terms.members.iter().any(|all| all.contains(namespace)) {
            return Err(ImportProblem::NoMember(key.namespace));
        }
    }
    let mut ports: Vec<u16> = Vec::with_capacity(remote.ports.len());
    for port in remote.ports.iter() {
        if port.protocol != Protocol::Udp && !ports.contains(&port.number) {
            ports.push(port.number);
        }
    }
    if ports.is_empty() {
        return Err(ImportProblem::NoPort);
    }
    Ok(Import {
        rule,
        key,
        host,
        as_local,
        ports,
        servers: servers(remote, &terms.trust_domain)?,
        health: remote.health,
    })
}

/// Who may answer: the service's accounts in the peer's own trust domain; any id of it if the peer
/// names none.
fn servers(remote: &RemoteService, domain: &TrustDomain) -> Result<ServerIds, ImportProblem> {
    if remote.accounts.is_empty() && remote.unreadable_accounts == 0 {
        return Ok(ServerIds::AnyOf(domain.clone()));
    }
    let ours = |id: &&SpiffeId| id.trust_domain() == domain;
    let ids: Vec<SpiffeId> = remote.accounts.iter().filter(ours).cloned().collect();
    if ids.is_empty() {
        return Err(ImportProblem::ForeignAccounts(domain.clone()));
    }
    Ok(ServerIds::OneOf(ids))
}
