use proptest::prelude::*;

use super::*;
use crate::ads::Nodes;

const SECOND: Duration = Duration::from_secs(1);

fn key() -> ObjectKey {
    ObjectKey::new("bookinfo", "ratings-1")
}

fn other() -> Holder {
    Holder::Other("b".to_owned())
}

fn never(_: &str) -> bool {
    unreachable!("it is not asked")
}

#[test]
fn the_annotation_says_who_holds_a_pod() {
    let mut pod = Pod::default();
    assert_eq!(Holder::of(&pod, "a"), Holder::Nobody);
    let held = [(HOLDER_ANNOTATION.to_owned(), "a".to_owned())];
    pod.metadata.annotations = Some(held.into());
    assert_eq!(Holder::of(&pod, "a"), Holder::Us);
    assert_eq!(Holder::of(&pod, "b"), Holder::Other("a".to_owned()));
}

#[test]
fn a_workload_that_leaves_is_gone_at_once_and_one_that_has_not_come_back_yet_has_its_time() {
    let start = Instant::now();
    let mut holds = Holds::new(start);
    let judged = holds.judge(&key(), Holder::Us, start + SECOND, never);
    assert_eq!(judged, Deed::Wait(start + GRACE));
    let judged = holds.judge(&key(), Holder::Us, start + GRACE, never);
    assert_eq!(judged, Deed::Delete);
    let connection = Nodes::new().next_id();
    assert!(holds.may_write(&key(), connection, &Holder::Us));
    let judged = holds.judge(&key(), Holder::Us, start + SECOND, never);
    assert_eq!(judged, Deed::Delete);
}

#[test]
fn after_we_have_stood_still_a_workload_has_its_time_to_come_back() {
    let start = Instant::now();
    let mut holds = Holds::new(start);
    let connection = Nodes::new().next_id();
    assert!(holds.may_write(&key(), connection, &Holder::Us));
    holds.judge(
        &ObjectKey::new("bookinfo", "nobodys"),
        Holder::Nobody,
        start,
        never,
    );
    let resumed = start + 3 * GRACE;
    holds.stood_still(resumed);
    for (name, holder) in [("ratings-1", Holder::Us), ("nobodys", Holder::Nobody)] {
        let key = ObjectKey::new("bookinfo", name);
        let judged = holds.judge(&key, holder.clone(), resumed + SECOND, never);
        assert_eq!(judged, Deed::Wait(resumed + GRACE));
        let judged = holds.judge(&key, holder, resumed + GRACE, never);
        assert_eq!(judged, Deed::Delete);
    }
    // It came back, and leaves later.
    let next = Nodes::new().next_id();
    assert!(holds.may_write(&key(), next, &Holder::Us));
    let judged = holds.judge(&key(), Holder::Us, resumed + GRACE + SECOND, never);
    assert_eq!(judged, Deed::Delete);
}

#[test]
fn a_pod_of_nobody_has_its_time_from_when_it_was_let_go() {
    let start = Instant::now();
    let mut holds = Holds::new(start);
    let late = start + 3 * GRACE;
    holds.judge(&key(), other(), start, never);
    let judged = holds.judge(&key(), Holder::Nobody, late, never);
    assert_eq!(judged, Deed::Wait(late + GRACE));
    let judged = holds.judge(&key(), Holder::Nobody, late + GRACE, never);
    assert_eq!(judged, Deed::Delete);
    // It was made anew: its time begins anew.
    holds.keep(|_| false);
    let judged = holds.judge(&key(), Holder::Nobody, late + GRACE, never);
    assert_eq!(judged, Deed::Wait(late + 2 * GRACE));
}

#[test]
fn a_pod_of_another_instance_is_left_alone_while_that_one_lives_and_struck_out_later() {
    let start = Instant::now();
    let mut holds = Holds::new(start);
    let judged = holds.judge(&key(), other(), start, never);
    assert_eq!(judged, Deed::Wait(start + SILENCE));
    let late = start + SILENCE;
    let judged = holds.judge(&key(), other(), late, |name| {
        assert_eq!(name, "b");
        true
    });
    assert_eq!(judged, Deed::Wait(late + LOOK_AGAIN));
    let judged = holds.judge(&key(), other(), late, |_| false);
    assert_eq!(judged, Deed::StrikeOut);
    holds.struck_out(&key(), late);
    // It lives and takes the Pod back, so it has as long again.
    let judged = holds.judge(&key(), other(), late + SECOND, never);
    assert_eq!(judged, Deed::Wait(late + SECOND + SILENCE));
}

#[test]
fn an_instance_yields_to_the_one_that_the_workload_has_gone_to_until_it_comes_again() {
    let nodes = Nodes::new();
    let (first, second) = (nodes.next_id(), nodes.next_id());
    let mut holds = Holds::new(Instant::now());
    assert!(holds.may_write(&key(), first, &Holder::Nobody));
    holds.wrote(&key(), first);
    assert!(holds.may_write(&key(), first, &Holder::Us), "news of it");
    assert!(!holds.may_write(&key(), first, &other()));
    assert!(holds.may_write(&key(), second, &other()));
    // Nobody holds it any more.
    assert!(holds.may_write(&key(), first, &Holder::Nobody));
}

/// Two instances over one API.
struct Instances {
    nodes: Nodes,
    now: Instant,
    /// The one Pod, and who holds it.
    pod: Option<Option<usize>>,
    holds: [Holds; 2],
    connected: [Option<ConnectionId>; 2],
    killed: [bool; 2],
}

impl Instances {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            nodes: Nodes::new(),
            now,
            pod: None,
            holds: [Holds::new(now), Holds::new(now)],
            connected: [None, None],
            killed: [false, false],
        }
    }

    /// The instance looks at the API and does what it has to. True if it wrote something.
    fn turn(&mut self, which: usize) -> bool {
        if self.killed[which] {
            return false;
        }
        let before = self.pod;
        let holds = &mut self.holds[which];
        let holder = match self.pod.flatten() {
            None => Holder::Nobody,
            Some(holder) if holder == which => Holder::Us,
            Some(holder) => Holder::Other(holder.to_string()),
        };
        match self.connected[which] {
            Some(connection) if holds.may_write(&key(), connection, &holder) => {
                self.pod = Some(Some(which));
                holds.wrote(&key(), connection);
            }
            _ if self.pod.is_none() => {}
            // No peer is there that would hear from any of them.
            _ => match holds.judge(&key(), holder, self.now, |_| false) {
                Deed::Wait(_) => {}
                Deed::StrikeOut => {
                    self.pod = Some(None);
                    holds.struck_out(&key(), self.now);
                }
                Deed::Delete => self.pod = None,
            },
        }
        let is_there = self.pod.is_some();
        self.holds[which].keep(|_| is_there);
        self.pod != before
    }

    fn settle(&mut self) {
        for _ in 0..5 {
            let wrote = [0, 1].map(|which| self.turn(which));
            if wrote == [false, false] {
                return;
            }
        }
        panic!("they fight");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Connect(usize),
    Leave(usize),
    Restart(usize),
    /// It is never there again.
    Kill(usize),
    Turn(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..2_usize).prop_map(Step::Connect),
        (0..2_usize).prop_map(Step::Leave),
        (0..2_usize).prop_map(Step::Restart),
        (0..2_usize).prop_map(Step::Kill),
        (0..2_usize).prop_map(Step::Turn),
        prop_oneof![1..40_u64, 500..700_u64].prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_two_instances_rest_and_the_pod_is_there_while_the_workload_is(
        steps in prop::collection::vec(step(), 0..30),
    ) {
        let mut both = Instances::new();
        for step in steps {
            match step {
                Step::Connect(which) if both.killed[which] => {}
                Step::Connect(which) => both.connected[which] = Some(both.nodes.next_id()),
                Step::Leave(which) => both.connected[which] = None,
                Step::Restart(which) => {
                    both.connected[which] = None;
                    both.holds[which] = Holds::new(both.now);
                }
                Step::Kill(which) => {
                    both.connected[which] = None;
                    both.killed[which] = true;
                }
                Step::Turn(which) => {
                    both.turn(which);
                }
                Step::Wait(seconds) => both.now += Duration::from_secs(seconds),
            }
        }
        both.settle();
        let is_connected = both.connected.iter().any(Option::is_some);
        if is_connected {
            prop_assert!(both.pod.is_some());
        }
        // Whoever is silent has its time, and then whoever does not come back.
        for _ in 0..2 {
            both.now += SILENCE;
            both.settle();
            prop_assert!(both.pod.is_some() || !is_connected);
        }
        both.now += SILENCE;
        both.settle();
        if both.killed != [true, true] {
            prop_assert_eq!(both.pod.is_some(), is_connected);
            if let Some(holder) = both.pod {
                prop_assert!(both.connected[holder.unwrap()].is_some());
            }
        }
    }
}
