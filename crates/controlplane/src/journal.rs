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
use meshfed_federation::difference::Sharing;
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
            let sharing = Sharing::of(&after.world, &after.plan);
            match &before {
                Some((known, shared)) => {
                    let difference = sharing.since(shared);
                    let (old, new) = ((&known.world, &known.plan), (&after.world, &after.plan));
                    poster.post(news(old, new, &difference)).await;
                    if !difference.is_empty() {
                        let entry = authors::entry(&known.world, &after.world, &writes, difference);
                        log = log.append(entry).await;
                    }
                }
                None => {
                    log = log.append(authors::started(&after.world, &sharing)).await;
                }
            }
            writes.forget_old();
            before = Some((after, sharing));
        }
        if outcomes.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(MOMENT).await;
    }
}
