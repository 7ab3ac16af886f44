//! The protocol without its stream: responses come in, requests go out, changes are applied.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use meshfed_proxy_config::{Cluster, VirtualHost};
use meshfed_xds::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status};
use meshfed_xds::{DecodeError, Routes, TypeUrl, decode};

use super::warming::{Name, Wants, Warming};
use crate::engine::{Change, Engine, Rejection};

/// Longest text of a refusal that is sent to the control plane, in bytes.
const MAX_DETAIL: usize = 16 * 1024;
/// Names of missing resources that are told at once.
const MAX_MISSING: usize = 10;
/// Subscribes to all resources of a kind.
const EVERY: &str = "*";
/// Names that one request subscribes to. A request of more than 32 MiB is refused; each name may stand in it twice.
const NAMES_A_REQUEST: usize = 32 * 1024;
/// gRPC's INVALID_ARGUMENT.
const INVALID_ARGUMENT: i32 = 3;

/// Where changes take effect.
pub(super) trait Apply {
    fn check(&mut self, change: &Change) -> Result<(), Rejection>;
    fn apply(&mut self, change: Change) -> Result<(), Rejection>;
    /// Whether a trust bundle that nothing refers to any more still has connections to judge.
    fn uses_trust(&self, name: &str) -> bool;
}

impl Apply for Engine {
    fn check(&mut self, change: &Change) -> Result<(), Rejection> {
        Engine::check(self, change)
    }

    fn apply(&mut self, change: Change) -> Result<(), Rejection> {
        self.apply_one(change)
    }

    fn uses_trust(&self, name: &str) -> bool {
        Engine::uses_trust(self, name)
    }
}

/// Why one resource of a response was not taken.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error("the resource sent as {sent:?} calls itself {own:?}")]
    Name { sent: String, own: String },
    #[error("the resource {0:?} has no content")]
    Empty(String),
}

/// What is subscribed, known and warming; outlives streams.
#[derive(Default)]
pub(super) struct Subscriber {
    warming: Warming,
    /// Versions of what is known, by kind and name.
    versions: HashMap<TypeUrl, HashMap<Arc<str>, Box<str>>>,
    /// The cluster that was read last. The next one is probably like it.
    last: Option<Arc<Cluster>>,
    /// The same of virtual hosts.
    last_host: Option<Arc<VirtualHost>>,
    /// Kinds that a request of this stream has named.
    opened: Vec<TypeUrl>,
    answered_clusters: bool,
    answered_listeners: bool,
    ready: bool,
    /// Listeners whose address could not be taken. Whoever has it may let it go without a word to us.
    unbound: BTreeSet<Arc<str>>,
}

impl Subscriber {
    /// The first requests of a new stream. They say what is known, so that only differences are
    /// sent; what has gone meanwhile comes back as removed.
    pub(super) fn begin(&mut self, node: Node) -> Vec<DeltaDiscoveryRequest> {
        self.opened.clear();
        let mut requests = Vec::new();
        for kind in [TypeUrl::Cluster, TypeUrl::Listener] {
            self.opened.push(kind);
            requests.push(self.first_request(kind, Vec::new()));
        }
        // Before the tables that they belong to are asked for, which come without them then.
        let every = vec![EVERY.to_owned()];
        self.opened.push(TypeUrl::VirtualHosts);
        requests.push(self.first_request(TypeUrl::VirtualHosts, every));
        for kind in [TypeUrl::Trust, TypeUrl::Endpoints, TypeUrl::Routes] {
            let wanted = self.warming.wanted(kind);
            let mut names: Vec<String> = wanted.map(ToString::to_string).collect();
            names.sort_unstable();
            let mut pieces = names.chunks(NAMES_A_REQUEST).map(<[String]>::to_vec);
            if let Some(first) = pieces.next() {
                self.opened.push(kind);
                requests.push(self.first_request(kind, first));
            }
            requests.extend(pieces.map(|names| DeltaDiscoveryRequest {
                type_url: kind.as_str().to_owned(),
                resource_names_subscribe: names,
                ..Default::default()
            }));
        }
        if let Some(first) = requests.first_mut() {
            first.node = Some(node);
        }
        requests
    }

    fn first_request(&self, kind: TypeUrl, names: Vec<String>) -> DeltaDiscoveryRequest {
        let known = self.versions.get(&kind).into_iter().flatten();
        // Where names do not fit, what is known of the others comes again.
        let asked: HashSet<&str> = names.iter().map(String::as_str).collect();
        let all = names.iter().any(|name| name == EVERY) || names.is_empty();
        let known = known.filter(|(name, _)| all || asked.contains(&***name));
        let initial_resource_versions = known
            .map(|(name, version)| (name.to_string(), version.to_string()))
            .collect();
        DeltaDiscoveryRequest {
            type_url: kind.as_str().to_owned(),
            resource_names_subscribe: names,
            initial_resource_versions,
            ..Default::default()
        }
    }

    /// A request that only says what has changed of the node.
    pub(super) fn node_update(node: Node) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: Some(node),
            type_url: TypeUrl::Cluster.as_str().to_owned(),
            ..Default::default()
        }
    }

    /// Asks anew for listeners whose address was not to be had, if there are any. By this the control plane
    /// hears that one is had, as of everything that it has sent.
    pub(super) fn ask_again(&self) -> Option<DeltaDiscoveryRequest> {
        if self.unbound.is_empty() {
            return None;
        }
        Some(DeltaDiscoveryRequest {
            type_url: TypeUrl::Listener.as_str().to_owned(),
            resource_names_subscribe: self.unbound.iter().map(ToString::to_string).collect(),
            ..Default::default()
        })
    }

    /// Whether an address is waited for.
    pub(super) fn lacks_addresses(&self) -> bool {
        !self.unbound.is_empty()
    }

    /// Takes a response: each resource is put in force, kept until it is complete, or refused by
    /// name. Gives the subscriptions that follow and then the acknowledgement.
    pub(super) fn receive(
        &mut self,
        response: DeltaDiscoveryResponse,
        engine: &mut impl Apply,
    ) -> Vec<DeltaDiscoveryRequest> {
        let mut refused = Vec::new();
        let mut wants = Wants::default();
        let mut named_no_more = Vec::new();
        let kind = TypeUrl::parse(&response.type_url);
        match kind {
            Some(kind) => {
                // Removals first: a listener may go and another one take its address.
                for name in response.removed_resources {
                    let name = (kind, name.into());
                    named_no_more.extend(self.set_address(&name, true));
                    self.remove(name, engine, &mut wants);
                }
                for resource in response.resources {
                    let name: Name = (kind, resource.name.as_str().into());
                    let taken = self.take(kind, resource, engine, &mut wants);
                    let lacks =
                        matches!(&taken, Err(Refused::Rejected(why)) if why.lacks_address());
                    named_no_more.extend(self.set_address(&name, !lacks));
                    if let Err(why) = taken {
                        refused.push(why.to_string());
                    }
                }
                self.answered_clusters |= kind == TypeUrl::Cluster;
                self.answered_listeners |= kind == TypeUrl::Listener;
            }
            None => refused.push("resources of a kind that is not supported here".to_owned()),
        }
        let mut requests = Vec::new();
        self.subscribe(wants, &mut requests, engine);
        if !named_no_more.is_empty() {
            requests.push(DeltaDiscoveryRequest {
                type_url: TypeUrl::Listener.as_str().to_owned(),
                resource_names_unsubscribe: named_no_more,
                ..Default::default()
            });
        }
        // Last, as what it refers to is asked for by then: the control plane goes on with what leads to it.
        requests.push(DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            error_detail: detail(&refused),
            ..Default::default()
        });
        let answered = self.answered_clusters && self.answered_listeners;
        let listens = self.unbound.is_empty();
        self.ready = self.ready || (answered && listens && self.warming.is_complete());
        requests
    }

    /// Whether everything that was asked for has arrived once, and was listened on where it should be.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// What is still waited for, as text.
    pub(super) fn missing(&self) -> String {
        let mut waiting = Vec::new();
        if !self.answered_clusters {
            waiting.push("clusters".to_owned());
        }
        if !self.answered_listeners {
            waiting.push("listeners".to_owned());
        }
        let unbound = self.unbound.iter().take(MAX_MISSING);
        waiting.extend(unbound.map(|name| format!("the address of listener {name:?}")));
        let names = self.warming.missing();
        let named = names.iter().take(MAX_MISSING);
        waiting.extend(named.map(|(kind, name)| format!("{} {name:?}", kind.label())));
        if names.len() > MAX_MISSING {
            waiting.push(format!("{} more", names.len() - MAX_MISSING));
        }
        waiting.join(", ")
    }

    fn take(
        &mut self,
        kind: TypeUrl,
        resource: Resource,
        engine: &mut impl Apply,
        wants: &mut Wants,
    ) -> Result<(), Refused> {
        let Some(content) = resource.resource else {
            return Err(Refused::Empty(resource.name));
        };
        let read = self.read(kind, &content.value);
        let (own, change) = read.map_err(|error| error.sent_as(&resource.name))?;
        if *own != *resource.name {
            let (sent, own) = (resource.name, own.to_string());
            return Err(Refused::Name { sent, own });
        }
        let name = (kind, own);
        match kind {
            TypeUrl::Cluster | TypeUrl::Listener => {
                engine.check(&change)?;
                self.warming.set(&name, change, wants);
                self.learn(&name, resource.version);
                if let Err(rejection) = self.try_complete(&name, engine, wants) {
                    self.unlearn(&name);
                    return Err(rejection.into());
                }
            }
            TypeUrl::VirtualHosts => {
                engine.apply(change)?;
                self.learn(&name, resource.version);
            }
            // Nobody asked, or nobody wants it any more.
            _ if !self.warming.is_wanted(&name) => {}
            _ => {
                engine.apply(change)?;
                self.learn(&name, resource.version);
                self.arrive(&name, engine, wants);
            }
        }
        Ok(())
    }

    fn read(&mut self, kind: TypeUrl, bytes: &[u8]) -> Result<(Arc<str>, Change), DecodeError> {
        Ok(match kind {
            TypeUrl::Cluster => {
                let mut cluster = decode::cluster(bytes)?;
                if let Some(last) = &self.last {
                    cluster.share(last);
                }
                let cluster = Arc::new(cluster);
                self.last = Some(cluster.clone());
                (cluster.name.clone(), Change::Cluster(cluster))
            }
            TypeUrl::Listener => {
                let listener = decode::listener(bytes)?;
                let name = listener.name.as_str().into();
                (name, Change::Listener(Arc::new(listener)))
            }
            TypeUrl::Endpoints => {
                let endpoints = decode::endpoints(bytes)?;
                let name = endpoints.name.clone();
                (name, Change::Endpoints(Arc::new(endpoints)))
            }
            TypeUrl::Routes => match decode::routes(bytes)? {
                Routes::Whole(table) => {
                    let name = table.name.as_str().into();
                    (name, Change::Routes(Arc::new(table)))
                }
                Routes::Separate(table) => (table.as_str().into(), Change::SeparateRoutes(table)),
            },
            TypeUrl::VirtualHosts => {
                let mut host = decode::virtual_host(bytes)?;
                if let Some(last) = &self.last_host {
                    host.share(last);
                }
                let host = Arc::new(host);
                self.last_host = Some(host.clone());
                (host.name.clone(), Change::VirtualHost(host))
            }
            TypeUrl::Trust => {
                let (name, bundle) = decode::trust(bytes)?;
                (name.as_str().into(), Change::Trust(name, Arc::new(bundle)))
            }
        })
    }

    /// Notes whether a listener has its address. Gives the name of one that did not have it before, so is to be
    /// asked for by its name no more.
    fn set_address(&mut self, (kind, name): &Name, has: bool) -> Option<String> {
        if *kind != TypeUrl::Listener {
            return None;
        }
        if !has {
            self.unbound.insert(name.clone());
            return None;
        }
        self.unbound.take(name).map(|name| name.to_string())
    }

    fn learn(&mut self, (kind, name): &Name, version: String) {
        let versions = self.versions.entry(*kind).or_default();
        versions.insert(name.clone(), version.into());
    }

    fn unlearn(&mut self, (kind, name): &Name) {
        if let Some(versions) = self.versions.get_mut(kind) {
            versions.remove(name);
        }
    }

    fn remove(&mut self, name: Name, engine: &mut impl Apply, wants: &mut Wants) {
        self.unlearn(&name);
        let (kind, text) = (name.0, name.1.to_string());
        let change = match kind {
            TypeUrl::Cluster => Change::RemoveCluster(text),
            TypeUrl::Listener => Change::RemoveListener(text),
            TypeUrl::Trust => Change::RemoveTrust(text),
            TypeUrl::Endpoints => Change::RemoveEndpoints(text),
            TypeUrl::Routes => Change::RemoveRoutes(text),
            TypeUrl::VirtualHosts => Change::RemoveVirtualHost(text),
        };
        remove_from(engine, change);
        match kind {
            TypeUrl::Cluster | TypeUrl::Listener => self.warming.remove(&name, wants),
            TypeUrl::VirtualHosts => {}
            // Nobody wants it any more; who does later asks anew.
            _ if !self.warming.is_wanted(&name) => {}
            // It does not exist: that is an answer as well.
            _ => self.arrive(&name, engine, wants),
        }
    }

    /// Those who waited for this may be complete now.
    fn arrive(&mut self, name: &Name, engine: &mut impl Apply, wants: &mut Wants) {
        for owner in self.warming.arrived(name) {
            if let Err(rejection) = self.try_complete(&owner, engine, wants) {
                // The response that brought it was accepted long ago. The next stream brings it again, or what is
                // asked for again for want of an address does.
                self.unlearn(&owner);
                self.set_address(&owner, !rejection.lacks_address());
                tracing::error!(kind = owner.0.label(), %rejection, "cannot be applied");
            }
        }
    }

    fn try_complete(
        &mut self,
        owner: &Name,
        engine: &mut impl Apply,
        wants: &mut Wants,
    ) -> Result<(), Rejection> {
        match self.warming.complete(owner, wants) {
            Some(change) => engine.apply(change),
            None => Ok(()),
        }
    }

    /// Adds the changed subscriptions to the requests, and drops what is no longer wanted. Trust that
    /// connections still go on by stays subscribed to, so that they end when it is withdrawn.
    fn subscribe(
        &mut self,
        mut wants: Wants,
        requests: &mut Vec<DeltaDiscoveryRequest>,
        engine: &mut impl Apply,
    ) {
        let is_used = |(kind, name): &Name| *kind == TypeUrl::Trust && engine.uses_trust(name);
        self.warming.release(|name| !is_used(name), &mut wants);
        wants.unsubscribe.retain(|name| {
            let stays = is_used(name);
            if stays {
                self.warming.hold(name);
            }
            !stays
        });
        let mut by_kind: BTreeMap<TypeUrl, (Vec<String>, Vec<String>)> = BTreeMap::new();
        for (kind, name) in wants.subscribe {
            by_kind.entry(kind).or_default().0.push(name.to_string());
        }
        for name in wants.unsubscribe {
            self.warming.forget(&name);
            self.unlearn(&name);
            let (kind, text) = (name.0, name.1.to_string());
            by_kind.entry(kind).or_default().1.push(text.clone());
            match kind {
                TypeUrl::Trust => remove_from(engine, Change::RemoveTrust(text)),
                TypeUrl::Endpoints => remove_from(engine, Change::RemoveEndpoints(text)),
                TypeUrl::Routes => remove_from(engine, Change::RemoveRoutes(text)),
                TypeUrl::Cluster | TypeUrl::Listener | TypeUrl::VirtualHosts => {}
            }
        }
        for (kind, (subscribe, unsubscribe)) in by_kind {
            if !self.opened.contains(&kind) {
                // Without a name, the first request of a kind would ask for all of it.
                if subscribe.is_empty() {
                    continue;
                }
                self.opened.push(kind);
            }
            requests.push(DeltaDiscoveryRequest {
                type_url: kind.as_str().to_owned(),
                resource_names_subscribe: subscribe,
                resource_names_unsubscribe: unsubscribe,
                ..Default::default()
            });
        }
    }
}

fn remove_from(engine: &mut impl Apply, change: Change) {
    if let Err(rejection) = engine.apply(change) {
        tracing::error!(%rejection, "cannot be removed");
    }
}

/// One line for each refused resource.
fn detail(refused: &[String]) -> Option<Status> {
    if refused.is_empty() {
        return None;
    }
    let mut message = refused.join("\n");
    if message.len() > MAX_DETAIL {
        let end = (0..=MAX_DETAIL)
            .rev()
            .find(|i| message.is_char_boundary(*i));
        message.truncate(end.unwrap_or(0));
    }
    tracing::warn!(%message, "configuration refused");
    Some(Status {
        code: INVALID_ARGUMENT,
        message,
        details: Vec::new(),
    })
}

#[cfg(test)]
mod tests;
