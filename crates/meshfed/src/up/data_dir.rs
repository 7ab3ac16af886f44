//! What is where in a mesh's data directory.
//!
//! | path | content |
//! | --- | --- |
//! | `api.redb`, `api.lock`, `sa-signer.pem` | the API server's |
//! | `kubeconfig` | the administrator's credentials, mode 0600 |
//! | `root-cert.pem` | the mesh's root, for proxies that join |
//! | `subnet`, `instance` | kept from the first start on |
//! | `tokens/` | ServiceAccount tokens of gateways that run in this process |
//! | `peers/` | what each peer exported when it was last heard |
//! | `audit/` | who changed what is shared |
//! | `logs/` | one access log per component |

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use meshfed_controlplane::subnet::Subnet;

/// A directory that is there and writable.
#[derive(Debug, Clone)]
pub struct DataDir(PathBuf);

/// What is written after the resources are on disk for the first time, and says who the mesh is.
const TRACES: [&str; 3] = ["sa-signer.pem", "root-cert.pem", "instance"];

impl DataDir {
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        meshfed_runtime::create_private_dir(path)
            .with_context(|| format!("cannot create the data directory {}", path.display()))?;
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot use the data directory {}", path.display()))?;
        let dir = Self(path);
        meshfed_runtime::create_private_dir(&dir.logs())
            .with_context(|| format!("cannot create {}", dir.logs().display()))?;
        Ok(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Refuses a directory of a mesh whose resources are gone: another mesh would begin in it without a word.
    pub fn check_resources(&self) -> anyhow::Result<()> {
        // In this order: another process may be at its first start in here.
        let traces: Vec<&str> = TRACES
            .into_iter()
            .filter(|name| self.0.join(name).exists())
            .collect();
        let resources = self.0.join("api.redb");
        let state = match std::fs::metadata(&resources) {
            Ok(file) if file.len() > 0 => return Ok(()),
            Ok(_) => "is empty",
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "is missing",
            // The API server says why.
            Err(_) => return Ok(()),
        };
        if traces.is_empty() {
            return Ok(());
        }
        anyhow::bail!(
            "{} {state}, but a mesh was here before ({}): its resources and its root certificate were in \
             that file; put a backup of it back, or move {} away to begin anew as another mesh, which \
             no peer knows",
            resources.display(),
            traces.join(", "),
            self.0.display()
        )
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    pub fn root_cert(&self) -> PathBuf {
        self.0.join("root-cert.pem")
    }

    pub fn tokens(&self) -> PathBuf {
        self.0.join("tokens")
    }

    pub fn peers(&self) -> PathBuf {
        self.0.join("peers")
    }

    pub fn audit(&self) -> PathBuf {
        self.0.join("audit")
    }

    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// The subnet of the last time.
    pub fn subnet(&self) -> anyhow::Result<Option<Subnet>> {
        let file = self.0.join("subnet");
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                let subnet = text.trim().parse();
                let subnet = subnet.with_context(|| format!("{} is damaged", file.display()))?;
                Ok(Some(subnet))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    pub fn keep_subnet(&self, subnet: Subnet) -> anyhow::Result<()> {
        let file = self.0.join("subnet");
        meshfed_runtime::write_public(&file, subnet.to_string().as_bytes())
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// The end of this instance's name in statuses, made once: `istiod-<smcp>-<this>`.
    pub fn instance(&self) -> anyhow::Result<String> {
        let file = self.0.join("instance");
        if let Ok(text) = std::fs::read_to_string(&file)
            && is_suffix(text.trim())
        {
            return Ok(text.trim().to_owned());
        }
        let suffix = new_suffix();
        meshfed_runtime::write_public(&file, suffix.as_bytes())
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(suffix)
    }
}

fn is_suffix(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 32
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// In the form of a Deployment's Pod: `b65457658-9wq5j`.
fn new_suffix() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = RandomState::new().hash_one(std::process::id());
    let mut take = |n: usize| -> String {
        (0..n)
            .map(|_| {
                let letter = LETTERS[(random % LETTERS.len() as u64) as usize];
                random /= LETTERS.len() as u64;
                char::from(letter)
            })
            .collect()
    };
    format!("{}-{}", take(8), take(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_whose_resources_are_gone_does_not_begin_anew_by_itself() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let resources = dir.path().join("api.redb");
        dir.check_resources().unwrap();
        // A first start that came to its end while it made the file, or just after.
        std::fs::write(&resources, "").unwrap();
        std::fs::write(dir.path().join("api.lock"), "").unwrap();
        dir.check_resources().unwrap();
        dir.instance().unwrap();
        let refused = dir.check_resources().unwrap_err().to_string();
        assert!(
            refused.contains("api.redb is empty") && refused.contains("(instance)"),
            "{refused}"
        );
        std::fs::remove_file(&resources).unwrap();
        let refused = dir.check_resources().unwrap_err().to_string();
        assert!(refused.contains("api.redb is missing"), "{refused}");
        std::fs::write(&resources, "something").unwrap();
        dir.check_resources().unwrap();
    }
}
