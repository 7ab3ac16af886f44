//! Which peers have changed what may be imported of them, by what they say or by falling silent.

use std::sync::Arc;

use crate::plan::{PeerSettings, is_expired};
use crate::world::{ObjectKey, PeerState, World};

/// Peers that changed what they export, and those whose imports ended, or came back, by contact alone.
/// Who changes how long imports outlive the contact is no peer.
pub fn by_peers<'w>(before: &World, after: &'w World) -> impl Iterator<Item = &'w str> {
    let (old, new) = (&before.observed.peers, &after.observed.peers);
    let nothing = PeerState::default();
    new.iter().filter_map(move |(peer, now)| {
        let was = old.get(peer).map_or(&nothing, AsRef::as_ref);
        let (listed, lists) = (&was.remote.services, &now.remote.services);
        let lists_other = !Arc::ptr_eq(listed, lists) && listed != lists;
        let key = ObjectKey::new(after.mesh.system_namespace.as_str(), peer.as_str());
        let contact_turned = || {
            let object = after.resources.peers.get(&key)?;
            let (settings, _) = PeerSettings::parse(object.metadata.annotations.as_ref());
            let was_expired = is_expired(&settings, &was.remote, before);
            Some(was_expired != is_expired(&settings, &now.remote, after))
        };
        (lists_other || contact_turned() == Some(true)).then_some(peer.as_str())
    })
}
