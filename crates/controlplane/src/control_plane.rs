//! The assembly of the control plane.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use meshfed_federation::world::{MeshSettings, Observed, Resources, World};
use meshfed_pki::{IdError, TrustDomain};
use meshfed_runtime::{AccessLog, Drain, DrainWatch, Metrics};
use meshfed_xds::ca::server::IstioCertificateServiceServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tonic::service::Routes;
use tracing::{error, warn};

use crate::ads::{AdsMetrics, AdsService, Nodes};
use crate::apply::{self, Outcomes};
use crate::ca_service::{CaMetrics, CaService, MAX_MESSAGE, Membership, TokenAuthenticator};
use crate::discovery::{DiscoveryClient, DiscoveryServer, PeerCache};
use crate::grpc::{GrpcMetrics, GrpcServer, OwnTrust, serve_grpc};
use crate::hub::{Ends, Hub};
use crate::identity::{OwnIdentity, OwnIdentityError};
use crate::journal::{self, AuditLog, Writes};
use crate::observe;
use crate::proxies::Proxies;
use crate::registration;
use crate::safekeeping;
use crate::subnet::Subnet;

/// The domain of the mesh's own services.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// For what peers said last to reach the disk at the end.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// What the control plane of one mesh is given.
pub struct ControlPlane<A> {
    /// An administrator's client of the API.
    pub client: Client,
    pub namespace: String,
    pub subnet: Subnet,
    pub node_address: IpAddr,
    /// Stable end of the name of this instance.
    pub instance_suffix: String,
    pub identity: Arc<OwnIdentity>,
    /// Port 15012: certificates and ADS.
    pub grpc: TcpListener,
    /// Port 8188: discovery.
    pub discovery: TcpListener,
    /// Judges the tokens with which proxies join.
    pub tokens: A,
    /// What peers exported when they were last heard.
    pub peer_lists: PeerCache,
    /// A line for each request for discovery.
    pub access_log: AccessLog,
    /// A line for each change of what is shared.
    pub audit_log: AuditLog,
    /// Writes to the API by others, as its server saw them; `None` where it does not tell.
    pub writes: Option<Writes>,
    pub metrics: Metrics,
    pub drain: DrainWatch,
}

/// Why the control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot create the namespace {0}")]
    Namespace(String, #[source] kube::Error),
    #[error(transparent)]
    Identity(#[from] OwnIdentityError),
    #[error("the default trust domain {CLUSTER_DOMAIN} is none")]
    TrustDomain(#[source] IdError),
    #[error("a listener has no address")]
    Listener(#[source] std::io::Error),
}

/// Trust domains before the one of now whose certificates may be exchanged, until they run out.
const MAX_FORMER: usize = 8;
/// The last writes have this long to be planned with, and then their lines to be written.
const LAST_WRITES: Duration = Duration::from_secs(2);
const LAST_LINES: Duration = Duration::from_secs(5);
/// The statuses, and then the Pods, have this long to be left to other instances.
const LAST_STATUSES: Duration = Duration::from_secs(2);

/// A running control plane; its tasks end with it.
pub struct Running {
    pub outcomes: Outcomes,
    client: Client,
    writes: Option<Writes>,
    tasks: JoinSet<()>,
    /// The tasks that ask peers.
    peers: Drain,
    /// Ends by itself when nobody plans any more.
    journal: JoinHandle<()>,
}

impl Running {
    /// Resolves when a task ends, which none should before the drain.
    pub async fn ended(&mut self) {
        tokio::select! {
            _ = self.tasks.join_next() => {}
            _ = &mut self.journal => {}
        }
    }

    /// Ends it, once what peers said last is on disk, and what was written to the API before that was
    /// closed is in the audit log.
    pub async fn stop(mut self) {
        if let Some(writes) = &self.writes {
            let all = self.outcomes.wait_for(|newest| {
                let newest = newest.as_ref();
                newest.is_some_and(|newest| writes.are_in(&newest.world.resources))
            });
            if tokio::time::timeout(LAST_WRITES, all).await.is_err() {
                warn!("the last writes to the API were not observed, so the audit log lacks them");
            }
        }
        self.peers.drain(STORE_PATIENCE).await;
        self.tasks.shutdown().await;
        let newest = self.outcomes.borrow().clone();
        if let Some(newest) = newest {
            let resigned = apply::resign(&self.client, &newest);
            if tokio::time::timeout(LAST_STATUSES, resigned).await.is_err() {
                warn!("other instances of the control plane will wait for this one for a time");
            }
            let left = registration::resign(&self.client, &newest);
            if tokio::time::timeout(LAST_STATUSES, left).await.is_err() {
                warn!("workloads that left with this control plane stay registered for a time");
            }
        }
        if self.journal.is_finished() {
            return;
        }
        if tokio::time::timeout(LAST_LINES, &mut self.journal)
            .await
            .is_err()
        {
            warn!("the last lines of the audit log could not be written in time");
            self.journal.abort();
        }
    }
}

/// Creates the control plane's namespace if it is not there.
pub async fn ensure_namespace(client: &Client, namespace: &str) -> Result<(), StartError> {
    let api: Api<Namespace> = Api::all(client.clone());
    let object = Namespace {
        metadata: ObjectMeta {
            name: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(StartError::Namespace(namespace.to_owned(), error)),
    }
}

impl<A: TokenAuthenticator> ControlPlane<A> {
    /// Starts everything.
    pub fn start(self) -> Result<Running, StartError> {
        let discovery_address = address(&self.discovery)?;
        let default_domain: TrustDomain =
            CLUSTER_DOMAIN.parse().map_err(StartError::TrustDomain)?;
        let world = World {
            now: Timestamp::now(),
            mesh: MeshSettings {
                system_namespace: self.namespace.clone(),
                cluster_domain: CLUSTER_DOMAIN.to_owned(),
                default_trust_domain: default_domain.clone(),
                instance_suffix: self.instance_suffix,
                discovery_address,
                node_address: self.node_address,
                started: Timestamp::now(),
            },
            resources: Resources::default(),
            observed: Observed::default(),
        };
        let (
            hub,
            Ends {
                observations,
                seen,
                outcomes,
                backlog,
            },
        ) = Hub::new(world);
        seen.own_roots(self.identity.authority.load().root_pem().into());
        // Before the first plan, or that would take away what is imported.
        let kept = self.peer_lists.load();
        for (peer, state) in &kept {
            seen.remote(peer.as_str(), Arc::new(state.clone()));
        }
        let mut tasks = JoinSet::new();
        let kinds = observe::start(&self.client, &self.namespace, &observations, &mut tasks);
        drop(observations);
        tasks.spawn(hub.run(kinds));
        tasks.spawn(journal::post(self.client.clone(), outcomes.clone()));
        let writes = self.writes.clone();
        let journal = tokio::spawn(journal::keep(self.audit_log, writes, backlog));
        apply::start(&self.client, self.subnet, &outcomes, &mut tasks);
        tasks.spawn(self.identity.clone().keep(outcomes.clone()));
        tasks.spawn(safekeeping::keep(
            self.client.clone(),
            self.namespace.clone(),
            self.identity.authority.clone(),
        ));

        let nodes = Nodes::new();
        tasks.spawn(registration::run(
            self.client.clone(),
            nodes.registrations(),
            outcomes.clone(),
        ));
        let proxies = Arc::new(Proxies::new(
            outcomes.clone(),
            seen.clone(),
            self.namespace.clone(),
        ));
        tasks.spawn(proxies.clone().follow_plans());

        let (mesh, meshes) = watch::channel(None);
        let (store, stores) = watch::channel(OwnTrust {
            store: self.identity.trust(&default_domain)?,
            domain: default_domain,
        });
        tasks.spawn(follow_trust(
            self.identity.clone(),
            outcomes.clone(),
            mesh,
            store,
        ));
        let certificates = CaService::new(
            self.identity.authority.clone(),
            meshes,
            self.tokens,
            self.metrics.register(CaMetrics::new),
        );
        let ads = AdsService::new(
            proxies,
            nodes,
            self.metrics.register(AdsMetrics::new),
            self.drain.clone(),
        );
        let certificates = IstioCertificateServiceServer::new(Arc::new(certificates), MAX_MESSAGE);
        let grpc = GrpcServer {
            listener: self.grpc,
            identity: self.identity.cell.clone(),
            trust: stores,
            services: Routes::new(certificates).add_service(ads.into_server()),
            metrics: self.metrics.register(GrpcMetrics::new),
            drain: self.drain.clone(),
        };
        tasks.spawn(async move {
            if let Err(error) = serve_grpc(grpc).await {
                error!(%error, "the gRPC port cannot be served");
            }
        });

        let server = DiscoveryServer::new(seen.clone(), self.access_log);
        tasks.spawn(server.clone().follow(outcomes.clone()));
        tasks.spawn(server.serve(self.discovery, self.identity.clone(), self.drain.clone()));
        let client = DiscoveryClient::new(self.identity, seen, self.peer_lists);
        let (peers, stopping) = Drain::new();
        tasks.spawn(client.follow(kept, outcomes.clone(), stopping));
        Ok(Running {
            outcomes,
            client: self.client,
            writes: self.writes,
            tasks,
            peers,
            journal,
        })
    }
}

/// Keeps the trust domain, its members and what vouches for it as the plan has them.
///
/// In this order: whoever is sent away because it is of the trust domain before comes back at once, and must
/// then find the control plane itself in the new one, and get a certificate of that.
async fn follow_trust(
    identity: Arc<OwnIdentity>,
    mut outcomes: Outcomes,
    mesh: watch::Sender<Option<Membership>>,
    store: watch::Sender<OwnTrust>,
) {
    let mut former: VecDeque<TrustDomain> = VecDeque::new();
    loop {
        let newest = outcomes.borrow_and_update().clone();
        let ruled = newest.filter(|outcome| outcome.plan.control_plane.is_some());
        let wanted = ruled.as_ref().map(|outcome| Membership {
            trust_domain: outcome.plan.trust_domain.clone(),
            namespaces: (outcome.plan.members.iter())
                .chain([&outcome.world.mesh.system_namespace])
                .cloned()
                .collect(),
        });
        if *mesh.borrow() != wanted {
            let domain = wanted.as_ref().map(|wanted| wanted.trust_domain.clone());
            if let Some(outcome) = &ruled
                && let Err(error) = identity.ensure(&outcome.plan.control_plane_id)
            {
                error!(%error, "the control plane has no certificate of its trust domain");
            }
            mesh.send_replace(wanted);
            if let Some(domain) = domain {
                let left = store.borrow().domain.clone();
                if left != domain {
                    former.retain(|former| *former != left);
                    former.push_back(left);
                    if former.len() > MAX_FORMER {
                        former.pop_front();
                    }
                }
                match identity.trust_with(&domain, former.make_contiguous()) {
                    Ok(trust) => {
                        store.send_replace(OwnTrust {
                            domain,
                            store: trust,
                        });
                    }
                    Err(error) => error!(%error, "the own root certificate cannot be used"),
                }
            }
        }
        if outcomes.changed().await.is_err() {
            return;
        }
    }
}

fn address(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(StartError::Listener)
}
