//! Peers that mean no good, on both ends of discovery: what they do to themselves, and that nobody
//! else notices.

mod both_ends;
mod callers;
mod exporter;
mod hostile_clients;
mod hostile_servers;
mod importer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use meshfed_federation::discovery::message::{Action, Service, ServiceList, WatchEvent};
use meshfed_federation::plan::{DiscoveryTarget, PeerSettings, Plan, plan};
use meshfed_federation::world::{Observed, Resources, World};
use meshfed_pki::{CertificateAuthority, IdentityCell, SpiffeId};
use tokio::sync::watch;

use crate::apply::Outcomes;
use crate::hub::{Ends, Hub, Outcome, Seen};
use crate::identity::OwnIdentity;
use crate::test_world::mesh;

const PATIENCE: Duration = Duration::from_secs(60);

/// A mesh without a hub: what is planned is set, what is seen is looked at.
pub(super) struct Bench {
    pub(super) identity: Arc<OwnIdentity>,
    pub(super) seen: Seen,
    world: World,
    plan: Plan,
    outcomes_in: watch::Sender<Option<Arc<Outcome>>>,
    outcomes: Outcomes,
    /// Keeps the other end of `seen`.
    _hub: Hub,
}

impl Bench {
    pub(super) fn new() -> Self {
        let authority = CertificateAuthority::self_signed("bench", SystemTime::now()).unwrap();
        let identity = OwnIdentity::new(authority, vec!["localhost".into()], Vec::new()).unwrap();
        identity.issue(Some(&id("istiod"))).unwrap();
        let world = World {
            now: Timestamp::now(),
            mesh: mesh(Timestamp::now()),
            resources: Resources::default(),
            observed: Observed::default(),
        };
        let (hub, Ends { seen, .. }) = Hub::new(world.clone());
        let (outcomes_in, outcomes) = watch::channel(None);
        Self {
            identity: Arc::new(identity),
            seen,
            plan: plan(&world),
            world,
            outcomes_in,
            outcomes,
            _hub: hub,
        }
    }

    fn publish(&self) {
        let (world, plan) = (self.world.clone(), self.plan.clone());
        let outcome = Outcome { world, plan };
        self.outcomes_in.send_replace(Some(Arc::new(outcome)));
    }

    /// A peer whose egress gateway of ours is there.
    pub(super) fn target(&self, address: SocketAddr) -> DiscoveryTarget {
        DiscoveryTarget {
            address,
            server_id: id("egress"),
            authority: "localhost:8188".into(),
            headers: Vec::new(),
            settings: PeerSettings::default(),
            imported: Arc::default(),
        }
    }

    /// A certificate of this mesh.
    fn certificate(&self, id: &SpiffeId) -> Arc<IdentityCell> {
        let authority = self.identity.authority.load();
        let names = ["localhost".to_owned()];
        let ttl = Duration::from_secs(3600);
        let identity = authority.issue_server(&names, &[], Some(id), ttl, SystemTime::now());
        Arc::new(IdentityCell::new(Some(identity.unwrap())))
    }
}

fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/system/sa/{account}")
        .parse()
        .unwrap()
}

fn service(name: &str) -> Service {
    Service {
        name: name.into(),
        namespace: "a".into(),
        hostname: format!("{name}.a.svc.here-exports.local"),
        ..Service::default()
    }
}

fn list(names: &[&str]) -> ServiceList {
    ServiceList::new(names.iter().map(|name| service(name)).collect())
}

fn add(name: &str, then: &[&str]) -> Vec<u8> {
    event(Action::Add, name, then)
}

fn remove(name: &str, then: &[&str]) -> Vec<u8> {
    event(Action::Delete, name, then)
}

fn event(action: Action, name: &str, then: &[&str]) -> Vec<u8> {
    let event = WatchEvent {
        action,
        service: Some(service(name)),
        checksum: list(then).checksum,
    };
    event.encode()
}

/// Waits until it is so.
async fn eventually(what: &str, mut is_so: impl FnMut() -> Result<(), String>) {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        match is_so() {
            Ok(()) => return,
            Err(why) if tokio::time::Instant::now() > until => panic!("{what}: {why}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
