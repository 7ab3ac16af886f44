//! One ADS stream: a task between the transport, the session and the source.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshfed_pki::SpiffeId;
use meshfed_proxy_config::ProxyConfig;
use meshfed_runtime::DrainWatch;
use meshfed_xds::TypeUrl;
use meshfed_xds::proto::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Node,
    Resource,
};
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};
use tracing::{debug, info, warn};

use super::encoder::Encoder;
use super::node::{AuthenticatedNode, NodeError};
use super::nodes::{ConnectedGuard, Nodes};
use super::service::AdsMetrics;
use super::session::{Answer, DeltaSubscription, LimitError, Mode, Next, Reply, Response, Session};
use super::source::{ConfigSource, Configs, Report};

/// A client that opens a stream has this long to say who it is.
const FIRST_REQUEST: Duration = Duration::from_secs(15);

/// The reason of an end waits this long for its turn.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// One of the two protocols on the wire.
pub(super) trait Protocol {
    const MODE: Mode;
    type Request: Send + 'static;
    type Response: Send + 'static;

    fn node(request: &Self::Request) -> Option<&Node>;
    fn type_url(request: &Self::Request) -> &str;
    fn apply(
        session: &mut Session,
        kind: TypeUrl,
        request: Self::Request,
    ) -> Result<Option<Answer>, LimitError>;
    fn response(response: Response) -> Self::Response;
}

pub(super) struct Delta;

impl Protocol for Delta {
    const MODE: Mode = Mode::Delta;
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn type_url(request: &Self::Request) -> &str {
        &request.type_url
    }

    fn apply(
        session: &mut Session,
        kind: TypeUrl,
        request: Self::Request,
    ) -> Result<Option<Answer>, LimitError> {
        let subscription = DeltaSubscription {
            subscribe: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            initial_versions: request.initial_resource_versions,
        };
        let reply = Reply {
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
        };
        session.delta(kind, subscription, reply)
    }

    fn response(response: Response) -> Self::Response {
        DeltaDiscoveryResponse {
            system_version_info: response.version.to_string(),
            type_url: response.kind.as_str().to_string(),
            nonce: response.nonce,
            resources: response
                .resources
                .iter()
                .map(|encoded| Resource {
                    name: encoded.name.to_string(),
                    version: encoded.version.to_string(),
                    resource: Some(encoded.resource.clone()),
                    ..Resource::default()
                })
                .collect(),
            removed_resources: response.removed.iter().map(|n| n.to_string()).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }
}

pub(super) struct StateOfTheWorld;

impl Protocol for StateOfTheWorld {
    const MODE: Mode = Mode::StateOfTheWorld;
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn type_url(request: &Self::Request) -> &str {
        &request.type_url
    }

    fn apply(
        session: &mut Session,
        kind: TypeUrl,
        request: Self::Request,
    ) -> Result<Option<Answer>, LimitError> {
        let reply = Reply {
            nonce: request.response_nonce,
            error: request.error_detail.map(|status| status.message),
        };
        session.state_of_the_world(kind, request.resource_names, reply)
    }

    fn response(response: Response) -> Self::Response {
        DiscoveryResponse {
            version_info: response.version.to_string(),
            type_url: response.kind.as_str().to_string(),
            nonce: response.nonce,
            resources: response
                .resources
                .iter()
                .map(|encoded| encoded.resource.clone())
                .collect(),
            ..DiscoveryResponse::default()
        }
    }
}

/// Who is at the other end, by its certificate.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub identity: SpiffeId,
    pub address: SocketAddr,
}

/// What all streams share.
pub(super) struct Shared {
    pub source: Arc<dyn ConfigSource>,
    pub nodes: Nodes,
    pub encoder: Arc<Encoder>,
    pub metrics: AdsMetrics,
    pub drain: DrainWatch,
}

/// The responses of a stream on their way to the transport. One at a time: the next is worked out
/// when this one was taken.
pub(super) type Out<P> = mpsc::Sender<Result<<P as Protocol>::Response, Status>>;

/// Serves one stream to its end.
pub(super) async fn serve<P: Protocol>(
    shared: Arc<Shared>,
    caller: Caller,
    mut requests: Streaming<P::Request>,
    out: Out<P>,
) {
    let _guard = shared.drain.guard();
    let opened = tokio::select! {
        opened = Stream::<P>::open(&shared, caller, &mut requests) => opened,
        () = shared.drain.signaled() => Err(going_down()),
    };
    let ended = match opened {
        Ok(Some(mut stream)) => {
            shared.metrics.connected(P::MODE);
            info!(node = %stream.node.id, id = %stream.node.identity, "a proxy connected");
            let ended = stream.run(&mut requests, &out).await;
            // Its own fault is no reason to wait for it.
            let may_return = |status: &Status| {
                matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
            };
            if ended.as_ref().is_err_and(may_return) {
                stream.connected.expect_back();
            }
            shared.metrics.disconnected(P::MODE);
            info!(
                node = %stream.node.id,
                id = %stream.node.identity,
                reason = ended.as_ref().err().map_or("closed by the proxy", Status::message),
                "a proxy disconnected"
            );
            ended
        }
        Ok(None) => Ok(()),
        Err(status) => {
            shared.metrics.refused();
            warn!("refused a proxy: {}", status.message());
            Err(status)
        }
    };
    if let Err(status) = ended {
        // A client that does not listen need not know.
        let _ = tokio::time::timeout(LAST_WORDS, out.send(Err(status))).await;
    }
}

fn going_down() -> Status {
    Status::unavailable("the control plane is shutting down")
}

struct Stream<'a, P: Protocol> {
    shared: &'a Shared,
    node: Arc<AuthenticatedNode>,
    said: Node,
    connected: ConnectedGuard,
    configs: Configs,
    /// The configuration that the session works towards.
    config: Option<Arc<ProxyConfig>>,
    session: Session,
    /// The request that opened the stream, until it is taken.
    first: Option<P::Request>,
    /// The session may have something to say.
    due: bool,
    /// The last configuration that was reported as synced.
    synced: Option<Arc<ProxyConfig>>,
    protocol: PhantomData<fn() -> P>,
}

impl<'a, P: Protocol> Stream<'a, P> {
    /// Takes the first request. `None`: the client left before.
    async fn open(
        shared: &'a Shared,
        caller: Caller,
        requests: &mut Streaming<P::Request>,
    ) -> Result<Option<Self>, Status> {
        let first = tokio::time::timeout(FIRST_REQUEST, requests.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no request came"))?;
        let Some(request) = first? else {
            return Ok(None);
        };
        let said = P::node(&request)
            .cloned()
            .ok_or_else(|| refused_node(&NodeError::Missing))?;
        let node = AuthenticatedNode::read(
            shared.nodes.next_id(),
            caller.identity,
            caller.address,
            &said,
        )
        .map_err(|e| refused_node(&e))?;
        let node = Arc::new(node);
        let configs = shared.source.subscribe(&node)?;
        let mut stream = Self {
            shared,
            connected: shared.nodes.connect(node.clone()),
            node,
            said,
            configs,
            config: None,
            session: Session::new(P::MODE, shared.encoder.clone()),
            first: Some(request),
            due: false,
            synced: None,
            protocol: PhantomData,
        };
        stream.adopt();
        Ok(Some(stream))
    }

    async fn run(
        &mut self,
        requests: &mut Streaming<P::Request>,
        out: &Out<P>,
    ) -> Result<(), Status> {
        if let Some(first) = self.first.take() {
            self.request(first)?;
        }
        loop {
            tokio::select! {
                biased;
                () = self.shared.drain.signaled() => return Err(going_down()),
                message = requests.message() => match message {
                    Ok(Some(request)) => self.request(request)?,
                    // The transport's end is the client's end; there is nobody to tell.
                    Ok(None) | Err(_) => return Ok(()),
                },
                changed = self.configs.changed() => match changed {
                    Ok(()) => self.adopt(),
                    Err(_) => return Err(Status::unavailable("the configuration has moved; connect again")),
                },
                permit = out.reserve(), if self.due => match permit {
                    Ok(permit) => match self.session.next() {
                        Next::Say(response) => {
                            self.shared.metrics.sent(response.kind);
                            debug!(
                                node = %self.node.id,
                                kind = response.kind.label(),
                                resources = response.resources.len(),
                                removed = response.removed.len(),
                                "configuration sent"
                            );
                            permit.send(Ok(P::response(response)));
                        }
                        Next::Pause => {
                            drop(permit);
                            tokio::task::yield_now().await;
                        }
                        Next::Wait => self.settled(),
                    },
                    Err(_) => return Ok(()),
                },
                () = out.closed() => return Ok(()),
            }
        }
    }

    /// Works towards the newest configuration.
    fn adopt(&mut self) {
        let newest = self.configs.borrow_and_update().clone();
        if let Some(config) = newest {
            self.session.set_config(config.clone());
            self.config = Some(config);
            self.due = true;
        }
    }

    fn settled(&mut self) {
        self.due = false;
        let Some(config) = &self.config else {
            return;
        };
        let known = |synced: &Arc<ProxyConfig>| Arc::ptr_eq(synced, config);
        if self.session.is_synced() && !self.synced.as_ref().is_some_and(known) {
            debug!(node = %self.node.id, "all of the configuration is confirmed");
            self.synced = Some(config.clone());
            let report = Report::Synced(config.clone());
            self.shared.source.report(&self.node, report);
        }
    }

    fn request(&mut self, request: P::Request) -> Result<(), Status> {
        if let Some(said) = P::node(&request)
            && *said != self.said
        {
            self.update_node(said.clone())?;
        }
        let Some(kind) = TypeUrl::parse(P::type_url(&request)) else {
            // Also a request that only says how the node has changed.
            debug!(node = %self.node.id, type_url = P::type_url(&request), "nothing of this type here");
            return Ok(());
        };
        let answer = P::apply(&mut self.session, kind, request)
            .map_err(|e| Status::resource_exhausted(e.to_string()))?;
        if let Some(answer) = answer {
            self.report(answer);
        }
        self.due = true;
        Ok(())
    }

    fn report(&self, answer: Answer) {
        let Answer {
            kind,
            version,
            refused,
        } = answer;
        let report = match refused {
            None => {
                self.shared.metrics.acked(kind);
                Report::Acked { kind, version }
            }
            Some(message) => {
                self.shared.metrics.nacked(kind);
                warn!(
                    node = %self.node.id,
                    kind = kind.label(),
                    %version,
                    "a proxy refused its configuration: {message}"
                );
                Report::Nacked {
                    kind,
                    version,
                    message,
                }
            }
        };
        self.shared.source.report(&self.node, report);
    }

    fn update_node(&mut self, said: Node) -> Result<(), Status> {
        let node = AuthenticatedNode::read(
            self.node.connection,
            self.node.identity.clone(),
            self.node.peer,
            &said,
        )
        .map_err(|e| refused_node(&e))?;
        if node.id != self.node.id {
            return Err(refused_node(&NodeError::IdChanged));
        }
        let node = Arc::new(node);
        self.configs = self.shared.source.subscribe(&node)?;
        self.connected.update(node.clone());
        self.node = node;
        self.said = said;
        self.adopt();
        Ok(())
    }
}

impl<P: Protocol> Drop for Stream<'_, P> {
    fn drop(&mut self) {
        self.shared.source.left(&self.node);
    }
}

fn refused_node(error: &NodeError) -> Status {
    match error {
        NodeError::NotProven { .. } => Status::permission_denied(error.to_string()),
        _ => Status::invalid_argument(error.to_string()),
    }
}
