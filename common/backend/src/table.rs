//! The memory table: which files of the front-end hold the guest's memory, and where they are
//! mapped (vhost-user "Memory regions description", `SET_MEM_TABLE`, `ADD_MEM_REG`,
//! `REM_MEM_REG`).

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost_device_queue::GuestMemory;
use vhost_device_queue::memory::{MemoryError, Region};

use crate::memory_file::{FileError, MemoryFile, MemoryFs};

/// The most regions that a guest's memory may have: as many as KVM gives a guest at least.
///
/// Stops a front-end from using up the process's mappings, which other guests need too.
pub const MAX_MEM_SLOTS: usize = 509;

/// Why a region was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    #[error(
        "memory region at {guest_addr:#x} of {size:#x} bytes is empty or passes the end of an address space"
    )]
    Range { guest_addr: u64, size: u64 },
    #[error("memory region at {guest_addr:#x}: {source}")]
    File { guest_addr: u64, source: FileError },
    #[error("the guest's memory would have more than {0} regions")]
    Slots(usize),
    #[error("the guest's memory would be larger than {0:#x} bytes")]
    Size(u64),
    #[error("no memory region of {size:#x} bytes at {guest_addr:#x} to remove")]
    Unknown { guest_addr: u64, size: u64 },
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// One region as the front-end described it, mapped.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    user_addr: u64,
    region: Region,
}

impl Entry {
    /// Maps `file` as `described`.
    fn map(
        described: &VhostUserMemoryRegion,
        file: &File,
        allowed: MemoryFs,
    ) -> Result<Self, TableError> {
        // The structure is packed: copies, no references.
        let guest_addr = described.guest_phys_addr;
        let size = described.memory_size;
        let user_addr = described.user_addr;
        let offset = described.mmap_offset;
        let bad = || TableError::Range { guest_addr, size };
        let sound = size != 0
            && guest_addr.checked_add(size).is_some()
            && user_addr.checked_add(size).is_some();
        if !sound {
            return Err(bad());
        }
        let unusable = |source| TableError::File { guest_addr, source };
        let file = MemoryFile::new(file, allowed).map_err(unusable)?;
        let page = file.page();
        // The offset may lie within a page, above all within a huge one: map from its start.
        let inside = offset % page;
        let start = offset - inside;
        let len = size
            .checked_add(inside)
            .and_then(|len| usize::try_from(len).ok())
            .ok_or_else(bad)?;
        let inside = usize::try_from(inside).map_err(|_| bad())?;
        let mapping = file.map(start, len).map_err(unusable)?;
        let region = Region::new(guest_addr, Arc::new(mapping), inside, size)?;
        Ok(Self { user_addr, region })
    }

    fn matches(&self, described: &VhostUserMemoryRegion) -> bool {
        let guest_addr = described.guest_phys_addr;
        let size = described.memory_size;
        let user_addr = described.user_addr;
        self.region.guest_addr() == guest_addr
            && self.region.size() == size
            && self.user_addr == user_addr
    }
}

/// How much of the process one guest may use for its memory.
///
/// Address space, mappings and descriptors belong to all guests of a process: a front-end that
/// maps sparse files of terabytes must not leave the others without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most regions.
    pub slots: usize,
    /// The most bytes, all regions together.
    pub bytes: u64,
}

impl Limits {
    /// Half of the 47 bits of address space that a process has on every 64-bit architecture. The
    /// other half is left for an old table while a new one takes its place.
    const ADDRESS_SPACE: u64 = 1 << 46;
    /// Half of the mappings that Linux gives a process by default, for the same reason.
    const MAPPINGS: usize = 32768;

    /// A fair share for each of `guests`.
    pub fn fair(guests: usize) -> Self {
        let guests = guests.max(1);
        Self {
            slots: MAX_MEM_SLOTS.min(Self::MAPPINGS / guests),
            bytes: Self::ADDRESS_SPACE / guests as u64,
        }
    }

    fn check(self, slots: usize, bytes: impl Iterator<Item = u64>) -> Result<(), TableError> {
        if slots > self.slots {
            return Err(TableError::Slots(self.slots));
        }
        match bytes.fold(0, u64::saturating_add) > self.bytes {
            true => Err(TableError::Size(self.bytes)),
            false => Ok(()),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::fair(1)
    }
}

/// All regions of the guest's memory. Changes are made on a copy, and take effect when every
/// ring has been bound to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    entries: Vec<Entry>,
}

impl Table {
    /// Maps all regions that are `described`.
    pub(crate) fn map(
        described: &[VhostUserMemoryRegion],
        files: &[File],
        limits: Limits,
        allowed: MemoryFs,
    ) -> Result<Self, TableError> {
        let sizes = described.iter().map(|region| region.memory_size);
        limits.check(described.len(), sizes)?;
        let entries = described
            .iter()
            .zip(files)
            .map(|(region, file)| Entry::map(region, file, allowed))
            .collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }

    /// The table with one region more.
    pub(crate) fn with(
        &self,
        described: &VhostUserMemoryRegion,
        file: &File,
        limits: Limits,
        allowed: MemoryFs,
    ) -> Result<Self, TableError> {
        let sizes = self.entries.iter().map(|entry| entry.region.size());
        let all = sizes.chain([described.memory_size]);
        limits.check(self.entries.len() + 1, all)?;
        let mut table = self.clone();
        table.entries.push(Entry::map(described, file, allowed)?);
        Ok(table)
    }

    /// The table without the region that is `described`. Its mmap offset does not count: it
    /// means nothing in `REM_MEM_REG`.
    pub(crate) fn without(&self, described: &VhostUserMemoryRegion) -> Result<Self, TableError> {
        let mut table = self.clone();
        table.entries.retain(|entry| !entry.matches(described));
        if table.entries.len() == self.entries.len() {
            return Err(TableError::Unknown {
                guest_addr: described.guest_phys_addr,
                size: described.memory_size,
            });
        }
        Ok(table)
    }

    /// The regions for the queues.
    pub(crate) fn memory(&self) -> Result<GuestMemory, TableError> {
        let regions = self.entries.iter().map(|entry| entry.region.clone());
        Ok(GuestMemory::new(regions.collect())?)
    }

    /// Guest physical address of an address in the front-end's own address space, in which ring
    /// addresses are given.
    pub(crate) fn guest_addr(&self, user_addr: u64) -> Option<u64> {
        self.entries.iter().find_map(|entry| {
            let offset = user_addr.checked_sub(entry.user_addr)?;
            (offset < entry.region.size()).then(|| entry.region.guest_addr() + offset)
        })
    }

    /// Address and length of each mapping in this process.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = (usize, usize)> {
        let regions = self.entries.iter().map(|entry| &entry.region);
        regions.map(|region| region.mapping().range())
    }
}
