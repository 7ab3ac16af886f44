//! Keeping an identity fresh.

use std::error::Error;
use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use meshfed_pki::{Identity, IdentityCell, SpiffeId};
use meshfed_runtime::DrainWatch;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::ca_client::{CaClient, CertificateError, is_about_token};

/// Pause after the first failure; it doubles from one to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause while there is no certificate that is good.
const URGENT_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause while the one before is still good.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After each success, so that an authority whose certificates are due at once is not run over.
const REST: Duration = Duration::from_secs(1);
/// A machine may sleep and a clock may be set; the time of renewal is looked at again this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Counts what a keeper does.
#[derive(Debug, Clone, Default)]
pub struct IdentityMetrics {
    expiry: Gauge,
    issued: Counter,
    failures: Counter,
}

impl IdentityMetrics {
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_with_unit(
            "meshfed_identity_expiry",
            "When the own certificate ends, since 1970",
            Unit::Seconds,
            metrics.expiry.clone(),
        );
        registry.register(
            "meshfed_identity_issued",
            "Certificates received from the control plane",
            metrics.issued.clone(),
        );
        registry.register(
            "meshfed_identity_failures",
            "Attempts to get a certificate that failed",
            metrics.failures.clone(),
        );
        metrics
    }
}

/// Keeps an [`IdentityCell`] filled: gets the first certificate, and each next one well before the
/// one before ends, or at once when the mesh is in another trust domain, or has another root that does not
/// vouch for it. A control plane that is away changes nothing while a certificate is good.
#[derive(Debug)]
pub struct IdentityKeeper {
    client: CaClient,
    cell: Arc<IdentityCell>,
    changes: watch::Sender<Option<Arc<Identity>>>,
    metrics: IdentityMetrics,
}

impl IdentityKeeper {
    pub fn new(client: CaClient, metrics: IdentityMetrics) -> Self {
        Self {
            client,
            cell: Arc::new(IdentityCell::new(None)),
            changes: watch::Sender::new(None),
            metrics,
        }
    }

    /// What TLS configurations present; empty until the first certificate is there.
    pub fn cell(&self) -> Arc<IdentityCell> {
        self.cell.clone()
    }

    /// The identity in use and each one that follows.
    pub fn changes(&self) -> watch::Receiver<Option<Arc<Identity>>> {
        self.changes.subscribe()
    }

    /// Works until the drain is signalled.
    pub async fn run(self, drain: DrainWatch) {
        tokio::select! {
            () = drain.signaled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let control_plane = self.client.control_plane();
        let mut changes = Changes {
            moves: control_plane.server_changes(),
            roots: control_plane.root_changes(),
            partings: control_plane.partings(),
        };
        let mut failures = 0;
        let mut root = changes.roots.borrow().clone();
        // By the root that is there now. Looked at once for each root: if the next certificate is no better, the
        // one after it is not either.
        let mut is_disowned = false;
        // As control plane and certificate have parted. The next one may be no better, so this does not happen often.
        let mut replaced: Option<Instant> = None;
        loop {
            changes.moves.mark_unchanged();
            let now = SystemTime::now();
            let current = self.cell.identity();
            let parted = changes.partings.borrow_and_update().clone();
            if !is_disowned
                && let (Some(held), Some(parted)) = (&current, &parted)
                && Arc::ptr_eq(held, parted)
                && replaced.is_none_or(|at| at.elapsed() >= LONGEST_PAUSE)
            {
                (is_disowned, replaced) = (true, Some(Instant::now()));
            }
            let newest = changes.roots.borrow_and_update().clone();
            if newest != root
                && let Some(held) = &current
            {
                root = newest;
                match control_plane.accepts(held).await {
                    Ok(accepts) => is_disowned |= !accepts,
                    Err(error) => warn!("{}", with_causes(&error)),
                }
            }
            let is_ours = |held: &Arc<Identity>| {
                let domain = held.id.as_ref().map(SpiffeId::trust_domain);
                domain == Some(changes.moves.borrow().trust_domain())
            };
            let good = current.filter(is_ours).filter(|_| !is_disowned);
            let due = good.as_ref().map_or(now, |i| i.renew_at(now));
            let left = due.duration_since(now).unwrap_or_default();
            if !left.is_zero() {
                changes.or(left.min(LONGEST_SLEEP)).await;
                continue;
            }
            match self.client.certificate(&self.cell).await {
                Ok(identity) => {
                    failures = 0;
                    is_disowned = false;
                    self.take(identity);
                    changes.or(REST).await;
                }
                Err(e) => {
                    self.metrics.failures.inc();
                    let good = good.is_some_and(|i| i.not_after > now);
                    let pause = pause(failures, good);
                    failures += 1;
                    let id = self.client.id().ok().map(|id| id.to_string());
                    warn!(
                        id,
                        again_in_ms = pause.as_millis(),
                        "no certificate: {}{}",
                        with_causes(&e),
                        advice(&e),
                    );
                    changes.or(pause).await;
                }
            }
        }
    }

    fn take(&self, identity: Identity) {
        let ends = identity.not_after.duration_since(UNIX_EPOCH);
        let ends = ends.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
        let id = identity.id.as_ref().map(SpiffeId::to_string);
        info!(id, ends, "have a certificate");
        self.metrics.expiry.set(ends);
        self.metrics.issued.inc();
        self.cell.set(identity);
        self.changes.send_replace(self.cell.identity());
    }
}

/// What may make a certificate useless before its time. The senders live as long as the keeper.
struct Changes {
    moves: watch::Receiver<SpiffeId>,
    roots: watch::Receiver<Arc<str>>,
    partings: watch::Receiver<Option<Arc<Identity>>>,
}

impl Changes {
    /// Waits that long, or until the mesh is in another trust domain, has another root.
    async fn or(&mut self, wait: Duration) {
        tokio::select! {
            _ = self.moves.changed() => {}
            _ = self.roots.changed() => {}
            _ = self.partings.changed() => {}
            () = sleep(wait) => {}
        }
    }
}

/// What people can do about it.
fn advice(error: &CertificateError) -> &'static str {
    match is_about_token(error) {
        true => "; write a new token of the ServiceAccount where the one before was",
        false => "",
    }
}

/// Half of the pause is chance, so that proxies that lost their control plane together do not all
/// come back at once.
fn pause(failures: u32, has_good_certificate: bool) -> Duration {
    let longest = if has_good_certificate {
        LONGEST_PAUSE
    } else {
        URGENT_PAUSE
    };
    let full = FIRST_PAUSE
        .saturating_mul(1 << failures.min(16))
        .min(longest);
    let chance = RandomState::new().hash_one(failures) as u32;
    full / 2 + (full / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        // Writing to a String does not fail.
        let _ = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_that_depends_on_what_is_at_stake() {
        for failures in 0..40 {
            let urgent = pause(failures, false);
            assert!(
                urgent >= FIRST_PAUSE / 2 && urgent <= URGENT_PAUSE,
                "{urgent:?}"
            );
            let relaxed = pause(failures, true);
            assert!(relaxed <= LONGEST_PAUSE, "{relaxed:?}");
        }
        assert!(pause(20, true) >= LONGEST_PAUSE / 2);
    }
}
