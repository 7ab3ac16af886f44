//! Requests to answers.

mod body;
mod discovery;
mod openapi;
mod query;
mod resources;
mod route;
mod serve;
mod shape;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Body;
use serde_json::{Value, json};

pub use self::{
    body::ResponseBody,
    serve::{Limits, ServeError, serve},
    shape::Shape,
};
use self::{
    query::Query,
    route::{ResourcePath, Route},
};
use crate::{
    api::{Api, View},
    auth::{Attributes, Caller, reviews},
    error::ApiError,
    json::{self, Document},
    protobuf::{self, ProtobufError},
};

/// The largest body that is read.
pub const LARGEST_BODY: usize = 3 * 1024 * 1024;
/// A body must have arrived after this time.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The API as a tower service without a network: requests act as an administrator's.
#[derive(Clone)]
pub struct InProcess {
    pub(crate) api: Arc<Api>,
}

impl<B> tower_service::Service<Request<B>> for InProcess
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let api = Arc::clone(&self.api);
        Box::pin(async move { Ok(answer(&api, Ok(Caller::in_process()), request).await) })
    }
}

/// Answers a request of a caller, or of someone whose credentials were refused.
pub async fn answer<B>(
    api: &Arc<Api>,
    caller: Result<Caller, ApiError>,
    request: Request<B>,
) -> Response<ResponseBody>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    let result = dispatch(api, caller, &parts, body).await;
    let response = result.unwrap_or_else(|error| refusal(&error));
    tracing::debug!(
        method = %parts.method,
        uri = %parts.uri,
        status = response.status().as_u16(),
        "request"
    );
    response
}

async fn dispatch<B>(
    api: &Arc<Api>,
    caller: Result<Caller, ApiError>,
    parts: &request::Parts,
    body: B,
) -> Result<Response<ResponseBody>, ApiError>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = parts.uri.path();
    let route = route::route(path);
    // These are open: what balances and starts things has no credentials.
    match route {
        Ok(Route::Health) => return read_only(&parts.method, health(api)),
        Ok(Route::Version) => return read_only(&parts.method, document(&discovery::version())),
        _ => {}
    }
    let caller = caller?;
    if !matches!(route, Ok(Route::Resource(_))) {
        caller.authorize_path(&parts.method, path)?;
    }
    let registry = &api.registry;
    let found = |value: Option<Value>| value.ok_or_else(ApiError::no_such_path);
    let aggregated = wants_aggregated(&parts.headers);
    let value = match route? {
        Route::Resource(resource) => {
            if let Some(view) = view(api, &resource) {
                caller.authorize(&attributes("get", &resource, &resource.plural))?;
                if !matches!(parts.method, Method::GET | Method::HEAD) {
                    return Err(ApiError::method_not_allowed(&parts.method));
                }
                return viewed(view).await;
            }
            let query = Query::parse(parts.uri.query())?;
            let request = resources::Request {
                api,
                caller: &caller,
                method: &parts.method,
                headers: &parts.headers,
                query: &query,
            };
            return request.answer(resource, body).await;
        }
        Route::Api if aggregated => {
            return read_only(
                &parts.method,
                aggregate(&discovery::aggregated(registry, true)),
            );
        }
        Route::Apis if aggregated => {
            return read_only(
                &parts.method,
                aggregate(&discovery::aggregated(registry, false)),
            );
        }
        Route::Health | Route::Version => return Err(ApiError::no_such_path()),
        Route::Api => discovery::api_versions(),
        Route::Apis => discovery::group_list(registry),
        Route::Group(group) => found(discovery::group(registry, &group))?,
        Route::Resources { group, version } => {
            found(discovery::resources(registry, &group, &version))?
        }
        Route::OpenApiV2 => {
            let response = openapi::version_2(accept(&parts.headers));
            return read_only(&parts.method, response);
        }
        Route::OpenApiV3 => openapi::index(registry),
        Route::OpenApiV3Document { group, version } => {
            let document = openapi::document(registry, &group, &version);
            let document = document.ok_or_else(ApiError::no_such_path)?;
            return read_only(&parts.method, json_response(StatusCode::OK, document));
        }
    };
    read_only(&parts.method, document(&value))
}

/// The view at a path.
fn view<'a>(api: &'a Api, path: &ResourcePath) -> Option<&'a View> {
    api.view.get().filter(|view| {
        let of = [view.group, view.version, view.plural];
        of == [&*path.group, &*path.version, &*path.plural]
            && path.namespace.is_empty()
            && path.name.is_empty()
    })
}

async fn viewed(view: &View) -> Result<Response<ResponseBody>, ApiError> {
    let document = Arc::clone(&view.document);
    // It may be long, and others wait for this thread.
    let made = tokio::task::spawn_blocking(move || document()).await;
    match made {
        Ok(Some(body)) => Ok(json_response(StatusCode::OK, body)),
        Ok(None) => Err(ApiError::unavailable("there is nothing to see yet")),
        Err(error) => Err(ApiError::internal(error.to_string())),
    }
}

fn read_only(
    method: &Method,
    response: Response<ResponseBody>,
) -> Result<Response<ResponseBody>, ApiError> {
    if matches!(*method, Method::GET | Method::HEAD) {
        Ok(response)
    } else {
        Err(ApiError::method_not_allowed(method))
    }
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

fn accept(headers: &HeaderMap) -> &str {
    let value = headers.get(header::ACCEPT);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// Whether the aggregated form is accepted; plain JSON beside it is the fallback for old servers.
fn wants_aggregated(headers: &HeaderMap) -> bool {
    accept(headers).split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parts: Vec<&str> = parts.collect();
        media == "application/json"
            && ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"]
                .iter()
                .all(|part| parts.contains(part))
    })
}

fn aggregate(value: &Value) -> Response<ResponseBody> {
    let mut response = document(value);
    let kind = HeaderValue::from_static(AGGREGATED);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn health(api: &Api) -> Response<ResponseBody> {
    if api.store.is_healthy() {
        return plain("ok");
    }
    let mut response = plain("the database cannot be written");
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

fn plain(text: &'static str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(text));
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn document(value: &Value) -> Response<ResponseBody> {
    json_response(StatusCode::OK, value.to_string())
}

fn json_response(code: StatusCode, body: impl Into<Bytes>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(body));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}

/// The `Status` for an error.
pub fn refusal(error: &ApiError) -> Response<ResponseBody> {
    let mut response = json_response(error.code, error.status().to_string());
    if let Some(seconds) = error.retry_after {
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds warnings in the form of RFC 7234 as Kubernetes clients show them.
fn warn(response: &mut Response<ResponseBody>, warnings: &[String]) {
    for warning in warnings {
        let text: String = warning
            .chars()
            .filter(|c| !c.is_control())
            .flat_map(|c| {
                let escape = matches!(c, '"' | '\\').then_some('\\');
                escape.into_iter().chain(Some(c))
            })
            .collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// Reads a body whole, within limits.
async fn read<B>(body: B, limit: usize) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let collected = Box::pin(Limited::new(body, limit).collect());
    match tokio::time::timeout(BODY_TIME, collected).await {
        Err(_) => Err(ApiError::timeout("the body did not arrive in time")),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::too_large(limit)),
        Ok(Err(error)) => Err(ApiError::bad_request(format!(
            "cannot read the body: {error}"
        ))),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
    }
}

/// Parses a body by its content type.
fn parse(headers: &HeaderMap, bytes: &Bytes) -> Result<Document, ApiError> {
    let kind = media_type(headers);
    let parsed = match kind {
        "" | "application/json" => json::parse_json(bytes),
        protobuf::MEDIA_TYPE => {
            let parsed = protobuf::parse(bytes).map(|value| Document {
                value,
                duplicates: Vec::new(),
            });
            return parsed.map_err(|error| match error {
                ProtobufError::Unknown { .. } => {
                    ApiError::unsupported_media_type(error.to_string())
                }
                other => ApiError::bad_request(other.to_string()),
            });
        }
        "application/yaml" | "text/yaml" | "application/x-yaml" => json::parse_yaml(bytes),
        other => {
            return Err(ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json, application/yaml (it is {other:?})"
            )));
        }
    };
    parsed.map_err(|error| {
        ApiError::bad_request(format!("the object provided is unrecognized: {error}"))
    })
}

fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE);
    let value = value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// Answers a review of the caller itself.
fn review(
    caller: &Caller,
    group: &str,
    plural: &str,
    request: &Value,
) -> Option<Response<ResponseBody>> {
    let answer = reviews::answer(caller, group, plural, request)?;
    Some(json_response(StatusCode::CREATED, answer.to_string()))
}

/// The `Status` of a success, as a deletion gives it.
fn success(group: &str, plural: &str, name: &str, uid: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": name, "group": group, "kind": plural, "uid": uid},
    })
}

/// The attributes of a request for the judgement of what is allowed.
fn attributes<'a>(verb: &'a str, path: &'a ResourcePath, resource: &'a str) -> Attributes<'a> {
    Attributes {
        verb,
        group: &path.group,
        resource,
        namespace: &path.namespace,
        name: &path.name,
    }
}

#[cfg(test)]
mod tests;
