//! What the driver's sides of both kinds of virtqueue have in common, for whoever drives a device
//! and does not care which it is.

use crate::memory::GuestMemory;
use crate::packed::PackedRing;
use crate::split::{Buffer, Full, Layout, SplitRing, Used};

/// The driver's side of a virtqueue.
pub trait Ring: std::fmt::Debug + Sized + Send {
    /// Whether `VIRTIO_F_RING_PACKED` is negotiated for it.
    const PACKED: bool;
    /// The base of a new ring, as `SET_VRING_BASE` has it.
    const FIRST_BASE: u32;

    /// Where the three areas of a ring of `size` descriptors are, from `base` on.
    fn place_at(base: u64, size: u16) -> Layout;
    /// How many bytes [`Ring::place_at`] takes from a base that is aligned to 16.
    fn bytes(size: u16) -> u64;
    /// A new ring.
    fn create(memory: &GuestMemory, layout: Layout, size: u16, event_idx: bool) -> Self;
    /// Makes the ring as new, to go on from a base.
    fn start_at(&mut self, base: u32);
    /// The base from which a device goes on that has done everything up to here.
    fn base(&self) -> u32;
    /// Where the areas are.
    fn layout(&self) -> Layout;
    /// How many descriptors there are.
    fn size(&self) -> u16;
    /// Whether `VIRTIO_F_EVENT_IDX` is in use.
    fn event_idx(&self) -> bool;
    /// Sets whether `VIRTIO_F_EVENT_IDX` is in use.
    fn set_event_idx(&mut self, event_idx: bool);
    /// Sets the memory in which indirect tables are written.
    fn set_memory(&mut self, memory: &GuestMemory);
    /// How many requests were added and not popped.
    fn outstanding(&self) -> u16;
    /// How many descriptors are free.
    fn free_descriptors(&self) -> u16;
    /// Adds a request of direct descriptors.
    ///
    /// # Errors
    /// When there are not enough descriptors.
    fn add(&mut self, buffers: &[Buffer]) -> Result<u16, Full>;
    /// Adds a request whose descriptors are in a table at `table_gpa`.
    ///
    /// # Errors
    /// When there is no descriptor.
    fn add_indirect(&mut self, table_gpa: u64, buffers: &[Buffer]) -> Result<u16, Full>;
    /// Adds a request that begins with direct descriptors and goes on in a table, where the ring
    /// allows that (R-5, P-7); else all of them are in the table.
    ///
    /// # Errors
    /// When there are not enough descriptors.
    fn add_mixed(
        &mut self,
        direct: &[Buffer],
        table_gpa: u64,
        indirect: &[Buffer],
    ) -> Result<u16, Full>;
    /// Has the device see something that a driver must not do: another index, or another
    /// descriptor's flags.
    fn disturb(&mut self, value: u16);
    /// Lets the device see what was added.
    fn publish(&mut self);
    /// Whether the device wants to be kicked for what was published since this was last asked.
    fn needs_kick(&mut self) -> bool;
    /// Whether the device has completed something that was not popped.
    fn has_used(&mut self) -> bool;
    /// Takes the next completed request.
    fn pop_used(&mut self) -> Option<Used>;
    /// Asks to be called for the next completion. True if one is there already.
    fn arm_calls(&mut self) -> bool;
    /// Asks not to be called.
    fn disarm_calls(&mut self);
}

/// The methods that both rings have under the same name.
macro_rules! same {
    () => {
        #[inline]
        fn layout(&self) -> Layout {
            self.layout()
        }
        #[inline]
        fn size(&self) -> u16 {
            self.size()
        }
        #[inline]
        fn event_idx(&self) -> bool {
            self.event_idx()
        }
        #[inline]
        fn set_event_idx(&mut self, event_idx: bool) {
            self.set_event_idx(event_idx);
        }
        #[inline]
        fn set_memory(&mut self, memory: &GuestMemory) {
            self.set_memory(memory);
        }
        #[inline]
        fn outstanding(&self) -> u16 {
            self.outstanding()
        }
        #[inline]
        fn free_descriptors(&self) -> u16 {
            self.free_descriptors()
        }
        #[inline]
        fn add(&mut self, buffers: &[Buffer]) -> Result<u16, Full> {
            self.add(buffers)
        }
        #[inline]
        fn add_indirect(&mut self, table_gpa: u64, buffers: &[Buffer]) -> Result<u16, Full> {
            self.add_indirect(table_gpa, buffers)
        }
        #[inline]
        fn publish(&mut self) {
            self.publish();
        }
        #[inline]
        fn needs_kick(&mut self) -> bool {
            self.needs_kick()
        }
        #[inline]
        fn pop_used(&mut self) -> Option<Used> {
            self.pop_used()
        }
        #[inline]
        fn arm_calls(&mut self) -> bool {
            self.arm_calls()
        }
        #[inline]
        fn disarm_calls(&mut self) {
            self.disarm_calls();
        }
        #[inline]
        fn has_used(&mut self) -> bool {
            self.has_used()
        }
        fn create(memory: &GuestMemory, layout: Layout, size: u16, event_idx: bool) -> Self {
            Self::new(memory, layout, size, event_idx)
        }
    };
}

impl Ring for SplitRing {
    const PACKED: bool = false;
    const FIRST_BASE: u32 = 0;

    fn place_at(base: u64, size: u16) -> Layout {
        Layout::packed_at(base, size)
    }

    fn bytes(size: u16) -> u64 {
        Layout::total_bytes(size)
    }

    fn start_at(&mut self, base: u32) {
        self.reset(base as u16);
    }

    fn base(&self) -> u32 {
        self.next_avail().into()
    }

    fn add_mixed(
        &mut self,
        direct: &[Buffer],
        table_gpa: u64,
        indirect: &[Buffer],
    ) -> Result<u16, Full> {
        self.add_mixed(direct, table_gpa, indirect)
    }

    fn disturb(&mut self, value: u16) {
        self.set_avail_idx(value);
    }

    same!();
}

impl Ring for PackedRing {
    const PACKED: bool = true;
    const FIRST_BASE: u32 = Self::FIRST_BASE;

    fn place_at(base: u64, size: u16) -> Layout {
        Self::layout_at(base, size)
    }

    fn bytes(size: u16) -> u64 {
        Self::layout_at(0, size).used + 4
    }

    fn start_at(&mut self, base: u32) {
        self.reset(base);
    }

    fn base(&self) -> u32 {
        self.base()
    }

    fn add_mixed(
        &mut self,
        direct: &[Buffer],
        table_gpa: u64,
        indirect: &[Buffer],
    ) -> Result<u16, Full> {
        self.add_indirect(table_gpa, &[direct, indirect].concat())
    }

    fn disturb(&mut self, value: u16) {
        self.set_flags(self.next_avail().slot, value);
    }

    same!();
}
