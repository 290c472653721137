//! The packed ring (VIRTIO 1.4 §2.8): one ring of descriptors that both sides write, two small
//! areas for event suppression, and the order in which they are read and written.
//!
//! | step | ordering | why it is enough |
//! |---|---|---|
//! | see new chains | relaxed loads of the `flags` in one cache line, one acquire fence when any is available | a chain's first flags are written last: the fence orders what they stand for after them |
//! | publish | the batch's first used descriptor is stored last, with release, as one word | orders the batch's other descriptors and the data before it |
//! | must I call? | one full fence between that store and reading the driver's area | the driver writes its area, then looks at the ring: one of the two sees the other |
//! | may I sleep? | write the device's area as one word, one full fence, read the next `flags` once more | the same, the other way round |
//!
//! A descriptor's `len`, `id` and `flags` are one aligned word of eight bytes: whoever sees the
//! flags sees the rest.

use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_F_WRAP_CTR,
    VRING_PACKED_EVENT_FLAG_DESC, VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE,
};

use crate::area::{Area, Link, Table};
use crate::chain::{Buffers, Chain, ChainError, DESCRIPTOR_SIZE, WRITE, Words};
use crate::log::QueueLog;
use crate::memory::GuestMemory;
use crate::quick::{INDIRECT, Links, NEXT, Quick};
use crate::ring::{Addresses, Config, RingError, Ticket, checked_size};

/// `len`, `id` and `flags` in a descriptor, as one word; and `flags` alone.
const TAIL: usize = 8;
const FLAGS: usize = 14;
/// `struct pvirtq_event_suppress`: `desc` (offset and wrap counter) and `flags`.
const EVENT_SUPPRESS: usize = 4;
/// Descriptors in a cache line, the ring being aligned to 16: those that are looked at together.
const LINE: u16 = 4;

const AVAIL: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;
const WRAP_COUNTER: u16 = 1 << VRING_PACKED_EVENT_F_WRAP_CTR;

/// Resolves and checks the descriptor ring and the two areas for event suppression.
fn areas(memory: &GuestMemory, config: &Config) -> Result<(Area, Area, Area), RingError> {
    let Addresses {
        descriptor,
        available,
        used,
    } = config.addresses;
    let size = checked_size(config.size.into(), config.packed)?;
    let len = usize::from(size) * DESCRIPTOR_SIZE;
    let desc = Area::resolve(memory, "descriptor ring", descriptor, len, 16)?;
    let driver = Area::resolve(memory, "driver area", available, EVENT_SUPPRESS, 4)?;
    let device = Area::resolve(memory, "device area", used, EVENT_SUPPRESS, 4)?;
    Ok((desc, driver, device))
}

/// Whether a ring could be made from `config`. Touches nothing.
pub(crate) fn check(memory: &GuestMemory, config: &Config) -> Result<(), RingError> {
    areas(memory, config)?;
    places(config).map(drop)
}

/// Whether the ring, which is in its first round or at the beginning of the second, is new: no
/// descriptor in it has USED set. A new ring is zeroed, and what a driver makes available in it has
/// AVAIL alone (VIRTIO 1.4 §2.8.1). What a device uses in the first round has USED, and so has all
/// that the driver makes available in the second. Reads as many flags as the ring is long.
pub(crate) fn is_new(memory: &GuestMemory, config: &Config) -> Result<bool, RingError> {
    let (desc, _, _) = areas(memory, config)?;
    let flags = |slot: u16| desc.u16(usize::from(slot) * DESCRIPTOR_SIZE + FLAGS);
    let is_used = |slot| u16::from_le(flags(slot).load(Ordering::Relaxed)) & USED != 0;
    Ok(!(0..config.size).any(is_used))
}

/// The next available and the next used place, from the base.
fn places(config: &Config) -> Result<(Place, Place), RingError> {
    let Config { size, base, .. } = *config;
    // The low and the high half.
    let [avail, used] = [base as u16, (base >> 16) as u16].map(Place::unpack);
    if avail.slot >= size || used.slot >= size {
        return Err(RingError::Base { base, size });
    }
    Ok((avail, used))
}

/// A descriptor's place: where it is in the ring, and the wrap counter of this round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) slot: u16,
    pub(crate) wrap: bool,
}

impl Place {
    /// From an offset in bits 0 to 14 and a wrap counter in bit 15.
    fn unpack(value: u16) -> Self {
        Self {
            slot: value & !WRAP_COUNTER,
            wrap: value & WRAP_COUNTER != 0,
        }
    }

    pub(crate) fn pack(self) -> u16 {
        self.slot | if self.wrap { WRAP_COUNTER } else { 0 }
    }

    /// The place `count` descriptors further on, at most a whole round.
    #[inline]
    pub(crate) fn after(self, count: u16, size: u16) -> Self {
        // Fits: both are at most 32768, and the slot is below that.
        let slot = self.slot + count;
        if slot >= size {
            self.around(slot - size)
        } else {
            Self { slot, ..self }
        }
    }

    /// The place in the next round that has this slot.
    // Rare: a branch that is foreseen is cheaper than what is always done.
    #[cold]
    fn around(self, slot: u16) -> Self {
        Self {
            slot,
            wrap: !self.wrap,
        }
    }

    /// The next place.
    #[inline(always)]
    pub(crate) fn next(self, size: u16) -> Self {
        self.after(1, size)
    }

    /// The place `count` descriptors back.
    fn before(self, count: u64, size: u16) -> Self {
        let size = u64::from(size);
        let rounds = 2 * size;
        let here = u64::from(self.slot) + if self.wrap { 0 } else { size };
        let there = (here + rounds - count % rounds) % rounds;
        // Below `size`, so a u16.
        Self {
            slot: (there % size) as u16,
            wrap: there < size,
        }
    }

    /// AVAIL and USED of a descriptor that is available in this round (VIRTIO 1.4 §2.8.1).
    #[inline(always)]
    fn available_flags(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// Whether a descriptor with these flags is available in this round (VIRTIO 1.4 §2.8.1).
    #[inline]
    pub(crate) fn is_available(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == self.available_flags()
    }
}

/// A descriptor of a chain in the ring.
#[derive(Clone, Copy)]
struct InRing<'a> {
    table: Table<'a>,
    slot: usize,
    /// What tells that a descriptor is available: AVAIL or USED, of this round.
    available: u32,
    /// How many more descriptors the chain can have: none of them twice.
    left: usize,
}

impl<'a> InRing<'a> {
    /// The first of a chain.
    #[inline(always)]
    fn at(table: Table<'a>, place: Place) -> Self {
        Self {
            table,
            slot: place.slot.into(),
            available: place.available_flags().into(),
            // A ring has one at least.
            left: table.size() - 1,
        }
    }
}

impl Links for InRing<'_> {
    #[inline(always)]
    fn here(&self) -> Option<Link> {
        let link = self.table.pvirtq(self.slot)?;
        // What is available has neither of the two from here on, and what is not has one or both.
        let flags = link.flags ^ self.available;
        Some(Link { flags, ..link })
    }

    #[inline(always)]
    fn follow(&mut self, _: &Link) -> Option<Link> {
        self.left = self.left.checked_sub(1)?;
        self.slot += 1;
        if self.slot >= self.table.size() {
            self.slot = 0;
            self.available ^= u32::from(AVAIL | USED);
        }
        self.here()
    }
}

/// A descriptor of an indirect table: all of them are in use, and of their flags only WRITE means
/// anything (VIRTIO 1.4 §2.8.7).
#[derive(Clone, Copy)]
struct InTable<'a> {
    table: Table<'a>,
    index: usize,
}

impl Links for InTable<'_> {
    #[inline(always)]
    fn here(&self) -> Option<Link> {
        let link = self.table.pvirtq(self.index)?;
        let next = if self.index + 1 < self.table.size() {
            NEXT
        } else {
            0
        };
        let flags = link.flags & u32::from(WRITE) | next;
        Some(Link { flags, ..link })
    }

    #[inline(always)]
    fn follow(&mut self, _: &Link) -> Option<Link> {
        self.index += 1;
        self.here()
    }
}

/// The device's side of one packed ring.
#[derive(Debug)]
pub(crate) struct PackedRing {
    size: u16,
    event_idx: bool,
    indirect: bool,
    desc: Area,
    driver: Area,
    device: Area,
    /// The next descriptor to take.
    next_avail: Place,
    /// How many descriptors were taken.
    taken: u64,
    /// How many descriptors from the next one on were seen to be available.
    seen: u16,
    /// Where the next used descriptor goes.
    next_used: Place,
    /// The first used descriptor of the batch, not yet shown: its slot and last word.
    first: Option<(u16, u64)>,
    /// How many descriptors the batch passed over.
    batch: u32,
    /// Whether anything was published since the ring was bound. With `EVENT_IDX` the first time
    /// always calls: nobody knows what the driver's event was meant for.
    called: bool,
}

impl PackedRing {
    /// Binds a ring to `memory`, to go on from the base.
    pub(crate) fn new(memory: &GuestMemory, config: &Config) -> Result<Self, RingError> {
        let (desc, driver, device) = areas(memory, config)?;
        let (next_avail, next_used) = places(config)?;
        Ok(Self {
            size: config.size,
            event_idx: config.event_idx,
            indirect: config.indirect,
            desc,
            driver,
            device,
            next_avail,
            taken: 0,
            seen: 0,
            next_used,
            first: None,
            batch: 0,
            called: false,
        })
    }

    /// This ring, to go on where it is in the memory that `fresh` is bound to.
    pub(crate) fn moved_to(&self, fresh: Self) -> Self {
        Self {
            next_avail: self.next_avail,
            taken: self.taken,
            next_used: self.next_used,
            first: self.first,
            batch: self.batch,
            ..fresh
        }
    }

    #[inline]
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Whether the driver may use indirect tables.
    pub(crate) fn indirect(&self) -> bool {
        self.indirect
    }

    /// How many descriptors were taken since the ring was made.
    #[inline]
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// The place of the next descriptor to take.
    #[inline]
    pub(crate) fn next_avail(&self) -> Place {
        self.next_avail
    }

    /// Where the next used descriptor goes.
    pub(crate) fn next_used(&self) -> Place {
        self.next_used
    }

    #[inline]
    fn flags(&self, slot: u16) -> &AtomicU16 {
        self.desc.u16(usize::from(slot) * DESCRIPTOR_SIZE + FLAGS)
    }

    /// Whether the descriptor at `place`, whose slot is in the ring, is available.
    #[inline]
    pub(crate) fn is_available(&self, place: Place) -> bool {
        let flags = u16::from_le(self.flags(place.slot).load(Ordering::Relaxed));
        place.is_available(flags)
    }

    /// Makes the descriptor at `place`, which is in flight, look as it did when it was taken, if a
    /// device has begun to use it.
    pub(crate) fn restore(&self, place: Place) {
        if !self.is_available(place) {
            let flags = self.flags(place.slot);
            let rest = u16::from_le(flags.load(Ordering::Relaxed)) & !(AVAIL | USED);
            flags.store((rest | place.available_flags()).to_le(), Ordering::Release);
        }
    }

    /// Passes over the next `entries` descriptors: their chain is known already.
    pub(crate) fn pass(&mut self, entries: u16) {
        self.taken += u64::from(entries);
        self.next_avail = self.next_avail.after(entries, self.size);
        // Nothing behind them was looked for.
        self.seen = 0;
    }

    /// Looks for available descriptors, as far as the cache line of the next one goes. Whether
    /// there are any.
    #[inline]
    pub(crate) fn look(&mut self) -> bool {
        if self.seen > 0 {
            return true;
        }
        let Place { slot, wrap } = self.next_avail;
        let end = (slot | (LINE - 1)).saturating_add(1).min(self.size);
        let seen = (slot..end)
            .take_while(|&slot| self.is_available(Place { slot, wrap }))
            .count();
        // At most `LINE`.
        self.seen = seen as u16;
        if seen == 0 {
            return false;
        }
        fence(Ordering::Acquire);
        true
    }

    /// The next chain, if the quick walk can follow it. It stays in the ring until
    /// [`PackedRing::advance`].
    #[inline(always)]
    pub(crate) fn peek<'a>(
        &mut self,
        quick: &'a mut Quick,
        memory: &'a GuestMemory,
    ) -> Option<(Ticket, Buffers<'a>)> {
        self.next::<false>(quick, memory)
    }

    /// The same, and takes it.
    #[inline(always)]
    pub(crate) fn take<'a>(
        &mut self,
        quick: &'a mut Quick,
        memory: &'a GuestMemory,
    ) -> Option<(Ticket, Buffers<'a>)> {
        self.next::<true>(quick, memory)
    }

    /// Either of them. How many descriptors there are to take is known best where they are found.
    #[inline(always)]
    fn next<'a, const TAKE: bool>(
        &mut self,
        quick: &'a mut Quick,
        memory: &'a GuestMemory,
    ) -> Option<(Ticket, Buffers<'a>)> {
        if !self.look() {
            return None;
        }
        let links = InRing::at(self.desc.table(), self.next_avail);
        let first = links.here()?;
        // Each descriptor has a segment. An id is a u16.
        if first.flags & INDIRECT == 0 {
            let (buffers, id) = quick.take(memory, links, &first)?;
            let entries = buffers.segments.len() as u16;
            Some((self.next_ticket::<TAKE>(id as u16, entries), buffers))
        } else {
            // A table is alone.
            if !self.indirect || first.flags != INDIRECT {
                return None;
            }
            let table = Table::at_hand(memory, first.addr, first.len)?;
            let links = InTable { table, index: 0 };
            let (buffers, _) = quick.take(memory, links, &links.here()?)?;
            Some((self.next_ticket::<TAKE>(first.with as u16, 1), buffers))
        }
    }

    #[inline(always)]
    fn next_ticket<const TAKE: bool>(&mut self, id: u16, entries: u16) -> Ticket {
        let ticket = self.ticket(id, entries);
        if TAKE {
            self.advance(&ticket);
        }
        ticket
    }

    /// What the next descriptors are: a chain with this id.
    #[inline]
    fn ticket(&self, id: u16, entries: u16) -> Ticket {
        Ticket {
            id,
            entries,
            position: self.taken,
        }
    }

    /// Takes the chain that was peeked at last.
    #[inline]
    pub(crate) fn advance(&mut self, ticket: &Ticket) {
        self.seen = self.seen.saturating_sub(ticket.entries);
        self.next_avail = self.next_avail.after(ticket.entries, self.size);
        self.taken = ticket.end();
    }

    /// The next chain, collected in `chain`, or what is wrong with it. It stays in the ring until
    /// [`PackedRing::advance`].
    pub(crate) fn peek_carefully(
        &mut self,
        chain: &mut Chain,
        memory: &GuestMemory,
    ) -> Option<(Ticket, Result<(), ChainError>)> {
        if !self.look() {
            return None;
        }
        let walked = chain.walk_packed(self, memory);
        if walked.descriptors == 0 {
            // It was available when it was looked at.
            self.seen = 0;
            return None;
        }
        let ticket = self.ticket(walked.id, walked.descriptors);
        Some((ticket, walked.result))
    }

    /// The descriptor in `slot`, read once. There is one: slots are below the size.
    #[inline]
    pub(crate) fn descriptor(&self, slot: u16) -> Words {
        self.desc.descriptor(slot)
    }

    /// Puts a used descriptor behind the last (P-8). The driver sees it with the next
    /// [`PackedRing::publish`]: until then the first of the batch is held back, and a driver
    /// reads none before the first.
    #[inline]
    pub(crate) fn push_used(&mut self, ticket: Ticket, len: u32) {
        let Place { slot, wrap } = self.next_used;
        let round = if wrap { AVAIL | USED } else { 0 };
        let flags = round | if len > 0 { WRITE } else { 0 };
        let tail = u64::from(len) | u64::from(ticket.id) << 32 | u64::from(flags) << 48;
        if self.first.is_some() {
            self.write_tail(slot, tail, Ordering::Relaxed);
        } else {
            self.first = Some((slot, tail));
        }
        self.next_used = self.next_used.after(ticket.entries, self.size);
        self.batch = self.batch.saturating_add(ticket.entries.into());
    }

    #[inline]
    fn write_tail(&self, slot: u16, tail: u64, ordering: Ordering) {
        let offset = usize::from(slot) * DESCRIPTOR_SIZE + TAIL;
        self.desc.u64(offset).store(tail.to_le(), ordering);
    }

    /// Shows the driver all used descriptors. True when it wants to be called (P-9).
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        let Some((slot, tail)) = self.first.take() else {
            return false;
        };
        self.write_tail(slot, tail, Ordering::Release);
        let batch = std::mem::take(&mut self.batch);
        fence(Ordering::SeqCst);
        let first = !std::mem::replace(&mut self.called, true);
        let event = u32::from_le(self.driver.u32(0).load(Ordering::Relaxed));
        // `desc` is the low half, the flags are the low bits of the high half.
        match (event >> 16) & 3 {
            VRING_PACKED_EVENT_FLAG_DISABLE => false,
            VRING_PACKED_EVENT_FLAG_DESC if self.event_idx => {
                first || self.has_passed(Place::unpack(event as u16), batch)
            }
            _ => true,
        }
    }

    /// How many descriptors were passed over since the driver was last shown any.
    #[inline]
    pub(crate) fn batch(&self) -> u32 {
        self.batch
    }

    /// Logs the last `batch` descriptors before the next used one, of a ring at `descriptors`.
    #[cold]
    pub(crate) fn mark_published(&self, batch: u32, descriptors: u64, log: &QueueLog) {
        if log.used.is_none() {
            return;
        }
        for back in 1..=batch.min(self.size.into()) {
            let slot = self.next_used.before(back.into(), self.size).slot;
            let offset = usize::from(slot) * DESCRIPTOR_SIZE;
            log.dirty
                .mark(descriptors + offset as u64, DESCRIPTOR_SIZE as u64);
        }
    }

    /// Logs where the driver is told whether kicks are wanted.
    #[cold]
    pub(crate) fn mark_wish(&self, log: &QueueLog) {
        log.mark_used(0, EVENT_SUPPRESS);
    }

    /// Whether `event` is one of the last `batch` places before the next used one.
    #[inline]
    fn has_passed(&self, event: Place, batch: u32) -> bool {
        let new = i64::from(self.next_used.slot);
        let old = new - i64::from(batch);
        let same_round = event.wrap == self.next_used.wrap;
        let behind = if same_round { 0 } else { i64::from(self.size) };
        let at = i64::from(event.slot) - behind;
        (old..new).contains(&at)
    }

    /// Asks the driver for a kick with its next chain. True when there is one already: the device
    /// must look again instead of going to sleep.
    #[inline]
    pub(crate) fn arm(&mut self) -> bool {
        if self.event_idx {
            self.ask(self.next_avail.pack(), VRING_PACKED_EVENT_FLAG_DESC);
        } else {
            self.ask(0, VRING_PACKED_EVENT_FLAG_ENABLE);
        }
        fence(Ordering::SeqCst);
        self.is_available(self.next_avail)
    }

    /// Tells the driver, without EVENT_IDX, that kicks are not needed until [`PackedRing::arm`].
    #[inline]
    pub(crate) fn disarm(&mut self) {
        self.ask(0, VRING_PACKED_EVENT_FLAG_DISABLE);
    }

    /// Writes the device's area, as one word: the driver reads it as one.
    #[inline]
    fn ask(&self, desc: u16, flags: u32) {
        let event = u32::from(desc) | flags << 16;
        self.device.u32(0).store(event.to_le(), Ordering::Relaxed);
    }

    /// The base from which the descriptor at `position` is taken next, and whether it is
    /// available.
    pub(crate) fn base_at(&self, position: u64) -> (u32, bool) {
        let back = self.taken.saturating_sub(position);
        let avail = self.next_avail.before(back, self.size);
        let base = u32::from(avail.pack()) | u32::from(self.next_used.pack()) << 16;
        (base, self.is_available(avail))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::*;
    use crate::memory::{Mapping, Region};
    use crate::ring::MAX_QUEUE_SIZE;

    /// A driver may write the flags of the next round while its chain is walked.
    #[test]
    fn a_chain_is_no_longer_than_the_ring_whatever_is_written_meanwhile() {
        const SIZE: usize = 3;
        let file = rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC);
        let file = File::from(file.expect("a memfd"));
        file.set_len(0x1000).expect("a length");
        let mapping = Arc::new(Mapping::new(&file, 0, 0x1000).expect("a mapping"));
        let region = Region::new(0, mapping, 0, 0x1000).expect("a region");
        let memory = GuestMemory::new(vec![region]).expect("memory");
        let area = Area::resolve(&memory, "ring", 0, SIZE * DESCRIPTOR_SIZE, 16).expect("a ring");
        let make_available = |place: Place| {
            let flags = place.available_flags() | NEXT as u16;
            let offset = usize::from(place.slot) * DESCRIPTOR_SIZE + FLAGS;
            file.write_all_at(&flags.to_le_bytes(), offset as u64)
                .expect("flags");
        };
        let mut place = Place {
            slot: 1,
            wrap: true,
        };
        let mut links = InRing::at(area.table(), place);
        make_available(place);
        let mut link = links.here().expect("a descriptor");
        for _ in 1..SIZE {
            assert_eq!(link.flags, NEXT);
            place = place.next(SIZE as u16);
            make_available(place);
            link = links.follow(&link).expect("a descriptor");
        }
        assert_eq!(link.flags, NEXT);
        make_available(place.next(SIZE as u16));
        assert!(links.follow(&link).is_none());
    }

    /// Every place of a ring of `size`, one after the other from the first.
    fn rounds(size: u16) -> impl Iterator<Item = Place> {
        [true, false]
            .into_iter()
            .flat_map(move |wrap| (0..size).map(move |slot| Place { slot, wrap }))
    }

    #[test]
    fn places_go_on_and_back_by_the_same_steps() {
        for size in [1, 2, 3, 5, 8] {
            for place in rounds(size) {
                for count in 0..=size {
                    let later = place.after(count, size);
                    assert!(later.slot < size, "{place:?} {count} of {size}");
                    assert_eq!(later.before(count.into(), size), place);
                    // A round and back again changes nothing but the round.
                    assert_eq!(
                        later.before(u64::from(count) + 2 * u64::from(size), size),
                        place
                    );
                }
                assert_eq!(Place::unpack(place.pack()), place);
            }
        }
        let last = Place {
            slot: MAX_QUEUE_SIZE - 1,
            wrap: true,
        };
        let first = Place {
            slot: 0,
            wrap: false,
        };
        assert_eq!(last.after(1, MAX_QUEUE_SIZE), first);
        assert_eq!(first.before(1, MAX_QUEUE_SIZE), last);
        assert_eq!(last.after(MAX_QUEUE_SIZE, MAX_QUEUE_SIZE).slot, last.slot);
    }
}
