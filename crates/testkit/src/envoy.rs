//! A stock Envoy that runs for the length of a test.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::{temp_dir, tools};

/// A running Envoy; killed when dropped.
pub struct Envoy {
    process: Child,
    admin: SocketAddr,
    dir: TempDir,
}

impl Envoy {
    /// Starts one with a JSON bootstrap whose admin page is at `admin`. `None`: there is no Envoy
    /// and the test is skipped (see [`tools::envoy_or_skip`]).
    pub fn start(bootstrap: &str, admin: SocketAddr) -> Option<Self> {
        let quick_log = ["--file-flush-interval-msec", "50"];
        Self::start_with(bootstrap, admin, 1, &quick_log)
    }

    /// As [`start`](Self::start), with this many worker threads and more arguments.
    pub fn start_with(
        bootstrap: &str,
        admin: SocketAddr,
        threads: usize,
        args: &[&str],
    ) -> Option<Self> {
        let program = tools::envoy_or_skip()?;
        let dir = temp_dir();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("bootstrap.json"), bootstrap).unwrap();
        let process = Command::new(program)
            .args(["--disable-hot-restart", "--concurrency"])
            .arg(threads.to_string())
            .args(args)
            .arg("--log-path")
            .arg(path("log"))
            .arg("-c")
            .arg(path("bootstrap.json"))
            .stdout(File::create(path("access.log")).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self {
            process,
            admin,
            dir,
        })
    }

    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// The answer of the admin page to a GET, headers included.
    pub fn get(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Whether it has all its configuration; if not, what it says instead, with its warnings.
    pub fn ready(&self) -> Result<(), String> {
        let answer = self.get("/ready").unwrap_or_else(|e| e.to_string());
        if answer.contains("LIVE") {
            return Ok(());
        }
        Err(format!("{answer} {:#?}", self.warnings()))
    }

    /// Lines of the log at level warning and above.
    pub fn warnings(&self) -> Vec<String> {
        // Before the first line there is no file.
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let levels = ["[warning]", "[error]", "[critical]"];
        let bad = log.lines().filter(|l| levels.iter().any(|w| l.contains(w)));
        bad.map(String::from).collect()
    }

    /// Lines on standard output: the access log.
    pub fn access_log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.path().join("access.log")).unwrap();
        log.lines().map(String::from).collect()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
