//! The audit log: append-only, one JSON document a line, on disk before anything else goes on.
//!
//! What peers alone have caused goes to a file of its own, so that no peer decides how far back it can be read
//! what administrators did.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tracing::error;

/// The files that are written to, in the log's directory; older ones have `.1` (the newest) and so on
/// behind it.
const FILE: &str = "audit.log";
const PEERS_FILE: &str = "peers.log";
/// Beyond this a new file is begun.
const MAX_BYTES: u64 = 16 << 20;
/// Older files that are kept.
const KEPT: usize = 9;

/// Why the audit log cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep the audit log {path}")]
pub struct AuditError {
    path: PathBuf,
    source: io::Error,
}

/// Where lines go.
trait Sink: io::Write + fmt::Debug + Send {
    /// What was written is on disk when it returns.
    fn sync(&mut self) -> io::Result<()>;
}

impl Sink for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The log of one mesh.
#[derive(Debug)]
pub struct AuditLog {
    main: LogFile,
    by_peers: LogFile,
}

impl AuditLog {
    /// Opens the log in this directory, and makes all of it if it is not there. A line that was torn
    /// by a crash is ended, so that the next one stands alone.
    ///
    /// # Errors
    ///
    /// The directory or a file cannot be made or written.
    pub fn open(dir: &Path) -> Result<Self, AuditError> {
        Ok(Self {
            main: LogFile::open(dir, FILE)?,
            by_peers: LogFile::open(dir, PEERS_FILE)?,
        })
    }

    /// Writes a line for each entry, off the async threads; all are on disk when it returns. A line
    /// that cannot be written is told of in the program's own log, whole. `by_peers`: what peers alone have
    /// caused.
    pub(super) async fn append<E>(mut self, main: Vec<E>, by_peers: Vec<E>) -> Self
    where
        E: Serialize + Send + 'static,
    {
        let path = self.main.path.clone();
        let writing = tokio::task::spawn_blocking(move || {
            for (file, entries) in [(&mut self.main, main), (&mut self.by_peers, by_peers)] {
                let lines = entries.iter().map(serde_json::to_string);
                file.write_all(lines.map(Result::unwrap_or_default).collect());
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
}

/// A file with those that were full before it.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: Box<dyn Sink>,
    bytes: u64,
    /// The last line may be there in part.
    torn: bool,
    max_bytes: u64,
}

impl LogFile {
    fn open(dir: &Path, name: &str) -> Result<Self, AuditError> {
        let path = dir.join(name);
        let failed = |source| AuditError {
            path: path.clone(),
            source,
        };
        meshfed_runtime::create_private_dir(dir).map_err(failed)?;
        let (file, bytes) = open(&path).map_err(failed)?;
        Ok(Self {
            path,
            file: Box::new(file),
            bytes,
            torn: false,
            max_bytes: MAX_BYTES,
        })
    }

    fn write_all(&mut self, lines: Vec<String>) {
        if lines.is_empty() {
            return;
        }
        let mut not_synced = Vec::new();
        let path = self.path.clone();
        let failed = |error: &io::Error, line: String| {
            let path = path.display();
            error!(%error, %path, line, "an entry of the audit log was not written");
        };
        for line in lines {
            match self.write(&line) {
                Ok(()) => not_synced.push(line),
                Err(error) => failed(&error, line),
            }
        }
        if let Err(error) = self.file.sync() {
            for line in not_synced {
                failed(&error, line);
            }
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.max_bytes {
            self.rotate()?;
        }
        // What a failed write left stands alone, as what a crash left does.
        let end = if self.torn { "\n" } else { "" };
        let line = format!("{end}{line}\n");
        self.torn = true;
        self.file.write_all(line.as_bytes())?;
        self.torn = false;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync()?;
        let numbered = |n: usize| PathBuf::from(format!("{}.{n}", self.path.display()));
        for n in (1..KEPT).rev() {
            rename(&numbered(n), &numbered(n + 1))?;
        }
        rename(&self.path, &numbered(1))?;
        let (file, bytes) = open(&self.path)?;
        (self.file, self.bytes, self.torn) = (Box::new(file), bytes, false);
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

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
            log.append(vec![n], vec![-n]).await;
        }
        assert_eq!(lines(&at, FILE), ["0", "1"]);
        assert_eq!(lines(&at, PEERS_FILE), ["0", "-1"]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&at), mode(&at.join(FILE))), (0o700, 0o600));
    }

    #[tokio::test]
    async fn a_line_that_a_crash_has_torn_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"a\":1}\n{\"to").unwrap();
        let log = AuditLog::open(dir.path()).unwrap();
        log.append(vec![7], vec![]).await;
        assert_eq!(lines(dir.path(), FILE), ["{\"a\":1}", "{\"to", "7"]);
    }

    #[tokio::test]
    async fn a_full_file_makes_room_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = AuditLog::open(dir.path()).unwrap();
        log.main.max_bytes = 10;
        log.by_peers.max_bytes = 10;
        for n in 0..12 {
            log = log.append(vec![format!("entry {n:02}")], vec![]).await;
        }
        // What peers do takes no line away.
        for _ in 0..100 {
            log = log.append(vec![], vec!["flap".to_owned()]).await;
        }
        assert_eq!(lines(dir.path(), FILE), ["\"entry 11\""]);
        assert_eq!(lines(dir.path(), "audit.log.1"), ["\"entry 10\""]);
        assert_eq!(lines(dir.path(), "audit.log.9"), ["\"entry 02\""]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2 * (KEPT + 1));
    }

    /// A disk that has so many bytes left.
    #[derive(Debug)]
    struct Full(File, Arc<AtomicUsize>);

    impl io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let left = self.1.load(Ordering::Relaxed);
            if left == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let written = self.0.write(&bytes[..bytes.len().min(left)])?;
            self.1.fetch_sub(written, Ordering::Relaxed);
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink for Full {
        fn sync(&mut self) -> io::Result<()> {
            self.0.sync()
        }
    }

    #[tokio::test]
    async fn a_line_that_a_full_disk_has_torn_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = AuditLog::open(dir.path()).unwrap();
        let room = Arc::new(AtomicUsize::new(8));
        let (file, _) = open(&log.main.path).unwrap();
        log.main.file = Box::new(Full(file, room.clone()));
        log = log.append(vec![11, 22, 333333, 44], vec![]).await;
        room.store(1000, Ordering::Relaxed);
        log.append(vec![55, 66], vec![]).await;
        assert_eq!(lines(dir.path(), FILE), ["11", "22", "33", "55", "66"]);
    }

    #[test]
    fn a_log_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("audit"), "a file").unwrap();
        let error = AuditLog::open(&dir.path().join("audit")).unwrap_err();
        assert!(error.to_string().contains("audit/audit.log"), "{error}");
    }
}
