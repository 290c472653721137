//! From a head descriptor to a checked list of segments (VIRTIO 1.4 §2.7.4, §2.7.5, §2.8.5,
//! §2.8.7).
//!
//! Each descriptor is read from guest memory exactly once. A [`Chain`] is reused from request to
//! request: walking a chain allocates only when it is longer than all before it. It is for what
//! `quick` leaves to it.

use std::ptr::NonNull;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::memory::GuestMemory;
use crate::packed::PackedRing;
use crate::split::SplitRing;

pub(crate) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(crate) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(crate) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// The most descriptors that one chain may have, direct and indirect ones together, empty ones
/// too; a device MAY limit it (VIRTIO 1.4 §2.7.4.1).
///
/// Stops a guest from making the device walk a list as long as its largest queue, or as an
/// indirect table of 4 GiB, for each request. 1024 is what QEMU's devices allow.
pub const MAX_CHAIN_DESCRIPTORS: usize = 1024;

/// The most bytes that the buffers of a chain may have together (VIRTIO 1.4 §2.7.4.2).
pub(crate) const MAX_CHAIN_LEN: u64 = u32::MAX as u64;

/// A descriptor as it stands in guest memory: `addr`, and the fields behind it.
pub(crate) type Words = [u64; 2];

/// The size of a descriptor in guest memory, in bytes.
pub(crate) const DESCRIPTOR_SIZE: usize = size_of::<Words>();

/// What `struct virtq_desc` and `struct pvirtq_desc` have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Desc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
}

impl Desc {
    /// A `struct virtq_desc`, and its `next`.
    #[inline(always)]
    pub(crate) fn virtq(words: Words) -> (Self, u16) {
        let (addr, len, [flags, next]) = fields(words);
        (Self { addr, len, flags }, next)
    }

    /// A `struct pvirtq_desc`, and its `id`.
    #[inline(always)]
    pub(crate) fn pvirtq(words: Words) -> (Self, u16) {
        let (addr, len, [id, flags]) = fields(words);
        (Self { addr, len, flags }, id)
    }

    #[inline(always)]
    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// `addr`, `len`, and the two fields behind them.
#[inline(always)]
fn fields([addr, rest]: Words) -> (u64, u32, [u16; 2]) {
    // Each cut is a field of the little-endian word.
    let rest = u64::from_le(rest);
    let behind = [(rest >> 32) as u16, (rest >> 48) as u16];
    (u64::from_le(addr), rest as u32, behind)
}

/// How far a chain in a packed ring goes, whatever is wrong with it.
#[derive(Debug)]
pub(crate) struct PackedWalk {
    /// How many descriptors it has; 0 when there is no chain.
    pub(crate) descriptors: u16,
    /// The buffer id, which stands in the last of them.
    pub(crate) id: u16,
    pub(crate) result: Result<(), ChainError>,
}

/// What is wrong with a chain. The chain goes back to the driver with length 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The available ring names a descriptor that does not exist.
    #[error("head {head} is outside of the descriptor table of {size}")]
    Head {
        /// The entry of the available ring.
        head: u16,
        /// The queue size.
        size: u16,
    },
    /// A descriptor's `next` leaves its table.
    #[error("descriptor {next} is outside of its table of {size}")]
    Next {
        /// The `next` field.
        next: u16,
        /// How many descriptors the table has.
        size: u32,
    },
    /// The chain is a loop, or longer than its table.
    #[error("chain is a loop: it has more than the {0} descriptors of its table")]
    Loop(u32),
    /// A chain in a packed ring goes on with a descriptor that is not available.
    #[error("chain goes on in slot {0}, which is not available")]
    Unavailable(u16),
    /// The chain has more than [`MAX_CHAIN_DESCRIPTORS`] descriptors, or pieces in memory.
    #[error("chain has more than {MAX_CHAIN_DESCRIPTORS} descriptors")]
    TooLong,
    /// The buffers of the chain add up to more than 2³² - 1 bytes (VIRTIO 1.4 §2.7.4.2).
    #[error("buffers add up to more than 4 GiB")]
    TooLarge,
    /// A buffer or an indirect table is not in guest memory.
    #[error("{len:#x} bytes at {addr:#x} are not in guest memory")]
    Address {
        /// The guest physical address.
        addr: u64,
        /// How many bytes from there.
        len: u32,
    },
    /// A device-readable descriptor follows a device-writable one (VIRTIO 1.4 §2.7.4.2).
    #[error("readable buffer at {addr:#x} follows a writable one")]
    Order {
        /// The readable buffer's guest physical address.
        addr: u64,
    },
    /// An indirect table inside an indirect table, or followed by another descriptor
    /// (VIRTIO 1.4 §2.7.5.3.1).
    #[error("indirect table at {addr:#x} is inside another, or has the NEXT flag")]
    Nested {
        /// The inner table's guest physical address.
        addr: u64,
    },
    /// An indirect table's length is 0 or not a multiple of 16.
    #[error("indirect table of {0} bytes is not a whole number of descriptors")]
    TableSize(u32),
    /// `VIRTIO_F_INDIRECT_DESC` was not negotiated.
    #[error("indirect table, but VIRTIO_F_INDIRECT_DESC was not negotiated")]
    NotNegotiated,
}

/// A piece of a buffer: where the guest put it and where it is mapped.
// Its size is a power of two: the quick walk has no registers left to multiply with.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
pub(crate) struct Segment {
    pub(crate) guest_addr: u64,
    pub(crate) host: NonNull<u8>,
    /// Never 0.
    pub(crate) len: usize,
}

impl Segment {
    /// None.
    pub(crate) const NONE: Self = Self {
        guest_addr: 0,
        host: NonNull::dangling(),
        len: 0,
    };
}

// SAFETY: the pointer is only followed while the `GuestMemory` that it was made from is borrowed
// (see `cursor`); between requests it is a dead value.
unsafe impl Send for Segment {}

/// What a chain consists of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers<'a> {
    /// The readable segments, and then the writable ones.
    pub(crate) segments: &'a [Segment],
    /// How many of them are readable.
    pub(crate) readable: usize,
    pub(crate) readable_len: usize,
    pub(crate) writable_len: usize,
}

impl<'a> Buffers<'a> {
    /// None.
    pub(crate) const NONE: Self = Self {
        segments: &[],
        readable: 0,
        readable_len: 0,
        writable_len: 0,
    };

    pub(crate) fn writable(&self) -> &'a [Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }
}

/// The careful walk: it knows all rules, and says which was broken. Also the segments that it
/// found, the readable ones and then the writable ones.
#[derive(Debug)]
pub(crate) struct Chain {
    segments: Vec<Segment>,
    /// How many of `segments` are readable.
    readable: usize,
    readable_len: usize,
    writable_len: usize,
    /// How many descriptors were followed.
    steps: usize,
    /// A writable descriptor was seen, though it may have been empty.
    writing: bool,
}

impl Chain {
    pub(crate) fn new() -> Self {
        Self {
            segments: Vec::new(),
            readable: 0,
            readable_len: 0,
            writable_len: 0,
            steps: 0,
            writing: false,
        }
    }

    pub(crate) fn buffers(&self) -> Buffers<'_> {
        Buffers {
            segments: &self.segments,
            readable: self.readable,
            readable_len: self.readable_len,
            writable_len: self.writable_len,
        }
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.readable = 0;
        self.readable_len = 0;
        self.writable_len = 0;
        self.steps = 0;
        self.writing = false;
    }

    /// Collects the chain that begins at descriptor `head` of the ring.
    pub(crate) fn walk(
        &mut self,
        ring: &SplitRing,
        memory: &GuestMemory,
        head: u16,
    ) -> Result<(), ChainError> {
        self.clear();
        let size = u32::from(ring.size());
        let mut index = head;
        for _ in 0..size {
            let Some(words) = ring.descriptor(index) else {
                return Err(ChainError::Next { next: index, size });
            };
            let (desc, next) = Desc::virtq(words);
            if desc.has(INDIRECT) {
                return match ring.indirect() {
                    true => self.walk_indirect(memory, &desc),
                    false => Err(ChainError::NotNegotiated),
                };
            }
            self.add(memory, &desc)?;
            if !desc.has(NEXT) {
                return Ok(());
            }
            index = next;
        }
        Err(ChainError::Loop(size))
    }

    /// Collects the chain in the indirect table that `referrer` names, to its end. The
    /// referrer's own WRITE flag means nothing (VIRTIO 1.4 §2.7.5.3.2).
    fn walk_indirect(&mut self, memory: &GuestMemory, referrer: &Desc) -> Result<(), ChainError> {
        let Desc { addr, len, .. } = *referrer;
        if referrer.has(NEXT) {
            return Err(ChainError::Nested { addr });
        }
        let size = table_size(len)?;
        let mut index: u16 = 0;
        for _ in 0..size {
            if u32::from(index) >= size {
                return Err(ChainError::Next { next: index, size });
            }
            let (desc, next) = table_entry(memory, addr, index.into())
                .map(Desc::virtq)
                .ok_or(ChainError::Address { addr, len })?;
            if desc.has(INDIRECT) {
                return Err(ChainError::Nested { addr: desc.addr });
            }
            self.add(memory, &desc)?;
            if !desc.has(NEXT) {
                return Ok(());
            }
            index = next;
        }
        Err(ChainError::Loop(size))
    }

    /// Collects the chain that begins with the next descriptor of a packed ring. Whatever is
    /// wrong with it, it is followed to its end, so that the ring can go on behind it.
    pub(crate) fn walk_packed(&mut self, ring: &PackedRing, memory: &GuestMemory) -> PackedWalk {
        self.clear();
        let size = ring.size();
        let mut place = ring.next_avail();
        let mut walk = PackedWalk {
            descriptors: 0,
            id: 0,
            result: Ok(()),
        };
        while walk.descriptors < size {
            let (desc, id) = Desc::pvirtq(ring.descriptor(place.slot));
            if !place.is_available(desc.flags) {
                walk.result = Err(ChainError::Unavailable(place.slot));
                return walk;
            }
            let is_first = walk.descriptors == 0;
            walk.descriptors += 1;
            walk.id = id;
            if walk.result.is_ok() {
                walk.result = self.add_packed(memory, ring.indirect(), &desc, is_first);
            }
            if !desc.has(NEXT) {
                return walk;
            }
            place = place.next(size);
        }
        walk.result = Err(ChainError::Loop(size.into()));
        walk
    }

    /// Collects a chain of a packed ring whose descriptors were copied when it was taken. They are
    /// trusted no more than those in the ring.
    pub(crate) fn walk_copied(
        &mut self,
        memory: &GuestMemory,
        indirect: bool,
        descriptors: &[Words],
    ) -> Result<(), ChainError> {
        self.clear();
        for (index, words) in descriptors.iter().enumerate() {
            let (desc, _) = Desc::pvirtq(*words);
            self.add_packed(memory, indirect, &desc, index == 0)?;
            if !desc.has(NEXT) {
                return Ok(());
            }
        }
        // Fits: as many as a ring has, at most.
        Err(ChainError::Loop(descriptors.len() as u32))
    }

    fn add_packed(
        &mut self,
        memory: &GuestMemory,
        indirect: bool,
        desc: &Desc,
        is_first: bool,
    ) -> Result<(), ChainError> {
        if !desc.has(INDIRECT) {
            return self.add(memory, desc);
        }
        if !indirect {
            return Err(ChainError::NotNegotiated);
        }
        if !is_first || desc.has(NEXT) {
            return Err(ChainError::Nested { addr: desc.addr });
        }
        self.walk_packed_table(memory, desc)
    }

    /// Collects all descriptors of the indirect table that `referrer` names. Of their flags only
    /// WRITE means anything, their ids nothing (VIRTIO 1.4 §2.8.7).
    fn walk_packed_table(
        &mut self,
        memory: &GuestMemory,
        referrer: &Desc,
    ) -> Result<(), ChainError> {
        let Desc { addr, len, .. } = *referrer;
        for index in 0..table_size(len)? {
            let (desc, _) = table_entry(memory, addr, index)
                .map(Desc::pvirtq)
                .ok_or(ChainError::Address { addr, len })?;
            self.add(memory, &desc)?;
        }
        Ok(())
    }

    fn add(&mut self, memory: &GuestMemory, desc: &Desc) -> Result<(), ChainError> {
        let writable = desc.has(WRITE);
        self.steps += 1;
        if self.steps > MAX_CHAIN_DESCRIPTORS {
            return Err(ChainError::TooLong);
        }
        if self.writing && !writable {
            return Err(ChainError::Order { addr: desc.addr });
        }
        self.writing = writable;
        self.add_buffer(memory, desc.addr, desc.len, writable)
    }

    /// Adds one buffer, cut where it passes from one region to the next.
    fn add_buffer(
        &mut self,
        memory: &GuestMemory,
        addr: u64,
        len: u32,
        writable: bool,
    ) -> Result<(), ChainError> {
        let outside = ChainError::Address { addr, len };
        // Cannot overflow: both are sums of lengths that were held under 4 GiB here.
        let total = self.readable_len as u64 + self.writable_len as u64 + u64::from(len);
        if total > MAX_CHAIN_LEN {
            return Err(ChainError::TooLarge);
        }
        let mut addr = addr;
        let mut left = u64::from(len);
        while left > 0 {
            let piece = memory.piece(addr, left).ok_or(outside)?;
            // Fits: a piece is at most `len`, a u32.
            let piece_len = piece.len as usize;
            if self.segments.len() == MAX_CHAIN_DESCRIPTORS {
                return Err(ChainError::TooLong);
            }
            self.segments.push(Segment {
                guest_addr: addr,
                host: piece.host,
                len: piece_len,
            });
            if writable {
                self.writable_len += piece_len;
            } else {
                self.readable += 1;
                self.readable_len += piece_len;
            }
            left -= piece.len;
            // A region ends below 2^64, so this cannot wrap to an address that is mapped.
            addr = addr.wrapping_add(piece.len);
        }
        Ok(())
    }

    /// Collects buffers by their addresses and lengths, of which the first so many are readable.
    pub(crate) fn gather(
        &mut self,
        memory: &GuestMemory,
        buffers: &[(u64, u32)],
        readable: usize,
    ) -> Result<(), ChainError> {
        self.clear();
        for (index, &(addr, len)) in buffers.iter().enumerate() {
            self.add_buffer(memory, addr, len, index >= readable)?;
        }
        Ok(())
    }
}

/// How many descriptors an indirect table of `len` bytes has.
#[inline]
pub(crate) fn table_size(len: u32) -> Result<u32, ChainError> {
    const ENTRY: u32 = DESCRIPTOR_SIZE as u32;
    if len == 0 || !len.is_multiple_of(ENTRY) {
        return Err(ChainError::TableSize(len));
    }
    Ok(len / ENTRY)
}

/// Descriptor `index` of the indirect table at `addr`, read once; `None` when it is not in memory.
fn table_entry(memory: &GuestMemory, addr: u64, index: u32) -> Option<Words> {
    // Cannot overflow: below 2^36.
    let offset = u64::from(index) * DESCRIPTOR_SIZE as u64;
    memory.descriptor(addr.checked_add(offset)?)
}
