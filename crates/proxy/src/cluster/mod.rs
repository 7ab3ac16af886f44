//! Clusters: endpoints that are equal for routing, and connections to them.

mod connect;
mod group;
mod hosts;
mod pool;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::{ArcSwap, ArcSwapOption};
use meshfed_pki::{ClientTls, IdentityCell, TrustStore, client_config};
use meshfed_proxy_config::{Cluster as Config, Discovery, Endpoints, ServerIds, UpstreamTls};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

pub(crate) use connect::{Connected, Failure, connect};
use hosts::Hosts;
pub(crate) use pool::{Exchange, Lease, send};

use crate::cut::{Cut, CutSet, Verdict};
use crate::dns::{Dns, Name, Watcher};
use crate::limits::DNS_ADDRESSES;
use crate::trust::{Judge, Proof};

/// Why a cluster makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    #[error("the SNI {0:?} is not a DNS name that TLS can send")]
    Sni(String),
    #[error("the connect timeout is zero")]
    ConnectTimeout,
}

/// Connections through a cluster, judged by what the endpoint showed; `None` for plain ones.
pub(crate) type Users = CutSet<Option<Arc<Proof>>>;

/// A cluster in use. Readers hold it as long as they need it, also past its replacement.
pub(crate) struct Cluster {
    pub(crate) name: Arc<str>,
    pub(crate) config: Arc<Config>,
    hosts: ArcSwap<Hosts>,
    tls: ArcSwapOption<MadeTls>,
    pub(crate) users: Arc<Users>,
    /// Addresses and names in place of endpoints.
    sources: Vec<(Source, u16)>,
    /// Held while the answers become hosts, as several may come at once.
    resolving: Mutex<()>,
}

/// Where addresses of a cluster come from.
enum Source {
    Ip(IpAddr),
    Name(Arc<Name>),
}

/// A rustls configuration and the roots that it was made from.
struct MadeTls {
    trust: Arc<TrustStore>,
    config: Arc<ClientConfig>,
}

impl Cluster {
    /// Says whether the settings make sense.
    pub(crate) fn check(config: &Config) -> Result<(), ClusterError> {
        if config.connect_timeout.is_zero() {
            return Err(ClusterError::ConnectTimeout);
        }
        config.tls.as_ref().map_or(Ok(None), server_name)?;
        Ok(())
    }

    /// Makes a cluster that takes over from `old` what is still true: hosts with their load and
    /// health, idle connections, and the connections in use that the new settings still accept.
    ///
    /// Must run inside a tokio runtime.
    pub(crate) fn new(
        config: Arc<Config>,
        endpoints: Option<&Endpoints>,
        dns: &Dns,
        old: Option<&Self>,
    ) -> Result<Arc<Self>, ClusterError> {
        Self::check(&config)?;
        let same_wire =
            |o: &&Self| o.config.tls == config.tls && o.config.protocol == config.protocol;
        let known = old.filter(same_wire);
        let before = known.map(|o| o.hosts.load_full()).unwrap_or_default();
        let hosts = match &config.discovery {
            Discovery::Eds(_) => match endpoints {
                Some(endpoints) => Arc::new(Hosts::new(endpoints, &before)),
                None => Arc::default(),
            },
            Discovery::Static(addresses) => Arc::new(Hosts::of_addresses(addresses, &before)),
            // Until the first answer, the old addresses are better than none.
            Discovery::Dns(_) => before,
        };
        let cluster = Arc::new(Self {
            name: config.name.clone(),
            hosts: ArcSwap::new(hosts),
            tls: ArcSwapOption::new(known.and_then(|o| o.tls.load_full())),
            users: old.map_or_else(CutSet::new, |o| o.users.clone()),
            sources: sources(&config.discovery, dns),
            resolving: Mutex::default(),
            config,
        });
        for (source, _) in &cluster.sources {
            if let Source::Name(name) = source {
                let watcher: Weak<Self> = Arc::downgrade(&cluster);
                name.watch(watcher);
            }
        }
        // What is known already.
        cluster.addresses_changed();
        if let Some(old) = old {
            old.retire_missing(&cluster.hosts.load());
        }
        Ok(cluster)
    }

    pub(crate) fn set_endpoints(&self, endpoints: &Endpoints) {
        self.set_hosts(|old| Hosts::new(endpoints, old));
    }

    fn set_hosts(&self, make: impl FnOnce(&Hosts) -> Hosts) {
        let old = self.hosts.load_full();
        let new = Arc::new(make(&old));
        self.hosts.store(new.clone());
        close_missing(&old, &new);
    }

    fn hosts(&self) -> arc_swap::Guard<Arc<Hosts>> {
        self.hosts.load()
    }

    fn retire_missing(&self, new: &Hosts) {
        close_missing(&self.hosts.load(), new);
    }

    /// Ends what goes through the cluster: at once what begins now, and in its drain period what is
    /// under way.
    pub(crate) fn remove(&self) {
        self.users.retire(self.config.drain, Cut::ClusterRemoved);
        close_missing(&self.hosts.load(), &Hosts::default());
    }

    /// Ends the connections that today's settings and roots would not make. `before` is what they
    /// were made with.
    pub(crate) fn judge_users(
        &self,
        before: &Config,
        trust: Option<&Arc<TrustStore>>,
        judge: &mut Judge,
    ) {
        let mut holds = |proof: &Arc<Proof>| trust.is_some_and(|trust| judge.holds(proof, trust));
        self.users
            .sweep(|proof| verdict(before, &self.config, proof.as_ref(), &mut holds));
    }

    /// The rustls configuration for these roots, made at the first use and kept until the cluster
    /// or the roots change.
    fn client_config(
        &self,
        tls: &UpstreamTls,
        trust: &Arc<TrustStore>,
        identity: &Arc<IdentityCell>,
    ) -> Result<Arc<ClientConfig>, meshfed_pki::TlsConfigError> {
        if let Some(made) = &*self.tls.load()
            && Arc::ptr_eq(&made.trust, trust)
        {
            return Ok(made.config.clone());
        }
        let config = client_config(ClientTls {
            identity: identity.clone(),
            trust: trust.clone(),
            server: match &tls.server {
                ServerIds::OneOf(ids) => meshfed_pki::ServerIds::OneOf(ids.clone()),
                ServerIds::AnyOf(domain) => meshfed_pki::ServerIds::AnyOf(domain.clone()),
            },
            alpn: tls.alpn.clone(),
        })?;
        self.tls.store(Some(Arc::new(MadeTls {
            trust: trust.clone(),
            config: config.clone(),
        })));
        Ok(config)
    }
}

/// The SNI to send.
fn server_name(tls: &UpstreamTls) -> Result<Option<ServerName<'_>>, ClusterError> {
    let Some(sni) = &tls.sni else { return Ok(None) };
    let name = ServerName::try_from(&**sni);
    name.map(Some)
        .map_err(|_| ClusterError::Sni(sni.to_string()))
}

/// What becomes of a connection that was made with the settings `before`. `holds`: whether today's
/// roots vouch for the endpoint.
fn verdict(
    before: &Config,
    now: &Config,
    proof: Option<&Arc<Proof>>,
    holds: &mut dyn FnMut(&Arc<Proof>) -> bool,
) -> Verdict {
    match (&before.tls, &now.tls, proof) {
        (None, None, _) => Verdict::Keep,
        // It leads to something else now.
        (Some(then), Some(tls), _) if then.sni != tls.sni => Verdict::Drain(before.drain),
        (None, Some(_), _) | (Some(_), None, _) => Verdict::Drain(before.drain),
        // Plain, as the endpoint has no TLS.
        (Some(_), Some(_), None) => Verdict::Keep,
        (Some(_), Some(tls), Some(proof)) => {
            if !holds(proof) {
                Verdict::Cut(Cut::TrustRemoved)
            } else if !accepts(&tls.server, proof) {
                // Another gateway serves now; the trust in the one before is as it was.
                Verdict::Drain(before.drain)
            } else {
                Verdict::Keep
            }
        }
    }
}

impl Watcher for Cluster {
    /// Takes over the addresses that the names have now.
    fn addresses_changed(&self) {
        let _one_at_a_time = self
            .resolving
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut found = BTreeSet::new();
        for (source, port) in &self.sources {
            match source {
                Source::Ip(ip) => _ = found.insert(SocketAddr::new(*ip, *port)),
                Source::Name(name) => {
                    let addresses = name.addresses();
                    found.extend(addresses.iter().map(|ip| SocketAddr::new(*ip, *port)));
                }
            }
        }
        let found: Vec<_> = found.into_iter().take(DNS_ADDRESSES).collect();
        // Before the first answer, old addresses are better than none.
        if !found.is_empty() {
            self.set_hosts(|old| Hosts::of_addresses(&found, old));
        }
    }
}

fn sources(discovery: &Discovery, dns: &Dns) -> Vec<(Source, u16)> {
    let Discovery::Dns(hosts) = discovery else {
        return Vec::new();
    };
    let source = |host: &str| match host.parse() {
        Ok(ip) => Source::Ip(ip),
        Err(_) => Source::Name(dns.name(host)),
    };
    hosts
        .iter()
        .map(|(host, port)| (source(host), *port))
        .collect()
}

fn accepts(server: &ServerIds, proof: &Proof) -> bool {
    match server {
        ServerIds::OneOf(ids) => ids.contains(&proof.id),
        ServerIds::AnyOf(domain) => proof.id.trust_domain() == domain,
    }
}

/// Idle connections to hosts that are gone are of no more use.
fn close_missing(old: &Hosts, new: &Hosts) {
    for host in old.all() {
        if !new.all().any(|kept| Arc::ptr_eq(kept, host)) {
            host.pool.close();
        }
    }
}
