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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::chain::{Chain, ChainError};
    use crate::memory::{Mapping, Region};
    use crate::ring::{Addresses, Config, Ring, Ticket};

    // The ring's areas, at the beginning of the first region.
    const ADDRESSES: Addresses = Addresses {
        descriptor: 0x1000,
        available: 0x1200,
        used: 0x1400,
    };
    const AVAIL: u16 = 1 << 7;
    const USED: u16 = 1 << 15;
    /// A table anywhere; at an odd place of guest memory; at an odd place of this process;
    /// over the seam of two regions; over the end of one; nowhere.
    const TABLES: [u64; 6] = [0x2000, 0x2004, 0x200_0000, 0x3fe0, 0x4fe0, 0x9000];

    /// Regions with their files: guest address, place in the file, length. The third moves.
    struct Rig {
        regions: Vec<(u64, u64, File)>,
        memory: GuestMemory,
    }

    impl Rig {
        fn new(third: u64) -> Self {
            let mut regions = Vec::new();
            let mut mapped = Vec::new();
            // Two without a gap, and two that share a slot of `recent` with them.
            for (addr, offset, len) in [
                (0x1000, 0, 0x3000),
                (0x4000, 0, 0x1000),
                (third, 4, 0x1000),
                (0x4000_0000, 0, 0x1000),
            ] {
                let flags = rustix::fs::MemfdFlags::CLOEXEC;
                let file = File::from(rustix::fs::memfd_create("quick", flags).expect("a memfd"));
                file.set_len(offset + len).expect("a length");
                let mapping = Mapping::new(&file, 0, (offset + len) as usize).expect("a mapping");
                let region = Region::new(addr, Arc::new(mapping), offset as usize, len);
                mapped.push(region.expect("a region"));
                regions.push((addr, offset, file));
            }
            let memory = GuestMemory::new(mapped).expect("regions that do not overlap");
            Self { regions, memory }
        }

        /// Writes as much as there is memory for.
        fn write(&self, addr: u64, bytes: &[u8]) {
            for (addr, byte) in (addr..).zip(bytes) {
                let Some(window) = self.memory.window_at(addr) else {
                    continue;
                };
                let (begin, offset, file) = self
                    .regions
                    .iter()
                    .rfind(|(begin, ..)| *begin <= addr)
                    .expect("the window's region");
                assert!(window.all(addr, 1).is_some());
                let place = addr - begin + offset;
                file.write_all_at(&[*byte], place).expect("a byte");
            }
        }
    }

    /// What a driver makes available, and what it breaks of it.
    #[derive(Clone, Debug)]
    struct Made {
        moved: bool,
        /// Address, length, and whether it is writable.
        buffers: Vec<(u64, u32, bool)>,
        sorted: bool,
        /// Where a table is, and how many buffers are outside of it.
        table: Option<(u64, usize)>,
        indirect: bool,
        /// The last descriptor outside of a table says that it is not the last.
        goes_on: bool,
        /// A packed ring's size and first slot.
        size: u16,
        slot: u16,
        wrap: bool,
        /// Which byte of the ring's descriptors or of the table changes, and which bits of it.
        broken: Vec<(bool, usize, u8)>,
    }

    fn buffer() -> impl Strategy<Value = (u64, u32, bool)> {
        let addr = prop_oneof![
            8 => 0x1800_u64..0x2000,
            3 => 0x4000_u64..0x5000,
            3 => 0x200_0000_u64..0x200_1800,
            2 => 0x4000_0000_u64..0x4000_1000,
            1 => 0x3ff0_u64..0x4010,
            1 => any::<u64>(),
        ];
        let len = prop_oneof![24 => 1_u32..32, 1 => Just(0), 1 => 0_u32..0x2000, 1 => any::<u32>()];
        (addr, len, any::<bool>())
    }

    fn made() -> impl Strategy<Value = Made> {
        let buffers = prop_oneof![
            9 => prop::collection::vec(buffer(), 1..10),
            1 => prop::collection::vec((0x1800_u64..0x1f00, 1_u32..9, any::<bool>()), 120..140),
        ];
        let outside = prop_oneof![4 => Just(0), 1 => 1_usize..4];
        let at = prop_oneof![4 => Just(TABLES[0]), 1 => prop::sample::select(&TABLES[..])];
        let byte = (any::<bool>(), any::<usize>(), any::<u8>());
        let broken = prop_oneof![
            2 => Just(Vec::new()),
            1 => prop::collection::vec(byte, 1..4)
        ];
        let ring = (5_u16..=16, 0_u16..5, any::<bool>());
        let most = || prop::bool::weighted(0.9);
        let chain = (any::<bool>(), buffers, most());
        let goes_on = prop::bool::weighted(0.1);
        let flags = (most(), goes_on);
        (chain, prop::option::of((at, outside)), flags, ring, broken).prop_map(
            |((moved, buffers, sorted), table, (indirect, goes_on), (size, slot, wrap), broken)| {
                Made {
                    moved,
                    buffers,
                    sorted,
                    table,
                    indirect,
                    goes_on,
                    size,
                    slot,
                    wrap,
                    broken,
                }
            },
        )
    }

    impl Made {
        fn size(&self, packed: bool) -> u16 {
            if packed { self.size } else { 16 }
        }

        /// The buffers, no more outside of a table than the ring has descriptors.
        fn chain(&self, packed: bool) -> Vec<(u64, u32, bool)> {
            let mut buffers = self.buffers.clone();
            if self.sorted {
                buffers.sort_by_key(|(.., writable)| *writable);
            }
            if self.table.is_none() {
                buffers.truncate(self.size(packed).into());
            }
            buffers
        }

        /// Whether a driver that is right makes such chains, but for what is rare.
        fn is_plain(&self, packed: bool, memory: &GuestMemory) -> bool {
            let buffers = self.chain(packed);
            let whole = |addr, len: u64| len > 0 && memory.contiguous(addr, len).is_some();
            let table = self.table.is_none_or(|(addr, outside)| {
                let len = 16 * buffers.len() as u64;
                addr == TABLES[0] && outside == 0 && self.indirect && whole(addr, len)
            });
            table
                && !self.goes_on
                && self.broken.is_empty()
                && buffers.len() <= ROOM
                && buffers.is_sorted_by_key(|(.., writable)| *writable)
                && buffers
                    .iter()
                    .all(|&(addr, len, _)| whole(addr, len.into()))
        }

        fn config(&self, packed: bool) -> Config {
            let place = self.slot | u16::from(self.wrap) << 15;
            Config {
                size: self.size(packed),
                addresses: ADDRESSES,
                base: if packed {
                    u32::from(place) * 0x1_0001
                } else {
                    0
                },
                packed,
                event_idx: false,
                indirect: self.indirect,
                in_order: false,
            }
        }

        /// Writes it all into memory.
        fn write(&self, packed: bool, rig: &Rig) {
            let buffers = self.chain(packed);
            let outside = match self.table {
                None => buffers.len(),
                Some((_, outside)) => outside.min(buffers.len() - 1),
            };
            let (direct, inside) = buffers.split_at(outside);
            let plain = |(index, &(addr, len, writable)): (usize, &(u64, u32, bool)), last| {
                let write = if writable { WRITE } else { 0 };
                let next = if index < last { NEXT } else { 0 };
                (addr, len, write | next)
            };
            let last = direct.len() + usize::from(self.table.is_some()) - 1;
            let mut outer: Vec<_> = direct.iter().enumerate().map(|b| plain(b, last)).collect();
            if let Some((addr, _)) = self.table {
                outer.push((addr, 16 * inside.len() as u32, INDIRECT));
            }
            if self.goes_on
                && let Some((.., flags)) = outer.last_mut()
            {
                *flags |= NEXT;
            }
            let last = inside.len().saturating_sub(1);
            let inner = inside.iter().enumerate().map(|b| plain(b, last));
            let size = usize::from(self.size(packed));
            let (mut ring, mut table) = (vec![0; 16 * size], vec![0; 16 * inside.len()]);
            let count = inside.len();
            let put = |place: &mut Vec<u8>, slot: usize, (addr, len, flags), other: u16| {
                let [first, second]: [u16; 2] = if packed {
                    [other, flags]
                } else {
                    [flags, other]
                };
                let addr: u64 = addr;
                let len: u32 = len;
                let bytes: Vec<u8> = [&addr.to_le_bytes()[..], &len.to_le_bytes()]
                    .concat()
                    .into_iter()
                    .chain(first.to_le_bytes())
                    .chain(second.to_le_bytes())
                    .collect();
                place[16 * slot..16 * slot + 16].copy_from_slice(&bytes);
            };
            for (index, (addr, len, flags)) in outer.into_iter().enumerate() {
                if packed {
                    let slot = usize::from(self.slot) + index;
                    let round = self.wrap ^ (slot >= size);
                    let available = if round { AVAIL } else { USED };
                    put(&mut ring, slot % size, (addr, len, flags | available), 77);
                } else {
                    // Not in the table's order.
                    let slot = |index: usize| (index * 7 + 3) % 16;
                    let next = slot(index + 1) as u16;
                    put(&mut ring, slot(index), (addr, len, flags), next);
                }
            }
            for (index, desc) in inner.enumerate() {
                // The first is the first; the others are from the end, as those are linked.
                let slot = |index: usize| match index {
                    0 => 0,
                    _ if packed => index,
                    _ => (count - index.min(count)).max(1),
                };
                put(&mut table, slot(index), desc, slot(index + 1) as u16);
            }
            for &(in_table, at, bits) in &self.broken {
                let place = if in_table { &mut table } else { &mut ring };
                if let Some(at) = at.checked_rem(place.len()) {
                    place[at] ^= bits;
                }
            }
            rig.write(ADDRESSES.descriptor, &ring);
            if let Some((addr, _)) = self.table {
                rig.write(addr, &table);
            }
            if packed {
                return;
            }
            // No flags, index 1, and the first head.
            rig.write(ADDRESSES.available, &[0, 0, 1, 0, 3, 0]);
        }
    }

    /// A chain as its ring took it: its ticket, and its segments or what is wrong with them.
    type Taken = (u16, u16, u64, Result<Segments, ChainError>);
    type Segments = [(Vec<(u64, usize, usize)>, usize); 2];

    fn segments(buffers: Buffers<'_>) -> Segments {
        let Buffers {
            readable,
            readable_len,
            writable,
            writable_len,
        } = buffers;
        [(readable, readable_len), (writable, writable_len)].map(|(segments, len)| {
            let each = segments.iter();
            let each = each.map(|one| (one.guest_addr, one.host.as_ptr() as usize, one.len));
            (each.collect(), len)
        })
    }

    /// The chain, by the careful walk alone.
    fn carefully(ring: &mut Ring, memory: &GuestMemory) -> Option<Taken> {
        let mut chain = Chain::new();
        let before = ring.taken();
        let walked = ring.take_carefully(&mut chain, memory)?;
        let entries = (ring.taken() - before) as u16;
        Some(match walked {
            Ok(Ticket { id, position, .. }) => {
                (id, entries, position, Ok(segments(chain.buffers())))
            }
            Err(error) => (0, entries, before, Err(error)),
        })
    }

    fn quickly(quick: &mut Quick, ring: &mut Ring, memory: &GuestMemory) -> Option<Taken> {
        let (ticket, found) = ring.take(quick, memory)?;
        let Ticket {
            id,
            entries,
            position,
        } = ticket;
        let buffers = quick.buffers(found).expect("what was found");
        Some((id, entries, position, Ok(segments(buffers))))
    }

    /// The quick walk takes what the careful one takes, or leaves no trace.
    fn both_agree(packed: bool, chains: &[Made]) {
        let rigs = [Rig::new(0x200_0000), Rig::new(0x200_0800)];
        let mut quick = Quick::new();
        for made in chains {
            let rig = &rigs[usize::from(made.moved)];
            let memory = &rig.memory;
            made.write(packed, rig);
            let config = made.config(packed);
            let mut rings = [(); 2].map(|()| Ring::new(memory, &config).expect("a ring"));
            let [ring, other] = &mut rings;
            assert_eq!(ring.look(), other.look());
            let found = quickly(&mut quick, ring, memory);
            let is_quick = found.is_some();
            let found = found.or_else(|| carefully(ring, memory));
            assert_eq!(found, carefully(other, memory), "{made:?}");
            assert_eq!(ring.taken(), other.taken(), "{made:?}");
            if made.is_plain(packed, memory) {
                assert!(is_quick, "{made:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn both_walks_agree_on_every_chain_of_a_split_ring(
            chains in prop::collection::vec(made(), 1..16)
        ) {
            both_agree(false, &chains);
        }

        #[test]
        fn both_walks_agree_on_every_chain_of_a_packed_ring(
            chains in prop::collection::vec(made(), 1..16)
        ) {
            both_agree(true, &chains);
        }
    }
}
