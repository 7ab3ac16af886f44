//! What we use of what peers export.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meshfed_pki::{SpiffeId, TrustDomain};
use meshfed_proxy_config::{Locality, ServerIds};

use crate::discovery::remote::{RemoteService, RemoteServices};
use crate::names::{ImportedHost, NameError, PeerName, ServiceKey};
use crate::protocol::Protocol;
use crate::rules::{ImportDecision, ImportRules};

/// Why a service that a rule picks is not imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportProblem {
    #[error("its name here cannot be used: {0}")]
    Name(#[from] NameError),
    #[error("none of its service accounts is in the peer's trust domain {0}")]
    ForeignAccounts(TrustDomain),
    #[error("it has no port that carries TCP")]
    NoPort,
    #[error("{host} is already the name of {holder}")]
    NameTaken { host: ImportedHost, holder: String },
    #[error("importAsLocal into {0}, the namespace of the control plane")]
    SystemNamespace(String),
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
}

impl PeerImports {
    pub fn imported(&self) -> impl Iterator<Item = (&Arc<RemoteService>, &Import)> {
        self.offers.iter().filter_map(|offer| {
            let import = offer.import.as_ref()?.as_ref().ok()?;
            Some((&offer.remote, import))
        })
    }
}

/// Names that are in use in this mesh. Peers are asked in a fixed order and the first one keeps
/// the name, so that nothing flaps.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<ImportedHost, Holder>);

#[derive(Debug)]
struct Holder {
    who: String,
    /// The local name is shared by peers that are reached by different gateways.
    as_local: bool,
    egresses: BTreeSet<String>,
}

impl Names {
    fn claim(&mut self, import: &Import, who: &str, egress: &str) -> Result<(), ImportProblem> {
        let Some(holder) = self.0.get_mut(&import.host) else {
            let holder = Holder {
                who: who.to_owned(),
                as_local: import.as_local,
                egresses: BTreeSet::from([egress.to_owned()]),
            };
            self.0.insert(import.host.clone(), holder);
            return Ok(());
        };
        let joins = holder.as_local && import.as_local && !holder.egresses.contains(egress);
        if !joins {
            return Err(ImportProblem::NameTaken {
                host: import.host.clone(),
                holder: holder.who.clone(),
            });
        }
        holder.egresses.insert(egress.to_owned());
        Ok(())
    }
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
    system_namespace: &str,
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
            } => Some(
                import(source, remote, local, host, as_local, system_namespace).and_then(
                    |import| {
                        let who = format!("{} of {}", remote.key, source.peer);
                        names.claim(&import, &who, source.egress)?;
                        Ok(import)
                    },
                ),
            ),
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
    system_namespace: &str,
) -> Result<Import, ImportProblem> {
    if as_local && key.namespace.as_str() == system_namespace {
        return Err(ImportProblem::SystemNamespace(system_namespace.to_owned()));
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
