//! A control plane on loopback, as far as an agent can see it: TLS with its identity, and the
//! certificate service.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a panic is how a test fails; no test uses all of this"
)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hyper_util::rt::{TokioExecutor, TokioIo};
use meshfed_agent::{ControlPlaneOptions, RootSource};
use meshfed_pki::{
    CertificateAuthority, IdentityCell, ServerTls, SpiffeId, TrustDomain, TrustStore, peer_id,
    server_config_optional_client,
};
use meshfed_xds::ca::server::{IstioCertificateService, IstioCertificateServiceServer};
use meshfed_xds::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tower::Service;

pub const ISTIOD: &str = "spiffe://red-mesh.local/ns/red-mesh-system/sa/istiod-red-mesh";
pub const RATINGS: &str = "spiffe://red-mesh.local/ns/bookinfo/sa/ratings";
pub const TOKEN: &str = "a-good-token";
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// The authority, and whom it believes to be whom.
pub struct Authority {
    pub ca: CertificateAuthority,
    pub tokens: Mutex<HashMap<String, SpiffeId>>,
    pub ttl: Mutex<Duration>,
    /// In the certificates of servers.
    pub addresses: Vec<IpAddr>,
    /// How each certificate was proved, in the order of the requests.
    pub proofs: Mutex<Vec<&'static str>>,
}

impl Authority {
    pub fn new() -> Arc<Self> {
        Self::at(Ipv4Addr::LOCALHOST.into())
    }

    /// Whose servers are at this address.
    pub fn at(address: IpAddr) -> Arc<Self> {
        let ca = CertificateAuthority::self_signed("red-mesh", SystemTime::now()).unwrap();
        Arc::new(Self {
            ca,
            tokens: Mutex::new(HashMap::from([(TOKEN.to_string(), id(RATINGS))])),
            ttl: Mutex::new(Duration::from_secs(3600)),
            addresses: vec![address],
            proofs: Mutex::default(),
        })
    }

    pub fn trust(&self, domain: &TrustDomain) -> TrustStore {
        TrustStore::single(domain.clone(), self.ca.root_pem()).unwrap()
    }

    pub fn identity_of(&self, text: &str) -> meshfed_pki::Identity {
        self.ca
            .issue_server(
                &[],
                &self.addresses,
                Some(&id(text)),
                Duration::from_secs(3600),
                SystemTime::now(),
            )
            .unwrap()
    }
}

#[derive(Clone)]
struct Caller(Option<SpiffeId>);

pub struct CaService(pub Arc<Authority>);

#[tonic::async_trait]
impl IstioCertificateService for CaService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let Caller(caller) = request.extensions().get::<Caller>().unwrap().clone();
        let bearer = request.metadata().get("authorization");
        let (id, proof) = match (bearer, caller) {
            (Some(bearer), _) => {
                let token = bearer.to_str().unwrap().strip_prefix("Bearer ").unwrap();
                let known = self.0.tokens.lock().unwrap().get(token).cloned();
                (known, "token")
            }
            (None, caller) => (caller, "certificate"),
        };
        let id = id.ok_or_else(|| Status::unauthenticated("who are you?"))?;
        self.0.proofs.lock().unwrap().push(proof);
        let ttl = *self.0.ttl.lock().unwrap();
        let issued = self
            .0
            .ca
            .sign_workload(&request.get_ref().csr, &id, ttl, SystemTime::now())
            .unwrap();
        let mut cert_chain = issued.certificates;
        cert_chain.push(self.0.ca.root_pem().to_string());
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// Serves until aborted. `as_id`: the identity that it shows.
pub struct ControlPlane {
    pub address: SocketAddr,
    pub authority: Arc<Authority>,
    task: JoinHandle<()>,
}

impl ControlPlane {
    pub async fn start(authority: &Arc<Authority>) -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        Self::start_with(authority, any, ISTIOD, |routes| routes).await
    }

    pub async fn start_with(
        authority: &Arc<Authority>,
        address: SocketAddr,
        as_id: &str,
        add: impl FnOnce(Routes) -> Routes,
    ) -> Self {
        let config = server_config_optional_client(ServerTls {
            identity: Arc::new(IdentityCell::new(Some(authority.identity_of(as_id)))),
            trust: Arc::new(authority.trust(id(as_id).trust_domain())),
            client_ids: Vec::new(),
            alpn: vec!["h2".to_string()],
        });
        let tls = TlsAcceptor::from(config.unwrap());
        let ca = Arc::new(CaService(authority.clone()));
        let routes = add(Routes::new(IstioCertificateServiceServer::new(ca, 65_536))).prepare();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, routes) = (tls.clone(), routes.clone());
                connections.spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else {
                        return;
                    };
                    let certificates = stream.get_ref().1.peer_certificates();
                    let caller = certificates.and_then(|c| peer_id(c).ok());
                    let service =
                        hyper::service::service_fn(move |mut request: hyper::Request<_>| {
                            request.extensions_mut().insert(Caller(caller.clone()));
                            routes.clone().call(request)
                        });
                    // A client that goes away is no concern here.
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            address,
            authority: authority.clone(),
            task,
        }
    }

    pub fn options(&self) -> ControlPlaneOptions {
        ControlPlaneOptions {
            host: self.address.ip().to_string(),
            port: self.address.port(),
            root: RootSource::Pem(self.authority.ca.root_pem().into()),
            server: id(ISTIOD),
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}
