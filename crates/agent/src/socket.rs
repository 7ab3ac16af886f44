//! The Unix socket of an agent.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use meshfed_runtime::create_private_dir;
use tokio::net::{UnixListener, UnixStream};

/// Longest path of a Unix socket, in bytes (Linux, without the ending zero).
const MAX_PATH_LEN: usize = 107;

/// Why an agent cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("the path {} is longer than the {MAX_PATH_LEN} bytes that a Unix socket may have, or is not UTF-8; choose another directory", .0.display())]
    BadPath(PathBuf),
    #[error("cannot make the directory {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The private key is handed out there.
    #[error("others may enter {}; allow it to its owner only (chmod 700)", .0.display())]
    Open(PathBuf),
    #[error("another agent already serves {}", .0.display())]
    InUse(PathBuf),
    #[error("{} is there and is not a socket", .0.display())]
    NotASocket(PathBuf),
    #[error("cannot listen on {}", path.display())]
    Listen {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A listening socket that is removed with the value.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
}

impl Socket {
    /// Listens on `path`, for the owner only. What a dead agent left behind is replaced.
    pub(crate) async fn bind(path: PathBuf) -> Result<(Self, UnixListener), SocketError> {
        if path.to_str().is_none_or(|p| p.len() > MAX_PATH_LEN) {
            return Err(SocketError::BadPath(path));
        }
        private_parent(&path)?;
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path));
            }
            Ok(_) if UnixStream::connect(&path).await.is_ok() => {
                return Err(SocketError::InUse(path));
            }
            Ok(_) => fs::remove_file(&path).map_err(|source| listen(&path, source))?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(&path).map_err(|source| listen(&path, source))?;
        let socket = Self { path };
        fs::set_permissions(&socket.path, Permissions::from_mode(0o600))
            .map_err(|source| listen(&socket.path, source))?;
        Ok((socket, listener))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // If it is gone already, all is well.
        let _ = fs::remove_file(&self.path);
    }
}

fn private_parent(path: &Path) -> Result<(), SocketError> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let failed = |source| SocketError::Directory {
        path: dir.to_path_buf(),
        source,
    };
    create_private_dir(dir).map_err(failed)?;
    let mode = fs::metadata(dir).map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(SocketError::Open(dir.to_path_buf()));
    }
    Ok(())
}

fn listen(path: &Path, source: io::Error) -> SocketError {
    SocketError::Listen {
        path: path.to_path_buf(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use meshfed_testkit::temp_dir;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn only_the_owner_may_use_the_socket() {
        let dir = temp_dir();
        let path = dir.path().join("agent/sds.sock");
        let (socket, _listener) = Socket::bind(path.clone()).await.unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_directory_that_others_may_enter_is_refused() {
        let dir = temp_dir();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        let refused = Socket::bind(open.join("sds.sock")).await.unwrap_err();
        assert!(matches!(refused, SocketError::Open(_)), "{refused}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_socket_of_a_living_agent_is_left_alone_and_that_of_a_dead_one_replaced() {
        let dir = temp_dir();
        let path = dir.path().join("sds.sock");
        let (socket, listener) = Socket::bind(path.clone()).await.unwrap();
        let refused = Socket::bind(path.clone()).await.unwrap_err();
        assert!(matches!(refused, SocketError::InUse(_)), "{refused}");
        drop(listener);
        std::mem::forget(socket);
        assert!(path.exists());
        assert!(Socket::bind(path).await.is_ok());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_path_that_no_socket_can_have_is_refused() {
        let dir = temp_dir();
        let long = dir.path().join("x".repeat(120));
        let refused = Socket::bind(long).await.unwrap_err();
        assert!(matches!(refused, SocketError::BadPath(_)), "{refused}");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let refused = Socket::bind(file.clone()).await.unwrap_err();
        assert!(matches!(refused, SocketError::NotASocket(_)), "{refused}");
        assert!(file.exists());
    }
}
