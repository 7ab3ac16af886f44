//! Where configurations come from and where outcomes go.

use std::sync::Arc;

use meshfed_proxy_config::ProxyConfig;
use meshfed_xds::TypeUrl;
use tokio::sync::watch;
use tonic::Status;

use super::encoder::Version;
use super::node::AuthenticatedNode;

/// The configurations of one proxy as they change. `None`: not known yet. A proxy is then told
/// nothing at all, so that a control plane that has just started takes no working configuration
/// away.
pub type Configs = watch::Receiver<Option<Arc<ProxyConfig>>>;

/// Gives proxies their configuration and hears what became of it.
pub trait ConfigSource: Send + Sync + 'static {
    /// The configurations for this proxy. Its namespace and service account are proven; everything
    /// else in the node is its own word. Called again when its node changes.
    ///
    /// When the sender is dropped, the stream is ended and the proxy connects anew.
    fn subscribe(&self, node: &AuthenticatedNode) -> Result<Configs, Refusal>;

    /// What a proxy made of its configuration. Must not block.
    fn report(&self, node: &AuthenticatedNode, report: Report);

    /// A connection that has subscribed is over; nothing is reported of it any more. Must not block.
    fn left(&self, node: &AuthenticatedNode);
}

/// What a proxy made of what it was sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// It accepted the resources of a kind.
    Acked { kind: TypeUrl, version: Version },
    /// It refused the resources of a kind, and goes on with those that it has.
    Nacked {
        kind: TypeUrl,
        version: Version,
        /// The proxy's own words, of bounded length.
        message: String,
    },
    /// It has accepted this configuration as a whole.
    Synced(Arc<ProxyConfig>),
}

/// Why a proxy gets no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It asked for what is not its own. Trying again does not help.
    #[error("{0}")]
    Forbidden(String),
    /// There is no such proxy as far as we know. It may try again.
    #[error("{0}")]
    Unknown(String),
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Forbidden(reason) => Self::permission_denied(reason),
            Refusal::Unknown(reason) => Self::unavailable(reason),
        }
    }
}
