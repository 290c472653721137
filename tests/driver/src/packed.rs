//! The driver's side of a packed virtqueue (VIRTIO 1.4, section 2.8).
//!
//! A [`PackedRing`] has two layers over the same memory, as a
//! [`SplitRing`](crate::split::SplitRing) has: the raw layer reads and writes any field and checks
//! nothing; the cooked layer is a correct driver, and panics if the device completes something
//! that is not outstanding.

use std::sync::atomic::{Ordering, fence};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::memory::{GuestMemory, Span};
use crate::split::{
    Buffer, Full, Layout, Used, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE,
};

/// In a descriptor's flags: available, if it is as the driver's wrap counter is.
pub const VIRTQ_DESC_F_AVAIL: u16 = 1 << 7;
/// In a descriptor's flags: used, if it is as the available bit is.
pub const VIRTQ_DESC_F_USED: u16 = 1 << 15;

/// In an area for event suppression: every notification is wanted.
pub const RING_EVENT_FLAGS_ENABLE: u16 = 0;
/// In an area for event suppression: none is wanted.
pub const RING_EVENT_FLAGS_DISABLE: u16 = 1;
/// In an area for event suppression: one is wanted for a certain descriptor.
pub const RING_EVENT_FLAGS_DESC: u16 = 2;

const DESCRIPTOR_SIZE: usize = size_of::<PackedDescriptor>();
const FLAGS: usize = 14;
const WRAP: u16 = 1 << 15;

/// An entry of the ring; the fields are native, memory is little-endian.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PackedDescriptor {
    /// Guest physical address of the buffer.
    pub addr: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// The buffer's id.
    pub id: u16,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
}

impl PackedDescriptor {
    /// Converts between native and little-endian fields; the same in both directions.
    fn swapped(self) -> Self {
        Self {
            addr: self.addr.to_le(),
            len: self.len.to_le(),
            id: self.id.to_le(),
            flags: self.flags.to_le(),
        }
    }
}

/// The place of a descriptor: its slot, and the wrap counter of the round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which descriptor of the ring.
    pub slot: u16,
    /// The wrap counter.
    pub wrap: bool,
}

impl Place {
    /// As the two sides write it: the slot in bits 0 to 14, the wrap counter in bit 15.
    pub const fn bits(self) -> u16 {
        self.slot | if self.wrap { WRAP } else { 0 }
    }

    /// From [`Place::bits`].
    pub const fn from_bits(bits: u16) -> Self {
        Self {
            slot: bits & !WRAP,
            wrap: bits & WRAP != 0,
        }
    }

    /// Moves on by at most a round of a ring of `size`.
    pub fn move_on(&mut self, count: u16, size: u16) {
        let slot = u32::from(self.slot) + u32::from(count);
        self.wrap ^= slot >= size.into();
        self.slot = (slot % u32::from(size)) as u16;
    }

    fn available(self) -> u16 {
        if self.wrap {
            VIRTQ_DESC_F_AVAIL
        } else {
            VIRTQ_DESC_F_USED
        }
    }
}

/// The driver's side of a packed ring.
#[derive(Clone, Debug)]
pub struct PackedRing {
    desc: Span,
    driver: Span,
    device: Span,
    memory: GuestMemory,
    layout: Layout,
    size: u16,
    event_idx: bool,

    /// For each buffer id that is outstanding how many descriptors it has, else zero.
    chains: Box<[u16]>,
    /// Ids that are not outstanding.
    ids: Vec<u16>,
    free: u16,
    outstanding: u16,
    next_avail: Place,
    next_used: Place,
    /// The first descriptor of what was added and not published: its slot and its flags.
    held: Option<(u16, u16)>,
    /// How many descriptors were made available since [`PackedRing::needs_kick`] was last asked.
    unkicked: u32,
}

/// The raw layer: nothing is checked, nothing else is changed.
impl PackedRing {
    /// Writes a descriptor, its flags last and with `Release`.
    #[inline]
    pub fn set_descriptor(&self, slot: u16, descriptor: PackedDescriptor) {
        self.write_body(slot, descriptor);
        self.set_flags(slot, descriptor.flags);
    }

    #[inline]
    fn write_body(&self, slot: u16, descriptor: PackedDescriptor) {
        let offset = DESCRIPTOR_SIZE * usize::from(slot);
        let le = descriptor.swapped();
        self.desc.write(offset, &le.as_bytes()[..FLAGS]);
    }

    /// Writes the flags of a descriptor with `Release`.
    #[inline]
    pub fn set_flags(&self, slot: u16, flags: u16) {
        let offset = DESCRIPTOR_SIZE * usize::from(slot) + FLAGS;
        self.desc
            .store_u16(offset, flags.to_le(), Ordering::Release);
    }

    /// Reads a descriptor, its flags first and with `Acquire`.
    #[inline]
    pub fn descriptor(&self, slot: u16) -> PackedDescriptor {
        let offset = DESCRIPTOR_SIZE * usize::from(slot);
        let flags = self.flags(slot);
        let mut descriptor = PackedDescriptor::default();
        self.desc.read(offset, descriptor.as_mut_bytes());
        PackedDescriptor {
            flags,
            ..descriptor.swapped()
        }
    }

    #[inline]
    fn flags(&self, slot: u16) -> u16 {
        let offset = DESCRIPTOR_SIZE * usize::from(slot) + FLAGS;
        u16::from_le(self.desc.load_u16(offset, Ordering::Acquire))
    }

    /// Writes a table of descriptors to anywhere in guest memory.
    pub fn write_indirect_table(&self, gpa: u64, table: &[PackedDescriptor]) {
        for (gpa, descriptor) in (gpa..).step_by(DESCRIPTOR_SIZE).zip(table) {
            self.memory.write_obj(gpa, descriptor.swapped());
        }
    }

    /// Writes the driver's area: when it wants to be called.
    #[inline]
    pub fn set_driver_event(&self, desc: u16, flags: u16) {
        let event = u32::from(desc) | u32::from(flags) << 16;
        self.driver.store_u32(0, event.to_le(), Ordering::Relaxed);
    }

    /// Reads the driver's area.
    pub fn driver_event(&self) -> (u16, u16) {
        halves(self.driver.load_u32(0, Ordering::Relaxed))
    }

    /// Reads the device's area: when it wants to be kicked.
    #[inline]
    pub fn device_event(&self) -> (u16, u16) {
        halves(self.device.load_u32(0, Ordering::Relaxed))
    }

    /// The place of the next descriptor to make available.
    pub fn next_avail(&self) -> Place {
        self.next_avail
    }

    /// The place of the next used descriptor.
    pub fn next_used(&self) -> Place {
        self.next_used
    }

    /// The base from which a device goes on that has done everything up to here.
    pub fn base(&self) -> u32 {
        u32::from(self.next_avail.bits()) | u32::from(self.next_used.bits()) << 16
    }
}

fn halves(event: u32) -> (u16, u16) {
    let event = u32::from_le(event);
    (event as u16, (event >> 16) as u16)
}

/// The cooked layer: a correct driver.
impl PackedRing {
    /// The base of a new ring.
    pub const FIRST_BASE: u32 = 0x8000_8000;

    /// The parts of a ring of `size` descriptors, one behind the other from the first 16-byte
    /// boundary at or after `base`.
    pub const fn layout_at(base: u64, size: u16) -> Layout {
        let desc = base.next_multiple_of(16);
        let avail = desc + (DESCRIPTOR_SIZE * size as usize) as u64;
        Layout {
            desc,
            avail,
            used: avail + 4,
        }
    }

    /// A new ring in `memory`. The three parts are zeroed.
    ///
    /// # Panics
    ///
    /// Panics if a part is not within one region or not aligned, or if `size` is zero or above
    /// 32768.
    pub fn new(memory: &GuestMemory, layout: Layout, size: u16, event_idx: bool) -> Self {
        assert!(
            (1..=0x8000).contains(&size),
            "a ring of size {size} cannot be"
        );
        let mut ring = PackedRing {
            desc: memory.span(layout.desc, DESCRIPTOR_SIZE * usize::from(size)),
            driver: memory.span(layout.avail, 4),
            device: memory.span(layout.used, 4),
            memory: memory.clone(),
            layout,
            size,
            event_idx,
            chains: vec![0; size.into()].into(),
            ids: Vec::with_capacity(size.into()),
            free: 0,
            outstanding: 0,
            next_avail: Place::from_bits(0),
            next_used: Place::from_bits(0),
            held: None,
            unkicked: 0,
        };
        ring.reset(Self::FIRST_BASE);
        ring
    }

    /// Makes the ring as new, to go on from `base`, at which both sides are at one place. Requests
    /// in it are forgotten.
    pub fn reset(&mut self, base: u32) {
        self.chains.fill(0);
        self.ids.clear();
        self.ids.extend((0..self.size).rev());
        self.free = self.size;
        self.outstanding = 0;
        self.next_avail = Place::from_bits(base as u16);
        self.next_used = Place::from_bits((base >> 16) as u16);
        self.held = None;
        self.unkicked = 0;
        self.driver.fill(0);
        self.device.fill(0);
        for slot in 0..self.size {
            // As a used descriptor of the round that was before.
            let place = Place {
                slot,
                wrap: self.next_avail.wrap ^ (slot < self.next_avail.slot),
            };
            let round = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED;
            let flags = if place.wrap { 0 } else { round };
            let used = PackedDescriptor {
                flags,
                ..PackedDescriptor::default()
            };
            self.set_descriptor(slot, used);
        }
    }

    /// Where the parts are.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// How many descriptors there are.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether `VIRTIO_F_EVENT_IDX` is in use.
    pub fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// Sets whether `VIRTIO_F_EVENT_IDX` is in use. Calls are asked for, as in a new ring.
    pub fn set_event_idx(&mut self, event_idx: bool) {
        self.event_idx = event_idx;
        self.set_driver_event(0, RING_EVENT_FLAGS_ENABLE);
    }

    /// Sets the memory in which indirect tables are written, after regions were added.
    pub fn set_memory(&mut self, memory: &GuestMemory) {
        self.memory = memory.clone();
    }

    /// How many requests were added and not popped.
    pub fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// How many descriptors are free.
    pub fn free_descriptors(&self) -> u16 {
        self.free
    }

    /// Adds a request of direct descriptors. The device does not see it before
    /// [`PackedRing::publish`].
    #[inline]
    pub fn add(&mut self, buffers: &[Buffer]) -> Result<u16, Full> {
        assert!(!buffers.is_empty(), "a request must have a buffer");
        let count = self.room_for(buffers.len())?;
        let id = self.take_id(count);
        for (index, buffer) in (1..).zip(buffers) {
            let next = if index < count { VIRTQ_DESC_F_NEXT } else { 0 };
            let descriptor = PackedDescriptor {
                flags: next | write_flag(*buffer),
                addr: buffer.addr,
                len: buffer.len,
                id,
            };
            self.push_descriptor(descriptor);
        }
        Ok(id)
    }

    /// Adds a request of one descriptor that refers to a table of buffers, which is written to
    /// `table_gpa` and must stay there until the request is popped.
    #[inline]
    pub fn add_indirect(&mut self, table_gpa: u64, buffers: &[Buffer]) -> Result<u16, Full> {
        let count = self.room_for(1)?;
        let id = self.take_id(count);
        let gpas = (table_gpa..).step_by(DESCRIPTOR_SIZE);
        for (gpa, buffer) in gpas.zip(buffers) {
            let descriptor = PackedDescriptor {
                addr: buffer.addr,
                len: buffer.len,
                id: 0,
                flags: write_flag(*buffer),
            };
            self.memory.write_obj(gpa, descriptor.swapped());
        }
        self.push_descriptor(PackedDescriptor {
            addr: table_gpa,
            len: (buffers.len() * DESCRIPTOR_SIZE) as u32,
            id,
            flags: VIRTQ_DESC_F_INDIRECT,
        });
        Ok(id)
    }

    fn room_for(&self, count: usize) -> Result<u16, Full> {
        match u16::try_from(count) {
            Ok(count) if count <= self.free => Ok(count),
            _ => Err(Full),
        }
    }

    fn take_id(&mut self, count: u16) -> u16 {
        let id = self.ids.pop().expect("as many ids as descriptors");
        self.chains[usize::from(id)] = count;
        self.free -= count;
        self.outstanding += 1;
        id
    }

    /// Writes the next descriptor, with flags that make it available: at once, as the device
    /// cannot see it before the first of what was added, which waits for the publish.
    #[inline]
    pub fn push_descriptor(&mut self, descriptor: PackedDescriptor) {
        let Place { slot, .. } = self.next_avail;
        let flags = descriptor.flags | self.next_avail.available();
        self.write_body(slot, descriptor);
        if self.held.is_some() {
            self.set_flags(slot, flags);
        } else {
            self.held = Some((slot, flags));
        }
        self.next_avail.move_on(1, self.size);
        self.unkicked += 1;
    }

    /// Lets the device see everything that was added.
    #[inline]
    pub fn publish(&mut self) {
        if let Some((slot, flags)) = self.held.take() {
            self.set_flags(slot, flags);
        }
    }

    /// Whether the device wants to be kicked for what was published since this was last asked.
    #[inline]
    pub fn needs_kick(&mut self) -> bool {
        let added = std::mem::take(&mut self.unkicked);
        if added == 0 {
            return false;
        }
        // The flags must be visible before the device's wish is read, or both sides may sleep.
        fence(Ordering::SeqCst);
        let (desc, flags) = self.device_event();
        match flags {
            RING_EVENT_FLAGS_ENABLE => true,
            RING_EVENT_FLAGS_DESC => {
                passes(Place::from_bits(desc), self.next_avail, added, self.size)
            }
            _ => false,
        }
    }

    /// Whether the device has completed something that was not popped.
    #[inline]
    pub fn has_used(&mut self) -> bool {
        let flags = self.flags(self.next_used.slot);
        let wrap = self.next_used.wrap;
        (flags & VIRTQ_DESC_F_AVAIL != 0) == wrap && (flags & VIRTQ_DESC_F_USED != 0) == wrap
    }

    /// Takes the next completed request.
    ///
    /// # Panics
    ///
    /// Panics if the device returns what is not outstanding, such as a request done twice, or
    /// says that it wrote nothing into a buffer but gives a length.
    #[inline]
    pub fn pop_used(&mut self) -> Option<Used> {
        if !self.has_used() {
            return None;
        }
        let used = self.descriptor(self.next_used.slot);
        let chain = self.chains.get_mut(usize::from(used.id));
        let count = chain.map_or(0, std::mem::take);
        assert!(
            count > 0,
            "the device returned id {} in slot {}, which is not outstanding: {} requests are",
            used.id,
            self.next_used.slot,
            self.outstanding,
        );
        self.ids.push(used.id);
        self.free += count;
        self.outstanding -= 1;
        self.next_used.move_on(count, self.size);
        // P-8: the length means something only if data was written.
        let wrote = used.flags & VIRTQ_DESC_F_WRITE != 0;
        Some(Used {
            head: used.id,
            len: if wrote { used.len } else { 0 },
        })
    }

    /// Asks the device to call for the next completion. True if one is there already, for which
    /// no call may come: the caller must look before it sleeps.
    #[inline]
    #[must_use]
    pub fn arm_calls(&mut self) -> bool {
        if self.event_idx {
            self.set_driver_event(self.next_used.bits(), RING_EVENT_FLAGS_DESC);
        } else {
            self.set_driver_event(0, RING_EVENT_FLAGS_ENABLE);
        }
        // The wish must be visible before the flags are read, or both sides may sleep.
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Asks the device not to call.
    #[inline]
    pub fn disarm_calls(&mut self) {
        self.set_driver_event(0, RING_EVENT_FLAGS_DISABLE);
    }
}

fn write_flag(buffer: Buffer) -> u16 {
    if buffer.writable {
        VIRTQ_DESC_F_WRITE
    } else {
        0
    }
}

/// Whether `event` is one of the `count` places before `new`, in a ring of `size`.
fn passes(event: Place, new: Place, count: u32, size: u16) -> bool {
    let size = i64::from(size);
    let round = if event.wrap == new.wrap { 0 } else { size };
    let distance = i64::from(new.slot) - (i64::from(event.slot) - round);
    (1..=i64::from(count)).contains(&distance)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u64 = 0xa000;
    const TABLE: u64 = 0x8000;

    fn ring(size: u16, event_idx: bool) -> PackedRing {
        let memory = GuestMemory::new(&[(0x1000, 0x10000)]);
        let layout = PackedRing::layout_at(0x1000, size);
        PackedRing::new(&memory, layout, size, event_idx)
    }

    /// A device that shares nothing with the ring but its memory: takes a chain of descriptors,
    /// and writes used ones over them.
    struct Device {
        next: Place,
        used: Place,
    }

    impl Device {
        fn new(base: u32) -> Self {
            Self {
                next: Place::from_bits(base as u16),
                used: Place::from_bits((base >> 16) as u16),
            }
        }

        fn take(&mut self, ring: &PackedRing) -> Option<(u16, Vec<PackedDescriptor>)> {
            let mut chain = Vec::new();
            loop {
                let desc = ring.descriptor(self.next.slot);
                let bits = desc.flags & (VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED);
                if bits != self.next.available() {
                    assert!(chain.is_empty(), "half a chain");
                    return None;
                }
                chain.push(desc);
                self.next.move_on(1, ring.size());
                if desc.flags & VIRTQ_DESC_F_NEXT == 0 {
                    return Some((desc.id, chain));
                }
            }
        }

        fn complete(&mut self, ring: &PackedRing, id: u16, count: u16, len: u32) {
            let round = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED;
            let descriptor = PackedDescriptor {
                addr: 0,
                len,
                id,
                flags: VIRTQ_DESC_F_WRITE | if self.used.wrap { round } else { 0 },
            };
            ring.set_descriptor(self.used.slot, descriptor);
            self.used.move_on(count, ring.size());
        }
    }

    #[test]
    fn chains_go_round_in_rings_of_any_size() {
        for size in [5, 6, 7, 8, 13] {
            for base in [PackedRing::FIRST_BASE, 0, 0x8003_8003, 0x0004_0004] {
                let mut ring = ring(size, false);
                ring.reset(base);
                let mut device = Device::new(base);
                for round in 1..40 {
                    let out = Buffer::readable(DATA, round);
                    let back = Buffer::writable(DATA + 0x100, round);
                    let a = ring.add(&[out, out, back]).unwrap();
                    let b = ring.add_indirect(TABLE, &[out, back]).unwrap();
                    assert_eq!(device.take(&ring), None, "nothing is published");
                    ring.publish();
                    let (first, chain) = device.take(&ring).expect("published");
                    assert_eq!((first, chain.len()), (a, 3));
                    let (second, chain) = device.take(&ring).expect("published");
                    assert_eq!((second, chain.len()), (b, 1));
                    assert_eq!(device.take(&ring), None);
                    assert_eq!(ring.pop_used(), None);
                    device.complete(&ring, b, 1, round);
                    device.complete(&ring, a, 3, round);
                    for head in [b, a] {
                        assert_eq!(ring.pop_used(), Some(Used { head, len: round }));
                    }
                    assert_eq!(ring.pop_used(), None);
                    assert_eq!(ring.free_descriptors(), size);
                }
                assert_eq!(ring.base() as u16, (ring.base() >> 16) as u16);
            }
        }
    }

    #[test]
    #[should_panic(expected = "which is not outstanding")]
    fn a_request_done_twice_is_found() {
        let mut ring = ring(8, false);
        let mut device = Device::new(PackedRing::FIRST_BASE);
        let id = ring.add(&[Buffer::writable(DATA, 1)]).unwrap();
        ring.publish();
        device.complete(&ring, id, 1, 1);
        device.complete(&ring, id, 1, 1);
        ring.pop_used();
        ring.pop_used();
    }

    #[test]
    fn kicks_follow_the_devices_area() {
        let mut ring = ring(3, true);
        let mut device = Device::new(PackedRing::FIRST_BASE);
        let mut add = |ring: &mut PackedRing, desc: u16, flags: u16| {
            let event = u32::from(desc) | u32::from(flags) << 16;
            ring.device.store_u32(0, event.to_le(), Ordering::Relaxed);
            let id = ring.add(&[Buffer::writable(DATA, 1)]).unwrap();
            ring.publish();
            let kick = ring.needs_kick();
            device.complete(ring, id, 1, 1);
            ring.pop_used().unwrap();
            kick
        };
        assert!(add(&mut ring, 0, RING_EVENT_FLAGS_ENABLE));
        assert!(!add(&mut ring, 0, RING_EVENT_FLAGS_DISABLE));
        assert!(add(&mut ring, WRAP | 2, RING_EVENT_FLAGS_DESC), "slot 2");
        assert!(
            !add(&mut ring, WRAP | 2, RING_EVENT_FLAGS_DESC),
            "slot 0 of the next round"
        );
        assert!(add(&mut ring, 1, RING_EVENT_FLAGS_DESC));
        assert!(
            !add(&mut ring, WRAP, RING_EVENT_FLAGS_DESC),
            "two rounds on"
        );
        assert!(!ring.needs_kick(), "there is nothing to kick for");
    }
}
