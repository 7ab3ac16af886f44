//! Whether the application beside a sidecar answers.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// How often an application that does not answer is asked.
const WHILE_DOWN: Duration = Duration::from_millis(100);
/// How often one that answers is asked: its end must be noticed well within half a second, and a
/// connection on the same machine costs some ten microseconds.
const WHILE_UP: Duration = Duration::from_millis(200);
/// An answer that takes longer is none.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How an application is asked whether it is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// It accepts connections on all of these.
    Tcp(Vec<SocketAddr>),
    /// It answers a GET with a status from 200 to 399.
    Http { address: SocketAddr, path: String },
}

/// Asks for ever and tells every change.
pub(crate) async fn watch(probe: Probe, ready: watch::Sender<Option<bool>>) {
    loop {
        let answers = tokio::time::timeout(TIMEOUT, probe.ask())
            .await
            .unwrap_or(false);
        let changed = ready.send_if_modified(|was| was.replace(answers) != Some(answers));
        if changed {
            tracing::info!(ready = answers, "the application's readiness has changed");
        }
        tokio::time::sleep(if answers { WHILE_UP } else { WHILE_DOWN }).await;
    }
}

impl Probe {
    async fn ask(&self) -> bool {
        match self {
            Self::Tcp(addresses) => {
                for address in addresses {
                    if TcpStream::connect(address).await.is_err() {
                        return false;
                    }
                }
                true
            }
            Self::Http { address, path } => matches!(get(*address, path).await, Ok(200..400)),
        }
    }
}

/// The status of the answer to a GET.
async fn get(address: SocketAddr, path: &str) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: meshfed-probe\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // `HTTP/1.1 200`
    let mut line = [0; 12];
    stream.read_exact(&mut line).await?;
    std::str::from_utf8(&line)
        .ok()
        .and_then(|l| l.strip_prefix("HTTP/1."))
        .and_then(|l| l.get(2..)?.parse().ok())
        .ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_application_that_comes_and_goes_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, mut ready) = watch::channel(None);
        let task = tokio::spawn(watch(Probe::Tcp(vec![address]), sender));
        ready.wait_for(|r| *r == Some(true)).await.unwrap();
        drop(listener);
        ready.wait_for(|r| *r == Some(false)).await.unwrap();
        task.abort();
    }

    #[tokio::test]
    async fn an_http_status_decides() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            for status in ["200 OK", "503 Service Unavailable", "nonsense"] {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = [0; 18];
                socket.read_exact(&mut request).await.unwrap();
                assert_eq!(&request, b"GET /ready HTTP/1.");
                let answer = format!("HTTP/1.1 {status}\r\n\r\n");
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let probe = Probe::Http {
            address,
            path: "/ready".into(),
        };
        assert!(probe.ask().await);
        assert!(!probe.ask().await);
        assert!(!probe.ask().await);
        server.await.unwrap();
    }
}
