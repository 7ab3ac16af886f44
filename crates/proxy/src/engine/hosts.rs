//! Virtual hosts that come one by one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use meshfed_proxy_config::{VirtualHost, table_of};

use crate::http::{RouteError, RouteIndex};
use crate::shards::Shards;

/// The virtual hosts of all tables that are not sent whole. They come before their table, and may go
/// before or after it.
#[derive(Default)]
pub(super) struct SeparateHosts {
    tables: HashMap<String, Table>,
}

struct Table {
    hosts: HashMap<Arc<str>, Arc<VirtualHost>>,
    /// Who has a domain: of several the one that came last. The same as in the index.
    by_domain: Arc<Shards<VirtualHost>>,
    /// Others that have a domain as well: while it moves from one host to another, the new one may
    /// come before the old one goes.
    others: BTreeMap<String, BTreeSet<Arc<str>>>,
    index: Arc<RouteIndex>,
    /// The table itself is there.
    in_use: bool,
}

impl Table {
    fn new() -> Self {
        let by_domain = Arc::new(Shards::new());
        Self {
            hosts: HashMap::new(),
            index: Arc::new(RouteIndex::Separate(by_domain.clone())),
            by_domain,
            others: BTreeMap::new(),
            in_use: false,
        }
    }

    fn insert(&mut self, host: Arc<VirtualHost>) {
        let old = self.hosts.insert(host.name.clone(), host.clone());
        let domains = domains(&host);
        for domain in &domains {
            self.claim(domain, &host);
        }
        let before = old.iter().flat_map(|old| self::domains(old));
        for domain in before.filter(|domain| !domains.contains(domain)) {
            self.release(&domain, &host.name);
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(old) = self.hosts.remove(name) {
            for domain in domains(&old) {
                self.release(&domain, &old.name);
            }
        }
    }

    fn claim(&mut self, domain: &str, host: &Arc<VirtualHost>) {
        let before = self.by_domain.insert(&domain.into(), host.clone());
        let other = before.filter(|before| before.name != host.name);
        if other.is_none() && !self.others.contains_key(domain) {
            return;
        }
        let others = self.others.entry(domain.to_owned()).or_default();
        others.extend(other.map(|other| other.name.clone()));
        others.remove(&host.name);
    }

    /// The host has the domain no more.
    fn release(&mut self, domain: &str, name: &Arc<str>) {
        let holds = self.by_domain.get(domain).is_some_and(|h| h.name == *name);
        let mut others = self.others.remove(domain).unwrap_or_default();
        if !holds {
            others.remove(name);
        } else if let Some(next) = others.pop_first().and_then(|next| self.hosts.get(&next)) {
            self.by_domain.insert(&domain.into(), next.clone());
        } else {
            self.by_domain.remove(domain);
        }
        if !others.is_empty() {
            self.others.insert(domain.to_owned(), others);
        }
    }
}

/// Authorities are compared without regard to case.
fn domains(host: &VirtualHost) -> BTreeSet<String> {
    host.domains
        .iter()
        .map(|d| d.to_ascii_lowercase())
        .collect()
}

impl SeparateHosts {
    /// The index of a table, which follows its hosts from now on.
    pub(super) fn table(&mut self, name: &str) -> Arc<RouteIndex> {
        let table = self
            .tables
            .entry(name.to_owned())
            .or_insert_with(Table::new);
        table.in_use = true;
        table.index.clone()
    }

    /// The table is gone, or is sent whole from now on.
    pub(super) fn release(&mut self, name: &str) {
        if let Some(table) = self.tables.get_mut(name) {
            table.in_use = false;
            self.tidy(name);
        }
    }

    pub(super) fn insert(&mut self, host: Arc<VirtualHost>) -> Result<(), RouteError> {
        let table = table_of(&host.name).ok_or(RouteError::NoTable)?;
        let table = self
            .tables
            .entry(table.to_owned())
            .or_insert_with(Table::new);
        table.insert(host);
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some(of) = table_of(name)
            && let Some(table) = self.tables.get_mut(of)
        {
            table.remove(name);
            self.tidy(of);
        }
    }

    /// Forgets a table that nothing is left of.
    fn tidy(&mut self, name: &str) {
        let left = |table: &Table| table.in_use || !table.hosts.is_empty();
        if !self.tables.get(name).is_some_and(left) {
            self.tables.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use meshfed_proxy_config::host_name;
    use proptest::prelude::*;

    use super::*;

    fn mk_host(name: &str, domains: &[&str]) -> Arc<VirtualHost> {
        Arc::new(VirtualHost {
            name: host_name("t", name),
            domains: domains.iter().map(|d| (*d).to_owned()).collect(),
            routes: Vec::new(),
        })
    }

    fn holder(index: &RouteIndex, authority: &str) -> Option<String> {
        index.host(authority).map(|host| host.name.to_string())
    }

    #[test]
    fn a_table_has_the_hosts_that_came_before_it_and_those_that_come_after() {
        let mut all = SeparateHosts::default();
        all.insert(mk_host("a", &["A.local:80", "a"])).unwrap();
        let index = all.table("t");
        assert_eq!(holder(&index, "a.local:80").as_deref(), Some("t/a"));
        assert_eq!(holder(&index, "b"), None);
        all.insert(mk_host("b", &["b", "*"])).unwrap();
        assert_eq!(holder(&index, "b").as_deref(), Some("t/b"));
        assert_eq!(holder(&index, "else").as_deref(), Some("t/b"));
        all.insert(mk_host("a", &["a"])).unwrap();
        all.remove("t/b");
        assert_eq!(holder(&index, "a").as_deref(), Some("t/a"));
        assert_eq!(holder(&index, "a.local:80"), None);
        let alone = VirtualHost {
            name: "a".into(),
            ..VirtualHost::clone(&mk_host("a", &["a"]))
        };
        assert_eq!(all.insert(alone.into()), Err(RouteError::NoTable));
    }

    #[test]
    fn nothing_is_kept_of_a_table_that_is_gone() {
        let mut all = SeparateHosts::default();
        all.table("t");
        all.insert(mk_host("a", &["a"])).unwrap();
        all.release("t");
        assert_eq!(all.tables.len(), 1, "its hosts are still there");
        all.remove("t/a");
        all.remove("t/a");
        all.release("t");
        assert!(all.tables.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever came and went before, a domain that one host has leads to it.
        #[test]
        fn where_no_two_hosts_have_a_domain_each_has_its_own(
            steps in prop::collection::vec((0..4_usize, prop::collection::btree_set(0..5_usize, 0..4)), 0..40),
        ) {
            let mut all = SeparateHosts::default();
            let index = all.table("t");
            let mut now: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
            for (host, domains) in steps {
                let name = host.to_string();
                if domains.is_empty() {
                    all.remove(&host_name("t", &name));
                    now.remove(&host);
                } else {
                    let texts: Vec<String> = domains.iter().map(usize::to_string).collect();
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    all.insert(mk_host(&name, &texts)).unwrap();
                    now.insert(host, domains);
                }
                for domain in 0..5 {
                    let has = |(_, domains): &(&usize, &BTreeSet<usize>)| domains.contains(&domain);
                    let holders: Vec<String> = now
                        .iter()
                        .filter(has)
                        .map(|(host, _)| host_name("t", &host.to_string()).to_string())
                        .collect();
                    let holder = holder(&index, &domain.to_string());
                    match holder {
                        Some(holder) => prop_assert!(holders.contains(&holder)),
                        None => prop_assert!(holders.is_empty()),
                    }
                }
            }
        }
    }
}
