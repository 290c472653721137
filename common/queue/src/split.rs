//! The split ring (VIRTIO 1.4 §2.7): the three areas in guest memory, and the order in which
//! they are read and written.
//!
//! | step | ordering | why it is enough |
//! |---|---|---|
//! | see new chains | relaxed load of `avail.idx`, one acquire fence when it moved | orders the ring's entries and the descriptors after the index |
//! | publish | release store of `used.idx`, once a batch | orders ids, lengths and data before the index |
//! | must I call? | one full fence between that store and reading `used_event` or `flags` | the driver writes `used_event`, then looks at `used.idx`: one of the two sees the other |
//! | may I sleep? | write `avail_event` or `flags`, one full fence, read `avail.idx` once more | the same, the other way round |
//!
//! Every field is reached through a pointer that was resolved and checked once, when the ring
//! was bound to memory; the ring owns a share of the mappings, so the pointers stay good.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use crate::chain::DESCRIPTOR_SIZE;
use crate::memory::{GuestMemory, Mapping, read_descriptor};
use crate::queue::Addresses;

/// The largest split ring (VIRTIO 1.4 §2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// `flags` and `idx` come before the entries, in both rings.
const FLAGS: usize = 0;
const IDX: usize = 2;
const ENTRIES: usize = 4;
/// `struct virtq_used_elem`: id and len.
const USED_ELEM: usize = 8;
/// `used_event` or `avail_event` behind the entries.
const EVENT: usize = 2;

/// What is wrong with a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The size is 0, not a power of two, or more than [`MAX_QUEUE_SIZE`].
    #[error("queue size {0} is not a power of two from 1 to {MAX_QUEUE_SIZE}")]
    Size(u32),
    /// An area is not in guest memory, or passes the end of a region.
    #[error("{area} at {addr:#x} is not in one region of guest memory")]
    Address {
        /// Which area.
        area: &'static str,
        /// Its guest physical address.
        addr: u64,
    },
    /// An area is not aligned (VIRTIO 1.4 §2.7).
    #[error("{area} at {addr:#x} is not aligned to {align}")]
    Alignment {
        /// Which area.
        area: &'static str,
        /// Its guest physical address.
        addr: u64,
        /// The alignment that it must have.
        align: u64,
    },
    /// The driver moved the available index further than the ring is long.
    #[error("available index {index} is more than {size} ahead of {next}")]
    Index {
        /// The driver's index.
        index: u16,
        /// The index of the next entry to use.
        next: u16,
        /// The queue size.
        size: u16,
    },
}

/// One of the three areas, mapped. All offsets that reach it come from a masked index, and the
/// length was checked for the largest of them.
#[derive(Debug)]
struct Area {
    base: NonNull<u8>,
    len: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: the memory is shared with the guest in any case; it is reached by volatile and atomic
// accesses only, and `_mapping` keeps it mapped on whichever thread the area is.
unsafe impl Send for Area {}

impl Area {
    fn resolve(
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

    #[inline]
    fn at<T>(&self, offset: usize) -> NonNull<T> {
        debug_assert!(offset + size_of::<T>() <= self.len);
        // SAFETY: `offset` and the `T` there are inside the area: every caller derives it from
        // an index below the ring's size, for which `resolve` checked the length.
        unsafe { self.base.add(offset).cast() }
    }

    #[inline]
    fn u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: mapped for as long as `self` lives; aligned, as the area is and every offset
        // is even; the guest's accesses are as atomic as its processor makes them.
        unsafe { self.at::<AtomicU16>(offset).as_ref() }
    }
}

/// Resolves and checks the descriptor table, the available and the used ring.
fn areas(
    memory: &GuestMemory,
    addresses: &Addresses,
    size: u16,
    event_idx: bool,
) -> Result<(Area, Area, Area), RingError> {
    if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
        return Err(RingError::Size(size.into()));
    }
    let n = usize::from(size);
    let event = if event_idx { EVENT } else { 0 };
    let desc = Area::resolve(
        memory,
        "descriptor table",
        addresses.descriptor,
        n * DESCRIPTOR_SIZE,
        16,
    )?;
    let avail_len = ENTRIES + n * size_of::<u16>() + event;
    let avail = Area::resolve(memory, "available ring", addresses.available, avail_len, 2)?;
    let used_len = ENTRIES + n * USED_ELEM + event;
    let used = Area::resolve(memory, "used ring", addresses.used, used_len, 4)?;
    Ok((desc, avail, used))
}

/// Whether a ring of `size` entries could be bound at `addresses`. Touches nothing.
pub(crate) fn check(
    memory: &GuestMemory,
    addresses: &Addresses,
    size: u16,
    event_idx: bool,
) -> Result<(), RingError> {
    areas(memory, addresses, size, event_idx).map(drop)
}

/// The device's side of one split ring.
#[derive(Debug)]
pub(crate) struct SplitRing {
    size: u16,
    event_idx: bool,
    desc: Area,
    avail: Area,
    used: Area,
    /// How many entries were taken from the available ring, counted from the base: its low 16
    /// bits are the next index.
    taken: u64,
    /// The available index when last looked at.
    seen: u16,
    /// An index that was refused: it is not worth waking up for.
    refused: Option<u16>,
    /// The next used index, and the one that the driver was last shown.
    next_used: u16,
    published: u16,
    /// Whether anything was published since the ring was bound. With `EVENT_IDX` the first time
    /// always calls: nobody knows what `used_event` was meant for.
    called: bool,
    /// Whether the driver was asked for kicks.
    armed: bool,
}

impl SplitRing {
    /// Binds a ring of `size` entries to `memory`, to go on from available index `base`.
    pub(crate) fn new(
        memory: &GuestMemory,
        addresses: &Addresses,
        size: u16,
        base: u16,
        event_idx: bool,
    ) -> Result<Self, RingError> {
        let (desc, avail, used) = areas(memory, addresses, size, event_idx)?;
        let index = u16::from_le(used.u16(IDX).load(Ordering::Relaxed));
        let ring = Self {
            size,
            event_idx,
            next_used: index,
            published: index,
            desc,
            avail,
            used,
            taken: u64::from(base),
            seen: base,
            refused: None,
            called: false,
            armed: false,
        };
        // with EVENT_IDX the flags stay 0, whatever an earlier device left there.
        ring.used.u16(FLAGS).store(0, Ordering::Relaxed);
        Ok(ring)
    }

    /// Binds the ring to other memory or addresses, and goes on where it is.
    pub(crate) fn rebind(
        &mut self,
        memory: &GuestMemory,
        addresses: &Addresses,
    ) -> Result<(), RingError> {
        let next = self.next_avail();
        let fresh = Self::new(memory, addresses, self.size, next, self.event_idx)?;
        *self = Self {
            taken: self.taken,
            next_used: self.next_used,
            published: self.published,
            ..fresh
        };
        Ok(())
    }

    #[inline]
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// How many entries were taken from the available ring, counted from the base.
    #[inline]
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    #[inline]
    fn next_avail(&self) -> u16 {
        // The low 16 bits are the index.
        self.taken as u16
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// Looks for new entries: one read of the index for the whole batch. The number of entries
    /// that [`SplitRing::take`] gives without another look.
    #[inline]
    pub(crate) fn look(&mut self) -> Result<u16, RingError> {
        let next = self.next_avail();
        let index = u16::from_le(self.avail.u16(IDX).load(Ordering::Relaxed));
        let count = index.wrapping_sub(next);
        if count == 0 {
            self.seen = index;
            return Ok(0);
        }
        if count > self.size {
            self.seen = next;
            self.refused = Some(index);
            return Err(RingError::Index {
                index,
                next,
                size: self.size,
            });
        }
        fence(Ordering::Acquire);
        self.refused = None;
        self.seen = index;
        Ok(count)
    }

    /// The head of the next chain that [`SplitRing::look`] saw.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<u16> {
        let next = self.next_avail();
        if next == self.seen {
            return None;
        }
        let offset = ENTRIES + self.slot(next) * size_of::<u16>();
        let head = u16::from_le(self.avail.u16(offset).load(Ordering::Relaxed));
        self.taken += 1;
        Some(head)
    }

    /// Descriptor `index` of the table, read once; `None` when there is no such descriptor.
    #[inline]
    pub(crate) fn descriptor(&self, index: u16) -> Option<[u8; DESCRIPTOR_SIZE]> {
        if index >= self.size {
            return None;
        }
        let from = self.desc.at(usize::from(index) * DESCRIPTOR_SIZE);
        // SAFETY: a whole descriptor inside the table, which `self.desc` keeps mapped.
        Some(unsafe { read_descriptor(from) })
    }

    /// Puts a used element behind the last. The driver sees it with the next
    /// [`SplitRing::publish`].
    #[inline]
    pub(crate) fn push_used(&mut self, head: u16, len: u32) {
        let offset = ENTRIES + self.slot(self.next_used) * USED_ELEM;
        let element = [u32::from(head).to_le(), len.to_le()];
        // SAFETY: a whole element inside the used ring, which `self.used` keeps mapped; aligned
        // to 4, as the ring is. Volatile, as the guest may read at any time.
        unsafe { self.used.at::<[u32; 2]>(offset).write_volatile(element) };
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver all used elements. True when it wants to be called.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        self.used.u16(IDX).store(new.to_le(), Ordering::Release);
        self.published = new;
        fence(Ordering::SeqCst);
        let first = !std::mem::replace(&mut self.called, true);
        if self.event_idx {
            let offset = ENTRIES + usize::from(self.size) * size_of::<u16>();
            let event = u16::from_le(self.avail.u16(offset).load(Ordering::Relaxed));
            // The index that the driver waits for is one of those published now.
            first || new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags = u16::from_le(self.avail.u16(FLAGS).load(Ordering::Relaxed));
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver for a kick with its next entry. True when there is one already: the
    /// device must look again instead of going to sleep. Once armed, there is nothing to do
    /// until [`SplitRing::disarm`]: an entry that came since has its kick.
    #[inline]
    pub(crate) fn arm(&mut self) -> bool {
        let next = self.next_avail();
        if std::mem::replace(&mut self.armed, true) {
            return false;
        }
        if self.event_idx {
            let offset = ENTRIES + usize::from(self.size) * USED_ELEM;
            let event = self.used.u16(offset);
            event.store(next.to_le(), Ordering::Relaxed);
        } else {
            self.used.u16(FLAGS).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        let index = u16::from_le(self.avail.u16(IDX).load(Ordering::Relaxed));
        index != next && self.refused != Some(index)
    }

    /// Whether the driver made entries available from `base` on, taken or not.
    pub(crate) fn has_entries_from(&self, base: u16) -> bool {
        u16::from_le(self.avail.u16(IDX).load(Ordering::Relaxed)) != base
    }

    /// Tells the driver that kicks are not needed until [`SplitRing::arm`]. With EVENT_IDX that
    /// needs no write: an event index that lies behind asks for nothing.
    #[inline]
    pub(crate) fn disarm(&mut self) {
        if std::mem::replace(&mut self.armed, false) && !self.event_idx {
            let no_notify = (VRING_USED_F_NO_NOTIFY as u16).to_le();
            self.used.u16(FLAGS).store(no_notify, Ordering::Relaxed);
        }
    }
}
