//! Statuses of ExportedServiceSet and ImportedServiceSet.

use std::collections::BTreeMap;

use meshfed_api::exported::{ExportedServiceSetStatus, ExportedServiceStatus};
use meshfed_api::imported::{ImportedServiceSetStatus, ImportedServiceStatus};
use meshfed_api::selector::LocalService;
use meshfed_api::{ExportedServiceSet, ImportedServiceSet};

use super::Decided;
use super::bounded::{bounded, named};
use super::condition::{READY, Verdict, conditions};
use super::crowded::Crowded;
use super::peer::{Contact, contact, expired, set_problem};
use crate::names::PeerName;
use crate::plan::exports::PeerExports;
use crate::plan::imports::{ImportProblem, Offer, PeerImports};
use crate::plan::staleness;
use crate::rules::{ExportRules, RuleError};
use crate::world::ObjectKey;

/// Faults that a message names; more are counted.
const MAX_NAMED: usize = 10;
/// About what an entry takes beside its names.
const ENTRY_LEN: usize = 96;

pub(super) fn exported(
    decided: &Decided<'_, '_>,
    key: &ObjectKey,
    set: &ExportedServiceSet,
) -> ExportedServiceSetStatus {
    let present = set.status.as_ref().map(|s| s.conditions.as_slice());
    let none = PeerExports::default();
    let exports = decided
        .exports
        .get(key.name.as_str())
        .filter(|_| key.namespace == decided.world.mesh.system_namespace)
        .unwrap_or(&none);
    let ready = set_problem(decided, key).unwrap_or_else(|| {
        let gap = decided
            .peers
            .get(key)
            .and_then(|p| p.as_ref().ok()?.ingress.as_ref().err());
        let broken = ExportRules::parse(&set.spec).broken().cloned();
        let lost = exports.lost.values().map(ToString::to_string);
        match gap {
            Some(gap) => Verdict::fails(READY, gap.reason(), gap.to_string()),
            None => ready(
                broken.as_ref(),
                "NameTaken",
                lost.collect(),
                || match exports.exported.len() {
                    1 => "1 service is exported".to_owned(),
                    count => format!("{count} services are exported"),
                },
            ),
        }
    });
    let entries = exports
        .exported
        .iter()
        .map(|(host, exported)| ExportedServiceStatus {
            exported_name: host.to_string(),
            local_service: LocalService {
                hostname: exported.local.host.to_string(),
                name: exported.local.key.name.to_string(),
                namespace: exported.local.key.namespace.to_string(),
            },
        });
    let length = |e: &ExportedServiceStatus| entry_len(&e.exported_name, &e.local_service);
    let (exported_services, listed) = bounded(entries, length, "services");
    ExportedServiceSetStatus {
        exported_services,
        conditions: conditions(present, [ready, listed], &set.metadata, decided.world.now),
    }
}

pub(super) fn imported(
    decided: &Decided<'_, '_>,
    crowded: &BTreeMap<PeerName, Crowded>,
    key: &ObjectKey,
    set: &ImportedServiceSet,
) -> ImportedServiceSetStatus {
    let present = set.status.as_ref().map(|s| s.conditions.as_slice());
    let none = PeerImports::default();
    let imports = decided
        .imports
        .get(key.name.as_str())
        .filter(|_| key.namespace == decided.world.mesh.system_namespace)
        .unwrap_or(&none);
    let ready = set_problem(decided, key).unwrap_or_else(|| {
        let peer = decided.peers.get(key).and_then(|p| p.as_ref().ok());
        let gap = peer.and_then(|peer| peer.egress.as_ref().err());
        if let Some(gap) = gap {
            return Verdict::fails(READY, gap.reason(), gap.to_string());
        }
        let rules = peer.map(|peer| decided.import_rules(&set.spec, &peer.name));
        let broken = rules.as_ref().and_then(|rules| rules.broken());
        let problems = imports.offers.values().filter_map(|offer| problem(offer));
        let mut problems: Vec<String> = problems.collect();
        let mut reason = "NotImported";
        if let Some(crowded) = peer.and_then(|peer| crowded.get(&peer.name)) {
            if problems.is_empty() {
                reason = "TooManyShared";
            }
            problems.insert(0, crowded.message());
        }
        let contact = contact(decided, key);
        if broken.is_none() && contact == Contact::Never {
            let message = "nothing was heard of the peer's exports yet; \
                           the status of the ServiceMeshPeer says why";
            return Verdict::fails(READY, "PeerNotHeard", message);
        }
        if broken.is_none()
            && let Some(services) = expired(decided, key)
        {
            let were = match services {
                1 => "the 1 service that the peer exported last does not count".to_owned(),
                many => format!("the {many} services that the peer exported last do not count"),
            };
            let message = format!(
                "{were} any more: the peer was silent for longer than \
                 meshfed.io/imports-outlive-contact allows"
            );
            return Verdict::fails(READY, staleness::IMPORTS_EXPIRED, message);
        }
        ready(broken, reason, problems, || {
            let count = imports.imported().count();
            let of = imports.offers.len();
            let mut message = format!("{count} of {of} exported services are imported");
            if contact == Contact::Before {
                message.push_str("; the peer is not connected, this is what it exported last");
            }
            message
        })
    });
    let mut offers: Vec<&Offer> = imports.offers.values().map(AsRef::as_ref).collect();
    offers.sort_by(|a, b| a.remote.host.cmp(&b.remote.host));
    let entries = offers.into_iter().map(|offer| ImportedServiceStatus {
        exported_name: offer.remote.host.to_string(),
        local_service: match &offer.import {
            Some(Ok(import)) => LocalService {
                hostname: import.host.to_string(),
                name: import.key.name.to_string(),
                namespace: import.key.namespace.to_string(),
            },
            _ => LocalService::default(),
        },
    });
    let length = |e: &ImportedServiceStatus| entry_len(&e.exported_name, &e.local_service);
    let (imported_services, listed) = bounded(entries, length, "services");
    ImportedServiceSetStatus {
        imported_services,
        conditions: conditions(present, [ready, listed], &set.metadata, decided.world.now),
    }
}

fn problem(offer: &Offer) -> Option<String> {
    let problem: &ImportProblem = offer.import.as_ref()?.as_ref().err()?;
    Some(format!("{}: {problem}", offer.remote.key))
}

fn ready(
    broken: Option<&RuleError>,
    reason: &'static str,
    mut faults: Vec<String>,
    good: impl FnOnce() -> String,
) -> Verdict {
    let reason = match broken {
        Some(error) => {
            let message = format!("{error}; this rule and those after it are not used");
            faults.insert(0, message);
            "InvalidRule"
        }
        None if faults.is_empty() => return Verdict::holds(READY, "RulesApplied", good()),
        None => reason,
    };
    Verdict::fails(READY, reason, named(faults, MAX_NAMED, "; "))
}

fn entry_len(exported_name: &str, local: &LocalService) -> usize {
    let local = local.hostname.len() + local.name.len() + local.namespace.len();
    ENTRY_LEN + exported_name.len() + local
}
