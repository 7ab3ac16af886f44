//! The proof of who we are.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;

/// Longest token that is used, in bytes.
pub(crate) const MAX_TOKEN_LEN: usize = 16 * 1024;

type Ask = dyn Fn() -> BoxFuture<'static, io::Result<String>> + Send + Sync;

/// Where a ServiceAccount token comes from. It is asked each time one is needed, as tokens are
/// replaced before they expire.
#[derive(Clone)]
pub enum TokenSource {
    /// A file with the token and nothing else.
    File(PathBuf),
    /// Something in this process that can make one.
    Call(Arc<Ask>),
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("cannot read the token file {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot get a token")]
    Call(#[source] io::Error),
    /// Empty, too long, or with characters that no token has.
    #[error("what {from} holds is not a token")]
    NotAToken { from: String },
}

impl TokenSource {
    pub async fn token(&self) -> Result<String, TokenError> {
        let (text, from) = match self {
            TokenSource::File(path) => {
                let text =
                    tokio::fs::read_to_string(path)
                        .await
                        .map_err(|source| TokenError::File {
                            path: path.clone(),
                            source,
                        })?;
                (text, path.display().to_string())
            }
            TokenSource::Call(ask) => {
                let text = ask().await.map_err(TokenError::Call)?;
                (text, "the token source".to_string())
            }
        };
        let token = text.trim();
        if token.is_empty()
            || token.len() > MAX_TOKEN_LEN
            || !token.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(TokenError::NotAToken { from });
        }
        Ok(token.to_string())
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenSource::File(path) => f.debug_tuple("File").field(path).finish(),
            TokenSource::Call(_) => f.write_str("Call"),
        }
    }
}
