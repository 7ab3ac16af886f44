//! The generated Envoy messages and services that speak xDS, for the crates that do so.
//!
//! The contents of resources are not here: they are written and read by [`encode`](crate::encode)
//! and [`decode`](crate::decode) only.

pub use envoy_types::pb::envoy::config::core::v3::{
    BuildVersion, ControlPlane, Locality, Metadata, Node,
};
pub use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
pub use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
    ResourceName, aggregated_discovery_service_client, aggregated_discovery_service_server,
};
pub use envoy_types::pb::envoy::service::secret::v3::{
    secret_discovery_service_client, secret_discovery_service_server,
};
pub use envoy_types::pb::google::protobuf::{Any, ListValue, Struct, Value, value};
pub use envoy_types::pb::google::rpc::Status;
