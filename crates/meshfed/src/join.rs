//! What the roles have in common: how they log, and how a proxy finds its mesh.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use meshfed_agent::{
    ControlPlaneOptions, FirstContactError, RootSource, TokenSource, first_contact,
    first_contact_tls,
};
use meshfed_controlplane::apply::explain;
use meshfed_runtime::{LogConfig, LogHandle};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tracing::info;

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

/// A proxy's way into its mesh.
pub struct Joined {
    pub control_plane: ControlPlaneOptions,
    pub token: TokenSource,
    /// The name of the ServiceAccount that the token is of.
    pub service_account: String,
}

impl Join {
    /// Reads the files, and learns from the control plane's own certificate in which trust domain
    /// it is. Waits for a control plane that is not there, or not set up, yet.
    ///
    /// # Errors
    ///
    /// A file cannot be read or used; the control plane does not prove itself by the root.
    pub async fn join(&self) -> anyhow::Result<Joined> {
        let root_pem = std::fs::read_to_string(&self.ca)
            .with_context(|| format!("cannot read the root certificate {}", self.ca.display()))?;
        let token = TokenSource::File(self.token_file.clone());
        let service_account = account_of(&token.token().await?).with_context(|| {
            format!(
                "{} holds no ServiceAccount token",
                self.token_file.display()
            )
        })?;
        let tls = first_contact_tls(&root_pem)
            .with_context(|| format!("cannot use the root certificate {}", self.ca.display()))?;
        let name = ServerName::from(self.control_plane.ip());
        let mut told = false;
        let server = loop {
            match first_contact(self.control_plane, name.clone(), tls.clone()).await {
                Ok(Some(id)) => break id,
                Ok(None) => {
                    if !told {
                        info!(at = %self.control_plane, "waiting for a ServiceMeshControlPlane");
                    }
                }
                Err(error @ FirstContactError::Untrusted(_)) => {
                    return Err(error).with_context(|| {
                        format!(
                            "the control plane at {} does not prove itself by {}",
                            self.control_plane,
                            self.ca.display()
                        )
                    });
                }
                Err(error) => {
                    if !told {
                        info!(at = %self.control_plane, %error, "waiting for the control plane");
                    }
                }
            }
            told = true;
            tokio::time::sleep(JOIN_PAUSE).await;
        };
        Ok(Joined {
            control_plane: ControlPlaneOptions {
                host: self.control_plane.ip().to_string(),
                port: self.control_plane.port(),
                root: RootSource::File(self.ca.clone()),
                server,
            },
            token,
            service_account,
        })
    }
}

/// The name of the ServiceAccount that a token is of. Nothing is verified here: the
/// control plane does that.
fn account_of(token: &str) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
    }
    let claims = token.split('.').nth(1).context("it is not a JWT")?;
    let claims = URL_SAFE_NO_PAD.decode(claims).context("it is not a JWT")?;
    let claims: Claims = serde_json::from_slice(&claims).context("it is not a JWT")?;
    let (_, name) = claims
        .sub
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .with_context(|| format!("its subject is {:?}", claims.sub))?;
    Ok(name.to_owned())
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

/// Between two looks for the control plane.
const JOIN_PAUSE: Duration = Duration::from_millis(100);
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
        .map_err(|error| {
            let why = explain(&error);
            anyhow::anyhow!("there is no token for the ServiceAccount {namespace}/{account}: {why}")
        })?;
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
