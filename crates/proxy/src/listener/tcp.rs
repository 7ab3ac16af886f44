//! Forwarding the bytes of an accepted connection.

use std::sync::Arc;

use meshfed_proxy_config::{Tcp, TcpTarget};

use super::Subject;
use crate::cluster::{Connected, connect};
use crate::cut::Control;
use crate::end::End;
use crate::engine::{Tables, allowed};
use crate::io::{Relay, Stream};
use crate::random;
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
    let upstream = match &config.target {
        TcpTarget::Cluster(name) => reach(name, tables, record, control).await?,
        TcpTarget::SniCluster => {
            let name = sni.ok_or(End::NoCluster)?;
            reach(name, tables, record, control).await?
        }
        TcpTarget::Weighted(all) => reach_any(all, tables, record, control).await?,
    };
    record.upstream = Some(upstream.address);
    record.upstream_peer = upstream.proof.as_ref().map(|p| p.id.clone());
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

/// Connects to a cluster. What a relayed connection needs of it, it holds by itself.
async fn reach(
    name: &str,
    tables: &Tables,
    record: &mut Record,
    control: &Arc<Control>,
) -> Result<Connected, End> {
    let cluster = tables.clusters.get(name).ok_or(End::NoCluster)?;
    record.cluster = Some(cluster.name.clone());
    let connected = tokio::select! {
        connected = Box::pin(connect(tables, &cluster, control)) => connected,
        cut = control.cut_signaled() => return Err(cut.into()),
    };
    connected.map_err(|failure| {
        record.upstream = failure.upstream;
        failure.end
    })
}

/// Connects to one of the clusters, chosen by weight; to another one if that fails.
async fn reach_any(
    all: &[(Arc<str>, u32)],
    tables: &Tables,
    record: &mut Record,
    control: &Arc<Control>,
) -> Result<Connected, End> {
    let mut left: Vec<_> = all.iter().collect();
    let mut last = End::NoCluster;
    while let Some(at) = draw(&left) {
        let (name, _) = left.swap_remove(at);
        match reach(name, tables, record, control).await {
            Err(end) if control.cut_reason().is_none() => last = end,
            done => return done,
        }
    }
    Err(last)
}

/// Which one comes next, each as often as its weight among them says.
fn draw(left: &[&(Arc<str>, u32)]) -> Option<usize> {
    let weight = |(_, weight): &(Arc<str>, u32)| u64::from(*weight).max(1);
    let total: u64 = left.iter().map(|one| weight(one)).sum();
    if total == 0 {
        return None;
    }
    let mut at = random::below_u64(total);
    left.iter().position(|one| {
        let found = at < weight(one);
        at = at.saturating_sub(weight(one));
        found
    })
}
