//! What the tests of several modules say of their mesh.

use jiff::Timestamp;
use meshfed_federation::world::MeshSettings;

/// A mesh in the namespace `system`, by a control plane that started then.
pub(crate) fn mesh(started: Timestamp) -> MeshSettings {
    MeshSettings {
        system_namespace: "system".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        default_trust_domain: "cluster.local".parse().unwrap(),
        instance_suffix: "0".to_owned(),
        discovery_address: "127.0.0.1:8188".parse().unwrap(),
        node_address: "127.0.0.1".parse().unwrap(),
        started,
    }
}
