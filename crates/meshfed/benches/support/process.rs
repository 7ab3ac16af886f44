//! Processes that end with the benchmark, and what they use.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

/// A child; killed when dropped.
pub struct Process(Child);

impl Process {
    /// Starts the program under measurement with its output in the file `log`.
    pub fn meshfed(log: &Path, set_up: impl FnOnce(&mut Command)) -> anyhow::Result<Self> {
        let output =
            File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshfed"));
        set_up(&mut command);
        let child = command
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start meshfed")?;
        Ok(Self(child))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// # Errors
    ///
    /// It has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("meshfed ended: {status}"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The resident memory of a process in MiB.
pub fn memory(process: u32) -> anyhow::Result<f64> {
    status(process, "VmRSS:")
}

/// The most that it ever was.
#[allow(dead_code, reason = "not every benchmark asks")]
pub fn peak_memory(process: u32) -> anyhow::Result<f64> {
    status(process, "VmHWM:")
}

fn status(process: u32, field: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next())
        .with_context(|| format!("the process has no {field}"))?;
    Ok(kib.parse::<f64>()? / 1024.0)
}
