//! The database file: one table of objects, one of facts about the file.

use std::{
    cell::Cell,
    fs::{File, TryLockError},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Once,
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::error::OpenError;

/// Grows when what an older release would misread is written.
const FORMAT: u64 = 1;
/// Everything that is read often is in memory anyway.
const CACHE_BYTES: usize = 1024 * 1024;

/// `<group>/<plural>\0<namespace>/<name>` to 8 bytes of revision (little endian) and the object.
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");

/// One change of a batch; `None` removes.
pub struct DiskChange {
    pub key: String,
    pub value: Option<(u64, bytes::Bytes)>,
}

pub struct Disk {
    database: Database,
    /// Held for as long as the database is open.
    _lock: File,
}

/// What a database holds, as read at start.
pub struct Contents {
    pub revision: u64,
    /// Key, revision, object.
    pub objects: Vec<(String, u64, Vec<u8>)>,
}

impl Disk {
    /// Opens or makes `api.redb` in `dir`, which must exist. All of it is read.
    pub fn open(dir: &Path) -> Result<(Self, Contents), OpenError> {
        let lock = lock(dir)?;
        let path = dir.join("api.redb");
        let opened = unless_it_panics(|| Self::open_locked(dir, &path, lock));
        opened.unwrap_or(Err(OpenError::Damaged { path }))
    }

    fn open_locked(dir: &Path, path: &Path, lock: File) -> Result<(Self, Contents), OpenError> {
        let failed = |error: redb::Error| match error {
            redb::Error::DatabaseAlreadyOpen => OpenError::Locked {
                path: dir.to_owned(),
            },
            redb::Error::Corrupted(_) => OpenError::Damaged {
                path: path.to_owned(),
            },
            redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                OpenError::Damaged {
                    path: path.to_owned(),
                }
            }
            other => OpenError::Database {
                path: path.to_owned(),
                message: other.to_string(),
            },
        };
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|error| failed(error.into()))?;
        restrict(path)?;
        let disk = Self {
            database,
            _lock: lock,
        };
        let found = disk.prepare().map_err(failed)?;
        if found > FORMAT {
            return Err(OpenError::NewerFormat {
                path: path.to_owned(),
                found,
                supported: FORMAT,
            });
        }
        let contents = disk.read().map_err(failed)?;
        // Of a new file the name must be on disk too, before others are that tell of a mesh.
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(io(dir))?;
        Ok((disk, contents))
    }

    /// Writes all changes, or none. On return they survive a crash of the machine.
    pub fn commit(&self, revision: u64, changes: &[DiskChange]) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        {
            let mut objects = write.open_table(OBJECTS)?;
            for change in changes {
                match &change.value {
                    Some((revision, object)) => {
                        let mut value = Vec::with_capacity(8 + object.len());
                        value.extend_from_slice(&revision.to_le_bytes());
                        value.extend_from_slice(object);
                        objects.insert(change.key.as_str(), value.as_slice())?;
                    }
                    None => {
                        objects.remove(change.key.as_str())?;
                    }
                }
            }
            write.open_table(FACTS)?.insert("revision", revision)?;
        }
        write.commit()?;
        Ok(())
    }

    /// Makes the tables of a new file; returns the format of the file.
    fn prepare(&self) -> Result<u64, redb::Error> {
        let write = self.database.begin_write()?;
        let format = {
            let mut facts = write.open_table(FACTS)?;
            let found = facts.get("format")?.map(|found| found.value());
            match found {
                Some(found) => found,
                None => {
                    facts.insert("format", FORMAT)?;
                    write.open_table(OBJECTS)?;
                    FORMAT
                }
            }
        };
        write.commit()?;
        Ok(format)
    }

    fn read(&self) -> Result<Contents, redb::Error> {
        let read = self.database.begin_read()?;
        let revision = read.open_table(FACTS)?.get("revision")?;
        let mut objects = Vec::new();
        for entry in read.open_table(OBJECTS)?.iter()? {
            let (key, value) = entry?;
            let Some((revision, object)) = value.value().split_first_chunk::<8>() else {
                continue;
            };
            objects.push((
                key.value().to_owned(),
                u64::from_le_bytes(*revision),
                object.to_vec(),
            ));
        }
        Ok(Contents {
            revision: revision.map_or(0, |revision| revision.value()),
            objects,
        })
    }
}

/// Runs what a damaged file makes panic, deep in the library that reads it. `None` if it did, with nothing
/// printed: where it was in the library helps nobody.
fn unless_it_panics<T>(work: impl FnOnce() -> T) -> Option<T> {
    thread_local! {
        static QUIET: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                others(panic);
            }
        }));
    });
    QUIET.set(true);
    // What the work has in its hands is dropped, and nothing else is seen again.
    let done = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(false);
    done.inspect_err(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or(panic.downcast_ref::<&str>().copied());
        tracing::debug!(said, "the file made its library panic");
    })
    .ok()
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("api.lock");
    let file = File::create(&path).map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked {
            path: dir.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

/// Secrets are in the file: nobody else may read it.
fn restrict(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(io(path))
}

pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> OpenError + use<> {
    let path: PathBuf = path.to_owned();
    move |source| OpenError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_committed_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, contents) = Disk::open(dir.path()).unwrap();
        assert_eq!((contents.revision, contents.objects.len()), (0, 0));
        let put = |key: &str| DiskChange {
            key: key.to_owned(),
            value: Some((5, bytes::Bytes::from_static(b"x"))),
        };
        disk.commit(6, &[put("a"), put("b")]).unwrap();
        let gone = DiskChange {
            key: "a".to_owned(),
            value: None,
        };
        disk.commit(7, &[gone]).unwrap();
        drop(disk);
        let (_disk, contents) = Disk::open(dir.path()).unwrap();
        assert_eq!(contents.revision, 7);
        assert_eq!(contents.objects, [("b".to_owned(), 5, b"x".to_vec())]);
    }

    #[test]
    fn a_directory_in_use_and_one_of_a_newer_release_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, _) = Disk::open(dir.path()).unwrap();
        assert!(matches!(
            Disk::open(dir.path()),
            Err(OpenError::Locked { .. })
        ));
        let write = disk.database.begin_write().unwrap();
        write
            .open_table(FACTS)
            .unwrap()
            .insert("format", FORMAT + 1)
            .unwrap();
        write.commit().unwrap();
        drop(disk);
        assert!(matches!(
            Disk::open(dir.path()),
            Err(OpenError::NewerFormat { found: 2, .. })
        ));
    }

    #[test]
    fn a_file_that_is_no_database_or_a_damaged_one_is_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.redb");
        std::fs::write(&path, "not a database").unwrap();
        let refused = Disk::open(dir.path()).err().unwrap();
        assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
        std::fs::remove_file(&path).unwrap();

        let (disk, _) = Disk::open(dir.path()).unwrap();
        let many: Vec<DiskChange> = (0..300)
            .map(|n| DiskChange {
                key: format!("key {n}"),
                value: Some((n, bytes::Bytes::from(vec![b'x'; 200]))),
            })
            .collect();
        disk.commit(300, &many).unwrap();
        drop(disk);
        let whole = std::fs::read(&path).unwrap();
        let mut refusals = 0;
        for (at, page) in whole.chunks(4096).enumerate() {
            if page.iter().all(|byte| *byte == 0) {
                continue;
            }
            for garbage in [0, 0x5a] {
                let mut damaged = whole.clone();
                damaged[at * 4096..][..page.len()].fill(garbage);
                std::fs::write(&path, &damaged).unwrap();
                match Disk::open(dir.path()) {
                    // Nothing that is still needed was in it.
                    Ok((_, contents)) => assert_eq!(contents.objects.len(), 300),
                    Err(refused) => {
                        assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
                        refusals += 1;
                    }
                }
            }
        }
        assert!(refusals > 0);
        // It can be opened again by the same process, so nothing is left behind.
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(Disk::open(dir.path()).unwrap().1.objects.len(), 300);
    }
}
