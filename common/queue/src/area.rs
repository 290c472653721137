//! A part of a ring or of a region for requests in flight, mapped: resolved and checked once, and
//! reached by offsets from then on.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use crate::chain::{DESCRIPTOR_SIZE, Words};
use crate::memory::{GuestMemory, Mapping};
use crate::ring::RingError;

/// One of a ring's three areas, mapped, or what is noted of its requests in flight. All offsets that
/// reach it are made from an index below the ring's size (`split`, `packed` and `inflight` see to
/// that), and the length was checked for the largest.
#[derive(Debug)]
pub(crate) struct Area {
    base: NonNull<u8>,
    len: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: the memory is shared with the guest in any case; it is reached by volatile and atomic
// accesses only, and `_mapping` keeps it mapped on whichever thread the area is.
unsafe impl Send for Area {}

impl Area {
    /// `len` bytes at `addr`, which must lie in one region and be aligned to `align`.
    pub(crate) fn resolve(
        memory: &GuestMemory,
        area: &'static str,
        addr: u64,
        len: usize,
        align: u64,
    ) -> Result<Self, RingError> {
        let outside = RingError::Address { area, addr };
        let (base, mapping) = memory.contiguous(addr, len as u64).ok_or(outside)?;
        // Both, as a region may begin at an odd place of its file.
        let host = base.as_ptr() as u64;
        if !addr.is_multiple_of(align) || !host.is_multiple_of(align) {
            return Err(RingError::Alignment { area, addr, align });
        }
        Ok(Self {
            base,
            len,
            _mapping: mapping,
        })
    }

    /// `len` bytes of `mapping` from `offset`, if it has them. For fields of eight bytes, which are
    /// aligned there.
    pub(crate) fn in_mapping(mapping: &Arc<Mapping>, offset: usize, len: usize) -> Option<Self> {
        let base = mapping.part(offset, len)?;
        base.cast::<u64>().is_aligned().then(|| Self {
            base,
            len,
            _mapping: Arc::clone(mapping),
        })
    }

    #[inline]
    pub(crate) fn at<T>(&self, offset: usize) -> NonNull<T> {
        debug_assert!(offset + size_of::<T>() <= self.len);
        // SAFETY: `offset` and the `T` there are inside the area: every caller derives it from
        // an index below the ring's size, for which `resolve` checked the length.
        unsafe { self.base.add(offset).cast() }
    }

    /// The byte at `offset`.
    #[inline]
    pub(crate) fn u8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: as for `u16`; a byte needs no alignment.
        unsafe { self.at::<AtomicU8>(offset).as_ref() }
    }

    /// The field at `offset`, which is even.
    #[inline]
    pub(crate) fn u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: mapped for as long as `self` lives; aligned, as the area and the offset are to
        // 2 at least; the guest's accesses are as atomic as its processor makes them.
        unsafe { self.at::<AtomicU16>(offset).as_ref() }
    }

    /// The field at `offset`, a multiple of 4, of an area that is aligned to 4.
    #[inline]
    pub(crate) fn u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as for `u16`, aligned to 4.
        unsafe { self.at::<AtomicU32>(offset).as_ref() }
    }

    /// The field at `offset`, a multiple of 8, of an area that is aligned to 8.
    #[inline]
    pub(crate) fn u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as for `u16`, aligned to 8.
        unsafe { self.at::<AtomicU64>(offset).as_ref() }
    }

    /// The area as a table of descriptors, which it is.
    #[inline]
    pub(crate) fn table(&self) -> Table {
        Table(self.base.cast())
    }

    /// The descriptor in `slot` of an area that is a table of them, read once.
    #[inline]
    pub(crate) fn descriptor(&self, slot: u16) -> Words {
        debug_assert!((usize::from(slot) + 1) * DESCRIPTOR_SIZE <= self.len);
        // SAFETY: a whole descriptor inside the area, which keeps it mapped.
        unsafe { self.table().read(slot) }
    }
}

/// A table of descriptors: aligned, but how long it is and for how long it is mapped is not known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table(NonNull<u64>);

impl Table {
    /// The table at an address, if that is aligned.
    #[inline]
    pub(crate) fn at(address: NonNull<u8>) -> Option<Self> {
        let table = Self(address.cast());
        table.0.is_aligned().then_some(table)
    }

    /// Reads descriptor `index` exactly once: what is checked is what is used. As two words, which
    /// stay in registers.
    ///
    /// # Safety
    /// The table has the descriptor, and is mapped.
    #[inline(always)]
    pub(crate) unsafe fn read<I: Into<usize>>(self, index: I) -> Words {
        // SAFETY: 16 mapped bytes, as the caller promises, and aligned. Volatile, as the guest may
        // write at any time.
        unsafe {
            let from = self.0.add(2 * index.into());
            [from.read_volatile(), from.add(1).read_volatile()]
        }
    }
}
