//! Ending connections from outside: one word per connection that its own task looks at.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::sync::Notify;

/// Why a connection is ended although neither side asked for it. Ordered: the strongest wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Cut {
    /// What carried it went away or the proxy stops, and the time to finish is over.
    Drained = 2,
    /// Its filter chain has TLS now, and it has not, or the other way round.
    ChainRemoved,
    /// Its cluster went away while it was being made.
    ClusterRemoved,
    /// The allow policies or accepted ids no longer admit the client.
    NotAllowed,
    /// The certificate of the client or the endpoint does not satisfy the trust bundle any more.
    TrustRemoved,
}

/// What becomes of a connection after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Keep,
    Cut(Cut),
    /// What carried it is gone, or leads elsewhere now: it may go on for this long.
    Drain(Duration),
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

    fn is_running(&self) -> bool {
        self.level.load(Ordering::Acquire) == RUNNING
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

    /// Does with each member what `judge` says. Must run inside a tokio runtime.
    pub(crate) fn sweep(&self, mut judge: impl FnMut(&T) -> Verdict) {
        let mut draining: BTreeMap<Duration, Vec<Weak<Control>>> = BTreeMap::new();
        for (control, subject) in self.lock().members.values() {
            match judge(subject) {
                Verdict::Keep => {}
                Verdict::Cut(why) => control.cut(why),
                Verdict::Drain(Duration::ZERO) => control.cut(Cut::Drained),
                // One that drains already keeps its time.
                Verdict::Drain(period) if control.is_running() => {
                    control.drain();
                    let later = draining.entry(period).or_default();
                    later.push(Arc::downgrade(control));
                }
                Verdict::Drain(_) => {}
            }
        }
        for (period, later) in draining {
            tokio::spawn(async move {
                tokio::time::sleep(period).await;
                for control in later.iter().filter_map(Weak::upgrade) {
                    control.cut(Cut::Drained);
                }
            });
        }
    }

    /// Gives the members this long to finish, and cuts at once who comes late. Must run inside a
    /// tokio runtime.
    pub(crate) fn retire(self: &Arc<Self>, period: Duration, late: Cut)
    where
        T: Send + 'static,
    {
        let mut state = self.lock();
        state.closed = Some(late);
        if state.members.is_empty() {
            return;
        }
        if period.is_zero() {
            drop(state);
            return self.close(Cut::Drained);
        }
        for (control, _) in state.members.values() {
            control.drain();
        }
        drop(state);
        let set = self.clone();
        tokio::spawn(async move {
            if tokio::time::timeout(period, set.emptied()).await.is_err() {
                set.close(Cut::Drained);
            }
        });
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

    #[tokio::test(start_paused = true)]
    async fn a_retired_set_gives_its_members_time_and_nobody_who_comes_late() {
        let set = CutSet::new();
        let (early, late) = (Control::new(), Control::new());
        let _early = set.enter(&early, ());
        set.retire(Duration::from_secs(5), Cut::ClusterRemoved);
        let _late = set.enter(&late, ());
        assert_eq!(late.cut_reason(), Some(Cut::ClusterRemoved));
        tokio::time::sleep(Duration::from_millis(4_900)).await;
        assert_eq!(early.cut_reason(), None);
        assert_eq!(early.cut_signaled().await, Cut::Drained);
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_drains_is_not_given_more_time_by_the_next_change() {
        let set = CutSet::new();
        let (draining, kept) = (Control::new(), Control::new());
        let _members = [set.enter(&draining, true), set.enter(&kept, false)];
        let change = |seconds| {
            set.sweep(|gone| match gone {
                true => Verdict::Drain(Duration::from_secs(seconds)),
                false => Verdict::Keep,
            });
        };
        change(5);
        change(500);
        let began = tokio::time::Instant::now();
        assert_eq!(draining.cut_signaled().await, Cut::Drained);
        assert_eq!(began.elapsed().as_secs(), 5);
        assert!(kept.is_running());
    }

    #[test]
    fn a_member_that_left_is_forgotten() {
        let set = CutSet::new();
        let control = Control::new();
        drop(set.enter(&control, ()));
        assert!(set.lock().members.is_empty());
    }
}
