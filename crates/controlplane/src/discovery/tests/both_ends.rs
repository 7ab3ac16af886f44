//! Our asking end against our answering end, with two gateways in one between them.

use meshfed_federation::discovery::client::ClientSettings;
use meshfed_federation::discovery::server::ServerSettings;
use meshfed_federation::names::PeerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::exporter::{Caller, Scene, ingress_of};
use super::importer::{Importer, egress};
use super::*;
use crate::discovery::server::Bounds;

/// Passes a request on to the exporter's `evil`, and what comes back while it may flow.
async fn pass_on(
    mut from: TlsStream<TcpStream>,
    ingress: Caller,
    mut flows: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(from.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let head = head.replace("/v1/watch ", "/v1/watch/evil ");
    let head = head.replace("/v1/services/ ", "/v1/services/evil ");
    let mut to = ingress.connect().await?;
    to.write_all(head.as_bytes()).await?;
    to.flush().await?;
    let mut buffer = vec![0; 65536];
    loop {
        // Who waits here does not read.
        if flows.wait_for(|flows| *flows).await.is_err() {
            return Ok(());
        }
        let n = to.read(&mut buffer).await?;
        if n == 0 {
            return from.shutdown().await;
        }
        from.write_all(&buffer[..n]).await?;
        from.flush().await?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_stops_reading_is_cut_off_and_has_the_newest_list_when_it_goes_on() {
    let bounds = Bounds {
        write: Duration::from_secs(5),
        ..Bounds::default()
    };
    let settings = ServerSettings {
        queue_bytes: 1 << 20,
        ..ServerSettings::default()
    };
    let mut scene = Scene::bounded(bounds, settings).await;
    let mut bench = Bench::new();
    let (listener, tls) = egress(&bench).await;
    let acceptor = TlsAcceptor::from(tls);
    let name: PeerName = "exporter".parse().unwrap();
    let target = Arc::new(bench.target(listener.local_addr().unwrap()));
    bench.plan.discovery.insert(name.clone(), target);
    let ingress = scene.caller(scene.bench.certificate(&ingress_of("evil")));
    let (flow, flows) = watch::channel(true);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, ingress, flows) = (acceptor.clone(), ingress.clone(), flows.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await?;
                pass_on(stream, ingress, flows).await
            });
        }
    });
    let importer = Importer::start(bench, ClientSettings::default());
    importer.knows(&name, &["x"]).await;
    eventually("it watches", || match scene.connected("evil") {
        known if known == [true] => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;

    flow.send_replace(false);
    let mut generation = 0;
    while scene.connected("evil") == [true] {
        generation += 1;
        scene.export(generation, 200_000);
        assert!(generation < 5000, "it is not cut off");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    flow.send_replace(true);
    let has = |generation: usize| {
        let generation = generation.to_string();
        let (importer, name) = (&importer, &name);
        move || {
            let state = importer.state(name);
            let list = state.services.to_list();
            let accounts = &list.services[0].accounts;
            let newest = accounts
                .last()
                .is_some_and(|last| last.trim_start_matches('0') == generation);
            let watch = &state.watch;
            if newest && watch.connected && watch.last_disconnect.is_some() {
                Ok(())
            } else {
                Err(format!("{watch:?}, {:?}", accounts.last()))
            }
        }
    };
    eventually("the newest list", has(generation)).await;
    scene.export(generation + 1, 2500);
    eventually("what comes after it", has(generation + 1)).await;
}
