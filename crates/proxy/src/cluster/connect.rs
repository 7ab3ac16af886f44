//! Connecting to an endpoint of a cluster.

use std::net::SocketAddr;
use std::sync::Arc;

use meshfed_pki::{HandshakeRefusal, TrustStore};
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::hosts::{Host, Load};
use super::{Cluster, verdict};
use crate::cut::{Control, Cut, CutGuard, Verdict};
use crate::end::End;
use crate::engine::Tables;
use crate::io::{Prefetch, Stream, prepare};
use crate::limits::CONNECT_ATTEMPTS;
use crate::trust::{Proof, Role};

/// A connection to an endpoint, for the use of one client connection.
pub(crate) struct Connected {
    pub(crate) stream: Stream,
    pub(crate) address: SocketAddr,
    pub(crate) proof: Option<Arc<Proof>>,
    pub(crate) held: Held,
}

/// To be kept as long as the connection: its share of the endpoint's load, and its place among
/// those that are cut with the cluster.
pub(crate) struct Held {
    _load: Load,
    _use: CutGuard<Option<Arc<Proof>>>,
}

/// No endpoint could be used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failure {
    pub(crate) end: End,
    /// The endpoint that was tried last.
    pub(crate) upstream: Option<SocketAddr>,
}

/// Connects to the best endpoint, trying others if it fails. The connection is cut through
/// `control` when the cluster goes or its endpoint is not trusted any more.
pub(crate) async fn connect(
    tables: &Tables,
    cluster: &Cluster,
    control: &Arc<Control>,
) -> Result<Connected, Failure> {
    let mut attempts = Attempts::new(cluster);
    loop {
        let load = attempts.next()?;
        match dial(tables, cluster, load.host()).await {
            Ok(dialed) => {
                load.host().succeeded();
                return Ok(Connected {
                    address: load.host().address,
                    held: Held {
                        _use: dialed.enter(tables, cluster, control),
                        _load: load,
                    },
                    stream: dialed.stream,
                    proof: dialed.proof,
                });
            }
            Err(end) => attempts.failed(&load, end),
        }
    }
}

/// The endpoints that one connection or request has tried.
pub(super) struct Attempts<'a> {
    cluster: &'a Cluster,
    tried: Vec<Arc<Host>>,
    last: Failure,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            tried: Vec::new(),
            last: Failure {
                end: End::NoEndpoint,
                upstream: None,
            },
        }
    }

    pub(super) fn next(&self) -> Result<Load, Failure> {
        if self.tried.len() == CONNECT_ATTEMPTS {
            return Err(self.last);
        }
        self.cluster.hosts().pick(&self.tried).ok_or(self.last)
    }

    pub(super) fn failed(&mut self, load: &Load, end: End) {
        let host = load.host();
        self.cluster
            .hosts()
            .failed(host, self.cluster.config.outlier.as_ref());
        tracing::debug!(
            cluster = &*self.cluster.name,
            upstream = %host.address,
            reason = end.label(),
            "endpoint failed"
        );
        self.last = Failure {
            end,
            upstream: Some(host.address),
        };
        self.tried.push(host.clone());
    }
}

/// What a connection was authenticated with; one that was made with something else is not reused.
#[derive(Clone, Default)]
pub(super) struct Generation {
    identity: Option<Arc<CertifiedKey>>,
    trust: Option<Arc<TrustStore>>,
}

impl Generation {
    pub(super) fn current(tables: &Tables, cluster: &Cluster, host: &Host) -> Self {
        match &cluster.config.tls {
            Some(tls) if host.mesh_tls => Self {
                identity: tables.identity.get(),
                trust: tables.trust.get(&tls.trust).map(|t| t.store.clone()),
            },
            _ => Self::default(),
        }
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        fn same<T>(a: &Option<Arc<T>>, b: &Option<Arc<T>>) -> bool {
            match (a, b) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            }
        }
        same(&self.identity, &other.identity) && same(&self.trust, &other.trust)
    }
}

pub(super) struct Dialed {
    pub(super) stream: Stream,
    pub(super) proof: Option<Arc<Proof>>,
    /// The roots that the handshake was judged by.
    trust: Option<Arc<TrustStore>>,
}

impl Dialed {
    /// Puts the connection among the users of its cluster, to be ended with them. A change of the
    /// cluster or of its trust since the handshake began has judged without this connection, so it
    /// is judged here.
    pub(super) fn enter(
        &self,
        tables: &Tables,
        cluster: &Cluster,
        control: &Arc<Control>,
    ) -> CutGuard<Option<Arc<Proof>>> {
        let guard = cluster.users.enter(control, self.proof.clone());
        // Without it, the set of its users is closed.
        let Some(now) = tables.clusters.get(&cluster.name) else {
            return guard;
        };
        let trust = now.config.tls.as_ref().map(|tls| &tls.trust);
        let trust = trust.and_then(|name| tables.trust.get(name));
        let mut holds = |proof: &Arc<Proof>| match (&trust, &self.trust) {
            (Some(now), Some(then)) if Arc::ptr_eq(&now.store, then) => true,
            (Some(now), _) => proof.holds(&now.store),
            (None, _) => false,
        };
        match verdict(
            &cluster.config,
            &now.config,
            self.proof.as_ref(),
            &mut holds,
        ) {
            Verdict::Keep => {}
            Verdict::Cut(why) => control.cut(why),
            Verdict::Drain(_) => control.cut(Cut::ClusterRemoved),
        }
        guard
    }
}

/// One attempt: TCP and, if the cluster and the endpoint have it, TLS, within the connect timeout.
pub(super) async fn dial(tables: &Tables, cluster: &Cluster, host: &Host) -> Result<Dialed, End> {
    tokio::time::timeout(
        cluster.config.connect_timeout,
        Box::pin(dial_unbounded(tables, cluster, host)),
    )
    .await
    .unwrap_or(Err(End::UpstreamTimeout))
}

async fn dial_unbounded(tables: &Tables, cluster: &Cluster, host: &Host) -> Result<Dialed, End> {
    let address = host.address;
    let socket = TcpStream::connect(address)
        .await
        .map_err(|_| End::UpstreamConnect)?;
    prepare(&socket);
    let tls = match &cluster.config.tls {
        Some(tls) if host.mesh_tls => tls,
        _ => {
            return Ok(Dialed {
                stream: Stream::Plain(socket),
                proof: None,
                trust: None,
            });
        }
    };
    let Some(trust) = tables.trust.get(&tls.trust) else {
        return Err(End::NotConfigured);
    };
    let config = cluster
        .client_config(tls, &trust.store, &tables.identity)
        .map_err(|_| End::NotConfigured)?;
    // rustls sends no SNI for an address.
    let name = match super::server_name(tls) {
        Ok(Some(name)) => name.to_owned(),
        Ok(None) => ServerName::from(address.ip()),
        Err(_) => return Err(End::NotConfigured),
    };
    let stream = TlsConnector::from(config)
        .connect(name, Prefetch::new(socket))
        .await
        .map_err(|e| End::UpstreamCertificate(HandshakeRefusal::from(&e).label()))?;
    let proof = Proof::new(stream.get_ref().1.peer_certificates(), Role::Server)
        .map_err(End::UpstreamCertificate)?;
    Ok(Dialed {
        stream: Stream::Client(Box::new(stream)),
        proof: Some(Arc::new(proof)),
        trust: Some(trust.store.clone()),
    })
}
