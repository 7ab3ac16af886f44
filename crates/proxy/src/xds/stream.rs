//! The stream to the control plane: connected again and again, for as long as the proxy lives.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use meshfed_pki::{
    ClientTls, HandshakeRefusal, IdentityCell, ServerIds, SpiffeId, TlsConfigError, TrustError,
    TrustStore, client_config,
};
use meshfed_xds::proto::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use meshfed_xds::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

use super::subscriber::Subscriber;
use crate::engine::Engine;
use crate::node::Node;
use crate::random;

/// Longest response that is read, in bytes: ten thousand services with room to spare.
const MAX_RESPONSE: usize = 64 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A control plane that does not answer a ping for this long is gone.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(3);
/// A stream that lived this long was not refused: the next retry is a quick one again.
const HEALTHY: Duration = Duration::from_secs(10);
/// How long the control plane may take to hear that the proxy goes.
const GOODBYE: Duration = Duration::from_millis(500);

/// Where the configuration comes from and how that end is known.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// `host:port` of its gRPC over TLS; the host may be a name or an address.
    pub address: String,
    /// PEM of the roots that may vouch for it.
    pub root_pem: String,
    /// The only identity that it may have.
    pub server_id: SpiffeId,
}

/// The control plane cannot be dialled with these settings.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    #[error("{0:?} is no host and port of a control plane")]
    Address(String),
    #[error("the root certificate of the control plane cannot be used")]
    Root(#[from] TrustError),
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
}

/// How far the configuration has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    /// The first clusters and listeners are in force, with all that they refer to.
    pub(crate) ready: bool,
    pub(crate) connected: bool,
    pub(crate) bound: BTreeMap<String, SocketAddr>,
}

/// Keeps an engine configured.
pub(crate) struct Client {
    connector: Connector,
    endpoint: Endpoint,
    identity: Arc<IdentityCell>,
    node: Node,
    app_ready: watch::Receiver<Option<bool>>,
    status: watch::Sender<Status>,
}

#[derive(Clone)]
struct Connector {
    address: Arc<str>,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl Connector {
    async fn connect(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let connect = async {
            let socket = TcpStream::connect(&*self.address).await?;
            socket.set_nodelay(true)?;
            Ok(TokioIo::new(self.tls.connect(self.name, socket).await?))
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Client {
    /// `app_ready`: told to the control plane with the node, at the beginning and whenever it
    /// changes.
    pub(crate) fn new(
        control_plane: &ControlPlane,
        identity: Arc<IdentityCell>,
        node: Node,
        app_ready: watch::Receiver<Option<bool>>,
        status: watch::Sender<Status>,
    ) -> Result<Self, ControlPlaneError> {
        let wrong = || ControlPlaneError::Address(control_plane.address.clone());
        let uri: Uri = format!("http://{}", control_plane.address)
            .parse()
            .map_err(|_| wrong())?;
        let host = uri.host().ok_or_else(wrong)?;
        uri.port().ok_or_else(wrong)?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let id = &control_plane.server_id;
        let trust = TrustStore::single(id.trust_domain().clone(), &control_plane.root_pem)?;
        let config = client_config(ClientTls {
            identity: identity.clone(),
            trust: Arc::new(trust),
            server: ServerIds::OneOf(vec![id.clone()]),
            alpn: vec!["h2".to_owned()],
        })?;
        Ok(Self {
            connector: Connector {
                address: control_plane.address.as_str().into(),
                name: ServerName::try_from(host).map_err(|_| wrong())?,
                tls: TlsConnector::from(config),
            },
            endpoint: Endpoint::from(uri)
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .keep_alive_while_idle(true),
            identity,
            node,
            app_ready,
            status,
        })
    }

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

    fn report(&self, error: &tonic::Status) {
        let cause = match HandshakeRefusal::find(error) {
            Some(refusal) => refusal.to_string(),
            None => error.message().to_owned(),
        };
        tracing::warn!(
            address = &*self.connector.address,
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
    ) -> Result<(), tonic::Status> {
        if self.identity.get().is_none() {
            return Err(tonic::Status::unauthenticated(
                "no certificate of our own yet",
            ));
        }
        let channel = tokio::select! {
            channel = self.connect() => channel?,
            () = stop.cancelled() => return Ok(()),
        };
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
        // What is sent answers what was received, so the queue is bounded by the other side's.
        let (requests, queue) = mpsc::unbounded_channel();
        let send = |request: DeltaDiscoveryRequest| {
            requests
                .send(request)
                .map_err(|_| tonic::Status::unavailable("the stream is closed"))
        };
        let ready = *self.app_ready.borrow_and_update();
        for request in subscriber.begin(self.node.to_wire(ready)) {
            send(request)?;
        }
        let opening = client.delta_aggregated_resources(UnboundedReceiverStream::new(queue));
        let mut responses = tokio::select! {
            opened = opening => opened?.into_inner(),
            () = stop.cancelled() => return Ok(()),
        };
        self.status.send_modify(|s| s.connected = true);
        tracing::info!(
            address = &*self.connector.address,
            "connected to the control plane"
        );
        // Without a probe the sender is gone, and there is nothing to wait for.
        let mut may_change = true;
        loop {
            tokio::select! {
                response = responses.message() => match response? {
                    Some(response) => {
                        for request in self.receive(response, subscriber, engine) {
                            send(request)?;
                        }
                    }
                    None => return Ok(()),
                },
                changed = self.app_ready.changed(), if may_change => match changed {
                    Ok(()) => {
                        let ready = *self.app_ready.borrow_and_update();
                        send(Subscriber::node_update(self.node.to_wire(ready)))?;
                    }
                    Err(_) => may_change = false,
                },
                () = stop.cancelled() => break,
            }
        }
        // The end of our requests after this tells that we did not just break down.
        send(Subscriber::node_update(self.node.to_wire(Some(false))))?;
        drop(requests);
        let end = async { while let Ok(Some(_)) = responses.message().await {} };
        let _ = tokio::time::timeout(GOODBYE, end).await;
        Ok(())
    }

    async fn connect(&self) -> Result<Channel, tonic::Status> {
        let connector = self.connector.clone();
        self.endpoint
            .connect_with_connector(tower::service_fn(move |_: Uri| connector.clone().connect()))
            .await
            .map_err(|e| tonic::Status::from_error(Box::new(e)))
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
        if !subscriber.is_ready() {
            tracing::debug!(missing = subscriber.missing(), "not complete yet");
        }
        self.status.send_modify(|status| {
            status.ready = subscriber.is_ready();
            status.bound = engine.bound();
        });
        requests
    }
}
