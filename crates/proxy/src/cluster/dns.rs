//! Clusters whose endpoints are host names.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Weak;

use tokio::task::AbortHandle;

use super::Cluster;
use crate::limits::{DNS_ADDRESSES, DNS_REFRESH};
use crate::random;

/// Resolves a cluster's names again and again until it is dropped.
pub(super) struct Resolving(AbortHandle);

impl Drop for Resolving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Resolving {
    pub(super) fn start(names: Vec<(String, u16)>, cluster: Weak<Cluster>) -> Self {
        let task = tokio::spawn(async move {
            loop {
                let found = resolve(&names).await;
                let Some(cluster) = cluster.upgrade() else {
                    return;
                };
                // A name server that is down takes no endpoint away.
                if !found.is_empty() {
                    cluster.set_addresses(&found);
                }
                drop(cluster);
                tokio::time::sleep(random::jittered(DNS_REFRESH)).await;
            }
        });
        Self(task.abort_handle())
    }
}

/// In a stable order, so that equal answers make equal sets.
async fn resolve(names: &[(String, u16)]) -> Vec<SocketAddr> {
    let mut found = BTreeSet::new();
    for (host, port) in names {
        match tokio::net::lookup_host((host.as_str(), *port)).await {
            Ok(addresses) => found.extend(addresses),
            Err(error) => tracing::debug!(host, %error, "name does not resolve"),
        }
    }
    found.into_iter().take(DNS_ADDRESSES).collect()
}
