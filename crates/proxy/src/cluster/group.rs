//! The choice among hosts of one priority.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::hosts::Host;
use crate::random;

/// Hosts with their shares of the traffic.
#[derive(Default)]
pub(super) struct Group {
    hosts: Vec<Arc<Host>>,
    /// The running total of the weights, host by host.
    totals: Vec<u64>,
}

impl Group {
    /// Adds a host that gets `weight` parts of the traffic; 0 counts as 1.
    pub(super) fn push(&mut self, host: Arc<Host>, weight: u32) {
        self.hosts.push(host);
        self.totals.push(self.total() + u64::from(weight.max(1)));
    }

    /// Without room for more: there are many groups, and most have one host.
    pub(super) fn fitted(mut self) -> Self {
        self.hosts.shrink_to_fit();
        self.totals.shrink_to_fit();
        self
    }

    pub(super) fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    fn total(&self) -> u64 {
        self.totals.last().copied().unwrap_or(0)
    }

    fn weight(&self, index: usize) -> u64 {
        let before = index.checked_sub(1).map_or(0, |i| self.totals[i]);
        self.totals[index] - before
    }

    /// Two hosts are drawn, each as often as its weight says, and the one with less to do for its
    /// weight is taken; so idle hosts are used as their weights say, and a slow one gets less.
    pub(super) fn choose(&self, test: &dyn Fn(&Host) -> bool) -> Option<&Arc<Host>> {
        if self.hosts.is_empty() {
            return None;
        }
        let mut found: Option<usize> = None;
        for _ in 0..4 {
            let next = self.draw();
            if !test(&self.hosts[next]) {
                continue;
            }
            match found {
                None => found = Some(next),
                Some(first) => return Some(&self.hosts[self.less_loaded(first, next)]),
            }
        }
        // Most of the weight is out of use; then all are looked at.
        found.or_else(|| self.search(test)).map(|i| &self.hosts[i])
    }

    fn draw(&self) -> usize {
        let at = random::below_u64(self.total());
        self.totals.partition_point(|total| *total <= at)
    }

    fn less_loaded(&self, first: usize, second: usize) -> usize {
        let load = |i: usize| self.hosts[i].active.load(Ordering::Relaxed) as u64;
        // As fractions: load / weight.
        if load(second) * self.weight(first) < load(first) * self.weight(second) {
            second
        } else {
            first
        }
    }

    /// One of those that pass, as often as its weight among them says.
    fn search(&self, test: &dyn Fn(&Host) -> bool) -> Option<usize> {
        let mut found = None;
        let mut total = 0;
        for (i, host) in self.hosts.iter().enumerate() {
            if test(host) {
                let weight = self.weight(i);
                total += weight;
                if random::below_u64(total) < weight {
                    found = Some(i);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::SocketAddr;

    use super::*;

    fn group(weights: &[u32]) -> Group {
        let mut group = Group::default();
        for (port, weight) in (1..).zip(weights) {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            group.push(Host::new(address, true), *weight);
        }
        group
    }

    fn share_of_first(group: &Group, test: &dyn Fn(&Host) -> bool) -> f64 {
        let mut seen: HashMap<u16, u32> = HashMap::new();
        for _ in 0..20_000 {
            let host = group.choose(test).unwrap();
            *seen.entry(host.address.port()).or_default() += 1;
        }
        f64::from(*seen.get(&1).unwrap_or(&0)) / 20_000.0
    }

    #[test]
    fn idle_hosts_are_used_as_their_weights_say() {
        let share = share_of_first(&group(&[3, 1]), &|_| true);
        assert!((0.73..0.77).contains(&share), "{share}");
        let share = share_of_first(&group(&[1, 65_535]), &|_| true);
        assert!(share < 0.01, "{share}");
    }

    #[test]
    fn what_a_host_out_of_use_leaves_is_shared_as_the_weights_say() {
        let group = group(&[3, 65_535, 1]);
        let share = share_of_first(&group, &|host| host.address.port() != 2);
        assert!((0.73..0.77).contains(&share), "{share}");
        assert!(group.choose(&|_| false).is_none());
    }

    #[test]
    fn requests_that_are_under_way_spread_as_the_weights_say() {
        let group = group(&[1, 2, 1]);
        for _ in 0..4_000 {
            let host = group.choose(&|_| true).unwrap();
            host.active.fetch_add(1, Ordering::Relaxed);
        }
        let active = |i: usize| group.hosts()[i].active.load(Ordering::Relaxed);
        for (i, expect) in [(0, 1_000), (1, 2_000), (2, 1_000)] {
            assert!(active(i).abs_diff(expect) < 60, "{i}: {}", active(i));
        }
    }
}
