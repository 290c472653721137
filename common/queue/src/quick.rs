//! The quick walk: from a ring to the checked segments of a chain, as drivers make them.
//!
//! It takes chains without empty buffers, each buffer in one region, a table that is aligned and in
//! one region, no more buffers than there is room for. At anything else, and at anything that is
//! wrong, it gives up, and the careful walk of [`Chain`] follows the chain from its head, as if
//! nobody had looked at it before: that one knows all rules. So there is little to decide here, and
//! what is known of a chain stays in registers.
//!
//! [`Chain`]: crate::chain::Chain

use crate::area::Table;
use crate::chain::{Buffers, Desc, INDIRECT, MAX_CHAIN_LEN, NEXT, Segment, WRITE, table_size};
use crate::memory::{GuestMemory, Window};

/// How many segments a chain may have here. They fit in the first cache.
const ROOM: usize = 128;

/// How many regions are at hand, by address bits from this one on.
const RECENT: usize = 8;
const RECENT_SHIFT: u32 = 21;

/// What the quick walk keeps from chain to chain.
#[derive(Debug)]
pub(crate) struct Quick {
    segments: Box<[Segment; ROOM]>,
    regions: Regions,
}

/// The regions that something was found in, of one memory.
#[derive(Debug)]
struct Regions {
    /// The memory, by its id.
    memory: u64,
    /// Those of the last buffer and the last table.
    buffer: Window,
    table: Window,
    /// Those of others: where an address is likely to be.
    recent: [Window; RECENT],
}

impl Regions {
    fn of(memory: &GuestMemory) -> Self {
        Self {
            memory: memory.id(),
            buffer: Window::NONE,
            table: Window::NONE,
            recent: [Window::NONE; RECENT],
        }
    }

    /// Forgets what was found in other memory.
    #[inline(always)]
    fn check(&mut self, memory: &GuestMemory) {
        if self.memory != memory.id() {
            self.forget(memory);
        }
    }

    #[cold]
    #[inline(never)]
    fn forget(&mut self, memory: &GuestMemory) {
        *self = Self::of(memory);
    }

    /// The region that these bytes are in, if they are in one.
    #[inline(always)]
    fn find(&mut self, memory: &GuestMemory, addr: u64, len: u32) -> Option<Window> {
        let slot = (addr >> RECENT_SHIFT) as usize % RECENT;
        let recent = self.recent.get_mut(slot)?;
        if recent.all(addr, len).is_none() {
            *recent = memory.window_at(addr)?;
        }
        Some(*recent)
    }
}

/// A chain that was followed to its end: its segments are the first `count`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    count: usize,
    readable: usize,
    readable_len: u64,
    len: u64,
}

impl Quick {
    pub(crate) fn new() -> Self {
        Self {
            segments: Box::new([Segment::NONE; ROOM]),
            regions: Regions::of(&GuestMemory::default()),
        }
    }

    /// The buffers of the chain that was found last.
    #[inline(always)]
    pub(crate) fn buffers(&self, found: Found) -> Option<Buffers<'_>> {
        let segments = self.segments.get(..found.count)?;
        let (readable, writable) = segments.split_at_checked(found.readable)?;
        // Lengths fit, as they add up to less than 2^32 (`Walk::end`).
        Some(Buffers {
            readable,
            readable_len: found.readable_len as usize,
            writable,
            writable_len: (found.len - found.readable_len) as usize,
        })
    }

    /// Begins to follow a chain.
    #[inline(always)]
    pub(crate) fn begin<'a>(&'a mut self, memory: &'a GuestMemory) -> Walk<'a> {
        self.regions.check(memory);
        Walk {
            memory,
            window: self.regions.buffer,
            regions: &mut self.regions,
            segments: &mut self.segments,
            count: 0,
            len: 0,
            readable: None,
        }
    }

    /// Where an indirect table is, and how many descriptors it has, if it is one that can be read
    /// without looking at each of their addresses.
    #[inline(always)]
    fn table(&mut self, memory: &GuestMemory, addr: u64, len: u32) -> Option<(Table, u32)> {
        let regions = &mut self.regions;
        regions.check(memory);
        let mut table = regions.table.all(addr, len);
        if table.is_none() {
            regions.table = regions.find(memory, addr, len)?;
            table = regions.table.all(addr, len);
        }
        Some((Table::at(table?)?, table_size(len).ok()?))
    }

    /// Follows the chain that begins with the first descriptor of a split ring's table.
    // Not inlined, so that all registers are its own.
    #[inline(never)]
    pub(crate) fn walk_table(
        &mut self,
        memory: &GuestMemory,
        addr: u64,
        len: u32,
    ) -> Option<Found> {
        let (table, size) = self.table(memory, addr, len)?;
        let descriptor = |index: u16| {
            let is_there = u32::from(index) < size;
            // SAFETY: the table has the descriptor, and is mapped while `memory` is borrowed.
            is_there.then(|| Desc::virtq(unsafe { table.read(index) }))
        };
        let first = descriptor(0)?;
        let (found, _) = self.begin(memory).follow(first, descriptor)?;
        Some(found)
    }

    /// Takes all descriptors of a packed ring's table.
    #[inline(never)]
    pub(crate) fn walk_packed_table(
        &mut self,
        memory: &GuestMemory,
        addr: u64,
        len: u32,
    ) -> Option<Found> {
        let (table, size) = self.table(memory, addr, len)?;
        let mut walk = self.begin(memory);
        for index in 0..size {
            // SAFETY: the table has the descriptor, and is mapped while `memory` is borrowed.
            let (desc, _) = Desc::pvirtq(unsafe { table.read(index as usize) });
            match (desc.has(WRITE), walk.readable) {
                (true, None) => walk.turn(),
                (false, Some(_)) => return None,
                _ => {}
            }
            walk.add(&desc)?;
        }
        walk.end()
    }
}

/// A chain that is followed. All of it is inlined, so that it is in registers.
pub(crate) struct Walk<'a> {
    memory: &'a GuestMemory,
    /// The region that the last buffer was found in.
    window: Window,
    regions: &'a mut Regions,
    segments: &'a mut [Segment; ROOM],
    /// How many segments there are, and their bytes: fewer than 2^40, as there is little room.
    count: usize,
    len: u64,
    /// What was there before the first writable buffer, once there was one.
    readable: Option<(usize, u64)>,
}

impl Walk<'_> {
    /// Adds a buffer.
    #[inline(always)]
    fn add(&mut self, desc: &Desc) -> Option<()> {
        let Desc { addr, len, .. } = *desc;
        let mut host = self.window.all(addr, len);
        if host.is_none() {
            self.window = self.regions.find(self.memory, addr, len)?;
            self.regions.buffer = self.window;
            host = self.window.all(addr, len);
        }
        let segment = self.segments.get_mut(self.count)?;
        *segment = Segment {
            guest_addr: addr,
            host: host?,
            len: len as usize,
        };
        self.count += 1;
        self.len += u64::from(len);
        Some(())
    }

    /// From here on, buffers are writable.
    #[inline(always)]
    fn turn(&mut self) {
        self.readable = Some((self.count, self.len));
    }

    /// Follows a chain to its end, from its first descriptor on, and what came with that. `next`
    /// gets what came with a descriptor that has the NEXT flag, and reads the one behind it.
    #[inline(always)]
    pub(crate) fn follow(
        mut self,
        (mut desc, mut with): (Desc, u16),
        mut next: impl FnMut(u16) -> Option<(Desc, u16)>,
    ) -> Option<(Found, u16)> {
        // Each turn takes room for a segment: this ends.
        while !desc.has(WRITE) {
            if desc.has(INDIRECT) {
                return None;
            }
            self.add(&desc)?;
            if !desc.has(NEXT) {
                return Some((self.end()?, with));
            }
            (desc, with) = next(with)?;
        }
        self.turn();
        while desc.has(WRITE) && !desc.has(INDIRECT) {
            self.add(&desc)?;
            if !desc.has(NEXT) {
                return Some((self.end()?, with));
            }
            (desc, with) = next(with)?;
        }
        None
    }

    /// The chain, if it has no more bytes than one may have.
    #[inline(always)]
    pub(crate) fn end(self) -> Option<Found> {
        if self.len > MAX_CHAIN_LEN {
            return None;
        }
        let (readable, readable_len) = self.readable.unwrap_or((self.count, self.len));
        Some(Found {
            count: self.count,
            readable,
            readable_len,
            len: self.len,
        })
    }
}
