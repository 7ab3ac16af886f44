//! Who calls, and what they may do.
//!
//! There are two kinds of callers with names: administrators, by a client certificate that the
//! mesh's CA issued for that purpose (organisation `system:masters`), who may do everything; and
//! ServiceAccounts, by a token, who may look at what the server offers and at themselves, and
//! nothing else here. A workload's certificate says nothing to this server, though the same CA
//! signed it.

mod certificate;
pub mod reviews;

use http::{HeaderMap, HeaderName, Method, header};

pub use self::certificate::{AdminCertificate, admin_from_certificates};
use crate::{
    api::Api,
    error::{ApiError, Subject},
    token::{self, ServiceAccountRef},
};

/// Members may do everything.
pub const MASTERS: &str = "system:masters";

/// Who sends a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    Admin { name: String },
    ServiceAccount(ServiceAccountRef),
    Anonymous,
}

impl Caller {
    /// The caller of the in-process service.
    pub fn in_process() -> Self {
        Self::Admin {
            name: "system:meshfed".to_owned(),
        }
    }

    /// Judges what a request brings. `admin` is what the connection's certificate proved. Nobody acts as
    /// somebody else: a request that asks for it would otherwise be done, and told of, as the caller's own.
    pub fn authenticate(
        api: &Api,
        admin: Option<&AdminCertificate>,
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        let caller = Self::identify(api, admin, headers)?;
        let asks = |name: &&HeaderName| name.as_str().starts_with("impersonate-");
        match headers.keys().find(asks) {
            Some(header) if caller != Self::Anonymous => {
                Err(ApiError::impersonation(header.as_str()))
            }
            _ => Ok(caller),
        }
    }

    fn identify(
        api: &Api,
        admin: Option<&AdminCertificate>,
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        if let Some(admin) = admin.filter(|admin| admin.is_valid_at(api.now())) {
            return Ok(Self::Admin {
                name: admin.common_name.clone(),
            });
        }
        let Some(header) = headers.get(header::AUTHORIZATION) else {
            return Ok(Self::Anonymous);
        };
        let token = header.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then_some(token.trim())
        });
        let Some(token) = token else {
            return Err(ApiError::unauthorized("Unauthorized"));
        };
        match token::verify(api, token, api.signer.issuer(), api.now()) {
            Ok(account) => Ok(Self::ServiceAccount(account)),
            Err(error) => {
                tracing::info!(%error, "a token was refused");
                Err(ApiError::unauthorized("Unauthorized"))
            }
        }
    }

    pub fn name(&self) -> String {
        match self {
            Self::Admin { name } => name.clone(),
            Self::ServiceAccount(account) => account.user_name(),
            Self::Anonymous => "system:anonymous".to_owned(),
        }
    }

    pub fn groups(&self) -> Vec<String> {
        let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        match self {
            Self::Admin { .. } => named(&[MASTERS, "system:authenticated"]),
            Self::ServiceAccount(account) => vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{}", account.namespace),
                "system:authenticated".to_owned(),
            ],
            Self::Anonymous => named(&["system:unauthenticated"]),
        }
    }

    pub fn uid(&self) -> Option<&str> {
        match self {
            Self::ServiceAccount(account) => Some(&account.uid),
            Self::Admin { .. } | Self::Anonymous => None,
        }
    }

    /// Whether a request for a resource is allowed.
    pub fn may(&self, attributes: &Attributes<'_>) -> bool {
        match self {
            Self::Admin { .. } => true,
            Self::ServiceAccount(_) => {
                attributes.verb == "create"
                    && matches!(
                        (attributes.group, attributes.resource),
                        ("authentication.k8s.io", "selfsubjectreviews")
                            | (
                                "authorization.k8s.io",
                                "selfsubjectaccessreviews" | "selfsubjectrulesreviews"
                            )
                    )
            }
            Self::Anonymous => false,
        }
    }

    /// Whether a path that is no resource may be read. What is open to all is decided before.
    pub fn may_read(&self, path: &str) -> bool {
        match self {
            Self::Admin { .. } => true,
            Self::ServiceAccount(_) => ["/api", "/apis", "/openapi", "/version"]
                .iter()
                .any(|allowed| path == *allowed || path.starts_with(&format!("{allowed}/"))),
            Self::Anonymous => false,
        }
    }

    /// Refuses unless allowed.
    pub fn authorize(&self, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        if *self == Self::Anonymous {
            return Err(ApiError::unauthorized("Unauthorized"));
        }
        if self.may(attributes) {
            return Ok(());
        }
        Err(ApiError::forbidden(
            Subject::new(attributes.group, attributes.resource, attributes.name),
            attributes.refusal(self),
        ))
    }

    pub fn authorize_path(&self, method: &Method, path: &str) -> Result<(), ApiError> {
        if *self == Self::Anonymous {
            return Err(ApiError::unauthorized("Unauthorized"));
        }
        if self.may_read(path) {
            return Ok(());
        }
        let method = method.as_str().to_ascii_lowercase();
        Err(ApiError::forbidden_path(&self.name(), &method, path))
    }
}

/// What a request wants to do.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    /// With its subresource after a slash.
    pub resource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}

impl Attributes<'_> {
    fn refusal(&self, caller: &Caller) -> String {
        let place = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        format!(
            "User {:?} cannot {} resource {:?} in API group {:?} {place}",
            caller.name(),
            self.verb,
            self.resource,
            self.group
        )
    }
}
