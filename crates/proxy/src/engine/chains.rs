//! Which filter chain a connection gets.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use meshfed_pki::{
    IdentityCell, ServerConfigs, ServerTls, SpiffeId, TlsConfigError, TrustStore, server_config,
};
use meshfed_proxy_config::{
    AllowPolicy, DownstreamTls, FilterChain, HttpRoutes, Listener, Network, ServerName,
};

use crate::cut::CutSet;
use crate::http::RouteIndex;
use crate::listener::Subject;

/// Why a listener's chains make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainsError {
    #[error("filter chains {first:?} and {second:?} both match {name}")]
    Ambiguous {
        first: String,
        second: String,
        name: String,
    },
    #[error("two filter chains are named {0:?}")]
    SameName(String),
    #[error(
        "filter chain {0:?} has no TLS but another one of the listener has; plain and TLS connections cannot share a listener"
    )]
    MixedTls(String),
    #[error("filter chain {0:?} matches a server name but has no TLS, so there is none to match")]
    NameWithoutTls(String),
    #[error("filter chain {chain:?} has inline routes that cannot be used")]
    Routes {
        chain: String,
        #[source]
        cause: crate::http::RouteError,
    },
}

/// A listener's chains with an index over their server names.
pub(crate) struct Chains {
    pub(crate) listener: Arc<Listener>,
    chains: Vec<Arc<Chain>>,
    by_name: HashMap<Arc<str>, usize>,
    exact: HashMap<String, usize>,
    suffix: HashMap<String, usize>,
    any: Option<usize>,
}

/// A filter chain with what was made from it.
pub(crate) struct Chain {
    pub(crate) name: Arc<str>,
    pub(crate) config: FilterChain,
    /// The index of inline routes.
    pub(crate) routes: Option<Arc<RouteIndex>>,
    /// Its connections, and those of the chains that it took the place of.
    pub(crate) members: Arc<CutSet<Subject>>,
    tls: ArcSwapOption<ChainTls>,
}

pub(crate) struct ChainTls {
    trust: Arc<TrustStore>,
    pub(crate) configs: ServerConfigs,
}

impl Chains {
    /// Indexes the chains, taking over those of `old` that did not change, with their TLS state.
    pub(crate) fn new(listener: Arc<Listener>, old: Option<&Self>) -> Result<Self, ChainsError> {
        let mut this = Self {
            chains: Vec::with_capacity(listener.chains.len()),
            by_name: HashMap::with_capacity(listener.chains.len()),
            exact: HashMap::new(),
            suffix: HashMap::new(),
            any: None,
            listener: listener.clone(),
        };
        let with_tls = listener.chains.iter().any(|c| c.tls.is_some());
        for (index, config) in listener.chains.iter().enumerate() {
            if with_tls && config.tls.is_none() {
                return Err(ChainsError::MixedTls(config.name.clone()));
            }
            if config.tls.is_none() && !config.server_names.is_empty() {
                return Err(ChainsError::NameWithoutTls(config.name.clone()));
            }
            let chain = match old.and_then(|old| old.by_name(&config.name)) {
                Some(same) if same.config == *config => same.clone(),
                before => {
                    let members = before.map_or_else(CutSet::new, |b| b.members.clone());
                    Arc::new(Chain::new(config, members)?)
                }
            };
            if this.by_name.insert(chain.name.clone(), index).is_some() {
                return Err(ChainsError::SameName(config.name.clone()));
            }
            this.index(index, config)?;
            this.chains.push(chain);
        }
        Ok(this)
    }

    fn index(&mut self, index: usize, config: &FilterChain) -> Result<(), ChainsError> {
        let ambiguous = |first: usize, name: String| ChainsError::Ambiguous {
            first: self.listener.chains[first].name.clone(),
            second: config.name.clone(),
            name,
        };
        if config.server_names.is_empty()
            && let Some(first) = self.any.replace(index)
        {
            return Err(ambiguous(first, "any server name".to_owned()));
        }
        for name in &config.server_names {
            let (map, text) = match name {
                ServerName::Exact(text) => (&mut self.exact, text),
                ServerName::Suffix(text) => (&mut self.suffix, text),
            };
            // The same name twice in one chain is harmless.
            if let Some(first) = map.insert(text.to_ascii_lowercase(), index)
                && first != index
            {
                return Err(ambiguous(first, format!("{name:?}")));
            }
        }
        Ok(())
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<Chain>> {
        self.by_name.get(name).map(|i| &self.chains[*i])
    }

    pub(crate) fn all(&self) -> &[Arc<Chain>] {
        &self.chains
    }

    /// Those of these chains whose connections `new` may judge differently: what changed or is
    /// gone, and what some new, more specific name takes connections away from.
    pub(crate) fn touched_by(&self, new: &Self) -> Vec<&Arc<Chain>> {
        let kept = |there: &Self, chain: &Arc<Chain>| {
            let same = there.by_name(&chain.name);
            same.is_some_and(|same| Arc::ptr_eq(same, chain))
        };
        let mut touched: Vec<_> = self.chains.iter().filter(|c| !kept(new, c)).collect();
        for chain in new.chains.iter().filter(|c| !kept(self, c)) {
            touched.extend(chain.config.server_names.iter().filter_map(|n| match n {
                ServerName::Exact(name) => self.choose(Some(name)),
                // Some name of one label more.
                ServerName::Suffix(suffix) => self.choose(Some(&format!("*.{suffix}"))),
            }));
        }
        touched.sort_unstable_by_key(|chain| Arc::as_ptr(chain));
        touched.dedup_by(|a, b| Arc::ptr_eq(a, b));
        touched
    }

    pub(crate) fn uses_tls(&self) -> bool {
        self.chains.iter().any(|c| c.config.tls.is_some())
    }

    /// The most specific chain for this SNI: exact, then the longest suffix, then any. One lookup
    /// for each label, however many chains there are.
    pub(crate) fn choose(&self, sni: Option<&str>) -> Option<&Arc<Chain>> {
        let found = sni.and_then(|sni| {
            // rustls gives the name in lower case already; then nothing is copied.
            let lower;
            let sni = if sni.bytes().any(|b| b.is_ascii_uppercase()) {
                lower = sni.to_ascii_lowercase();
                &lower
            } else {
                sni
            };
            self.exact.get(sni).or_else(|| {
                sni.match_indices('.')
                    .find_map(|(dot, _)| self.suffix.get(&sni[dot + 1..]))
            })
        });
        found.copied().or(self.any).map(|i| &self.chains[i])
    }
}

impl Chain {
    fn new(config: &FilterChain, members: Arc<CutSet<Subject>>) -> Result<Self, ChainsError> {
        let routes = match &config.network {
            Network::Http(http) => match &http.routes {
                HttpRoutes::Inline(table) => {
                    let index = RouteIndex::new(Arc::new(table.clone())).map_err(|cause| {
                        ChainsError::Routes {
                            chain: config.name.clone(),
                            cause,
                        }
                    })?;
                    Some(Arc::new(index))
                }
                HttpRoutes::Rds(_) => None,
            },
            Network::Tcp(_) => None,
        };
        Ok(Self {
            name: config.name.as_str().into(),
            config: config.clone(),
            routes,
            members,
            tls: ArcSwapOption::empty(),
        })
    }

    pub(crate) fn allow(&self) -> Option<&[AllowPolicy]> {
        match &self.config.network {
            Network::Tcp(tcp) => tcp.allow.as_deref(),
            Network::Http(http) => http.allow.as_deref(),
        }
    }

    /// The rustls configurations for this trust store, made at the first handshake and kept until
    /// the chain or the store changes.
    pub(crate) fn server_tls(
        &self,
        tls: &DownstreamTls,
        trust: &Arc<TrustStore>,
        identity: &Arc<IdentityCell>,
    ) -> Result<Arc<ChainTls>, TlsConfigError> {
        if let Some(made) = &*self.tls.load()
            && Arc::ptr_eq(&made.trust, trust)
        {
            return Ok(made.clone());
        }
        let config = server_config(ServerTls {
            identity: identity.clone(),
            trust: trust.clone(),
            client_ids: tls.client_ids.clone(),
            alpn: tls.alpn.clone(),
        })?;
        let made = Arc::new(ChainTls {
            trust: trust.clone(),
            configs: ServerConfigs::new(&config),
        });
        self.tls.store(Some(made.clone()));
        Ok(made)
    }
}

/// Whether the policies let a client through, and which one does. `Ok(None)` if there are none to
/// ask.
pub(crate) fn allowed<'a>(
    allow: Option<&'a [AllowPolicy]>,
    peer: Option<&SpiffeId>,
    sni: Option<&str>,
) -> Result<Option<&'a AllowPolicy>, NotAllowed> {
    let Some(policies) = allow else {
        return Ok(None);
    };
    let admits = |policy: &&AllowPolicy| {
        let known = match peer {
            Some(id) => policy.principals.is_empty() || policy.principals.contains(id),
            None => false,
        };
        let named = match &policy.server_name_suffix {
            Some(suffix) => sni.is_some_and(|sni| sni.ends_with(suffix.as_str())),
            None => true,
        };
        known && named
    };
    policies.iter().find(admits).map(Some).ok_or(NotAllowed)
}

#[derive(Debug, PartialEq)]
pub(crate) struct NotAllowed;

#[cfg(test)]
mod tests;
