//! The mesh's certificate authority, kept in the API, and the control plane's own certificate.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use meshfed_api::CA_SECRET;
use meshfed_pki::{
    CaError, CaPem, CertificateAuthority, IdentityCell, IssueError, SpiffeId, TrustDomain,
    TrustError, TrustStore,
};

/// The Secret in which an authority that we made ourselves is kept.
pub(crate) const OWN_CA_SECRET: &str = "istio-ca-secret";
/// Life of the control plane's own certificate.
const SERVER_TTL: Duration = Duration::from_secs(24 * 3600);
/// After a failure, and while nothing is due, it is looked at again after one of these: a machine may
/// sleep and a clock may be set.
const LEAST_SLEEP: Duration = Duration::from_secs(1);
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Why there is no certificate authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot read the Secret {namespace}/{name} with the certificate authority")]
    Read {
        namespace: String,
        name: &'static str,
        #[source]
        source: kube::Error,
    },
    #[error("cannot keep the new certificate authority in the Secret {namespace}/{name}")]
    Keep {
        namespace: String,
        name: &'static str,
        #[source]
        source: kube::Error,
    },
    #[error(
        "the Secret {namespace}/{name} has no {key}; it must hold root-cert.pem, ca-cert.pem, ca-key.pem and cert-chain.pem as PEM text"
    )]
    MissingKey {
        namespace: String,
        name: &'static str,
        key: &'static str,
    },
    #[error("the certificate authority in the Secret {namespace}/{name} cannot be used: {source}")]
    Unusable {
        namespace: String,
        name: &'static str,
        source: CaError,
    },
    #[error("cannot make a certificate authority")]
    Make(#[source] CaError),
}

/// The authority of the mesh: the one in the Secret `cacerts`, else our own, made at the first
/// start and kept in `istio-ca-secret`.
pub async fn authority(
    client: &Client,
    namespace: &str,
    mesh: &str,
) -> Result<CertificateAuthority, AuthorityError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for name in [CA_SECRET, OWN_CA_SECRET] {
        let secret = api
            .get_opt(name)
            .await
            .map_err(|source| AuthorityError::Read {
                namespace: namespace.to_owned(),
                name,
                source,
            })?;
        if let Some(secret) = secret {
            return from_secret(&secret, namespace, name);
        }
    }
    let made =
        CertificateAuthority::self_signed(mesh, SystemTime::now()).map_err(AuthorityError::Make)?;
    let secret = to_secret(&made.to_pem(), namespace);
    api.create(&PostParams::default(), &secret)
        .await
        .map_err(|source| AuthorityError::Keep {
            namespace: namespace.to_owned(),
            name: OWN_CA_SECRET,
            source,
        })?;
    Ok(made)
}

fn from_secret(
    secret: &Secret,
    namespace: &str,
    name: &'static str,
) -> Result<CertificateAuthority, AuthorityError> {
    let data = secret.data.as_ref();
    let text = |key: &'static str| {
        data.and_then(|d| d.get(key))
            .and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
            .ok_or_else(|| AuthorityError::MissingKey {
                namespace: namespace.to_owned(),
                name,
                key,
            })
    };
    let pem = CaPem {
        root_cert: text("root-cert.pem")?,
        ca_cert: text("ca-cert.pem")?,
        ca_key: text("ca-key.pem")?,
        cert_chain: text("cert-chain.pem")?,
    };
    CertificateAuthority::from_pem(&pem).map_err(|source| AuthorityError::Unusable {
        namespace: namespace.to_owned(),
        name,
        source,
    })
}

pub(crate) fn to_secret(pem: &CaPem, namespace: &str) -> Secret {
    let entry = |key: &str, text: &str| (key.to_owned(), ByteString(text.as_bytes().to_vec()));
    Secret {
        metadata: ObjectMeta {
            name: Some(OWN_CA_SECRET.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("istio.io/ca-root".to_owned()),
        data: Some(BTreeMap::from([
            entry("root-cert.pem", &pem.root_cert),
            entry("ca-cert.pem", &pem.ca_cert),
            entry("ca-key.pem", &pem.ca_key),
            entry("cert-chain.pem", &pem.cert_chain),
        ])),
        ..Secret::default()
    }
}

/// Who the control plane is, for everything that it serves and dials.
#[derive(Debug)]
pub struct OwnIdentity {
    pub authority: Arc<ArcSwap<CertificateAuthority>>,
    /// Its certificate: DNS names and address for people and proxies, a SPIFFE id for the mesh.
    pub cell: Arc<IdentityCell>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
}

/// Why the control plane cannot have a certificate.
#[derive(Debug, thiserror::Error)]
pub enum OwnIdentityError {
    #[error("cannot issue the control plane's own certificate")]
    Issue(#[from] IssueError),
    #[error("the root certificate of this mesh cannot be used: {0}")]
    Trust(#[from] TrustError),
}

impl OwnIdentity {
    /// Issues the first certificate, without a SPIFFE id.
    pub fn new(
        authority: CertificateAuthority,
        names: Vec<String>,
        addresses: Vec<IpAddr>,
    ) -> Result<Self, OwnIdentityError> {
        let own = Self {
            authority: Arc::new(ArcSwap::from_pointee(authority)),
            cell: Arc::new(IdentityCell::new(None)),
            names,
            addresses,
        };
        own.issue(None)?;
        Ok(own)
    }

    /// Issues a new certificate with this id.
    pub fn issue(&self, id: Option<&SpiffeId>) -> Result<(), OwnIdentityError> {
        let identity = self.authority.load().issue_server(
            &self.names,
            &self.addresses,
            id,
            SERVER_TTL,
            SystemTime::now(),
        )?;
        self.cell.set(identity);
        Ok(())
    }

    /// Issues a new certificate if the one of now has another id.
    pub fn ensure(&self, id: &SpiffeId) -> Result<(), OwnIdentityError> {
        match self.cell.identity() {
            Some(own) if own.id.as_ref() == Some(id) => Ok(()),
            _ => self.issue(Some(id)),
        }
    }

    /// What vouches for our own mesh.
    pub fn trust(&self, domain: &TrustDomain) -> Result<Arc<TrustStore>, OwnIdentityError> {
        self.trust_with(domain, &[])
    }

    /// The same, and for trust domains that the mesh had before: for these only by the authority itself, since
    /// whoever else has its root may have them now.
    pub fn trust_with(
        &self,
        domain: &TrustDomain,
        former: &[TrustDomain],
    ) -> Result<Arc<TrustStore>, OwnIdentityError> {
        let authority = self.authority.load();
        let before = former.iter().filter(|former| *former != domain);
        let mut bundles: BTreeMap<TrustDomain, &str> = before
            .map(|former| (former.clone(), authority.certificate_pem()))
            .collect();
        bundles.insert(domain.clone(), authority.root_pem());
        Ok(Arc::new(TrustStore::parse(&bundles)?))
    }

    /// Keeps the certificate fresh, with the id that the plan gives the control plane.
    pub async fn keep(self: Arc<Self>, mut outcomes: crate::apply::Outcomes) {
        loop {
            let newest = outcomes.borrow_and_update().clone();
            let wanted = newest.map(|o| o.plan.control_plane_id.clone());
            let now = SystemTime::now();
            let own = self.cell.identity();
            let due = own.as_ref().map(|i| i.renew_at(now));
            let is_other = own.is_none_or(|own| own.id != wanted);
            if (is_other || due.is_none_or(|at| at <= now))
                && let Err(error) = self.issue(wanted.as_ref())
            {
                tracing::error!(%error, "the control plane's certificate was not renewed");
            }
            let now = SystemTime::now();
            let due = self.cell.identity().map(|i| i.renew_at(now));
            let wait = due
                .and_then(|at| at.duration_since(now).ok())
                .unwrap_or_default();
            tokio::select! {
                changed = outcomes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wait.clamp(LEAST_SLEEP, LONGEST_SLEEP)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
