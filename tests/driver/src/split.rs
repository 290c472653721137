//! The driver's side of a split virtqueue (VIRTIO 1.4, section 2.7).
//!
//! A [`SplitRing`] has two layers over the same memory. The raw layer reads and writes any field
//! of the ring and checks nothing, so that a test can be as hostile as a guest can be. The cooked
//! layer is a correct driver: it manages descriptors, publishes with the right ordering, suppresses
//! notifications, and panics if the device completes something that is not outstanding.
//!
//! Nothing here allocates once the ring is made, except where a `Vec` is returned.

use std::sync::atomic::{Ordering, fence};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::memory::{GuestMemory, Span};

/// The descriptor continues with the one in `next`.
pub const VIRTQ_DESC_F_NEXT: u16 = 1;
/// The buffer is for the device to write.
pub const VIRTQ_DESC_F_WRITE: u16 = 2;
/// The buffer contains a table of descriptors.
pub const VIRTQ_DESC_F_INDIRECT: u16 = 4;
/// In the available ring's flags: the driver wants no calls.
pub const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;
/// In the used ring's flags: the device wants no kicks.
pub const VIRTQ_USED_F_NO_NOTIFY: u16 = 1;

/// Size of a descriptor in bytes.
pub const DESCRIPTOR_SIZE: usize = size_of::<Descriptor>();

const RING_FLAGS: usize = 0;
const RING_IDX: usize = 2;
const RING_ENTRIES: usize = 4;
const AVAIL_ENTRY_SIZE: usize = 2;
const USED_ENTRY_SIZE: usize = 8;

/// An entry of a descriptor table; the fields are native, memory is little-endian.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Descriptor {
    /// Guest physical address of the buffer.
    pub addr: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
    /// The next descriptor of the chain, if the flags say that there is one.
    pub next: u16,
}

impl Descriptor {
    /// Converts between native and little-endian fields; the same in both directions.
    #[inline]
    fn swapped(self) -> Self {
        Descriptor {
            addr: self.addr.to_le(),
            len: self.len.to_le(),
            flags: self.flags.to_le(),
            next: self.next.to_le(),
        }
    }
}

/// A piece of guest memory in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether it is for the device to write; otherwise it is for the device to read.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub const fn readable(addr: u64, len: u32) -> Self {
        Buffer {
            addr,
            len,
            writable: false,
        }
    }

    /// A buffer that the device writes.
    pub const fn writable(addr: u64, len: u32) -> Self {
        Buffer {
            addr,
            len,
            writable: true,
        }
    }

    #[inline]
    fn descriptor(self, next: Option<u16>) -> Descriptor {
        let write = if self.writable { VIRTQ_DESC_F_WRITE } else { 0 };
        let chained = if next.is_some() { VIRTQ_DESC_F_NEXT } else { 0 };
        Descriptor {
            addr: self.addr,
            len: self.len,
            flags: write | chained,
            next: next.unwrap_or(0),
        }
    }
}

/// Where the three parts of a ring are, as guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The descriptor table; the specification aligns it to 16 bytes.
    pub desc: u64,
    /// The available ring; aligned to 2 bytes.
    pub avail: u64,
    /// The used ring; aligned to 4 bytes.
    pub used: u64,
}

impl Layout {
    /// The parts of a ring of `size` descriptors, each as close behind the other as its alignment
    /// allows, from the first 16-byte boundary at or after `base`.
    pub const fn packed_at(base: u64, size: u16) -> Self {
        let desc = base.next_multiple_of(16);
        let avail = desc + Self::desc_bytes(size) as u64;
        let used = (avail + Self::avail_bytes(size) as u64).next_multiple_of(4);
        Layout { desc, avail, used }
    }

    /// Bytes that [`Layout::packed_at`] takes from an aligned base.
    pub const fn total_bytes(size: u16) -> u64 {
        Self::packed_at(0, size).used + Self::used_bytes(size) as u64
    }

    /// Bytes of the descriptor table.
    pub const fn desc_bytes(size: u16) -> usize {
        DESCRIPTOR_SIZE * size as usize
    }

    /// Bytes of the available ring, with the field for `used_event`.
    pub const fn avail_bytes(size: u16) -> usize {
        RING_ENTRIES + AVAIL_ENTRY_SIZE * size as usize + 2
    }

    /// Bytes of the used ring, with the field for `avail_event`.
    pub const fn used_bytes(size: u16) -> usize {
        RING_ENTRIES + USED_ENTRY_SIZE * size as usize + 2
    }
}

/// There are not enough free descriptors for the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ring has not enough free descriptors")]
pub struct Full;

/// A completed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The head descriptor, as `add` returned it.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// The driver's side of a split ring.
#[derive(Clone, Debug)]
pub struct SplitRing {
    desc: Span,
    avail: Span,
    used: Span,
    memory: GuestMemory,
    layout: Layout,
    size: u16,
    event_idx: bool,

    /// For a free descriptor the next free one, for a used one the next of its chain. The table
    /// in guest memory is not trusted for it, so that a device that writes there is found out.
    links: Box<[u16]>,
    /// For the head of an outstanding request how many descriptors it has, else zero.
    chains: Box<[u16]>,
    free_head: u16,
    free: u16,
    outstanding: u16,
    /// What the available index becomes with the next publish.
    next_avail: u16,
    /// The available index when [`SplitRing::needs_kick`] was last asked.
    kicked: u16,
    /// The used index up to which entries were popped.
    next_used: u16,
    /// The used index as last seen.
    seen_used: u16,
}

/// The raw layer: nothing is checked, nothing else is changed.
impl SplitRing {
    /// Writes an entry of the descriptor table.
    #[inline]
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        let offset = DESCRIPTOR_SIZE * usize::from(index);
        self.desc.write(offset, descriptor.swapped().as_bytes());
    }

    /// Reads an entry of the descriptor table.
    pub fn descriptor(&self, index: u16) -> Descriptor {
        let mut descriptor = Descriptor::default();
        let offset = DESCRIPTOR_SIZE * usize::from(index);
        self.desc.read(offset, descriptor.as_mut_bytes());
        descriptor.swapped()
    }

    /// The bytes of the descriptor table, to check that a device did not write there.
    pub fn descriptor_table(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.desc.len()];
        self.desc.read(0, &mut bytes);
        bytes
    }

    /// Writes a table of descriptors to anywhere in guest memory.
    pub fn write_indirect_table(&self, gpa: u64, table: &[Descriptor]) {
        for (gpa, descriptor) in (gpa..).step_by(DESCRIPTOR_SIZE).zip(table) {
            self.memory.write_obj(gpa, descriptor.swapped());
        }
    }

    /// Writes the entry of the available ring in `slot`, which is an index modulo the size.
    #[inline]
    pub fn set_avail_entry(&self, slot: u16, head: u16) {
        let offset = RING_ENTRIES + AVAIL_ENTRY_SIZE * usize::from(slot);
        self.avail
            .store_u16(offset, head.to_le(), Ordering::Relaxed);
    }

    /// Reads the entry of the available ring in `slot`.
    pub fn avail_entry(&self, slot: u16) -> u16 {
        let offset = RING_ENTRIES + AVAIL_ENTRY_SIZE * usize::from(slot);
        u16::from_le(self.avail.load_u16(offset, Ordering::Relaxed))
    }

    /// Stores the available index with `Release`.
    #[inline]
    pub fn set_avail_idx(&self, idx: u16) {
        self.avail
            .store_u16(RING_IDX, idx.to_le(), Ordering::Release);
    }

    /// Reads the available index.
    pub fn avail_idx(&self) -> u16 {
        u16::from_le(self.avail.load_u16(RING_IDX, Ordering::Relaxed))
    }

    /// Writes the available ring's flags.
    #[inline]
    pub fn set_avail_flags(&self, flags: u16) {
        self.avail
            .store_u16(RING_FLAGS, flags.to_le(), Ordering::Relaxed);
    }

    /// Reads the available ring's flags.
    pub fn avail_flags(&self) -> u16 {
        u16::from_le(self.avail.load_u16(RING_FLAGS, Ordering::Relaxed))
    }

    /// Writes the used index at which the driver wants to be called.
    #[inline]
    pub fn set_used_event(&self, idx: u16) {
        let offset = RING_ENTRIES + AVAIL_ENTRY_SIZE * usize::from(self.size);
        self.avail.store_u16(offset, idx.to_le(), Ordering::Relaxed);
    }

    /// Reads the used index at which the driver wants to be called.
    pub fn used_event(&self) -> u16 {
        let offset = RING_ENTRIES + AVAIL_ENTRY_SIZE * usize::from(self.size);
        u16::from_le(self.avail.load_u16(offset, Ordering::Relaxed))
    }

    /// Reads the used index with `Acquire`.
    #[inline]
    pub fn used_idx(&self) -> u16 {
        u16::from_le(self.used.load_u16(RING_IDX, Ordering::Acquire))
    }

    /// Writes the used index, which is the device's to write.
    pub fn set_used_idx(&self, idx: u16) {
        self.used
            .store_u16(RING_IDX, idx.to_le(), Ordering::Release);
    }

    /// Reads the id and length of the used ring's entry in `slot`, an index modulo the size.
    #[inline]
    pub fn used_entry(&self, slot: u16) -> (u32, u32) {
        let offset = RING_ENTRIES + USED_ENTRY_SIZE * usize::from(slot);
        let id = self.used.load_u32(offset, Ordering::Relaxed);
        let len = self.used.load_u32(offset + 4, Ordering::Relaxed);
        (u32::from_le(id), u32::from_le(len))
    }

    /// Reads the used ring's flags.
    #[inline]
    pub fn used_flags(&self) -> u16 {
        u16::from_le(self.used.load_u16(RING_FLAGS, Ordering::Relaxed))
    }

    /// Reads the available index at which the device wants to be kicked.
    #[inline]
    pub fn avail_event(&self) -> u16 {
        let offset = RING_ENTRIES + USED_ENTRY_SIZE * usize::from(self.size);
        u16::from_le(self.used.load_u16(offset, Ordering::Relaxed))
    }
}

/// The cooked layer: a correct driver.
impl SplitRing {
    /// A ring in `memory`, with both indices zero. The three parts are zeroed.
    ///
    /// # Panics
    ///
    /// Panics if a part is not within one region, is not aligned, or if `size` is zero or above
    /// 32768. Other sizes that the specification does not allow are taken.
    pub fn new(memory: &GuestMemory, layout: Layout, size: u16, event_idx: bool) -> Self {
        assert!(
            (1..=0x8000).contains(&size),
            "a ring of size {size} cannot be"
        );
        let mut ring = SplitRing {
            desc: memory.span(layout.desc, Layout::desc_bytes(size)),
            avail: memory.span(layout.avail, Layout::avail_bytes(size)),
            used: memory.span(layout.used, Layout::used_bytes(size)),
            memory: memory.clone(),
            layout,
            size,
            event_idx,
            links: vec![0; size.into()].into(),
            chains: vec![0; size.into()].into(),
            free_head: 0,
            free: 0,
            outstanding: 0,
            next_avail: 0,
            kicked: 0,
            next_used: 0,
            seen_used: 0,
        };
        ring.reset(0);
        ring
    }

    /// Makes the ring as new, with both indices at `base`. Requests in it are forgotten.
    pub fn reset(&mut self, base: u16) {
        for (link, next) in self.links.iter_mut().zip(1..) {
            *link = next;
        }
        self.chains.fill(0);
        self.free_head = 0;
        self.free = self.size;
        self.outstanding = 0;
        self.next_avail = base;
        self.kicked = base;
        self.next_used = base;
        self.seen_used = base;
        for part in [&self.desc, &self.avail, &self.used] {
            part.fill(0);
        }
        self.set_avail_idx(base);
        self.set_used_idx(base);
        if self.event_idx {
            self.set_used_event(base);
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

    /// Sets whether `VIRTIO_F_EVENT_IDX` is in use. If that changes, calls are asked for, as in a
    /// new ring.
    pub fn set_event_idx(&mut self, event_idx: bool) {
        if self.event_idx == event_idx {
            return;
        }
        self.event_idx = event_idx;
        self.set_avail_flags(0);
        if event_idx {
            self.set_used_event(self.next_used);
        }
    }

    /// Sets the memory in which indirect tables are written, after regions were added.
    pub fn set_memory(&mut self, memory: &GuestMemory) {
        self.memory = memory.clone();
    }

    /// How many requests were added and not popped.
    pub fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// Whether the request with this head was added and not popped.
    pub fn is_outstanding(&self, head: u16) -> bool {
        self.chains.get(usize::from(head)).is_some_and(|&n| n > 0)
    }

    /// How many descriptors are free.
    pub fn free_descriptors(&self) -> u16 {
        self.free
    }

    /// What the available index becomes with the next publish.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// The used index up to which entries were popped.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// Adds a request of direct descriptors. The device does not see it before
    /// [`SplitRing::publish`].
    #[inline]
    pub fn add(&mut self, buffers: &[Buffer]) -> Result<u16, Full> {
        self.add_chain(buffers, None)
    }

    /// Adds a request of one descriptor that refers to a table of the others, which is written to
    /// `table_gpa` and must stay there until the request is popped.
    #[inline]
    pub fn add_indirect(&mut self, table_gpa: u64, buffers: &[Buffer]) -> Result<u16, Full> {
        self.add_chain(&[], Some((table_gpa, buffers)))
    }

    /// Adds a request that begins with direct descriptors and goes on in a table.
    #[inline]
    pub fn add_mixed(
        &mut self,
        direct: &[Buffer],
        table_gpa: u64,
        indirect: &[Buffer],
    ) -> Result<u16, Full> {
        self.add_chain(direct, Some((table_gpa, indirect)))
    }

    fn add_chain(
        &mut self,
        direct: &[Buffer],
        indirect: Option<(u64, &[Buffer])>,
    ) -> Result<u16, Full> {
        let count = direct.len() + usize::from(indirect.is_some());
        assert!(count > 0, "a request must have a buffer");
        if count > usize::from(self.free) {
            return Err(Full);
        }
        let head = self.free_head;
        let mut index = head;
        for (i, buffer) in direct.iter().enumerate() {
            let next = self.links[usize::from(index)];
            let chained = (i + 1 < count).then_some(next);
            self.set_descriptor(index, buffer.descriptor(chained));
            index = next;
        }
        if let Some((table, buffers)) = indirect {
            self.write_buffer_table(table, buffers);
            self.set_descriptor(
                index,
                Descriptor {
                    addr: table,
                    len: (buffers.len() * DESCRIPTOR_SIZE) as u32,
                    flags: VIRTQ_DESC_F_INDIRECT,
                    next: 0,
                },
            );
            index = self.links[usize::from(index)];
        }
        self.free_head = index;
        self.free -= count as u16;
        self.chains[usize::from(head)] = count as u16;
        self.outstanding += 1;
        self.push_head(head);
        Ok(head)
    }

    /// Writes the buffers to `gpa` as a chain of descriptors, for an indirect one to refer to.
    pub fn write_buffer_table(&self, gpa: u64, buffers: &[Buffer]) {
        let gpas = (gpa..).step_by(DESCRIPTOR_SIZE);
        for ((gpa, buffer), next) in gpas.zip(buffers).zip(1u16..) {
            let next = (usize::from(next) < buffers.len()).then_some(next);
            self.memory
                .write_obj(gpa, buffer.descriptor(next).swapped());
        }
    }

    /// Puts a head into the next slot of the available ring, whatever it is. A test that made a
    /// chain with the raw layer publishes it this way; [`SplitRing::pop_any`] takes it back.
    #[inline]
    pub fn push_head(&mut self, head: u16) {
        self.set_avail_entry(self.next_avail % self.size, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Lets the device see everything that was added.
    #[inline]
    pub fn publish(&mut self) {
        self.set_avail_idx(self.next_avail);
    }

    /// Whether the device wants to be kicked for what was published since this was last asked.
    #[inline]
    pub fn needs_kick(&mut self) -> bool {
        let old = self.kicked;
        let new = self.avail_idx();
        self.kicked = new;
        if old == new {
            return false;
        }
        // The index must be visible before the device's wish is read, or both sides may sleep.
        fence(Ordering::SeqCst);
        if self.event_idx {
            need_event(self.avail_event(), new, old)
        } else {
            self.used_flags() & VIRTQ_USED_F_NO_NOTIFY == 0
        }
    }

    /// Whether the device has completed something that was not popped.
    #[inline]
    pub fn has_used(&mut self) -> bool {
        if self.seen_used == self.next_used {
            self.seen_used = self.used_idx();
        }
        self.seen_used != self.next_used
    }

    /// Takes the next completed request.
    ///
    /// # Panics
    ///
    /// Panics if the device returns what is not outstanding, such as a request done twice, or if
    /// it completes more than the ring holds.
    #[inline]
    pub fn pop_used(&mut self) -> Option<Used> {
        let (id, len) = self.pop_any()?;
        let count = usize::try_from(id)
            .ok()
            .and_then(|id| self.chains.get(id).copied())
            .unwrap_or(0);
        assert!(
            count > 0,
            "the device returned id {id} (length {len}) at used index {}, which is not \
             outstanding: {} requests are, the ring has {} descriptors, the available index is {}",
            self.next_used.wrapping_sub(1),
            self.outstanding,
            self.size,
            self.next_avail,
        );
        let head = id as u16;
        self.chains[usize::from(head)] = 0;
        self.outstanding -= 1;
        let mut last = head;
        for _ in 1..count {
            last = self.links[usize::from(last)];
        }
        self.links[usize::from(last)] = self.free_head;
        self.free_head = head;
        self.free += count;
        Some(Used { head, len })
    }

    /// Takes the id and length of the next entry of the used ring, whatever they are. It frees no
    /// descriptors.
    ///
    /// # Panics
    ///
    /// Panics if the used index is more than the ring's size ahead.
    #[inline]
    pub fn pop_any(&mut self) -> Option<(u32, u32)> {
        if !self.has_used() {
            return None;
        }
        let ahead = self.seen_used.wrapping_sub(self.next_used);
        assert!(
            ahead <= self.size,
            "the device's used index {} is {ahead} ahead of {}, in a ring of size {}",
            self.seen_used,
            self.next_used,
            self.size,
        );
        let entry = self.used_entry(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        Some(entry)
    }

    /// Asks the device to call for the next completion. True if one is there already, for which
    /// no call may come: the caller must look before it sleeps.
    #[inline]
    #[must_use]
    pub fn arm_calls(&mut self) -> bool {
        if self.event_idx {
            self.set_used_event(self.next_used);
        } else {
            self.set_avail_flags(0);
        }
        // The wish must be visible before the used index is read, or both sides may sleep.
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Asks the device not to call. With `EVENT_IDX` this lasts for 65535 completions.
    #[inline]
    pub fn disarm_calls(&mut self) {
        if self.event_idx {
            self.set_used_event(self.next_used.wrapping_sub(1));
        } else {
            self.set_avail_flags(VIRTQ_AVAIL_F_NO_INTERRUPT);
        }
    }
}

/// Whether the move of an index from `old` to `new` passes `event`, that is, whether the entry at
/// index `event` is among the new ones (section 2.7.7.2).
#[inline]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u16 = 8;
    const TABLE: u64 = 0x8000;
    const DATA: u64 = 0xa000;

    fn ring(event_idx: bool) -> (GuestMemory, SplitRing) {
        let memory = GuestMemory::new(&[(0x1000, 0x10000)]);
        let ring = SplitRing::new(&memory, Layout::packed_at(0x1000, SIZE), SIZE, event_idx);
        (memory, ring)
    }

    /// A device that shares nothing with the ring but its memory.
    struct Device {
        memory: GuestMemory,
        layout: Layout,
        next: u16,
        used: u16,
    }

    impl Device {
        fn new(memory: &GuestMemory, ring: &SplitRing, base: u16) -> Self {
            Device {
                memory: memory.clone(),
                layout: ring.layout(),
                next: base,
                used: base,
            }
        }

        fn table(&self, table: u64, first: u16, buffers: &mut Vec<Buffer>) {
            let mut index = first;
            loop {
                let d: Descriptor = self.memory.read_obj(table + 16 * u64::from(index));
                if d.flags & VIRTQ_DESC_F_INDIRECT != 0 {
                    assert_eq!(d.flags, VIRTQ_DESC_F_INDIRECT);
                    return self.table(d.addr, 0, buffers);
                }
                buffers.push(Buffer {
                    addr: d.addr,
                    len: d.len,
                    writable: d.flags & VIRTQ_DESC_F_WRITE != 0,
                });
                if d.flags & VIRTQ_DESC_F_NEXT == 0 {
                    return;
                }
                index = d.next;
            }
        }

        fn take(&mut self) -> Option<(u16, Vec<Buffer>)> {
            let avail = self.layout.avail;
            if self.memory.load_u16(avail + 2, Ordering::Acquire) == self.next {
                return None;
            }
            let head: u16 = self
                .memory
                .read_obj(avail + 4 + 2 * u64::from(self.next % SIZE));
            self.next = self.next.wrapping_add(1);
            let mut buffers = Vec::new();
            self.table(self.layout.desc, head, &mut buffers);
            Some((head, buffers))
        }

        fn complete(&mut self, head: u16, len: u32) {
            let entry = self.layout.used + 4 + 8 * u64::from(self.used % SIZE);
            self.memory.write_obj(entry, [u32::from(head), len]);
            self.used = self.used.wrapping_add(1);
            let idx = self.layout.used + 2;
            self.memory.store_u16(idx, self.used, Ordering::Release);
        }
    }

    #[test]
    fn the_layout_is_the_specifications() {
        let layout = Layout::packed_at(0x1001, 3);
        assert_eq!(layout.desc, 0x1010);
        assert_eq!(layout.avail, 0x1010 + 48);
        assert_eq!(layout.used, 0x1010 + 48 + 12);
        assert_eq!(Layout::total_bytes(3), 48 + 12 + 30);
        assert_eq!(Layout::total_bytes(256), 4096 + 520 + 2054);
    }

    #[test]
    fn chains_go_round_for_longer_than_the_index() {
        for base in [0, 1, 0x7fff, 0xfffe, 0xffff] {
            for event_idx in [false, true] {
                let (memory, mut ring) = ring(event_idx);
                ring.reset(base);
                let mut device = Device::new(&memory, &ring, base);
                for round in 0..40u32 {
                    let out = Buffer::readable(DATA, round);
                    let back = Buffer::writable(DATA + 0x100, round + 1);
                    let a = ring.add(&[out, back, back]).unwrap();
                    let b = ring.add_indirect(TABLE, &[out, out, back]).unwrap();
                    let c = ring.add_mixed(&[out, out], TABLE + 0x100, &[back]).unwrap();
                    assert_eq!(ring.free_descriptors(), 1);
                    assert_eq!(ring.add(&[out, back]), Err(Full));
                    assert!(device.take().is_none(), "nothing is published");
                    ring.publish();
                    assert_eq!(device.take(), Some((a, vec![out, back, back])));
                    assert_eq!(device.take(), Some((b, vec![out, out, back])));
                    assert_eq!(device.take(), Some((c, vec![out, out, back])));
                    assert_eq!(device.take(), None);
                    assert_eq!(ring.pop_used(), None);
                    for head in [c, a, b] {
                        device.complete(head, round);
                    }
                    assert_eq!(ring.outstanding(), 3);
                    for head in [c, a, b] {
                        assert!(ring.is_outstanding(head));
                        assert_eq!(ring.pop_used(), Some(Used { head, len: round }));
                        assert!(!ring.is_outstanding(head));
                    }
                    assert_eq!(ring.pop_used(), None);
                    assert_eq!(ring.free_descriptors(), SIZE);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "which is not outstanding")]
    fn a_request_done_twice_is_found() {
        let (memory, mut ring) = ring(false);
        let mut device = Device::new(&memory, &ring, 0);
        let head = ring.add(&[Buffer::writable(DATA, 1)]).unwrap();
        ring.publish();
        device.complete(head, 1);
        device.complete(head, 1);
        ring.pop_used();
        ring.pop_used();
    }

    #[test]
    #[should_panic(expected = "ahead of")]
    fn a_used_index_out_of_bounds_is_found() {
        let (_memory, mut ring) = ring(false);
        ring.set_used_idx(SIZE + 1);
        ring.pop_used();
    }

    #[test]
    fn kicks_follow_the_flags_without_event_idx() {
        let (memory, mut ring) = ring(false);
        assert!(!ring.needs_kick(), "there is nothing to kick for");
        ring.add(&[Buffer::writable(DATA, 1)]).unwrap();
        ring.publish();
        assert!(ring.needs_kick());
        assert!(!ring.needs_kick());
        memory.store_u16(
            ring.layout().used,
            VIRTQ_USED_F_NO_NOTIFY,
            Ordering::Relaxed,
        );
        ring.add(&[Buffer::writable(DATA, 1)]).unwrap();
        ring.publish();
        assert!(!ring.needs_kick());
    }

    #[test]
    fn kicks_follow_the_event_with_event_idx() {
        let (memory, mut ring) = ring(true);
        ring.reset(0xffff);
        let event = ring.layout().used + 4 + 8 * u64::from(SIZE);
        let add = |ring: &mut SplitRing| {
            ring.add(&[Buffer::writable(DATA, 1)]).unwrap();
            ring.publish();
            ring.needs_kick()
        };
        memory.store_u16(event, 0xffff, Ordering::Relaxed);
        assert!(add(&mut ring), "the entry at 0xffff is wanted");
        assert!(!add(&mut ring), "the event has passed");
        memory.store_u16(event, 2, Ordering::Relaxed);
        assert!(!add(&mut ring));
        assert!(add(&mut ring));
    }

    #[test]
    fn calls_are_armed_and_disarmed() {
        for event_idx in [false, true] {
            let (memory, mut ring) = ring(event_idx);
            ring.reset(0xffff);
            let mut device = Device::new(&memory, &ring, 0xffff);
            let wanted = |ring: &SplitRing, new: u16, old: u16| {
                if event_idx {
                    need_event(ring.used_event(), new, old)
                } else {
                    ring.avail_flags() == 0
                }
            };
            let head = ring.add(&[Buffer::writable(DATA, 1)]).unwrap();
            ring.publish();
            ring.disarm_calls();
            assert!(!wanted(&ring, 0, 0xffff));
            assert!(!ring.arm_calls());
            assert!(wanted(&ring, 0, 0xffff));
            device.complete(head, 0);
            assert!(ring.arm_calls(), "it came before the arming");
            assert_eq!(ring.pop_used(), Some(Used { head, len: 0 }));
            assert!(!ring.arm_calls());
        }
    }

    #[test]
    fn the_raw_layer_writes_what_it_is_told() {
        let (memory, mut ring) = ring(true);
        let evil = Descriptor {
            addr: u64::MAX,
            len: u32::MAX,
            flags: 0xffff,
            next: 0xffff,
        };
        ring.set_descriptor(7, evil);
        assert_eq!(ring.descriptor(7), evil);
        assert_eq!(ring.descriptor_table()[..112], [0; 112]);
        assert_eq!(ring.descriptor_table()[112..], [0xff; 16]);
        ring.write_indirect_table(TABLE, &[Descriptor::default(), evil]);
        assert_eq!(memory.read_vec(TABLE + 16, 16), [0xff; 16]);
        ring.set_avail_entry(7, 0xbeef);
        assert_eq!(ring.avail_entry(7), 0xbeef);
        ring.set_avail_flags(3);
        assert_eq!(memory.read_obj::<u16>(ring.layout().avail), 3);
        ring.set_used_event(0x55aa);
        assert_eq!(memory.read_obj::<u16>(ring.layout().avail + 4 + 16), 0x55aa);
        ring.push_head(4);
        ring.publish();
        assert_eq!((ring.avail_entry(0), ring.avail_idx()), (4, 1));
        let mut device = Device::new(&memory, &ring, 0);
        device.complete(0x1234, 77);
        assert_eq!(ring.pop_any(), Some((0x1234, 77)));
        assert_eq!(ring.pop_any(), None);
    }
}
