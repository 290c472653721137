//! A part of a ring or of a region for requests in flight, mapped: resolved and checked once, and
//! reached by offsets from then on.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use crate::chain::{DESCRIPTOR_SIZE, Words};
use crate::memory::{GuestMemory, Mapping};
use crate::ring::RingError;

/// One of a ring's three areas, mapped, or what is noted of its requests in flight. All offsets
/// that reach it are made from an index below the ring's size (`split`, `packed` and `inflight` see
/// to that), and the length was checked for the largest.
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

    /// The descriptor in `slot` of an area that is a table of them, read once.
    pub(crate) fn descriptor(&self, slot: u16) -> Words {
        let slot = usize::from(slot);
        debug_assert!((slot + 1) * DESCRIPTOR_SIZE <= self.len);
        // SAFETY: a whole descriptor inside the area, which keeps it mapped, and is aligned.
        // Volatile, as the guest may write at any time.
        unsafe {
            let from = self.base.cast::<u64>().add(2 * slot);
            [from.read_volatile(), from.add(1).read_volatile()]
        }
    }

    /// The area as a table of descriptors, which it is: `resolve` saw to its alignment.
    #[inline(always)]
    pub(crate) fn table(&self) -> Table<'_> {
        debug_assert!(self.base.cast::<u64>().is_aligned());
        Table {
            base: self.base.cast(),
            size: self.len / DESCRIPTOR_SIZE,
            memory: PhantomData,
        }
    }
}

/// A table of descriptors: aligned, and mapped for as long as what it was made from is borrowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'a> {
    base: NonNull<u64>,
    size: usize,
    memory: PhantomData<&'a GuestMemory>,
}

/// A descriptor, its fields as wide as registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) flags: u32,
    /// `next` or `id`.
    pub(crate) with: usize,
}

impl<'a> Table<'a> {
    /// The indirect table of `len` bytes at `addr`, if that is a whole number of descriptors,
    /// aligned, and in memory that is at hand.
    #[inline(always)]
    pub(crate) fn at_hand(memory: &'a GuestMemory, addr: u64, len: u64) -> Option<Self> {
        let base = memory.at_hand(addr)?.all(addr, len)?.cast::<u64>();
        // Less than 2^32.
        let len = len as usize;
        let is_table = len.is_multiple_of(DESCRIPTOR_SIZE) && base.is_aligned();
        is_table.then_some(Self {
            base,
            size: len / DESCRIPTOR_SIZE,
            memory: PhantomData,
        })
    }

    /// How many descriptors it has.
    #[inline(always)]
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The `struct virtq_desc` with this index, if the table has it.
    #[inline(always)]
    pub(crate) fn virtq(&self, index: usize) -> Option<Link> {
        let (addr, len, [flags, next]) = self.fields(index)?;
        Some(Link {
            addr,
            len,
            flags: flags.into(),
            with: next.into(),
        })
    }

    /// The `struct pvirtq_desc` with this index, if the table has it.
    #[inline(always)]
    pub(crate) fn pvirtq(&self, index: usize) -> Option<Link> {
        let (addr, len, [id, flags]) = self.fields(index)?;
        Some(Link {
            addr,
            len,
            flags: flags.into(),
            with: id.into(),
        })
    }

    /// Reads each field of a descriptor exactly once: what is checked is what is used. One by one,
    /// so that the next descriptor's index is there as soon as it can be.
    #[inline(always)]
    fn fields(&self, index: usize) -> Option<(u64, u64, [u16; 2])> {
        if index >= self.size {
            return None;
        }
        // SAFETY: 16 mapped bytes of the table, which is aligned to 8. Volatile, as the guest may
        // write at any time.
        let (addr, len, behind) = unsafe {
            let addr = self.base.add(2 * index);
            let len = addr.add(1).cast::<u32>();
            let behind = len.add(1).cast::<u16>();
            (
                addr.read_volatile(),
                len.read_volatile(),
                [behind.read_volatile(), behind.add(1).read_volatile()],
            )
        };
        let len = u32::from_le(len).into();
        Some((u64::from_le(addr), len, behind.map(u16::from_le)))
    }
}
