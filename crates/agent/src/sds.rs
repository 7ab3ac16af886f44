//! The secret discovery service, for the one Envoy on the other end of the socket.
//!
//! Both forms of the protocol are two views of one [`Subscription`]: which names are asked for, and
//! which version of each was sent.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures::Stream;
use meshfed_runtime::DrainWatch;
use meshfed_xds::TypeUrl;
use meshfed_xds::proto::secret_discovery_service_server::SecretDiscoveryService;
use meshfed_xds::proto::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
    Status as ErrorDetail,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use crate::secrets::{Secrets, Versioned};

/// Names that one stream may ask for; there are two.
const MAX_NAMES: usize = 16;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(crate) struct Sds {
    pub(crate) secrets: watch::Receiver<Secrets>,
    pub(crate) drain: DrainWatch,
}

/// What one stream has asked for, with the version that it was sent last.
#[derive(Default)]
struct Subscription {
    names: BTreeMap<String, Option<String>>,
    answers: u64,
}

impl Subscription {
    fn add(&mut self, name: String) -> Result<(), Status> {
        if self.names.len() >= MAX_NAMES && !self.names.contains_key(&name) {
            return Err(Status::resource_exhausted(format!(
                "at most {MAX_NAMES} secrets can be asked for"
            )));
        }
        self.names.entry(name).or_default();
        Ok(())
    }

    /// Everything that was asked for and is there, if any of it is newer than what was sent.
    fn all_if_changed(&mut self, secrets: &Secrets) -> Vec<Versioned> {
        if self.changed(secrets).is_empty() {
            return Vec::new();
        }
        let names = self.names.keys();
        names.filter_map(|n| secrets.get(n).cloned()).collect()
    }

    /// What is newer than what was sent; counts as sent from now on.
    fn changed(&mut self, secrets: &Secrets) -> Vec<(String, Versioned)> {
        let mut changed = Vec::new();
        for (name, sent) in &mut self.names {
            if let Some(now) = secrets.get(name)
                && sent.as_ref() != Some(&now.version)
            {
                *sent = Some(now.version.clone());
                changed.push((name.clone(), now.clone()));
            }
        }
        changed
    }

    fn nonce(&mut self) -> String {
        self.answers += 1;
        self.answers.to_string()
    }
}

/// One form of the protocol.
trait Form: Send + 'static {
    type Request: Send + 'static;
    type Answer: Send + 'static;

    fn ask(subscription: &mut Subscription, request: Self::Request) -> Result<(), Status>;
    fn answer(subscription: &mut Subscription, secrets: &Secrets) -> Option<Self::Answer>;
}

struct StateOfTheWorld;

impl Form for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Answer = DiscoveryResponse;

    fn ask(subscription: &mut Subscription, request: DiscoveryRequest) -> Result<(), Status> {
        check(&request.type_url, request.error_detail.as_ref())?;
        let wanted = &request.resource_names;
        subscription.names.retain(|name, _| wanted.contains(name));
        request
            .resource_names
            .into_iter()
            .try_for_each(|name| subscription.add(name))
    }

    fn answer(subscription: &mut Subscription, secrets: &Secrets) -> Option<DiscoveryResponse> {
        let all = subscription.all_if_changed(secrets);
        if all.is_empty() {
            return None;
        }
        let versions: Vec<&str> = all.iter().map(|s| s.version.as_str()).collect();
        Some(DiscoveryResponse {
            version_info: versions.join("-"),
            type_url: TypeUrl::Trust.as_str().to_string(),
            nonce: subscription.nonce(),
            resources: all.into_iter().map(|s| s.secret).collect(),
            ..Default::default()
        })
    }
}

struct Delta;

impl Form for Delta {
    type Request = DeltaDiscoveryRequest;
    type Answer = DeltaDiscoveryResponse;

    fn ask(subscription: &mut Subscription, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        check(&request.type_url, request.error_detail.as_ref())?;
        for name in request.resource_names_unsubscribe {
            subscription.names.remove(&name);
        }
        request
            .resource_names_subscribe
            .into_iter()
            .try_for_each(|name| subscription.add(name))
    }

    fn answer(
        subscription: &mut Subscription,
        secrets: &Secrets,
    ) -> Option<DeltaDiscoveryResponse> {
        let changed = subscription.changed(secrets);
        if changed.is_empty() {
            return None;
        }
        let resources = changed.into_iter().map(|(name, s)| Resource {
            name,
            version: s.version,
            resource: Some(s.secret),
            ..Default::default()
        });
        Some(DeltaDiscoveryResponse {
            resources: resources.collect(),
            type_url: TypeUrl::Trust.as_str().to_string(),
            nonce: subscription.nonce(),
            ..Default::default()
        })
    }
}

fn check(type_url: &str, refused: Option<&ErrorDetail>) -> Result<(), Status> {
    if let Some(error) = refused {
        warn!("the proxy refused a secret: {}", error.message);
    }
    // Left out after the first request of a stream by some clients.
    if type_url.is_empty() || TypeUrl::parse(type_url) == Some(TypeUrl::Trust) {
        return Ok(());
    }
    Err(Status::invalid_argument("only secrets are served here"))
}

impl Sds {
    fn stream<F: Form>(&self, mut requests: Streaming<F::Request>) -> Answers<F::Answer> {
        let (answers, stream) = mpsc::channel(1);
        let mut secrets = self.secrets.clone();
        let drain = self.drain.clone();
        tokio::spawn(async move {
            let mut subscription = Subscription::default();
            loop {
                tokio::select! {
                    request = requests.message() => {
                        let asked = match request {
                            Ok(Some(request)) => F::ask(&mut subscription, request),
                            Ok(None) => return,
                            Err(gone) => return debug!("a proxy ended its stream: {gone}"),
                        };
                        if let Err(status) = asked {
                            // Whether it is still there to hear this makes no difference.
                            let _ = answers.send(Err(status)).await;
                            return;
                        }
                    }
                    // The sender lives as long as the agent.
                    changed = secrets.changed() => if changed.is_err() { return },
                    () = drain.signaled() => return,
                }
                let answer = F::answer(&mut subscription, &secrets.borrow_and_update());
                if let Some(answer) = answer
                    && answers.send(Ok(answer)).await.is_err()
                {
                    return;
                }
            }
        });
        Box::pin(ReceiverStream::new(stream))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type StreamSecretsStream = Answers<DiscoveryResponse>;
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Ok(Response::new(
            self.stream::<StateOfTheWorld>(request.into_inner()),
        ))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Ok(Response::new(self.stream::<Delta>(request.into_inner())))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let mut subscription = Subscription::default();
        StateOfTheWorld::ask(&mut subscription, request.into_inner())?;
        StateOfTheWorld::answer(&mut subscription, &self.secrets.borrow())
            .map(Response::new)
            .ok_or_else(|| Status::unavailable("the secret is not there yet"))
    }
}
