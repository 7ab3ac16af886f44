//! The audit log: append-only, one JSON document a line, on disk before anything else goes on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tracing::error;

/// The file that is written to, in the log's directory; older ones have `.1` (the newest) and so on
/// behind it.
const FILE: &str = "audit.log";
/// Beyond this a new file is begun.
const MAX_BYTES: u64 = 16 << 20;
/// Older files that are kept.
const KEPT: usize = 9;

/// Why the audit log cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep the audit log {path}: {source}")]
pub struct AuditError {
    path: PathBuf,
    source: io::Error,
}

/// The log of one mesh.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    file: File,
    bytes: u64,
    max_bytes: u64,
}

impl AuditLog {
    /// Opens the log in this directory, and makes both if they are not there. A line that was torn
    /// by a crash is ended, so that the next one stands alone.
    ///
    /// # Errors
    ///
    /// The directory or the file cannot be made or written.
    pub fn open(dir: &Path) -> Result<Self, AuditError> {
        let path = dir.join(FILE);
        let failed = |source| AuditError {
            path: path.clone(),
            source,
        };
        meshfed_runtime::create_private_dir(dir).map_err(failed)?;
        let (file, bytes) = open(&path).map_err(failed)?;
        Ok(Self {
            path,
            file,
            bytes,
            max_bytes: MAX_BYTES,
        })
    }

    /// Writes a line, off the async threads. A line that cannot be written is told of in the
    /// program's own log, whole.
    pub(super) async fn append(mut self, entry: impl Serialize + Send + 'static) -> Self {
        let path = self.path.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let line = serde_json::to_string(&entry).unwrap_or_default();
            if let Err(error) = self.write(&line) {
                let path = self.path.display();
                error!(%error, %path, line, "an entry of the audit log was not written");
            }
            self
        });
        match writing.await {
            Ok(log) => log,
            Err(panic) => {
                error!(error = %panic, path = %path.display(), "writing the audit log failed");
                std::panic::resume_unwind(panic.into_panic())
            }
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.max_bytes {
            self.rotate()?;
        }
        let line = format!("{line}\n");
        self.file.write_all(line.as_bytes())?;
        self.file.sync_data()?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: usize| PathBuf::from(format!("{}.{n}", self.path.display()));
        for n in (1..KEPT).rev() {
            rename(&numbered(n), &numbered(n + 1))?;
        }
        rename(&self.path, &numbered(1))?;
        (self.file, self.bytes) = open(&self.path)?;
        Ok(())
    }
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

/// The file, ready for a whole line, and its length.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let mut bytes = file.metadata()?.len();
    if bytes > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            bytes += 1;
        }
    }
    file.sync_all()?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok((file, bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn lines(dir: &Path, file: &str) -> Vec<String> {
        let text = fs::read_to_string(dir.join(file)).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn lines_are_added_to_those_of_before_and_only_the_owner_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("audit");
        for n in 0..2 {
            let log = AuditLog::open(&at).unwrap();
            log.append(n).await;
        }
        assert_eq!(lines(&at, FILE), ["0", "1"]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&at), mode(&at.join(FILE))), (0o700, 0o600));
    }

    #[tokio::test]
    async fn a_line_that_a_crash_has_torn_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"a\":1}\n{\"to").unwrap();
        let log = AuditLog::open(dir.path()).unwrap();
        log.append(7).await;
        assert_eq!(lines(dir.path(), FILE), ["{\"a\":1}", "{\"to", "7"]);
    }

    #[tokio::test]
    async fn a_full_file_makes_room_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = AuditLog::open(dir.path()).unwrap();
        log.max_bytes = 10;
        for n in 0..12 {
            log = log.append(format!("entry {n:02}")).await;
        }
        assert_eq!(lines(dir.path(), FILE), ["\"entry 11\""]);
        assert_eq!(lines(dir.path(), "audit.log.1"), ["\"entry 10\""]);
        assert_eq!(lines(dir.path(), "audit.log.9"), ["\"entry 02\""]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), KEPT + 1);
    }

    #[test]
    fn a_log_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("audit"), "a file").unwrap();
        let error = AuditLog::open(&dir.path().join("audit")).unwrap_err();
        assert!(error.to_string().contains("audit/audit.log"), "{error}");
    }
}
