//! A directory of what was downloaded and built.
//!
//! An entry is a directory named `<what>-<version>-<key>`. The key is a hash
//! of all that the entry is made of, so that an entry made of something else
//! is not taken for it. Whatever else is kept has a path of its own. All are
//! made in a temporary directory and renamed into place: what is there is
//! whole. One process at a time makes what is for one [`Purpose`].

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::progress::Progress;

/// What something in the cache is for. What is for one purpose can take long; that for another does
/// not wait for it.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// Guests, with their kernels.
    Guests,
    /// Programs for arm64.
    Arm64,
    /// Programs and libraries that are run here, or installed.
    Programs,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Guests => "guests",
            Self::Arm64 => "arm64",
            Self::Programs => "programs",
        }
    }

    /// What the names of temporary directories begin with.
    fn temporary(self) -> String {
        format!("making-{}-", self.name())
    }
}

/// The cache, for looking.
pub(crate) struct Cache {
    root: PathBuf,
}

/// The cache, for making entries for a purpose: at most one process has it so.
pub(crate) struct LockedCache {
    cache: Cache,
    purpose: Purpose,
    _lock: File,
}

/// What an entry is, apart from its version.
pub(crate) struct Entry<'a> {
    /// The beginning of its name.
    pub(crate) what: String,
    /// Everything else that it is made of.
    pub(crate) made_of: &'a [&'a str],
}

impl Entry<'_> {
    fn name(&self, version: &str) -> String {
        let parts = [&[version], self.made_of].concat();
        // An epoch's colon is nothing for the name of a file.
        let version = version.replace(':', "_");
        format!("{}-{version}-{:016x}", self.what, hash(&parts))
    }
}

/// FNV-1a of 64 bits, the same for ever, over the parts and where they end.
fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Cache {
    /// The user's cache, in `$XDG_CACHE_HOME` or `~/.cache`.
    pub(crate) fn open() -> Result<Self> {
        let caches = env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| Some(env::home_dir()?.join(".cache")))
            .context("cannot tell where to cache: set HOME or XDG_CACHE_HOME")?;
        Self::at(caches.join("vhost-device"))
    }

    /// The cache in this directory, made if need be.
    pub(crate) fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Self { root })
    }

    /// Waits until no other process makes entries for this purpose.
    pub(crate) fn lock(self, purpose: Purpose, progress: &Progress) -> Result<LockedCache> {
        let path = self.root.join(format!("lock-{}", purpose.name()));
        let lock = File::create(&path);
        let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                progress.say("Waiting for another set-up that is running");
                lock.lock().context("cannot lock the cache")?;
            }
            result => result.context("cannot lock the cache")?,
        }
        let locked = LockedCache {
            cache: self,
            purpose,
            _lock: lock,
        };
        locked.remove_leftovers()?;
        Ok(locked)
    }

    /// Where something is that has a path of its own in the cache.
    pub(crate) fn path(&self, own: &Path) -> PathBuf {
        self.root.join(own)
    }

    /// The newest entry of those that are made of this, whatever its version.
    pub(crate) fn find(&self, entry: &Entry<'_>) -> Result<Option<PathBuf>> {
        let mut found = Vec::new();
        for path in self.directories()? {
            let version = fs::read_to_string(path.join("version")).unwrap_or_default();
            let name = entry.name(version.trim());
            if path.file_name().is_some_and(|own| own == name.as_str()) {
                let modified = fs::metadata(&path).and_then(|data| data.modified());
                found.push((modified.ok(), path));
            }
        }
        Ok(found.into_iter().max().map(|(_, path)| path))
    }

    fn directories(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.root)
            .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
            .with_context(|| format!("cannot read {}", self.root.display()))?;
        Ok(entries
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect())
    }
}

impl LockedCache {
    /// The cache, for looking.
    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// A directory for work, gone when dropped.
    pub(crate) fn temporary(&self) -> Result<TempDir> {
        tempfile::Builder::new()
            .prefix(&self.purpose.temporary())
            .tempdir_in(&self.cache.root)
            .context("cannot make a directory in the cache")
    }

    /// Makes this directory, which is in a temporary one, an entry.
    pub(crate) fn publish(&self, made: &Path, entry: &Entry<'_>, version: &str) -> Result<()> {
        fs::write(made.join("version"), version).context("cannot write to the cache")?;
        self.keep(made, Path::new(&entry.name(version)))?;
        Ok(())
    }

    /// Puts this directory, which is in a temporary one, at this path in the
    /// cache, and says where that is.
    pub(crate) fn keep(&self, made: &Path, own: &Path) -> Result<PathBuf> {
        let path = self.cache.path(own);
        path.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::rename(made, &path))
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// What a set-up for the same purpose left behind that was ended in the middle.
    fn remove_leftovers(&self) -> Result<()> {
        for path in self.cache.directories()? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(&self.purpose.temporary()) {
                fs::remove_dir_all(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_another_purpose_is_neither_waited_for_nor_taken_for_a_leftover() {
        let directory = TempDir::new().unwrap();
        let lock = |purpose| {
            let cache = Cache::at(directory.path().to_owned()).unwrap();
            cache.lock(purpose, &Progress::new()).unwrap()
        };
        let guests = lock(Purpose::Guests);
        let work = guests.temporary().unwrap();
        let programs = lock(Purpose::Programs);
        assert!(work.path().exists());
        drop((guests, programs));
        // As when the process was killed.
        let left = work.keep();
        drop(lock(Purpose::Programs));
        assert!(left.exists());
        drop(lock(Purpose::Guests));
        assert!(!left.exists());
    }
}
