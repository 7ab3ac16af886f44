//! What we use of what peers export.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meshfed_pki::{SpiffeId, TrustDomain};
use meshfed_proxy_config::{Locality, ServerIds};

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
    #[error("none of its service accounts is in the peer's trust domain {0}")]
    ForeignAccounts(TrustDomain),
    #[error("it has no port that carries TCP")]
    NoPort,
    #[error("{host} is already the name of {holder}; give one of them an alias")]
    NameTaken { host: ImportedHost, holder: String },
    #[error(
        "{host} is already the name of {holder}, by the same egress gateway {egress}; peers that join one local service need egress gateways of their own"
    )]
    EgressShared {
        host: ImportedHost,
        holder: String,
        egress: String,
    },
    #[error("importAsLocal into {0}, the namespace of the control plane")]
    SystemNamespace(String),
    #[error(
        "importAsLocal into {0}, which is no member of this mesh; add it to the ServiceMeshMemberRoll"
    )]
    NoMember(Label),
}

/// Everything that a peer offers, in the order of its names.
#[derive(Debug, Clone, Default)]
pub(super) struct PeerImports {
    pub offers: Vec<Offer>,
    pub locality: Locality,
}

#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub remote: Arc<RemoteService>,
    /// `None`: no rule picks it.
    pub import: Option<Result<Import, ImportProblem>>,
}

/// One imported service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Import {
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
    pub fn imported(&self) -> impl Iterator<Item = (&Arc<RemoteService>, &Import)> {
        self.offers.iter().filter_map(|offer| {
            let import = offer.import.as_ref()?.as_ref().ok()?;
            Some((&offer.remote, import))
        })
    }

    /// What the peer is told of it.
    pub fn to_report(&self) -> Imported {
        let first = self.imported().take(NAMED_IN_REPORT);
        Imported {
            services: first.map(|(remote, _)| remote.key.clone()).collect(),
            count: u32::try_from(self.imported().count()).unwrap_or(u32::MAX),
        }
    }
}

/// Names that are in use in this mesh. Peers are asked in a fixed order, the services of each in the
/// order of their exported namespaces and names, and the first one keeps the name.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<ImportedHost, Holder>);

#[derive(Debug)]
struct Holder {
    who: String,
    /// The local name is shared by peers that are reached by different gateways: by the name alone
    /// a gateway could not tell them apart.
    as_local: bool,
    peers: BTreeSet<PeerName>,
    egresses: BTreeSet<String>,
}

impl Names {
    fn claim(
        &mut self,
        import: &Import,
        who: &str,
        source: &Source<'_>,
    ) -> Result<(), ImportProblem> {
        let host = import.host.clone();
        let Some(holder) = self.0.get_mut(&import.host) else {
            let holder = Holder {
                who: who.to_owned(),
                as_local: import.as_local,
                peers: BTreeSet::from([source.peer.clone()]),
                egresses: BTreeSet::from([source.egress.to_owned()]),
            };
            self.0.insert(host, holder);
            return Ok(());
        };
        let joins = holder.as_local && import.as_local && !holder.peers.contains(source.peer);
        if !joins {
            let holder = holder.who.clone();
            return Err(ImportProblem::NameTaken { host, holder });
        }
        if !holder.egresses.insert(source.egress.to_owned()) {
            return Err(ImportProblem::EgressShared {
                host,
                holder: holder.who.clone(),
                egress: source.egress.to_owned(),
            });
        }
        holder.peers.insert(source.peer.clone());
        Ok(())
    }
}

/// The mesh that imports.
pub(super) struct Importer<'a> {
    pub system_namespace: &'a str,
    /// Its members, also those that do not exist yet.
    pub members: &'a BTreeSet<String>,
}

/// The peer whose offers are looked at.
pub(super) struct Source<'a> {
    pub peer: &'a PeerName,
    pub trust_domain: &'a TrustDomain,
    /// Name of our egress gateway for it.
    pub egress: &'a str,
}

pub(super) fn imports(
    source: &Source<'_>,
    services: &RemoteServices,
    rules: &ImportRules,
    names: &mut Names,
    importer: &Importer<'_>,
) -> PeerImports {
    let offers = services.iter().map(|remote| {
        let import = match rules.decide(&remote.key) {
            ImportDecision::NoRule | ImportDecision::Broken { .. } => None,
            ImportDecision::BadName { error, .. } => Some(Err(error.into())),
            ImportDecision::Imported {
                local,
                host,
                as_local,
                ..
            } => {
                let import = import(source, remote, local, host, as_local, importer);
                Some(import.and_then(|import| {
                    let who = format!("{} of {}", remote.key, source.peer);
                    names.claim(&import, &who, source)?;
                    Ok(import)
                }))
            }
        };
        Offer {
            remote: remote.clone(),
            import,
        }
    });
    PeerImports {
        offers: offers.collect(),
        locality: rules.locality().clone(),
    }
}

fn import(
    source: &Source<'_>,
    remote: &RemoteService,
    key: ServiceKey,
    host: ImportedHost,
    as_local: bool,
    importer: &Importer<'_>,
) -> Result<Import, ImportProblem> {
    if as_local {
        let namespace = key.namespace.as_str();
        if namespace == importer.system_namespace {
            return Err(ImportProblem::SystemNamespace(namespace.to_owned()));
        }
        // A name in a namespace of somebody else's would hide that one's service.
        if !importer.members.contains(namespace) {
            return Err(ImportProblem::NoMember(key.namespace));
        }
    }
    let mut ports: Vec<u16> = Vec::with_capacity(remote.ports.len());
    for port in &remote.ports {
        if port.protocol != Protocol::Udp && !ports.contains(&port.number) {
            ports.push(port.number);
        }
    }
    if ports.is_empty() {
        return Err(ImportProblem::NoPort);
    }
    Ok(Import {
        key,
        host,
        as_local,
        ports,
        servers: servers(remote, source.trust_domain)?,
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
