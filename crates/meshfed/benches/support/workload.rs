//! The two ends of a call: a workload of green-mesh that calls, and a server that answers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, PostParams};
use meshfed_agent::{CaClient, ControlPlane, ControlPlaneOptions, RootSource, TokenSource};
use meshfed_pki::{
    ClientTls, IdentityCell, ServerIds, ServerTls, SpiffeId, TrustDomain, TrustStore,
    client_config, server_config,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::federation::{Mesh, NAMESPACE};

/// What `/ratings/0` gives.
const RATINGS: &[u8] = br#"{"id":0,"ratings":{"Reviewer1":5,"Reviewer2":4}}"#;
/// Bytes that [`BULK`] gives.
const BULK_LEN: usize = 16 << 20;
pub const SMALL: &str = "/ratings/0";
#[allow(dead_code, reason = "of the benchmark of the gateways alone")]
pub const BULK: &str = "/bulk";

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The client of green-mesh, with a certificate of its mesh.
pub struct Workload {
    identity: Arc<IdentityCell>,
    trust: Arc<TrustStore>,
}

impl Workload {
    /// Gets the certificate as every workload does: by a signing request and a token.
    pub async fn join(green: &Mesh) -> anyhow::Result<Self> {
        let domain: TrustDomain = "green-mesh.local".parse()?;
        let token_file = green.dir.join("client.token");
        std::fs::write(&token_file, green.token("bookinfo", "client").await?)?;
        let control_plane = ControlPlane::new(ControlPlaneOptions {
            host: green.control_plane().ip().to_string(),
            port: green.control_plane().port(),
            root: RootSource::File(green.root_cert()),
            server: domain.service_account(&green.system(), "istiod-green-mesh")?,
        })?;
        let id: SpiffeId = domain.service_account("bookinfo", "client")?;
        let identity = Arc::new(IdentityCell::new(None));
        let authority = CaClient::new(control_plane, TokenSource::File(token_file), id);
        identity.set(authority.certificate(&identity).await?);
        let root = std::fs::read_to_string(green.root_cert())?;
        Ok(Self {
            identity,
            trust: Arc::new(TrustStore::single(domain, &root)?),
        })
    }

    /// Dials peers of its own mesh.
    pub fn client(&self) -> anyhow::Result<Arc<ClientConfig>> {
        Ok(client_config(ClientTls {
            identity: self.identity.clone(),
            trust: self.trust.clone(),
            server: ServerIds::AnyOf("green-mesh.local".parse()?),
            alpn: Vec::new(),
        })?)
    }

    /// Is dialled by peers of its own mesh.
    #[allow(dead_code, reason = "of the benchmark of the gateways alone")]
    pub fn server(&self) -> anyhow::Result<Arc<ServerConfig>> {
        Ok(server_config(ServerTls {
            identity: self.identity.clone(),
            trust: self.trust.clone(),
            client_ids: Vec::new(),
            alpn: Vec::new(),
        })?)
    }
}

/// The name by which the egress gateway knows port 9080 of what red-mesh exports as this.
pub fn sni(service: &str, namespace: &str) -> anyhow::Result<ServerName<'static>> {
    let name = format!("outbound_.9080_._.{service}.{namespace}.svc.red-mesh.remote");
    Ok(ServerName::try_from(name)?)
}

/// Somewhere to call.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Who is asked for: what a sidecar routes by.
    pub authority: String,
}

/// As green-mesh's workloads call what red-mesh exports as this.
pub fn imported(service: &str, namespace: &str) -> String {
    format!("{service}.{namespace}.svc.red-mesh-imports.local:9080")
}

/// One open connection.
pub struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    authority: String,
    driver: tokio::task::JoinHandle<()>,
}

impl Target {
    pub async fn open(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some((config, name)) => {
                let connector = TlsConnector::from(config.clone());
                Box::new(connector.connect(name.clone(), stream).await?)
            }
        };
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            // How it ended is seen by whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(Connection {
            sender,
            authority: self.authority.clone(),
            driver,
        })
    }

    /// The key exchange of a new connection; the larger part of what a handshake costs.
    #[allow(dead_code, reason = "of the benchmark of the gateways alone")]
    pub async fn key_exchange(&self) -> anyhow::Result<String> {
        let (config, name) = self.tls.as_ref().context("there is no TLS")?;
        let stream = TcpStream::connect(self.address).await?;
        let connector = TlsConnector::from(config.clone());
        let stream = connector.connect(name.clone(), stream).await?;
        let group = stream.get_ref().1.negotiated_key_exchange_group();
        Ok(format!(
            "{:?}",
            group.context("no key was exchanged")?.name()
        ))
    }

    /// A new connection for one request.
    pub async fn call_once(&self) -> anyhow::Result<()> {
        let mut connection = self.open().await?;
        connection.get(SMALL).await?;
        connection.close().await;
        Ok(())
    }
}

impl Connection {
    /// The number of bytes in the body of the answer.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<u64> {
        let request = Request::get(path)
            .header("host", &self.authority)
            .body(Empty::new())?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        anyhow::ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
        let mut body = answer.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame?.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok(length)
    }

    pub async fn close(self) {
        drop(self.sender);
        // It ends when there is nobody left to send.
        let _ = self.driver.await;
    }
}

/// Starts a server in this process; with `tls`, behind it.
pub async fn serve(tls: Option<Arc<ServerConfig>>) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let bulk = Bytes::from(vec![b'x'; BULK_LEN]);
    let tls = tls.map(TlsAcceptor::from);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, bulk) = (tls.clone(), bulk.clone());
            tokio::spawn(async move {
                // A broken connection is the caller's failure.
                let _ = answer(stream, tls, bulk).await;
            });
        }
    });
    Ok(address)
}

async fn answer(stream: TcpStream, tls: Option<TlsAcceptor>, bulk: Bytes) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        Some(tls) => Box::new(tls.accept(stream).await?),
    };
    let service = service_fn(async |request: Request<Incoming>| {
        let body = match request.uri().path() {
            SMALL => Bytes::from_static(RATINGS),
            _ => bulk.clone(),
        };
        Ok::<_, Infallible>(Response::new(Full::new(body)))
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await
        .context("a connection broke")
}

/// Writes by hand that a service of red-mesh is at `address`.
pub async fn write_endpoint(
    red: &Client,
    service: &str,
    address: SocketAddr,
) -> anyhow::Result<()> {
    let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
        "metadata": {
            "name": format!("{service}-by-hand"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": address.port(), "protocol": "TCP"}],
        "endpoints": [{"addresses": [address.ip()], "conditions": {"ready": true}}],
    }))?;
    let api: Api<EndpointSlice> = Api::namespaced(red.clone(), NAMESPACE);
    api.create(&PostParams::default(), &slice).await?;
    Ok(())
}
