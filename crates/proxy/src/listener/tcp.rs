//! Forwarding the bytes of an accepted connection.

use std::sync::Arc;

use meshfed_proxy_config::{Tcp, TcpTarget};

use super::Subject;
use crate::cluster::connect;
use crate::cut::Control;
use crate::end::End;
use crate::engine::{Tables, allowed};
use crate::io::{Relay, Stream};
use crate::record::Record;

/// Connects to the upstream only now that the client is known and allowed, and relays.
pub(super) async fn serve(
    config: &Tcp,
    client: Stream,
    subject: &Subject,
    tables: &Tables,
    mut record: Record,
    control: &Arc<Control>,
) {
    let end = match forward(config, client, subject, tables, &mut record, control).await {
        Ok(end) | Err(end) => end,
    };
    record.finish(end);
}

async fn forward(
    config: &Tcp,
    client: Stream,
    subject: &Subject,
    tables: &Tables,
    record: &mut Record,
    control: &Arc<Control>,
) -> Result<End, End> {
    let sni = subject.sni.as_deref();
    let peer = subject.proof.as_ref().map(|p| &p.id);
    let policy = allowed(config.allow.as_deref(), peer, sni).map_err(|_| End::NotAllowed)?;
    record.policy = policy.map(|p| p.name.clone());
    let name = match &config.target {
        TcpTarget::Cluster(name) => name.as_str(),
        TcpTarget::SniCluster => sni.ok_or(End::NoCluster)?,
    };
    let cluster = tables.clusters.get(name).ok_or(End::NoCluster)?;
    record.cluster = Some(cluster.name.clone());
    let connected = tokio::select! {
        connected = Box::pin(connect(tables, &cluster, control)) => connected,
        cut = control.cut_signaled() => return Err(cut.into()),
    };
    let upstream = connected.map_err(|failure| {
        record.upstream = failure.upstream;
        failure.end
    })?;
    record.upstream = Some(upstream.address);
    record.upstream_peer = upstream.proof.as_ref().map(|p| p.id.clone());
    // What a relayed connection needs of its cluster it holds by itself.
    drop(cluster);
    let traffic = record.traffic.clone();
    let (mut client, mut endpoint) = (client, upstream.stream);
    let _held = upstream.held;
    let end = Relay::new(
        &mut client,
        &mut endpoint,
        config.idle_timeout,
        control,
        &traffic,
    )
    .await;
    if end.is_broken() {
        client.reset_on_close();
        endpoint.reset_on_close();
    }
    Ok(end.into())
}
