//! One request to a peer: from the connection to our egress gateway to the end of the answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use meshfed_federation::discovery::client::{AnsweredBy, Failure, RequestId};
use meshfed_federation::discovery::extension::{ANNOUNCE_HEADER, announces};
use meshfed_federation::plan::DiscoveryTarget;
use meshfed_pki::HandshakeRefusal;
use meshfed_proxy_config::{ANSWERED, ANSWERED_BEYOND, ANSWERED_HERE};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::discovery::keep_alive;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long, and how many characters, a gateway may take to say why it has no answer for us.
const WORDS_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_WORDS: usize = 120;
/// Bytes of the head of an answer.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// What a request has to tell.
#[derive(Debug)]
pub(super) enum Progress {
    /// Answered with 200; whether the answer announces the extension.
    Opened(bool),
    Data(Bytes),
    Ended(Option<Failure>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Watch,
    List,
}

pub(super) fn not_modified() -> Failure {
    status_failure(StatusCode::NOT_MODIFIED, String::new(), AnsweredBy::Unknown)
}

/// `says` is empty and `by` not known unless a gateway on the way said something.
fn status_failure(status: StatusCode, says: String, by: AnsweredBy) -> Failure {
    let code = status.as_u16();
    let reason = status.canonical_reason().unwrap_or_default().to_owned();
    if says.is_empty() && by == AnsweredBy::Unknown {
        Failure::Status(code, reason)
    } else {
        Failure::Gateway {
            code,
            reason,
            says,
            by,
        }
    }
}

pub(super) fn failed(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::Transport(format!("{what}: {error}"))
}

/// One request from connect to the end of its body.
pub(super) async fn exchange(
    target: &DiscoveryTarget,
    tls: Arc<ClientConfig>,
    kind: Kind,
    headers: Vec<(&'static str, String)>,
    id: RequestId,
    progress: &mpsc::Sender<(RequestId, Progress)>,
) -> Result<(), Failure> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target.address))
        .await
        .map_err(|e| failed("egress gateway", &e))?
        .map_err(|e| failed("egress gateway", &e))?;
    keep_alive(&stream).map_err(|e| failed("egress gateway", &e))?;
    let host = target.authority.split(':').next().unwrap_or_default();
    let name = rustls::pki_types::ServerName::try_from(host.to_owned())
        .map_err(|e| failed("egress gateway", &e))?;
    let stream = TlsConnector::from(tls)
        .connect(name, stream)
        .await
        .map_err(|error| {
            let refusal = HandshakeRefusal::find(&error);
            refusal.map_or_else(
                || failed("TLS with the egress gateway", &error),
                |refusal| failed("TLS with the egress gateway", &refusal.label()),
            )
        })?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed("HTTP", &e))?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // What goes wrong here comes back from the request or its body as well.
        let _ = connection.await;
    });
    let path = match kind {
        Kind::Watch => "/v1/watch",
        Kind::List => "/v1/services/",
    };
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(header::HOST, &target.authority)
        .header(
            header::USER_AGENT,
            concat!("meshfed/", env!("CARGO_PKG_VERSION")),
        );
    for (name, value) in &target.headers {
        request = request.header(name, value);
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed("HTTP", &e))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| failed("HTTP", &e))?;
    let status = response.status();
    let announced = response.headers().get(ANNOUNCE_HEADER);
    let extended = announces(announced.and_then(|value| value.to_str().ok()));
    let answered = response.headers().get(ANSWERED);
    let by = match answered.and_then(|value| value.to_str().ok()) {
        Some(ANSWERED_HERE) => AnsweredBy::Egress,
        Some(ANSWERED_BEYOND) => AnsweredBy::Peer,
        _ => AnsweredBy::Unknown,
    };
    let mut body = response.into_body();
    if status != StatusCode::OK {
        let (says, by) = match status.as_u16() {
            502..=504 => (words(&mut body).await, by),
            _ => (String::new(), AnsweredBy::Unknown),
        };
        return Err(status_failure(status, says, by));
    }
    let tell = async |what| {
        let told = progress.send((id, what)).await;
        told.map_err(|_| Failure::Transport("not wanted any more".to_owned()))
    };
    tell(Progress::Opened(extended)).await?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| failed("HTTP", &e))?;
        if let Ok(chunk) = frame.into_data() {
            tell(Progress::Data(chunk)).await?;
        }
    }
    Ok(())
}

/// The first line of an answer that is text, without what a terminal would act on; empty if there
/// is none in time.
async fn words(body: &mut Incoming) -> String {
    let frame = tokio::time::timeout(WORDS_TIMEOUT, body.frame()).await;
    let data = frame.ok().flatten().and_then(Result::ok);
    let data = data.and_then(|frame| frame.into_data().ok());
    let text = String::from_utf8_lossy(data.as_deref().unwrap_or_default()).into_owned();
    let line = text.lines().next().unwrap_or_default();
    let plain = line.chars().filter(|c| c.is_ascii_graphic() || *c == ' ');
    plain.take(MAX_WORDS).collect()
}
