//! Busybox, the guest's user space, out of Debian's package.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::cache::{Cache, Entry, LockedCache};
use super::packages::{Packages, Pin};
use crate::arch::Arch;

const PIN: Pin = Pin {
    package: "busybox-static",
    version: "1:1.35.0-*",
};

fn entry(arch: &Arch) -> Entry<'static> {
    Entry {
        what: format!("busybox-{}", arch.name),
        made_of: &[],
    }
}

/// The program, when it is in the cache.
pub(crate) fn find(arch: &Arch, cache: &Cache) -> Result<Option<PathBuf>> {
    Ok(cache.find(&entry(arch))?.map(|path| path.join("busybox")))
}

/// Puts the program into the cache unless it is there.
pub(crate) fn extract(arch: &Arch, cache: &LockedCache, packages: &Packages<'_>) -> Result<()> {
    if find(arch, cache.cache())?.is_some() {
        return Ok(());
    }
    let work = cache.temporary()?;
    let root = work.path().join("root");
    let version = packages.unpack(&PIN, &root)?;
    let made = work.path().join("made");
    fs::create_dir(&made)
        .and_then(|()| fs::rename(root.join("bin/busybox"), made.join("busybox")))
        .context("cannot take busybox out of its package")?;
    cache.publish(&made, &entry(arch), &version)
}
