//! What stands between two control planes, in words that tell an administrator what to do.

use super::condition::{READY, Verdict};
use super::time;
use crate::discovery::client::{AnsweredBy, RemoteState};
use crate::plan::peers::{Gateway, Trusted};

/// We do not watch the peer.
pub(super) fn not_watching(
    peer: &Trusted<'_>,
    remote: &RemoteState,
    peer_watches: bool,
) -> Verdict {
    let watch = &remote.watch;
    let mut message = match &watch.last_disconnect_status {
        // How an earlier one ended is no matter of this one.
        _ if watch.connected => unheard(peer, remote),
        None => "the watch of the peer's exports is not open yet".to_owned(),
        Some(last) => {
            let says = watch.last_disconnect_cause.as_deref();
            let why = cause(peer, last, says, watch.last_disconnect_by);
            format!("the watch of the peer's exports is not open: {why}")
        }
    };
    if peer_watches {
        message.push_str("; the peer watches ours");
    }
    Verdict::fails(READY, "NotConnected", message)
}

/// The watch is open, and that is all.
fn unheard(peer: &Trusted<'_>, remote: &RemoteState) -> String {
    let period = peer.settings.resync_period.as_secs();
    let last = remote.last_contact.map_or_else(String::new, |contact| {
        format!("; it was last heard {}", time(contact).0)
    });
    format!(
        "the watch of the peer's exports is open, and yet nothing was heard of the peer within two \
         resync periods of {period}s, no event and no list{last}. Ask the peer's administrator \
         whether its control plane answers, and see whether the way to it is still there"
    )
}

/// We watch the peer.
pub(super) fn watching(peer: &Trusted<'_>, peer_watches: bool) -> Verdict {
    if peer_watches {
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

/// How a failed handshake with our own gateway begins.
const OWN_TLS: &str = "TLS with the egress gateway";

/// What an answer, or none, means on the way by our egress gateway to the peer's ingress gateway.
/// `says` is what a gateway said about it.
fn cause(peer: &Trusted<'_>, last: &str, says: Option<&str>, by: AnsweredBy) -> String {
    let Ok(egress) = &peer.egress else {
        return last.to_owned();
    };
    let (name, id) = (&egress.name, egress.id.without_scheme());
    if last.starts_with(OWN_TLS) {
        return format!(
            "{last}: our own gateway {name} does not prove to be {id}, or does not take our control \
             plane for its own. It gets its certificate anew by itself, after a change of our own trust \
             domain too; if it does not, its log says why"
        );
    }
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
        Some("502" | "503" | "504") => {
            let says = says.map_or_else(String::new, |says| format!(" ({says})"));
            format!("{last}{says}: {}", no_way(peer, egress, &says, by))
        }
        _ => last.to_owned(),
    }
}

/// The words are those of our own gateways' answers. Where our egress gateway is another proxy, the same words
/// may be the peer's ingress gateway's, so all causes are named, unless that other proxy lets pass by whom the
/// peer's gateway says that it was answered.
fn no_way(peer: &Trusted<'_>, egress: &Gateway, says: &str, by: AnsweredBy) -> String {
    const UNREACHABLE: [&str; 3] = ["upstream connect)", "upstream timeout)", "no endpoint)"];
    const DISTRUSTED: [&str; 9] = [
        "bad certificate",
        "expired",
        "no certificate",
        "not spiffe",
        "not yet valid",
        "root expired",
        "unknown ca",
        "wrong identity",
        "wrong trust domain",
    ];
    let name = &egress.name;
    let at = format!(
        "{} port {}",
        peer.object.spec.remote.addresses.join(", "),
        peer.discovery_port
    );
    let distrusts_us = format!(
        "its ServiceMeshPeer for this mesh must have our trust domain, our root and the clientID {}",
        egress.id.without_scheme()
    );
    match by {
        AnsweredBy::Egress => {}
        AnsweredBy::Peer => {
            return format!(
                "the peer's ingress gateway at {at} answers, and gets nothing from its own control plane, \
                 which is away, stands still or has too much to do. What was imported stays in use; \
                 ask the peer's administrator"
            );
        }
        AnsweredBy::Unknown => {
            return format!(
                "either our gateway {name} gets no answer from {at}: nobody is there, or one of the two \
                 does not trust the other; or the peer's ingress gateway answers there, and its control \
                 plane is away. The access logs of {name} and of the peer's ingress gateway say which. \
                 Compare spec.remote, trustDomain and roots on both sides; {distrusts_us}"
            );
        }
    }
    if UNREACHABLE.iter().any(|words| says.ends_with(words)) {
        return format!(
            "our gateway {name} reaches nobody at {at}; \
             compare spec.remote with the addresses of the peer's ingress gateway"
        );
    }
    if DISTRUSTED.iter().any(|words| says.contains(words)) {
        return format!(
            "our gateway {name} does not trust who answers at {at}; compare \
             spec.security.trustDomain and the root that we keep of the peer with its own"
        );
    }
    if says.contains("peer alert") {
        return format!("who answers at {at} does not trust our gateway {name}; {distrusts_us}");
    }
    format!(
        "our gateway {name} gets no answer from {at}: nobody is there, or one of the two does not \
         trust the other; the access logs of {name} and of the peer's ingress gateway say which. \
         Compare spec.remote, trustDomain and roots on both sides; {distrusts_us}"
    )
}
