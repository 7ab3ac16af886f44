//! The rules of an ImportedServiceSet.

use meshfed_api::ImportedServiceSetSpec;
use meshfed_api::imported::ImportRule;
use meshfed_api::selector::NAME_SELECTOR;
use meshfed_proxy_config::Locality;

use super::index::Index;
use super::pattern::ByName;
use super::{Explained, RuleError, RuleFault, Tried};
use crate::names::{DomainSuffix, ImportedHost, NameError, PeerName, ServiceKey, clip};

/// The rules of one set, as far as they can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportRules {
    rules: Vec<Rule>,
    index: Index,
    broken: Option<RuleError>,
    locality: Locality,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    selector: ByName,
    suffix: DomainSuffix,
    as_local: bool,
}

/// What the rules say about one service of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportDecision {
    Imported {
        rule: usize,
        /// Name and namespace in this mesh.
        local: ServiceKey,
        host: ImportedHost,
        /// Its endpoints join those of our own service of this name.
        as_local: bool,
    },
    /// A rule matches and gives a name that cannot be used.
    BadName { rule: usize, error: NameError },
    /// No rule matches.
    NoRule,
    /// No rule matches before the one that cannot be read.
    Broken { rule: usize },
}

impl ImportRules {
    /// `local_suffix` is what follows name and namespace of this mesh's own services, such as
    /// `svc.cluster.local`.
    pub fn parse(
        spec: &ImportedServiceSetSpec,
        peer: &PeerName,
        local_suffix: &DomainSuffix,
    ) -> Self {
        let mut all = Self::default();
        let parsed = (|| {
            all.locality = parse_locality(spec)?;
            let default = match spec.domain_suffix.as_deref() {
                None | Some("") => DomainSuffix::imports_of(peer),
                Some(text) => parse_suffix(text, local_suffix, "spec.domainSuffix")?,
            };
            for (i, rule) in spec.import_rules.iter().enumerate() {
                let path = format!("spec.importRules[{i}]");
                all.rules
                    .push(Rule::parse(rule, &path, &default, local_suffix)?);
            }
            Ok(())
        })();
        all.broken = parsed.err();
        let patterns = all.rules.iter().map(|rule| &rule.selector);
        let patterns: Vec<_> = patterns.map(|s| (&s.namespace, &s.name)).collect();
        all.index = Index::new(&patterns);
        all
    }

    /// What is wrong with the set or with the first rule that cannot be read.
    pub fn broken(&self) -> Option<&RuleError> {
        self.broken.as_ref()
    }

    /// Whether some rule gives names of this mesh's own services.
    pub fn joins_local(&self) -> bool {
        self.rules.iter().any(|rule| rule.as_local)
    }

    /// Where the services of this set are.
    pub fn locality(&self) -> &Locality {
        &self.locality
    }

    /// `key` is the name that the peer exports.
    pub fn decide(&self, key: &ServiceKey) -> ImportDecision {
        let candidates = self.index.in_namespace(&key.namespace);
        let mut candidates = candidates.rules_for(&key.name).iter();
        let found = candidates.find_map(|index| {
            let rule = self.rules.get(*index)?;
            rule.selector.check(key).ok()?;
            Some((*index, rule))
        });
        match found {
            Some((index, rule)) => rule.import(index, key),
            None => self.none(),
        }
    }

    /// When no rule matches.
    fn none(&self) -> ImportDecision {
        match self.broken {
            Some(_) => ImportDecision::Broken {
                rule: self.rules.len(),
            },
            None => ImportDecision::NoRule,
        }
    }

    pub fn explain(&self, key: &ServiceKey) -> Explained<'_, ImportDecision> {
        let mut tried = Vec::new();
        let decision = self.decide_noting(key, |miss| tried.push(miss));
        Explained { decision, tried }
    }

    fn decide_noting<'r>(
        &'r self,
        key: &ServiceKey,
        mut missed: impl FnMut(Tried<'r>),
    ) -> ImportDecision {
        for (index, rule) in self.rules.iter().enumerate() {
            match rule.selector.check(key) {
                Ok(()) => return rule.import(index, key),
                Err(miss) => missed(Tried { rule: index, miss }),
            }
        }
        self.none()
    }
}

impl Rule {
    fn parse(
        rule: &ImportRule,
        path: &str,
        default: &DomainSuffix,
        local_suffix: &DomainSuffix,
    ) -> Result<Self, RuleError> {
        if rule.type_ != NAME_SELECTOR {
            let fault = RuleFault::UnknownType {
                given: clip(&rule.type_),
                known: "NameSelector: labels of a peer are not known here",
            };
            return Err(fault.at(format!("{path}.type")));
        }
        let selector_path = format!("{path}.nameSelector");
        let Some(selector) = &rule.name_selector else {
            return Err(RuleFault::Missing.at(selector_path));
        };
        let selector = ByName::parse(selector, &selector_path)?;
        let as_local = rule.import_as_local.unwrap_or(false);
        if as_local && selector.alias.namespace.is_none() {
            let path = format!("{selector_path}.alias.namespace");
            return Err(RuleFault::LocalWithoutNamespace.at(path));
        }
        let suffix = match rule.domain_suffix.as_deref() {
            _ if as_local => local_suffix.clone(),
            None | Some("") => default.clone(),
            Some(text) => parse_suffix(text, local_suffix, &format!("{path}.domainSuffix"))?,
        };
        Ok(Self {
            selector,
            suffix,
            as_local,
        })
    }

    fn import(&self, rule: usize, key: &ServiceKey) -> ImportDecision {
        let local = self.selector.alias.apply(key);
        match ImportedHost::new(&local, &self.suffix) {
            Ok(host) => ImportDecision::Imported {
                rule,
                local,
                host,
                as_local: self.as_local,
            },
            Err(error) => ImportDecision::BadName { rule, error },
        }
    }
}

/// A suffix under which a name could be taken for one of our own services is refused: `svc` and
/// everything that ends with our own.
fn parse_suffix(
    text: &str,
    local_suffix: &DomainSuffix,
    path: &str,
) -> Result<DomainSuffix, RuleError> {
    let suffix: DomainSuffix = text.parse().map_err(|e| RuleFault::from(e).at(path))?;
    let under_ours = text
        .strip_suffix(local_suffix.as_str())
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if under_ours || text == "svc" {
        return Err(RuleFault::ReservedSuffix(text.to_owned()).at(path));
    }
    Ok(suffix)
}

fn parse_locality(spec: &ImportedServiceSetSpec) -> Result<Locality, RuleError> {
    let given = spec.locality.clone().unwrap_or_default();
    let locality = Locality {
        region: given.region.unwrap_or_default(),
        zone: given.zone.unwrap_or_default(),
        subzone: given.subzone.unwrap_or_default(),
    };
    let parts = [
        ("region", &locality.region),
        ("zone", &locality.zone),
        ("subzone", &locality.subzone),
    ];
    for (name, part) in parts {
        if part.contains('/') {
            return Err(RuleFault::LocalityPart(clip(part)).at(format!("spec.locality.{name}")));
        }
    }
    let zone_alone = locality.region.is_empty() && !locality.zone.is_empty();
    let subzone_alone = locality.zone.is_empty() && !locality.subzone.is_empty();
    if zone_alone || subzone_alone {
        return Err(RuleFault::Locality.at("spec.locality"));
    }
    Ok(locality)
}
