//! Which configuration a connected proxy gets, and what it made of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use meshfed_federation::plan::gateways::gateway_of;
use meshfed_federation::plan::{ProxyKey, Step};
use meshfed_federation::world::{GatewayState, ObjectKey, Refusals};
use meshfed_proxy_config::ProxyConfig;
use tokio::sync::watch;
use tracing::info;

use crate::ads::{AuthenticatedNode, ConfigSource, Configs, ConnectionId, Refusal, Report};
use crate::apply::Outcomes;
use crate::hub::{Outcome, Seen};

/// Sidecars whose refusals are told by name and in their words; more are counted.
const REFUSALS_NAMED: usize = 3;
/// Characters of them.
const WORDS: usize = 300;

/// Gives each proxy what the plan has for it.
#[derive(Debug)]
pub struct Proxies {
    outcomes: Outcomes,
    seen: Seen,
    system_namespace: String,
    configs: Mutex<HashMap<ProxyKey, watch::Sender<Option<Arc<ProxyConfig>>>>>,
    /// What the gateways of the present connections told.
    gateways: Mutex<HashMap<ConnectionId, (String, GatewayState)>>,
    /// The sidecars of the present connections that refuse what they are sent, with their first words.
    refusals: Mutex<Refused>,
    /// How far the proxies have followed.
    followed: Mutex<Followed>,
}

type Refused = HashMap<ConnectionId, (ObjectKey, String)>;

/// Which configurations the proxies of the present connections have confirmed, and which peers
/// are to be gone from all of them.
#[derive(Debug, Default)]
struct Followed {
    confirmed: HashMap<ConnectionId, (ProxyKey, Option<Arc<ProxyConfig>>)>,
    /// Name and uid of ServiceMeshPeers that the configurations which were handed on do not have.
    leaving: Vec<(String, String)>,
}

impl Proxies {
    pub fn new(outcomes: Outcomes, seen: Seen, system_namespace: String) -> Self {
        Self {
            outcomes,
            seen,
            system_namespace,
            configs: Mutex::default(),
            gateways: Mutex::default(),
            refusals: Mutex::default(),
            followed: Mutex::default(),
        }
    }

    /// Hands on the configurations of every plan.
    pub async fn follow_plans(self: Arc<Self>) {
        let mut outcomes = self.outcomes.clone();
        loop {
            let newest = outcomes.borrow_and_update().clone();
            if let Some(outcome) = newest {
                self.hand_on(&outcome);
            }
            if outcomes.changed().await.is_err() {
                return;
            }
        }
    }

    fn hand_on(&self, outcome: &Outcome) {
        let proxies = &outcome.plan.proxies;
        lock(&self.configs).retain(|key, sender| {
            if sender.receiver_count() == 0 {
                return false;
            }
            match (proxies.get(key), key) {
                (Some(config), _) => {
                    sender.send_if_modified(|present| {
                        let same = present.as_ref().is_some_and(|present| {
                            Arc::ptr_eq(present, config) || present == config
                        });
                        if !same {
                            *present = Some(config.clone());
                        }
                        !same
                    });
                    true
                }
                // A gateway that is gone from the plan has nothing to wait for; a sidecar's
                // registration may be on its way.
                (None, ProxyKey::Gateway(_)) => false,
                (None, ProxyKey::Sidecar(_)) => true,
            }
        });
        let removals = outcome.plan.withdrawal.peers.iter();
        lock(&self.followed).leaving = removals
            .filter(|(_, removal)| removal.step >= Step::Names)
            .map(|(key, removal)| (key.name.clone(), removal.uid.clone()))
            .collect();
        self.tell_who_left();
    }

    /// Peers that are going have left when every connected proxy has confirmed what it was last
    /// handed.
    fn tell_who_left(&self) {
        let followed = lock(&self.followed);
        if followed.leaving.is_empty() {
            return;
        }
        let configs = lock(&self.configs);
        let is_behind = |(key, confirmed): &(ProxyKey, Option<Arc<ProxyConfig>>)| {
            let wanted = configs.get(key).and_then(|sender| sender.borrow().clone());
            wanted.is_some_and(|wanted| {
                let confirmed = confirmed.as_ref();
                !confirmed.is_some_and(|c| Arc::ptr_eq(c, &wanted) || *c == wanted)
            })
        };
        if followed.confirmed.values().any(is_behind) {
            return;
        }
        for (peer, uid) in &followed.leaving {
            self.seen.let_go(peer, uid);
        }
    }

    fn sidecar_report(&self, node: &AuthenticatedNode, report: Report) {
        match report {
            Report::Acked { .. } => {}
            Report::Nacked { message, .. } => {
                let Ok(ProxyKey::Sidecar(pod)) = self.key(node) else {
                    return;
                };
                self.refusals(|all| {
                    all.entry(node.connection).or_insert((pod, message));
                });
            }
            Report::Synced(_) => self.refusals(|all| {
                all.remove(&node.connection);
            }),
        }
    }

    /// Changes what is known of refusals, and tells of it if it is another number.
    fn refusals(&self, change: impl FnOnce(&mut Refused)) {
        let mut all = lock(&self.refusals);
        let before = all.len();
        change(&mut all);
        if all.len() == before {
            return;
        }
        let pods: BTreeMap<&ObjectKey, &String> = all.values().map(|(pod, w)| (pod, w)).collect();
        let named = pods.iter().take(REFUSALS_NAMED);
        let words = |words: &String| words.chars().take(WORDS).collect();
        self.seen.refusals(Refusals {
            sidecars: pods.len(),
            words: named.map(|(pod, w)| (pod.to_string(), words(w))).collect(),
        });
    }

    fn key(&self, node: &AuthenticatedNode) -> Result<ProxyKey, Refusal> {
        if node.namespace() == self.system_namespace
            && let Some(name) = gateway_of(node.service_account())
        {
            return Ok(ProxyKey::Gateway(name.to_owned()));
        }
        let name = node.name.as_ref().ok_or_else(|| {
            Refusal::Forbidden("a sidecar must say the name of its Pod (metadata NAME)".to_owned())
        })?;
        Ok(ProxyKey::Sidecar(ObjectKey::new(
            node.namespace(),
            name.clone(),
        )))
    }
}

impl ConfigSource for Proxies {
    fn subscribe(&self, node: &AuthenticatedNode) -> Result<Configs, Refusal> {
        let key = self.key(node)?;
        let newest = self.outcomes.borrow().clone();
        let present = newest
            .as_ref()
            .and_then(|outcome| outcome.plan.proxies.get(&key).cloned());
        match &key {
            ProxyKey::Gateway(name) => {
                if newest.is_some() && present.is_none() {
                    return Err(Refusal::Unknown(format!("there is no gateway {name}")));
                }
                // A node that only changed what it says about itself is as ready as before.
                let mut gateways = lock(&self.gateways);
                let (_, state) = gateways.entry(node.connection).or_insert_with(|| {
                    let state = GatewayState {
                        ready: false,
                        refused: None,
                    };
                    (name.clone(), state)
                });
                self.seen.gateway(name, Some(state.clone()));
            }
            ProxyKey::Sidecar(pod) => {
                let pods = newest.as_ref().map(|o| &o.world.resources.pods);
                let account = pods
                    .and_then(|pods| pods.get(pod))
                    .and_then(|pod| pod.spec.as_ref()?.service_account_name.clone());
                if account.is_some_and(|account| account != node.service_account()) {
                    return Err(Refusal::Forbidden(format!(
                        "the Pod {pod} runs under another ServiceAccount"
                    )));
                }
            }
        }
        lock(&self.followed)
            .confirmed
            .entry(node.connection)
            .or_insert_with(|| (key.clone(), None));
        let mut configs = lock(&self.configs);
        let sender = configs
            .entry(key)
            .or_insert_with(|| watch::Sender::new(None));
        if let Some(config) = present {
            sender.send_replace(Some(config));
        }
        Ok(sender.subscribe())
    }

    fn left(&self, node: &AuthenticatedNode) {
        let id = node.connection;
        let mut gateways = lock(&self.gateways);
        if let Some((name, _)) = gateways.remove(&id) {
            // Another connection of the same gateway may be there already.
            let other = gateways.values().find(|(n, _)| *n == name);
            self.seen.gateway(&name, other.map(|(_, s)| s.clone()));
            info!(gateway = name, "a gateway has disconnected");
        }
        drop(gateways);
        self.refusals(|all| {
            all.remove(&id);
        });
        lock(&self.followed).confirmed.remove(&id);
        self.tell_who_left();
    }

    fn report(&self, node: &AuthenticatedNode, report: Report) {
        if let Report::Synced(config) = &report {
            if let Some((_, confirmed)) = lock(&self.followed).confirmed.get_mut(&node.connection) {
                *confirmed = Some(config.clone());
            }
            self.tell_who_left();
        }
        let mut gateways = lock(&self.gateways);
        let Some((name, state)) = gateways.get_mut(&node.connection) else {
            drop(gateways);
            return self.sidecar_report(node, report);
        };
        match report {
            Report::Acked { .. } => return,
            Report::Nacked { message, .. } => state.refused = Some(message),
            Report::Synced(_) => {
                *state = GatewayState {
                    ready: true,
                    refused: None,
                };
            }
        }
        self.seen.gateway(name, Some(state.clone()));
    }
}

/// The maps are whole after every statement, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
