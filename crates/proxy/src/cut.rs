//! Ending connections from outside: one word per connection that its own task looks at.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use tokio::sync::Notify;

/// Why a connection is ended although neither side asked for it. Ordered: the strongest wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Cut {
    /// Its listener went away or the proxy stops, and the deadline has passed.
    Drained = 2,
    /// No filter chain matches its SNI any more, or the chain does something else now.
    ChainRemoved,
    /// Its cluster is gone or has other TLS settings.
    ClusterRemoved,
    /// The allow policies or accepted ids no longer admit the client.
    NotAllowed,
    /// The client's certificate does not satisfy the trust bundle any more.
    TrustRemoved,
}

const RUNNING: u8 = 0;
const DRAINING: u8 = 1;

impl Cut {
    fn from_level(level: u8) -> Option<Self> {
        [
            Self::Drained,
            Self::ChainRemoved,
            Self::ClusterRemoved,
            Self::NotAllowed,
            Self::TrustRemoved,
        ]
        .into_iter()
        .find(|c| *c as u8 == level)
    }
}

/// What a connection's task is told. Checking it costs one atomic load when nothing happened.
#[derive(Default)]
pub(crate) struct Control {
    level: AtomicU8,
    waker: AtomicWaker,
}

impl Control {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub(crate) fn cut(&self, why: Cut) {
        self.raise(why as u8);
    }

    /// Asks the connection to end when what it is doing is done.
    pub(crate) fn drain(&self) {
        self.raise(DRAINING);
    }

    fn raise(&self, level: u8) {
        self.level.fetch_max(level, Ordering::AcqRel);
        self.waker.wake();
    }

    pub(crate) fn cut_reason(&self) -> Option<Cut> {
        Cut::from_level(self.level.load(Ordering::Acquire))
    }

    /// Ready when the connection is to end now. Of use to one task only, as it keeps one waker.
    pub(crate) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<Cut> {
        self.waker.register(cx.waker());
        match self.cut_reason() {
            Some(cut) => Poll::Ready(cut),
            None => Poll::Pending,
        }
    }

    /// Ready when the connection should end soon or now. Of use to one task only.
    pub(crate) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        match self.level.load(Ordering::Acquire) {
            RUNNING => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }

    pub(crate) async fn cut_signaled(&self) -> Cut {
        std::future::poll_fn(|cx| self.poll_cut(cx)).await
    }
}

/// Connections that share a fate. Its lock is taken when a connection begins or ends, never for
/// its bytes.
pub(crate) struct CutSet<T> {
    next: AtomicU64,
    state: Mutex<SetState<T>>,
    emptied: Notify,
}

struct SetState<T> {
    members: HashMap<u64, (Arc<Control>, T)>,
    /// Set once the whole set was told to end: who comes late is told the same.
    draining: bool,
    closed: Option<Cut>,
}

impl<T> CutSet<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            next: AtomicU64::new(0),
            state: Mutex::new(SetState {
                members: HashMap::new(),
                draining: false,
                closed: None,
            }),
            emptied: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, SetState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection, with what it is judged by later, until the returned guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, control: &Arc<Control>, subject: T) -> CutGuard<T> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        if state.draining {
            control.drain();
        }
        if let Some(why) = state.closed {
            control.cut(why);
        }
        state.members.insert(id, (control.clone(), subject));
        CutGuard {
            set: self.clone(),
            id,
        }
    }

    /// Cuts the members that `judge` gives a reason for.
    pub(crate) fn sweep(&self, mut judge: impl FnMut(&T) -> Option<Cut>) {
        for (control, subject) in self.lock().members.values() {
            if let Some(why) = judge(subject) {
                control.cut(why);
            }
        }
    }

    /// Returns when there is no member.
    pub(crate) async fn emptied(&self) {
        loop {
            let mut notified = pin!(self.emptied.notified());
            notified.as_mut().enable();
            if self.lock().members.is_empty() {
                return;
            }
            notified.await;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().members.len()
    }

    /// Cuts all members and everybody who comes later.
    pub(crate) fn close(&self, why: Cut) {
        let mut state = self.lock();
        state.closed = Some(why);
        for (control, _) in state.members.values() {
            control.cut(why);
        }
    }

    pub(crate) fn drain(&self) {
        let mut state = self.lock();
        state.draining = true;
        for (control, _) in state.members.values() {
            control.drain();
        }
    }
}

/// Membership in a [`CutSet`].
pub(crate) struct CutGuard<T> {
    set: Arc<CutSet<T>>,
    id: u64,
}

impl<T> Drop for CutGuard<T> {
    fn drop(&mut self) {
        let mut state = self.set.lock();
        state.members.remove(&self.id);
        if state.members.is_empty() {
            self.set.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_set_cuts_its_members_and_those_who_come_late() {
        let set = CutSet::new();
        let (early, late) = (Control::new(), Control::new());
        let _early = set.enter(&early, ());
        let waiting = {
            let early = early.clone();
            tokio::spawn(async move { early.cut_signaled().await })
        };
        set.close(Cut::ClusterRemoved);
        assert_eq!(waiting.await.unwrap(), Cut::ClusterRemoved);
        let _late = set.enter(&late, ());
        assert_eq!(late.cut_signaled().await, Cut::ClusterRemoved);
    }

    #[test]
    fn a_member_that_left_is_forgotten() {
        let set = CutSet::new();
        let control = Control::new();
        drop(set.enter(&control, ()));
        assert!(set.lock().members.is_empty());
    }
}
