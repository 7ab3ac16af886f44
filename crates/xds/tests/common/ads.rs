//! A control plane that serves a fixed set of resources over delta ADS and notes what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use meshfed_xds::proto::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use meshfed_xds::proto::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use meshfed_xds::proto::{
    Any, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    Resource,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

#[derive(Default)]
pub struct Ads {
    /// By type URL and name.
    resources: BTreeMap<String, BTreeMap<String, Any>>,
    pub acked: Mutex<BTreeSet<String>>,
    pub refused: Mutex<Vec<String>>,
}

impl Ads {
    pub fn add(&mut self, name: impl Into<String>, resource: Any) {
        let of_kind = self.resources.entry(resource.type_url.clone());
        of_kind.or_default().insert(name.into(), resource);
    }

    /// On one port: ADS for the resources, and SDS, as an agent has it, for the secret `default`.
    pub async fn serve(self) -> (Arc<Self>, SocketAddr) {
        let this = Arc::new(self);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ads = this.service();
        let sds = SecretDiscoveryServiceServer::new(Service(this.clone()));
        tokio::spawn(
            Server::builder()
                .add_service(ads)
                .add_service(sds)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        (this, address)
    }

    pub fn service(self: &Arc<Self>) -> AggregatedDiscoveryServiceServer<Service> {
        AggregatedDiscoveryServiceServer::new(Service(self.clone()))
    }

    fn answer(&self, request: DeltaDiscoveryRequest) -> Option<DeltaDiscoveryResponse> {
        let kind = request.type_url;
        if let Some(error) = request.error_detail {
            self.refused.lock().unwrap().push(error.message);
            return None;
        }
        if !request.response_nonce.is_empty() && request.resource_names_subscribe.is_empty() {
            self.acked.lock().unwrap().insert(kind);
            return None;
        }
        let empty = BTreeMap::new();
        let all = self.resources.get(&kind).unwrap_or(&empty);
        let wanted = request.resource_names_subscribe;
        let found: Vec<Resource> = all
            .iter()
            .filter(|(name, _)| wanted.is_empty() || wanted.contains(name) || wanted == ["*"])
            .map(|(name, any)| Resource {
                name: name.clone(),
                version: "1".to_string(),
                resource: Some(any.clone()),
                ..Default::default()
            })
            .collect();
        let missing = wanted
            .into_iter()
            .filter(|n| !all.contains_key(n) && n != "*");
        Some(DeltaDiscoveryResponse {
            type_url: kind,
            resources: found,
            removed_resources: missing.collect(),
            nonce: "n".to_string(),
            ..Default::default()
        })
    }
}

pub struct Service(Arc<Ads>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let mut requests = request.into_inner();
        let (answers, stream) = mpsc::channel(16);
        let ads = self.0.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if let Some(answer) = ads.answer(request)
                    && answers.send(Ok(answer)).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Service {
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaSecretsStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let mut requests = request.into_inner();
        let (answers, stream) = mpsc::channel(16);
        let ads = self.0.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let of_kind = ads.resources.get(&request.type_url);
                let own = of_kind.and_then(|secrets| secrets.get("default"));
                if request.response_nonce.is_empty() {
                    let answer = DiscoveryResponse {
                        version_info: "1".to_string(),
                        nonce: "n".to_string(),
                        type_url: request.type_url,
                        resources: own.cloned().into_iter().collect(),
                        ..Default::default()
                    };
                    if answers.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("streams only"))
    }
}
