//! What stands between two control planes, in words that tell an administrator what to do.

use super::condition::{READY, Verdict};
use crate::discovery::server::SourceStatus;
use crate::plan::peers::Trusted;

/// We do not watch the peer. `last` is how the last attempt ended.
pub(super) fn not_watching(
    peer: &Trusted<'_>,
    last: Option<&str>,
    watchers: &[SourceStatus],
) -> Verdict {
    let mut message = match last {
        None => "the watch of the peer's exports is not open yet".to_owned(),
        Some(last) => {
            let why = cause(peer, last);
            format!("the watch of the peer's exports is not open: {why}")
        }
    };
    if watchers.iter().any(|watcher| watcher.connected) {
        message.push_str("; the peer watches ours");
    }
    Verdict::fails(READY, "NotConnected", message)
}

/// We watch the peer.
pub(super) fn watching(peer: &Trusted<'_>, watchers: &[SourceStatus]) -> Verdict {
    if watchers.iter().any(|watcher| watcher.connected) {
        let message = "both meshes watch each other's exports";
        return Verdict::holds(READY, "Connected", message);
    }
    let gateway = peer.ingress.as_ref().map_or("", |gateway| &gateway.name);
    let message = format!(
        "only one way: the peer's exports are watched, and the peer does not watch ours. On its \
         side, ServiceMeshPeer and egress gateway must be ready, lead to our gateway {gateway} \
         and have the identity {}; our access log of {gateway} shows who is refused",
        peer.client_id.without_scheme(),
    );
    Verdict::fails(READY, "ConnectedOneWay", message)
}

/// What an answer, or none, means on the way by our egress gateway to the peer's ingress gateway.
fn cause(peer: &Trusted<'_>, last: &str) -> String {
    let Ok(egress) = &peer.egress else {
        return last.to_owned();
    };
    let (name, id) = (&egress.name, egress.id.without_scheme());
    match last.split(' ').next() {
        Some("400") => format!(
            "{last}: the peer's control plane does not know this mesh; \
             a ServiceMeshPeer for it is missing there"
        ),
        Some("403") => format!(
            "{last}: the peer's ingress gateway does not admit our egress gateway; spec.security \
             of its ServiceMeshPeer for this mesh must have our trust domain and the clientID {id}"
        ),
        Some("404") => format!(
            "{last}: our gateway {name} does not have the peer's addresses yet, or nobody behind \
             them expects a mesh with the identity {id}"
        ),
        Some("502" | "503" | "504") => format!(
            "{last}: our gateway {name} gets no connection to {} port {}, or one of the two does \
             not trust the other; the access logs of {name} and of the peer's ingress gateway say \
             which. Compare spec.remote, trustDomain and roots on both sides",
            peer.object.spec.remote.addresses.join(", "),
            peer.discovery_port,
        ),
        _ => last.to_owned(),
    }
}
