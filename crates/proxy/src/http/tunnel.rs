//! CONNECT: after the answer, the connection or stream carries bytes.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::Busy;
use super::body::ProxyBody;
use super::forward::failed;
use crate::cluster::{Cluster, connect};
use crate::cut::{Control, Cut, Verdict};
use crate::end::End;
use crate::io::Relay;
use crate::record::Record;

/// Connects to the cluster, then answers 200 and relays until either side is done.
pub(super) async fn open(
    busy: Busy,
    mut record: Record,
    mut request: Request<Incoming>,
    cluster: &Cluster,
    idle: Duration,
) -> Response<ProxyBody> {
    let connection = &busy.0;
    let control = Control::new();
    let upstream = match connect(&connection.tables, cluster, &control).await {
        Ok(upstream) => upstream,
        Err(failure) => return failed(record, failure),
    };
    record.upstream = Some(upstream.address);
    record.upstream_peer = upstream.proof.as_ref().map(|p| p.id.clone());
    if let Some(line) = &mut record.request {
        line.status = Some(200);
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let listener = &connection.listener;
    let entered = listener.enter(&control, &connection.subject);
    // A change while we connected did not find it in the set.
    match listener.judge(&connection.subject, &connection.tables) {
        Verdict::Keep => {}
        Verdict::Cut(why) => control.cut(why),
        Verdict::Drain(_) => control.cut(Cut::Drained),
    }
    let (mut endpoint, held) = (upstream.stream, upstream.held);
    tokio::spawn(async move {
        let _held = (held, entered);
        let end = match upgrade.await {
            Ok(client) => {
                let client = TokioIo::new(client);
                let traffic = record.traffic.clone();
                let end = Relay::new(client, &mut endpoint, idle, &control, &traffic).await;
                if end.is_broken() {
                    endpoint.reset_on_close();
                }
                end.into()
            }
            Err(_) => End::ClientLeft,
        };
        record.finish(end);
        drop(busy);
    });
    Response::new(ProxyBody::Local(None::<Bytes>))
}
