//! The quick walk: from a ring to the checked segments of a chain, as drivers make them.
//!
//! It takes chains without empty buffers and flags that mean nothing, each buffer in one region
//! that is at hand, a table that is aligned and in one region, no more buffers than there is room
//! for. At anything else, and at anything that is wrong, it gives up, and the careful walk of
//! [`Chain`] follows the chain from its head, as if nobody had looked at it before: that one knows
//! all rules. So there is little to decide here, and what is known of a chain stays in registers.
//!
//! Most chains are one buffer, or a request and room for its answer. These are taken without a
//! loop, where the ring is looked at; longer ones by one that begins at the head again, and forgets
//! what was read before.
//!
//! [`Chain`]: crate::chain::Chain

use crate::area::Link;
use crate::chain::{self, Buffers, MAX_CHAIN_LEN, Segment};
use crate::memory::{GuestMemory, Window};

/// How many segments a chain may have here. They fit in the first cache.
const ROOM: usize = 64;

/// The flags that say what a descriptor is, as wide as [`Link`] has them.
pub(crate) const NEXT: u32 = chain::NEXT as u32;
pub(crate) const WRITE: u32 = chain::WRITE as u32;
pub(crate) const INDIRECT: u32 = chain::INDIRECT as u32;

/// A place in a chain, and how the descriptors of such a chain follow each other. A copy goes on
/// from where it was made.
pub(crate) trait Links: Copy {
    /// The descriptor here, if there is one. It has just the flags that say what it is, or others
    /// that no driver sets.
    fn here(&self) -> Option<Link>;

    /// Goes on behind the descriptor here, which is `link`, and has the flag NEXT.
    fn follow(&mut self, link: &Link) -> Option<Link>;
}

/// What the quick walk finds: room that is used again for each chain.
#[derive(Debug)]
pub(crate) struct Quick {
    segments: Box<[Segment; ROOM]>,
    /// The chain that was walked last.
    walked: Walked,
}

/// A chain that was walked to its end: its segments are the first `count`, and `readable` of them
/// are readable.
#[derive(Clone, Copy, Debug, Default)]
struct Walked {
    count: usize,
    readable: usize,
    readable_len: u64,
    len: u64,
}

impl Quick {
    pub(crate) fn new() -> Self {
        Self {
            segments: Box::new([Segment::NONE; ROOM]),
            walked: Walked::default(),
        }
    }

    /// Takes the chain that begins with the descriptor at `links`, which is `first`. What came with
    /// its last descriptor is returned too.
    #[inline(always)]
    pub(crate) fn take<'a>(
        &'a mut self,
        memory: &'a GuestMemory,
        links: impl Links,
        first: &Link,
    ) -> Option<(Buffers<'a>, usize)> {
        if first.flags == NEXT {
            let second = { links }.follow(first)?;
            if second.flags == WRITE {
                return Some((self.pair(memory, first, &second)?, second.with));
            }
        } else if first.flags & !WRITE == 0 {
            return Some((self.only(memory, first)?, first.with));
        }
        let with = self.walk(memory, &{ links })?;
        Some((self.buffers()?, with))
    }

    /// One buffer.
    #[inline(always)]
    fn only<'a>(&'a mut self, memory: &'a GuestMemory, link: &Link) -> Option<Buffers<'a>> {
        let [segment, ..] = &mut *self.segments;
        *segment = Segment::of(memory, link)?;
        let len = segment.len;
        let is_readable = link.flags & WRITE == 0;
        let readable_len = if is_readable { len } else { 0 };
        Some(Buffers {
            segments: std::slice::from_ref(segment),
            readable: is_readable.into(),
            readable_len,
            writable_len: len - readable_len,
        })
    }

    /// A request, and room for its answer.
    #[inline(always)]
    fn pair<'a>(
        &'a mut self,
        memory: &'a GuestMemory,
        request: &Link,
        answer: &Link,
    ) -> Option<Buffers<'a>> {
        let [first, second, ..] = &mut *self.segments;
        *first = Segment::of(memory, request)?;
        *second = Segment::of(memory, answer)?;
        let (readable_len, writable_len) = (first.len, second.len);
        if request.len + answer.len > MAX_CHAIN_LEN {
            return None;
        }
        Some(Buffers {
            segments: self.segments.get(..2)?,
            readable: 1,
            readable_len,
            writable_len,
        })
    }

    /// Walks along a chain to its end. What came with its last descriptor is returned.
    // Not inlined, so that all registers are its own.
    #[inline(never)]
    fn walk(&mut self, memory: &GuestMemory, links: &impl Links) -> Option<usize> {
        let mut links = *links;
        let mut link = links.here()?;
        let mut found = Finder {
            memory,
            window: *memory.at_hand(link.addr)?,
            segments: &mut self.segments,
            count: 0,
            len: 0,
        };
        // Each turn takes room for a segment: this ends.
        while link.flags == NEXT {
            found.add(&link)?;
            link = links.follow(&link)?;
        }
        let (mut readable, mut readable_len) = (found.count, found.len);
        let side = link.flags & WRITE;
        while link.flags == WRITE | NEXT {
            found.add(&link)?;
            link = links.follow(&link)?;
        }
        if link.flags != side {
            return None;
        }
        found.add(&link)?;
        let Finder { count, len, .. } = found;
        if len > MAX_CHAIN_LEN {
            return None;
        }
        if side == 0 {
            (readable, readable_len) = (count, len);
        }
        self.walked = Walked {
            count,
            readable,
            readable_len,
            len,
        };
        Some(link.with)
    }

    /// The buffers of the chain that was walked last.
    #[inline(always)]
    fn buffers(&self) -> Option<Buffers<'_>> {
        let Walked {
            count,
            readable,
            readable_len,
            len,
        } = self.walked;
        // Lengths fit, as they add up to less than 2^32.
        Some(Buffers {
            segments: self.segments.get(..count)?,
            readable,
            readable_len: readable_len as usize,
            writable_len: (len - readable_len) as usize,
        })
    }
}

/// The segments of a chain that is walked. All of it is inlined, so that it is in registers.
struct Finder<'a> {
    memory: &'a GuestMemory,
    /// The region that the last buffer was found in.
    window: Window,
    segments: &'a mut [Segment; ROOM],
    /// How many segments there are, and their bytes: fewer than 2^40, as there is little room.
    count: usize,
    len: u64,
}

impl Finder<'_> {
    #[inline(always)]
    fn add(&mut self, link: &Link) -> Option<()> {
        let Link { addr, len, .. } = *link;
        let mut host = self.window.all(addr, len);
        if host.is_none() {
            self.window = *self.memory.at_hand(addr)?;
            host = self.window.all(addr, len);
        }
        *self.segments.get_mut(self.count)? = Segment {
            guest_addr: addr,
            host: host?,
            // Fits: it was a u32.
            len: len as usize,
        };
        self.count += 1;
        self.len += link.len;
        Some(())
    }
}

impl Segment {
    /// The buffer of a descriptor, if it has one, all of it in one region that is at hand.
    #[inline(always)]
    fn of(memory: &GuestMemory, link: &Link) -> Option<Self> {
        let Link { addr, len, .. } = *link;
        Some(Self {
            guest_addr: addr,
            host: memory.at_hand(addr)?.all(addr, len)?,
            // Fits: it was a u32.
            len: len as usize,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::{Quick, ROOM};
    use crate::chain::{Buffers, Chain, ChainError, INDIRECT, NEXT, WRITE};
    use crate::memory::{GuestMemory, Mapping, Region};
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
            // Two without a gap, and two that no choice of bits tells from all others.
            Self::with(&[
                (0x1000, 0, 0x3000),
                (0x4000, 0, 0x1000),
                (third, 4, 0x1000),
                (0x4000_0000, 0, 0x1000),
            ])
        }

        fn with(layout: &[(u64, u64, u64)]) -> Self {
            let mut regions = Vec::new();
            let mut mapped = Vec::new();
            for &(addr, offset, len) in layout {
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
                if self.memory.contiguous(addr, 1).is_none() {
                    continue;
                }
                let (begin, offset, file) = self
                    .regions
                    .iter()
                    .rfind(|(begin, ..)| *begin <= addr)
                    .expect("the region that it is in");
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
            1 => prop::collection::vec((0x1800_u64..0x1f00, 1_u32..9, any::<bool>()), 56..76),
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
            let whole = |addr, len| {
                memory
                    .at_hand(addr)
                    .is_some_and(|window| window.all(addr, len).is_some())
            };
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
            segments,
            readable,
            readable_len,
            writable_len,
        } = buffers;
        let (readable, writable) = segments.split_at(readable);
        let sides = [(readable, readable_len), (writable, writable_len)];
        sides.map(|(segments, len)| {
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
        let (ticket, buffers) = ring.take(quick, memory)?;
        let Ticket {
            id,
            entries,
            position,
        } = ticket;
        Some((id, entries, position, Ok(segments(buffers))))
    }

    /// The quick walk takes what the careful one takes, or leaves no trace.
    fn both_agree(packed: bool, chains: &[Made]) {
        // Once for each test, as it takes long under valgrind.
        thread_local! {
            static RIGS: [Rig; 2] = [0x200_0000, 0x200_0800].map(Rig::new);
        }
        let mut quick = Quick::new();
        RIGS.with(|rigs| {
            for made in chains {
                let rig = &rigs[usize::from(made.moved)];
                let (is_quick, _) = agreed(packed, made, rig, &mut quick);
                if made.is_plain(packed, &rig.memory) {
                    assert!(is_quick, "{made:?}");
                }
            }
        });
    }

    /// Whether the quick walk took the chain, and what both make of it.
    fn agreed(packed: bool, made: &Made, rig: &Rig, quick: &mut Quick) -> (bool, Option<Taken>) {
        let memory = &rig.memory;
        made.write(packed, rig);
        let config = made.config(packed);
        let mut rings = [(); 2].map(|()| Ring::new(memory, &config).expect("a ring"));
        let [ring, other] = &mut rings;
        assert_eq!(ring.look(), other.look());
        let found = quickly(quick, ring, memory);
        let is_quick = found.is_some();
        let found = found.or_else(|| carefully(ring, memory));
        assert_eq!(found, carefully(other, memory), "{made:?}");
        assert_eq!(ring.taken(), other.taken(), "{made:?}");
        (is_quick, found)
    }

    /// A used length has 32 bits (VIRTIO 1.4 §2.7.4.2).
    #[test]
    fn a_chain_of_4_gib_is_refused_and_one_byte_less_is_not() {
        let rig = Rig::with(&[(0x1000, 0, 8 << 30)]);
        let mut quick = Quick::new();
        let half = 1 << 31;
        for (count, sum) in [(2, 0), (3, 0), (2, 1), (3, 1)] {
            // A pair, or a chain that is walked.
            let mut buffers = vec![(0x1_0000_0000, 1, false); count - 2];
            let rest = half - (count as u32 - 2) - sum;
            buffers.extend([(0x1_0000_0000, rest, false), (0x1_0000_0000, half, true)]);
            for table in [None, Some((TABLES[0], 0))] {
                for packed in [false, true] {
                    let made = Made {
                        moved: false,
                        buffers: buffers.clone(),
                        sorted: true,
                        table,
                        indirect: true,
                        goes_on: false,
                        size: 16,
                        slot: 0,
                        wrap: true,
                        broken: Vec::new(),
                    };
                    let (is_quick, found) = agreed(packed, &made, &rig, &mut quick);
                    let (.., result) = found.expect("a chain");
                    let expected = if sum == 0 {
                        Err(ChainError::TooLarge)
                    } else {
                        Ok(())
                    };
                    assert_eq!(result.map(drop), expected, "{made:?}");
                    assert_eq!(is_quick, expected.is_ok(), "{made:?}");
                }
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
