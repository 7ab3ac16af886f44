//! One question to the hosts file and the name servers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
    ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Hosts, TokioResolver};

use crate::limits::{DNS_ADDRESSES, DNS_WITHOUT_TTL};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    #[error("not a host name")]
    Name(#[from] ProtoError),
    #[error("{RESOLV_CONF} cannot be used")]
    SystemConfig(#[source] NetError),
    #[error("the name servers gave no address: {0}")]
    Servers(#[from] NetError),
    #[error("the name servers gave no address")]
    Empty,
}

/// At least one address.
pub(super) struct Answer {
    /// Sorted, so that equal answers make equal lists.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) lasts: Duration,
}

/// Where addresses come from, as the system says now.
pub(super) struct Lookup {
    /// Instead of those of the system.
    servers: Vec<SocketAddr>,
    sources: Mutex<Option<(Stamps, Sources)>>,
}

#[derive(Clone)]
struct Sources {
    hosts: Arc<Hosts>,
    resolver: TokioResolver,
}

/// What tells that a file is not the one that was read.
#[derive(PartialEq)]
struct Stamps([Option<(SystemTime, u64)>; 2]);

impl Stamps {
    fn now() -> Self {
        Self([RESOLV_CONF, HOSTS].map(|path| {
            let file = Path::new(path).metadata().ok()?;
            Some((file.modified().ok()?, file.len()))
        }))
    }
}

impl Lookup {
    pub(super) fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            sources: Mutex::default(),
        }
    }

    pub(super) async fn addresses(self: &Arc<Self>, host: &str) -> Result<Answer, LookupError> {
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || this.sources());
        let sources = read
            .await
            .map_err(|e| NetError::from(io::Error::other(e)))??;
        let name = Name::from_utf8(host)?;
        if let Some(answer) = sources.in_hosts_file(&name) {
            return Ok(answer);
        }
        let found = sources.resolver.lookup_ip(name).await?;
        let lasts = match found
            .valid_until()
            .saturating_duration_since(Instant::now())
        {
            Duration::ZERO => DNS_WITHOUT_TTL,
            lasts => lasts,
        };
        answer(found.iter(), lasts).ok_or(LookupError::Empty)
    }

    /// Reads the files again if they have changed. Blocks.
    fn sources(&self) -> Result<Sources, LookupError> {
        let now = Stamps::now();
        let mut known = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, sources)) = &*known
            && *then == now
        {
            return Ok(sources.clone());
        }
        let sources = Sources {
            hosts: Arc::new(Hosts::from_system().unwrap_or_default()),
            resolver: self.resolver()?,
        };
        *known = Some((now, sources.clone()));
        Ok(sources)
    }

    fn resolver(&self) -> Result<TokioResolver, LookupError> {
        let (config, mut options) = if self.servers.is_empty() {
            read_system_conf().map_err(LookupError::SystemConfig)?
        } else {
            let servers = self.servers.iter().copied().map(server).collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            (config, ResolverOpts::default())
        };
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // Both are looked after here.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let provider = TokioRuntimeProvider::default();
        Ok(TokioResolver::builder_with_config(config, provider)
            .with_options(options)
            .build()?)
    }
}

fn server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

impl Sources {
    fn in_hosts_file(&self, name: &Name) -> Option<Answer> {
        let of = |kind| {
            let query = Query::query(name.clone(), kind);
            let found = self.hosts.lookup_static_host(&query);
            found.map_or_else(Vec::new, |found| {
                let ips = found.answers().iter().filter_map(|r| r.data.ip_addr());
                ips.collect()
            })
        };
        let found = [RecordType::A, RecordType::AAAA].map(of);
        answer(found.into_iter().flatten(), DNS_WITHOUT_TTL)
    }
}

fn answer(addresses: impl IntoIterator<Item = IpAddr>, lasts: Duration) -> Option<Answer> {
    let mut addresses: Vec<IpAddr> = addresses.into_iter().collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(DNS_ADDRESSES);
    (!addresses.is_empty()).then_some(Answer { addresses, lasts })
}
