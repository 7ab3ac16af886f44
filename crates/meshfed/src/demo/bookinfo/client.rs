//! How a workload calls others: through its sidecar, as an explicit HTTP proxy.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const TIMEOUT: Duration = Duration::from_secs(5);
const BODY_LIMIT: usize = 1024 * 1024;
const PORT: u16 = 9080;

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("the sidecar at {0} does not accept connections")]
    Sidecar(SocketAddr, #[source] std::io::Error),
    #[error("the request could not be written")]
    Request(#[from] http::Error),
    #[error("the connection to the sidecar ended early")]
    Http(#[from] hyper::Error),
    #[error("the answer could not be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer is not JSON")]
    Json(#[from] serde_json::Error),
    #[error("the answer has status {0}")]
    Status(u16),
    #[error("there was no answer within 5 s")]
    Timeout,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
}

/// Calls services on port 9080 through one sidecar.
#[derive(Debug, Clone, Copy)]
pub struct ProxyClient {
    sidecar: SocketAddr,
}

impl ProxyClient {
    pub fn new(sidecar: SocketAddr) -> Self {
        Self { sidecar }
    }

    /// `GET http://<host>:9080<path>`.
    pub async fn get(&self, host: &str, path: &str) -> Result<Answer, CallError> {
        tokio::time::timeout(TIMEOUT, self.exchange(host, path))
            .await
            .unwrap_or(Err(CallError::Timeout))
    }

    /// As [`get`](Self::get), for an answer of status 200 with JSON in it.
    pub async fn json(&self, host: &str, path: &str) -> Result<Value, CallError> {
        let answer = self.get(host, path).await?;
        if answer.status != 200 {
            return Err(CallError::Status(answer.status));
        }
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// As [`get`](Self::get), through a tunnel that ends with the answer (CONNECT).
    pub async fn get_by_tunnel(&self, host: &str, path: &str) -> Result<Answer, CallError> {
        tokio::time::timeout(TIMEOUT, self.tunnelled(host, path))
            .await
            .unwrap_or(Err(CallError::Timeout))
    }

    async fn tunnelled(&self, host: &str, path: &str) -> Result<Answer, CallError> {
        let authority = format!("{host}:{PORT}");
        let (mut sender, mut tasks) = self.connect().await?;
        let connect = Request::connect(&authority)
            .header(header::HOST, &authority)
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(connect).await?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(CallError::Status(status));
        }
        let tunnel = hyper::upgrade::on(response).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(tunnel).await?;
        tasks.spawn(connection);
        let request = Request::get(path)
            .header(header::HOST, &authority)
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())?;
        read(sender.send_request(request).await?).await
    }

    async fn exchange(&self, host: &str, path: &str) -> Result<Answer, CallError> {
        let authority = format!("{host}:{PORT}");
        let (mut sender, _tasks) = self.connect().await?;
        let request = Request::builder()
            .method(Method::GET)
            .uri(format!("http://{authority}{path}"))
            .header(header::HOST, authority)
            .body(Empty::<Bytes>::new())?;
        read(sender.send_request(request).await?).await
    }

    /// A connection to the sidecar; it lives as long as the tasks.
    async fn connect(
        &self,
    ) -> Result<(SendRequest<Empty<Bytes>>, JoinSet<hyper::Result<()>>), CallError> {
        let stream = TcpStream::connect(self.sidecar)
            .await
            .map_err(|e| CallError::Sidecar(self.sidecar, e))?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection.with_upgrades());
        Ok((sender, tasks))
    }
}

async fn read(response: Response<Incoming>) -> Result<Answer, CallError> {
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), BODY_LIMIT)
        .collect()
        .await
        .map_err(CallError::Body)?
        .to_bytes();
    Ok(Answer { status, body })
}
