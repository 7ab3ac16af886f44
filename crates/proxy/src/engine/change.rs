//! The pieces in which a configuration changes.

use std::sync::Arc;

use meshfed_pki::TrustError;
use meshfed_proxy_config::{
    Cluster as ClusterConfig, Endpoints, Listener, Parts, ProxyConfig, RouteTable, TrustBundle,
    VirtualHost,
};

use super::chains::ChainsError;
use crate::cluster::ClusterError;
use crate::http::RouteError;
use crate::listener::BindError;

/// One piece of configuration that is new, changed or gone.
#[derive(Debug, Clone)]
pub enum Change {
    Trust(String, Arc<TrustBundle>),
    Cluster(Arc<ClusterConfig>),
    Endpoints(Arc<Endpoints>),
    Listener(Arc<Listener>),
    Routes(Arc<RouteTable>),
    /// The table of this name has those virtual hosts that come one by one.
    SeparateRoutes(String),
    VirtualHost(Arc<VirtualHost>),
    RemoveTrust(String),
    RemoveCluster(String),
    RemoveEndpoints(String),
    RemoveListener(String),
    RemoveRoutes(String),
    RemoveVirtualHost(String),
}

/// A piece that was not applied. What was there before under its name stays.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {cause}")]
pub struct Rejection {
    pub name: String,
    #[source]
    pub cause: Box<RejectionCause>,
}

#[derive(Debug, thiserror::Error)]
pub enum RejectionCause {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Chains(#[from] ChainsError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Routes(#[from] RouteError),
    #[error(transparent)]
    Trust(#[from] TrustError),
}

impl Rejection {
    /// Whether it is the address of a listener that is not to be had, of which nobody tells us when it is.
    pub(crate) fn lacks_address(&self) -> bool {
        matches!(*self.cause, RejectionCause::Bind(_))
    }
}

/// The changes from one configuration to another, in an order that never refers to what is not
/// there yet: what is needed comes first, what needs it goes first.
pub(super) fn difference(old: &ProxyConfig, new: &ProxyConfig) -> Vec<Change> {
    let mut changes = Vec::new();
    let pairs =
        |name: &str, bundle: &Arc<TrustBundle>| Change::Trust(name.to_owned(), bundle.clone());
    changed(&old.trust, &new.trust, pairs, &mut changes);
    let own = |_: &str, c: &Arc<ClusterConfig>| Change::Cluster(c.clone());
    changed(&old.clusters, &new.clusters, own, &mut changes);
    let own = |_: &str, e: &Arc<Endpoints>| Change::Endpoints(e.clone());
    changed(&old.endpoints, &new.endpoints, own, &mut changes);
    let own = |_: &str, r: &Arc<RouteTable>| Change::Routes(r.clone());
    changed(&old.routes, &new.routes, own, &mut changes);
    // Before the new ones, which may have the same addresses.
    removed(
        &old.listeners,
        &new.listeners,
        Change::RemoveListener,
        &mut changes,
    );
    let own = |_: &str, l: &Arc<Listener>| Change::Listener(l.clone());
    changed(&old.listeners, &new.listeners, own, &mut changes);
    removed(&old.routes, &new.routes, Change::RemoveRoutes, &mut changes);
    removed(
        &old.clusters,
        &new.clusters,
        Change::RemoveCluster,
        &mut changes,
    );
    removed(
        &old.endpoints,
        &new.endpoints,
        Change::RemoveEndpoints,
        &mut changes,
    );
    removed(&old.trust, &new.trust, Change::RemoveTrust, &mut changes);
    changes
}

fn changed<T: PartialEq>(
    old: &Parts<T>,
    new: &Parts<T>,
    change: impl Fn(&str, &Arc<T>) -> Change,
    out: &mut Vec<Change>,
) {
    for (name, value) in new {
        let same = |o: &Arc<T>| Arc::ptr_eq(o, value) || o == value;
        if !old.get(name).is_some_and(same) {
            out.push(change(name, value));
        }
    }
}

fn removed<T>(
    old: &Parts<T>,
    new: &Parts<T>,
    change: impl Fn(String) -> Change,
    out: &mut Vec<Change>,
) {
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    out.extend(gone.map(|name| change(name.to_string())));
}
