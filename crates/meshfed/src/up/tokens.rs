//! Judges the tokens with which proxies join.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use meshfed_apiserver::{ApiServer, TokenError, TokenVerifier};
use meshfed_controlplane::ca_service::{AuthError, ServiceAccountRef, TokenAuthenticator};

/// The audience that Istio's agents ask for.
const ISTIO_AUDIENCE: &str = "istio-ca";
/// The audience of a token that was asked for without one, as by `kubectl create token`.
const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

/// Tokens of the mesh's own API server.
pub struct Tokens {
    verifier: TokenVerifier,
    client: Client,
}

impl Tokens {
    pub fn new(api: &ApiServer, client: &Client) -> Self {
        Self {
            verifier: api.token_verifier(),
            client: client.clone(),
        }
    }
}

impl TokenAuthenticator for Tokens {
    async fn authenticate(&self, token: &str) -> Result<ServiceAccountRef, AuthError> {
        let now = SystemTime::now();
        let account = match self.verifier.verify(token, ISTIO_AUDIENCE, now) {
            Err(TokenError::Audience { .. }) => self.verifier.verify(token, API_AUDIENCE, now),
            other => other,
        };
        let account = account.map_err(|error| AuthError::Refused(error.to_string()))?;
        Ok(ServiceAccountRef {
            namespace: account.namespace,
            name: account.name,
        })
    }

    async fn exists(&self, account: &ServiceAccountRef) -> Result<(), AuthError> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &account.namespace);
        match api.get_opt(&account.name).await {
            Ok(Some(found)) if found.metadata.deletion_timestamp.is_none() => Ok(()),
            Ok(_) => Err(AuthError::Refused(format!(
                "the ServiceAccount {}/{} is gone",
                account.namespace, account.name
            ))),
            Err(error) => Err(AuthError::Unavailable(Box::new(error))),
        }
    }
}
