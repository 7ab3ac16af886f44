//! The bookinfo services: small HTTP servers with the routes and the JSON of Istio's sample.
//!
//! Each listens on a loopback port that only its sidecar knows, and calls others through that
//! sidecar as an explicit HTTP proxy.

mod catalogue;
mod client;
mod page;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub use client::ProxyClient;

/// One of the programs of the sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum App {
    ProductPage,
    Details,
    Ratings,
    ReviewsV1,
    ReviewsV2,
    ReviewsV3,
}

impl App {
    pub const ALL: [Self; 6] = [
        Self::ProductPage,
        Self::Details,
        Self::Ratings,
        Self::ReviewsV1,
        Self::ReviewsV2,
        Self::ReviewsV3,
    ];

    /// The Service it belongs to, also the value of its `app` label.
    pub fn service(self) -> &'static str {
        match self {
            Self::ProductPage => "productpage",
            Self::Details => "details",
            Self::Ratings => "ratings",
            Self::ReviewsV1 | Self::ReviewsV2 | Self::ReviewsV3 => "reviews",
        }
    }

    /// The value of its `version` label.
    pub fn version(self) -> &'static str {
        match self {
            Self::ReviewsV2 => "v2",
            Self::ReviewsV3 => "v3",
            _ => "v1",
        }
    }

    fn star_color(self) -> Option<&'static str> {
        match self {
            Self::ReviewsV2 => Some("black"),
            Self::ReviewsV3 => Some("red"),
            _ => None,
        }
    }
}

/// What an app needs to know of its surroundings.
struct Context {
    app: App,
    pod: String,
    cluster: String,
    others: ProxyClient,
}

/// Serves the app until the task is dropped.
///
/// # Errors
///
/// Those of accepting connections.
pub async fn serve(
    listener: TcpListener,
    app: App,
    pod: String,
    cluster: String,
    sidecar: SocketAddr,
) -> std::io::Result<()> {
    let context = Arc::new(Context {
        app,
        pod,
        cluster,
        others: ProxyClient::new(sidecar),
    });
    let routes = match app {
        App::ProductPage => Router::new()
            .route("/", get(page::index))
            .route("/index.html", get(page::index))
            .route("/productpage", get(productpage))
            .route("/api/v1/products", get(products))
            .route("/api/v1/products/{id}", get(product))
            .route("/api/v1/products/{id}/reviews", get(product_reviews))
            .route("/api/v1/products/{id}/ratings", get(product_ratings))
            .route("/health", get(async || Html("Product page is healthy"))),
        App::Details => Router::new()
            .route("/details/{id}", get(details))
            .route("/health", get(health)),
        App::Ratings => Router::new()
            .route("/ratings/{id}", get(ratings))
            .route("/health", get(health)),
        App::ReviewsV1 | App::ReviewsV2 | App::ReviewsV3 => Router::new()
            .route("/reviews/{id}", get(reviews))
            .route("/health", get(health)),
    };
    axum::serve(listener, routes.with_state(context)).await
}

async fn health(State(context): State<Arc<Context>>) -> Json<Value> {
    let name = context.app.service();
    let title = name[..1].to_uppercase() + &name[1..];
    Json(json!({"status": format!("{title} is healthy")}))
}

async fn ratings(Path(id): Path<String>) -> Response {
    match id.parse::<u64>() {
        Ok(id) => Json(catalogue::ratings(id)).into_response(),
        Err(_) => not_a_product_id(),
    }
}

async fn details(Path(id): Path<String>) -> Response {
    match id.parse::<u64>() {
        Ok(id) => Json(catalogue::details(id)).into_response(),
        Err(_) => not_a_product_id(),
    }
}

async fn reviews(State(context): State<Arc<Context>>, Path(id): Path<String>) -> Response {
    let Ok(number) = id.parse::<u64>() else {
        return not_a_product_id();
    };
    let stars = match context.app.star_color() {
        None => None,
        Some(color) => Some((
            color,
            context
                .others
                .json("ratings", &format!("/ratings/{number}"))
                .await,
        )),
    };
    Json(catalogue::reviews(
        &id,
        &context.pod,
        &context.cluster,
        stars,
    ))
    .into_response()
}

async fn products() -> Json<Value> {
    Json(catalogue::products())
}

async fn product(State(context): State<Arc<Context>>, Path(id): Path<String>) -> Response {
    forwarded(&context, "details", &format!("/details/{id}")).await
}

async fn product_reviews(State(context): State<Arc<Context>>, Path(id): Path<String>) -> Response {
    forwarded(&context, "reviews", &format!("/reviews/{id}")).await
}

async fn product_ratings(State(context): State<Arc<Context>>, Path(id): Path<String>) -> Response {
    forwarded(&context, "ratings", &format!("/ratings/{id}")).await
}

async fn productpage(State(context): State<Arc<Context>>) -> Html<String> {
    let (details, reviews) = tokio::join!(
        context.others.json("details", "/details/0"),
        context.others.json("reviews", "/reviews/0"),
    );
    Html(page::product(details.ok().as_ref(), reviews.ok().as_ref()))
}

/// Another service's answer as this one's, or what went wrong.
async fn forwarded(context: &Context, service: &str, path: &str) -> Response {
    match context.others.get(service, path).await {
        Ok(answer) => (
            StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY),
            [(header::CONTENT_TYPE, "application/json")],
            answer.body,
        )
            .into_response(),
        Err(error) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({"error": format!("{service} cannot be reached: {error}")})),
        )
            .into_response(),
    }
}

fn not_a_product_id() -> Response {
    (
        StatusCode::BAD_REQUEST,
        Json(json!({"error": "please provide numeric product ID"})),
    )
        .into_response()
}
