//! Whole proxies that get certificate and configuration from a control plane.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use meshfed_agent::{ControlPlane, ControlPlaneOptions, IdentityMetrics, RootSource, TokenSource};
use meshfed_pki::{
    CertificateAuthority, IdentityCell, ServerTls, SpiffeId, server_config_optional_client,
};
use meshfed_proxy::{
    ConnectionLimits, Metrics, Node, NodeKind, Probe, Proxy, ProxyHandle, ProxyOptions,
};
use meshfed_proxy_config::*;
use meshfed_runtime::{AccessLog, AccessLogMetrics};
use meshfed_testkit::LoopbackNet;
use meshfed_xds::ca::server::{IstioCertificateService, IstioCertificateServiceServer};
use meshfed_xds::ca::{IstioCertificateRequest, IstioCertificateResponse};
use meshfed_xds::proto::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use meshfed_xds::proto::{
    Any, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    Resource, value::Kind,
};
use meshfed_xds::{TypeUrl, encode};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::support::*;

/// A control plane for one proxy.
struct Plane {
    mesh: Arc<Mesh>,
    /// Beside its root, what a proxy that starts now is given as the mesh's.
    more_roots: String,
    net: LoopbackNet,
    address: SocketAddr,
    state: Arc<State>,
    tasks: JoinSet<()>,
}

struct State {
    config: watch::Sender<ProxyConfig>,
    seen: Mutex<Seen>,
}

/// What the proxy has said.
#[derive(Default)]
struct Seen {
    ready: Vec<(tokio::time::Instant, Option<bool>)>,
    node_ids: BTreeSet<String>,
    refusals: Vec<String>,
    initial_versions: usize,
    /// Streams whose requests ended in order.
    goodbyes: usize,
}

impl Plane {
    async fn new() -> Self {
        let mesh = Arc::new(Mesh::new("red-mesh.local"));
        let net = LoopbackNet::lock();
        let mut plane = Self {
            mesh,
            more_roots: String::new(),
            address: (net.address(1), 15012).into(),
            net,
            state: Arc::new(State {
                config: watch::Sender::new(ProxyConfig::default()),
                seen: Mutex::default(),
            }),
            tasks: JoinSet::new(),
        };
        plane.start().await;
        plane
    }

    fn server_id(mesh: &Mesh) -> SpiffeId {
        mesh.id("istiod")
    }

    /// Where a listener of a proxy is, as the configuration on the wire has no port 0.
    fn listener_address(&self) -> SocketAddr {
        (self.net.address(2), 15443).into()
    }

    /// Listens, at the same address each time.
    async fn start(&mut self) {
        let address = self.address;
        let listener = eventually("the address", || async {
            TcpListener::bind(address).await.ok()
        })
        .await;
        self.address = listener.local_addr().unwrap();
        let tls = server_config_optional_client(ServerTls {
            identity: Arc::new(IdentityCell::new(Some(self.mesh.identity("istiod")))),
            trust: self.mesh.store(),
            client_ids: vec![],
            alpn: vec!["h2".into()],
        })
        .unwrap();
        let acceptor = TlsAcceptor::from(tls);
        let ads = AggregatedDiscoveryServiceServer::new(Ads(self.state.clone()));
        let ca = IstioCertificateServiceServer::new(Arc::new(Ca(self.mesh.clone())), 65536);
        let routes = tonic::service::Routes::new(ads).add_service(ca);
        self.tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (acceptor, routes) = (acceptor.clone(), routes.clone());
                open.spawn(async move {
                    if let Ok(stream) = acceptor.accept(socket).await {
                        let service = TowerToHyperService::new(routes);
                        let _ = auto::Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    }
                });
            }
        });
    }

    /// As a kill: connections break off.
    async fn kill(&mut self) {
        self.tasks.shutdown().await;
    }

    fn change(&self, edit: impl FnOnce(&mut ProxyConfig)) {
        self.state.config.send_modify(edit);
    }

    async fn seen<T>(&self, what: &str, test: impl Fn(&Seen) -> Option<T>) -> T {
        eventually(what, || async { test(&self.state.seen.lock().unwrap()) }).await
    }

    fn proxy(&self, kind: NodeKind, account: &str, probe: Option<Probe>) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let log = AccessLog::open(dir.path(), "proxy", &AccessLogMetrics::default()).unwrap();
        let mut registry = Registry::default();
        let handle = Proxy::start(ProxyOptions {
            node: Node {
                kind,
                name: format!("{account}-1"),
                namespace: "ns".into(),
                service_account: account.into(),
                addresses: vec!["127.0.0.1".parse().unwrap()],
                labels: BTreeMap::new(),
                ports: vec![],
                cluster_id: "red".into(),
                network: String::new(),
                metadata: BTreeMap::new(),
            },
            control_plane: ControlPlane::new(ControlPlaneOptions {
                host: self.address.ip().to_string(),
                port: self.address.port(),
                root: RootSource::Pem(
                    format!("{}{}", self.mesh.ca.root_pem(), self.more_roots).into(),
                ),
                server: Self::server_id(&self.mesh),
            })
            .unwrap(),
            token: TokenSource::Call(Arc::new(|| Box::pin(async { Ok("token".to_owned()) }))),
            access_log: log,
            metrics: Metrics::new(&mut registry),
            identity_metrics: IdentityMetrics::new(&mut registry),
            limits: ConnectionLimits::default(),
            name_servers: Vec::new(),
            drain: Duration::from_millis(300),
            probe,
        })
        .unwrap();
        Running { handle, _dir: dir }
    }
}

struct Running {
    handle: ProxyHandle,
    _dir: tempfile::TempDir,
}

impl Running {
    async fn ready(&self) {
        tokio::time::timeout(PATIENCE, self.handle.ready())
            .await
            .expect("ready");
    }
}

struct Ca(Arc<Mesh>);

#[tonic::async_trait]
impl IstioCertificateService for Ca {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let token = request.metadata().get("authorization").unwrap();
        assert_eq!(token, "Bearer token");
        let ca: &CertificateAuthority = &self.0.ca;
        let id = self.0.id("ingress");
        let hour = Duration::from_secs(3600);
        let issued = ca
            .sign_workload(&request.into_inner().csr, &id, hour, SystemTime::now())
            .unwrap();
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: vec![issued.to_pem(), ca.root_pem().to_owned()],
        }))
    }
}

struct Ads(Arc<State>);

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

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
        let (sender, responses) = mpsc::unbounded_channel();
        let mut stream = AdsStream {
            state: self.0.clone(),
            sender,
            kinds: HashMap::new(),
        };
        let mut requests = request.into_inner();
        let mut config = self.0.config.subscribe();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    request = requests.message() => match request {
                        Ok(Some(request)) => stream.request(request),
                        Ok(None) => {
                            stream.state.seen.lock().unwrap().goodbyes += 1;
                            return;
                        }
                        Err(_) => return,
                    },
                    _ = config.changed() => stream.push(),
                }
            }
        });
        Ok(Response::new(
            UnboundedReceiverStream::new(responses).boxed(),
        ))
    }
}

struct AdsStream {
    state: Arc<State>,
    sender: mpsc::UnboundedSender<Result<DeltaDiscoveryResponse, Status>>,
    kinds: HashMap<TypeUrl, Kinds>,
}

#[derive(Default)]
struct Kinds {
    /// Empty: all.
    names: BTreeSet<String>,
    sent: BTreeMap<String, String>,
    absent: BTreeSet<String>,
    answered: bool,
}

impl AdsStream {
    fn request(&mut self, request: DeltaDiscoveryRequest) {
        {
            let mut seen = self.state.seen.lock().unwrap();
            if let Some(node) = request.node {
                let fields = node.metadata.unwrap().fields;
                let ready = match fields.get("READY").and_then(|v| v.kind.as_ref()) {
                    Some(Kind::BoolValue(ready)) => Some(*ready),
                    _ => None,
                };
                seen.ready.push((tokio::time::Instant::now(), ready));
                seen.node_ids.insert(node.id);
            }
            seen.refusals
                .extend(request.error_detail.map(|e| e.message));
            seen.initial_versions += request.initial_resource_versions.len();
        }
        let kind = TypeUrl::parse(&request.type_url).unwrap();
        let state = self.kinds.entry(kind).or_default();
        // Who asks for what it was sent has not got it.
        for name in &request.resource_names_subscribe {
            state.sent.remove(name);
        }
        state.sent.extend(request.initial_resource_versions);
        state.names.extend(request.resource_names_subscribe);
        for name in request.resource_names_unsubscribe {
            state.names.remove(&name);
            if !matches!(kind, TypeUrl::Cluster | TypeUrl::Listener) {
                state.sent.remove(&name);
            }
        }
        self.push();
    }

    fn push(&mut self) {
        let config = self.state.config.borrow().clone();
        for kind in TypeUrl::ADS_ORDER {
            let Some(state) = self.kinds.get_mut(&kind) else {
                continue;
            };
            let wildcard =
                matches!(kind, TypeUrl::Cluster | TypeUrl::Listener) || state.names.contains("*");
            let all = resources(kind, &config);
            let wanted = |name: &String| wildcard || state.names.contains(name);
            let new: Vec<Resource> = all
                .iter()
                .filter(|(name, any)| wanted(name) && state.sent.get(*name) != Some(&version(any)))
                .map(|(name, any)| Resource {
                    name: name.clone(),
                    version: version(any),
                    resource: Some(any.clone()),
                    ..Resource::default()
                })
                .collect();
            let gone = state.sent.keys().filter(|n| !all.contains_key(*n));
            let missing = state.names.iter();
            let missing = missing.filter(|n| *n != "*" && !all.contains_key(*n));
            let removed: BTreeSet<String> = gone
                .chain(missing)
                .filter(|n| !state.absent.contains(*n))
                .cloned()
                .collect();
            if new.is_empty() && removed.is_empty() && state.answered {
                continue;
            }
            state.answered = true;
            for resource in &new {
                let version = resource.version.clone();
                state.sent.insert(resource.name.clone(), version);
                state.absent.remove(&resource.name);
            }
            for name in &removed {
                state.sent.remove(name);
                if !wildcard {
                    state.absent.insert(name.clone());
                }
            }
            let _ = self.sender.send(Ok(DeltaDiscoveryResponse {
                type_url: kind.as_str().to_owned(),
                nonce: "n".into(),
                resources: new,
                removed_resources: removed.into_iter().collect(),
                ..DeltaDiscoveryResponse::default()
            }));
        }
    }
}

fn version(any: &Any) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    any.value.hash(&mut hasher);
    hasher.finish().to_string()
}

fn resources(kind: TypeUrl, config: &ProxyConfig) -> BTreeMap<String, Any> {
    fn all<T>(map: &Parts<T>, f: impl Fn(&str, &T) -> Any) -> BTreeMap<String, Any> {
        map.iter().map(|(n, v)| (n.to_string(), f(n, v))).collect()
    }
    match kind {
        TypeUrl::Trust => all(&config.trust, encode::trust),
        TypeUrl::Cluster => all(&config.clusters, |_, c| encode::cluster(c)),
        TypeUrl::Endpoints => all(&config.endpoints, |_, e| encode::endpoints(e)),
        TypeUrl::Listener => all(&config.listeners, |_, l| encode::listener(l)),
        TypeUrl::Routes => all(&config.routes, |name, _| encode::separate_routes(name)),
        TypeUrl::VirtualHosts => {
            let hosts = config
                .routes
                .values()
                .flat_map(|table| table.hosts.values());
            hosts
                .map(|host| (host.name.to_string(), encode::virtual_host(host)))
                .collect()
        }
    }
}

const SNI: &str = "outbound_.9080_._.ratings.local";

fn gateway_config(config: &mut ProxyConfig, peer: &Mesh, backend: SocketAddr, at: SocketAddr) {
    add_trust(config, "peer", bundle(&[peer]));
    let mut to = cluster(SNI, &[]);
    to.discovery = Discovery::Eds(SNI.into());
    add_cluster(config, to);
    let endpoints = Endpoints {
        name: SNI.into(),
        localities: vec![LocalityEndpoints {
            endpoints: vec![Endpoint {
                mesh_tls: false,
                ..Endpoint::new(backend)
            }],
            ..LocalityEndpoints::default()
        }],
    };
    config.endpoints.insert(SNI.into(), endpoints.into());
    let name = ServerName::Suffix("ratings.local".into());
    let policy = allow("p", &[peer.id("egress")]);
    let exports = chain(
        "e",
        vec![name],
        tcp(TcpTarget::SniCluster, Some(vec![policy])),
    );
    let mut in_ = listener("in", vec![exports]);
    in_.address = at;
    add_listener(config, in_);
}

async fn call(to: SocketAddr, server: &Mesh, peer: &Mesh) -> std::io::Result<Vec<u8>> {
    let identity = Some(peer.identity("egress"));
    let mut stream = tls_connect(to, Some(SNI), identity, server).await?;
    ask(&mut stream, b"x").await
}

#[tokio::test]
async fn virtual_hosts_come_and_go_one_by_one_and_requests_to_others_go_on() {
    let plane = Plane::new().await;
    let host = |name: &str, status: u16| VirtualHost {
        name: host_name("table", name),
        domains: vec![name.to_owned()],
        routes: vec![Route {
            name: "all".into(),
            path: PathMatch::Prefix("/".into()),
            headers: vec![],
            action: RouteAction::Respond {
                status,
                body: String::new(),
            },
        }],
    };
    let address = plane.listener_address();
    let set = |hosts: Vec<VirtualHost>| {
        let table = RouteTable::new("table", hosts);
        plane.change(|c| {
            c.routes.insert("table".into(), table.into());
        });
    };
    set(vec![host("a", 201), host("b", 202)]);
    plane.change(|config| {
        let http = Network::Http(Http {
            stat_prefix: "test".into(),
            routes: HttpRoutes::Rds("table".into()),
            allow: None,
            forward_client_id: false,
            append_forwarded_for: false,
            accept_connect: false,
            stream_idle_timeout: Duration::ZERO,
        });
        let mut chain = chain("c", vec![], http);
        chain.tls = None;
        let mut proxy = listener("proxy", vec![chain]);
        proxy.address = address;
        add_listener(config, proxy);
    });
    let proxy = plane.proxy(NodeKind::Sidecar, "ingress", None);
    proxy.ready().await;
    let socket = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) = http1::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let sender = tokio::sync::Mutex::new(sender);
    let status = async |host: &str| {
        let mut sender = sender.lock().await;
        sender.ready().await.unwrap();
        let request = http::Request::get("/").header("host", host);
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        response.status().as_u16()
    };
    let gone = async |host: &str| {
        let what = format!("the end of {host}");
        let none = || async { (status(host).await == 404).then_some(()) };
        eventually(&what, none).await;
    };
    let at_first = [status("a").await, status("B").await, status("c").await];
    assert_eq!(at_first, [201, 202, 404], "all came before it was ready");
    set(vec![host("a", 201), host("c", 203)]);
    gone("b").await;
    assert_eq!([status("a").await, status("c").await], [201, 203]);
    set(vec![host("a", 204)]);
    gone("c").await;
    assert_eq!(status("a").await, 204);
    assert_eq!(
        plane.state.seen.lock().unwrap().refusals,
        Vec::<String>::new()
    );
    proxy.handle.stop().await;
}

#[tokio::test]
async fn a_gateway_gets_its_certificate_and_configuration_and_outlives_its_control_plane() {
    let mut plane = Plane::new().await;
    let green = Mesh::new("green-mesh.local");
    let (first, second) = (Backend::echo("first").await, Backend::echo("second").await);
    let at = plane.listener_address();
    plane.change(|c| gateway_config(c, &green, first.address, at));
    let proxy = plane.proxy(NodeKind::Gateway, "ingress", None);
    proxy.ready().await;
    let to = proxy.handle.bound()["in"];
    assert_eq!(call(to, &plane.mesh, &green).await.unwrap(), b"first: x");
    let ids = plane.seen("a node", |s| Some(s.node_ids.clone())).await;
    assert_eq!(
        ids.first().unwrap(),
        "router~127.0.0.1~ingress-1.ns~ns.svc.cluster.local"
    );

    plane.kill().await;
    eventually("the loss to be noticed", || async {
        (!proxy.handle.is_connected()).then_some(())
    })
    .await;
    assert_eq!(call(to, &plane.mesh, &green).await.unwrap(), b"first: x");

    plane.change(|c| gateway_config(c, &green, second.address, at));
    plane.start().await;
    eventually("the change", || async {
        let answer = call(to, &plane.mesh, &green).await.unwrap();
        (answer == b"second: x").then_some(())
    })
    .await;
    let known = plane.seen("versions", |s| Some(s.initial_versions)).await;
    assert_eq!(known, 4);
    assert!(plane.state.seen.lock().unwrap().refusals.is_empty());
    proxy.handle.stop().await;
    plane
        .seen("a goodbye", |s| (s.goodbyes == 1).then_some(()))
        .await;
    assert!(TcpStream::connect(to).await.is_err());
}

#[tokio::test]
async fn a_listener_waits_for_its_trust_and_one_whose_port_is_taken_is_refused_until_it_is_free() {
    let plane = Plane::new().await;
    let green = Mesh::new("green-mesh.local");
    let backend = Backend::echo("b").await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = plane.listener_address();
    plane.change(|c| {
        gateway_config(c, &green, backend.address, at);
        let mut blocked = Listener::clone(&c.listeners["in"]);
        blocked.name = "blocked".into();
        blocked.address = taken.local_addr().unwrap();
        add_listener(c, blocked);
    });
    let proxy = plane.proxy(NodeKind::Gateway, "ingress", None);
    let refusals = plane
        .seen("a refusal", |s| {
            Some(s.refusals.clone()).filter(|r| !r.is_empty())
        })
        .await;
    let address = taken.local_addr().unwrap();
    assert!(
        refusals[0].contains("blocked") && refusals[0].contains(&address.to_string()),
        "{refusals:?}"
    );
    let to = eventually("the other listener", || async {
        let bound = proxy.handle.bound();
        assert!(bound.keys().all(|name| name == "in"));
        bound.get("in").copied()
    })
    .await;
    assert!(!proxy.handle.is_ready());
    assert_eq!(call(to, &plane.mesh, &green).await.unwrap(), b"b: x");
    // Whoever had the port is gone.
    drop(taken);
    proxy.ready().await;
    eventually("the port", || async {
        let answer = call(address, &plane.mesh, &green).await;
        answer.is_ok_and(|answer| answer == b"b: x").then_some(())
    })
    .await;
    // An export is withdrawn.
    plane.change(|c| {
        c.clusters.remove(SNI);
        c.endpoints.remove(SNI);
    });
    eventually("the end of the export", || async {
        let answer = call(to, &plane.mesh, &green).await;
        (!matches!(answer, Ok(a) if !a.is_empty())).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_proxy_that_knows_both_roots_follows_its_mesh_from_one_to_the_other() {
    let mut plane = Plane::new().await;
    let next = Arc::new(Mesh::new("red-mesh.local"));
    plane.more_roots = next.ca.root_pem().to_owned();
    let proxy = plane.proxy(NodeKind::Gateway, "ingress", None);
    proxy.ready().await;
    plane.kill().await;
    plane.mesh = next;
    plane.start().await;
    // Its certificate is of the old root, which the control plane does not know.
    let at = plane.listener_address();
    plane.change(|c| {
        add_listener(c, {
            let mut listener = listener(
                "in",
                vec![chain("c", vec![], tcp(TcpTarget::SniCluster, None))],
            );
            listener.address = at;
            listener
        });
    });
    eventually("what changed since", || async {
        proxy.handle.bound().contains_key("in").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_sidecar_tells_when_its_application_comes_and_goes_and_when_it_leaves_itself() {
    let plane = Plane::new().await;
    let address = SocketAddr::from((plane.net.address(2), 9080));
    let probe = Some(Probe::Tcp(vec![address]));
    let proxy = plane.proxy(NodeKind::Sidecar, "ingress", probe);
    let last = |s: &Seen| s.ready.last().map(|(_, ready)| *ready);
    plane
        .seen("unready", |s| (last(s) == Some(Some(false))).then_some(()))
        .await;
    let app = TcpListener::bind(address).await.unwrap();
    plane
        .seen("ready", |s| (last(s) == Some(Some(true))).then_some(()))
        .await;
    let gone = tokio::time::Instant::now();
    drop(app);
    let told = plane
        .seen("unready again", |s| {
            let last = s.ready.last().filter(|(_, r)| *r == Some(false));
            last.map(|(at, _)| *at)
        })
        .await;
    // Some 200 ms, on a machine that does nothing else.
    let took = told - gone;
    assert!(took < Duration::from_secs(10), "{took:?}");
    let before = plane.state.seen.lock().unwrap().ready.len();
    proxy.handle.stop().await;
    plane
        .seen("the goodbye", |s| {
            (s.ready.len() > before && s.goodbyes == 1).then_some(())
        })
        .await;
}
