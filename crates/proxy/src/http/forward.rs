//! One request: match, forward, answer.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use meshfed_proxy_config::{
    ANSWERED, ANSWERED_HERE, Http, HttpRoutes, Network, PathMatch, Route, RouteAction,
    UpstreamProtocol,
};

use super::body::{Activity, Limits, ProxyBody, RequestBody};
use super::routing::{RouteIndex, route_of};
use super::{Busy, HttpConnection, headers, tunnel};
use crate::cluster::{Cluster, Exchange, Failure, send};
use crate::end::End;
use crate::engine::allowed;
use crate::record::{Record, RequestLine};

/// Answers a request, here or by an upstream. There is always a response.
pub(super) async fn answer(
    connection: Arc<HttpConnection>,
    request: Request<Incoming>,
) -> Response<ProxyBody> {
    let busy = connection.busy(request.version());
    let mut record = Record::of(connection.seed.clone());
    record.control = Some(connection.control.clone());
    let authority = headers::authority(&request).map(str::to_owned);
    record.request = Some(RequestLine {
        method: request.method().clone(),
        authority: authority.clone().unwrap_or_default(),
        path: match request.uri().path_and_query() {
            Some(path) => path.as_str().to_owned(),
            None => String::new(),
        },
        status: None,
    });
    let authority = match authority {
        Some(authority) => authority,
        // HTTP/1.0 knows no Host.
        None if request.version() < Version::HTTP_11 && !request.headers().contains_key("host") => {
            String::new()
        }
        None => return respond(record, StatusCode::BAD_REQUEST, End::BadRequest),
    };
    route(connection, busy, record, request, &authority).await
}

async fn route(
    connection: Arc<HttpConnection>,
    busy: Busy,
    mut record: Record,
    mut request: Request<Incoming>,
    authority: &str,
) -> Response<ProxyBody> {
    // The chain as it is now; the one that the connection began with only if it was renamed.
    let chain = connection
        .listener
        .chains
        .load()
        .by_name(&connection.chain.name)
        .unwrap_or(&connection.chain)
        .clone();
    let Network::Http(http) = &chain.config.network else {
        return respond(record, StatusCode::SERVICE_UNAVAILABLE, End::NotConfigured);
    };
    let peer = connection.seed.peer.as_ref();
    match allowed(chain.allow(), peer, connection.seed.sni.as_deref()) {
        Ok(policy) => record.policy = policy.map(|p| p.name.clone()),
        Err(_) => return respond(record, StatusCode::FORBIDDEN, End::NotAllowed),
    }
    if request.method() == Method::CONNECT && !http.accept_connect {
        return respond(record, StatusCode::METHOD_NOT_ALLOWED, End::BadRequest);
    }
    identify(&connection, http, &mut request);

    let Some(index) = routes(&connection, http, chain.routes.as_ref()) else {
        return respond(record, StatusCode::SERVICE_UNAVAILABLE, End::NotConfigured);
    };
    let path = request.uri().path();
    let host = index.host(authority);
    let route = host
        .as_deref()
        .and_then(|host| route_of(host, request.method(), path, request.headers()));
    let Some(route) = route else {
        return respond(record, StatusCode::NOT_FOUND, End::NoRoute);
    };
    record.route = Some(route.name.clone());
    let cluster = match &route.action {
        RouteAction::Respond { status, body } => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::NOT_FOUND);
            let body = Bytes::from(body.clone());
            return respond_with(record, status, body, End::Complete);
        }
        RouteAction::Forward { cluster, .. } => cluster,
    };
    let Some(cluster) = connection.tables.clusters.get(cluster) else {
        return respond(record, StatusCode::SERVICE_UNAVAILABLE, End::NoCluster);
    };
    record.cluster = Some(cluster.name.clone());
    if request.method() == Method::CONNECT {
        return tunnel::open(busy, record, request, &cluster, http.stream_idle_timeout).await;
    }
    let exchange = Forward {
        route,
        authority,
        idle: http.stream_idle_timeout,
        cluster: &cluster,
    };
    exchange.run(&connection, busy, record, request).await
}

/// Tells the routes and the upstream who the client is, as far as the listener wants that.
fn identify(connection: &HttpConnection, http: &Http, request: &mut Request<Incoming>) {
    let client = connection.seed.peer.as_ref();
    let fields = request.headers_mut();
    if http.forward_client_id {
        let own = connection.tables.identity.identity();
        let own = own.as_ref().and_then(|i| i.id.as_ref());
        headers::set_client_id(fields, own, client);
    } else {
        headers::remove_client_id(fields);
    }
    if http.append_forwarded_for {
        headers::append_forwarded_for(fields, connection.seed.client.ip());
    }
}

fn routes(
    connection: &HttpConnection,
    http: &Http,
    inline: Option<&Arc<RouteIndex>>,
) -> Option<Arc<RouteIndex>> {
    match &http.routes {
        HttpRoutes::Inline(_) => inline.cloned(),
        HttpRoutes::Rds(name) => connection.tables.routes.get(name),
    }
}

/// A request that goes to an upstream.
struct Forward<'a> {
    route: &'a Route,
    authority: &'a str,
    idle: Duration,
    cluster: &'a Cluster,
}

impl Forward<'_> {
    async fn run(
        self,
        connection: &HttpConnection,
        busy: Busy,
        mut record: Record,
        mut request: Request<Incoming>,
    ) -> Response<ProxyBody> {
        let http2 = match self.cluster.config.protocol {
            UpstreamProtocol::Http1 => false,
            UpstreamProtocol::Http2 => true,
            UpstreamProtocol::Downstream => request.version() == Version::HTTP_2,
        };
        let Some(timeout) = self.rewrite(&mut request, http2) else {
            return respond(record, StatusCode::BAD_REQUEST, End::BadRequest);
        };
        let activity = Activity::new();
        let mut limits = Limits::new(activity.clone(), self.idle, timeout);
        let request =
            request.map(|body| RequestBody::new(body, record.traffic.clone(), activity.clone()));
        // No lock and no guard of a table is held while the upstream takes its time.
        let sent = {
            let mut sending = Box::pin(send(&connection.tables, self.cluster, http2, request));
            std::future::poll_fn(|cx| match sending.as_mut().poll(cx) {
                Poll::Ready(sent) => Poll::Ready(Ok(sent)),
                Poll::Pending => limits.poll_expired(cx).map(Err),
            })
            .await
        };
        match sent {
            Ok(Ok(exchange)) => pass_on(exchange, limits, record, busy),
            Ok(Err(failure)) => {
                record.upstream = failure.upstream;
                if activity.request_failed() {
                    return respond(record, StatusCode::BAD_REQUEST, End::DownstreamReset);
                }
                failed(record, failure)
            }
            Err(end) => respond(record, StatusCode::GATEWAY_TIMEOUT, end),
        }
    }

    /// Makes the upstream's request of the client's; gives the route's time limit.
    fn rewrite(&self, request: &mut Request<Incoming>, http2: bool) -> Option<Duration> {
        let RouteAction::Forward {
            rewrite_authority,
            rewrite_path,
            timeout,
            remove_headers,
            ..
        } = &self.route.action
        else {
            return None;
        };
        let path = match (rewrite_path, &self.route.path) {
            (Some(new), PathMatch::Exact(matched) | PathMatch::Prefix(matched)) => {
                let rest = request.uri().path().strip_prefix(matched.as_str())?;
                match request.uri().query() {
                    Some(query) => format!("{new}{rest}?{query}"),
                    None => format!("{new}{rest}"),
                }
            }
            _ => request
                .uri()
                .path_and_query()
                .map_or_else(|| "/".to_owned(), |p| p.as_str().to_owned()),
        };
        let length_known = request.body().size_hint().exact().is_some();
        let fields = request.headers_mut();
        headers::remove_hop_by_hop(fields);
        for name in &**remove_headers {
            fields.remove(name.as_str());
        }
        if !length_known {
            fields.remove(CONTENT_LENGTH);
        }
        let authority = rewrite_authority.as_deref().unwrap_or(self.authority);
        let tls = self.cluster.config.tls.is_some();
        headers::retarget(request, authority, &path, http2, tls)?;
        Some(*timeout)
    }
}

fn pass_on(
    exchange: Exchange,
    limits: Limits,
    mut record: Record,
    busy: Busy,
) -> Response<ProxyBody> {
    let (mut parts, body) = exchange.response.into_parts();
    headers::remove_hop_by_hop(&mut parts.headers);
    headers::set_answered_beyond(&mut parts.headers, parts.status);
    parts.version = Version::HTTP_11;
    record.upstream = Some(exchange.upstream);
    record.upstream_peer = exchange.proof.map(|p| p.id.clone());
    if let Some(line) = &mut record.request {
        line.status = Some(parts.status.as_u16());
    }
    let body = ProxyBody::upstream(body, limits, exchange.lease, record, busy);
    Response::from_parts(parts, body)
}

/// The answer when no upstream gave one.
pub(super) fn failed(mut record: Record, failure: Failure) -> Response<ProxyBody> {
    record.upstream = failure.upstream;
    let status = match failure.end {
        End::UpstreamReset => StatusCode::BAD_GATEWAY,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    respond(record, status, failure.end)
}

/// Answers here, with the reason as text.
pub(super) fn respond(record: Record, status: StatusCode, end: End) -> Response<ProxyBody> {
    let text = match end {
        End::NotAllowed => "access denied\n".to_owned(),
        end => format!("{}\n", end.label().replace('_', " ")),
    };
    respond_with(record, status, text.into(), end)
}

fn respond_with(
    mut record: Record,
    status: StatusCode,
    text: Bytes,
    end: End,
) -> Response<ProxyBody> {
    if let Some(line) = &mut record.request {
        line.status = Some(status.as_u16());
    }
    record.traffic.add_sent(text.len() as u64);
    record.finish(end);
    let mut response = Response::new(ProxyBody::Local((!text.is_empty()).then_some(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(
        const { HeaderName::from_static(ANSWERED) },
        HeaderValue::from_static(ANSWERED_HERE),
    );
    headers.insert(
        const { HeaderName::from_static("server") },
        HeaderValue::from_static("meshfed"),
    );
    response
}
