//! Requests and what they are answered with.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming};
use meshfed_federation::discovery::extension::{
    ANNOUNCE_HEADER, ANNOUNCED, REPORT_HEADER, Report, announces,
};
use meshfed_federation::discovery::server::{Answer, Document, Take, WatchId, source_of};
use meshfed_pki::SpiffeId;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tracing::debug;

use super::{DiscoveryServer, Watch};

/// A request, as far as it matters.
struct Asked {
    source: String,
    extended: bool,
    /// The list that the peer has.
    known: Option<String>,
    report: Option<Report>,
}

/// What a request is answered with.
enum Reply {
    Empty(StatusCode),
    NotModified(String),
    List(Arc<Document>, OwnedSemaphorePermit),
    Watch(Events),
}

impl DiscoveryServer {
    pub(super) async fn respond(
        &self,
        request: &Request<Incoming>,
        client: &SpiffeId,
        address: SocketAddr,
    ) -> Response<Either<Full<Bytes>, Events>> {
        let asked = self.asked(request, address);
        let extended = asked.extended;
        let response = match self.answer(request, client, asked) {
            Reply::Empty(status) => empty(status),
            Reply::NotModified(tag) => tagged(empty(StatusCode::NOT_MODIFIED), &tag),
            Reply::List(document, permit) => {
                let tag = document.tag().to_string();
                // The first who asks pays for the encoding, and must not hold up others for it.
                let body = tokio::task::spawn_blocking(move || document.body(extended)).await;
                match body {
                    Ok(body) => {
                        let body = Bytes::from_owner(Sending {
                            body,
                            _place: permit,
                        });
                        let response = Response::new(Either::Left(Full::new(body)));
                        if extended {
                            tagged(response, &tag)
                        } else {
                            response
                        }
                    }
                    Err(_) => empty(StatusCode::INTERNAL_SERVER_ERROR),
                }
            }
            Reply::Watch(events) => {
                let mut response = Response::new(Either::Right(events));
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    header::HeaderValue::from_static("application/json"),
                );
                response
            }
        };
        self.log.line(format!(
            "time={} client={address} peer={client} method={} path={} status={}",
            self.clock.now().wall,
            request.method(),
            request.uri().path(),
            response.status().as_u16(),
        ));
        if extended {
            announced(response)
        } else {
            response
        }
    }

    /// What a request says beside its path. All of it is the peer's word.
    fn asked(&self, request: &Request<Incoming>, address: SocketAddr) -> Asked {
        let value = |name: &str| {
            let value = request.headers().get(name);
            value.and_then(|value| value.to_str().ok())
        };
        let extended = announces(value(ANNOUNCE_HEADER));
        let report = request
            .headers()
            .get(REPORT_HEADER)
            .filter(|_| extended)
            .map(|value| Report::decode(value.as_bytes()));
        if let Some(Err(error)) = &report {
            debug!(%address, %error, "a report was not taken");
        }
        Asked {
            source: source_of(value("x-forwarded-for"), address.ip()),
            extended,
            known: value("if-none-match")
                .filter(|_| extended)
                .map(str::to_owned),
            report: report.and_then(Result::ok),
        }
    }

    /// How often this is called, a peer decides, so what it logs is for who looks for it; the access log
    /// has every request.
    fn answer(&self, request: &Request<Incoming>, client: &SpiffeId, asked: Asked) -> Reply {
        let path = request.uri().path();
        let (list, name) = if let Some(name) = path.strip_prefix("/v1/services/") {
            (true, name)
        } else if let Some(name) = path.strip_prefix("/v1/watch/") {
            (false, name)
        } else {
            return Reply::Empty(StatusCode::NOT_FOUND);
        };
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return Reply::Empty(StatusCode::METHOD_NOT_ALLOWED);
        }
        let now = self.clock.now();
        let source = &asked.source;
        let mut state = self.lock();
        let Some(peer) = state.peers.get_mut(name) else {
            // The reference's answer for a peer that it does not know.
            return Reply::Empty(StatusCode::BAD_REQUEST);
        };
        if peer.client.as_ref() != Some(client) {
            debug!(peer = name, %client, "this identity may not ask for the exports to this peer");
            return Reply::Empty(StatusCode::FORBIDDEN);
        }
        let reply = if list {
            let Ok(permit) = peer.lists.clone().try_acquire_owned() else {
                debug!(peer = name, "too many lists at a time");
                return Reply::Empty(StatusCode::SERVICE_UNAVAILABLE);
            };
            debug!(peer = name, source, "the peer asks for our exports");
            match peer.machine.list(source, asked.known.as_deref(), now) {
                Answer::NotModified(tag) => Reply::NotModified(tag.to_string()),
                Answer::List(document) => Reply::List(document, permit),
            }
        } else {
            let (id, evicted) = peer.machine.open_watch(source, asked.extended, now);
            if let Some(gone) = &peer.withdrawn {
                peer.machine.tell_gone(id, gone);
            }
            if let Some(watch) = evicted.and_then(|id| peer.watches.remove(&id)) {
                watch.waker.notify_one();
            }
            let waker = Arc::new(Notify::new());
            let watch = Watch {
                client: client.clone(),
                waker: waker.clone(),
            };
            peer.watches.insert(id, watch);
            debug!(peer = name, source, "the peer watches our exports");
            Reply::Watch(Events {
                server: self.clone(),
                peer: name.to_owned(),
                generation: peer.generation,
                id,
                waiting: Box::pin(notified(waker.clone())),
                waker,
            })
        };
        if let Some(report) = asked.report {
            peer.machine.report(source, report, now);
        }
        self.publish(name, peer, now);
        reply
    }
}

/// A list on its way, which has a place as long as it is not sent.
struct Sending {
    body: Arc<[u8]>,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

fn tagged<B>(mut response: Response<B>, tag: &str) -> Response<B> {
    if let Ok(tag) = header::HeaderValue::from_str(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

fn announced<B>(mut response: Response<B>) -> Response<B> {
    response
        .headers_mut()
        .insert(ANNOUNCE_HEADER, header::HeaderValue::from_static(ANNOUNCED));
    response
}

fn empty(status: StatusCode) -> Response<Either<Full<Bytes>, Events>> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

async fn notified(waker: Arc<Notify>) {
    waker.notified().await;
}

/// The body of a watch: events as the machine has them, at the pace of the reader.
pub(super) struct Events {
    server: DiscoveryServer,
    peer: String,
    generation: u64,
    id: WatchId,
    waker: Arc<Notify>,
    waiting: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            let taken = {
                let mut state = self.server.lock();
                let peer = state.current(&self.peer, self.generation);
                peer.map_or(Take::Closed, |peer| {
                    let taken = peer.machine.take(self.id);
                    // Whoever asks for more has sent what it had.
                    if taken == Take::Nothing {
                        let told = peer.told(self.server.clock.now());
                        self.server.seen.told(&self.peer, told);
                    }
                    taken
                })
            };
            match taken {
                Take::Event(event) => {
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(event)))));
                }
                Take::Closed => return Poll::Ready(None),
                Take::Nothing => {}
            }
            match self.waiting.as_mut().poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => self.waiting = Box::pin(notified(self.waker.clone())),
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.server
            .watch_ended(&self.peer, self.generation, self.id);
    }
}
