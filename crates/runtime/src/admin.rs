//! The admin server of a process, on a loopback address.
//!
//! | path | answer |
//! | --- | --- |
//! | `GET /healthz/ready` | 200 `ready`, or 503 with what is still awaited, a line each |
//! | `GET /metrics` | OpenMetrics text |
//! | `GET /log` | the log level in force |
//! | `PUT /log` | sets it; the body is the level or directives |
//! | `GET /config_dump` | what the process was told, as JSON |

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::drain::DrainWatch;
use crate::logging::LogHandle;
use crate::metrics::Metrics;
use crate::readiness::Readiness;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const MAX_BODY: usize = 4096;

/// Why the admin server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(
        "the admin address {0} is not a loopback address; the admin server has no authentication"
    )]
    NotLoopback(SocketAddr),
    #[error("the admin address {address} cannot be bound")]
    Bind {
        address: SocketAddr,
        #[source]
        cause: io::Error,
    },
}

/// Gives the configuration in use, as a JSON text.
pub type ConfigDump = Arc<dyn Fn() -> String + Send + Sync>;

/// What the admin server shows.
#[derive(Clone)]
pub struct Admin {
    pub readiness: Readiness,
    pub metrics: Metrics,
    /// `None`: the level can be neither read nor set (404).
    pub log: Option<LogHandle>,
    /// `None`: 404.
    pub config_dump: Option<ConfigDump>,
}

impl Admin {
    /// Binds a loopback address; port 0 takes a free one.
    pub async fn bind(self, address: SocketAddr) -> Result<AdminServer, AdminError> {
        if !address.ip().is_loopback() {
            return Err(AdminError::NotLoopback(address));
        }
        let failed = |cause| AdminError::Bind { address, cause };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(AdminServer {
            admin: self,
            listener,
            address,
        })
    }

    fn router(self) -> Router {
        Router::new()
            .route("/healthz/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/log", get(log_level).put(set_log_level))
            .route("/config_dump", get(config_dump))
            .layer(middleware::from_fn(same_machine))
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(self)
    }
}

/// A bound admin server.
pub struct AdminServer {
    admin: Admin,
    listener: TcpListener,
    address: SocketAddr,
}

impl AdminServer {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the drain is over or forced: readiness and metrics are wanted meanwhile too, so
    /// this does not stop at the signal and holds no guard.
    pub async fn serve(self, drain: DrainWatch) -> io::Result<()> {
        let served = axum::serve(self.listener, self.admin.router());
        tokio::select! {
            served = served => served,
            () = drain.forced() => Ok(()),
        }
    }
}

/// Web pages must not reach this server through a name that somebody points at loopback.
async fn same_machine(request: Request, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .or_else(|| request.uri().host())
        .unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let local = name == "localhost"
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    if local {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "the Host is not this machine\n").into_response()
    }
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    let pending = admin.readiness.pending();
    if pending.is_empty() {
        (StatusCode::OK, "ready\n".to_string())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, pending.join("\n") + "\n")
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match admin.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn log_level(State(admin): State<Admin>) -> Response {
    match &admin.log {
        Some(log) => (log.level() + "\n").into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn set_log_level(State(admin): State<Admin>, level: String) -> Response {
    let Some(log) = &admin.log else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match log.set_level(level.trim()) {
        Ok(()) => {
            tracing::info!(level = level.trim(), "log level set");
            (log.level() + "\n").into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

async fn config_dump(State(admin): State<Admin>) -> Response {
    match &admin.config_dump {
        Some(dump) => ([(header::CONTENT_TYPE, "application/json")], dump()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::drain::Drain;

    fn mk_admin() -> Admin {
        Admin {
            readiness: Readiness::new(),
            metrics: Metrics::new(),
            log: None,
            config_dump: Some(Arc::new(|| r#"{"peers":[]}"#.to_string())),
        }
    }

    async fn get_as(address: SocketAddr, host: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readiness_tells_what_is_missing_and_metrics_are_shown() {
        let admin = mk_admin();
        let guard = admin.readiness.guard("peer list");
        let server = admin.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = server.address();
        let (drain, watch) = Drain::new();
        let serving = tokio::spawn(server.serve(watch));

        let answer = get_as(address, "localhost", "/healthz/ready").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.ends_with("peer list\n"), "{answer}");
        drop(guard);
        let answer = get_as(address, "127.0.0.1:1", "/healthz/ready").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

        let answer = get_as(address, "[::1]:80", "/metrics").await;
        assert!(answer.contains(OPEN_METRICS), "{answer}");
        assert!(answer.ends_with("# EOF\n"), "{answer}");
        let answer = get_as(address, "localhost", "/config_dump").await;
        assert!(answer.ends_with(r#"{"peers":[]}"#), "{answer}");
        let answer = get_as(address, "localhost", "/log").await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");

        drop(drain);
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_page_on_another_host_name_is_refused() {
        let server = mk_admin()
            .bind("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = server.address();
        let (_drain, watch) = Drain::new();
        tokio::spawn(server.serve(watch));
        let answer = get_as(address, "rebound.example:15000", "/config_dump").await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }

    #[tokio::test]
    async fn an_address_that_others_can_reach_is_refused() {
        let bound = mk_admin().bind("0.0.0.0:0".parse().unwrap()).await;
        assert!(matches!(bound, Err(AdminError::NotLoopback(_))));
    }
}
