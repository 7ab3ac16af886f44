//! What the roles have in common: how they log, and how a proxy finds its mesh.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use meshfed_runtime::{LogConfig, LogHandle};

use crate::cli::{JoinOptions, LogFormat, Logging};

/// Where a mesh is and how a proxy proves itself to it.
#[derive(Debug, Clone)]
pub struct Join {
    /// The control plane's gRPC port.
    pub control_plane: SocketAddr,
    /// File with the mesh's root certificate.
    pub ca: PathBuf,
    /// File with a ServiceAccount's token.
    pub token_file: PathBuf,
}

impl Join {
    /// # Errors
    ///
    /// The URL is not `https://IP:PORT`.
    pub fn from_options(options: &JoinOptions) -> anyhow::Result<Self> {
        let url = &options.control_plane;
        let control_plane = url
            .strip_prefix("https://")
            .map(|rest| rest.trim_end_matches('/'))
            .and_then(|rest| rest.parse().ok())
            .with_context(|| {
                format!("{url:?} is no control plane; write it like https://127.64.1.1:15012")
            })?;
        Ok(Self {
            control_plane,
            ca: options.ca.clone(),
            token_file: options.token_file.clone(),
        })
    }
}

/// Writes a token where only its owner can read it.
pub fn write_token(file: &Path, token: &str) -> anyhow::Result<()> {
    if let Some(dir) = file.parent() {
        meshfed_runtime::create_private_dir(dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
    }
    meshfed_runtime::write_private(file, token.as_bytes())
        .with_context(|| format!("cannot write {}", file.display()))
}

/// Longer than most processes live; certificates are renewed by the certificate before.
const TOKEN_SECONDS: i64 = 24 * 3600;

/// Asks for a ServiceAccount's token, as `kubectl create token` does.
pub async fn new_token(client: &Client, namespace: &str, account: &str) -> anyhow::Result<String> {
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let answer = api
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .with_context(|| format!("there is no token for the ServiceAccount {namespace}/{account}"))?;
    Ok(answer.status.context("the answer has no token")?.token)
}

/// Starts logging to standard error.
pub fn init_logging(logging: &Logging, default_level: &str) -> anyhow::Result<LogHandle> {
    let format = match logging.format {
        LogFormat::Text => meshfed_runtime::LogFormat::Text,
        LogFormat::Json => meshfed_runtime::LogFormat::Json,
    };
    let level = logging.level.clone();
    let config = LogConfig {
        format,
        level: level.unwrap_or_else(|| default_level.to_owned()),
    };
    meshfed_runtime::logging::init(&config).context("cannot start logging")
}
