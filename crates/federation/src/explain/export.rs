//! Why a service of ours is exported to a peer, or not.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meshfed_proxy_config::sni;

use super::facts::{Facts, Gateway, ONE_WAY, add_to};
use super::rules::{export_rule, trials};
use super::{Direction, Explanation, Obstacle};
use crate::difference::Sharing;
use crate::names::{ExportedHost, PeerName, ServiceKey};
use crate::plan::local::{self, LocalService};
use crate::plan::{GatewayKind, Plan, hides};
use crate::rules::{ExportDecision, ExportRules};
use crate::summary::reported;
use crate::world::{ObjectKey, PeerState, World};

/// Why `service` is exported to `peer`, or what stands in the way.
pub fn explain_export(
    world: &World,
    plan: &Plan,
    service: &ServiceKey,
    peer: &PeerName,
) -> Explanation {
    let export = Export {
        facts: Facts { world, plan, peer },
        service,
    };
    let mut answer = Explanation::new(Direction::Export, service, peer);
    answer.obstacle = export.explain(&mut answer).err();
    answer
}

struct Export<'a> {
    facts: Facts<'a>,
    service: &'a ServiceKey,
}

impl<'a> Export<'a> {
    /// Fills the answer as far as things go; the first obstacle ends it.
    fn explain(&self, answer: &mut Explanation) -> Result<(), Obstacle> {
        let object = self.object();
        let decision = self.rules(object, answer);
        let object = self.exists(object)?;
        self.is_shareable(object)?;
        let facts = &self.facts;
        if let Some(obstacle) = facts.peer_obstacle() {
            return Err(obstacle);
        }
        let ingress = facts.gateway(GatewayKind::Ingress)?;
        let exported = self.decided(decision)?;
        let host = ExportedHost::ours(&exported, facts.peer);
        let local = self.local();
        let local = local.as_ref().ok_or_else(|| self.no_port())?;
        answer.known_at("this mesh", &local.host);
        answer.known_at(format!("this mesh's border, for {}", facts.peer), &host);
        self.has_its_name(&host)?;
        answer.shared = true;
        answer.known_at(
            facts.peer.to_string(),
            format!(
                "by its own import rules; by default {}.{}.svc.<its name for this mesh>-imports.local",
                exported.name, exported.namespace
            ),
        );
        self.path(answer, &ingress, &host, local);
        self.carries(&ingress, local)?;
        self.is_taken(&exported)
    }

    fn object(&self) -> Option<&'a Service> {
        let key = ObjectKey::new(self.service.namespace.as_str(), self.service.name.as_str());
        let services = &self.facts.world.resources.services;
        services.get(&key).map(|service| &**service)
    }

    /// What the rules say, whatever else is in the way.
    fn rules(
        &self,
        object: Option<&Service>,
        answer: &mut Explanation,
    ) -> Option<(ExportDecision, Option<String>)> {
        let key = self.facts.key();
        let set = self.facts.world.resources.exports.get(&key)?;
        let rules = ExportRules::parse(&set.spec);
        let none = BTreeMap::new();
        let labels = object.and_then(|object| object.metadata.labels.as_ref());
        let explained = rules.explain(self.service, labels.unwrap_or(&none));
        let decided = match &explained.decision {
            ExportDecision::Exported { rule, .. } => Some(*rule),
            ExportDecision::NoRule | ExportDecision::Broken { .. } => None,
        };
        let selects = set.spec.export_rules.iter().map(export_rule);
        answer.set = Some(key.to_string());
        let tried = &explained.tried;
        answer.rules = trials(selects, "spec.exportRules", tried, decided, rules.broken());
        let broken = rules.broken().map(ToString::to_string);
        Some((explained.decision, broken))
    }

    fn exists(&self, object: Option<&'a Service>) -> Result<&'a Service, Obstacle> {
        let (namespace, name) = (&self.service.namespace, &self.service.name);
        let namespaces = &self.facts.world.resources.namespaces;
        let Some(home) = namespaces.get(&ObjectKey::new("", namespace.as_str())) else {
            return Err(Obstacle::new(
                "NoNamespace",
                format!("there is no namespace {namespace}"),
                "create it, or look for the right one",
            )
            .command("kubectl get namespaces"));
        };
        let Some(object) = object else {
            return Err(Obstacle::new(
                "NoService",
                format!("there is no Service {name} in {namespace}"),
                "create it; rules that name it wait for it",
            )
            .command(format!("kubectl -n {namespace} get services")));
        };
        let going = [&home.metadata, &object.metadata]
            .iter()
            .any(|metadata| metadata.deletion_timestamp.is_some());
        if going {
            return Err(Obstacle::new(
                "Deleting",
                format!("the Service {name} or its namespace {namespace} is being deleted"),
                "create it again once it is gone",
            ));
        }
        Ok(object)
    }

    /// Whether it may be shared at all, with anybody.
    fn is_shareable(&self, object: &Service) -> Result<(), Obstacle> {
        let facts = &self.facts;
        let (system, namespace) = (facts.system(), self.service.namespace.as_str());
        let Some(control_plane) = &facts.plan.control_plane else {
            return facts.peer_obstacle().map_or(Ok(()), Err);
        };
        if namespace == system {
            return Err(Obstacle::new(
                "SystemNamespace",
                format!("what runs beside the control plane, in {system}, is never shared"),
                "move the Service to a namespace that is a member of the mesh",
            ));
        }
        if !facts.plan.members.contains(namespace) {
            let message = format!("the namespace {namespace} is no member of the mesh");
            let roll = ObjectKey::new(system, meshfed_api::member::MEMBER_ROLL_NAME);
            let remedy = "make it one";
            let command = if let Some(roll) = facts.world.resources.member_rolls.get(&roll) {
                let value = format!("\"{namespace}\"");
                let patch = add_to("members", roll.spec.members.is_empty(), &value);
                format!("kubectl -n {system} patch servicemeshmemberroll default {patch}")
            } else {
                let name = &control_plane.name;
                format!(
                    "echo '{{\"apiVersion\":\"maistra.io/v1\",\"kind\":\"ServiceMeshMember\",\
                     \"metadata\":{{\"name\":\"default\",\"namespace\":\"{namespace}\"}},\
                     \"spec\":{{\"controlPlaneRef\":{{\"name\":\"{name}\",\"namespace\":\"{system}\"}}}}}}' \
                     | kubectl apply -f -"
                )
            };
            return Err(Obstacle::new("NotAMember", message, remedy).command(command));
        }
        if let Some(obstacle) = self.hidden(&object.metadata) {
            return Err(obstacle);
        }
        if self.local().is_none() {
            return Err(self.no_port());
        }
        Ok(())
    }

    /// Whether annotation or label hide it from the control plane.
    fn hidden(&self, metadata: &ObjectMeta) -> Option<Obstacle> {
        let (system, namespace) = (self.facts.system(), self.service.namespace.as_str());
        let marks = [
            ("annotation", "annotate", &metadata.annotations),
            ("label", "label", &metadata.labels),
        ];
        let hiding: Vec<_> = marks
            .into_iter()
            .filter(|(_, _, map)| hides(map.as_ref(), namespace, system))
            .collect();
        if hiding.is_empty() {
            return None;
        }
        let name = &self.service.name;
        let commands = hiding.iter().map(|(_, verb, _)| {
            format!("kubectl -n {namespace} {verb} service {name} networking.istio.io/exportTo-")
        });
        let what: Vec<&str> = hiding.iter().map(|(what, _, _)| *what).collect();
        let what = what.join(" and its ");
        Some(
            Obstacle::new(
                "NotVisible",
                format!("its {what} networking.istio.io/exportTo hides it from {system}"),
                format!("let it name {system} or *, or take it away"),
            )
            .command(commands.collect::<Vec<_>>().join(" && ")),
        )
    }

    /// The service as proxies are told of it.
    fn local(&self) -> Option<Arc<LocalService>> {
        let world = self.facts.world;
        local::service(&world.resources, self.service, &world.mesh.cluster_domain)
    }

    fn no_port(&self) -> Obstacle {
        let (namespace, name) = (&self.service.namespace, &self.service.name);
        Obstacle::new(
            "NoPort",
            "it has no TCP port, or is an ExternalName, so nothing can be sent to it",
            "give it a port with the protocol TCP",
        )
        .command(format!("kubectl -n {namespace} edit service {name}"))
    }

    /// The exported name, if a rule gives one.
    fn decided(
        &self,
        decision: Option<(ExportDecision, Option<String>)>,
    ) -> Result<ServiceKey, Obstacle> {
        let facts = &self.facts;
        let (peer, system) = (facts.peer, facts.system());
        let rule = format!(
            "{{\"type\":\"NameSelector\",\"nameSelector\":{{\"namespace\":\"{}\",\"name\":\"{}\"}}}}",
            self.service.namespace, self.service.name
        );
        let set = facts.world.resources.exports.get(&facts.key());
        let is_empty = set.is_none_or(|set| set.spec.export_rules.is_empty());
        match decision {
            Some((ExportDecision::Exported { exported, .. }, _)) => Ok(exported),
            None => Err(Obstacle::new(
                "NoSet",
                format!("there is no ExportedServiceSet {peer} in {system}"),
                "create it with a rule that names the service",
            )
            .command(format!(
                "echo '{{\"apiVersion\":\"federation.maistra.io/v1\",\"kind\":\"ExportedServiceSet\",\
                 \"metadata\":{{\"name\":\"{peer}\",\"namespace\":\"{system}\"}},\
                 \"spec\":{{\"exportRules\":[{rule}]}}}}' | kubectl apply -f -"
            ))),
            Some((ExportDecision::NoRule, _)) => Err(Obstacle::new(
                "NoRule",
                format!("no rule of the ExportedServiceSet {peer} matches it"),
                "add one",
            )
            .command(format!(
                "kubectl -n {system} patch exportedserviceset {peer} {}",
                add_to("exportRules", is_empty, &rule)
            ))),
            Some((ExportDecision::Broken { .. }, error)) => {
                let error = error.unwrap_or_default();
                Err(Obstacle::new(
                    "InvalidRule",
                    format!("no rule matches before one that cannot be read: {error}"),
                    "mend that rule; it and those after it are not used",
                )
                .command(format!("kubectl -n {system} edit exportedserviceset {peer}")))
            }
        }
    }

    /// Whether nobody older has the exported name.
    fn has_its_name(&self, host: &ExportedHost) -> Result<(), Obstacle> {
        let sharing = Sharing::of(self.facts.world, self.facts.plan);
        let peer = self.facts.peer.as_str();
        let holder = sharing
            .exposed()
            .map(|entry| entry.what)
            .find(|exposure| exposure.peer == peer && exposure.exported_name == host.as_str());
        let service = self.service.to_string();
        match holder {
            Some(holder) if holder.service == service => Ok(()),
            holder => {
                let holder =
                    holder.map_or_else(|| "another service".to_owned(), |holder| holder.service);
                Err(Obstacle::new(
                    "NameTaken",
                    format!("{holder} is older and has the name {host}"),
                    "give one of the two another alias in the ExportedServiceSet",
                )
                .command(format!(
                    "kubectl -n {} edit exportedserviceset {peer}",
                    self.facts.system()
                )))
            }
        }
    }

    fn path(
        &self,
        answer: &mut Explanation,
        ingress: &Gateway,
        host: &ExportedHost,
        local: &LocalService,
    ) {
        let peer = self.facts.peer;
        let client = self
            .facts
            .object()
            .and_then(|p| p.spec.security.client_id.clone());
        let client = client.unwrap_or_default();
        let client = client
            .strip_prefix("spiffe://")
            .unwrap_or(&client)
            .to_owned();
        let ids = format!("proves to be {client}");
        answer.hop(format!("egress gateway of {peer}"), vec![ids]);
        let outside = ingress
            .addresses
            .iter()
            .skip(usize::from(ingress.addresses.len() > 1));
        let at: Vec<String> = outside
            .map(|a| format!("{}:{}", a.ip, a.service_port))
            .collect();
        let mut does = vec![format!("listens on {}", at.join(", "))];
        let names = local
            .ports
            .iter()
            .map(|port| sni(port.number, host.as_str()));
        does.extend(names.map(|name| format!("is asked for {name}")));
        answer.hop(format!("our ingress gateway {}", ingress.name), does);
        let does = local.ports.iter().map(|port| {
            let ready = port.endpoints.localities.iter().flat_map(|l| &l.endpoints);
            let shown: Vec<String> = ready
                .map(|endpoint| {
                    let how = if endpoint.mesh_tls {
                        "mutual TLS"
                    } else {
                        "plain"
                    };
                    format!("{} ({how})", endpoint.address)
                })
                .collect();
            match shown.is_empty() {
                true => format!("port {}: no ready endpoint", port.number),
                false => format!("port {}: {}", port.number, shown.join(", ")),
            }
        });
        answer.hop(self.service.to_string(), does.collect());
    }

    /// What is in the way of a request although the service is exported.
    fn carries(&self, ingress: &Gateway, local: &LocalService) -> Result<(), Obstacle> {
        let facts = &self.facts;
        let peer = facts.peer;
        if let Some(obstacle) = facts.gateway_trouble(ingress) {
            return Err(obstacle);
        }
        if !facts.is_watched() {
            let ready = facts.ready();
            let said = ready.filter(|c| c.reason.as_deref() == Some(ONE_WAY));
            let said = said.and_then(|c| c.message.clone());
            let said = said.map_or_else(String::new, |said| format!(": {said}"));
            return Err(Obstacle::new(
                "PeerDoesNotAsk",
                format!(
                    "{peer} is not connected to this mesh, so it may not know of the export{said}"
                ),
                "its administrator should see a ServiceMeshPeer that is Ready; this command here \
                 makes one",
            )
            .command(format!("meshfed peer bundle --for {peer}")));
        }
        let ready = |port: &local::LocalPort| !port.endpoints.localities.is_empty();
        if !local.ports.iter().any(ready) {
            let (namespace, name) = (&self.service.namespace, &self.service.name);
            return Err(Obstacle::new(
                "NoReadyEndpoint",
                format!("no endpoint of {} is ready", self.service),
                "start a workload that its selector selects, with a sidecar",
            )
            .command(format!(
                "kubectl -n {namespace} get endpointslices -l kubernetes.io/service-name={name}"
            )));
        }
        Ok(())
    }

    /// Whether the peer imports it, as far as it says so.
    fn is_taken(&self, exported: &ServiceKey) -> Result<(), Obstacle> {
        let peer = self.facts.peer;
        let Some(said) = self.facts.state().and_then(PeerState::report) else {
            return Ok(());
        };
        if said.services.contains(exported) {
            return Ok(());
        }
        if let Some(error) = &said.error {
            let (reason, message) = reported(peer.as_str(), error);
            let remedy = "mend what it names; it goes on with the last good list until then";
            return Err(Obstacle::new(reason, message, remedy));
        }
        // A report has room for some names only.
        if said.services.len() == said.imported as usize {
            let message =
                format!("{peer} takes the list and says that it does not import {exported}");
            let remedy = format!(
                "its administrator asks there: meshfed explain import {}.{} --peer <its name for this mesh>",
                exported.name, exported.namespace
            );
            return Err(Obstacle::new("NotImportedThere", message, remedy));
        }
        Ok(())
    }
}
