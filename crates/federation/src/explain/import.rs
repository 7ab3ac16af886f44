//! Why a service of a peer is imported, or not.

use meshfed_proxy_config::sni;

use super::facts::{Facts, Gateway, ONE_WAY, add_to};
use super::rules::{import_rule, trials};
use super::{Direction, Explanation, Obstacle};
use crate::discovery::client::RemoteState;
use crate::discovery::remote::RemoteService;
use crate::names::{DomainSuffix, ImportedHost, PeerName, RemoteHost, ServiceKey};
use crate::plan::{GatewayKind, IMPORTS_EXPIRED, ImportProblem, Plan};
use crate::rules::{ImportDecision, ImportRules};
use crate::world::{ObjectKey, World};

/// Services of the peer that a message names when the one asked for is not among them.
const MOST_NAMED: usize = 5;

/// Why `service`, as `peer` exports it, is imported, or what stands in the way.
pub fn explain_import(
    world: &World,
    plan: &Plan,
    service: &ServiceKey,
    peer: &PeerName,
) -> Explanation {
    let import = Import {
        facts: Facts { world, plan, peer },
        service,
    };
    let mut answer = Explanation::new(Direction::Import, service, peer);
    answer.obstacle = import.explain(&mut answer).err();
    answer
}

struct Import<'a> {
    facts: Facts<'a>,
    service: &'a ServiceKey,
}

impl<'a> Import<'a> {
    /// Fills the answer as far as things go; the first obstacle ends it.
    fn explain(&self, answer: &mut Explanation) -> Result<(), Obstacle> {
        let facts = &self.facts;
        let decision = self.rules(answer);
        if let Some(obstacle) = facts.peer_obstacle() {
            return Err(obstacle);
        }
        let egress = facts.gateway(GatewayKind::Egress)?;
        let remote = self.offered()?;
        answer.known_at(format!("{}'s border", facts.peer), &remote.host);
        let (host, joins) = self.decided(decision)?;
        let hidden = RemoteHost::new(self.service, facts.peer);
        answer.known_at("our egress gateway alone", hidden);
        answer.known_at("this mesh", &host);
        self.is_imported()?;
        answer.shared = true;
        self.path(answer, &egress, remote, &host, joins.as_ref());
        self.carries(&egress)?;
        self.has_endpoints(remote, joins.is_some())
    }

    /// What the rules say, whether the peer exports such a service or not.
    fn rules(&self, answer: &mut Explanation) -> Option<(ImportDecision, Option<String>)> {
        let facts = &self.facts;
        let key = facts.key();
        let set = facts.world.resources.imports.get(&key)?;
        let suffix = DomainSuffix::of_cluster(&facts.world.mesh.cluster_domain);
        let rules = ImportRules::parse(&set.spec, facts.peer, &suffix);
        let explained = rules.explain(self.service);
        let decided = match &explained.decision {
            ImportDecision::Imported { rule, .. } | ImportDecision::BadName { rule, .. } => {
                Some(*rule)
            }
            ImportDecision::NoRule | ImportDecision::Broken { .. } => None,
        };
        let selects = set.spec.import_rules.iter().map(import_rule);
        answer.set = Some(key.to_string());
        let tried = &explained.tried;
        answer.rules = trials(selects, "spec.importRules", tried, decided, rules.broken());
        let broken = rules.broken().map(ToString::to_string);
        Some((explained.decision, broken))
    }

    /// The service as the peer last told of it, if that still counts.
    fn offered(&self) -> Result<&'a RemoteService, Obstacle> {
        let facts = &self.facts;
        let (peer, system) = (facts.peer, facts.system());
        let look = format!("kubectl -n {system} get servicemeshpeer {peer} -o yaml");
        let unheard = || {
            let ready = facts.ready();
            let said = ready.and_then(|c| c.message.clone()).unwrap_or_default();
            Obstacle::new(
                "NeverHeard",
                format!("nothing was heard of {peer} yet: {said}"),
                format!(
                    "see that {peer} runs, is reached, and has a ServiceMeshPeer for this mesh"
                ),
            )
            .command(look.clone())
        };
        let state = facts.state().ok_or_else(unheard)?;
        let remote = &state.remote;
        if facts.is_expired(remote) {
            return Err(self.expired(remote, look));
        }
        if let Some(found) = remote.services.get(self.service) {
            return Ok(found);
        }
        if remote.withdrawn {
            return Err(Obstacle::new(
                "UnknownToPeer",
                format!("{peer} says that it does not know this mesh"),
                format!("the administrator of {peer} applies there what this command makes here"),
            )
            .command(format!("meshfed peer bundle --for {peer}")));
        }
        if remote.services.is_empty() && remote.last_full_sync.is_none() {
            return Err(unheard());
        }
        let mut names: Vec<String> = remote
            .services
            .iter()
            .map(|service| format!("{}.{}", service.key.name, service.key.namespace))
            .collect();
        let more = names.len().saturating_sub(MOST_NAMED);
        names.truncate(MOST_NAMED);
        let offers = match (names.is_empty(), more) {
            (true, _) => "it exports nothing to this mesh".to_owned(),
            (_, 0) => format!("it exports {}", names.join(", ")),
            _ => format!("it exports {} and {more} more", names.join(", ")),
        };
        Err(Obstacle::new(
            "NotExported",
            format!(
                "{peer} does not export {}.{}; {offers}",
                self.service.name, self.service.namespace
            ),
            format!(
                "name it as {peer} exports it, or ask its administrator, who sees why with this command"
            ),
        )
        .command(format!(
            "meshfed explain export NAMESPACE/NAME --peer {}",
            facts.own_name()
        )))
    }

    /// The peer exported it and was not heard for so long that this does not count any more.
    fn expired(&self, remote: &RemoteState, look: String) -> Obstacle {
        let peer = self.facts.peer;
        let since = remote
            .last_contact
            .map_or_else(String::new, |contact| format!(" since {contact}"));
        Obstacle::new(
            IMPORTS_EXPIRED,
            format!(
                "nothing was heard of {peer}{since}, so what it exported before does not count any more"
            ),
            format!(
                "see that {peer} runs and is reached; the annotation \
                 meshfed.io/imports-outlive-contact of the ServiceMeshPeer says how long it may be \
                 silent"
            ),
        )
        .command(look)
    }

    /// The name here, if a rule gives one, and the service of our own that it joins, if it does.
    fn decided(
        &self,
        decision: Option<(ImportDecision, Option<String>)>,
    ) -> Result<(ImportedHost, Option<ServiceKey>), Obstacle> {
        let facts = &self.facts;
        let (peer, system) = (facts.peer, facts.system());
        let rule = self.rule();
        let edit = format!("kubectl -n {system} edit importedserviceset {peer}");
        match decision {
            Some((
                ImportDecision::Imported {
                    host,
                    local,
                    as_local,
                    ..
                },
                _,
            )) => Ok((host, Some(local).filter(|_| as_local))),
            None => Err(Obstacle::new(
                "NoSet",
                format!("{peer} exports it, and there is no ImportedServiceSet {peer} in {system}"),
                "create it with a rule that names the service",
            )
            .command(format!(
                "echo '{{\"apiVersion\":\"federation.maistra.io/v1\",\"kind\":\"ImportedServiceSet\",\
                 \"metadata\":{{\"name\":\"{peer}\",\"namespace\":\"{system}\"}},\
                 \"spec\":{{\"importRules\":[{rule}]}}}}' | kubectl apply -f -"
            ))),
            Some((ImportDecision::NoRule, _)) => Err(self.no_rule()),
            Some((ImportDecision::BadName { error, .. }, _)) => Err(Obstacle::new(
                "InvalidName",
                format!("its name here cannot be used: {error}"),
                "give it a shorter alias or domainSuffix",
            )
            .command(edit)),
            Some((ImportDecision::Broken { .. }, error)) => {
                let error = error.unwrap_or_default();
                Err(Obstacle::new(
                    "InvalidRule",
                    format!("no rule matches before one that cannot be read: {error}"),
                    "mend that rule; it and those after it are not used",
                )
                .command(edit))
            }
        }
    }

    /// Whether the plan imports what a rule picks.
    fn is_imported(&self) -> Result<(), Obstacle> {
        let offers = self.facts.plan.shares.imports.get(self.facts.peer);
        let offer = offers.and_then(|offers| offers.get(self.service));
        let problem = match offer.and_then(|offer| offer.import.as_ref()) {
            Some(Ok(_)) => return Ok(()),
            Some(Err(problem)) => problem,
            None => return Err(self.no_rule()),
        };
        let (peer, system) = (self.facts.peer, self.facts.system());
        let alias = "give one of the two another alias or domainSuffix";
        let ask = format!("ask the administrator of {peer}, who sees it with this command");
        let (reason, remedy) = match problem {
            ImportProblem::Name(_) => ("InvalidName", "give it a shorter alias or domainSuffix"),
            ImportProblem::NameTaken { .. } => ("NameTaken", alias),
            ImportProblem::SystemNamespace(_) => (
                "SystemNamespace",
                "give it an alias in another namespace, which is a member of the mesh",
            ),
            ImportProblem::NoMember(_) => (
                "NotAMember",
                "make the namespace a member, or give an alias in one that is",
            ),
            ImportProblem::NoPort => ("NoPort", ask.as_str()),
            ImportProblem::ForeignAccounts(_) => ("ForeignAccounts", ask.as_str()),
        };
        let command = if remedy == ask {
            format!(
                "meshfed explain export NAMESPACE/NAME --peer {}",
                self.facts.own_name()
            )
        } else {
            format!("kubectl -n {system} edit importedserviceset {peer}")
        };
        Err(Obstacle::new(reason, problem.to_string(), remedy).command(command))
    }

    fn no_rule(&self) -> Obstacle {
        let (peer, system) = (self.facts.peer, self.facts.system());
        let set = self.facts.world.resources.imports.get(&self.facts.key());
        let is_empty = set.is_none_or(|set| set.spec.import_rules.is_empty());
        let patch = add_to("importRules", is_empty, &self.rule());
        Obstacle::new(
            "NoRule",
            format!("{peer} exports it, and no rule of the ImportedServiceSet {peer} matches it"),
            "add one",
        )
        .command(format!(
            "kubectl -n {system} patch importedserviceset {peer} {patch}"
        ))
    }

    /// A rule that picks just this service.
    fn rule(&self) -> String {
        format!(
            "{{\"type\":\"NameSelector\",\"nameSelector\":{{\"namespace\":\"{}\",\"name\":\"{}\"}}}}",
            self.service.namespace, self.service.name
        )
    }

    fn path(
        &self,
        answer: &mut Explanation,
        egress: &Gateway,
        remote: &RemoteService,
        host: &ImportedHost,
        joins: Option<&ServiceKey>,
    ) {
        let facts = &self.facts;
        let peer = facts.peer;
        let ports: Vec<u16> = remote.tcp_ports().collect();
        let mut does: Vec<String> = ports
            .iter()
            .map(|port| format!("calls http://{host}:{port}"))
            .collect();
        if let Some(local) = joins {
            let key = ObjectKey::new(local.namespace.as_str(), local.name.as_str());
            does.push(match facts.world.resources.services.get(&key) {
                Some(_) => "the service of this name here shares in its calls".to_owned(),
                None => format!("there is no Service {key} here that shares in its calls"),
            });
        }
        answer.hop("a workload of this mesh", does);
        let at: Vec<String> = egress
            .addresses
            .iter()
            .take(1)
            .map(|a| format!("listens on {}:{}", a.ip, a.service_port))
            .collect();
        let hidden = RemoteHost::new(self.service, peer);
        // A local name may be that of several peers.
        let name = match joins {
            Some(_) => host.as_str(),
            None => hidden.as_str(),
        };
        let asked = ports
            .iter()
            .map(|port| format!("is asked for {}", sni(*port, name)));
        answer.hop(
            format!("our egress gateway {}", egress.name),
            at.into_iter().chain(asked).collect(),
        );
        let spec = facts.object().map(|peer| &peer.spec.remote);
        let port = spec
            .and_then(|remote| remote.service_port)
            .filter(|port| *port != 0);
        let port = port.unwrap_or_else(|| i32::from(meshfed_api::peer::DEFAULT_SERVICE_PORT));
        let addresses = spec
            .map(|remote| remote.addresses.as_slice())
            .unwrap_or_default();
        let mut does: Vec<String> = addresses
            .iter()
            .map(|address| format!("is reached at {address}, port {port}"))
            .collect();
        let names = ports.iter().map(|port| sni(*port, remote.host.as_str()));
        does.extend(names.map(|name| format!("is asked for {name}")));
        does.extend(
            remote
                .accounts
                .iter()
                .map(|id| format!("must prove to be {id}")),
        );
        answer.hop(format!("ingress gateway of {peer}"), does);
        answer.hop(
            format!("a workload of {peer}"),
            vec!["which one, and what it is called there, is not known here".to_owned()],
        );
    }

    /// Whether somebody in the other mesh takes requests, if it tells.
    fn has_endpoints(&self, remote: &RemoteService, as_local: bool) -> Result<(), Obstacle> {
        let peer = self.facts.peer;
        let until = match as_local {
            true => "only what else this mesh has under this name is called",
            false => "callers get 503 at once",
        };
        match remote.health {
            Some(health) if health.ready_endpoints == 0 => Err(Obstacle::new(
                "NoReadyEndpoint",
                format!(
                    "{peer} says that none of its {} endpoints of {} is ready; until one is, \
                     {until}",
                    health.capacity, remote.host
                ),
                format!("ask the administrator of {peer} to see after its workloads"),
            )),
            _ => Ok(()),
        }
    }

    /// What is in the way of a request although the service is imported.
    fn carries(&self, egress: &Gateway) -> Result<(), Obstacle> {
        let facts = &self.facts;
        if let Some(obstacle) = facts.gateway_trouble(egress) {
            return Err(obstacle);
        }
        let Some(ready) = facts.ready().filter(|ready| ready.status != "True") else {
            return Ok(());
        };
        let reason = ready.reason.clone().unwrap_or_default();
        // The other direction is no matter of this one.
        if reason.starts_with("Gateway") || reason == ONE_WAY {
            return Ok(());
        }
        let said = ready.message.clone().unwrap_or_default();
        let (peer, system) = (facts.peer, facts.system());
        Err(Obstacle::new(
            reason,
            format!("{peer} is not connected, so what it last exported is used: {said}"),
            format!("see that {peer} runs and is reached"),
        )
        .command(format!(
            "kubectl -n {system} get servicemeshpeer {peer} -o yaml"
        )))
    }
}
