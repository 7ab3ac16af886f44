//! Several meshes on one bench: each plans its own world, and they learn of each other through the
//! discovery machines alone, by the way that their proxies' configurations lead.

use std::collections::BTreeMap;
use std::time::Duration;

use meshfed_federation::discovery::client::{
    Action, Client, ClientSettings, Failure, RemoteState, RequestId,
};
use meshfed_federation::discovery::server::{Answer, Server, ServerSettings, Take, WatchId};
use meshfed_federation::moment::Moment;
use meshfed_federation::plan::Plan;
use meshfed_federation::world::PeerState;
use serde_json::{Value, json};

use crate::lab::{Lab, now};
use crate::trace::Net;

/// How one mesh knows another.
#[derive(Debug, Clone)]
pub struct Peering {
    /// The other mesh, by its number.
    pub mesh: usize,
    /// What this mesh calls it.
    pub name: String,
    /// Seconds after the start of time at which the ServiceMeshPeer was created.
    pub created: u32,
}

/// One mesh of a federation.
#[derive(Debug, Clone)]
pub struct Membership {
    pub colour: &'static str,
    pub peerings: Vec<Peering>,
    /// One ingress and one egress gateway serve all peers, instead of a pair for each.
    pub shared_gateways: bool,
}

impl Membership {
    pub fn of(colour: &'static str, peerings: &[(usize, &str)]) -> Self {
        let peerings = peerings.iter().map(|(mesh, name)| Peering {
            mesh: *mesh,
            name: (*name).to_owned(),
            created: 0,
        });
        Self {
            colour,
            peerings: peerings.collect(),
            shared_gateways: false,
        }
    }

    fn gateway(&self, side: &str, peer: &str) -> String {
        if self.shared_gateways {
            side.to_owned()
        } else {
            format!("{side}-{peer}")
        }
    }

    /// The address at which this mesh's ingress waits for the mesh `from`.
    fn address(&self, from: usize) -> String {
        let place = match self.shared_gateways {
            true => 0,
            false => self.place(from),
        };
        format!("{}.{}", subnet(self.colour), 10 + place)
    }

    fn place(&self, mesh: usize) -> usize {
        self.peerings.iter().position(|p| p.mesh == mesh).unwrap()
    }
}

pub fn subnet(colour: &str) -> &'static str {
    match colour {
        "red" => "127.64.1",
        "green" => "127.64.2",
        _ => "127.64.3",
    }
}

/// A moment in 2027, as the API writes it.
pub fn created(seconds: u32) -> String {
    format!("2027-01-01T00:00:{seconds:02}Z")
}

/// The meshes, with what they planned last.
pub struct Meshes {
    pub labs: Vec<Lab>,
    pub plans: Vec<Plan>,
    servers: BTreeMap<(usize, String), Server>,
    links: BTreeMap<(usize, String), Link>,
    elapsed: Duration,
}

/// One mesh's discovery of one peer.
struct Link {
    client: Client,
    /// The watch that is open: ours, the peer's number for it, and whose server it is.
    watch: Option<(RequestId, WatchId, (usize, String))>,
}

impl Meshes {
    /// Control planes, gateways and peers, and nothing shared yet.
    pub fn new(members: &[Membership]) -> Self {
        let labs: Vec<Lab> = members.iter().map(|member| lab(members, member)).collect();
        let plans = labs.iter().map(Lab::plan).collect();
        let mut all = Self {
            labs,
            plans,
            servers: BTreeMap::new(),
            links: BTreeMap::new(),
            elapsed: Duration::from_secs(1),
        };
        all.settle();
        all
    }

    /// Each mesh hears what the others export now, and plans again.
    pub fn settle(&mut self) {
        self.elapsed += Duration::from_secs(2);
        self.plans = self.labs.iter().map(Lab::plan).collect();
        for (mesh, plan) in self.plans.iter().enumerate() {
            for (peer, exports) in &plan.exports {
                let server = self.servers.entry((mesh, peer.to_string()));
                let server = server.or_insert_with(|| Server::new(ServerSettings::default()));
                server.set_exports(exports, moment(self.elapsed));
            }
        }
        let asked: Vec<(usize, String)> = self
            .plans
            .iter()
            .enumerate()
            .flat_map(|(mesh, plan)| plan.discovery.keys().map(move |p| (mesh, p.to_string())))
            .collect();
        for key in &asked {
            self.discover(key);
        }
        for key in &asked {
            self.observe(key);
        }
        self.plans = self.labs.iter().map(Lab::plan).collect();
    }

    pub fn net(&self) -> Net<'_> {
        Net::of(self)
    }

    /// Everything that the machines of one link have to say to each other now.
    fn discover(&mut self, key: &(usize, String)) {
        let way = Net::of(self).discovery(key.0, &key.1);
        let now = moment(self.elapsed);
        let link = self.links.entry(key.clone()).or_insert_with(|| Link {
            client: Client::new(ClientSettings::default(), 1, RemoteState::default()),
            watch: None,
        });
        let source = format!("mesh {}", key.0);
        let mut actions = link.client.tick(now);
        loop {
            let mut next = Vec::new();
            for action in std::mem::take(&mut actions) {
                let server = way.as_ref().ok().and_then(|at| self.servers.get_mut(at));
                next.extend(match (action, server) {
                    (Action::OpenWatch(id), Some(server)) => {
                        let (watch, _) = server.open_watch(&source, true, now);
                        link.watch = Some((id, watch, way.clone().unwrap()));
                        link.client.watch_opened(id, true, now)
                    }
                    (Action::GetList(id), Some(server)) => {
                        let Answer::List(document) = server.list(&source, None, now) else {
                            panic!("no list is named");
                        };
                        let mut more = link.client.list_opened(id, true, now);
                        more.extend(link.client.list_data(id, &document.body(true), now));
                        more.extend(link.client.list_done(id, None, now));
                        more
                    }
                    (Action::OpenWatch(id), None) => {
                        let failure = Failure::Transport(format!("{way:?}"));
                        link.client.watch_closed(id, Some(&failure), now)
                    }
                    (Action::GetList(id), None) => {
                        let failure = Failure::Transport(format!("{way:?}"));
                        link.client.list_done(id, Some(&failure), now)
                    }
                    (Action::Cancel(_) | Action::Changed { .. }, _) => Vec::new(),
                });
            }
            if let Some((id, watch, at)) = &link.watch {
                let server = self.servers.get_mut(at).unwrap();
                while let Take::Event(event) = server.take(*watch) {
                    next.extend(link.client.watch_data(*id, &event, now));
                }
            }
            next.extend(link.client.tick(now));
            if next.is_empty() {
                return;
            }
            actions = next;
        }
    }

    fn observe(&mut self, key: &(usize, String)) {
        let now = moment(self.elapsed);
        let server = self.servers.get_mut(key);
        let state = PeerState {
            remote: self.links[key].client.state().clone(),
            watchers: server.map_or_else(Vec::new, |server| server.sources(now)),
            ..PeerState::default()
        };
        let lab = &mut self.labs[key.0];
        lab.world.observed.insert_peer(key.1.as_str(), state);
    }
}

fn moment(elapsed: Duration) -> Moment {
    Moment::after(now(), elapsed)
}

fn lab(members: &[Membership], member: &Membership) -> Lab {
    let mut lab = Lab::empty(member.colour);
    let system = lab.system();
    lab.namespace(&system);
    lab.apply_json(control_plane(&system, member));
    for peering in &member.peerings {
        let ours = members.iter().position(|m| m.colour == member.colour);
        let (name, other) = (&peering.name, &members[peering.mesh]);
        let back = &other.peerings[other.place(ours.unwrap())].name;
        let egress = other.gateway("egress", back);
        let (there, domain) = (
            format!("{}-mesh-system", other.colour),
            format!("{}-mesh.local", other.colour),
        );
        lab.root_config_map(
            &format!("{name}-ca-root-cert"),
            &crate::lab::root_of(other.colour),
        );
        lab.apply_json(json!({
            "kind": "ServiceMeshPeer",
            "metadata": {"name": name, "namespace": system,
                "creationTimestamp": created(peering.created)},
            "spec": {
                "remote": {"addresses": [other.address(ours.unwrap())]},
                "gateways": {
                    "ingress": {"name": member.gateway("ingress", name)},
                    "egress": {"name": member.gateway("egress", name)},
                },
                "security": {
                    "trustDomain": domain,
                    "clientID": format!("{domain}/ns/{there}/sa/{egress}-service-account"),
                },
            },
        }));
    }
    lab.gateways_up();
    lab
}

fn control_plane(system: &str, member: &Membership) -> Value {
    let ports = |discovery: &str| json!([{"port": 15443, "name": "tls"}, {"port": 8188, "name": discovery}]);
    let (mut ingress, mut egress) = (json!({}), json!({}));
    for peering in &member.peerings {
        ingress[member.gateway("ingress", &peering.name)] = json!({"service": {
            "type": "LoadBalancer",
            "loadBalancerIP": member.address(peering.mesh),
            "ports": ports("https-discovery"),
        }});
        egress[member.gateway("egress", &peering.name)] =
            json!({"service": {"ports": ports("http-discovery")}});
    }
    json!({
        "kind": "ServiceMeshControlPlane",
        "metadata": {"name": format!("{}-mesh", member.colour), "namespace": system},
        "spec": {
            "gateways": {"additionalIngress": ingress, "additionalEgress": egress},
            "security": {"trust": {"domain": format!("{}-mesh.local", member.colour)}},
        },
    })
}
