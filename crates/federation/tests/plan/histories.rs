//! Random histories: any field of any resource is edited, at any time and in any order, and what a
//! planner says that saw all of it is what follows from the last state alone.

use std::sync::Arc;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use meshfed_federation::discovery::message::{Limits, Service, ServicePort};
use meshfed_federation::discovery::remote::{RemoteService, RemoteServices};
use meshfed_federation::plan::{Planner, plan};
use meshfed_federation::world::{
    GATEWAY_LABEL, GatewayState, ObjectKey, PeerState, Resources, Shared, World,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::lab::{Lab, now, root_of};

const SYSTEM: &str = "red-mesh-system";
const NAMESPACES: [&str; 4] = ["a", "b", "c", SYSTEM];
const NAMES: [&str; 3] = ["x", "y", "z"];
const PEERS: [&str; 3] = ["green-mesh", "blue-mesh", "third"];
const GATEWAYS: [(&str, &str); 4] = [
    ("in-1", "additionalIngress"),
    ("in-2", "additionalIngress"),
    ("out-1", "additionalEgress"),
    ("out-2", "additionalEgress"),
];
const ADDRESSES: [&str; 3] = ["127.64.1.201", "127.64.1.202", "127.64.1.203"];
const FINALIZER: &str = meshfed_federation::plan::FINALIZER;

/// Choices that were made beforehand, so that a failing history can be made smaller.
struct Dice<'d>(std::slice::Iter<'d, u8>);

impl Dice<'_> {
    fn roll(&mut self, sides: u8) -> u8 {
        self.0.next().map_or(0, |byte| byte % sides)
    }

    fn one_in(&mut self, sides: u8) -> bool {
        self.roll(sides) == sides - 1
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::from(self.roll(u8::try_from(all.len()).unwrap()))].clone()
    }

    fn some_of<T: Clone>(&mut self, all: &[T]) -> Vec<T> {
        let mask = self.roll(255);
        let chosen = |i: usize| mask & (1 << i) != 0;
        let all = all.iter().enumerate().filter(|(i, _)| chosen(*i));
        all.map(|(_, one)| one.clone()).collect()
    }

    fn maybe<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        (self.roll(2) == 0).then(|| self.of(all))
    }

    /// Ages collide, so that names decide.
    fn metadata(&mut self, namespace: &str, name: &str) -> Value {
        let mut metadata = json!({
            "name": name,
            "namespace": namespace,
            "creationTimestamp": format!("2027-01-01T00:00:0{}Z", self.roll(3)),
            "uid": format!("{name}-{}", self.roll(2)),
        });
        if self.one_in(8) {
            metadata["deletionTimestamp"] = json!("2027-10-05T13:05:42Z");
            if self.one_in(2) {
                metadata["finalizers"] = json!([FINALIZER]);
            }
        }
        metadata
    }

    fn pattern(&mut self, all: &[&str]) -> Value {
        self.maybe(all).map_or_else(|| json!("*"), |one| json!(one))
    }

    fn by_name(&mut self) -> Value {
        let (namespace, name) = (self.pattern(&NAMESPACES), self.pattern(&NAMES));
        let mut selector = json!({"namespace": namespace, "name": name});
        if self.one_in(2) {
            let (namespace, name) = (self.pattern(&NAMESPACES), self.pattern(&["x", "q"]));
            selector["alias"] = json!({"namespace": namespace, "name": name});
        }
        selector
    }

    fn export_rules(&mut self) -> Vec<Value> {
        (0..=self.roll(3))
            .map(|_| match self.roll(8) {
                0..5 => json!({"type": "NameSelector", "nameSelector": self.by_name()}),
                5 | 6 => {
                    let aliases: Vec<Value> = (0..self.roll(3)).map(|_| self.by_name()).collect();
                    json!({"type": "LabelSelector", "labelSelector": {
                        "namespace": self.pattern(&NAMESPACES),
                        "selector": {"matchLabels": {"share": self.of(&["yes", "no"])}},
                        "aliases": aliases,
                    }})
                }
                _ => json!({"type": "Unknown"}),
            })
            .collect()
    }

    fn import_rules(&mut self) -> Vec<Value> {
        (0..=self.roll(3))
            .map(|_| {
                let mut rule = json!({"type": "NameSelector", "nameSelector": self.by_name()});
                match self.roll(4) {
                    0 => rule["importAsLocal"] = json!(true),
                    1 => rule["domainSuffix"] = json!("shared.example"),
                    _ => {}
                }
                rule
            })
            .collect()
    }

    fn ports(&mut self) -> Vec<Value> {
        self.some_of(&[
            json!({"name": "http", "port": 80}),
            json!({"name": "grpc", "port": 9080, "targetPort": 9090}),
            json!({"name": "dns", "port": 53, "protocol": "UDP"}),
            json!({"name": "again", "port": 80}),
        ])
    }

    fn remote(&mut self) -> RemoteService {
        let (namespace, name) = (self.of(&NAMESPACES), self.of(&NAMES));
        let numbers = self.some_of(&[80, 9080, 53]);
        let ports = numbers.into_iter().map(|port| ServicePort {
            name: format!("p{port}"),
            port,
            protocol: if port == 53 { "UDP" } else { "HTTP" }.to_owned(),
        });
        let foreign = "spiffe://else.local/ns/a/sa/b".to_owned();
        let theirs = "spiffe://green-mesh.local/ns/a/sa/b".to_owned();
        let service = Service {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            hostname: format!("{name}.{namespace}.svc.red-exports.local"),
            ports: ports.collect(),
            accounts: self.some_of(&[foreign, theirs]),
            ..Service::default()
        };
        RemoteService::check(service).unwrap()
    }
}

/// One edit of the world.
fn edit(lab: &mut Lab, dice: &mut Dice<'_>) {
    match dice.roll(20) {
        0..4 => service(lab, dice),
        4 | 5 => slice(lab, dice),
        6 | 7 => pod(lab, dice),
        8 => namespace_or_member(lab, dice),
        9 => peer(lab, dice),
        10 => one_field_of_a_peer(lab, dice),
        11 => export_set(lab, dice),
        12 | 13 => import_set(lab, dice),
        14 => root(lab, dice),
        15 => control_plane(lab, dice),
        16 => gateway(lab, dice),
        17 | 18 => heard(lab, dice),
        _ => match dice.roll(5) {
            0 => lab.keep_statuses(),
            // A watch that begins again brings the same objects anew.
            4 => lab.world = copied(&lab.world),
            1 => lab.world.observed.own_roots = root_of(dice.of(&["red", "green"])).into(),
            _ => {
                let later = SignedDuration::from_secs(dice.of(&[1, 2, 60, 200_000_000]));
                lab.world.now = lab.world.now.checked_add(later).unwrap();
            }
        },
    }
}

/// One in four goes, if it is there.
fn gone<K: Clone>(
    lab: &mut Lab,
    dice: &mut Dice<'_>,
    of: fn(&mut Resources) -> &mut Shared<ObjectKey, K>,
    namespace: &str,
    name: &str,
) -> bool {
    let goes = dice.one_in(4);
    if goes {
        of(&mut lab.world.resources).remove(&ObjectKey::new(namespace, name));
    }
    goes
}

fn service(lab: &mut Lab, dice: &mut Dice<'_>) {
    let (namespace, name) = (dice.of(&NAMESPACES), dice.of(&NAMES));
    if gone(lab, dice, |r| &mut r.services, namespace, name) {
        return;
    }
    let mut metadata = dice.metadata(namespace, name);
    if let Some(share) = dice.maybe(&["yes", "no"]) {
        metadata["labels"] = json!({"share": share});
    }
    if let Some(to) = dice.maybe(&[".", "*", SYSTEM, ""]) {
        metadata["annotations"] = json!({"networking.istio.io/exportTo": to});
    }
    let mut spec = json!({"ports": dice.ports()});
    if let Some(app) = dice.maybe(&["x", "y"]) {
        spec["selector"] = json!({"app": app});
    }
    if dice.one_in(8) {
        spec["type"] = json!("ExternalName");
    }
    lab.apply_json(json!({"kind": "Service", "metadata": metadata, "spec": spec}));
}

fn slice(lab: &mut Lab, dice: &mut Dice<'_>) {
    let (namespace, name) = (dice.of(&NAMESPACES), dice.of(&["s", "t"]));
    if gone(lab, dice, |r| &mut r.endpoint_slices, namespace, name) {
        return;
    }
    let endpoints: Vec<Value> = dice
        .some_of(&ADDRESSES)
        .into_iter()
        .map(|address| {
            let conditions = json!({"ready": dice.one_in(2), "terminating": dice.one_in(4)});
            json!({"addresses": [address], "conditions": conditions})
        })
        .collect();
    let mut metadata = dice.metadata(namespace, name);
    if let Some(service) = dice.maybe(&NAMES) {
        metadata["labels"] = json!({"kubernetes.io/service-name": service});
    }
    lab.apply_json(json!({
        "kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4",
        "ports": [{"name": dice.of(&["http", "grpc"]), "port": dice.of(&[8000, 8001])}],
        "endpoints": endpoints,
    }));
}

fn pod(lab: &mut Lab, dice: &mut Dice<'_>) {
    let (namespace, name) = (dice.of(&NAMESPACES), dice.of(&["p", "q"]));
    if gone(lab, dice, |r| &mut r.pods, namespace, name) {
        return;
    }
    let mut metadata = dice.metadata(namespace, name);
    metadata["labels"] = json!({
        "app": dice.of(&["x", "y"]),
        "security.istio.io/tlsMode": dice.of(&["istio", "disabled"]),
    });
    let mut annotations = json!({});
    if dice.one_in(2) {
        annotations["meshfed.io/app"] = json!("127.0.0.1:7000");
    }
    if !dice.one_in(4) {
        annotations["meshfed.io/outbound"] = json!("127.64.1.200:15001");
    }
    metadata["annotations"] = annotations;
    let status = json!({"podIP": dice.of(&ADDRESSES)});
    lab.apply_json(json!({"kind": "Pod", "metadata": metadata, "status": status}));
}

fn namespace_or_member(lab: &mut Lab, dice: &mut Dice<'_>) {
    let namespace = dice.of(&NAMESPACES);
    match dice.roll(4) {
        0 | 1 if gone(lab, dice, |r| &mut r.namespaces, "", namespace) => {}
        0 | 1 => {
            let metadata = dice.metadata("", namespace);
            lab.apply_json(json!({"kind": "Namespace", "metadata": metadata}));
        }
        2 if gone(lab, dice, |r| &mut r.member_rolls, SYSTEM, "default") => {}
        2 => lab.apply_json(json!({
            "kind": "ServiceMeshMemberRoll",
            "metadata": dice.metadata(SYSTEM, dice_name(namespace)),
            "spec": {"members": dice.some_of(&["a", "b", "c", "*", SYSTEM])},
        })),
        _ if gone(lab, dice, |r| &mut r.members, namespace, "default") => {}
        _ => lab.apply_json(json!({
            "kind": "ServiceMeshMember",
            "metadata": dice.metadata(namespace, "default"),
            "spec": {"controlPlaneRef": {"name": dice.of(&["red-mesh", "other"]), "namespace": SYSTEM}},
        })),
    }
}

/// Mostly the name that counts.
fn dice_name(namespace: &str) -> &str {
    if namespace == "c" { "other" } else { "default" }
}

fn peer(lab: &mut Lab, dice: &mut Dice<'_>) {
    let name = dice.of(&PEERS);
    if gone(lab, dice, |r| &mut r.peers, SYSTEM, name) {
        return;
    }
    let own = format!("{name}.local");
    let domain = dice.of(&[&own, &own, "green-mesh.local", "red-mesh.local", ""]);
    let client = dice.of(&["ns/e/sa/e", "ns/f/sa/f"]);
    let mut metadata = dice.metadata(SYSTEM, name);
    if let Some(drain) = dice.maybe(&["1s", "7s", "rubbish"]) {
        metadata["annotations"] = json!({
            "meshfed.io/drain-period": drain, "meshfed.io/imports-outlive-contact": "90s",
        });
    }
    lab.apply_json(json!({
        "kind": "ServiceMeshPeer", "metadata": metadata,
        "spec": {
            "remote": {
                "addresses": dice.of(&[vec!["192.0.2.1"], vec!["one.example", "192.0.2.2"], vec![]]),
                "servicePort": dice.of(&[0, 15443, 30001, 70000]),
            },
            "gateways": {
                "ingress": {"name": dice.of(&["in-1", "in-2"])},
                "egress": {"name": dice.of(&["out-1", "out-2"])},
            },
            "security": {"trustDomain": domain, "clientID": format!("{domain}/{client}")},
        },
    }));
}

fn one_field_of_a_peer(lab: &mut Lab, dice: &mut Dice<'_>) {
    let key = ObjectKey::new(SYSTEM, dice.of(&PEERS));
    let Some(peer) = lab.world.resources.peers.get_mut(&key) else {
        return;
    };
    let peer = Arc::make_mut(peer);
    let spec = &mut peer.spec;
    match dice.roll(9) {
        6 => {
            let domain = dice.of(&["one.local", "green-mesh.local", "red-mesh.local"]);
            spec.security.trust_domain = Some(domain.to_owned());
        }
        7 => {
            let client = dice.maybe(&["green-mesh.local/ns/e/sa/e", "one.local/ns/e/sa/e", "?"]);
            spec.security.client_id = client.map(str::to_owned);
        }
        8 => spec.remote.discovery_port = dice.maybe(&[8188, 30002]),
        0 => {
            let drain = dice.of(&["2s", "9s"]).to_owned();
            let annotation = ("meshfed.io/drain-period".to_owned(), drain);
            peer.metadata.annotations = Some([annotation].into());
        }
        1 => spec.remote.service_port = dice.maybe(&[15443, 30001]),
        2 => {
            spec.remote.addresses =
                dice.some_of(&["192.0.2.3".to_owned(), "one.example".to_owned()])
        }
        3 => spec.gateways.ingress.name = dice.of(&["in-1", "in-2"]).to_owned(),
        4 => spec.gateways.egress.name = dice.of(&["out-1", "out-2"]).to_owned(),
        _ => {
            let created = lab
                .world
                .now
                .checked_sub(SignedDuration::from_secs(i64::from(dice.roll(3))));
            peer.metadata.creation_timestamp = Some(Time(created.unwrap()));
        }
    }
}

fn export_set(lab: &mut Lab, dice: &mut Dice<'_>) {
    let name = dice.of(&PEERS);
    if !gone(lab, dice, |r| &mut r.exports, SYSTEM, name) {
        lab.apply_json(json!({
            "kind": "ExportedServiceSet",
            "metadata": dice.metadata(SYSTEM, name),
            "spec": {"exportRules": dice.export_rules()},
        }));
    }
}

fn import_set(lab: &mut Lab, dice: &mut Dice<'_>) {
    let name = dice.of(&PEERS);
    if gone(lab, dice, |r| &mut r.imports, SYSTEM, name) {
        return;
    }
    let mut spec = json!({"importRules": dice.import_rules()});
    if let Some(suffix) = dice.maybe(&["shared.example", "svc.cluster.local"]) {
        spec["domainSuffix"] = json!(suffix);
    }
    if let Some(region) = dice.maybe(&["here", "there"]) {
        spec["locality"] = json!({"region": region});
    }
    let metadata = dice.metadata(SYSTEM, name);
    lab.apply_json(json!({"kind": "ImportedServiceSet", "metadata": metadata, "spec": spec}));
}

fn root(lab: &mut Lab, dice: &mut Dice<'_>) {
    let name = format!("{}-ca-root-cert", dice.of(&PEERS));
    if !gone(lab, dice, |r| &mut r.config_maps, SYSTEM, &name) {
        let pem = match dice.of(&["red", "green", "blue", ""]) {
            "" => "no certificate".to_owned(),
            mesh => root_of(mesh),
        };
        lab.root_config_map(&name, &pem);
    }
}

fn control_plane(lab: &mut Lab, dice: &mut Dice<'_>) {
    let name = dice.of(&["red-mesh", "red-mesh", "other"]);
    if gone(lab, dice, |r| &mut r.control_planes, SYSTEM, name) {
        return;
    }
    let mut gateways = json!({"additionalIngress": {}, "additionalEgress": {}});
    for (gateway, list) in GATEWAYS {
        if !dice.one_in(6) {
            gateways[list][gateway] = json!({"enabled": !dice.one_in(8)});
            if dice.one_in(8) {
                // One that cannot be made.
                gateways[list][gateway]["service"] = json!({"ports": [{"port": 15443}]});
            }
        }
    }
    let domain = dice.of(&[
        "red-mesh.local",
        "red-mesh.local",
        "new.local",
        "Not a domain",
    ]);
    lab.apply_json(json!({
        "kind": "ServiceMeshControlPlane",
        "metadata": dice.metadata(SYSTEM, name),
        "spec": {"gateways": gateways, "security": {"trust": {"domain": domain}}},
    }));
}

fn gateway(lab: &mut Lab, dice: &mut Dice<'_>) {
    let (name, _) = dice.of(&GATEWAYS);
    let observed = &mut lab.world.observed;
    match dice.roll(3) {
        0 => {
            observed.gateways.remove(name);
        }
        1 => {
            let refused = dice.maybe(&["no".to_owned()]);
            let ready = dice.one_in(2);
            observed.insert_gateway(name, GatewayState { ready, refused });
        }
        _ if gone(lab, dice, |r| &mut r.services, SYSTEM, name) => {}
        _ => {
            let mut metadata = dice.metadata(SYSTEM, name);
            metadata["labels"] = json!({GATEWAY_LABEL: dice.of(&[name, name, "other"])});
            let spec = json!({"clusterIP": dice.of(&["127.64.1.101", "127.64.1.102", "None"])});
            lab.apply_json(json!({"kind": "Service", "metadata": metadata, "spec": spec}));
        }
    }
}

fn heard(lab: &mut Lab, dice: &mut Dice<'_>) {
    let name = dice.of(&PEERS);
    let peers = &mut lab.world.observed.peers;
    let mut state = peers
        .get(name)
        .map_or_else(PeerState::default, |state| PeerState::clone(state));
    let remote = Arc::make_mut(&mut state.remote);
    match dice.roll(8) {
        0 => {
            peers.remove(name);
            return;
        }
        1 => remote.services = Arc::default(),
        2 => {
            let mut all = RemoteServices::default();
            for _ in 0..dice.roll(6) {
                all.put(dice.remote(), &Limits::default()).unwrap();
            }
            remote.services = Arc::new(all);
        }
        3 => {
            let (namespace, name) = (dice.of(&NAMESPACES), dice.of(&NAMES));
            Arc::make_mut(&mut remote.services).remove(namespace, name);
        }
        4 => {
            remote.watch.connected = dice.one_in(2);
            remote.watch.last_event = Some(lab.world.now);
            remote.last_contact = dice.maybe(&[lab.world.now, now()]);
        }
        5 => state.farewell.told = dice.maybe(&[lab.world.now, now()]),
        _ => {
            let service = dice.remote();
            Arc::make_mut(&mut remote.services)
                .put(service, &Limits::default())
                .unwrap();
        }
    }
    lab.world.observed.insert_peer(name, state);
}

/// A mesh in which everything is in order, with much that competes for names.
fn start() -> Lab {
    let mut lab = Lab::empty("red");
    let zeros = [0_u8; 0];
    for namespace in NAMESPACES {
        lab.namespace(namespace);
    }
    lab.apply_json(json!({
        "kind": "ServiceMeshMemberRoll", "metadata": {"name": "default", "namespace": SYSTEM},
        "spec": {"members": ["a", "b"]},
    }));
    control_plane(&mut lab, &mut Dice(zeros.iter()));
    lab.gateways_up();
    for (i, name) in PEERS.into_iter().enumerate() {
        lab.root_config_map(&format!("{name}-ca-root-cert"), &root_of("green"));
        // Own trust domain, own address, and gateways that some share.
        let gateways = u8::from(i == 2);
        let choices = [
            u8::try_from(i).unwrap(),
            0,
            0,
            0,
            0,
            0,
            0,
            1,
            0,
            1,
            gateways,
            gateways,
        ];
        peer(&mut lab, &mut Dice(choices.iter()));
        for kind in ["ExportedServiceSet", "ImportedServiceSet"] {
            // No member has the name into which the last one would join.
            let into = match (i, kind) {
                (2, "ImportedServiceSet") => "c",
                _ => "a",
            };
            let rule = json!({"type": "NameSelector", "nameSelector": {"namespace": "*", "name": "*",
                "alias": {"namespace": into}}, "importAsLocal": kind == "ImportedServiceSet"});
            lab.apply_json(json!({
                "kind": kind, "metadata": {"name": name, "namespace": SYSTEM},
                "spec": {"exportRules": [rule.clone()], "importRules": [rule]},
            }));
        }
        let mut all = RemoteServices::default();
        for i in 0..3 {
            let choices = [i % 2, i, 3, 0];
            let service = Dice(choices.iter()).remote();
            all.put(service, &Limits::default()).unwrap();
        }
        let mut state = PeerState::default();
        Arc::make_mut(&mut state.remote).services = Arc::new(all);
        lab.world.observed.insert_peer(name, state);
    }
    for namespace in ["a", "b"] {
        for name in NAMES {
            lab.service(namespace, name, json!({"app": name}));
        }
        lab.workload(namespace, "x", if namespace == "a" { 201 } else { 202 });
    }
    lab
}

/// The same world, made of other objects in other maps.
fn copied(world: &World) -> World {
    fn all<K: Ord + Clone, V: Clone>(map: &Shared<K, V>) -> Shared<K, V> {
        let mut copy = Shared::new();
        for (key, value) in map {
            copy.insert(key.clone(), Arc::new(V::clone(value)));
        }
        copy
    }
    let (r, o) = (&world.resources, &world.observed);
    let mut copy = world.clone();
    copy.resources = Resources {
        namespaces: all(&r.namespaces),
        services: all(&r.services),
        endpoint_slices: all(&r.endpoint_slices),
        pods: all(&r.pods),
        config_maps: all(&r.config_maps),
        control_planes: all(&r.control_planes),
        member_rolls: all(&r.member_rolls),
        members: all(&r.members),
        peers: all(&r.peers),
        exports: all(&r.exports),
        imports: all(&r.imports),
    };
    copy.observed.gateways = all(&o.gateways);
    copy.observed.peers = all(&o.peers);
    copy
}

#[test]
fn the_start_of_the_histories_shares_and_competes() {
    let lab = start();
    let plan = lab.plan();
    let exported: usize = plan.exports.values().map(|list| list.len()).sum();
    assert!(exported > 0, "{:?}", plan.statuses.peers);
    let imported = plan.discovery.values().map(|target| target.imported.count);
    assert!(imported.sum::<u32>() > 0);
    let text = format!("{:?} {:?}", plan.statuses.exports, plan.statuses.imports);
    assert!(text.contains("NameTaken") && text.contains("NotImported"));
    assert!(plan.proxies.len() > 4, "{}", plan.proxies.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_is_edited_in_whatever_order_the_last_state_alone_decides(
        history in prop::collection::vec((prop::collection::vec(any::<u8>(), 24), 1_u8..4), 1..40),
    ) {
        let mut lab = start();
        let mut planner = Planner::new();
        prop_assert_eq!(planner.plan(&lab.world), plan(&lab.world));
        let mut waiting = 0;
        for (choices, batch) in &history {
            edit(&mut lab, &mut Dice(choices.iter()));
            // Some edits are seen together.
            waiting += 1;
            if waiting < *batch {
                continue;
            }
            waiting = 0;
            let followed = planner.plan(&lab.world);
            prop_assert_eq!(&followed, &plan(&lab.world));
        }
        let followed = planner.plan(&lab.world);
        prop_assert_eq!(followed, plan(&copied(&lab.world)));
    }
}
