//! The configuration of every proxy of the mesh.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use meshfed_api::ImportedServiceSetSpec;
use meshfed_proxy_config::ProxyConfig;

use super::control_plane::Ruling;
use super::egress::{self, EgressImport, EgressPeer};
use super::exports::PeerExports;
use super::imports::PeerImports;
use super::ingress::{self, IngressPeer};
use super::local::LocalService;
use super::peers::{Peers, Trusted};
use super::proxy::Mesh;
use super::sidecar::{self, Outbound, SidecarImport, Workload};
use super::withdrawal::Withdrawal;
use super::{GatewayKind, ProxyKey};
use crate::names::{DomainSuffix, PeerName, ServiceKey};
use crate::rules::ImportRules;
use crate::world::{ObjectKey, World};

/// What was decided before proxies are told of it.
pub(super) struct Decided<'d, 'w> {
    pub world: &'w World,
    pub ruling: &'d Ruling<'w>,
    pub services: &'d BTreeMap<ServiceKey, Arc<LocalService>>,
    pub peers: &'d Peers<'w>,
    pub exports: &'d BTreeMap<PeerName, PeerExports>,
    pub imports: &'d BTreeMap<PeerName, PeerImports>,
    pub workloads: &'d BTreeMap<ObjectKey, Workload>,
    pub withdrawal: &'d Withdrawal,
    pub local_suffix: &'d DomainSuffix,
}

impl Decided<'_, '_> {
    pub fn configs(&self) -> OrdMap<ProxyKey, Arc<ProxyConfig>> {
        let mesh = Mesh {
            trust_domain: &self.ruling.trust_domain,
            roots: &self.world.observed.own_roots,
            system_namespace: &self.world.mesh.system_namespace,
            cluster_domain: &self.world.mesh.cluster_domain,
            control_plane_id: &self.ruling.control_plane_id,
            discovery_address: self.world.mesh.discovery_address,
        };
        let gateways = self.ruling.gateways.iter().filter_map(|(name, view)| {
            let config = match view.kind()? {
                GatewayKind::Ingress => {
                    ingress::config(&mesh, &view.addresses, &self.ingress_peers(name))
                }
                GatewayKind::Egress => {
                    egress::config(&mesh, &view.addresses, &self.egress_peers(name))
                }
            };
            Some((ProxyKey::Gateway(name.clone()), Arc::new(config)))
        });
        // Made once for all sidecars, and not at all for none.
        let outbound = if self.workloads.is_empty() {
            Outbound::default()
        } else {
            sidecar::outbound(&mesh, self.services, &self.sidecar_imports())
        };
        let sidecars = self.workloads.iter().map(|(pod, workload)| {
            let config = sidecar::config(&mesh, workload, &outbound);
            (ProxyKey::Sidecar(pod.clone()), Arc::new(config))
        });
        gateways.chain(sidecars).collect()
    }

    pub fn import_rules(&self, spec: &ImportedServiceSetSpec, peer: &PeerName) -> ImportRules {
        ImportRules::parse(spec, peer, self.local_suffix)
    }

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
                exports: self.exports.get(&peer.name).map_or_else(Vec::new, |all| {
                    let exported = all.exported.iter();
                    exported
                        .map(|(host, exported)| (host.clone(), exported.local.clone()))
                        .collect()
                }),
            })
            .collect()
    }

    fn egress_peers(&self, gateway: &str) -> Vec<EgressPeer<'_>> {
        self.trusted()
            .filter(|peer| !peer.going)
            .filter(|peer| matches!(&peer.egress, Ok(egress) if egress.name == gateway))
            .map(|peer| EgressPeer {
                name: &peer.name,
                trust_domain: &peer.trust_domain,
                roots: &peer.roots.pem,
                addresses: &peer.object.spec.remote.addresses,
                service_port: peer.service_port,
                discovery_port: peer.discovery_port,
                discovery_host: &peer.discovery_host,
                remote_hash: peer.remote_hash,
                drain: peer.settings.drain_period,
                imports: self.imports.get(&peer.name).map_or_else(Vec::new, |all| {
                    all.imported()
                        .map(|(remote, import)| EgressImport {
                            imported: import.host.clone(),
                            exported: remote.host.clone(),
                            ports: import.ports.clone(),
                            servers: import.servers.clone(),
                        })
                        .collect()
                }),
            })
            .collect()
    }

    fn sidecar_imports(&self) -> Vec<SidecarImport> {
        self.trusted()
            .filter_map(|peer| {
                let egress = peer.egress.as_ref().ok()?;
                Some((peer, egress, self.imports.get(&peer.name)?))
            })
            .flat_map(|(peer, egress, all)| {
                all.imported().map(move |(_, import)| SidecarImport {
                    imported: import.host.clone(),
                    key: import.key.clone(),
                    as_local: import.as_local,
                    ports: import.ports.clone(),
                    egress: (egress.address.ip, egress.address.service_port).into(),
                    egress_id: egress.id.clone(),
                    drain: peer.settings.drain_period,
                    locality: all.locality.clone(),
                    health: import.health,
                })
            })
            .collect()
    }
}
