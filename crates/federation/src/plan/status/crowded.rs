//! Names that several peers have behind one egress gateway, where they are more than it spreads.

use std::collections::BTreeMap;

use super::Decided;
use crate::names::PeerName;
use crate::plan::egress::{MOST_SHARED, MOST_WAYS, with_chain};
use crate::plan::planner::trusted;

/// What a peer shares with others that its egress gateway does not spread.
pub(super) struct Crowded {
    gateway: String,
    ports: usize,
    /// One of them.
    example: String,
    /// Who gets all its connections.
    taker: PeerName,
}

impl Crowded {
    pub fn message(&self) -> String {
        let Self {
            gateway,
            ports,
            example,
            taker,
        } = self;
        format!(
            "more than {MOST_SHARED} ports of names, or {MOST_WAYS} if each counts for every peer that \
             has it, are shared by peers behind the gateway {gateway}: {ports} of this peer go to the \
             oldest of those that have them alone, such as {example} to {taker}; give \
             some of these peers an egress gateway of their own"
        )
    }
}

/// The ports of a name of several peers, in the order in which the gateway finds place for them.
type Ports<'d> = BTreeMap<(&'d str, u16), Vec<&'d PeerName>>;

/// By peer.
pub(super) fn crowded(decided: &Decided<'_, '_>) -> BTreeMap<PeerName, Crowded> {
    let mut gateways: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for (_, peer) in trusted(decided.peers) {
        if let (Ok(egress), Some(imports)) = (&peer.egress, decided.imports.get(&peer.name)) {
            let behind = gateways.entry(&egress.name).or_default();
            behind.push((peer.created(), &peer.name, imports));
        }
    }
    let mut all = BTreeMap::new();
    for (gateway, mut peers) in gateways {
        peers.sort_by_key(|(created, name, _)| (*created, *name));
        if peers.len() < 2 {
            continue;
        }
        let mut ports = Ports::new();
        for (_, peer, imports) in peers {
            for (_, import) in imports.imported().filter(|(_, import)| import.as_local) {
                for port in &import.ports {
                    let port = (import.host.as_str(), *port);
                    ports.entry(port).or_default().push(peer);
                }
            }
        }
        let shared = || ports.iter().filter(|(_, peers)| peers.len() > 1);
        let spread = with_chain(shared().map(|(_, peers)| peers.len()));
        for ((host, port), peers) in shared().skip(spread) {
            for peer in peers {
                let crowded = all.entry((*peer).clone()).or_insert_with(|| Crowded {
                    gateway: gateway.to_owned(),
                    ports: 0,
                    example: format!("{host}:{port}"),
                    taker: peers[0].clone(),
                });
                crowded.ports += 1;
            }
        }
    }
    all
}
