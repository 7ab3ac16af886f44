//! Access logs: one append-only file of lines for each component.
//!
//! ```text
//! connections --line()--> bounded channel --> writer thread --> <dir>/<component>.log
//!                 \ full: dropped, counted                       .log.1, .log.2 when it is large
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Lines that may wait for the disk before further ones are dropped.
const QUEUE: usize = 4096;
/// A line is cut after this many bytes.
const MAX_LINE: usize = 8 * 1024;
/// A file is rotated when it has grown past this size, in bytes.
pub const ROTATE_AT: u64 = 16 * 1024 * 1024;
/// Rotated files that are kept beside the current one.
pub const ROTATED_KEPT: u32 = 2;

/// Why an access log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AccessLogError {
    #[error("the component name {0:?} cannot be a file name; use a-z, A-Z, 0-9, '.', '-' and '_'")]
    Name(String),
    #[error("the access log {} cannot be opened", .path.display())]
    Open {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the writer of the access log {} cannot be started", .path.display())]
    Thread {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ComponentLabel {
    component: String,
}

/// What the access logs of a process count. Registered once, shared by all of them.
#[derive(Debug, Clone, Default)]
pub struct AccessLogMetrics {
    dropped: Family<ComponentLabel, Counter>,
    write_errors: Family<ComponentLabel, Counter>,
}

impl AccessLogMetrics {
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "meshfed_access_log_lines_dropped",
            "Access log lines that were dropped because the disk was too slow",
            metrics.dropped.clone(),
        );
        registry.register(
            "meshfed_access_log_write_errors",
            "Failed writes and rotations of access logs",
            metrics.write_errors.clone(),
        );
        metrics
    }
}

/// The access log of one component. Cheap to clone; the last clone to be dropped waits until all
/// lines are written.
#[derive(Debug, Clone)]
pub struct AccessLog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    lines: Option<SyncSender<Entry>>,
    writer: Option<JoinHandle<()>>,
    dropped: Counter,
}

enum Entry {
    Line(String),
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Opens `<dir>/<component>.log` for appending, mode 0600. Makes the directory if needed.
    pub fn open(
        dir: &Path,
        component: &str,
        metrics: &AccessLogMetrics,
    ) -> Result<Self, AccessLogError> {
        Self::open_with(dir, component, metrics, ROTATE_AT)
    }

    fn open_with(
        dir: &Path,
        component: &str,
        metrics: &AccessLogMetrics,
        rotate_at: u64,
    ) -> Result<Self, AccessLogError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if component.is_empty()
            || component.len() > 200
            || component.starts_with('.')
            || !component.bytes().all(allowed)
        {
            return Err(AccessLogError::Name(component.chars().take(120).collect()));
        }
        let path = dir.join(format!("{component}.log"));
        let open = || {
            crate::files::create_private_dir(dir)?;
            LogFile::open(path.clone(), rotate_at)
        };
        let file = open().map_err(|cause| AccessLogError::Open {
            path: path.clone(),
            cause,
        })?;

        let label = ComponentLabel {
            component: component.to_string(),
        };
        let dropped = metrics.dropped.get_or_create(&label).clone();
        let errors = metrics.write_errors.get_or_create(&label).clone();
        let (lines, queue) = sync_channel(QUEUE);
        let writer = std::thread::Builder::new()
            .name("access-log".to_string())
            .spawn(move || write(file, &queue, &errors))
            .map_err(|cause| AccessLogError::Thread {
                path: path.clone(),
                cause,
            })?;
        Ok(Self {
            inner: Arc::new(Inner {
                path,
                lines: Some(lines),
                writer: Some(writer),
                dropped,
            }),
        })
    }

    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Adds a line, without its end. Never blocks: a line for which there is no room is dropped
    /// and counted. Control characters are escaped, so that nothing a peer sent can forge a line;
    /// what is beyond 8 KiB is cut.
    pub fn line(&self, line: impl Into<String>) {
        let line = printable(line.into());
        let sent = self
            .inner
            .lines
            .as_ref()
            .is_some_and(|lines| lines.try_send(Entry::Line(line)).is_ok());
        if !sent {
            self.inner.dropped.inc();
        }
    }

    /// Lines that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.inner.dropped.get()
    }

    /// Blocks until every line that was added before is in the file. For tests and tools.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if let Some(lines) = &self.inner.lines
            && lines.send(Entry::Flush(done)).is_ok()
        {
            // An error means that the writer has ended; then nothing is left to wait for.
            let _ = wait.recv();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The writer ends when the channel closes and is empty.
        self.lines.take();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn printable(mut line: String) -> String {
    if line.len() > MAX_LINE {
        let end = (0..=MAX_LINE).rev().find(|i| line.is_char_boundary(*i));
        line.truncate(end.unwrap_or(0));
        line.push('…');
    }
    if line.contains(char::is_control) {
        line = line.chars().fold(String::new(), |mut out, c| {
            if c.is_control() {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
            out
        });
    }
    line
}

fn write(mut file: LogFile, queue: &Receiver<Entry>, errors: &Counter) {
    // One log line for each run of failures, not one for each failed write.
    let mut failing = false;
    let mut waiting = Vec::new();
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        let mut result = Ok(());
        while let Some(entry) = next {
            match entry {
                Entry::Line(line) => result = result.and(file.append(&line)),
                Entry::Flush(done) => waiting.push(done),
            }
            next = queue.try_recv().ok();
        }
        result = result.and(file.flush());
        match result {
            Ok(()) => failing = false,
            Err(error) => {
                errors.inc();
                if !failing {
                    tracing::error!(%error, path = %file.path.display(), "cannot write the access log");
                }
                failing = true;
            }
        }
        for done in waiting.drain(..) {
            let _ = done.send(());
        }
    }
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    out: BufWriter<File>,
    size: u64,
    rotate_at: u64,
}

impl LogFile {
    fn open(path: PathBuf, rotate_at: u64) -> io::Result<Self> {
        let file = open_for_append(&path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path,
            out: BufWriter::new(file),
            size,
            rotate_at,
        })
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        if self.size >= self.rotate_at {
            self.rotate()?;
        }
        self.out.write_all(line.as_bytes())?;
        self.out.write_all(b"\n")?;
        self.size += line.len() as u64 + 1;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.out.flush()?;
        for n in (1..ROTATED_KEPT).rev() {
            match fs::rename(self.rotated(n), self.rotated(n + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        fs::rename(&self.path, self.rotated(1))?;
        self.out = BufWriter::new(open_for_append(&self.path)?);
        self.size = 0;
        Ok(())
    }

    fn rotated(&self, n: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}"));
        name.into()
    }
}

fn open_for_append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mk_log(dir: &Path, rotate_at: u64) -> AccessLog {
        AccessLog::open_with(
            dir,
            "egress-green-mesh",
            &AccessLogMetrics::default(),
            rotate_at,
        )
        .unwrap()
    }

    #[test]
    fn lines_are_appended_to_a_file_of_the_components_name() {
        let dir = tempfile::tempdir().unwrap();
        let log = mk_log(dir.path(), ROTATE_AT);
        log.line("one");
        log.flush();
        assert_eq!(fs::read_to_string(log.path()).unwrap(), "one\n");
        let mode = fs::metadata(log.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(log);

        let again = mk_log(dir.path(), ROTATE_AT);
        again.line("two");
        let path = again.path().to_path_buf();
        drop(again);
        assert_eq!(fs::read_to_string(path).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_peer_cannot_forge_a_line_or_fill_the_disk_with_one() {
        let dir = tempfile::tempdir().unwrap();
        let log = mk_log(dir.path(), ROTATE_AT);
        log.line("sni=a\nforged \x1b[31m");
        log.line("x".repeat(MAX_LINE * 2));
        log.flush();
        let text = fs::read_to_string(log.path()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], "sni=a\\nforged \\u{1b}[31m");
        assert!(lines[1].len() <= MAX_LINE + '…'.len_utf8());
    }

    #[test]
    fn a_large_file_is_rotated_and_two_old_ones_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = mk_log(dir.path(), 10);
        for n in 0..5 {
            log.line(format!("line number {n}"));
        }
        log.flush();
        let read = |suffix: &str| {
            fs::read_to_string(dir.path().join(format!("egress-green-mesh.log{suffix}")))
        };
        assert_eq!(read("").unwrap(), "line number 4\n");
        assert_eq!(read(".1").unwrap(), "line number 3\n");
        assert_eq!(read(".2").unwrap(), "line number 2\n");
        assert!(read(".3").is_err());
    }

    #[test]
    fn lines_without_room_are_dropped_and_counted() {
        let (lines, queue) = sync_channel(1);
        let log = AccessLog {
            inner: Arc::new(Inner {
                path: PathBuf::new(),
                lines: Some(lines),
                writer: None,
                dropped: Counter::default(),
            }),
        };
        log.line("kept");
        log.line("dropped");
        assert_eq!(log.dropped(), 1);
        assert!(matches!(queue.recv(), Ok(Entry::Line(line)) if line == "kept"));
    }

    #[test]
    fn a_component_cannot_leave_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", "../x", "a/b", ".hidden", "a\0"] {
            let opened = AccessLog::open(dir.path(), bad, &AccessLogMetrics::default());
            assert!(matches!(opened, Err(AccessLogError::Name(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = AccessLog::open(&file, "a", &AccessLogMetrics::default()).unwrap_err();
        assert!(error.to_string().contains("a.log"), "{error}");
    }
}
