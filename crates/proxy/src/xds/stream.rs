//! The stream to the control plane: connected again and again, for as long as the proxy lives.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshfed_agent::{ConnectError, ControlPlane};
use meshfed_pki::{HandshakeRefusal, Identity, IdentityCell};
use meshfed_xds::MAX_RESOURCE_LEN;
use meshfed_xds::proto::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use meshfed_xds::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

use super::subscriber::Subscriber;
use crate::engine::Engine;
use crate::node::Node;
use crate::random;

/// Longest response that is read, in bytes: the longest resource, or thousands of names that are gone. The
/// control plane sends all else in much smaller pieces.
const MAX_RESPONSE: usize = MAX_RESOURCE_LEN + 16 * 1024 * 1024;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(3);
/// A stream that lived this long was not refused: the next retry is a quick one again.
const HEALTHY: Duration = Duration::from_secs(10);
/// After these a listener whose address was not to be had is asked for again.
const FIRST_ADDRESS_RETRY: Duration = Duration::from_millis(200);
const LAST_ADDRESS_RETRY: Duration = Duration::from_secs(15);
/// How long the control plane may take to hear that the proxy goes.
const GOODBYE: Duration = Duration::from_millis(500);

/// How far the configuration has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    /// The first clusters and listeners are in force, with all that they refer to.
    pub(crate) ready: bool,
    /// What is still waited for before that, as text.
    pub(crate) missing: String,
    pub(crate) connected: bool,
    pub(crate) bound: BTreeMap<String, SocketAddr>,
}

/// Keeps an engine configured.
pub(crate) struct Client {
    pub(crate) control_plane: ControlPlane,
    pub(crate) identity: Arc<IdentityCell>,
    /// Tells when there is an identity.
    pub(crate) identities: watch::Receiver<Option<Arc<Identity>>>,
    pub(crate) node: Node,
    /// Told to the control plane with the node, at the beginning and whenever it changes.
    pub(crate) app_ready: watch::Receiver<Option<bool>>,
    pub(crate) status: watch::Sender<Status>,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the control plane ended the stream: {}", .0.message())]
    Refused(#[source] Box<tonic::Status>),
    #[error("the stream is closed")]
    Closed,
    #[error("nobody keeps the certificate of this proxy any more")]
    NoIdentity,
}

impl From<tonic::Status> for StreamError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// The sending half. Each request answers something that was received or is a rare event, so the
/// queue needs no bound of its own.
struct Requests(UnboundedSender<DeltaDiscoveryRequest>);

impl Requests {
    fn send(&self, request: DeltaDiscoveryRequest) -> Result<(), StreamError> {
        self.0.send(request).map_err(|_| StreamError::Closed)
    }
}

impl Client {
    /// Runs until `stop`, then says goodbye. Gives the engine back, in the state that the last
    /// configuration has put it in: nothing that happens here takes that away.
    pub(crate) async fn run(mut self, mut engine: Engine, stop: CancellationToken) -> Engine {
        let mut subscriber = Subscriber::default();
        let mut retry = FIRST_RETRY;
        while !stop.is_cancelled() {
            let began = Instant::now();
            let ended = self.stream(&mut subscriber, &mut engine, &stop).await;
            self.status.send_modify(|s| s.connected = false);
            match ended {
                Ok(()) => tracing::info!("the stream to the control plane has ended"),
                Err(error) => self.report(&error),
            }
            if began.elapsed() >= HEALTHY {
                retry = FIRST_RETRY;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(random::jittered(retry)) => {}
            }
            retry = (retry * 2).min(LAST_RETRY);
        }
        engine
    }

    fn report(&self, error: &StreamError) {
        let cause = match HandshakeRefusal::find(error) {
            Some(refusal) => refusal.to_string(),
            None => error.to_string(),
        };
        tracing::warn!(
            node = self.node.id(),
            cause,
            "no stream to the control plane; the last configuration stays in force"
        );
    }

    /// One stream, from its connection to its end.
    async fn stream(
        &mut self,
        subscriber: &mut Subscriber,
        engine: &mut Engine,
        stop: &CancellationToken,
    ) -> Result<(), StreamError> {
        let opened = tokio::select! {
            opened = self.open(subscriber) => opened,
            () = stop.cancelled() => return Ok(()),
        };
        let (requests, mut responses) = opened?;
        self.status.send_modify(|s| s.connected = true);
        tracing::info!(node = self.node.id(), "connected to the control plane");
        // Without a probe the sender is gone, and there is nothing to wait for.
        let mut may_change = true;
        let mut pause = FIRST_ADDRESS_RETRY;
        let mut again = None;
        loop {
            if !subscriber.lacks_addresses() {
                (pause, again) = (FIRST_ADDRESS_RETRY, None);
            } else if again.is_none() {
                again = Some(Instant::now() + pause);
                pause = (pause * 2).min(LAST_ADDRESS_RETRY);
            }
            tokio::select! {
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    again = None;
                    if let Some(request) = subscriber.ask_again() {
                        requests.send(request)?;
                    }
                }
                response = responses.message() => match response? {
                    Some(response) => {
                        for request in self.receive(response, subscriber, engine) {
                            requests.send(request)?;
                        }
                    }
                    None => return Ok(()),
                },
                changed = self.app_ready.changed(), if may_change => match changed {
                    Ok(()) => {
                        let ready = *self.app_ready.borrow_and_update();
                        requests.send(Subscriber::node_update(self.node.to_wire(ready)))?;
                    }
                    Err(_) => may_change = false,
                },
                () = stop.cancelled() => break,
            }
        }
        // The end of our requests after this tells that we did not just break down.
        requests.send(Subscriber::node_update(self.node.to_wire(Some(false))))?;
        drop(requests);
        let end = async { while let Ok(Some(_)) = responses.message().await {} };
        let _ = tokio::time::timeout(GOODBYE, end).await;
        Ok(())
    }

    /// Connects and asks for everything.
    async fn open(
        &mut self,
        subscriber: &mut Subscriber,
    ) -> Result<(Requests, Streaming<DeltaDiscoveryResponse>), StreamError> {
        // Without a certificate the control plane would not talk to us.
        let known = self.identities.wait_for(Option::is_some).await;
        drop(known.map_err(|_| StreamError::NoIdentity)?);
        let channel: Channel = self.control_plane.connect(self.identity.clone()).await?;
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
        let (sender, queue) = mpsc::unbounded_channel();
        let requests = Requests(sender);
        let ready = *self.app_ready.borrow_and_update();
        for request in subscriber.begin(self.node.to_wire(ready)) {
            requests.send(request)?;
        }
        let responses = client
            .delta_aggregated_resources(UnboundedReceiverStream::new(queue))
            .await?
            .into_inner();
        Ok((requests, responses))
    }

    fn receive(
        &self,
        response: DeltaDiscoveryResponse,
        subscriber: &mut Subscriber,
        engine: &mut Engine,
    ) -> Vec<DeltaDiscoveryRequest> {
        tracing::debug!(
            kind = response.type_url,
            resources = response.resources.len(),
            removed = response.removed_resources.len(),
            "configuration received"
        );
        let requests = subscriber.receive(response, engine);
        self.status.send_modify(|status| {
            status.ready = subscriber.is_ready();
            status.missing = if status.ready {
                String::new()
            } else {
                subscriber.missing()
            };
            status.bound = engine.bound();
        });
        requests
    }
}
