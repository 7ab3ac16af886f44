//! ServiceAccount tokens: JWTs signed with a key of this server's own.

use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::{
    api::Api,
    error::OpenError,
    store::{format_uid, io, key, parse_uid},
};

/// Tokens live at least this long.
pub const SHORTEST_LIFE: Duration = Duration::from_secs(10 * 60);
/// Tokens live at most this long; a longer life is shortened to it.
pub const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
pub const DEFAULT_LIFE: Duration = Duration::from_secs(3600);
/// The longest token that is read.
const LARGEST_TOKEN: usize = 8 * 1024;
/// Clocks of one machine, plus a little.
const LEEWAY: u64 = 5;

/// A ServiceAccount that a token was issued for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceAccountRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl ServiceAccountRef {
    /// `system:serviceaccount:<namespace>:<name>`.
    pub fn user_name(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a JWT of this server: another form, another key, or tampered with.
    #[error("the token was not issued by this server or is damaged")]
    Invalid,
    #[error("the token was issued by {found:?}, not by {expected:?}")]
    Issuer { found: String, expected: String },
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet; check the clocks")]
    NotYet,
    #[error("the token is for {found:?}, not for {expected:?}")]
    Audience {
        found: Vec<String>,
        expected: String,
    },
    /// Deleted, or deleted and made again, since the token was issued.
    #[error("the service account {namespace}/{name} of the token does not exist any more")]
    NoServiceAccount { namespace: String, name: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Vec<String>,
    exp: u64,
    iat: u64,
    nbf: u64,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: KubernetesClaims,
}

#[derive(Debug, Serialize, Deserialize)]
struct KubernetesClaims {
    namespace: String,
    serviceaccount: ObjectClaims,
}

#[derive(Debug, Serialize, Deserialize)]
struct ObjectClaims {
    name: String,
    uid: String,
}

/// The key and what is signed with it.
pub struct TokenSigner {
    encoding: EncodingKey,
    decoding: DecodingKey,
    issuer: String,
}

impl TokenSigner {
    /// Reads the key in `path`, or makes one (mode 0600).
    pub fn open(path: &Path, issuer: &str) -> Result<Self, OpenError> {
        let unusable = |message: String| OpenError::SigningKey {
            path: path.to_owned(),
            message,
        };
        let der = match std::fs::read_to_string(path) {
            Ok(text) => decode_pem(&text).ok_or_else(|| unusable("it is not PEM".to_owned()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => generate(path)?,
            Err(error) => return Err(io(path)(error)),
        };
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self {
            encoding: EncodingKey::from_ec_der(&der),
            decoding: DecodingKey::from_ec_der(pair.public_key().as_ref()),
            issuer: issuer.to_owned(),
        })
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Issues a token; `None` if signing failed, which it does not for a key that was read.
    pub fn issue(
        &self,
        account: &ServiceAccountRef,
        audiences: &[String],
        life: Duration,
        now: SystemTime,
    ) -> Option<String> {
        let now = unix(now);
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: account.user_name(),
            aud: audiences.to_vec(),
            exp: now + life.as_secs(),
            iat: now,
            nbf: now,
            jti: format_uid(crate::api::random_uid()),
            kubernetes: KubernetesClaims {
                namespace: account.namespace.clone(),
                serviceaccount: ObjectClaims {
                    name: account.name.clone(),
                    uid: account.uid.clone(),
                },
            },
        };
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.encoding).ok()
    }

    fn claims(&self, token: &str) -> Result<Claims, TokenError> {
        if token.len() > LARGEST_TOKEN {
            return Err(TokenError::Invalid);
        }
        let mut validation = Validation::new(Algorithm::ES256);
        // Times and audience are judged below, by the caller's clock.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)
            .map(|data| data.claims)
            .map_err(|_| TokenError::Invalid)
    }
}

/// Judges tokens, as whoever hands out certificates to ServiceAccounts needs it.
#[derive(Clone)]
pub struct TokenVerifier {
    pub(crate) api: Arc<Api>,
}

impl TokenVerifier {
    /// Accepts a token of this server for `audience` whose ServiceAccount still exists.
    pub fn verify(
        &self,
        token: &str,
        audience: &str,
        now: SystemTime,
    ) -> Result<ServiceAccountRef, TokenError> {
        verify(&self.api, token, audience, now)
    }
}

pub fn verify(
    api: &Api,
    token: &str,
    audience: &str,
    now: SystemTime,
) -> Result<ServiceAccountRef, TokenError> {
    let claims = api.signer.claims(token)?;
    if claims.iss != api.signer.issuer {
        return Err(TokenError::Issuer {
            found: claims.iss,
            expected: api.signer.issuer.clone(),
        });
    }
    let now = unix(now);
    if now > claims.exp.saturating_add(LEEWAY) {
        return Err(TokenError::Expired);
    }
    if now.saturating_add(LEEWAY) < claims.nbf {
        return Err(TokenError::NotYet);
    }
    if !claims.aud.iter().any(|aud| aud == audience) {
        return Err(TokenError::Audience {
            found: claims.aud,
            expected: audience.to_owned(),
        });
    }
    let account = ServiceAccountRef {
        namespace: claims.kubernetes.namespace,
        name: claims.kubernetes.serviceaccount.name,
        uid: claims.kubernetes.serviceaccount.uid,
    };
    let place = key(&account.namespace, &account.name);
    let cache = api.store.read();
    let stored = cache.get(api.registry.service_accounts, &place);
    if stored.is_none_or(|stored| stored.uid != parse_uid(&account.uid) || stored.deleting) {
        return Err(TokenError::NoServiceAccount {
            namespace: account.namespace,
            name: account.name,
        });
    }
    Ok(account)
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn generate(path: &Path) -> Result<Vec<u8>, OpenError> {
    let document =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|error| OpenError::SigningKey {
                path: path.to_owned(),
                message: error.to_string(),
            })?;
    let der = document.as_ref().to_vec();
    // A half-written key would be kept for good: the file appears whole.
    let part = path.with_extension("part");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .map_err(io(&part))?;
    file.write_all(encode_pem(&der).as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&part, path))
        .map_err(io(path))?;
    Ok(der)
}

fn encode_pem(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len())
        .step_by(64)
        .map(|at| &text[at..text.len().min(at + 64)])
        .collect();
    format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        lines.join("\n")
    )
}

fn decode_pem(text: &str) -> Option<Vec<u8>> {
    let body = text
        .trim()
        .strip_prefix("-----BEGIN PRIVATE KEY-----")?
        .strip_suffix("-----END PRIVATE KEY-----")?;
    let body: String = body.split_whitespace().collect();
    BASE64_STANDARD.decode(body).ok()
}
