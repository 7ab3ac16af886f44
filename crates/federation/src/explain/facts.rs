//! What both directions ask about a peer and its gateways.

use meshfed_api::{Condition, ServiceMeshPeer};

use super::Obstacle;
use crate::discovery::client::RemoteState;
use crate::names::PeerName;
use crate::plan::gateways::{GatewayAddress, addresses, desired};
use crate::plan::{GatewayGap, GatewayKind, PeerSettings, Plan, is_expired, is_watching};
use crate::world::{ObjectKey, PeerState, World};

/// Reasons of a peer's Ready condition that are about one of its gateways.
const GATEWAY_REASONS: [&str; 5] = [
    "GatewayMissing",
    "GatewayBroken",
    "GatewayWithoutAddress",
    "GatewayNotReady",
    "GatewayGoing",
];

/// Reason of a peer that we watch and that does not watch us.
pub(super) const ONE_WAY: &str = "ConnectedOneWay";

/// How kubectl patches one more value into a list of a `spec`. What is not there yet has no end.
pub(super) fn add_to(list: &str, is_empty: bool, value: &str) -> String {
    if is_empty {
        format!("--type=merge -p '{{\"spec\":{{\"{list}\":[{value}]}}}}'")
    } else {
        format!(
            "--type=json -p '[{{\"op\":\"add\",\"path\":\"/spec/{list}/-\",\"value\":{value}}}]'"
        )
    }
}

/// A world, its plan, and the peer that is asked about.
pub(super) struct Facts<'a> {
    pub world: &'a World,
    pub plan: &'a Plan,
    pub peer: &'a PeerName,
}

/// A gateway that has an address.
#[derive(Debug)]
pub(super) struct Gateway {
    pub name: String,
    /// The first is the one inside the mesh.
    pub addresses: Vec<GatewayAddress>,
}

impl<'a> Facts<'a> {
    pub fn system(&self) -> &'a str {
        &self.world.mesh.system_namespace
    }

    /// What the peer's own administrator calls us most likely.
    pub fn own_name(&self) -> &'a str {
        let ours = self.plan.control_plane.as_ref();
        ours.map_or("this-mesh", |key| key.name.as_str())
    }

    /// The peer's resources here are all of this name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.system(), self.peer.as_str())
    }

    pub fn object(&self) -> Option<&'a ServiceMeshPeer> {
        let peers = &self.world.resources.peers;
        peers.get(&self.key()).map(|peer| &**peer)
    }

    pub fn state(&self) -> Option<&'a PeerState> {
        let peers = &self.world.observed.peers;
        peers.get(self.peer.as_str()).map(|state| &**state)
    }

    /// Whether what the peer exported does not count any more, by its silence.
    pub fn is_expired(&self, remote: &RemoteState) -> bool {
        is_expired(&self.settings(), remote, self.world)
    }

    /// Whether the peer watches our exports.
    pub fn is_watched(&self) -> bool {
        let (settings, now) = (self.settings(), self.world.now);
        self.state().is_some_and(|state| {
            let mut watchers = state.watchers.iter();
            watchers.any(|w| is_watching(&settings, &state.remote, w, now))
        })
    }

    fn settings(&self) -> PeerSettings {
        let annotations = self.object().and_then(|o| o.metadata.annotations.as_ref());
        PeerSettings::parse(annotations).0
    }

    pub fn ready(&self) -> Option<&'a Condition> {
        let status = self.plan.statuses.peers.get(&self.key())?;
        status.conditions.iter().find(|c| c.type_ == "Ready")
    }

    /// Why nothing at all is shared with the peer.
    pub fn peer_obstacle(&self) -> Option<Obstacle> {
        let (peer, system) = (self.peer, self.system());
        if self.plan.control_plane.is_none() {
            return Some(
                Obstacle::new(
                    "NoControlPlane",
                    format!("there is no ServiceMeshControlPlane that rules in {system}"),
                    "create one, with the trust domain and the gateways of this mesh",
                )
                .command(format!("kubectl -n {system} get servicemeshcontrolplane")),
            );
        }
        let Some(object) = self.object() else {
            return Some(
                Obstacle::new(
                    "NoPeer",
                    format!("there is no ServiceMeshPeer {peer} in {system}"),
                    format!("apply here what the administrator of {peer} makes with this command"),
                )
                .command(format!("meshfed peer bundle --for {}", self.own_name())),
            );
        };
        let going = object.metadata.deletion_timestamp.is_some();
        let name = self.peer.as_str();
        let open = self.plan.discovery_clients.contains_key(name)
            || self.plan.discovery.contains_key(name);
        let ready = self.ready()?;
        let reason = ready.reason.as_deref().unwrap_or_default();
        if !going && (open || GATEWAY_REASONS.contains(&reason)) {
            return None;
        }
        let message = ready.message.clone().unwrap_or_default();
        if going {
            return Some(Obstacle::new(
                "Deleting",
                format!("the ServiceMeshPeer {peer} is being deleted: {message}"),
                "create it again once it is gone",
            ));
        }
        Some(
            Obstacle::new(
                reason,
                format!("the ServiceMeshPeer {peer} cannot be used: {message}"),
                format!("the administrator of {peer} makes one that is right with this command"),
            )
            .command(format!("meshfed peer bundle --for {}", self.own_name())),
        )
    }

    /// The gateway of the peer in one direction.
    pub fn gateway(&self, kind: GatewayKind) -> Result<Gateway, Obstacle> {
        let (side, list, name) = {
            let gateways = self.object().map(|peer| &peer.spec.gateways);
            match kind {
                GatewayKind::Ingress => (
                    "ingress",
                    "additionalIngress",
                    gateways.map(|g| g.ingress.name.clone()).unwrap_or_default(),
                ),
                GatewayKind::Egress => (
                    "egress",
                    "additionalEgress",
                    gateways.map(|g| g.egress.name.clone()).unwrap_or_default(),
                ),
            }
        };
        let system = self.system();
        let smcp = self.plan.control_plane.as_ref();
        let edit = format!(
            "kubectl -n {system} edit servicemeshcontrolplane {}",
            smcp.map_or("", |key| key.name.as_str())
        );
        let planned = self.plan.gateways.get(&name);
        if planned.is_none_or(|g| g.kind != kind || g.going) {
            let object = smcp.and_then(|key| self.world.resources.control_planes.get(key));
            let broken = object.and_then(|smcp| desired(smcp).remove(&name)?.err());
            let gap = match broken {
                Some(problem) => GatewayGap::Broken { name, problem },
                None => GatewayGap::NotThere {
                    side,
                    list: match kind {
                        GatewayKind::Ingress => "spec.gateways.additionalIngress",
                        GatewayKind::Egress => "spec.gateways.additionalEgress",
                    },
                    name,
                },
            };
            let remedy = format!(
                "add the gateway to spec.gateways.{list} of the ServiceMeshControlPlane, or name \
                 another one in spec.gateways.{side}.name of the ServiceMeshPeer {}",
                self.peer
            );
            return Err(Obstacle::new(gap.reason(), gap.to_string(), remedy).command(edit));
        }
        let key = ObjectKey::new(system, name.clone());
        let service = self.world.resources.services.get(&key);
        let addresses = service.map_or_else(Vec::new, |service| {
            addresses(service, self.world.mesh.node_address)
        });
        if addresses.is_empty() {
            let gap = GatewayGap::NoAddress(name.clone());
            let remedy = "wait for the gateway's Service to get its address";
            return Err(Obstacle::new(gap.reason(), gap.to_string(), remedy)
                .command(format!("kubectl -n {system} get service {name}")));
        }
        Ok(Gateway { name, addresses })
    }

    /// Why a gateway carries nothing although it is there.
    pub fn gateway_trouble(&self, gateway: &Gateway) -> Option<Obstacle> {
        let name = &gateway.name;
        let state = self.world.observed.gateways.get(name);
        if let Some(refused) = state.and_then(|state| state.refused.as_ref()) {
            return Some(Obstacle::new(
                "GatewayRefuses",
                format!("the gateway {name} refuses its configuration: {refused}"),
                format!("look at the log of the gateway {name}"),
            ));
        }
        if state.is_none_or(|state| !state.ready) {
            return Some(Obstacle::new(
                "GatewayNotReady",
                format!("the proxy of the gateway {name} is not connected, or not ready yet"),
                format!("see that it runs; its log is named {name}"),
            ));
        }
        None
    }
}
