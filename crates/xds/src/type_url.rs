//! The kinds of resources.

use std::fmt;

/// A kind of resource, known on the wire by its type URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TypeUrl {
    /// A [`TrustBundle`](meshfed_proxy_config::TrustBundle), as an SDS secret.
    Trust,
    Cluster,
    Endpoints,
    /// Parts of route tables, for clients that subscribe to them: VHDS.
    VirtualHosts,
    Listener,
    Routes,
}

impl TypeUrl {
    /// All kinds in the order in which a change is announced, so that what refers comes after what
    /// it refers to: trust before the TLS settings that name it, clusters before virtual hosts,
    /// listeners and routes that forward to them. Removals go the other way round.
    pub const ADS_ORDER: [TypeUrl; 6] = [
        TypeUrl::Trust,
        TypeUrl::Cluster,
        TypeUrl::Endpoints,
        TypeUrl::VirtualHosts,
        TypeUrl::Listener,
        TypeUrl::Routes,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            TypeUrl::Trust => {
                "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
            }
            TypeUrl::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            TypeUrl::Endpoints => {
                "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
            }
            TypeUrl::VirtualHosts => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
            TypeUrl::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            TypeUrl::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The kind of this URL; `None` for any that is not part of the subset.
    pub fn parse(url: &str) -> Option<Self> {
        Self::ADS_ORDER.into_iter().find(|t| t.as_str() == url)
    }

    /// Short and stable, for metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            TypeUrl::Trust => "trust",
            TypeUrl::Cluster => "cluster",
            TypeUrl::Endpoints => "endpoints",
            TypeUrl::VirtualHosts => "virtual_hosts",
            TypeUrl::Listener => "listener",
            TypeUrl::Routes => "routes",
        }
    }
}

impl fmt::Display for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
