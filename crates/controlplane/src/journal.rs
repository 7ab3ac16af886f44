//! What changed, for administrators: the audit log of what is shared, and Events of the API.
//!
//! The log looks at every outcome, one by one, so that what was shared for a moment is in it. Events
//! are hints, in a task of their own: outcomes that come in a moment are one.

mod audit;
mod authors;
mod backlog;
mod budget;
mod events;
mod parts;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use meshfed_federation::difference::Sharing;
use meshfed_federation::news::news;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

pub use self::audit::{AuditError, AuditLog};
use self::authors::Scribe;
pub use self::backlog::Backlog;
pub(crate) use self::backlog::{Feed, backlog};
use self::budget::Budgets;
use self::events::Poster;
pub use self::writes::{Write, Writes};
use crate::apply::Outcomes;
use crate::hub::Outcome;

/// Outcomes that come within this time are one to those who read Events.
const MOMENT: Duration = Duration::from_millis(100);
/// It is told this often that lines were not written.
const SUPPRESSED_EVERY: Duration = Duration::from_secs(60);

/// Writes the audit log until nobody plans any more and everything planned is in it. `writes`: `None`
/// where the API server does not tell who writes.
pub async fn keep(mut log: AuditLog, writes: Option<Writes>, mut backlog: Backlog) {
    let (mut scribe, mut budgets) = (Scribe::new(writes), Budgets::default());
    let mut minutes = interval_at(Instant::now() + SUPPRESSED_EVERY, SUPPRESSED_EVERY);
    minutes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ended = false;
    while !ended {
        let steps = tokio::select! {
            _ = minutes.tick() => None,
            steps = backlog.next() => {
                ended = steps.is_none();
                steps
            }
        };
        let (mut main, mut of_peers) = (Vec::new(), Vec::new());
        if let Some(steps) = steps {
            for entry in steps.iter().flat_map(|step| scribe.entries(step)) {
                match entry.peer_alone().map(str::to_owned) {
                    Some(peer) => of_peers.extend(budgets.admit(&peer, entry)),
                    None => main.push(entry),
                }
            }
        } else {
            of_peers = budgets.suppressed(Timestamp::now());
        }
        if !main.is_empty() || !of_peers.is_empty() {
            log = log.append(main, of_peers).await;
        }
    }
}

/// Posts Events until nobody plans any more.
pub async fn post(client: Client, mut outcomes: Outcomes) {
    let mut poster = Poster::new(client);
    let mut before: Option<(Arc<Outcome>, Sharing)> = None;
    loop {
        let newest = outcomes.borrow_and_update().clone();
        if let Some(after) = newest {
            let sharing = Sharing::of(&after.world, &after.plan);
            if let Some((known, shared)) = &before {
                let difference = sharing.since(shared);
                let (old, new) = ((&known.world, &known.plan), (&after.world, &after.plan));
                poster.post(news(old, new, &difference)).await;
            }
            before = Some((after, sharing));
        }
        if outcomes.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(MOMENT).await;
    }
}

#[cfg(test)]
mod tests;
