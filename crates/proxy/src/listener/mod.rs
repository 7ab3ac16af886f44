//! Listeners: accepting connections, and what all connections of a listener share.

mod connection;
mod tcp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use meshfed_pki::TrustStore;
use meshfed_proxy_config::{Network, TcpTarget};
use prometheus_client::metrics::gauge::Gauge;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::cut::{Control, Cut, CutGuard, CutSet, Verdict};
use crate::end::End;
use crate::engine::{Chain, Chains, Tables, allowed};
use crate::limits::{ACCEPT_BACKLOG, ACCEPT_PAUSE};
use crate::record::{Record, Reporter};
use crate::trust::{Judge, Proof};

/// A listener cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{0} is in use by another process or listener")]
    InUse(SocketAddr),
    #[error("cannot listen on {address}")]
    Other {
        address: SocketAddr,
        #[source]
        cause: io::Error,
    },
}

/// What the connections of a listener share.
pub(crate) struct Shared {
    pub(crate) chains: ArcSwap<Chains>,
    /// All of them; those of one chain are in [`Chain::members`].
    pub(crate) connections: Arc<CutSet<()>>,
    pub(crate) reporter: Arc<Reporter>,
    slots: Arc<Semaphore>,
    all_slots: Arc<Semaphore>,
}

/// What a connection is judged by when the configuration changes.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) sni: Option<Arc<str>>,
    pub(crate) chain: Arc<Chain>,
    pub(crate) proof: Option<Arc<Proof>>,
    /// The roots that accepted the proof.
    pub(crate) trust: Option<Arc<TrustStore>>,
}

/// A place among the connections that may be open.
pub(crate) struct Admission {
    _slot: OwnedSemaphorePermit,
    _one_of_all: OwnedSemaphorePermit,
    active: Gauge,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.active.dec();
    }
}

impl Shared {
    pub(crate) fn new(
        chains: Chains,
        reporter: Arc<Reporter>,
        slots: usize,
        all_slots: Arc<Semaphore>,
    ) -> Arc<Self> {
        Arc::new(Self {
            chains: ArcSwap::from_pointee(chains),
            connections: CutSet::new(),
            reporter,
            slots: Arc::new(Semaphore::new(slots.min(Semaphore::MAX_PERMITS))),
            all_slots,
        })
    }

    fn admit(&self) -> Option<Admission> {
        let slot = self.slots.clone().try_acquire_owned().ok()?;
        let one_of_all = self.all_slots.clone().try_acquire_owned().ok()?;
        let active = self.reporter.metrics.active.clone();
        active.inc();
        Some(Admission {
            _slot: slot,
            _one_of_all: one_of_all,
            active,
        })
    }

    /// Puts a connection among those that are judged when something changes.
    pub(crate) fn enter(&self, control: &Arc<Control>, subject: &Subject) -> Entered {
        Entered {
            _connection: self.connections.enter(control, ()),
            _member: subject.chain.members.enter(control, subject.clone()),
        }
    }

    /// Ends the connections of these chains that today's chains and trust would not accept.
    pub(crate) fn judge_members<'a>(
        &self,
        of: impl IntoIterator<Item = &'a Arc<Chain>>,
        tables: &Tables,
        known: &mut Judge,
    ) {
        let chains = self.chains.load_full();
        for chain in of {
            let gone = Verdict::Drain(chain.config.drain);
            let verdict = |subject: &Subject| judge(subject, gone, &chains, tables, known);
            chain.members.sweep(verdict);
        }
    }

    /// What would become of a connection that has just come in while the configuration may have
    /// been changing.
    pub(crate) fn judge(&self, subject: &Subject, tables: &Tables) -> Verdict {
        let gone = Verdict::Drain(Duration::ZERO);
        let known = &mut Judge::default();
        judge(subject, gone, &self.chains.load(), tables, known)
    }
}

/// A connection's places in the sets of its listener and its chain.
pub(crate) struct Entered {
    _connection: CutGuard<()>,
    _member: CutGuard<Subject>,
}

/// `gone`: what becomes of a connection whose chain is not there any more.
fn judge(
    subject: &Subject,
    gone: Verdict,
    chains: &Chains,
    tables: &Tables,
    known: &mut Judge,
) -> Verdict {
    let Some(now) = chains.choose(subject.sni.as_deref()) else {
        // It may go on for a while, if the bundle that it came by still vouches for it.
        let holds = match (&subject.chain.config.tls, &subject.proof) {
            (Some(tls), Some(proof)) => {
                let trust = tables.trust.get(&tls.trust);
                trust.is_some_and(|trust| known.holds(proof, &trust.store))
            }
            _ => true,
        };
        return if holds {
            gone
        } else {
            Verdict::Cut(Cut::TrustRemoved)
        };
    };
    match (&now.config.tls, &subject.proof) {
        (None, None) => {}
        (Some(tls), Some(proof)) => {
            let Some(trust) = tables.trust.get(&tls.trust) else {
                return Verdict::Cut(Cut::TrustRemoved);
            };
            let same = subject
                .trust
                .as_ref()
                .is_some_and(|t| Arc::ptr_eq(t, &trust.store));
            if !same && !known.holds(proof, &trust.store) {
                return Verdict::Cut(Cut::TrustRemoved);
            }
            if !tls.client_ids.is_empty() && !tls.client_ids.contains(&proof.id) {
                return Verdict::Cut(Cut::NotAllowed);
            }
        }
        _ => return Verdict::Cut(Cut::ChainRemoved),
    }
    if Arc::ptr_eq(now, &subject.chain) {
        return Verdict::Keep;
    }
    match (&now.config.network, &subject.chain.config.network) {
        (Network::Tcp(new), Network::Tcp(old)) if leads_elsewhere(&old.target, &new.target) => gone,
        (Network::Tcp(_), Network::Http(_)) | (Network::Http(_), Network::Tcp(_)) => gone,
        _ => judge_policies(subject, gone, now),
    }
}

/// Clusters that are chosen for each connection say by themselves whether theirs goes on.
fn leads_elsewhere(old: &TcpTarget, new: &TcpTarget) -> bool {
    match (old, new) {
        (TcpTarget::Cluster(old), TcpTarget::Cluster(new)) => old != new,
        (TcpTarget::Cluster(_), _) | (_, TcpTarget::Cluster(_)) => true,
        _ => false,
    }
}

/// As [`judge`], where a chain has other policies. Who is admitted no more is cut; where it is only
/// the name that is not served any more, that is the same as if what carried it had gone.
fn judge_policies(subject: &Subject, gone: Verdict, now: &Chain) -> Verdict {
    let peer = subject.proof.as_ref().map(|p| &p.id);
    let sni = subject.sni.as_deref();
    let before = match allowed(subject.chain.allow(), peer, sni) {
        Ok(policy) => policy,
        // A client whose requests were refused all along may ask on.
        Err(_) => return Verdict::Keep,
    };
    if allowed(now.allow(), peer, sni).is_ok() {
        return Verdict::Keep;
    }
    let policies = now.allow().unwrap_or_default();
    let known = policies
        .iter()
        .any(|p| p.principals.is_empty() || peer.is_some_and(|id| p.principals.contains(id)));
    let nothing_left = policies.is_empty() && before.is_some_and(|p| p.principals.is_empty());
    if known || nothing_left {
        gone
    } else {
        Verdict::Cut(Cut::NotAllowed)
    }
}

/// An address that is ours, on which nobody is heard yet.
pub(crate) struct Reserved {
    pub(crate) address: SocketAddr,
    socket: Socket,
}

/// Takes an address. One that was in use a moment ago by connections that are closing is no
/// hindrance, one that somebody listens on is.
pub(crate) fn reserve(address: SocketAddr) -> Result<Reserved, BindError> {
    let bind = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    match bind() {
        Ok(socket) => Ok(Reserved { address, socket }),
        Err(cause) => Err(BindError::new(address, cause)),
    }
}

impl Reserved {
    pub(crate) fn listen(self) -> Result<TcpListener, BindError> {
        let address = self.address;
        self.socket
            .listen(ACCEPT_BACKLOG)
            .and_then(|()| TcpListener::from_std(self.socket.into()))
            .map_err(|cause| BindError::new(address, cause))
    }
}

impl BindError {
    pub(crate) fn new(address: SocketAddr, cause: io::Error) -> Self {
        match cause.kind() {
            io::ErrorKind::AddrInUse => Self::InUse(address),
            _ => Self::Other { address, cause },
        }
    }
}

/// Accepts connections until told to stop, each in a task of its own.
pub(crate) async fn accept(
    socket: Arc<TcpListener>,
    shared: Arc<Shared>,
    tables: Arc<Tables>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = socket.accept() => accepted,
        };
        let (socket, client) = match accepted {
            Ok(accepted) => accepted,
            // The client has gone already.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
            // The socket is shut down just before the word comes.
            Err(_) if stop.is_cancelled() => return,
            Err(error) => {
                tracing::warn!(listener = &*shared.reporter.listener, %error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        shared.reporter.metrics.accepted.inc();
        let record = Record::new(shared.reporter.clone(), client);
        let Some(admission) = shared.admit() else {
            record.finish(End::ConnectionLimit);
            continue;
        };
        let (shared, tables) = (shared.clone(), tables.clone());
        tokio::spawn(connection::run(socket, shared, tables, record, admission));
    }
}
