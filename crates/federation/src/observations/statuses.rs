//! What statuses tell of what was seen, for a mesh whose control plane cannot be asked.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jiff::Timestamp;
use meshfed_api::peer::{ImportReport, PodDiscoveryStatus, ServiceMeshPeerStatus};
use meshfed_api::{OWN_ROOT_CONFIG_MAP, ROOT_CERT_KEY};
use meshfed_pki::TrustDomain;

use super::Seen;
use crate::discovery::checksum::ListHash;
use crate::discovery::client::{RemoteState, WatchState};
use crate::discovery::extension::Report;
use crate::discovery::message::{Limits, ReceivedList, Service, ServiceList, ServicePort};
use crate::discovery::remote::RemoteServices;
use crate::discovery::server::SourceStatus;
use crate::names::ServiceKey;
use crate::plan::IMPORTS_EXPIRED;
use crate::world::{
    Farewell, GatewayState, MeshSettings, ObjectKey, Observed, PeerState, Resources,
};

const CLUSTER_DOMAIN: &str = "cluster.local";
/// Statuses do not tell the ports of a peer's services.
const SOME_PORT: i64 = 80;

pub(super) fn seen(resources: &Resources, system: &str, now: Timestamp) -> Seen {
    let mut unknown = vec![
        "the ports of peers' services, which show as 80".to_owned(),
        "the certificate that signs those of workloads".to_owned(),
        "sidecars that refuse their configuration, which a condition of the ServiceMeshControlPlane has"
            .to_owned(),
    ];
    let root = ObjectKey::new(system, OWN_ROOT_CONFIG_MAP);
    let map = resources.config_maps.get(&root);
    let pem = map.and_then(|map| map.data.as_ref()?.get(ROOT_CERT_KEY));
    if pem.is_none() {
        unknown.push(format!(
            "this mesh's own root: there is no ConfigMap {root}"
        ));
    }
    let mut observed = Observed {
        own_roots: pem.map(String::as_str).unwrap_or_default().into(),
        ..Observed::default()
    };
    for smcp in resources.control_planes.values() {
        let status = smcp.status.as_ref();
        for name in status.iter().flat_map(|s| &s.readiness.components.ready) {
            let state = GatewayState {
                ready: true,
                refused: None,
            };
            observed.insert_gateway(name.clone(), state);
        }
    }
    for (key, peer) in resources
        .peers
        .iter()
        .filter(|(key, _)| key.namespace == system)
    {
        let offered = resources
            .imports
            .get(key)
            .and_then(|set| set.status.as_ref());
        let names = offered.iter().flat_map(|s| &s.imported_services);
        let names: Vec<&str> = names.map(|s| s.exported_name.as_str()).collect();
        if let Some(status) = &peer.status {
            let mut conditions = status.conditions.iter();
            if conditions.any(|c| c.reason.as_deref() == Some(IMPORTS_EXPIRED)) {
                unknown.push(format!(
                    "what the peer {} exports, whose imports have ended by its silence",
                    key.name
                ));
            }
            observed.insert_peer(key.name.clone(), state(status, &names));
        }
    }
    Seen {
        at: now,
        mesh: MeshSettings {
            system_namespace: system.to_owned(),
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
            default_trust_domain: default_domain(),
            instance_suffix: String::new(),
            discovery_address: (Ipv4Addr::UNSPECIFIED, 0).into(),
            node_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            // It is not known. What silence has ended is not in the statuses any more.
            started: now,
        },
        observed,
        issuer: None,
        unknown,
    }
}

#[expect(clippy::expect_used, reason = "a constant that is a trust domain")]
fn default_domain() -> TrustDomain {
    CLUSTER_DOMAIN.parse().expect("a trust domain")
}

fn state(status: &ServiceMeshPeerStatus, names: &[&str]) -> PeerState {
    let discovery = &status.discovery_status;
    let instances = || discovery.active.iter().chain(&discovery.inactive);
    let watch = instances()
        .map(|pod| &pod.watch)
        .max_by_key(|watch| watch.connected);
    let watch = watch.cloned().unwrap_or_default();
    PeerState {
        remote: Arc::new(RemoteState {
            services: Arc::new(services(names)),
            last_full_sync: watch.last_full_sync.map(|time| time.0),
            last_contact: status.last_contact.as_ref().map(|time| time.0),
            list_checksum_agrees: true,
            watch: WatchState {
                connected: watch.connected,
                last_connected: watch.last_connected.map(|time| time.0),
                last_disconnect: watch.last_disconnect.map(|time| time.0),
                last_disconnect_status: watch.last_disconnect_status,
                last_event: watch.last_event.map(|time| time.0),
                ..WatchState::default()
            },
            ..RemoteState::default()
        }),
        watchers: instances().flat_map(watchers).collect(),
        farewell: Farewell::default(),
    }
}

fn watchers(pod: &PodDiscoveryStatus) -> impl Iterator<Item = SourceStatus> {
    pod.remotes.iter().map(|remote| SourceStatus {
        source: remote.source.clone(),
        connected: remote.connected,
        last_connected: remote.last_connected.as_ref().map(|time| time.0),
        last_disconnect: remote.last_disconnect.as_ref().map(|time| time.0),
        last_event: remote.last_event.as_ref().map(|time| time.0),
        last_full_sync: remote.last_full_sync.as_ref().map(|time| time.0),
        report: remote.report.as_ref().map(report),
    })
}

fn report(said: &ImportReport) -> Report {
    let keys = said.services.iter().filter_map(|key| {
        let (namespace, name) = key.split_once('/')?;
        ServiceKey::parse(namespace, name).ok()
    });
    Report {
        imported: said.imported,
        services: keys.collect(),
        last_sync: said.last_sync.as_ref().map(|time| time.0),
        error: said.error.clone(),
    }
}

/// Services of these exported names; those that are none of the protocol are left out.
fn services(names: &[&str]) -> RemoteServices {
    let services = names.iter().filter_map(|host| {
        let (name, rest) = host.split_once('.')?;
        let (namespace, _) = rest.split_once('.')?;
        Some(Service {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            hostname: (*host).to_owned(),
            ports: vec![ServicePort {
                name: String::new(),
                port: SOME_PORT,
                protocol: "TCP".to_owned(),
            }],
            ..Service::default()
        })
    });
    let list = ServiceList::new(services.collect());
    let hash = ListHash::of(&list.services);
    let limits = Limits {
        services: usize::MAX,
        list_bytes: usize::MAX,
        ..Limits::default()
    };
    RemoteServices::check(ReceivedList { list, hash }, &limits).unwrap_or_default()
}
