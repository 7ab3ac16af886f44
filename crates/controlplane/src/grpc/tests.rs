//! The port with its services, over real connections.

use std::collections::HashMap;
use std::sync::Mutex;

use arc_swap::ArcSwap;
use meshfed_pki::{
    CertificateAuthority, ClientTls, Identity, KeyPair, ServerIds, SpiffeId, TrustDomain,
    client_config, new_csr,
};
use meshfed_proxy_config::{Endpoints, ProxyConfig};
use meshfed_runtime::Drain;
use meshfed_xds::TypeUrl;
use meshfed_xds::ca::IstioCertificateRequest;
use meshfed_xds::ca::client::IstioCertificateServiceClient;
use meshfed_xds::ca::server::IstioCertificateServiceServer;
use meshfed_xds::proto::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use meshfed_xds::proto::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, Node, Status as RpcStatus,
    Struct, Value, value,
};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status, Streaming};

use super::*;
use crate::ads::{
    AdsMetrics, AdsService, AuthenticatedNode, ConfigSource, Configs, ConnectionId, NodeSet, Nodes,
    Refusal, Report,
};
use crate::ca_service::{
    AuthError, CaMetrics, CaService, MAX_MESSAGE, Membership, ServiceAccountRef, TokenAuthenticator,
};

mod certificates;
mod streams;

const RED: &str = "red-mesh.local";
const ISTIOD: &str = "spiffe://red-mesh.local/ns/red-mesh-system/sa/istiod-red-mesh";
const RATINGS: &str = "spiffe://red-mesh.local/ns/bookinfo/sa/ratings";
const HOUR: Duration = Duration::from_secs(3600);
/// Longer than anything here takes; a test that waits this long fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every namespace that these tests use belongs to the mesh.
fn mk_membership(trust_domain: TrustDomain) -> Membership {
    Membership {
        trust_domain,
        namespaces: ["bookinfo", "red-mesh-system"].map(str::to_owned).into(),
    }
}

/// Knows the token `ratings-token`, and one that has expired.
struct FakeTokens {
    deleted: Arc<Mutex<Vec<ServiceAccountRef>>>,
}

impl TokenAuthenticator for FakeTokens {
    async fn authenticate(&self, token: &str) -> Result<ServiceAccountRef, AuthError> {
        match token {
            "ratings-token" => Ok(ServiceAccountRef {
                namespace: "bookinfo".to_string(),
                name: "ratings".to_string(),
            }),
            "stranger-token" => Ok(ServiceAccountRef {
                namespace: "default".to_string(),
                name: "ratings".to_string(),
            }),
            "expired-token" => Err(AuthError::Refused("the token has expired".to_string())),
            "slow-api" => Err(AuthError::Unavailable("no API server".into())),
            other => panic!("unexpected token {other}"),
        }
    }

    async fn exists(&self, account: &ServiceAccountRef) -> Result<(), AuthError> {
        if self.deleted.lock().unwrap().contains(account) {
            return Err(AuthError::Refused("the ServiceAccount is gone".to_string()));
        }
        Ok(())
    }
}

/// Has a configuration for each service account that was set.
#[derive(Default)]
struct FakeSource {
    configs: Mutex<HashMap<String, watch::Sender<Option<Arc<ProxyConfig>>>>>,
    reports: watch::Sender<Vec<Report>>,
    left: Mutex<Vec<ConnectionId>>,
}

impl FakeSource {
    fn set(&self, account: &str, config: Option<Arc<ProxyConfig>>) {
        self.configs
            .lock()
            .unwrap()
            .entry(account.to_string())
            .or_default()
            .send_replace(config);
    }

    async fn reported(&self, what: impl Fn(&Report) -> bool) -> Report {
        let mut reports = self.reports.subscribe();
        let found = reports.wait_for(|all| all.iter().any(&what));
        let all = tokio::time::timeout(PATIENCE, found)
            .await
            .unwrap()
            .unwrap();
        all.iter().find(|r| what(r)).unwrap().clone()
    }
}

impl ConfigSource for FakeSource {
    fn subscribe(&self, node: &AuthenticatedNode) -> Result<Configs, Refusal> {
        let account = node.service_account();
        match self.configs.lock().unwrap().get(account) {
            Some(configs) => Ok(configs.subscribe()),
            None => Err(Refusal::Unknown(format!("no proxy of {account}"))),
        }
    }

    fn report(&self, _node: &AuthenticatedNode, report: Report) {
        self.reports.send_modify(|all| all.push(report));
    }

    fn left(&self, node: &AuthenticatedNode) {
        self.left.lock().unwrap().push(node.connection);
    }
}

struct Plane {
    ca: Arc<CertificateAuthority>,
    address: SocketAddr,
    source: Arc<FakeSource>,
    nodes: watch::Receiver<NodeSet>,
    registrations: watch::Receiver<NodeSet>,
    deleted: Arc<Mutex<Vec<ServiceAccountRef>>>,
    metrics: GrpcMetrics,
    store: watch::Sender<OwnTrust>,
    mesh: watch::Sender<Option<Membership>>,
    drain: Drain,
}

impl Plane {
    async fn start() -> Self {
        let ca = CertificateAuthority::self_signed(RED, SystemTime::now()).unwrap();
        let ca = Arc::new(ca);
        let domain: TrustDomain = RED.parse().unwrap();
        let trust = TrustStore::single(domain.clone(), ca.root_pem()).unwrap();
        let (store, trust) = watch::channel(OwnTrust {
            domain: domain.clone(),
            store: Arc::new(trust),
        });
        let istiod: SpiffeId = ISTIOD.parse().unwrap();
        let identity = ca
            .issue_server(&[], &[], Some(&istiod), HOUR, SystemTime::now())
            .unwrap();
        let deleted = Arc::new(Mutex::new(Vec::new()));
        let (mesh, meshes) = watch::channel(Some(mk_membership(domain)));
        let authority = CaService::new(
            Arc::new(ArcSwap::new(ca.clone())),
            meshes,
            FakeTokens {
                deleted: deleted.clone(),
            },
            CaMetrics::default(),
        );
        let (drain, watch) = Drain::new();
        let source = Arc::new(FakeSource::default());
        let nodes = Nodes::new();
        let (seen, registrations) = (nodes.subscribe(), nodes.registrations());
        let ads = AdsService::new(source.clone(), nodes, AdsMetrics::default(), watch.clone());
        let services = Routes::new(IstioCertificateServiceServer::new(
            Arc::new(authority),
            MAX_MESSAGE,
        ))
        .add_service(ads.into_server());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = GrpcMetrics::default();
        tokio::spawn(serve_grpc(GrpcServer {
            listener,
            identity: Arc::new(IdentityCell::new(Some(identity))),
            trust,
            services,
            metrics: metrics.clone(),
            drain: watch,
        }));
        Self {
            ca,
            address,
            source,
            nodes: seen,
            registrations,
            deleted,
            metrics,
            store,
            mesh,
            drain,
        }
    }

    fn identity(&self, id: &str) -> Identity {
        mk_identity(&self.ca, id)
    }

    async fn connect(
        &self,
        identity: Option<Identity>,
    ) -> Result<Channel, tonic::transport::Error> {
        let trust = TrustStore::single(RED.parse().unwrap(), self.ca.root_pem()).unwrap();
        let config = client_config(ClientTls {
            identity: Arc::new(IdentityCell::new(identity)),
            trust: Arc::new(trust),
            server: ServerIds::OneOf(vec![ISTIOD.parse().unwrap()]),
            alpn: vec!["h2".to_string()],
        })
        .unwrap();
        let connector = TlsConnector::from(config);
        let address = self.address;
        Endpoint::from_static("http://istiod.test")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let connector = connector.clone();
                async move {
                    let stream = TcpStream::connect(address).await?;
                    let stream = connector
                        .connect("istiod.test".try_into().unwrap(), stream)
                        .await?;
                    Ok::<_, std::io::Error>(TokioIo::new(stream))
                }
            }))
            .await
    }

    async fn certify(
        &self,
        identity: Option<Identity>,
        token: Option<&str>,
        csr: &str,
    ) -> Result<Vec<String>, Status> {
        let channel = self.connect(identity).await.unwrap();
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr.to_string(),
            validity_duration: 3600,
            metadata: None,
        });
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        IstioCertificateServiceClient::new(channel)
            .create_certificate(request)
            .await
            .map(|response| response.into_inner().cert_chain)
    }

    async fn ads(&self, identity: Identity) -> Ads {
        Ads::open(self.connect(Some(identity)).await.unwrap()).await
    }

    /// Waits until one handshake was refused for this reason.
    async fn refused(&self, reason: &'static str) {
        let counted = async {
            while self
                .metrics
                .refused
                .get_or_create(&ReasonLabel { reason })
                .get()
                != 1
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, counted).await.unwrap();
    }

    async fn node_set(&mut self, what: impl FnMut(&NodeSet) -> bool) -> NodeSet {
        let found = self.nodes.wait_for(what);
        tokio::time::timeout(PATIENCE, found)
            .await
            .unwrap()
            .unwrap()
            .clone()
    }
}

fn mk_identity(ca: &CertificateAuthority, id: &str) -> Identity {
    let id: SpiffeId = id.parse().unwrap();
    let key = KeyPair::generate().unwrap();
    let csr = new_csr(&key, &id).unwrap();
    let issued = ca
        .sign_workload(&csr, &id, HOUR, SystemTime::now())
        .unwrap();
    Identity::from_pem(&issued.to_pem(), &key.to_pkcs8_pem()).unwrap()
}

fn mk_csr() -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    // What it asks for is not what it is.
    let csr = new_csr(&key, &ISTIOD.parse().unwrap()).unwrap();
    (key, csr)
}

fn mk_config(endpoints: &[&str]) -> Arc<ProxyConfig> {
    let mut config = ProxyConfig::default();
    for name in endpoints {
        config.endpoints.insert(
            (*name).into(),
            Arc::new(Endpoints {
                name: (*name).into(),
                localities: Vec::new(),
            }),
        );
    }
    Arc::new(config)
}

fn mk_node(metadata: &[(&str, &str)]) -> Node {
    Node {
        id: "sidecar~ratings-1.bookinfo".to_string(),
        metadata: Some(Struct {
            fields: metadata
                .iter()
                .map(|(name, text)| {
                    let kind = Some(value::Kind::StringValue(text.to_string()));
                    (name.to_string(), Value { kind })
                })
                .collect(),
        }),
        ..Node::default()
    }
}

/// A delta stream as a proxy sees it.
struct Ads {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Ads {
    async fn open(channel: Channel) -> Self {
        Self::try_open(channel).await.unwrap()
    }

    async fn try_open(channel: Channel) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(8);
        let responses = AggregatedDiscoveryServiceClient::new(channel)
            .delta_aggregated_resources(ReceiverStream::new(stream))
            .await?
            .into_inner();
        Ok(Self {
            requests,
            responses,
        })
    }

    async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    async fn subscribe(&self, node: Option<Node>, kind: TypeUrl, names: &[&str]) {
        self.send(DeltaDiscoveryRequest {
            node,
            type_url: kind.as_str().to_string(),
            resource_names_subscribe: names.iter().map(|n| n.to_string()).collect(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    async fn receive(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = tokio::time::timeout(PATIENCE, self.responses.message());
        message.await.unwrap().map(|response| response.unwrap())
    }

    /// The next response, accepted.
    async fn accept(&mut self) -> DeltaDiscoveryResponse {
        let response = self.receive().await.unwrap();
        self.answer(&response, None).await;
        response
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|message| RpcStatus {
                code: Code::InvalidArgument as i32,
                message: message.to_string(),
                details: Vec::new(),
            }),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|r| r.name.as_str()).collect()
}
