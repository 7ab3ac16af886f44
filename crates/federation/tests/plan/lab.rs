//! A mesh on the bench: manifests are applied, gateways come up, a peer says something.

use std::path::Path;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use meshfed_api::{
    ExportedServiceSet, ImportedServiceSet, ServiceMeshControlPlane, ServiceMeshMember,
    ServiceMeshMemberRoll, ServiceMeshPeer,
};
use meshfed_federation::discovery::client::{AnsweredBy, RemoteState, WatchState};
use meshfed_federation::discovery::message::{Limits, ServiceList, decode_list};
use meshfed_federation::discovery::remote::RemoteServices;
use meshfed_federation::discovery::server::SourceStatus;
use meshfed_federation::names::PeerName;
use meshfed_federation::plan::{Plan, ProxyKey, Statuses, plan};
use meshfed_federation::with_status;
use meshfed_federation::world::{
    APP_ANNOTATION, Farewell, GATEWAY_LABEL, GatewayState, MeshSettings, OUTBOUND_ANNOTATION,
    ObjectKey, Observed, PeerState, Resources, Shared, TLS_MODE_ISTIO, TLS_MODE_LABEL, World,
};
use meshfed_proxy_config::ProxyConfig;
use serde_json::{Value, json};

pub const NOW: &str = "2027-10-05T13:05:43Z";

pub fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// A file below `examples/`.
pub fn example(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

pub fn root_of(mesh: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/roots");
    std::fs::read_to_string(dir.join(format!("{mesh}.pem"))).unwrap()
}

pub struct Lab {
    pub world: World,
    /// First three numbers of its addresses.
    subnet: &'static str,
    created: i64,
}

impl Lab {
    /// An empty mesh of this colour.
    pub fn empty(colour: &str) -> Self {
        let subnet = match colour {
            "red" => "127.64.1",
            "green" => "127.64.2",
            _ => "127.64.3",
        };
        let mut lab = Self {
            world: World {
                now: now(),
                mesh: MeshSettings {
                    system_namespace: format!("{colour}-mesh-system"),
                    cluster_domain: "cluster.local".to_owned(),
                    default_trust_domain: "cluster.local".parse().unwrap(),
                    instance_suffix: "b65457658-9wq5j".to_owned(),
                    discovery_address: format!("{subnet}.1:8188").parse().unwrap(),
                    node_address: format!("{subnet}.2").parse().unwrap(),
                    started: now() - SignedDuration::from_hours(24),
                },
                resources: Resources::default(),
                observed: Observed {
                    own_roots: root_of(colour).into(),
                    ..Observed::default()
                },
            },
            subnet,
            created: 0,
        };
        for peer in ["red", "green", "blue"].iter().filter(|p| **p != colour) {
            lab.root_config_map(&format!("{peer}-mesh-ca-root-cert"), &root_of(peer));
        }
        lab
    }

    /// A mesh of the examples, as far as a federation of two goes, with its gateways up.
    pub fn of_examples(colour: &str) -> Self {
        let mut lab = Self::empty(colour);
        let dir =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../examples/{colour}-mesh"));
        let mut files: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                let name = path.file_name().unwrap().to_string_lossy();
                name.ends_with(".yaml") && !name.starts_with('4')
            })
            .collect();
        files.sort();
        for file in files {
            lab.apply(&std::fs::read_to_string(file).unwrap());
        }
        lab.gateways_up();
        lab
    }

    pub fn system(&self) -> String {
        self.world.mesh.system_namespace.clone()
    }

    pub fn plan(&self) -> Plan {
        plan(&self.world)
    }

    /// Applies every document of a manifest, as the API would store it.
    pub fn apply(&mut self, manifest: &str) {
        let documents: Vec<Value> = serde_saphyr::from_multiple(manifest).unwrap();
        for document in documents {
            self.apply_json(document);
        }
    }

    pub fn apply_json(&mut self, mut document: Value) {
        self.created += 1;
        let created =
            now() - SignedDuration::from_hours(1) + SignedDuration::from_secs(self.created);
        let metadata = &mut document["metadata"];
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!(created.to_string());
        }
        metadata["generation"] = json!(1);
        let namespace = metadata["namespace"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let key = ObjectKey::new(namespace, metadata["name"].as_str().unwrap());
        let resources = &mut self.world.resources;
        macro_rules! kinds {
            ($($kind:literal => $field:ident: $type:ty),+ $(,)?) => {
                match document["kind"].as_str().unwrap() {
                    $($kind => put::<$type>(&mut resources.$field, key, document),)+
                    "ServiceAccount" | "DestinationRule" => {}
                    other => panic!("no test applies a {other}"),
                }
            };
        }
        kinds! {
            "Namespace" => namespaces: Namespace,
            "Service" => services: Service,
            "EndpointSlice" => endpoint_slices: EndpointSlice,
            "Pod" => pods: Pod,
            "ConfigMap" => config_maps: ConfigMap,
            "ServiceMeshControlPlane" => control_planes: ServiceMeshControlPlane,
            "ServiceMeshMemberRoll" => member_rolls: ServiceMeshMemberRoll,
            "ServiceMeshMember" => members: ServiceMeshMember,
            "ServiceMeshPeer" => peers: ServiceMeshPeer,
            "ExportedServiceSet" => exports: ExportedServiceSet,
            "ImportedServiceSet" => imports: ImportedServiceSet,
        }
    }

    pub fn root_config_map(&mut self, name: &str, pem: &str) {
        let namespace = self.system();
        self.apply_json(json!({
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": namespace},
            "data": {"root-cert.pem": pem},
        }));
    }

    pub fn service(&mut self, namespace: &str, name: &str, labels: Value) {
        self.apply_json(json!({
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"ports": [{"name": "http", "port": 9080}]},
        }));
    }

    pub fn namespace(&mut self, name: &str) {
        self.apply_json(json!({"kind": "Namespace", "metadata": {"name": name}}));
    }

    /// A workload behind a sidecar, ready, with the EndpointSlice of its Service.
    pub fn workload(&mut self, namespace: &str, app: &str, last: u8) {
        let ip = format!("{}.{last}", self.subnet);
        self.apply_json(json!({
            "kind": "Pod",
            "metadata": {
                "name": format!("{app}-v1"), "namespace": namespace,
                "labels": {"app": app, TLS_MODE_LABEL: TLS_MODE_ISTIO},
                "annotations": {
                    APP_ANNOTATION: "127.0.0.1:7000", OUTBOUND_ANNOTATION: format!("{ip}:15001"),
                },
            },
            "status": {"podIP": ip},
        }));
        self.apply_json(json!({
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{app}-mesh"), "namespace": namespace,
                "labels": {"kubernetes.io/service-name": app},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 9080}],
            "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        }));
    }

    /// Every gateway that the plan asks for gets its Service and address, and its proxy connects.
    pub fn gateways_up(&mut self) {
        for (i, (name, gateway)) in self.plan().gateways.iter().enumerate() {
            let mut service = gateway.service.clone();
            let spec = service.spec.as_mut().unwrap();
            spec.cluster_ip = Some(format!("{}.{}", self.subnet, 100 + i));
            let wanted = spec.load_balancer_ip.clone();
            if let Some(ip) = wanted {
                service.status = serde_json::from_value(json!({
                    "loadBalancer": {"ingress": [{"ip": ip}]}
                }))
                .unwrap();
            }
            assert_eq!(
                service.metadata.labels.as_ref().unwrap()[GATEWAY_LABEL],
                *name
            );
            let key = ObjectKey::new(self.system(), name.clone());
            insert(&mut self.world.resources.services, key, service);
            let state = GatewayState {
                ready: true,
                refused: None,
            };
            self.world
                .observed
                .gateways
                .insert(name.clone(), state.into());
        }
    }

    /// The peer's control plane is connected in both directions and exports this.
    pub fn hears(&mut self, peer: &str, list: &ServiceList) {
        let received = decode_list(&list.encode(), &Limits::default()).unwrap();
        let services = RemoteServices::check(received, &Limits::default()).unwrap();
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        let state = PeerState {
            remote: Arc::new(RemoteState {
                services: Arc::new(services),
                last_full_sync: at("2027-10-05T13:05:43.5Z"),
                list_checksum_agrees: true,
                watch: WatchState {
                    connected: true,
                    last_connected: at("2027-10-05T13:02:55.25Z"),
                    last_disconnect: None,
                    last_disconnect_status: Some("503 Service Unavailable".to_owned()),
                    last_event: None,
                    error: None,
                    last_disconnect_cause: None,
                    last_disconnect_by: AnsweredBy::Unknown,
                },
                last_contact: at("2027-10-05T13:05:43.5Z"),
                ..RemoteState::default()
            }),
            watchers: vec![SourceStatus {
                source: "10.128.2.149".to_owned(),
                connected: true,
                last_connected: at("2027-10-05T13:02:25Z"),
                last_disconnect: None,
                last_event: None,
                last_full_sync: at("2027-10-05T13:02:25Z"),
                report: None,
            }],
            farewell: Farewell::default(),
        };
        self.world
            .observed
            .peers
            .insert(peer.to_owned(), state.into());
    }

    /// What this mesh's plan exports to a peer, as it is sent.
    pub fn exports_to(&self, peer: &str) -> ServiceList {
        let plan = self.plan();
        let peer: PeerName = peer.parse().unwrap();
        let services = plan
            .exports
            .get(&peer)
            .expect("a peer that may be talked to");
        ServiceList::new(services.values().map(|s| s.to_message()).collect())
    }

    pub fn edit_peer(&mut self, name: &str, edit: impl FnOnce(&mut ServiceMeshPeer)) {
        let key = ObjectKey::new(self.system(), name);
        let peers = &mut self.world.resources.peers;
        edit(Arc::make_mut(peers.get_mut(&key).unwrap()));
    }

    pub fn edit_remote(&mut self, peer: &str, edit: impl FnOnce(&mut RemoteState)) {
        let mut state = PeerState::clone(&self.world.observed.peers[peer]);
        edit(Arc::make_mut(&mut state.remote));
        self.world.observed.insert_peer(peer, state);
    }

    /// Writes the statuses of the plan, as a control plane does.
    pub fn keep_statuses(&mut self) {
        let statuses = self.plan().statuses;
        store(&mut self.world, &statuses);
    }

    pub fn edit_service(&mut self, namespace: &str, name: &str, edit: impl FnOnce(&mut Service)) {
        let key = ObjectKey::new(namespace, name);
        let services = &mut self.world.resources.services;
        edit(Arc::make_mut(services.get_mut(&key).unwrap()));
    }

    pub fn delete<K: Clone>(
        &mut self,
        of: fn(&mut Resources) -> &mut Shared<ObjectKey, K>,
        key: &ObjectKey,
    ) {
        let removed = of(&mut self.world.resources).remove(key);
        assert!(removed.is_some(), "{key} is not there");
    }
}

pub fn gateway(plan: &Plan, name: &str) -> Arc<ProxyConfig> {
    plan.proxies[&ProxyKey::Gateway(name.to_owned())].clone()
}

pub fn sidecar(plan: &Plan, namespace: &str, pod: &str) -> Arc<ProxyConfig> {
    plan.proxies[&ProxyKey::Sidecar(ObjectKey::new(namespace, pod))].clone()
}

/// Writes statuses as the API stores them. True if that changed anything.
pub fn store(world: &mut World, statuses: &Statuses) -> bool {
    let mut changed = false;
    macro_rules! store {
        ($($field:ident),+) => {$(
            for (key, status) in &statuses.$field {
                let object = Arc::make_mut(world.resources.$field.get_mut(key).unwrap());
                let text = serde_json::to_string(status).unwrap();
                let status = Some(serde_json::from_str(&text).unwrap());
                changed |= object.status != status;
                object.status = status;
            }
        )+};
    }
    with_status!(store);
    changed
}

/// Both meshes of the examples, each having heard the other.
pub fn red_and_green() -> (Lab, Lab) {
    let mut red = Lab::of_examples("red");
    let mut green = Lab::of_examples("green");
    red.workload("red-mesh-bookinfo", "ratings", 20);
    red.workload("red-mesh-bookinfo", "reviews", 21);
    green.workload("bookinfo", "client", 30);
    green.hears("red-mesh", &red.exports_to("green-mesh"));
    red.hears("green-mesh", &green.exports_to("red-mesh"));
    (red, green)
}

fn put<K: serde::de::DeserializeOwned + Clone>(
    all: &mut Shared<ObjectKey, K>,
    key: ObjectKey,
    document: Value,
) {
    insert(all, key, serde_json::from_value(document).unwrap());
}

fn insert<K: Clone>(all: &mut Shared<ObjectKey, K>, key: ObjectKey, object: K) {
    all.insert(key, Arc::new(object));
}

/// Marks an object as being deleted.
pub fn moved_to(domain: &str, lab: &Lab) -> Value {
    let (_, control_plane) = lab.world.resources.control_planes.iter().next().unwrap();
    let mut object = serde_json::to_value(&**control_plane).unwrap();
    object["spec"]["security"]["trust"]["domain"] = domain.into();
    object
}

pub fn going(metadata: &mut ObjectMeta) {
    metadata.deletion_timestamp = Some(Time(now()));
}
