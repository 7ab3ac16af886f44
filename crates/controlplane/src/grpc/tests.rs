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

#[tokio::test]
async fn a_token_buys_a_certificate_and_the_certificate_a_configuration() {
    let plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&["a"])));

    let (key, csr) = mk_csr();
    let chain = plane
        .certify(None, Some("ratings-token"), &csr)
        .await
        .unwrap();
    assert_eq!(chain.last().unwrap(), plane.ca.root_pem());
    let identity = Identity::from_pem(&chain[0], &key.to_pkcs8_pem()).unwrap();
    assert_eq!(identity.id, Some(RATINGS.parse().unwrap()));

    let mut ads = plane.ads(identity).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Endpoints, &["a"])
        .await;
    assert_eq!(names(&ads.accept().await), ["a"]);
}

#[tokio::test]
async fn a_namespace_that_is_no_member_gets_no_certificate() {
    let plane = Plane::start().await;
    let (_, csr) = mk_csr();
    let refused = plane
        .certify(None, Some("stranger-token"), &csr)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_certificate_is_renewed_by_itself_until_its_service_account_is_gone() {
    let plane = Plane::start().await;
    let (key, csr) = mk_csr();
    let old = plane.identity(RATINGS);
    let chain = plane.certify(Some(old), None, &csr).await.unwrap();
    let new = Identity::from_pem(&chain[0], &key.to_pkcs8_pem()).unwrap();
    assert_eq!(new.id, Some(RATINGS.parse().unwrap()));

    plane.deleted.lock().unwrap().push(ServiceAccountRef {
        namespace: "bookinfo".to_string(),
        name: "ratings".to_string(),
    });
    let refused = plane.certify(Some(new), None, &csr).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn without_a_good_proof_there_is_no_certificate() {
    let plane = Plane::start().await;
    let (_, csr) = mk_csr();
    let refused = async |identity, token, csr: &str| {
        let refused = plane.certify(identity, token, csr).await.unwrap_err();
        (refused.code(), refused.message().to_string())
    };
    let (code, message) = refused(None, None, &csr).await;
    assert_eq!(code, Code::Unauthenticated);
    assert!(message.contains("ServiceAccount token"), "{message}");

    let (code, message) = refused(None, Some("expired-token"), &csr).await;
    assert_eq!(code, Code::Unauthenticated);
    assert!(message.contains("the token has expired"), "{message}");
    // A bad token is not made good by a certificate beside it.
    let own = Some(plane.identity(RATINGS));
    let (code, _) = refused(own, Some("expired-token"), &csr).await;
    assert_eq!(code, Code::Unauthenticated);

    let (code, _) = refused(None, Some("slow-api"), &csr).await;
    assert_eq!(code, Code::Unavailable);
    let (code, _) = refused(None, Some("ratings-token"), "no request").await;
    assert_eq!(code, Code::InvalidArgument);
    let long = "x".repeat(2 * MAX_MESSAGE);
    let (code, _) = refused(None, Some("ratings-token"), &long).await;
    assert_eq!(code, Code::OutOfRange);
}

#[tokio::test]
async fn ads_without_a_certificate_is_refused() {
    let plane = Plane::start().await;
    let channel = plane.connect(None).await.unwrap();
    let refused = Ads::try_open(channel).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_certificate_of_another_mesh_does_not_get_past_the_handshake() {
    let plane = Plane::start().await;
    let green = CertificateAuthority::self_signed("green", SystemTime::now()).unwrap();
    for (id, reason) in [
        (RATINGS, "unknown_ca"),
        (
            "spiffe://green-mesh.local/ns/bookinfo/sa/ratings",
            "wrong_trust_domain",
        ),
    ] {
        let stranger = mk_identity(&green, id);
        // In TLS 1.3 a client learns of the refusal with its first call at the latest.
        if let Ok(channel) = plane.connect(Some(stranger)).await {
            assert!(Ads::try_open(channel).await.is_err());
        }
        plane.refused(reason).await;
    }
}

#[tokio::test]
async fn when_the_mesh_leaves_a_trust_domain_its_streams_end_and_its_certificates_buy_only_new_ones()
 {
    let plane = Plane::start().await;
    plane.source.set("ratings", None);
    let store = |domain: &str, former: &[&str]| {
        let domain: TrustDomain = domain.parse().unwrap();
        let all = [domain.clone()].into_iter();
        let all = all.chain(former.iter().map(|former| former.parse().unwrap()));
        let bundles = all.map(|domain| (domain, plane.ca.root_pem())).collect();
        let store = Arc::new(TrustStore::parse(&bundles).unwrap());
        plane.mesh.send_replace(Some(mk_membership(domain.clone())));
        plane.store.send_replace(OwnTrust { domain, store });
    };
    let ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Cluster, &[])
        .await;
    // Time and again there is a new store, with which the stream is as good as before.
    store(RED, &[]);
    let second = plane.ads(plane.identity(RATINGS)).await;
    store("red2.local", &[RED]);
    for mut stream in [ads, second] {
        stream.receive().await.unwrap_err();
    }

    let channel = plane.connect(Some(plane.identity(RATINGS))).await.unwrap();
    let refused = Ads::try_open(channel).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let key = KeyPair::generate().unwrap();
    let moved = RATINGS.replace(RED, "red2.local");
    let csr = new_csr(&key, &moved.parse().unwrap()).unwrap();
    let renew = || plane.certify(Some(plane.identity(RATINGS)), None, &csr);
    let chain = renew().await.unwrap();
    let identity = Identity::from_pem(&chain[0], &key.to_pkcs8_pem()).unwrap();
    assert_eq!(identity.id, Some(moved.parse().unwrap()));
    plane.ads(identity).await;

    // As without a change, not for an account that is gone, and not in the place of a bad token.
    let expired = plane.certify(Some(plane.identity(RATINGS)), Some("expired-token"), &csr);
    assert_eq!(expired.await.unwrap_err().code(), Code::Unauthenticated);
    let account = ServiceAccountRef {
        namespace: "bookinfo".to_string(),
        name: "ratings".to_string(),
    };
    plane.deleted.lock().unwrap().push(account);
    assert_eq!(renew().await.unwrap_err().code(), Code::Unauthenticated);

    // A domain that is not remembered.
    store("red3.local", &["red2.local"]);
    if let Ok(channel) = plane.connect(Some(plane.identity(RATINGS))).await {
        assert!(Ads::try_open(channel).await.is_err());
    }
    plane.refused("wrong_trust_domain").await;
}

#[tokio::test]
async fn a_proxy_cannot_ask_for_what_is_not_its_own() {
    let plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&["a"])));
    plane.source.set("reviews", Some(mk_config(&["secret"])));
    for (metadata, code) in [
        (("SERVICE_ACCOUNT", "reviews"), Code::PermissionDenied),
        (("NAMESPACE", "red-mesh-system"), Code::PermissionDenied),
        (("INSTANCE_IPS", "nowhere"), Code::InvalidArgument),
    ] {
        let mut ads = plane.ads(plane.identity(RATINGS)).await;
        ads.subscribe(Some(mk_node(&[metadata])), TypeUrl::Endpoints, &["secret"])
            .await;
        assert_eq!(
            ads.receive().await.unwrap_err().code(),
            code,
            "{metadata:?}"
        );
    }
    // Without a claim it gets its own, in which the other's names do not exist.
    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Endpoints, &["secret"])
        .await;
    let response = ads.receive().await.unwrap();
    assert!(response.resources.is_empty());
    assert_eq!(response.removed_resources, ["secret"]);

    let unknown = "spiffe://red-mesh.local/ns/bookinfo/sa/details";
    let mut ads = plane.ads(plane.identity(unknown)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Endpoints, &[])
        .await;
    assert_eq!(ads.receive().await.unwrap_err().code(), Code::Unavailable);

    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(None, TypeUrl::Endpoints, &[]).await;
    assert_eq!(
        ads.receive().await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn a_change_reaches_the_proxy_and_its_answers_reach_the_source() {
    let plane = Plane::start().await;
    let first = mk_config(&["a"]);
    plane.source.set("ratings", Some(first.clone()));
    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Cluster, &[])
        .await;
    ads.accept().await;
    ads.subscribe(None, TypeUrl::Endpoints, &["a", "b"]).await;
    let response = ads.accept().await;
    assert_eq!(names(&response), ["a"]);
    assert_eq!(response.removed_resources, ["b"]);
    ads.subscribe(None, TypeUrl::Listener, &[]).await;
    ads.accept().await;
    let synced = plane
        .source
        .reported(|r| matches!(r, Report::Synced(_)))
        .await;
    assert_eq!(synced, Report::Synced(first));

    plane.source.set("ratings", Some(mk_config(&["a", "b"])));
    let response = ads.receive().await.unwrap();
    assert_eq!(names(&response), ["b"]);
    ads.answer(&response, Some("endpoints of b: not here"))
        .await;
    let nacked = plane
        .source
        .reported(|r| matches!(r, Report::Nacked { .. }))
        .await;
    assert!(matches!(
        nacked,
        Report::Nacked { kind: TypeUrl::Endpoints, message, .. } if message == "endpoints of b: not here"
    ));
}

#[tokio::test]
async fn a_proxy_that_reconnects_is_told_only_what_is_new() {
    let plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&["a", "b"])));
    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Endpoints, &["a", "b"])
        .await;
    let versions: HashMap<String, String> = ads
        .accept()
        .await
        .resources
        .into_iter()
        .map(|resource| (resource.name, resource.version))
        .collect();
    drop(ads);

    plane.source.set("ratings", Some(mk_config(&["b", "c"])));
    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.send(DeltaDiscoveryRequest {
        node: Some(mk_node(&[])),
        type_url: TypeUrl::Endpoints.as_str().to_string(),
        resource_names_subscribe: ["a", "b", "c"].map(str::to_string).to_vec(),
        initial_resource_versions: versions,
        ..DeltaDiscoveryRequest::default()
    })
    .await;
    assert_eq!(names(&ads.accept().await), ["c"]);
    assert_eq!(ads.accept().await.removed_resources, ["a"]);
}

#[tokio::test]
async fn a_control_plane_that_knows_nothing_yet_takes_nothing_away() {
    let mut plane = Plane::start().await;
    let known = mk_config(&["a"]);
    let version = {
        let encoder = crate::ads::Encoder::default();
        let encoded = encoder.encode(&known, TypeUrl::Endpoints, "a").unwrap();
        encoded.version.to_string()
    };
    plane.source.set("ratings", None);
    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.send(DeltaDiscoveryRequest {
        node: Some(mk_node(&[])),
        type_url: TypeUrl::Endpoints.as_str().to_string(),
        resource_names_subscribe: ["a", "b"].map(str::to_string).to_vec(),
        initial_resource_versions: HashMap::from([("a".to_string(), version)]),
        ..DeltaDiscoveryRequest::default()
    })
    .await;
    plane.node_set(|set| !set.is_empty()).await;

    // Had it said that `a` is gone, that would come first.
    plane.source.set("ratings", Some(mk_config(&["a", "b"])));
    let response = ads.accept().await;
    assert_eq!(names(&response), ["b"]);
    assert!(response.removed_resources.is_empty());
}

#[tokio::test]
async fn a_connected_proxy_is_seen_with_its_readiness_until_it_is_gone() {
    let mut plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&[])));
    let ads = plane.ads(plane.identity(RATINGS)).await;
    let node = mk_node(&[
        ("NAME", "ratings-1"),
        ("INSTANCE_IPS", "127.0.9.1"),
        ("READY", "false"),
    ]);
    ads.subscribe(Some(node), TypeUrl::Cluster, &[]).await;
    let seen = plane.node_set(|set| !set.is_empty()).await;
    let node = seen.values().next().unwrap();
    let connection = node.connection;
    assert_eq!(node.identity, RATINGS.parse().unwrap());
    assert_eq!(
        (node.name.as_deref(), node.ready),
        (Some("ratings-1"), Some(false))
    );

    // A request that says nothing but a changed node.
    let node = mk_node(&[
        ("NAME", "ratings-1"),
        ("INSTANCE_IPS", "127.0.9.1"),
        ("READY", "true"),
    ]);
    ads.send(DeltaDiscoveryRequest {
        node: Some(node),
        ..DeltaDiscoveryRequest::default()
    })
    .await;
    plane
        .node_set(|set| set.values().any(|node| node.ready == Some(true)))
        .await;
    drop(ads);
    plane.node_set(|set| set.is_empty()).await;
    assert_eq!(*plane.source.left.lock().unwrap(), [connection]);
}

#[tokio::test]
async fn a_stream_that_is_ended_from_here_does_not_end_the_registration() {
    let mut plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&[])));
    let too_long = "x".repeat(meshfed_xds::MAX_NAME_LEN + 1);
    let mut last = None;
    for _ in 0..2 {
        let mut ads = plane.ads(plane.identity(RATINGS)).await;
        ads.subscribe(Some(mk_node(&[])), TypeUrl::Endpoints, &[&too_long])
            .await;
        let ended = ads.receive().await.unwrap_err();
        assert_eq!(ended.code(), Code::ResourceExhausted);
        plane.node_set(|set| set.is_empty()).await;
        let registered = plane.registrations.borrow_and_update().clone();
        let connections: Vec<_> = registered.keys().copied().collect();
        assert_eq!(connections.len(), 1, "one registration for one proxy");
        assert_ne!(last, Some(connections[0]));
        last = Some(connections[0]);
    }
    // It is back, and then goes by itself.
    let ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Cluster, &[])
        .await;
    plane.node_set(|set| !set.is_empty()).await;
    drop(ads);
    let gone = plane.registrations.wait_for(|set| set.is_empty());
    tokio::time::timeout(PATIENCE, gone).await.unwrap().unwrap();
}

#[tokio::test]
async fn state_of_the_world_is_served_as_well() {
    let plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&["a"])));
    let channel = plane.connect(Some(plane.identity(RATINGS))).await.unwrap();
    let (requests, stream) = mpsc::channel(8);
    requests
        .send(DiscoveryRequest {
            node: Some(mk_node(&[])),
            type_url: TypeUrl::Endpoints.as_str().to_string(),
            resource_names: vec!["a".to_string()],
            ..DiscoveryRequest::default()
        })
        .await
        .unwrap();
    let mut responses = AggregatedDiscoveryServiceClient::new(channel)
        .stream_aggregated_resources(ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    let response = responses.message().await.unwrap().unwrap();
    assert_eq!(response.resources.len(), 1);
    assert_eq!(response.version_info.len(), 16);
}

#[tokio::test]
async fn a_drain_ends_streams_and_connections() {
    let plane = Plane::start().await;
    plane.source.set("ratings", Some(mk_config(&[])));
    let mut ads = plane.ads(plane.identity(RATINGS)).await;
    ads.subscribe(Some(mk_node(&[])), TypeUrl::Cluster, &[])
        .await;
    ads.accept().await;
    let drained = tokio::spawn(plane.drain.drain(PATIENCE));
    assert_eq!(ads.receive().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(drained.await.unwrap(), meshfed_runtime::DrainEnd::Finished);
    assert!(TcpStream::connect(plane.address).await.is_err());
}

#[test]
fn a_connection_lives_no_longer_than_its_certificate() {
    let now = SystemTime::now();
    let mut peer = Peer {
        address: "127.0.0.1:1".parse().unwrap(),
        certificate: None,
        former: None,
    };
    assert_eq!(life(&peer, now), ANONYMOUS_LIFE);
    peer.certificate = Some(PeerCertificate {
        id: RATINGS.parse().unwrap(),
        not_after: now + HOUR,
    });
    assert_eq!(life(&peer, now), HOUR);
    assert_eq!(life(&peer, now + 2 * HOUR), Duration::ZERO);
}
