//! What peers say of what we send them.

use super::conditions::{Problem, Weight};
use crate::world::{ObjectKey, World};

/// Reason and message where a peer reports an error.
pub(crate) fn reported(peer: &str, error: &str) -> (&'static str, String) {
    let message = format!("{peer} says of what this mesh sends it: {error}");
    ("PeerReportsError", message)
}

/// Peers that cannot take what we send: their administrators see it, and ours has to mend it.
pub(super) fn problems(world: &World) -> Vec<Problem> {
    let system = &world.mesh.system_namespace;
    let ours = |name: &str| {
        let key = ObjectKey::new(system.as_str(), name);
        world.resources.peers.contains_key(&key)
    };
    let peers = world.observed.peers.iter();
    peers
        .filter(|(name, _)| ours(name))
        .filter_map(|(name, state)| {
            let error = state.report()?.error.as_ref()?;
            let (reason, message) = reported(name, error);
            Some(Problem {
                weight: Weight::Warning,
                about: format!("servicemeshpeer/{name}"),
                reason: reason.to_owned(),
                message,
            })
        })
        .collect()
}
