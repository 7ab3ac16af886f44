//! The last good list of each peer, kept on disk: what a peer exported stays while it, or we, are
//! away. One file a peer, in the protocol's own form, and checked when it is read as if the peer
//! had sent it. A file's time of change is when its peer was last heard. An empty file beside it says by its
//! own when the contact was lost; without it the contact lasted until our end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use meshfed_federation::discovery::client::RemoteState;
use meshfed_federation::discovery::message::{Limits, decode_list};
use meshfed_federation::discovery::remote::RemoteServices;
use meshfed_federation::names::PeerName;
use tracing::warn;

const SUFFIX: &str = ".json";
const LOST_SUFFIX: &str = ".lost";

/// The directory of the lists.
#[derive(Debug, Clone)]
pub struct PeerCache(PathBuf);

impl PeerCache {
    /// Makes the directory if it is not there.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        meshfed_runtime::create_private_dir(&dir)?;
        Ok(Self(dir))
    }

    /// All lists that can be read and are as they were written; others are told of and left.
    pub fn load(&self) -> BTreeMap<PeerName, RemoteState> {
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) => {
                warn!(dir = %self.0.display(), %error, "cannot read the lists of peers");
                return BTreeMap::new();
            }
        };
        let mut lists = BTreeMap::new();
        for entry in entries.flatten() {
            let file = entry.file_name();
            let name = file.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            let Some(peer) = name.and_then(|name| name.parse::<PeerName>().ok()) else {
                continue;
            };
            match read(&entry.path()) {
                Ok(services) => {
                    let contact = changed_at(&entry.path());
                    let lost_at = changed_at(&self.lost(&peer));
                    let state = RemoteState::kept(Arc::new(services), contact, lost_at);
                    lists.insert(peer, state);
                }
                Err(error) => warn!(%peer, error, "the kept list of this peer is not usable"),
            }
        }
        lists
    }

    /// Keeps a list. Blocks for the time of a write to disk. Returns its bytes.
    pub fn store(&self, peer: &PeerName, services: &RemoteServices) -> io::Result<usize> {
        let document = services.to_lasting_list().encode();
        meshfed_runtime::write_private(&self.path(peer), &document)?;
        Ok(document.len())
    }

    /// Notes that the peer was heard and still exports what is kept. Blocks for a short time.
    pub fn touch(&self, peer: &PeerName, at: Timestamp) -> io::Result<()> {
        let file = File::options().write(true).open(self.path(peer))?;
        file.set_modified(SystemTime::from(at))
    }

    /// Notes when the contact with the peer was lost, or that it was not. Blocks for a short time.
    pub fn note_lost(&self, peer: &PeerName, at: Option<Timestamp>) -> io::Result<()> {
        let path = self.lost(peer);
        let Some(at) = at else {
            return remove(&path);
        };
        if !path.exists() {
            meshfed_runtime::write_private(&path, b"")?;
        }
        let file = File::options().write(true).open(path)?;
        file.set_modified(SystemTime::from(at))
    }

    /// Drops the list of what is no peer any more.
    pub fn remove(&self, peer: &PeerName) {
        for path in [self.path(peer), self.lost(peer)] {
            if let Err(error) = remove(&path) {
                warn!(%peer, %error, "cannot remove the list of this peer");
            }
        }
    }

    fn lost(&self, peer: &PeerName) -> PathBuf {
        self.0.join(format!("{peer}{LOST_SUFFIX}"))
    }

    fn path(&self, peer: &PeerName) -> PathBuf {
        self.0.join(format!("{peer}{SUFFIX}"))
    }
}

fn changed_at(path: &Path) -> Option<Timestamp> {
    let changed = std::fs::metadata(path).and_then(|m| m.modified()).ok()?;
    Timestamp::try_from(changed).ok()
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The list was within the limits of its peer, which may be set higher than the default.
fn read(path: &Path) -> Result<RemoteServices, String> {
    let limits = Limits {
        list_bytes: usize::MAX,
        services: usize::MAX,
        ..Limits::default()
    };
    let document = std::fs::read(path).map_err(|e| e.to_string())?;
    let received = decode_list(&document, &limits).map_err(|e| e.to_string())?;
    let checksum = received.list.checksum;
    let services = RemoteServices::check(received, &limits).map_err(|e| e.to_string())?;
    // A peer's list is taken with any; this one is our own.
    if !services.agrees_with(checksum) {
        return Err("its checksum does not agree: it was changed by somebody else".to_owned());
    }
    Ok(services)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = br#"{"checksum":12328941072753332621,"services":[{"name":"a","namespace":"b","hostname":"a.b.svc.c-exports.local"}]}"#;

    #[test]
    fn a_list_survives_and_one_that_is_damaged_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let cache = PeerCache::open(dir.path().join("peers")).unwrap();
        let limits = Limits::default();
        let services = RemoteServices::check(decode_list(LIST, &limits).unwrap(), &limits).unwrap();
        let red: PeerName = "red-mesh".parse().unwrap();
        cache.store(&red, &services).unwrap();
        let blue = cache.path(&"blue-mesh".parse().unwrap());
        let document = std::fs::read_to_string(cache.path(&red)).unwrap();
        for damaged in ["{", &document.replace(r#""a""#, r#""x""#)] {
            assert_ne!(damaged, document);
            std::fs::write(&blue, damaged).unwrap();
            assert_eq!(cache.load().len(), 1);
        }
        let loaded = cache.load();
        assert_eq!(loaded.len(), 1);
        assert_eq!(*loaded[&red].services, services);
        assert!(loaded[&red].last_contact.is_some());
        let heard: Timestamp = "2021-10-05T13:00:00Z".parse().unwrap();
        cache.touch(&red, heard).unwrap();
        assert_eq!(cache.load()[&red].last_contact, Some(heard));
        for lost in [Some(heard), None, Some(heard)] {
            cache.note_lost(&red, lost).unwrap();
            assert_eq!(cache.load()[&red].lost_at(), lost);
        }
        cache.remove(&red);
        assert!(cache.load().is_empty());
        assert!(!cache.lost(&red).exists());
    }
}
