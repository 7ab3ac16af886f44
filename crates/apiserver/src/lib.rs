//! An embedded Kubernetes-style API server: the store and the user interface of a mesh on one
//! machine.
//!
//! ```text
//! kubectl ── HTTPS ──▶ http::serve ─┐
//!                                   ├─▶ http ─▶ verbs ─▶ store ─▶ api.redb
//! kube::Client ─ in process ────────┘     │        │        │
//!                                       auth    schema,   watch ◀─ history
//!                                               patch
//! ```
//!
//! A kind is data: a row of a table for the builtin ones, a CustomResourceDefinition for others.
//! Server-side apply is refused; everything else of what kubectl does with these kinds works
//! without a special flag.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use k8s_openapi::api::core::v1::Namespace;
//! use meshfed_apiserver::{ApiServer, Options};
//!
//! # let dir = tempfile::tempdir()?;
//! let server = ApiServer::open(Options::new(dir.path(), Vec::new()))?;
//! let client = kube::Client::new(server.service(), "default");
//! let namespaces: kube::Api<Namespace> = kube::Api::all(client);
//! assert_eq!(namespaces.get("default").await?.metadata.name.as_deref(), Some("default"));
//! # Ok(())
//! # }
//! ```

mod api;
mod auth;
mod error;
mod http;
mod janitor;
mod json;
mod jsonpath;
mod kubeconfig;
mod manifest;
mod names;
mod patch;
mod protobuf;
mod registry;
mod schema;
mod selector;
mod server;
mod store;
mod tls;
mod token;
mod verbs;
mod watch;

pub use self::{
    api::{Clock, Document, View, WriteReport},
    error::OpenError,
    http::{InProcess, LARGEST_BODY, Limits, ResponseBody, ServeError},
    kubeconfig::{Kubeconfig, kubeconfig},
    manifest::{Manifest, ManifestError, ManifestKey, Manifests},
    server::{ApiServer, Options},
    tls::{TlsConfigError, tls_config},
    token::{ServiceAccountRef, TokenError, TokenVerifier},
};
