//! Asking the control plane for a certificate.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meshfed_pki::{
    CsrError, IdError, Identity, IdentityCell, IdentityError, KeyError, KeyPair,
    MAX_IDENTITY_CHAIN, SpiffeId, new_csr,
};
use meshfed_xds::ca::client::IstioCertificateServiceClient;
use meshfed_xds::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use crate::control_plane::{ConnectError, ControlPlane};
use crate::token::{TokenError, TokenSource};

/// How long the control plane may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest answer that is read, in bytes.
const MAX_ANSWER_LEN: usize = 256 * 1024;

/// Gets certificates for one identity.
#[derive(Debug, Clone)]
pub struct CaClient {
    control_plane: ControlPlane,
    token: TokenSource,
    /// In the trust domain of the start.
    account: SpiffeId,
    ttl: Option<Duration>,
}

/// Why there is no certificate. All but [`Key`](Self::Key) and [`Csr`](Self::Csr) may pass with
/// time: tokens are replaced and control planes come back.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The names of this process fit into the trust domain of before only.
    #[error("there is no identity for this process in the trust domain of the mesh")]
    Identity(#[source] IdError),
    #[error("cannot make a key")]
    Key(#[source] KeyError),
    #[error("cannot make a signing request")]
    Csr(#[source] CsrError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the control plane gave no certificate for {id}")]
    Refused {
        id: SpiffeId,
        #[source]
        status: Box<Status>,
    },
    #[error("the control plane sent a certificate that cannot be used")]
    Unusable(#[source] IdentityError),
    /// The token is of another ServiceAccount than the one that this process is meant to be.
    #[error("the control plane sent a certificate for {got:?} instead of {wanted}")]
    WrongIdentity {
        wanted: SpiffeId,
        got: Option<SpiffeId>,
    },
    /// The clocks of the two machines differ by more than a certificate's life.
    #[error("the control plane sent a certificate that has expired; compare the clocks")]
    Expired,
}

impl CaClient {
    /// `id`: who the token's ServiceAccount is, and so whom the certificate will name. It moves with the
    /// control plane to other trust domains.
    pub fn new(control_plane: ControlPlane, token: TokenSource, id: SpiffeId) -> Self {
        Self {
            control_plane,
            token,
            account: id,
            ttl: None,
        }
    }

    /// Wishes for certificates of this life; the control plane may give another.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Whom the next certificate will name.
    pub fn id(&self) -> Result<SpiffeId, IdError> {
        let (namespace, account) = (self.account.namespace(), self.account.service_account());
        let server = self.control_plane.server();
        server.trust_domain().service_account(namespace, account)
    }

    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// A new key with a new certificate. `current` is shown to the control plane, and is proof
    /// enough by itself where there is no good token. One of the trust domain before, or that the mesh's root
    /// does not vouch for any more, is shown only then: a control plane that does not remember that domain, or
    /// has another root, would refuse the connection.
    pub async fn certificate(
        &self,
        current: &Arc<IdentityCell>,
    ) -> Result<Identity, CertificateError> {
        let key = KeyPair::generate().map_err(CertificateError::Key)?;
        let id = self.id().map_err(CertificateError::Identity)?;
        let csr = new_csr(&key, &id).map_err(CertificateError::Csr)?;
        let held = current.identity();
        let is_former = match &held {
            Some(held) if held.id.as_ref() == Some(&id) => {
                !self.control_plane.accepts(held).await?
            }
            Some(_) => true,
            None => false,
        };
        let by_token = match self.token.token().await {
            Ok(token) => {
                let nothing = Arc::new(IdentityCell::new(None));
                let shown = if is_former { &nothing } else { current };
                let answer = self
                    .ask(&id, shown.clone(), &csr, Some(token.clone()))
                    .await;
                match answer {
                    // It may be what was shown that the control plane does not take.
                    Err(error) if !is_former && held.is_some() && is_about_connection(&error) => {
                        self.ask(&id, nothing, &csr, Some(token)).await
                    }
                    answer => answer,
                }
            }
            Err(error) => Err(error.into()),
        };
        let answer = match by_token {
            Err(refused) if held.is_some() && is_about_token(&refused) => {
                let answer = self.ask(&id, current.clone(), &csr, None).await;
                // What people can do something about.
                answer.map_err(|error| if is_former { refused } else { error })?
            }
            answer => answer?,
        };
        check(&id, answer, &key)
    }

    async fn ask(
        &self,
        id: &SpiffeId,
        shown: Arc<IdentityCell>,
        csr: &str,
        token: Option<String>,
    ) -> Result<IstioCertificateResponse, CertificateError> {
        let channel = self.control_plane.connect_with(shown, true).await?;
        let mut client =
            IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_LEN);
        let answer = client.create_certificate(self.request(csr, token)).await;
        let answer = answer.map_err(|status| CertificateError::Refused {
            id: id.clone(),
            status: Box::new(status),
        })?;
        Ok(answer.into_inner())
    }

    fn request(&self, csr: &str, token: Option<String>) -> Request<IstioCertificateRequest> {
        let seconds = self.ttl.unwrap_or_default().as_secs();
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr.to_string(),
            validity_duration: i64::try_from(seconds).unwrap_or(i64::MAX),
            metadata: None,
        });
        request.set_timeout(ANSWER_TIMEOUT);
        // A token is visible ASCII, so it is always good for a header.
        let bearer =
            token.and_then(|t| MetadataValue::<Ascii>::try_from(format!("Bearer {t}")).ok());
        if let Some(mut bearer) = bearer {
            bearer.set_sensitive(true);
            request.metadata_mut().insert("authorization", bearer);
        }
        request
    }
}

fn check(
    id: &SpiffeId,
    mut answer: IstioCertificateResponse,
    key: &KeyPair,
) -> Result<Identity, CertificateError> {
    let chain = &mut answer.cert_chain;
    // The last one is the root, which the other end of a handshake has or does not believe.
    if chain.len() > 1 {
        chain.pop();
    }
    if chain.len() > MAX_IDENTITY_CHAIN {
        return Err(CertificateError::Unusable(IdentityError::ChainTooLong));
    }
    let identity = Identity::from_pem(&chain.join("\n"), &key.to_pkcs8_pem())
        .map_err(CertificateError::Unusable)?;
    if identity.id.as_ref() != Some(id) {
        return Err(CertificateError::WrongIdentity {
            wanted: id.clone(),
            got: identity.id,
        });
    }
    if identity.not_after <= SystemTime::now() {
        return Err(CertificateError::Expired);
    }
    Ok(identity)
}

/// In TLS 1.3 a client hears only after its handshake that its certificate was refused.
fn is_about_connection(error: &CertificateError) -> bool {
    match error {
        CertificateError::Connect(ConnectError::Connect { .. }) => true,
        CertificateError::Refused { status, .. } => matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
        ),
        _ => false,
    }
}

/// A certificate may do where the token does not.
pub(crate) fn is_about_token(error: &CertificateError) -> bool {
    match error {
        CertificateError::Token(_) => true,
        CertificateError::Refused { status, .. } => status.code() == Code::Unauthenticated,
        _ => false,
    }
}
