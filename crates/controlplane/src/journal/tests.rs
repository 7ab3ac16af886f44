//! What peers do, as the files of the audit log have it.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::SignedDuration;
use meshfed_api::ServiceMeshPeer;
use meshfed_federation::discovery::client::RemoteState;
use meshfed_federation::discovery::message::{Limits, decode_list};
use meshfed_federation::discovery::remote::RemoteServices;
use meshfed_federation::names::{DomainSuffix, ImportedHost, PeerName};
use meshfed_federation::plan::{Import, Offer, plan};
use meshfed_federation::world::{ObjectKey, Observed, PeerState, Resources, World};
use meshfed_proxy_config::ServerIds;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::test_world::mesh;

/// With names like this a line of a thousand services has some 200 kB.
const LONG_NAME: &str = "service-with-a-name-that-is-as-long-as-they-come-";

/// A control plane whose peers list what they like, all of which is imported.
struct Bench {
    dir: TempDir,
    feed: Feed,
    keeping: JoinHandle<()>,
    outcome: Outcome,
    lists: BTreeMap<(String, usize), Arc<RemoteServices>>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open(dir.path()).unwrap();
        let (feed, backlog) = backlog();
        let world = World {
            now: Timestamp::now(),
            mesh: mesh(Timestamp::UNIX_EPOCH),
            resources: Resources::default(),
            observed: Observed::default(),
        };
        let plan = plan(&world);
        let mut bench = Self {
            dir,
            feed,
            keeping: tokio::spawn(keep(log, None, backlog)),
            outcome: Outcome { world, plan },
            lists: BTreeMap::new(),
        };
        bench.planned();
        bench
    }

    /// The peer lists that many services, of these names.
    fn lists(&mut self, peer: &str, count: usize, name: &str) {
        let list = self.lists.entry((format!("{peer} {name}"), count));
        let list = list.or_insert_with(|| {
            let services: Vec<Value> = (0..count)
                .map(|n| {
                    let name = format!("{name}{n}");
                    let hostname = format!("{name}.shop.svc.us-exports.local");
                    json!({"name": name, "namespace": "shop", "hostname": hostname,
                        "servicePorts": [{"name": "http", "port": 80, "protocol": "HTTP"}]})
                })
                .collect();
            let list = json!({"checksum": 1, "services": services}).to_string();
            let limits = Limits::default();
            let list = decode_list(list.as_bytes(), &limits).unwrap();
            Arc::new(RemoteServices::check(list, &limits).unwrap())
        });
        let remote = RemoteState {
            services: list.clone(),
            last_contact: Some(self.outcome.world.now),
            ..RemoteState::default()
        };
        let state = PeerState {
            remote: Arc::new(remote),
            ..PeerState::default()
        };
        let seen = &mut self.outcome.world.observed;
        seen.insert_peer(peer, state);
        self.uses(peer, true);
    }

    /// Whether what the peer lists is imported.
    fn uses(&mut self, peer: &str, used: bool) {
        let (name, suffix): (PeerName, DomainSuffix) =
            (peer.parse().unwrap(), "mesh.local".parse().unwrap());
        let state = &self.outcome.world.observed.peers[peer];
        let offers = state.remote.services.iter().map(|remote| {
            let import = Import {
                rule: 0,
                key: remote.key.clone(),
                host: ImportedHost::new(&remote.key, &suffix).unwrap(),
                as_local: false,
                ports: remote.tcp_ports().collect(),
                servers: ServerIds::OneOf(Vec::new()),
                health: None,
            };
            let offer = Offer {
                remote: remote.clone(),
                import: used.then(|| Ok(Arc::new(import))),
            };
            (remote.key.clone(), Arc::new(offer))
        });
        let shares = &mut self.outcome.plan.shares.imports;
        shares.insert(name, offers.collect());
    }

    fn planned(&mut self) {
        self.feed.push(Arc::new(self.outcome.clone()));
    }

    /// Nobody plans any more: what the files have in the end.
    async fn end(self) -> (Vec<Value>, Vec<Value>) {
        drop(self.feed);
        self.keeping.await.unwrap();
        let dir = self.dir.path();
        (read(dir, "audit.log"), read(dir, "peers.log"))
    }
}

fn read(dir: &Path, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join(file)).unwrap();
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

fn of_peer<'l>(lines: &'l [Value], peer: &str) -> Vec<&'l Value> {
    let lines = lines.iter();
    lines.filter(|l| l["byPeers"] == json!([peer])).collect()
}

#[tokio::test]
async fn a_peer_that_flaps_takes_nothing_from_one_that_changes_at_the_same_moments() {
    let mut bench = Bench::new();
    let rounds = 40;
    for round in 0..rounds {
        bench.lists("red-mesh", 1000 * (round % 2), LONG_NAME);
        bench.lists("blue-mesh", 1, if round % 2 == 0 { "a" } else { "b" });
        bench.planned();
    }
    let (main, peers) = bench.end().await;
    assert_eq!(main.len(), 1, "{:?}", main.last());
    assert_eq!(main[0]["event"], "Started");
    let blue = of_peer(&peers, "blue-mesh");
    assert_eq!(blue.len(), rounds);
    for line in &blue[1..] {
        let entries = ["imported", "dropped"].map(|what| line[what].as_array().unwrap().len());
        assert_eq!((entries, &line["suppressed"]), ([1, 1], &Value::Null));
    }
    // The first of its lists is empty, and changes nothing.
    let red = of_peer(&peers, "red-mesh");
    let written = red.iter().filter(|l| l["event"] == "SharingChanged");
    let written = written.count();
    assert!(written < rounds * 3 / 4, "{written} lines");
    let suppressed = red.iter().filter_map(|line| line["suppressed"].as_u64());
    assert_eq!(written as u64 + suppressed.sum::<u64>(), rounds as u64 - 1);
    assert_eq!(red.len() + blue.len(), peers.len());
}

#[tokio::test(start_paused = true)]
async fn that_lines_were_not_written_is_told_while_peers_are_connected_and_go_on() {
    let mut bench = Bench::new();
    for round in 0..40 {
        bench.lists("red-mesh", 1000 * (round % 2), LONG_NAME);
        bench.planned();
    }
    let mut told = None;
    // Each of them is heard twice a minute.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(30)).await;
        bench.planned();
        let lines = read(bench.dir.path(), "peers.log");
        told = lines.into_iter().find(|line| line["event"] == "Suppressed");
        if told.is_some() {
            break;
        }
    }
    let told = told.expect("a line");
    assert_eq!(told["byPeers"], json!(["red-mesh"]));
    let (_, peers) = bench.end().await;
    let all = of_peer(&peers, "red-mesh").len() as u64 - 1 + told["suppressed"].as_u64().unwrap();
    assert_eq!(all, 39, "nothing is counted twice");
}

#[tokio::test]
async fn imports_that_end_and_come_back_by_contact_alone_are_the_peers_doing() {
    let mut bench = Bench::new();
    let peer = json!({
        "metadata": {"namespace": "system", "name": "red-mesh",
            "annotations": {"meshfed.io/imports-outlive-contact": "1h"}},
        "spec": {
            "remote": {"addresses": ["127.0.0.9"]},
            "gateways": {"ingress": {"name": "in"}, "egress": {"name": "out"}},
            "security": {},
        },
    });
    let peer: ServiceMeshPeer = serde_json::from_value(peer).unwrap();
    let key = ObjectKey::new("system", "red-mesh");
    let peers = &mut bench.outcome.world.resources.peers;
    peers.insert(key, Arc::new(peer));
    bench.lists("red-mesh", 1200, "s");
    bench.planned();
    bench.outcome.world.now += SignedDuration::from_hours(2);
    bench.uses("red-mesh", false);
    bench.planned();
    bench.lists("red-mesh", 1200, "s");
    bench.planned();
    let (main, peers) = bench.end().await;
    // The first is the peer's coming, which somebody has made.
    let shared = |line: &Value| {
        let count = |what: &str| line[what].as_array().unwrap().len();
        (
            count("imported"),
            count("dropped"),
            line["notListed"].clone(),
        )
    };
    assert_eq!(main.len(), 2);
    assert_eq!(main[1]["peers"][0]["peer"], "red-mesh");
    let of_contact: Vec<_> = peers.iter().map(shared).collect();
    assert_eq!(of_contact, [(0, 1000, json!(200)), (1000, 0, json!(200))]);
    assert_eq!(of_peer(&peers, "red-mesh").len(), 2);
}
