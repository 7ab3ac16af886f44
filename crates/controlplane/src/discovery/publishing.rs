//! Tells what is known of a peer: to the hub, and to the disk.
//!
//! The first change is told at once. A peer that never stops changing is told of some times a second, so that
//! it costs the others little. The disk never holds up the hub.

use std::sync::Arc;
use std::time::Duration;

use meshfed_federation::discovery::client::RemoteState;
use meshfed_federation::names::PeerName;
use tokio::time::{Instant, sleep_until};

use super::PeerCache;
use super::storing::Storing;
use crate::hub::Seen;

/// Between two changes of the services.
const SERVICES_PAUSE: Duration = Duration::from_millis(20);
/// Between two changes of times and connections alone, and of the services of a peer that changes without end.
const LONG_PAUSE: Duration = Duration::from_millis(250);
/// Changes of the services that are told quickly; one more after each [`LONG_PAUSE`].
const QUICK: u32 = 500;

pub(super) struct Publishing {
    name: PeerName,
    seen: Seen,
    state: Arc<RemoteState>,
    published_at: Option<Instant>,
    publish_due: Option<Instant>,
    /// How many changes may still be told quickly.
    quick: u32,
    storing: Storing,
}

impl Publishing {
    pub fn new(name: PeerName, seen: Seen, cache: PeerCache) -> Self {
        Self {
            storing: Storing::new(name.clone(), cache),
            name,
            seen,
            state: Arc::default(),
            published_at: None,
            publish_due: None,
            quick: QUICK,
        }
    }

    /// `services`: they are others too.
    pub fn changed(&mut self, state: &Arc<RemoteState>, services: bool) {
        self.state = state.clone();
        let now = Instant::now();
        let pause = if services && self.quick > 0 {
            SERVICES_PAUSE
        } else {
            LONG_PAUSE
        };
        let due = self.published_at.map_or(now, |at| at + pause);
        let due = self.publish_due.map_or(due, |before| before.min(due));
        self.publish_due = Some(due);
        self.storing.changed(state);
        if due <= now {
            self.publish(now);
        }
    }

    /// Resolves after something that was due has been done. Can be dropped before.
    pub async fn due(&mut self) {
        let publish = async |at: Option<Instant>| match at {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        };
        tokio::select! {
            biased;
            () = publish(self.publish_due) => self.publish(Instant::now()),
            () = self.storing.step() => {}
        }
    }

    /// Tells what is not told yet.
    pub async fn finish(mut self) {
        if self.publish_due.is_some() {
            self.publish(Instant::now());
        }
        self.storing.finish().await;
    }

    fn publish(&mut self, now: Instant) {
        self.publish_due = None;
        let rest = self.published_at.map_or(LONG_PAUSE, |at| now - at);
        let more = rest.as_millis() / LONG_PAUSE.as_millis();
        let more = u32::try_from(more).unwrap_or(QUICK);
        self.quick = self.quick.saturating_add(more).min(QUICK).saturating_sub(1);
        self.published_at = Some(now);
        self.seen.remote(self.name.as_str(), self.state.clone());
    }
}

#[cfg(test)]
mod tests {
    use meshfed_federation::discovery::client::WatchState;

    use super::*;
    use crate::discovery::tests::Bench;

    fn on_a_disk_that_stands_still(bench: &Bench, dir: &std::path::Path) -> Publishing {
        let cache = PeerCache::open(dir.join("peers")).unwrap();
        let name: PeerName = "red-mesh".parse().unwrap();
        let mut publishing = Publishing::new(name, bench.seen.clone(), cache);
        publishing.storing.stand_still();
        publishing
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_stands_still_does_not_hold_back_the_last_change() {
        let bench = Bench::new();
        let dir = tempfile::tempdir().unwrap();
        let mut publishing = on_a_disk_that_stands_still(&bench, dir.path());
        let state = |status: &str| RemoteState {
            watch: WatchState {
                last_disconnect_status: Some(status.to_owned()),
                ..WatchState::default()
            },
            ..RemoteState::kept(Arc::default(), Some(jiff::Timestamp::now()), None)
        };
        for status in ["first", "second", "last"] {
            publishing.changed(&Arc::new(state(status)), true);
        }
        let told = || {
            let seen = bench.seen.observed();
            let remote = seen.peers.get("red-mesh").map(|p| p.remote.clone());
            remote.and_then(|remote| remote.watch.last_disconnect_status.clone())
        };
        assert_eq!(told().as_deref(), Some("first"));
        let due = publishing.due();
        tokio::time::timeout(Duration::from_secs(10), due)
            .await
            .unwrap();
        assert_eq!(told().as_deref(), Some("last"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_changes_without_end_is_told_of_quickly_for_a_while_and_then_seldom() {
        let bench = Bench::new();
        let dir = tempfile::tempdir().unwrap();
        let mut publishing = on_a_disk_that_stands_still(&bench, dir.path());
        let mut told_in = async |seconds: u64| {
            let end = Instant::now() + Duration::from_secs(seconds);
            let mut told = 0;
            while Instant::now() < end {
                publishing.changed(&Arc::default(), true);
                let before = publishing.published_at;
                let _not_due =
                    tokio::time::timeout(Duration::from_millis(5), publishing.due()).await;
                told += u32::from(publishing.published_at != before);
            }
            told
        };
        assert!(told_in(5).await > 200);
        told_in(60).await;
        assert!(
            (35..=41).contains(&told_in(10).await),
            "four times a second"
        );
        // After some rest it is as before.
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert!(told_in(5).await > 200);
    }
}
