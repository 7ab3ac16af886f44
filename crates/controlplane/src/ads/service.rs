//! The gRPC service of ADS.

use std::sync::Arc;

use meshfed_runtime::DrainWatch;
use meshfed_xds::TypeUrl;
use meshfed_xds::proto::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use meshfed_xds::proto::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::nodes::Nodes;
use super::session::Mode;
use super::source::ConfigSource;
use super::stream::{self, Caller, Delta, Protocol, Shared, StateOfTheWorld};
use crate::grpc::Peer;

/// The longest request, in bytes. A proxy that comes back says each name that it knows and its version, some
/// 130 bytes each: this is room for more than 200,000.
pub const MAX_REQUEST: usize = 32 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabel {
    mode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// What ADS counts.
#[derive(Debug, Clone, Default)]
pub struct AdsMetrics {
    connected: Family<ModeLabel, Gauge>,
    refused: Counter,
    sent: Family<KindLabel, Counter>,
    acked: Family<KindLabel, Counter>,
    nacked: Family<KindLabel, Counter>,
}

impl AdsMetrics {
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "meshfed_ads_streams",
            "Open ADS streams of proxies, by protocol",
            metrics.connected.clone(),
        );
        registry.register(
            "meshfed_ads_streams_refused",
            "ADS streams that were refused",
            metrics.refused.clone(),
        );
        registry.register(
            "meshfed_ads_responses",
            "Responses sent to proxies, by kind of resource",
            metrics.sent.clone(),
        );
        registry.register(
            "meshfed_ads_acks",
            "Responses that proxies accepted, by kind of resource",
            metrics.acked.clone(),
        );
        registry.register(
            "meshfed_ads_nacks",
            "Responses that proxies refused, by kind of resource",
            metrics.nacked.clone(),
        );
        metrics
    }

    pub(super) fn connected(&self, mode: Mode) {
        self.connected.get_or_create(&mode_label(mode)).inc();
    }

    pub(super) fn disconnected(&self, mode: Mode) {
        self.connected.get_or_create(&mode_label(mode)).dec();
    }

    pub(super) fn refused(&self) {
        self.refused.inc();
    }

    pub(super) fn sent(&self, kind: TypeUrl) {
        self.sent.get_or_create(&kind_label(kind)).inc();
    }

    pub(super) fn acked(&self, kind: TypeUrl) {
        self.acked.get_or_create(&kind_label(kind)).inc();
    }

    pub(super) fn nacked(&self, kind: TypeUrl) {
        self.nacked.get_or_create(&kind_label(kind)).inc();
    }
}

fn mode_label(mode: Mode) -> ModeLabel {
    ModeLabel {
        mode: match mode {
            Mode::Delta => "delta",
            Mode::StateOfTheWorld => "state_of_the_world",
        },
    }
}

fn kind_label(kind: TypeUrl) -> KindLabel {
    KindLabel { kind: kind.label() }
}

/// ADS for the proxies of one mesh. Every caller must have a certificate (see
/// [`Peer`](crate::grpc::Peer)).
#[derive(Clone)]
pub struct AdsService {
    shared: Arc<Shared>,
}

impl AdsService {
    pub fn new(
        source: Arc<dyn ConfigSource>,
        nodes: Nodes,
        metrics: AdsMetrics,
        drain: DrainWatch,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                source,
                nodes,
                encoder: Arc::default(),
                metrics,
                drain,
            }),
        }
    }

    /// The service for a gRPC router, with its limit on requests.
    pub fn into_server(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }

    fn open<P: Protocol + 'static>(
        &self,
        request: Request<Streaming<P::Request>>,
    ) -> Result<Response<Responses<P>>, Status> {
        let peer = request.extensions().get::<Peer>();
        let Some((address, certificate)) =
            peer.and_then(|peer| Some((peer.address, peer.certificate.as_ref()?)))
        else {
            self.shared.metrics.refused();
            return Err(Status::unauthenticated(
                "ADS needs a certificate of this mesh; get one with a ServiceAccount token first",
            ));
        };
        let caller = Caller {
            identity: certificate.id.clone(),
            address,
        };
        let (out, responses) = mpsc::channel(1);
        tokio::spawn(stream::serve::<P>(
            self.shared.clone(),
            caller,
            request.into_inner(),
            out,
        ));
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

type Responses<P> = ReceiverStream<Result<<P as Protocol>::Response, Status>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsService {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.open::<StateOfTheWorld>(request)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.open::<Delta>(request)
    }
}
