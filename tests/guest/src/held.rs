//! What a process holds of the system: what it could leak.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// How QEMU's `memory-backend-memfd` is named in `/proc/PID/maps`.
const GUEST_MEMORY: &str = "/memfd:";

/// What a process has open, runs and maps, by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Open descriptors of each kind: `socket`, `anon_inode:[eventfd]`,
    /// `/dev/gpiochip0` and so on.
    pub descriptors: BTreeMap<String, usize>,
    /// Threads.
    pub threads: usize,
    /// Mappings of guest memory.
    pub guest_mappings: usize,
}

impl Held {
    /// What the process with this number holds.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        let path = process.join("maps");
        let maps =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self {
            descriptors: descriptors(&process.join("fd"))?,
            threads: entries(&process.join("task"))?.count(),
            guest_mappings: maps
                .lines()
                .filter(|map| map.contains(GUEST_MEMORY))
                .count(),
        })
    }

    /// How many descriptors of this kind are open.
    pub fn open(&self, kind: &str) -> usize {
        self.descriptors.get(kind).copied().unwrap_or_default()
    }
}

fn entries(path: &Path) -> Result<fs::ReadDir> {
    fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))
}

fn descriptors(path: &Path) -> Result<BTreeMap<String, usize>> {
    let mut kinds = BTreeMap::new();
    for entry in entries(path)? {
        // One that was closed in between is not held.
        let Ok(target) = fs::read_link(entry?.path()) else {
            continue;
        };
        let target = target.to_string_lossy();
        *kinds.entry(kind(&target).to_owned()).or_default() += 1;
    }
    Ok(kinds)
}

/// A descriptor's target without the number of its inode: `socket` for
/// `socket:[1234]`.
fn kind(target: &str) -> &str {
    match target.split_once(":[") {
        Some((kind @ ("socket" | "pipe"), _)) => kind,
        _ => target,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_open_is_counted_by_kind() {
        let (_one, _other) = UnixStream::pair().unwrap();
        let held = Held::of(std::process::id()).unwrap();
        assert!(held.open("socket") >= 2, "{held:?}");
        assert_eq!(held.open("nothing"), 0);
        assert!(held.threads >= 1);
    }

    #[test]
    fn inodes_are_left_out() {
        assert_eq!(kind("socket:[77]"), "socket");
        assert_eq!(kind("anon_inode:[eventfd]"), "anon_inode:[eventfd]");
        assert_eq!(kind("/memfd:mem (deleted)"), "/memfd:mem (deleted)");
    }
}
