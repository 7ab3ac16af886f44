//! Readiness by dropped guards: a process is ready when nothing that was awaited is left.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// What a process still waits for before it can serve. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// Name to the number of guards of that name.
    pending: Arc<watch::Sender<BTreeMap<String, usize>>>,
}

/// Something that is awaited. Dropping it says that it has come; a task that fails before should
/// let its failure end the process (see [`Supervisor`](crate::Supervisor)).
#[derive(Debug)]
pub struct ReadyGuard {
    name: String,
    pending: Arc<watch::Sender<BTreeMap<String, usize>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    pub fn new() -> Self {
        Self {
            pending: Arc::new(watch::Sender::new(BTreeMap::new())),
        }
    }

    /// The process is not ready until this guard is dropped. The name is shown to people.
    pub fn guard(&self, name: impl Into<String>) -> ReadyGuard {
        let name = name.into();
        self.pending
            .send_modify(|pending| *pending.entry(name.clone()).or_default() += 1);
        ReadyGuard {
            name,
            pending: self.pending.clone(),
        }
    }

    /// The names of what is still awaited.
    pub fn pending(&self) -> Vec<String> {
        self.pending.borrow().keys().cloned().collect()
    }

    pub fn is_ready(&self) -> bool {
        self.pending.borrow().is_empty()
    }

    /// Resolves as soon as nothing is awaited any more.
    pub async fn ready(&self) {
        let mut pending = self.pending.subscribe();
        // The sender lives in `self`, so the channel cannot close.
        let _ = pending.wait_for(BTreeMap::is_empty).await;
    }
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        self.pending.send_modify(|pending| {
            if let Some(count) = pending.get_mut(&self.name) {
                *count -= 1;
                if *count == 0 {
                    pending.remove(&self.name);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_ready_when_the_last_guard_is_dropped() {
        let readiness = Readiness::new();
        let store = readiness.guard("store");
        let one = readiness.guard("listener");
        let two = readiness.guard("listener");
        assert_eq!(readiness.pending(), ["listener", "store"]);

        drop(one);
        assert_eq!(readiness.pending(), ["listener", "store"]);
        drop(two);
        assert_eq!(readiness.pending(), ["store"]);

        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(store);
        waiting.await.unwrap();
        assert!(readiness.is_ready());
    }
}
