//! What can go wrong, in the two forms that matter: a `Status` object for a client, and a clear
//! sentence for the person who starts the process.

mod field;
mod status;

use std::path::PathBuf;

pub use self::{
    field::{FieldError, FieldErrorKind},
    status::{ApiError, Subject},
};

/// The data directory or the resource definitions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made or a file in it cannot be read or written.
    #[error("cannot use {path} as the API server's data")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Another process has the directory open. Stop it, or give this one a directory of its own.
    #[error(
        "the data directory {path} is in use by another process; stop that process or choose another directory"
    )]
    Locked { path: PathBuf },
    /// A newer release wrote the directory. Use that release, or start with an empty directory.
    #[error(
        "{path} was written by a newer version (format {found}, this one reads up to {supported}); use the newer version or another directory"
    )]
    NewerFormat {
        path: PathBuf,
        found: u64,
        supported: u64,
    },
    /// The database was changed from outside, or the disk lost a part of it.
    #[error(
        "the database {path} is damaged; put a backup of it back, or move the data directory away to begin anew as another mesh"
    )]
    Damaged { path: PathBuf },
    /// The disk failed.
    #[error("cannot read the database {path}: {message}")]
    Database { path: PathBuf, message: String },
    /// A stored object is not readable; the database was changed from outside.
    #[error("the database {path} holds an unreadable object {key}: {message}")]
    Object {
        path: PathBuf,
        key: String,
        message: String,
    },
    /// A given CustomResourceDefinition makes no sense.
    #[error("the resource definition {name} is not usable: {message}")]
    Definition { name: String, message: String },
    /// The key that signs tokens is not a P-256 key in PKCS#8 form.
    #[error(
        "the token signing key {path} is not usable: {message}; remove it to have a new one made (all tokens become invalid)"
    )]
    SigningKey { path: PathBuf, message: String },
    /// The system refused a thread.
    #[error("cannot start the API server's background threads")]
    Thread(#[source] std::io::Error),
}
