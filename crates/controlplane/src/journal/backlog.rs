//! Outcomes that wait to be looked at, one by one: each may have shared something that the next does
//! not share any more.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::hub::Outcome;

/// Outcomes that wait. When the disk is slower than this many, the newest takes the place of the one
/// before it.
const WAITING: usize = 256;

/// An outcome, in the order of their making.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub outcome: Arc<Outcome>,
    /// Outcomes before it that had no place to wait.
    pub merged: u64,
}

/// The end of whoever makes outcomes. Never waits.
#[derive(Debug)]
pub(crate) struct Feed(Arc<Shared>);

/// The end of whoever looks at them.
#[derive(Debug)]
pub struct Backlog(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Step>,
    ended: bool,
}

/// A queue of outcomes.
pub(crate) fn backlog() -> (Feed, Backlog) {
    let shared = Arc::new(Shared::default());
    (Feed(shared.clone()), Backlog(shared))
}

impl Shared {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        // Consistent at each step.
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Feed {
    pub fn push(&self, outcome: Arc<Outcome>) {
        self.0.with(|state| {
            let replaced = (state.waiting.len() >= WAITING)
                .then(|| state.waiting.pop_back())
                .flatten();
            let merged = replaced.map_or(0, |step| step.merged + 1);
            state.waiting.push_back(Step { outcome, merged });
        });
        self.0.news.notify_one();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.with(|state| state.ended = true);
        self.0.news.notify_one();
    }
}

impl Backlog {
    /// All that wait; `None` when there are none and no more will come.
    pub(crate) async fn next(&mut self) -> Option<VecDeque<Step>> {
        loop {
            let (waiting, ended) = self
                .0
                .with(|state| (std::mem::take(&mut state.waiting), state.ended));
            if !waiting.is_empty() {
                return Some(waiting);
            }
            if ended {
                return None;
            }
            self.0.news.notified().await;
        }
    }
}
