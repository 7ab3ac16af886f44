//! Sees that the Secret with the mesh's certificate authority is there for the next start.
//!
//! Without it that would make another authority, and every peer and workload would have to be given
//! another root. As long as we run we still have the key.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use meshfed_api::CA_SECRET;
use meshfed_pki::CertificateAuthority;
use tracing::{debug, warn};

use crate::apply::explain;
use crate::identity::{OWN_CA_SECRET, to_secret};

/// It is looked at this often; Secrets are not watched.
const PERIOD: Duration = Duration::from_secs(5);

/// Looks at it for as long as it is polled.
pub(crate) async fn keep(
    client: Client,
    namespace: String,
    authority: Arc<ArcSwap<CertificateAuthority>>,
) {
    let mut keeper = Keeper {
        secrets: Api::namespaced(client, &namespace),
        namespace,
        authority,
        source: None,
        told: false,
    };
    loop {
        if let Err(error) = keeper.look().await {
            let error = explain(&error);
            debug!(
                error,
                "cannot see whether the certificate authority is kept"
            );
        }
        tokio::time::sleep(PERIOD).await;
    }
}

struct Keeper {
    secrets: Api<Secret>,
    namespace: String,
    authority: Arc<ArcSwap<CertificateAuthority>>,
    /// The Secret from which the authority is; known from the first look on.
    source: Option<&'static str>,
    /// What is amiss was logged.
    told: bool,
}

impl Keeper {
    async fn look(&mut self) -> Result<(), kube::Error> {
        let given = self.secrets.get_opt(CA_SECRET).await?.is_some();
        let own = self.secrets.get_opt(OWN_CA_SECRET).await?.is_some();
        let first = if given { CA_SECRET } else { OWN_CA_SECRET };
        let source = *self.source.get_or_insert(first);
        // One that is given for the next start takes the place of ours.
        if given || (own && source == OWN_CA_SECRET) {
            self.told = false;
        } else if source == OWN_CA_SECRET {
            self.put_back().await;
        } else if !std::mem::replace(&mut self.told, true) {
            let next = if own {
                "use"
            } else {
                "make another one and keep it in"
            };
            let namespace = &self.namespace;
            warn!(
                "the Secret {namespace}/{CA_SECRET} with the certificate authority of this mesh is gone: it is used \
                 until this control plane ends, and the next start will {next} {OWN_CA_SECRET}, so that peers and \
                 workloads need another root; apply the Secret again unless that is meant"
            );
        }
        Ok(())
    }

    async fn put_back(&mut self) {
        let namespace = &self.namespace;
        let secret = to_secret(&self.authority.load().to_pem(), namespace);
        match self.secrets.create(&PostParams::default(), &secret).await {
            Ok(_) => {
                self.told = false;
                warn!(
                    "the Secret {namespace}/{OWN_CA_SECRET} with the certificate authority of this mesh was gone and \
                     was put back; another authority is given in the Secret {CA_SECRET} before a start"
                );
            }
            // Another instance was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => self.told = false,
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    let error = explain(&error);
                    warn!(
                        error,
                        "the Secret {namespace}/{OWN_CA_SECRET} with the certificate authority of this mesh is gone \
                         and cannot be put back yet; if this control plane ends before it can, the next start makes \
                         another one, and peers and workloads need its root: see that the namespace is there"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;
    use std::sync::Mutex;
    use std::time::SystemTime;

    use http::{Method, Request, Response, StatusCode};
    use http_body_util::Full;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// Secrets by name; `None` while their namespace is not there.
    type Secrets = Arc<Mutex<Option<BTreeMap<String, Value>>>>;

    fn answer(secrets: &Secrets, method: &Method, path: &str, body: &[u8]) -> (StatusCode, Value) {
        let mut secrets = secrets.lock().unwrap();
        let not_found = || {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "reason": "NotFound", "message": "not found", "code": 404});
            (StatusCode::NOT_FOUND, status)
        };
        let Some(secrets) = secrets.as_mut() else {
            return not_found();
        };
        if *method == Method::POST {
            let secret: Value = serde_json::from_slice(body).unwrap();
            let name = secret["metadata"]["name"].as_str().unwrap().to_owned();
            secrets.insert(name, secret.clone());
            return (StatusCode::CREATED, secret);
        }
        let name = path.rsplit('/').next().unwrap();
        let found = secrets.get(name).cloned();
        found.map_or_else(not_found, |secret| (StatusCode::OK, secret))
    }

    fn api(secrets: &Secrets) -> Client {
        let secrets = secrets.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let secrets = secrets.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let path = parts.uri.path();
                let (code, body) = answer(&secrets, &parts.method, path, &body);
                let mut response = Response::new(Full::from(body.to_string()));
                *response.status_mut() = code;
                Ok::<_, Infallible>(response)
            }
        });
        Client::new(service, "default")
    }

    fn authority() -> Arc<ArcSwap<CertificateAuthority>> {
        let made = CertificateAuthority::self_signed("red", SystemTime::now()).unwrap();
        Arc::new(ArcSwap::from_pointee(made))
    }

    fn names(secrets: &Secrets) -> Vec<String> {
        let secrets = secrets.lock().unwrap();
        secrets.iter().flat_map(BTreeMap::keys).cloned().collect()
    }

    async fn some_time() {
        tokio::time::sleep(PERIOD * 3).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_own_authority_that_was_deleted_is_put_back_as_soon_as_its_namespace_is_there() {
        let authority = authority();
        let pem = authority.load().to_pem();
        let kept = serde_json::to_value(to_secret(&pem, "system")).unwrap();
        let there = BTreeMap::from([(OWN_CA_SECRET.to_owned(), kept.clone())]);
        let secrets: Secrets = Arc::new(Mutex::new(Some(there)));
        let keeping = keep(api(&secrets), "system".to_owned(), authority.clone());
        let keeping = tokio::spawn(keeping);
        some_time().await;
        *secrets.lock().unwrap() = None;
        some_time().await;
        *secrets.lock().unwrap() = Some(BTreeMap::new());
        some_time().await;
        let back = secrets.lock().unwrap().clone().unwrap();
        assert_eq!(back[OWN_CA_SECRET]["data"], kept["data"]);

        // One that is given instead is what the next start goes by.
        let given = BTreeMap::from([(CA_SECRET.to_owned(), kept)]);
        *secrets.lock().unwrap() = Some(given);
        some_time().await;
        assert_eq!(names(&secrets), [CA_SECRET]);
        keeping.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn an_authority_that_was_given_is_not_written_by_us() {
        let given = BTreeMap::from([(CA_SECRET.to_owned(), json!({}))]);
        let secrets: Secrets = Arc::new(Mutex::new(Some(given)));
        let keeping = tokio::spawn(keep(api(&secrets), "system".to_owned(), authority()));
        some_time().await;
        *secrets.lock().unwrap() = Some(BTreeMap::new());
        some_time().await;
        assert_eq!(names(&secrets), [""; 0]);
        keeping.abort();
    }
}
