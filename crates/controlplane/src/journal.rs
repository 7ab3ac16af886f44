//! What changed, for administrators: Events of the API, and the audit log of what is shared.
//!
//! Follows the outcomes. Each is compared with the one before; changes that come in a moment are
//! one.

mod audit;
mod authors;
mod events;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use meshfed_federation::difference::{Difference, Sharing};
use meshfed_federation::news::news;

pub use self::audit::{AuditError, AuditLog};
pub use self::authors::Write;
use self::authors::Writes;
use self::events::Poster;
use crate::apply::Outcomes;
use crate::hub::Outcome;

/// Outcomes that come within this time are looked at together.
const MOMENT: Duration = Duration::from_millis(100);

/// Writes Events and the audit log until nobody plans any more.
pub async fn keep(
    client: kube::Client,
    mut log: AuditLog,
    writes: BoxStream<'static, Write>,
    mut outcomes: Outcomes,
) {
    let mut writes = Writes::new(writes);
    let mut poster = Poster::new(client);
    let mut before: Option<(Arc<Outcome>, Sharing)> = None;
    loop {
        let newest = outcomes.borrow_and_update().clone();
        if let Some(after) = newest {
            writes.take_all();
            let shared = match &before {
                Some((known, sharing)) if shares_alike(known, &after) => {
                    Some((sharing.clone(), Difference::default()))
                }
                Some((_, sharing)) => {
                    let now = Sharing::of(&after.world, &after.plan);
                    let difference = now.since(sharing);
                    Some((now, difference))
                }
                None => None,
            };
            let sharing = match (&before, shared) {
                (Some((known, _)), Some((sharing, difference))) => {
                    let (old, new) = ((&known.world, &known.plan), (&after.world, &after.plan));
                    poster.post(news(old, new, &difference)).await;
                    if !difference.is_empty() {
                        let entry = authors::entry(&known.world, &after.world, &writes, difference);
                        log = log.append(entry).await;
                    }
                    sharing
                }
                _ => {
                    let sharing = Sharing::of(&after.world, &after.plan);
                    log = log.append(authors::started(&after.world, &sharing)).await;
                    sharing
                }
            };
            writes.forget_old();
            before = Some((after, sharing));
        }
        if outcomes.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(MOMENT).await;
    }
}

/// Whether nothing that is shared can have changed; cheap, and for certain when it says so.
fn shares_alike(before: &Outcome, after: &Outcome) -> bool {
    let (old, new) = (&before.world.resources, &after.world.resources);
    let same_lists = before.plan.exports.len() == after.plan.exports.len()
        && (before.plan.exports.iter().zip(&after.plan.exports))
            .all(|(a, b)| a.0 == b.0 && a.1.ptr_eq(b.1));
    same_lists
        && old.peers.ptr_eq(&new.peers)
        && old.config_maps.ptr_eq(&new.config_maps)
        && old.imports.ptr_eq(&new.imports)
        && old.control_planes.ptr_eq(&new.control_planes)
        && before.plan.discovery.keys().eq(after.plan.discovery.keys())
        && before
            .plan
            .discovery_clients
            .keys()
            .eq(after.plan.discovery_clients.keys())
        && before.world.observed.peers.len() == after.world.observed.peers.len()
        && (before.world.observed.peers.values())
            .zip(after.world.observed.peers.values())
            .all(|(a, b)| Arc::ptr_eq(&a.remote.services, &b.remote.services))
}
