//! Peers with good certificates and bad manners, each behind its own gateways, beside a good peer that
//! shares ours with all of them.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kube::Api;
use meshfed_api::{ImportedServiceSet, ServiceMeshPeer};
use meshfed_testkit::forge::{self, Forge};
use meshfed_testkit::hostile::{Deed, Peer, deeds, good_list};
use meshfed_testkit::{LoopbackNet, eventually};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::federation::{Federation, Mesh, answer};
use crate::removal::api;

/// A list that comes drop by drop is given up after 60 s.
const PATIENCE: Duration = Duration::from_secs(180);
/// Services that a list may have by default.
const LIMIT: usize = 10_000;
/// What all of them together may cost, in MiB: lists of 8 MiB, before and after they were read.
const MOST_MEMORY: u64 = 400;
/// While the others are at it, a change of the good peer arrives within this.
const SOON: Duration = Duration::from_secs(20);

struct Evil {
    name: &'static str,
    /// Of the condition that names its deed.
    reason: &'static str,
    peer: Arc<Peer>,
}

/// A mesh that is nothing but gateways at `last` of this network; it answers calls, too.
async fn evil(
    net: &LoopbackNet,
    last: u8,
    (name, deed, reason): (&'static str, Deed, &'static str),
    green: &Mesh,
) -> Evil {
    let authority = Forge::new(name);
    let id = format!("spiffe://{name}.local/ns/{name}-system/sa/ingress-service-account");
    let tls = forge::server(&authority.issue(&id));
    let at = net.address(last);
    let peer = Peer::new(good_list(), deed);
    let discovery = TcpListener::bind((at, 8188)).await.unwrap();
    tokio::spawn(peer.clone().serve(discovery, tls.clone()));
    let services = TcpListener::bind((at, 15443)).await.unwrap();
    let acceptor = TlsAcceptor::from(tls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = services.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                answer(&mut stream, &AtomicUsize::new(0)).await
            });
        }
    });
    green
        .keep_root_of(name, authority.root_pem().to_owned())
        .await;
    // One pair of gateways for everybody.
    green
        .apply(&format!(
            "
apiVersion: federation.maistra.io/v1
kind: ServiceMeshPeer
metadata:
  name: {name}
  namespace: {system}
  annotations: {{meshfed.io/max-list-bytes: 8Mi}}
spec:
  remote: {{addresses: [{at}]}}
  gateways:
    ingress: {{name: ingress-red-mesh}}
    egress: {{name: egress-red-mesh}}
  security:
    trustDomain: {name}.local
    clientID: {name}.local/ns/{name}-system/sa/egress-service-account
    certificateChain: {{kind: ConfigMap, name: {name}-ca-root-cert}}
---
apiVersion: federation.maistra.io/v1
kind: ImportedServiceSet
metadata: {{name: {name}, namespace: {system}}}
spec:
  importRules:
  - type: NameSelector
    importAsLocal: false
    nameSelector: {{namespace: '*', name: '*'}}
",
            system = green.system(),
        ))
        .await;
    Evil { name, reason, peer }
}

impl Evil {
    /// Under which green-mesh calls its only good service.
    fn imported(&self) -> String {
        format!("x.a.svc.{}-imports.local:9080", self.name)
    }

    /// Waits until green-mesh says what is wrong with it.
    async fn is_named(&self, green: &Mesh) {
        let peers: Api<ServiceMeshPeer> = api(green);
        eventually(PATIENCE, async || {
            let status = peers.get_status(self.name).await.unwrap().status;
            let conditions = status.map(|s| s.conditions).unwrap_or_default();
            let ready = conditions.into_iter().find(|c| c.type_ == "Ready");
            match ready {
                Some(c) if c.reason.as_deref() == Some(self.reason) => {
                    assert_eq!(c.status, "False");
                    let message = c.message.unwrap_or_default();
                    assert!(message.contains("still in use"), "{}: {message}", self.name);
                    Ok(())
                }
                other => Err(format!("{}: {other:?}", self.name)),
            }
        })
        .await;
    }
}

async fn imports_of(green: &Mesh, peer: &str) -> Vec<String> {
    let sets: Api<ImportedServiceSet> = api(green);
    let status = sets.get_status(peer).await.unwrap().status.unwrap();
    let services = status.imported_services.into_iter();
    services.map(|s| s.local_service.hostname).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_peers_are_named_keep_their_last_good_exports_and_disturb_nobody() {
    let federation = Federation::start(&[], &[]).await;
    federation.works().await;
    let (red, green) = (&federation.red, &federation.green);
    let net = LoopbackNet::lock();
    let [before, _] = green.memory();
    let drips = [("drips", Deed::Drips, "NoList")];
    let mut all = Vec::new();
    for (last, deed) in (10..).zip(deeds(LIMIT).into_iter().chain(drips)) {
        all.push(evil(&net, last, deed, green).await);
    }
    for evil in &all {
        eventually(PATIENCE, async || {
            let answer = federation.call_to(&evil.imported()).await;
            answer.map_err(|e| format!("{}: {e}", evil.name))
        })
        .await;
    }
    let [idle, _] = green.memory();

    let calls = Mutex::new(Vec::new());
    let traffic = async {
        loop {
            let began = Instant::now();
            let came = federation.call().await;
            calls.lock().unwrap().push((began.elapsed(), came));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let story = async {
        all.iter().for_each(|evil| evil.peer.turn());
        let began = Instant::now();
        crate::dns::changes_arrive(&federation).await;
        let took = began.elapsed();
        println!("two changes of the good peer arrived in {took:.0?}");
        assert!(took < SOON, "{took:?}");
        for evil in &all {
            evil.is_named(green).await;
            let kept = imports_of(green, evil.name).await;
            let name = format!("x.a.svc.{}-imports.local", evil.name);
            assert_eq!(kept, [name], "{} keeps its last good exports", evil.name);
            federation.call_to(&evil.imported()).await.unwrap();
        }
        red.connected("green-mesh").await;
        green.connected("red-mesh").await;
    };
    tokio::select! {
        () = traffic => {}
        () = story => {}
    }
    let calls = calls.into_inner().unwrap();
    let failed: Vec<_> = calls.iter().filter(|(_, came)| came.is_err()).collect();
    let slowest = calls.iter().map(|(took, _)| *took).max();
    println!(
        "{} calls to the good peer, the slowest took {slowest:.0?}",
        calls.len()
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert!(calls.len() > 100);
    let [now, most] = green.memory();
    println!(
        "green-mesh: {before} MiB before, {idle} with all peers, at most {most}, {now} at the end"
    );
    assert!(most < idle + MOST_MEMORY, "{most} MiB");
}
