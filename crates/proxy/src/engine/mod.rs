//! What the proxy has been told, and how it gets from one configuration to the next.

mod apply;
mod chains;
mod change;
mod hosts;
mod leaving;
mod running;

use std::sync::Arc;

use meshfed_pki::IdentityCell;

pub use apply::{Engine, EngineOptions};
pub use chains::ChainsError;
pub(crate) use chains::{Chain, Chains, allowed};
pub use change::{Change, Rejection, RejectionCause};

use crate::cluster::Cluster;
use crate::http::RouteIndex;
use crate::shards::Shards;
use crate::trust::Trust;

/// What connections look up. Written by the [`Engine`] alone.
pub(crate) struct Tables {
    pub(crate) identity: Arc<IdentityCell>,
    pub(crate) clusters: Shards<Cluster>,
    pub(crate) routes: Shards<RouteIndex>,
    pub(crate) trust: Shards<Trust>,
}
