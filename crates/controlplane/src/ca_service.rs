//! The certificate authority as workloads see it: `istio.v1.auth.IstioCertificateService`.
//!
//! A workload proves its ServiceAccount by a token, or by a certificate of ours that it already
//! has. The identity in the new certificate comes from that proof alone; what the request asks for
//! is not looked at. Keys never come here.

mod limit;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use meshfed_pki::{CertificateAuthority, IssueError, IssuedChain, SpiffeId, TrustDomain};
use meshfed_xds::ca::{
    IstioCertificateRequest, IstioCertificateResponse, server::IstioCertificateService,
};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::grpc::Peer;
use limit::RateLimit;

/// Life of a certificate if the request does not say, and the longest that is given.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// The shortest life that is given.
pub const MIN_TTL: Duration = Duration::from_secs(15 * 60);
/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN_LEN: usize = 16 * 1024;
/// Requests that are worked on at a time, at most.
const MAX_IN_FLIGHT: usize = 64;
/// How long a request waits for its turn, and how long a token may take to be checked.
const PATIENCE: Duration = Duration::from_secs(10);

/// A ServiceAccount of this mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceAccountRef {
    pub namespace: String,
    pub name: String,
}

/// Why a proof was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The proof is no good: expired, for another audience, forged, of a ServiceAccount that is
    /// gone. Said to the client.
    #[error("the proof of identity was refused: {0}")]
    Refused(String),
    /// It could not be checked; the client may try again.
    #[error("the proof of identity could not be checked")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Checks proofs of identity.
pub trait TokenAuthenticator: Send + Sync + 'static {
    /// Whose token this is.
    fn authenticate(
        &self,
        token: &str,
    ) -> impl Future<Output = Result<ServiceAccountRef, AuthError>> + Send;

    /// Whether a ServiceAccount still exists; asked when a certificate is renewed by the one
    /// before, so that the end of the ServiceAccount ends the renewals.
    fn exists(
        &self,
        account: &ServiceAccountRef,
    ) -> impl Future<Output = Result<(), AuthError>> + Send;
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProofLabel {
    proof: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Who belongs to the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub trust_domain: TrustDomain,
    /// The members, and the control plane's own namespace.
    pub namespaces: BTreeSet<String>,
}

/// What the service counts.
#[derive(Debug, Clone, Default)]
pub struct CaMetrics {
    issued: Family<ProofLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
}

impl CaMetrics {
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "meshfed_ca_certificates_issued",
            "Workload certificates issued, by the proof of identity",
            metrics.issued.clone(),
        );
        registry.register(
            "meshfed_ca_requests_refused",
            "Certificate requests that were refused, by reason",
            metrics.refused.clone(),
        );
        metrics
    }
}

/// The service. Wrap it in `IstioCertificateServiceServer` with a message size limit of
/// [`MAX_MESSAGE`].
pub struct CaService<A> {
    authority: Arc<ArcSwap<CertificateAuthority>>,
    /// `None` until there is a ServiceMeshControlPlane.
    mesh: watch::Receiver<Option<Membership>>,
    authenticator: A,
    metrics: CaMetrics,
    turns: Semaphore,
    rate: RateLimit<SpiffeId>,
}

/// The longest request message, in bytes: a signing request and little else.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// A refusal on its way to the client, the log and the metrics.
struct Refused {
    reason: &'static str,
    status: Status,
}

impl Refused {
    fn new(reason: &'static str, status: Status) -> Self {
        Self { reason, status }
    }
}

/// How the client proved its identity.
#[derive(Debug, Clone, Copy)]
enum Proof {
    Token,
    Certificate,
    /// Of the account that it is of now, in a trust domain that the mesh had before.
    FormerCertificate,
}

impl Proof {
    const fn label(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::FormerCertificate => "former_certificate",
        }
    }
}

impl<A: TokenAuthenticator> CaService<A> {
    /// The authority can be exchanged while the service runs.
    pub fn new(
        authority: Arc<ArcSwap<CertificateAuthority>>,
        mesh: watch::Receiver<Option<Membership>>,
        authenticator: A,
        metrics: CaMetrics,
    ) -> Self {
        Self {
            authority,
            mesh,
            authenticator,
            metrics,
            turns: Semaphore::new(MAX_IN_FLIGHT),
            rate: RateLimit::new(),
        }
    }

    async fn create(
        &self,
        peer: &Peer,
        request: Request<IstioCertificateRequest>,
    ) -> Result<(IssuedChain, String, SpiffeId, Proof), Refused> {
        let busy = || {
            Refused::new(
                "busy",
                Status::resource_exhausted("too many requests; try again"),
            )
        };
        let _turn = tokio::time::timeout(PATIENCE, self.turns.acquire())
            .await
            .map_err(|_| busy())?;
        let (id, proof) = tokio::time::timeout(PATIENCE, self.identify(peer, &request))
            .await
            .map_err(|_| busy())??;
        if !self.rate.allow(&id) {
            return Err(Refused::new(
                "rate_limited",
                Status::resource_exhausted(format!("too many certificates for {id}; try again")),
            ));
        }
        let request = request.into_inner();
        let ttl = ttl(request.validity_duration);
        let authority = self.authority.load_full();
        let signed = tokio::task::spawn_blocking({
            let id = id.clone();
            move || {
                let issued = authority.sign_workload(&request.csr, &id, ttl, SystemTime::now())?;
                Ok::<_, IssueError>((issued, authority.root_pem().to_string()))
            }
        });
        let (issued, root) = match signed.await {
            Ok(Ok(signed)) => signed,
            Ok(Err(error)) => return Err(refused_csr(&error)),
            Err(_) => return Err(Refused::new("internal", Status::internal("signing failed"))),
        };
        Ok((issued, root, id, proof))
    }

    /// The identity of a ServiceAccount, if its namespace belongs to the mesh.
    fn identity(&self, account: &ServiceAccountRef) -> Result<SpiffeId, Refused> {
        let mesh = self.mesh.borrow();
        let mesh = mesh.as_ref().ok_or_else(|| {
            Refused::new(
                "no_mesh",
                Status::unavailable("there is no ServiceMeshControlPlane yet"),
            )
        })?;
        if !mesh.namespaces.contains(&account.namespace) {
            return Err(Refused::new(
                "no_member",
                Status::permission_denied(format!(
                    "the namespace {} is no member of the mesh",
                    account.namespace
                )),
            ));
        }
        mesh.trust_domain
            .service_account(&account.namespace, &account.name)
            .map_err(|e| Refused::new("bad_name", Status::invalid_argument(e.to_string())))
    }

    /// A token decides alone, even if it is refused; only without one the certificate counts.
    async fn identify(
        &self,
        peer: &Peer,
        request: &Request<IstioCertificateRequest>,
    ) -> Result<(SpiffeId, Proof), Refused> {
        if let Some(token) = bearer(request)? {
            let account = self
                .authenticator
                .authenticate(token)
                .await
                .map_err(|e| refused_proof(&e))?;
            let id = self.identity(&account)?;
            return Ok((id, Proof::Token));
        }
        let Some(certificate) = peer.certificate.as_ref().or(peer.former.as_ref()) else {
            return Err(Refused::new(
                "no_proof",
                Status::unauthenticated(
                    "send a ServiceAccount token as `authorization: Bearer <token>`, or a certificate of this mesh",
                ),
            ));
        };
        let account = ServiceAccountRef {
            namespace: certificate.id.namespace().to_string(),
            name: certificate.id.service_account().to_string(),
        };
        let id = self.identity(&account)?;
        let proof = match peer.former {
            Some(_) => Proof::FormerCertificate,
            None if id == certificate.id => Proof::Certificate,
            None => {
                return Err(Refused::new(
                    "wrong_trust_domain",
                    Status::permission_denied("the certificate is of another trust domain"),
                ));
            }
        };
        self.authenticator
            .exists(&account)
            .await
            .map_err(|e| refused_proof(&e))?;
        Ok((id, proof))
    }
}

#[tonic::async_trait]
impl<A: TokenAuthenticator> IstioCertificateService for CaService<A> {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let Some(peer) = request.extensions().get::<Peer>().cloned() else {
            return Err(Status::internal("the connection has no peer"));
        };
        match self.create(&peer, request).await {
            Ok((issued, root, id, proof)) => {
                let label = ProofLabel {
                    proof: proof.label(),
                };
                self.metrics.issued.get_or_create(&label).inc();
                info!(
                    %id,
                    proof = proof.label(),
                    peer = %peer.address,
                    seconds = issued
                        .not_after
                        .duration_since(SystemTime::now())
                        .unwrap_or_default()
                        .as_secs(),
                    "issued a certificate"
                );
                let mut cert_chain = issued.certificates;
                // The last entry is the root, by convention of this API.
                cert_chain.push(root);
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(Refused { reason, status }) => {
                self.metrics
                    .refused
                    .get_or_create(&ReasonLabel { reason })
                    .inc();
                warn!(
                    peer = %peer.address,
                    reason,
                    "refused a certificate request: {}",
                    status.message()
                );
                Err(status)
            }
        }
    }
}

fn ttl(asked_seconds: i64) -> Duration {
    match u64::try_from(asked_seconds) {
        Ok(0) | Err(_) => MAX_TTL,
        Ok(seconds) => Duration::from_secs(seconds).clamp(MIN_TTL, MAX_TTL),
    }
}

fn bearer<T>(request: &Request<T>) -> Result<Option<&str>, Refused> {
    let Some(value) = request.metadata().get("authorization") else {
        return Ok(None);
    };
    let malformed = || {
        Refused::new(
            "bad_token",
            Status::unauthenticated("the authorization header is not `Bearer <token>`"),
        )
    };
    let value = value.to_str().map_err(|_| malformed())?;
    let (scheme, token) = value.split_once(' ').ok_or_else(malformed)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > MAX_TOKEN_LEN {
        return Err(malformed());
    }
    Ok(Some(token))
}

fn refused_proof(error: &AuthError) -> Refused {
    match error {
        AuthError::Refused(_) => {
            Refused::new("proof_refused", Status::unauthenticated(error.to_string()))
        }
        AuthError::Unavailable(cause) => {
            warn!(%cause, "a proof of identity could not be checked");
            Refused::new("unavailable", Status::unavailable(error.to_string()))
        }
    }
}

fn refused_csr(error: &IssueError) -> Refused {
    match error {
        IssueError::CsrTooLong
        | IssueError::CsrUnreadable
        | IssueError::CsrSignature
        | IssueError::CsrKey
        | IssueError::Name(_) => {
            Refused::new("bad_csr", Status::invalid_argument(error.to_string()))
        }
        IssueError::CaExpired { .. } => {
            Refused::new("ca_expired", Status::failed_precondition(error.to_string()))
        }
        IssueError::Key(_) | IssueError::Sign(_) | IssueError::Identity(_) => {
            Refused::new("internal", Status::internal(error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_lives_fifteen_minutes_to_a_day() {
        assert_eq!(ttl(0), MAX_TTL);
        assert_eq!(ttl(-1), MAX_TTL);
        assert_eq!(ttl(1), MIN_TTL);
        assert_eq!(ttl(3600), Duration::from_secs(3600));
        assert_eq!(ttl(i64::MAX), MAX_TTL);
    }

    #[test]
    fn only_a_bearer_token_of_sane_length_is_read() {
        let with = |value: &str| {
            let mut request = Request::new(());
            request
                .metadata_mut()
                .insert("authorization", value.parse().unwrap());
            bearer(&request)
                .map(|token| token.map(str::to_string))
                .map_err(|refused| refused.reason)
        };
        assert!(bearer(&Request::new(())).is_ok_and(|token| token.is_none()));
        assert_eq!(with("Bearer abc"), Ok(Some("abc".to_string())));
        assert_eq!(with("bearer  abc "), Ok(Some("abc".to_string())));
        for bad in [
            "Basic abc",
            "abc",
            "Bearer ",
            &format!("Bearer {}", "a".repeat(MAX_TOKEN_LEN + 1)),
        ] {
            assert_eq!(with(bad), Err("bad_token"));
        }
    }
}
