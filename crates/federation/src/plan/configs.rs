//! The configuration of every proxy of the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meshfed_ordmap::OrdMap;
use meshfed_pki::TrustDomain;
use meshfed_proxy_config::ProxyConfig;

use super::control_plane::Ruling;
use super::egress::{Egress, EgressPeer};
use super::exports::PeerExports;
use super::imports::{Imports, PeerImports};
use super::ingress::{Ingress, IngressPeer};
use super::local::LocalService;
use super::parallel::each;
use super::peers::{Peers, Trusted};
use super::proxy::{MESH_TRUST, Mesh, bundle, peer_trust};
use super::sidecar::{Outbound, Sidecar, SidecarPeer, Workload};
use super::{GatewayKind, ProxyKey};
use crate::names::{PeerName, ServiceKey};
use crate::world::{ObjectKey, World};

/// What was decided before proxies are told of it.
pub(super) struct Decisions<'d, 'w> {
    pub world: &'w World,
    pub ruling: &'d Ruling<'w>,
    pub peers: &'d Peers<'w>,
    /// Peers that have left, and whose open connections may go on for a while.
    pub draining: &'d [Trusted<'w>],
    pub services: &'d OrdMap<ServiceKey, Arc<LocalService>>,
    pub exports: &'d BTreeMap<PeerName, PeerExports>,
    pub imports: &'d Imports,
    pub workloads: &'d BTreeMap<ObjectKey, Workload>,
    /// How many services may be exported or imported in another way than before.
    pub news: usize,
    /// Workloads that may be others than before.
    pub touched: &'d BTreeSet<ObjectKey>,
}

/// The proxies, each of which follows what it is concerned with.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    all: OrdMap<ProxyKey, Arc<ProxyConfig>>,
    ingresses: BTreeMap<String, Ingress>,
    egresses: BTreeMap<String, Egress>,
    outbound: Outbound,
    sidecars: BTreeMap<ObjectKey, Sidecar>,
    /// The trust domain and the roots that sidecars were told of.
    mesh: Option<(TrustDomain, Arc<str>)>,
}

impl Proxies {
    pub fn all(&self) -> &OrdMap<ProxyKey, Arc<ProxyConfig>> {
        &self.all
    }

    pub fn follow(&mut self, decided: &Decisions<'_, '_>) {
        let (world, ruling) = (decided.world, decided.ruling);
        let peers = decided.trusted().chain(decided.draining);
        let bundles: Vec<_> = peers
            .map(|p| (peer_trust(&p.name), bundle(&p.trust_domain, &p.roots.pem)))
            .collect();
        let mesh = Mesh {
            peers: &bundles,
            trust_domain: &ruling.trust_domain,
            trust_name: &MESH_TRUST.into(),
            roots: &world.observed.own_roots,
            system_namespace: &world.mesh.system_namespace,
            cluster_domain: &world.mesh.cluster_domain,
            control_plane_id: &ruling.control_plane_id,
            discovery_address: world.mesh.discovery_address,
        };
        self.gateways(&mesh, decided);
        self.sidecars(&mesh, decided);
    }

    fn gateways(&mut self, mesh: &Mesh<'_>, decided: &Decisions<'_, '_>) {
        let views = &decided.ruling.gateways;
        let is = |name: &str, kind| {
            views
                .get(name)
                .is_some_and(|view| view.kind() == Some(kind))
        };
        self.ingresses
            .retain(|name, _| is(name, GatewayKind::Ingress));
        self.egresses
            .retain(|name, _| is(name, GatewayKind::Egress));
        let gone: Vec<ProxyKey> = self
            .all
            .keys()
            .take_while(|key| matches!(key, ProxyKey::Gateway(_)))
            .filter(|key| match key {
                ProxyKey::Gateway(name) => views.get(name).and_then(|view| view.kind()).is_none(),
                ProxyKey::Sidecar(_) => false,
            })
            .cloned()
            .collect();
        for key in gone {
            self.all.remove(&key);
        }
        for (name, view) in views {
            match view.kind() {
                None => {}
                Some(GatewayKind::Ingress) => {
                    self.ingresses.entry(name.clone()).or_default();
                }
                Some(GatewayKind::Egress) => {
                    self.egresses.entry(name.clone()).or_default();
                }
            }
        }
        let ingresses = self.ingresses.iter_mut().map(|(name, ingress)| {
            let gateway = Gateway::Ingress(ingress, decided.ingress_peers(name));
            (name, gateway)
        });
        let egresses = self.egresses.iter_mut().map(|(name, egress)| {
            let gateway = Gateway::Egress(egress, decided.egress_peers(name));
            (name, gateway)
        });
        let jobs = ingresses.chain(egresses).filter_map(|(name, gateway)| {
            let addresses = &views.get(name)?.addresses;
            Some((name, gateway, addresses))
        });
        let configs = each(
            jobs.collect(),
            decided.news,
            |(name, gateway, addresses)| {
                let config = match gateway {
                    Gateway::Ingress(it, peers) => it.follow(mesh, addresses, &peers),
                    Gateway::Egress(it, peers) => {
                        it.follow(mesh, addresses, &peers, decided.imports)
                    }
                };
                (name, config)
            },
        );
        for (name, config) in configs {
            set(&mut self.all, ProxyKey::Gateway(name.clone()), config);
        }
    }

    fn sidecars(&mut self, mesh: &Mesh<'_>, decided: &Decisions<'_, '_>) {
        let workloads = decided.workloads;
        for pod in decided.touched {
            match workloads.get(pod) {
                Some(workload) => {
                    let sidecar = self.sidecars.entry(pod.clone()).or_default();
                    sidecar.is_for(mesh, workload);
                }
                None => {
                    self.sidecars.remove(pod);
                    self.all.remove(&ProxyKey::Sidecar(pod.clone()));
                }
            }
        }
        if workloads.is_empty() {
            self.outbound = Outbound::default();
            return;
        }
        let namespaces = workloads
            .values()
            .filter(|workload| workload.outbound.is_some())
            .map(|workload| workload.namespace.as_str())
            .collect();
        let mut all_changed = self.outbound.follow(
            mesh,
            decided.services,
            decided.sidecar_peers(),
            decided.imports,
            &namespaces,
        );
        let told = Some((mesh.trust_domain.clone(), mesh.roots.clone()));
        all_changed |= self.mesh != told;
        self.mesh = told;
        for (pod, workload) in workloads {
            if (all_changed || decided.touched.contains(pod))
                && let Some(sidecar) = self.sidecars.get_mut(pod)
            {
                sidecar.follow(mesh, workload, &self.outbound);
                let key = ProxyKey::Sidecar(pod.clone());
                set(&mut self.all, key, sidecar.config());
            }
        }
    }
}

/// A gateway with the peers that it serves.
enum Gateway<'g, 'd> {
    Ingress(&'g mut Ingress, Vec<IngressPeer<'d>>),
    Egress(&'g mut Egress, Vec<EgressPeer<'d>>),
}

fn set(all: &mut OrdMap<ProxyKey, Arc<ProxyConfig>>, key: ProxyKey, config: &Arc<ProxyConfig>) {
    if !all
        .get(&key)
        .is_some_and(|there| Arc::ptr_eq(there, config))
    {
        all.insert(key, config.clone());
    }
}

impl Decisions<'_, '_> {
    fn trusted(&self) -> impl Iterator<Item = &Trusted<'_>> {
        self.peers.values().filter_map(|peer| peer.as_ref().ok())
    }

    /// A peer that is going still comes in to be told that nothing is exported any more.
    fn ingress_peers(&self, gateway: &str) -> Vec<IngressPeer<'_>> {
        self.trusted()
            .filter(|peer| matches!(&peer.ingress, Ok(ingress) if ingress.name == gateway))
            .map(|peer| IngressPeer {
                name: &peer.name,
                trust_domain: &peer.trust_domain,
                roots: &peer.roots.pem,
                client_id: &peer.client_id,
                drain: peer.settings.drain_period,
                exports: self
                    .exports
                    .get(&peer.name)
                    .map_or_else(OrdMap::new, |all| all.exported.clone()),
            })
            .collect()
    }

    fn egress_peers(&self, gateway: &str) -> Vec<EgressPeer<'_>> {
        self.trusted()
            .filter(|peer| !peer.going)
            .filter(|peer| matches!(&peer.egress, Ok(egress) if egress.name == gateway))
            .map(|peer| EgressPeer {
                name: &peer.name,
                created: peer.created(),
                trust_domain: &peer.trust_domain,
                addresses: &peer.object.spec.remote.addresses,
                service_port: peer.service_port,
                discovery_port: peer.discovery_port,
                discovery_host: &peer.discovery_host,
                remote_hash: peer.remote_hash,
                drain: peer.settings.drain_period,
                imports: self.imports_of(&peer.name).offers,
            })
            .collect()
    }

    fn sidecar_peers(&self) -> BTreeMap<PeerName, SidecarPeer> {
        self.trusted()
            .map(|peer| {
                let egress = peer.egress.as_ref().ok();
                let way = SidecarPeer {
                    egress: egress.map(|egress| {
                        let address = (egress.address.ip, egress.address.service_port).into();
                        (address, egress.id.clone())
                    }),
                    drain: peer.settings.drain_period,
                    imports: self.imports_of(&peer.name),
                };
                (peer.name.clone(), way)
            })
            .collect()
    }

    fn imports_of(&self, peer: &PeerName) -> PeerImports {
        self.imports.of(peer).cloned().unwrap_or_default()
    }
}
