//! Our asking end of discovery, and peers that answer as they like, each behind an egress gateway.

use std::collections::BTreeMap;
use std::path::PathBuf;

use meshfed_federation::discovery::client::{ClientSettings, RemoteState};
use meshfed_federation::names::PeerName;
use meshfed_pki::{ServerTls, server_config};
use meshfed_runtime::Drain;
use meshfed_testkit::hostile::{Deed, Peer};
use rustls::ServerConfig;
use tokio::net::TcpListener;

use super::*;
use crate::discovery::{DiscoveryClient, PeerCache};

/// Who asks the peers that its plan names.
pub struct Importer {
    pub bench: Bench,
    lists: PathBuf,
    drain: Drain,
    _tasks: tokio::task::JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Importer {
    pub fn start(bench: Bench, settings: ClientSettings) -> Self {
        bench.publish();
        let dir = tempfile::tempdir().unwrap();
        let lists = dir.path().join("peers");
        let cache = PeerCache::open(lists.clone()).unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        let (drain, watch) = Drain::new();
        let mut client = DiscoveryClient::new(bench.identity.clone(), bench.seen.clone(), cache);
        client.settings = settings;
        tasks.spawn(client.follow(BTreeMap::new(), bench.outcomes.clone(), watch));
        Self {
            bench,
            lists,
            drain,
            _tasks: tasks,
            _dir: dir,
        }
    }

    pub fn state(&self, name: &PeerName) -> Arc<RemoteState> {
        let seen = self.bench.seen.observed();
        let state = seen.peers.get(name.as_str());
        state.map(|state| state.remote.clone()).unwrap_or_default()
    }

    pub fn names(&self, peer: &PeerName) -> Vec<String> {
        let state = self.state(peer);
        let services = state.services.iter();
        services.map(|s| s.key.name.to_string()).collect()
    }

    pub async fn knows(&self, peer: &PeerName, names: &[&str]) {
        eventually(&format!("{peer} exports {names:?}"), || {
            let known = self.names(peer);
            let state = self.state(peer);
            if known == names {
                Ok(())
            } else {
                Err(format!("{known:?}: {state:?}"))
            }
        })
        .await;
    }

    /// What is on disk after the end.
    pub async fn end(self) -> BTreeMap<PeerName, RemoteState> {
        self.drain.drain(PATIENCE).await;
        PeerCache::open(self.lists.clone()).unwrap().load()
    }
}

/// Has a peer listen behind our egress gateway.
pub async fn start(bench: &Bench, good_list: Vec<u8>, deed: Deed) -> (Arc<Peer>, SocketAddr) {
    let (listener, tls) = egress(bench).await;
    let address = listener.local_addr().unwrap();
    let peer = Peer::new(good_list, deed);
    tokio::spawn(peer.clone().serve(listener, tls));
    (peer, address)
}

/// A listener with the certificate of our egress gateway.
pub async fn egress(bench: &Bench) -> (TcpListener, Arc<ServerConfig>) {
    let tls = server_config(ServerTls {
        identity: bench.certificate(&id("egress")),
        trust: bench.identity.trust(id("egress").trust_domain()).unwrap(),
        client_ids: Vec::new(),
        alpn: vec!["http/1.1".into()],
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener, tls.unwrap())
}
